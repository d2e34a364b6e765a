"""The owner of the embedded database: runs jobs in its threads and gives their results to the event loop."""

import asyncio
import logging
import os
import sqlite3
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from chat_server.utils.errors import StartError, StoreUnavailable
from chat_server.utils.metrics import NO_STORE_METRICS, StoreMetrics
from chat_server.utils.sqlite.connections import Connections
from chat_server.utils.sqlite.files import (
    exposure,
    inaccessible,
    lock_folder,
    make_folder,
    protect_database,
    require_access,
)
from chat_server.utils.sqlite.inspection import check_pages, unusable
from chat_server.utils.sqlite.pool import Pool
from chat_server.utils.sqlite.schema import Schema, refuse_foreign, refuse_older, upgrade
from chat_server.utils.sqlite.transactions import BatchJob, FastPath, Job, Write, commit, one_by_one, translated_errors
from chat_server.utils.sqlite.wal import Checkpointer, rewrite_log
from chat_server.utils.threads import SingleThreadExecutor, lower_priority
from chat_server.utils.writer import Writer

log = logging.getLogger(__name__)

T = TypeVar("T")
Item = TypeVar("Item")

# Reading connections; slow reads use only one of them.
READERS = 3
# If a reader, such as a backup, uses the log, emptying it is tried this many times, a second apart.
TRUNCATE_ATTEMPTS = 20
# At start, a file of at most this many bytes is checked for damage as a whole; --check checks any file.
CHECKED_AT_START = 67_108_864


