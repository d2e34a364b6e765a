"""The owner of the embedded database: one file, one writer thread, a few readers, never the event loop.

Durability: WAL with synchronous=FULL on the writing connection, so COMMIT returns after the log was synced
(https://www.sqlite.org/pragma.html#pragma_synchronous), and nobody hears of a write before that.
"""

import asyncio
import errno
import fcntl
import logging
import os
import shutil
import sqlite3
import stat
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from queue import Empty, SimpleQueue
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeVar

import msgspec

from chat_server.utils.errors import StartError, StoreUnavailable
from chat_server.utils.metrics import NO_STORE_METRICS, StoreMetrics
from chat_server.utils.threads import lower_priority
from chat_server.utils.writer import Writer

log = logging.getLogger(__name__)

T = TypeVar("T")
Item = TypeVar("Item")
Job = Callable[[sqlite3.Connection], T]
Jobs = Callable[[sqlite3.Connection, Sequence[Item]], Sequence[T]]
AtOnce = Callable[[sqlite3.Connection, Sequence[Item]], Sequence[T] | None]

# Connections that read; slow reads never have but one of them.
READERS = 3
# What nobody waits for any more keeps its place in a pool's queue until a thread comes to it. So many may leave before
# that; then nothing is taken in until the threads have come so far. Only a disk that hangs makes so many leave, and a
# read in the queue takes a few kilobytes. Those who wait are not counted: thousands come back at once, each with one.
MOST_LEFT = 1024
# The write-ahead log is copied into the file when it has so many pages: the pages that every batch touches are then
# written to it once instead of often. While the disk takes what was copied, a commit waits; so where there is time for
# it, so many seconds since the last copy, less is copied at once.
LONG_LOG, SHORT_LOG = 4000, 500
COPY_SECONDS = 0.15
# The writer keeps so many KiB of pages in memory.
CACHE_KIB = 8192
# Where the log's index has how many pages the log has (https://www.sqlite.org/walformat.html#the_wal_index_header).
LOG_PAGES = 16
# A command, or sqlite3 in a shell, may hold the file for a moment: it is waited for so many milliseconds.
BUSY = 5000
# To empty the log, the writer waits so many milliseconds for readers that use it. If one takes longer (a backup), it is
# tried again so many times, a second apart.
BUSY_TRUNCATE, TRIES_TRUNCATE = 20, 20
# What SQLite reports for a file that it cannot use although nothing in it is damaged.
NO_DAMAGE = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_READONLY,
    }
)
# A file of at most so many bytes is read whole at start, to find damage; --check does so with any.
CHECKED_AT_START = 67_108_864
# "chat" in ASCII: lets `file` and --check tell our database from another program's.
APPLICATION_ID = 0x63686174


class Schema(NamedTuple):
    """A part of the database: its name, and its numbered steps, never changed once released."""

    part: str
    steps: Sequence[str]


class Write(NamedTuple):
    """What is to be written: the items of neighbours with the same work are handed to it in one call.

    `at_once` does the same by one statement, which is a transaction of its own, or returns None and has done nothing.
    """

    work: Jobs[Any, Any]
    item: Any
    at_once: AtOnce[Any, Any] | None = None


