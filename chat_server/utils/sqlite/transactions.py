"""Group commit: the writes of one batch are committed together, and a write that fails does not affect the others."""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple, TypeVar

from chat_server.utils.errors import StoreMisconfigured, StoreUnavailable

T = TypeVar("T")
Item = TypeVar("Item")
Job = Callable[[sqlite3.Connection], T]
BatchJob = Callable[[sqlite3.Connection, Sequence[Item]], Sequence[T]]
FastPath = Callable[[sqlite3.Connection, Sequence[Item]], Sequence[T] | None]

# SQLite reports these for a file that it will never be able to read.
_DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


class Write(NamedTuple):
    """A write: `job` gets the items of all adjacent writes that have the same job, and returns one result for each.

    `fast_path` does the same with a single statement, or returns None and has changed nothing.
    """

    job: BatchJob[Any, Any]
    item: Any
    fast_path: FastPath[Any, Any] | None = None


def commit(connection: sqlite3.Connection, batch: Sequence[Write]) -> Sequence[Any]:
    """Run the writes in one transaction and return a result or an exception for each.

    If one of them raises, each runs in a transaction of its own. Raises sqlite3.Error if the database itself fails.
    """
    try:
        return _in_single_statement(connection, batch) or _in_transaction(connection, batch)
    except Exception as error:
        if isinstance(error, sqlite3.Error) and not isinstance(error, sqlite3.IntegrityError):
            raise  # the database itself: full, unreadable, damaged
        if len(batch) == 1:
            refused = isinstance(error, sqlite3.Error)
            return [StoreUnavailable(f"the embedded database refused: {error}") if refused else error]
    return [result for write in batch for result in commit(connection, [write])]


def one_by_one(tx: sqlite3.Connection, jobs: Sequence[Job[Any]]) -> list[Any]:
    """The batch job of jobs that have nothing in common."""
    return [job(tx) for job in jobs]


def primary_code(error: sqlite3.Error) -> int:
    """Return SQLite's code of an error: SQLITE_ERROR if the module raised it, and the primary one of extended codes."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF


@contextmanager
def translated_errors() -> Iterator[None]:
    """Translate SQLite's errors into StoreUnavailable, or StoreMisconfigured for a damaged file."""
    try:
        yield
    except sqlite3.Error as error:
        why = f"the embedded database failed: {error}"
        if primary_code(error) in _DAMAGE:
            raise StoreMisconfigured(f"{why}; restore a backup") from error
        raise StoreUnavailable(why) from error


def _in_single_statement(connection: sqlite3.Connection, batch: Sequence[Write]) -> Sequence[Any] | None:
    job, _, fast_path = batch[0]
    if fast_path and all(write.job == job for write in batch):
        return fast_path(connection, [write.item for write in batch])
    return None


def _in_transaction(connection: sqlite3.Connection, batch: Sequence[Write]) -> Sequence[Any]:
    try:
        connection.execute("BEGIN IMMEDIATE")
        results: list[Any] = []
        for job, writes in groupby(batch, key=attrgetter("job")):
            results += job(connection, [write.item for write in writes])
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return results
