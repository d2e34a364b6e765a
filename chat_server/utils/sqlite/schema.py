"""The schema: numbered steps per part, recorded in the file, applied in one transaction."""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from chat_server.utils.errors import StartError

# "chat" in ASCII: `file` and --check recognize the database by it.
APPLICATION_ID = 0x63686174


class Schema(NamedTuple):
    """One part of the database: its name and its steps. A released step never changes."""

    part: str
    steps: Sequence[str]


def recorded_steps(connection: sqlite3.Connection, schemas: Sequence[Schema], path: Path) -> dict[str, int]:
    """Return how many steps of each part were applied; empty for an empty file.

    Raises StartError if the file belongs to another program or a newer version.
    """
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    if not tables:
        return {}
    if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise StartError(f"{path}: is a database of another program; choose another DataDir")
    steps = dict(connection.execute("SELECT part, step FROM schema_steps"))
    for schema in schemas:
        if steps.get(schema.part, 0) > len(schema.steps):
            raise StartError(
                f"{path}: was made by a newer chat_server (schema {schema.part} {steps[schema.part]}, "
                f"this one knows {len(schema.steps)}); run the newer one, or restore a backup"
            )
    return steps


def missing_steps(steps: dict[str, int], schemas: Sequence[Schema]) -> int:
    """Return how many steps a file that recorded `steps` still needs."""
    return sum(len(schema.steps) - steps.get(schema.part, 0) for schema in schemas)


def refuse_foreign(path: Path) -> None:
    """Raise StartError for another program's database, before anything in it changes."""
    if path.exists() and path.stat().st_size and not path.with_name(f"{path.name}-wal").exists():
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?immutable=1", uri=True)) as connection:
            recorded_steps(connection, (), path)


def refuse_older(connection: sqlite3.Connection, schemas: Sequence[Schema], path: Path) -> None:
    """Raise StartError if the running server that owns the file has an older schema than this version."""
    if missing_steps(recorded_steps(connection, schemas, path), schemas):
        raise StartError(f"{path}: a chat_server of an earlier version is running on it; stop that one first")


def upgrade(connection: sqlite3.Connection, schemas: Sequence[Schema], path: Path) -> None:
    """Apply the missing steps in one transaction: all of them or none."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        steps = recorded_steps(connection, schemas, path)
        if not steps:
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS schema_steps (part TEXT PRIMARY KEY, step INTEGER NOT NULL) STRICT"
            )
        for schema in schemas:
            for step in schema.steps[steps.get(schema.part, 0) :]:
                connection.execute(step)
            connection.execute(
                "INSERT OR REPLACE INTO schema_steps (part, step) VALUES (?, ?)",
                (schema.part, len(schema.steps)),
            )
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