class Database:
    """The embedded database of the folder `folder`, opened by one process at a time.

    A job is a function of a connection; it runs in a thread and returns plain values. Write jobs that come
    together are committed together. A job that raises fails alone and leaves nothing behind, so
    it must not keep state of its own that a second run would break.
    Raises StoreUnavailable where SQLite fails, or does not answer within `timeout` seconds; at once while it has not
    answered others.
    """

    def __init__(self, folder: Path, *, timeout: float, watch: StoreMetrics = NO_STORE_METRICS) -> None:
        self.path = folder / "chat.db"
        self.timeout = timeout
        self._watch = watch
        self._lock: int | None = None
        self._closed = False
        self._writer = ThreadPoolExecutor(1, "sqlite-writer")
        self._readers = ThreadPoolExecutor(READERS - 1, "sqlite-reader")
        self._slow_reader = ThreadPoolExecutor(1, "sqlite-slow-reader", initializer=lower_priority)
        self._copier = ThreadPoolExecutor(1, "sqlite-copier")
        self._copying: Future[None] | None = None  # the log is being copied, beside the writer
        self._copied = 0.0  # when that last began, on the monotonic clock
        self._left: Counter[ThreadPoolExecutor] = Counter()  # who left, until the pool has come so far
        self._writing: sqlite3.Connection | None = None
        self._file = self._index = -1  # the file, and the log's index
        self._idle: SimpleQueue[sqlite3.Connection] = SimpleQueue()  # what reads, and is not at it
        self._reading = 0  # how many connections read
        self._writes: Writer[Write] = Writer(self._writer, self._write_batch, timeout=timeout, watch=watch)

    async def open(self, schemas: Sequence[Schema], *, alongside: bool = False) -> None:
        """Lock the folder, open the file, bring the schema up to date. Raises StartError.

        With `alongside`, where a server holds the lock: go without it, and leave the schema alone. Then SQLite's own
        locks keep the two apart.
        """
        await asyncio.get_running_loop().run_in_executor(self._writer, self._open, schemas, alongside)

    @property
    def owns_lock(self) -> bool:
        """Whether it holds the folder's lock: no server runs on it."""
        return self._lock is not None

    async def write(self, job: Job[T]) -> T:
        """Run `job` in a transaction; its result comes after the transaction was made durable."""
        result: T = await self._submit(Write(_one_by_one, job))
        return result

    async def write_together(self, work: Jobs[Item, T], item: Item, at_once: AtOnce[Item, T]) -> T:
        """As `write`, but `work` gets all the items that come together, and returns a result for each.

        Every statement gives up the interpreter's lock twice and waits for it again. So where nothing else comes with
        them `at_once` is tried first: it writes them all by one statement, which needs no other to begin and to commit
        it, or returns None and has done nothing.
        """
        result: T = await self._submit(Write(work, item, at_once))
        return result

    async def read(self, job: Job[T], *, slow: bool = False) -> T:
        """Run `job` on a reading connection: it sees all that was committed, and waits for no writer.

        `slow` ones, whose cost grows with what is stored, go one at a time, in a thread that all others go before.
        """
        return await self._watch.timed(self._in_thread(self._slow_reader if slow else self._readers, self._read, job))

    async def fetch(self, query: str, values: Sequence[object]) -> list[Any]:
        """The rows that a query finds, on a reading connection."""
        return await self.read(lambda connection: connection.execute(query, values).fetchall())

    async def ping(self, table: str) -> None:
        """Return if that table can be read, and the database be written: one page goes through the log to the disk."""
        await self.write(_touch)
        await self.read(lambda connection: connection.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone())  # noqa: S608

    async def checkpoint(self) -> None:
        """Empty the log: what was deleted must not stay in it for long. It waits for readers that still use it."""
        for _ in range(TRIES_TRUNCATE):
            if await self._in_thread(self._writer, self._copy_log, "TRUNCATE"):
                return
            await asyncio.sleep(1)
        log.warning("log not emptied", extra={"why": "a reader, such as a backup, still uses it"})

    async def close(self) -> None:
        """Finish what was handed over, close all connections, release the folder. Idempotent."""
        await self._writes.flush()
        self._closed = True
        await asyncio.get_running_loop().run_in_executor(None, self._close)

    # --- on the loop

    def _submit(self, write: Write) -> asyncio.Future[Any]:
        self._expect_open()
        return self._writes.submit(write)

    def _expect_open(self) -> None:
        if self._closed:
            raise StoreUnavailable("the embedded database is closed")

    async def _in_thread(self, pool: ThreadPoolExecutor, work: Callable[[Any], T], argument: Any) -> T:
        self._expect_open()
        if self._left[pool] >= MOST_LEFT:
            raise StoreUnavailable(f"the embedded database has left {MOST_LEFT} and more without an answer")
        try:
            with _failures():
                async with asyncio.timeout(self.timeout):
                    return await asyncio.get_running_loop().run_in_executor(pool, work, argument)
        except TimeoutError as error:
            self._leave(pool)
            raise StoreUnavailable(f"the embedded database did not answer within {self.timeout:g} s") from error
        except asyncio.CancelledError:
            self._leave(pool)
            raise

    def _leave(self, pool: ThreadPoolExecutor) -> None:
        """Count one who no longer waits, until the pool has come to all that it had been handed by then."""
        self._left[pool] += 1
        if self._left[pool] == 1 and not self._closed:
            behind = asyncio.get_running_loop().run_in_executor(pool, time.monotonic)
            behind.add_done_callback(lambda _: self._left.pop(pool))

    # --- in the threads

    def _write_batch(self, batch: Sequence[Write]) -> Sequence[Any]:
        with _failures():
            return self._write(batch)

    def _write(self, batch: Sequence[Write]) -> Sequence[Any]:
        try:
            return self._transaction(batch)
        except Exception as error:
            if isinstance(error, sqlite3.Error) and not isinstance(error, sqlite3.IntegrityError):
                raise  # the database itself: full, unreadable, damaged
            if len(batch) == 1:
                return [_ours(error)]
        # One of them is at fault: each for itself, so that its neighbours do not pay for it.
        return [result for write in batch for result in self._write([write])]

    def _transaction(self, batch: Sequence[Write]) -> Sequence[Any]:
        connection = self._writing or self._connect()
        results = _at_once(connection, batch) or _in_turn(connection, batch)
        if self.owns_lock:
            try:
                self._keep_log_short()
            except Exception as error:  # whatever it was: what was asked for is durable, in the log
                log.warning("the log could not be copied into the file", extra={"why": str(error)})
        return results

    def _keep_log_short(self) -> None:
        """Have a long log copied beside the writer, who then copies what came meanwhile: so the log can begin anew."""
        if self._copying is None:
            now = time.monotonic()
            enough = LONG_LOG if now - self._copied < COPY_SECONDS else SHORT_LOG
            if int.from_bytes(os.pread(self._index, 4, LOG_PAGES), sys.byteorder) >= enough:
                self._copying, self._copied = self._copier.submit(self._copy_beside), now
        elif self._copying.done():
            self._copy_log("PASSIVE")

    def _copy_beside(self) -> None:
        """Copy what the log has by now, and sync it. The writer does not wait for it."""
        try:
            with closing(_connect(self.path, "rw")) as connection:
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
            os.fsync(self._file)  # SQLite does so only where it copied all
        except OSError as error:
            raise sqlite3.OperationalError(str(error)) from error

    def _copy_log(self, mode: str) -> bool:
        """Copy the log into the file, all that is not being copied beside the writer. False if a reader is in the way.

        SQLite would do so by itself, but tell nobody when it fails. And where a reader is in the way it copies a part,
        and does not sync it until it has copied the rest: that part is lost if the sync then fails. So
        after a failure nothing that SQLite knows of the log is believed: opened again, it reads the log from
        the beginning, and will copy all of it.
        """
        copying, self._copying = self._copying, None
        if self._writing is None:
            return True
        try:
            if copying:
                copying.result()
            # No writer waits for a long reader, such as a backup.
            self._writing.execute(f"PRAGMA busy_timeout = {BUSY_TRUNCATE if mode == 'TRUNCATE' else 0}")
            busy, _, _ = self._writing.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
            self._writing.execute(f"PRAGMA busy_timeout = {BUSY}")
            return not busy
        except sqlite3.Error:
            self._disconnect()
            self._connect()
            raise

    def _read(self, job: Job[T]) -> T:
        try:
            connection = self._idle.get(timeout=self.timeout)
        except Empty:
            raise sqlite3.OperationalError("the database is not open") from None
        try:
            return job(connection)
        finally:
            self._idle.put(connection)

    def _connect(self) -> sqlite3.Connection:
        """Open all connections; returns the writing one."""
        try:
            self._writing = writing = _connect(self.path, "rwc")
            writing.execute("PRAGMA wal_autocheckpoint = 0")
            writing.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
            while self._reading < READERS:
                self._idle.put(_connect(self.path, "ro"))
                self._reading += 1
            self._file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            self._index = os.open(self.path.with_name("chat.db-shm"), os.O_RDONLY | os.O_CLOEXEC)
        except sqlite3.Error:
            self._disconnect()
            raise
        except OSError as error:
            self._disconnect()
            raise sqlite3.OperationalError(str(error)) from error
        return writing

    def _disconnect(self) -> None:
        """Close all connections and leave the log as it is: the last to go may only read, and so cannot copy it."""
        if self._writing:
            self._writing.close()
            self._writing = None
        self._close_readers()
        for descriptor in (self._file, self._index):  # not before: to close any of a file lets go of all locks on it
            if descriptor >= 0:
                os.close(descriptor)
        self._file = self._index = -1

    def _close_readers(self) -> None:
        while self._reading:
            self._idle.get().close()
            self._reading -= 1

    def _open(self, schemas: Sequence[Schema], alongside: bool) -> None:
        folder = self.path.parent
        try:
            make_folder(folder)
            self._lock = locked(folder / "chat.lock")
            _require_access(folder, folder=True)
            if (left := self.path.with_name("chat.db-wal")).exists():
                _write_again(left)
            _refuse_foreign(self.path)
            _protect(self.path)
        except BlockingIOError as error:
            if not alongside:
                raise StartError(
                    f"DataDir {folder}: another chat_server is running on it; stop that one, or choose another DataDir"
                ) from error
        except OSError as error:
            raise _inaccessible(folder, error) from error
        except sqlite3.Error as error:
            raise _unusable(self.path, error) from error
        if why := exposure(folder):
            log.warning("data folder exposed", extra={"why": why})
        try:
            writing = self._connect()
            if not self.owns_lock:
                _refuse_older(writing, schemas, self.path)
                return
            if self.path.stat().st_size <= CHECKED_AT_START:
                _check_whole(writing, self.path)
            _prepare(writing, schemas)
        except sqlite3.Error as error:
            raise _unusable(self.path, error) from error

    def _close(self) -> None:
        for threads in (self._writer, self._copier, self._readers, self._slow_reader):
            threads.shutdown()
        self._close_readers()
        self._disconnect()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def chunks(items: Sequence[Item], most: int) -> Iterator[Sequence[Item]]:
    """Parts of 1, 2, 4, ... items, at most so many: of a statement for each length only a few are ever prepared."""
    done = 0
    while done < len(items):
        part = items[done : done + min(most, 1 << (len(items) - done).bit_length() - 1)]
        yield part
        done += len(part)


