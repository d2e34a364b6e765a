"""The write-ahead log: it is copied into the database file before it grows long, and emptied after deletions."""

import logging
import os
import shutil
import sqlite3
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from chat_server.utils.sqlite.connections import BUSY_TIMEOUT, Connections, connect

log = logging.getLogger(__name__)

# The log is copied into the file once it has this many pages. Pages that every batch changes are then copied once
# instead of often. While the disk syncs a copy, commits wait; so after a pause a shorter log is copied already.
LONG_LOG, SHORT_LOG = 4000, 500
PAUSE_SECONDS = 0.15
# Emptying the log waits this long for readers that use it, in milliseconds.
TRUNCATE_TIMEOUT = 20


class Checkpointer:
    """Copies the log into the file. The writer thread calls it between transactions.

    The bulk of a copy runs in another thread.

    SQLite's automatic checkpoints would not report failures. And while a reader uses the log, a checkpoint copies a
    part of it and does not sync that part before the rest is copied: a failing sync would then lose it. So after any
    failure all connections are opened again: SQLite then reads the log from its beginning and copies all of it.
    """

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._thread = ThreadPoolExecutor(1, "sqlite-checkpointer")
        self._copying: Future[None] | None = None  # the copy that runs in another thread
        self._started = 0.0  # of the latest copy, on the monotonic clock

    def keep_log_short(self) -> None:
        """Copy a long log in another thread, then copy what the writer added in the meantime, so the log restarts."""
        try:
            if self._copying is None:
                now = time.monotonic()
                limit = LONG_LOG if now - self._started < PAUSE_SECONDS else SHORT_LOG
                if self._connections.log_pages() >= limit:
                    self._copying, self._started = self._thread.submit(self._copy), now
            elif self._copying.done():
                self._checkpoint("PASSIVE", 0)  # the writer does not wait for a long reader, such as a backup
        except Exception as error:  # whatever it is: the transaction is durable, in the log
            log.warning("WAL not copied", extra={"why": str(error)})

    def truncate(self) -> bool:
        """Copy all of the log and empty it. Returns False if a reader still uses it."""
        return self._checkpoint("TRUNCATE", TRUNCATE_TIMEOUT)

    def close(self) -> None:
        """Wait for a running copy and end the thread."""
        self._thread.shutdown()

    def _copy(self) -> None:
        """Copy what the log holds now and sync the file, in the checkpointer's thread."""
        try:
            with closing(connect(self._connections.path, "rw")) as connection:
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
            self._connections.sync_file()  # SQLite syncs only after it has copied everything
        except OSError as error:
            raise sqlite3.OperationalError(str(error)) from error

    def _checkpoint(self, mode: str, timeout: int) -> bool:
        """Copy the rest of the log in the writer's thread. Returns False if a reader prevented it."""
        copying, self._copying = self._copying, None
        if not self._connections.is_open:
            return True
        connection = self._connections.writing()
        try:
            if copying:
                copying.result()
            connection.execute(f"PRAGMA busy_timeout = {timeout}")
            busy, _, _ = connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
            connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT}")
            return not busy
        except sqlite3.Error:
            self._connections.reopen()
            raise


def rewrite_log(path: Path) -> None:
    """Write the database's log over itself and sync it, so that everything a reader sees in it is on the disk.

    After a failed sync, pages that an earlier process wrote may exist only in the system's memory. Linux considers
    them written: every reader sees them and no later sync writes them (https://lwn.net/Articles/752063/).
    """
    log_file = path.with_name(f"{path.name}-wal")
    if not log_file.exists():
        return
    with log_file.open("rb") as source, log_file.open("r+b") as target:
        shutil.copyfileobj(source, target)
        target.flush()
        os.fsync(target.fileno())
