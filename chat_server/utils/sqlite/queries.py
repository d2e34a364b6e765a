"""Statements that hold Python's global interpreter lock as rarely as possible.

Every step of a statement releases the lock. Next to a busy event loop, getting it back takes as long as a short query.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import msgspec

Item = TypeVar("Item")


def chunks(items: Sequence[Item], limit: int) -> Iterator[Sequence[Item]]:
    """Split `items` into parts of 1, 2, 4, ... items, at most `limit` (a power of two) each.

    A statement has one parameter per item, so few distinct lengths mean few prepared statements.
    """
    done = 0
    while done < len(items):
        part = items[done : done + min(limit, 1 << (len(items) - done).bit_length() - 1)]
        yield part
        done += len(part)


def to_json(value: object) -> str:
    """Return `value` as JSON: one parameter for json_each in place of many."""
    return msgspec.json.encode(value).decode()


def fetch_json(connection: sqlite3.Connection, columns: str, query: str, values: Sequence[object]) -> list[list[Any]]:
    """Return `columns` of the rows that `query` finds, fetched in one step as one JSON value.

    The rows keep the order of `query` if it ends with LIMIT.
    """
    statement = f"SELECT json_group_array(json_array({columns})) FROM ({query})"  # noqa: S608 - constants only
    found: list[list[Any]] = msgspec.json.decode(connection.execute(statement, values).fetchone()[0])
    return found