def rows(connection: sqlite3.Connection, columns: str, query: str, values: Sequence[object]) -> list[list[Any]]:
    """Those columns of what a query finds, fetched as one value of JSON; in its order, if it ends with LIMIT.

    To step to a row gives up the interpreter's lock, and beside a busy event loop each wait for it takes as long as
    the query itself.
    """
    together = f"SELECT json_group_array(json_array({columns})) FROM ({query})"  # noqa: S608 - no names but ours
    found: list[list[Any]] = msgspec.json.decode(connection.execute(together, values).fetchone()[0])
    return found


def _at_once(connection: sqlite3.Connection, batch: Sequence[Write]) -> Sequence[Any] | None:
    work, _, at_once = batch[0]
    if at_once and all(write.work == work for write in batch):
        return at_once(connection, [write.item for write in batch])
    return None


def _in_turn(connection: sqlite3.Connection, batch: Sequence[Write]) -> Sequence[Any]:
    try:
        connection.execute("BEGIN IMMEDIATE")
        results: list[Any] = []
        for work, writes in groupby(batch, key=attrgetter("work")):
            results += work(connection, [write.item for write in writes])
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return results


@contextmanager
def _failures() -> Iterator[None]:
    """What SQLite cannot do is StoreUnavailable for everybody outside."""
    try:
        yield
    except sqlite3.Error as error:
        raise StoreUnavailable(f"the embedded database failed: {error}") from error


