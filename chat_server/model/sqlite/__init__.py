"""Users and messages in the embedded database."""

from chat_server.model.sqlite.messages import SqliteMessages
from chat_server.model.sqlite.schema import MESSAGES_SCHEMA, USERS_SCHEMA
from chat_server.model.sqlite.users import SqliteUsers

__all__ = ["MESSAGES_SCHEMA", "USERS_SCHEMA", "SqliteMessages", "SqliteUsers"]
