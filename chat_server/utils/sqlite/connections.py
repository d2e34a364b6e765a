"""The connections to the database file: one that writes, a few that read."""

import os
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue

# A command, or the sqlite3 shell, may lock the file for a moment. Connections wait for it this long, in milliseconds.
BUSY_TIMEOUT = 5000
# Pages that the writer keeps in memory, in KiB.
CACHE_KIB = 8192
# Offset of the log's page count in its index (https://www.sqlite.org/walformat.html#the_wal_index_header).
PAGE_COUNT_OFFSET = 16


class Connections:
    """One writing and `readers` reading connections to the file `path`.

    Only the writer thread opens and reopens them. Reader threads borrow a reading connection for each query.
    """

    def __init__(self, path: Path, readers: int) -> None:
        self.path = path
        self._readers = readers
        self._writing: sqlite3.Connection | None = None
        self._idle: SimpleQueue[sqlite3.Connection] = SimpleQueue()
        self._reading = 0  # open reading connections, idle or borrowed
        self._file = self._log_index = -1  # descriptors

    @property
    def is_open(self) -> bool:
        """Whether the connections are open."""
        return self._writing is not None

    def writing(self) -> sqlite3.Connection:
        """Return the writing connection, opening all connections if an earlier failure closed them."""
        return self._writing or self._open()

    @contextmanager
    def reading(self, timeout: float) -> Iterator[sqlite3.Connection]:
        """Borrow a reading connection, waiting at most `timeout` seconds for an idle one."""
        try:
            connection = self._idle.get(timeout=timeout)
        except Empty:
            raise sqlite3.OperationalError("the database is not open") from None
        try:
            yield connection
        finally:
            self._idle.put(connection)

    def log_pages(self) -> int:
        """Return how many pages the write-ahead log holds, without asking SQLite."""
        return int.from_bytes(os.pread(self._log_index, 4, PAGE_COUNT_OFFSET), sys.byteorder)

    def sync_file(self) -> None:
        """Sync the database file (not its log). Raises OSError."""
        os.fsync(self._file)

    def reopen(self) -> None:
        """Close and open all connections, so that SQLite reads the log again from its beginning."""
        self._discard()
        self._open()

    def close(self) -> None:
        """Close all connections. The writing one closes last and copies the log into the file."""
        self._close_readers()
        self._close_writer()
        self._close_descriptors()

    def _open(self) -> sqlite3.Connection:
        try:
            self._writing = writing = connect(self.path, "rwc")
            writing.execute("PRAGMA wal_autocheckpoint = 0")
            writing.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
            while self._reading < self._readers:
                self._idle.put(connect(self.path, "ro"))
                self._reading += 1
            self._file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            self._log_index = os.open(self.path.with_name(f"{self.path.name}-shm"), os.O_RDONLY | os.O_CLOEXEC)
        except sqlite3.Error:
            self._discard()
            raise
        except OSError as error:
            self._discard()
            raise sqlite3.OperationalError(str(error)) from error
        return writing

    def _discard(self) -> None:
        """Close all connections and leave the log as it is: the last one to close only reads, so it cannot copy it."""
        self._close_writer()
        self._close_readers()
        self._close_descriptors()

    def _close_writer(self) -> None:
        if self._writing:
            self._writing.close()
            self._writing = None

    def _close_readers(self) -> None:
        while self._reading:
            self._idle.get().close()
            self._reading -= 1

    def _close_descriptors(self) -> None:
        """Close them after all connections: closing any descriptor of a file releases the process's locks on it."""
        for descriptor in (self._file, self._log_index):
            if descriptor >= 0:
                os.close(descriptor)
        self._file = self._log_index = -1


def connect(path: Path, mode: str) -> sqlite3.Connection:
    """Open a connection with the settings that make a commit durable.

    In WAL mode with synchronous=FULL, COMMIT returns after the log was synced
    (https://www.sqlite.org/pragma.html#pragma_synchronous).
    """
    # Threads hand connections to each other, but only one thread uses a connection at a time.
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=256,
    )
    connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT}")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA secure_delete = ON")  # the text of a deleted message must not stay in the file
    return connection