def _one_by_one(tx: sqlite3.Connection, jobs: Sequence[Job[Any]]) -> list[Any]:
    return [job(tx) for job in jobs]


def _touch(tx: sqlite3.Connection) -> None:
    """Change a number in the header of the file that nothing else uses: SQLite writes no page that stays the same."""
    [number] = tx.execute("PRAGMA user_version").fetchone()
    tx.execute(f"PRAGMA user_version = {number ^ 1}")


def _ours(error: Exception) -> Exception:
    return StoreUnavailable(f"the embedded database refused: {error}") if isinstance(error, sqlite3.Error) else error


def examine(folder: Path, schemas: Sequence[Schema]) -> str:
    """Look at the database of `folder` without changing anything, also beside a running server.

    Returns a sentence for people. Raises StartError for what would stop a start.
    """
    path = folder / "chat.db"
    try:
        if not path.exists():
            parent = next(p for p in (folder, *folder.parents) if p.exists())
            _require_access(parent, folder=True)
            return f"{path}: not there yet, the first start makes it{_also(folder)}"
        _require_access(folder, folder=True)
        for file in sorted(folder.glob("chat.*")):
            _require_access(file)
        with _undisturbed(path) as connection:
            steps = recorded_steps(connection, schemas, path)
            _check_whole(connection, path)
    except OSError as error:
        raise _inaccessible(folder, error) from error
    except sqlite3.Error as error:
        raise _unusable(path, error) from error
    behind = sum(len(schema.steps) - steps.get(schema.part, 0) for schema in schemas)
    state = f"{behind} schema steps to do at the next start" if behind else "schema up to date"
    return f"{path}: sound, {state}{_also(folder)}"


