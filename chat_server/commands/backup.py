"""python run.py backup, verify and restore: copies of the embedded database."""

import argparse

from chat_server.backends import SCHEMAS
from chat_server.conf import Settings
from chat_server.utils.errors import StartError
from chat_server.utils.sqlite import snapshot
from chat_server.utils.sqlite.snapshot import Contents


def backup(options: argparse.Namespace, settings: Settings) -> None:
    """Copy the embedded database to a new file, even while the server runs. Raises StartError."""
    servers = _stores_in_servers(settings)
    if len(servers) == 3:
        raise StartError(f"no store is embedded; back up the servers: {'; '.join(servers)}")
    contents = snapshot.backup(settings.stores.data_dir, options.file, SCHEMAS)
    print(f"{options.file}: {_summary(contents)}")
    for store in servers:
        print(f"NOT in this backup: {store}")


def verify(options: argparse.Namespace, settings: Settings) -> None:
    """Read a backup completely and print a summary. Raises StartError."""
    print(f"{options.file}: sound; {_summary(snapshot.verify(options.file, SCHEMAS))}")


def restore(options: argparse.Namespace, settings: Settings) -> None:
    """Restore a backup into a DataDir without a database. Raises StartError."""
    folder = settings.stores.data_dir
    without = () if options.keep_sessions else ("sessions",)
    contents = snapshot.restore(options.file, folder, SCHEMAS, without)
    print(f"{folder / 'chat.db'}: {_summary(contents)}")
    if without:
        print(f"{contents.rows.get('sessions', 0)} sessions ended: all users must log in again")
    for store in _stores_in_servers(settings):
        print(f"NOT restored: {store}")


def _stores_in_servers(settings: Settings) -> list[str]:
    """A sentence for each store in a database server, with the tool that backs it up."""
    sentences = (
        (settings.mysql.db, "users are in MySQL (mysqldump)"),
        (settings.mongodb.mongodb, "messages are in MongoDB (mongodump)"),
        (settings.redis.redis_db, "sessions and contact limits are in Redis (its dump.rdb)"),
    )
    return [sentence for backend, sentence in sentences if backend != "embedded"]


def _summary(contents: Contents) -> str:
    rows = contents.rows
    steps = ", ".join(f"{part} {step}" for part, step in sorted(contents.steps.items()))
    return (
        f"{rows.get('users', 0)} users, {rows.get('messages', 0)} messages in {rows.get('conversations', 0) // 2} "
        f"conversations and {rows.get('groups', 0)} groups, {rows.get('sessions', 0)} sessions (schema: {steps})"
    )
