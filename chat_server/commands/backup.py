"""python run.py backup, verify and restore: copies of the embedded database."""

import argparse

from chat_server.backends import SCHEMAS
from chat_server.conf import Settings
from chat_server.utils.errors import StartError
from chat_server.utils.sqlite import snapshot
from chat_server.utils.sqlite.snapshot import Contents


def backup(options: argparse.Namespace, settings: Settings) -> None:
    """Copy the embedded database to a new file, also while a server runs. Raises StartError."""
    elsewhere = _elsewhere(settings)
    if len(elsewhere) == 3:
        raise StartError(f"nothing is embedded here; back up the servers: {'; '.join(elsewhere)}")
    contents = snapshot.backup(settings.stores.data_dir, options.file, SCHEMAS)
    print(f"{options.file}: {_said(contents)}")
    for store in elsewhere:
        print(f"NOT in this copy: {store}")


def verify(options: argparse.Namespace, settings: Settings) -> None:
    """Read all of a copy, and say what it holds. Raises StartError."""
    print(f"{options.file}: sound; {_said(snapshot.verify(options.file, SCHEMAS))}")


def restore(options: argparse.Namespace, settings: Settings) -> None:
    """Make a copy the data of a server that has none. Raises StartError."""
    folder = settings.stores.data_dir
    without = () if options.keep_sessions else ("sessions",)
    contents = snapshot.restore(options.file, folder, SCHEMAS, without)
    print(f"{folder / 'chat.db'}: {_said(contents)}")
    if without:
        print(f"{contents.rows.get('sessions', 0)} sessions ended: everybody logs in again")
    for store in _elsewhere(settings):
        print(f"NOT restored: {store}")


def _elsewhere(settings: Settings) -> list[str]:
    """A sentence for each store that is a server, with what copies it."""
    kept = (
        (settings.mysql.db, "users are in MySQL (mysqldump)"),
        (settings.mongodb.mongodb, "messages are in MongoDB (mongodump)"),
        (settings.redis.redis_db, "sessions and counters are in Redis (its dump.rdb)"),
    )
    return [sentence for word, sentence in kept if word != "embedded"]


def _said(contents: Contents) -> str:
    rows = contents.rows
    steps = ", ".join(f"{part} {step}" for part, step in sorted(contents.steps.items()))
    return (
        f"{rows.get('users', 0)} users, {rows.get('messages', 0)} messages in {rows.get('conversations', 0) // 2} "
        f"conversations, {rows.get('sessions', 0)} sessions (schema: {steps})"
    )