def exposure(folder: Path) -> str:
    """Say that others can access a folder; empty if they cannot, or if there is none."""
    mode = stat.S_IMODE(folder.stat().st_mode) if folder.exists() else 0
    return f"other users can access {folder} (mode {mode:04o}): chmod 700" if mode & 0o077 else ""


def _also(folder: Path) -> str:
    return f"; {why}" if (why := exposure(folder)) else ""


def _require_access(path: Path, *, folder: bool = False) -> None:
    """Raise OSError unless this process may read and write a file, or work in a folder."""
    if folder and not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    if not os.access(path, os.R_OK | os.W_OK | (os.X_OK if folder else 0)):
        code = errno.EROFS if os.statvfs(path).f_flag & os.ST_RDONLY else errno.EACCES
        raise OSError(code, os.strerror(code), str(path))


def _inaccessible(folder: Path, error: OSError) -> StartError:
    where = f": {error.filename}" if error.filename and str(error.filename) != str(folder) else ""
    return StartError(
        f"DataDir {folder}: cannot be written ({error.strerror}){where}; give this user access to read and write it, "
        "or choose another DataDir"
    )


def _unusable(path: Path, error: sqlite3.Error) -> StartError:
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF  # the primary code of an extended one
    help_ = "check the disk, and who may access DataDir" if code in NO_DAMAGE else "restore it from a backup"
    return StartError(f"{path}: {error}; {help_}, or choose another DataDir")