class Database:
    """The embedded database of the folder `folder`; one process at a time opens it.

    A job is a function of a connection; it runs in a thread and returns plain values. Write jobs that arrive together
    are committed together. A job that raises fails alone and leaves no change. A job may run twice, so it must not
    keep state that a second run would break.
    Raises StoreUnavailable if SQLite fails or does not answer within `timeout` seconds, and immediately while earlier
    calls have not been answered in time.
    """

    def __init__(self, folder: Path, *, timeout: float, watch: StoreMetrics = NO_STORE_METRICS) -> None:
        self.path = folder / "chat.db"
        self.timeout = timeout
        self._watch = watch
        self._lock: int | None = None
        self._closed = False
        self._write_executor = SingleThreadExecutor("sqlite-writer")
        self._write_thread = Pool(self._write_executor, timeout)
        self._read_threads = Pool(ThreadPoolExecutor(READERS - 1, "sqlite-reader"), timeout)
        self._slow_read_thread = Pool(ThreadPoolExecutor(1, "sqlite-slow-reader", lower_priority), timeout)
        self._connections = Connections(self.path, READERS)
        self._checkpointer = Checkpointer(self._connections)
        self._writer: Writer[Write] = Writer(self._write_executor, self._write_batch, timeout=timeout, watch=watch)

    async def open(self, schemas: Sequence[Schema], *, alongside: bool = False) -> None:
        """Lock the folder, open the file, upgrade the schema. Raises StartError.

        With `alongside`, a running server may hold the lock. The database then works without the lock and does not
        change the schema; SQLite's own locks separate the two processes.
        """
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._write_executor, self._open, schemas, alongside)

    @property
    def owns_lock(self) -> bool:
        """Whether this process holds the folder's lock, so that no server runs on it."""
        return self._lock is not None

    async def write(self, job: Job[T]) -> T:
        """Run `job` in a transaction. Its result arrives after the transaction is durable."""
        result: T = await self._submit(Write(one_by_one, job))
        return result

    async def write_batched(self, job: BatchJob[Item, T], item: Item, fast_path: FastPath[Item, T]) -> T:
        """Like `write`, but `job` gets the items of all calls that arrive together and returns a result for each.

        If no other writes arrive with them, `fast_path` goes first: one statement that is its own transaction. Each
        statement releases Python's lock twice and waits for it again, so a single statement is much cheaper.
        """
        result: T = await self._submit(Write(job, item, fast_path))
        return result

    async def read(self, job: Job[T], *, slow: bool = False) -> T:
        """Run `job` on a reading connection. It sees everything committed and waits for no writer.

        `slow` jobs, whose cost grows with the stored data, run one at a time in a thread of low priority.
        """
        self._expect_open()
        threads = self._slow_read_thread if slow else self._read_threads
        return await self._watch.time_call(threads.run(self._read, job))

    async def fetch(self, query: str, values: Sequence[object]) -> list[Any]:
        """Return the rows that a query finds, on a reading connection."""
        return await self.read(lambda connection: connection.execute(query, values).fetchall())

    async def ping(self, table: str) -> None:
        """Return if `table` can be read and the database written: one page goes through the log to the disk."""
        await self.write(_write_page)
        await self.fetch(f"SELECT 1 FROM {table} LIMIT 1", ())  # noqa: S608 - a constant

    async def checkpoint(self) -> None:
        """Empty the log, because deleted text must not stay in it for long. Waits for readers that still use it."""
        for _ in range(TRUNCATE_ATTEMPTS):
            self._expect_open()
            with translated_errors():
                if await self._write_thread.run(self._checkpointer.truncate):
                    return
            await asyncio.sleep(1)
        log.warning("WAL not emptied", extra={"why": "a reader, such as a backup, still uses it"})

    async def close(self) -> None:
        """Finish the submitted writes, close all connections, unlock the folder. Idempotent."""
        await self._writer.flush()
        self._closed = True
        await asyncio.get_running_loop().run_in_executor(None, self._close)

    # --- on the event loop

    def _submit(self, write: Write) -> asyncio.Future[Any]:
        self._expect_open()
        return self._writer.submit(write)

    def _expect_open(self) -> None:
        if self._closed:
            raise StoreUnavailable("the embedded database is closed")

    # --- in the threads

    def _write_batch(self, batch: Sequence[Write]) -> Sequence[Any]:
        with translated_errors():
            results = commit(self._connections.writing(), batch)
        if self.owns_lock:  # after the callers have their results, and before the next batch
            self._write_executor.post(self._checkpointer.keep_log_short)
        return results

    def _read(self, job: Job[T]) -> T:
        with translated_errors(), self._connections.reading(self.timeout) as connection:
            return job(connection)

    def _open(self, schemas: Sequence[Schema], alongside: bool) -> None:
        folder, path = self.path.parent, self.path
        try:
            self._prepare_files(alongside)
            if why := exposure(folder):
                log.warning("data folder exposed", extra={"why": why})
            writing = self._connections.writing()
            if not self.owns_lock:
                refuse_older(writing, schemas, path)
                return
            if path.stat().st_size <= CHECKED_AT_START:
                check_pages(writing, path)
            upgrade(writing, schemas, path)
        except OSError as error:
            raise inaccessible(folder, error) from error
        except sqlite3.Error as error:
            raise unusable(path, error) from error

    def _prepare_files(self, alongside: bool) -> None:
        """Lock the folder and make its files safe to open; alongside a running server, leave them alone."""
        folder = self.path.parent
        make_folder(folder)
        try:
            self._lock = lock_folder(folder)
        except BlockingIOError as error:
            if alongside:
                return
            raise StartError(
                f"DataDir {folder}: another chat_server is running on it; stop that one, or choose another DataDir"
            ) from error
        require_access(folder, folder=True)
        rewrite_log(self.path)
        refuse_foreign(self.path)
        protect_database(self.path)

    def _close(self) -> None:
        for pool in (self._write_thread, self._read_threads, self._slow_read_thread):
            pool.executor.shutdown()
        self._checkpointer.close()
        self._connections.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _write_page(tx: sqlite3.Connection) -> None:
    """Change an unused number in the file's header, because SQLite does not write a page that stays the same."""
    [number] = tx.execute("PRAGMA user_version").fetchone()
    tx.execute(f"PRAGMA user_version = {number ^ 1}")
