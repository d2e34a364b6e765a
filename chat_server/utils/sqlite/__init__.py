"""The embedded SQLite database: one file, one writer thread and a few reader threads, never the event loop."""

from chat_server.utils.sqlite.database import READERS, Database
from chat_server.utils.sqlite.inspection import examine
from chat_server.utils.sqlite.pool import MAX_ABANDONED
from chat_server.utils.sqlite.queries import chunks, fetch_json, to_json
from chat_server.utils.sqlite.schema import Schema

__all__ = ["MAX_ABANDONED", "READERS", "Database", "Schema", "chunks", "examine", "fetch_json", "to_json"]