@contextmanager
def _undisturbed(path: Path) -> Iterator[sqlite3.Connection]:
    """A reading connection that makes no file and changes none."""
    log = path.with_name("chat.db-wal")
    with TemporaryDirectory() as folder:
        if not log.exists():
            mode = "immutable=1"  # nobody has it open: it can be read as it stands
        elif _is_running(path.parent):
            mode = "mode=ro"
        else:  # it was left by a crash, and reading it would repair it: look at a copy
            mode = "mode=rw"
            for file in (path, log):
                shutil.copy(file, folder)
            path = Path(folder) / path.name
        with closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True, isolation_level=None)
        ) as connection:
            yield connection


def _is_running(folder: Path) -> bool:
    """Whether a server holds the folder's lock."""
    try:
        lock = os.open(folder / "chat.lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(lock)


def _check_whole(connection: sqlite3.Connection, path: Path) -> None:
    """Read every page. Raises StartError if one is damaged."""
    found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise StartError(f"{path}: is damaged ({found.splitlines()[-1]}); restore it from a backup")


def locked(path: Path) -> int:
    """Take the lock of a folder; to close the descriptor gives it back. Raises BlockingIOError if another has it."""
    lock = open_private(path)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(lock)
        raise
    return lock


def make_folder(folder: Path) -> None:
    """Create a folder for this user alone, whatever the umask is. One that exists keeps its mode."""
    if not folder.is_dir():
        folder.mkdir(mode=0o700, parents=True)
        folder.chmod(0o700)


def open_private(path: Path) -> int:
    """Open a file, and create it if need be. Only its owner can access it then, whatever the umask is."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if stat.S_IMODE(os.fstat(descriptor).st_mode) != 0o600:
        with suppress(PermissionError):  # a file of another user, who gave access to it
            os.fchmod(descriptor, 0o600)
    return descriptor


def _protect(path: Path) -> None:
    """Keep other users from the database and what belongs to it. SQLite gives -wal and -shm the mode of the database.

    No connection may be open: to close any descriptor of a file lets go of all locks on it.
    """
    log, index = (path.with_name(f"{path.name}{suffix}") for suffix in ("-wal", "-shm"))
    for file in (path, *filter(Path.exists, (log, index))):
        os.close(open_private(file))


def _write_again(log: Path) -> None:
    """Write the log over itself and sync it: then whatever is read from it is on the disk.

    After a sync that failed, what an earlier process wrote may be in the system's memory alone. Linux takes it
    for written: every reader sees it, and no later sync writes it (https://lwn.net/Articles/752063/).
    """
    with log.open("rb") as source, log.open("r+b") as target:
        shutil.copyfileobj(source, target)
        target.flush()
        os.fsync(target.fileno())


def _refuse_foreign(path: Path) -> None:
    """Raise StartError for another program's database, before anything in it is touched."""
    if path.exists() and path.stat().st_size and not path.with_name("chat.db-wal").exists():
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?immutable=1", uri=True)) as connection:
            recorded_steps(connection, (), path)


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    # The owner hands a connection from thread to thread, but never to two at once.
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=256,
    )
    connection.execute(f"PRAGMA busy_timeout = {BUSY}")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA secure_delete = ON")  # of a deleted message the text must not stay in the file
    return connection


def _prepare(connection: sqlite3.Connection, schemas: Sequence[Schema]) -> None:
    """Bring the schema up to date in one transaction: all of it, or nothing."""
    path = Path(connection.execute("PRAGMA database_list").fetchone()[2])
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


def _refuse_older(connection: sqlite3.Connection, schemas: Sequence[Schema], path: Path) -> None:
    """Raise StartError unless the file, which a server uses, has the schema of this version."""
    steps = recorded_steps(connection, schemas, path)
    if any(steps.get(schema.part, 0) != len(schema.steps) for schema in schemas):
        raise StartError(f"{path}: a chat_server of an earlier version runs on it; stop that one first")


def recorded_steps(connection: sqlite3.Connection, schemas: Sequence[Schema], path: Path) -> dict[str, int]:
    """How many steps of each part the file has seen. Raises StartError for a file that is not ours to use."""
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
                f"this one knows {len(schema.steps)}); run that one, or restore a backup"
            )
    return steps
