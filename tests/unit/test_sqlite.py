"""The embedded database (utils/sqlite): transactions, failures, opening, closing, inspection."""

import asyncio
import gc
import shutil
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from weakref import WeakSet

import pytest

from chat_server.utils.errors import StartError, StoreMisconfigured, StoreUnavailable
from chat_server.utils.sqlite import MAX_ABANDONED, READERS, Database, Schema, examine
from tests.harness import TIMEOUT, wait_until

THINGS = Schema("things", ("CREATE TABLE things (number INTEGER PRIMARY KEY, text TEXT) STRICT",))
MORE = Schema(
    "things", (*THINGS.steps, "ALTER TABLE things ADD COLUMN size INTEGER", "CREATE INDEX by_size ON things (size)")
)


@asynccontextmanager
async def opened(folder: Path, *schemas: Schema, timeout: float = 20) -> AsyncIterator[Database]:
    """An open database, closed at the end."""
    database = Database(folder, timeout=timeout)
    try:
        await database.open(schemas or (THINGS,))
        yield database
    finally:
        await database.close()


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    async with opened(tmp_path) as database:
        yield database


def adding(number: int) -> Callable[[sqlite3.Connection], int]:
    """Return a job that inserts a row."""

    def job(tx: sqlite3.Connection) -> int:
        tx.execute("INSERT INTO things (number) VALUES (?)", (number,))
        return number

    return job


def numbers(connection: sqlite3.Connection) -> list[int]:
    """A job that reads all rows."""
    return [number for (number,) in connection.execute("SELECT number FROM things ORDER BY number")]


async def busy(database: Database) -> tuple[asyncio.Task[bool], threading.Event]:
    """Keep the writer busy with a job until the event is set."""
    begun, go = threading.Event(), threading.Event()

    def job(tx: sqlite3.Connection) -> bool:
        tx.execute("INSERT INTO things (number) VALUES (-1)")
        begun.set()
        return go.wait(TIMEOUT)

    task = asyncio.create_task(database.write(job))
    assert await asyncio.to_thread(begun.wait, TIMEOUT)
    return task, go


async def all_submitted(*tasks: asyncio.Task[int]) -> None:
    """Let the tasks submit their writes."""
    for _ in range(3):
        await asyncio.sleep(0)
    assert not any(task.done() for task in tasks)


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder, except the shared memory."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".db-shm"}


# --- transactions


async def test_concurrent_jobs_share_one_transaction(database: Database) -> None:
    statements: list[str] = []
    await database.write(lambda tx: tx.set_trace_callback(statements.append))
    task, go = await busy(database)
    statements.clear()
    tasks = [asyncio.create_task(database.write(adding(n))) for n in range(100)]
    await all_submitted(*tasks)
    go.set()
    assert list(await asyncio.gather(*tasks)) == list(range(100))
    await task
    assert [one for one in statements if not one.startswith("INSERT")] == ["COMMIT", "BEGIN IMMEDIATE", "COMMIT"]


async def test_a_single_job_is_written_immediately(database: Database) -> None:
    statements: list[str] = []
    await database.write(lambda tx: tx.set_trace_callback(statements.append))
    statements.clear()
    for n in range(3):
        assert await database.write(adding(n)) == n
    assert statements.count("BEGIN IMMEDIATE") == statements.count("COMMIT") == 3


async def test_a_failing_job_fails_alone_and_changes_nothing(database: Database) -> None:
    def failing(tx: sqlite3.Connection) -> int:
        adding(1000)(tx)
        raise KeyError("mine")

    task, go = await busy(database)
    jobs = [adding(0), adding(1), failing, adding(1), adding(2)]  # the second 1 violates the primary key
    tasks = [asyncio.create_task(database.write(job)) for job in jobs]
    await all_submitted(*tasks)
    go.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert await task
    assert [results[n] for n in (0, 1, 4)] == [0, 1, 2]
    assert isinstance(results[2], KeyError)
    assert isinstance(results[3], Exception)
    assert await database.read(numbers) == [-1, 0, 1, 2]


async def test_cancelling_a_caller_does_not_affect_others(database: Database) -> None:
    task, go = await busy(database)
    tasks = [asyncio.create_task(database.write(adding(n))) for n in range(5)]
    await all_submitted(*tasks)
    for n in (0, 2, 4):
        tasks[n].cancel()
    go.set()
    assert [await tasks[1], await tasks[3]] == [1, 3]
    assert await task
    assert await database.write(adding(5)) == 5


async def test_cancelling_a_caller_does_not_stop_a_running_batch(database: Database) -> None:
    task, go = await busy(database)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    other = asyncio.create_task(database.write(adding(1)))
    await all_submitted(other)
    go.set()
    assert await other == 1


async def test_a_read_sees_commits_and_waits_for_no_writer(database: Database) -> None:
    await database.write(adding(1))
    task, go = await busy(database)
    assert await database.read(numbers) == [1]
    go.set()
    await task
    assert await database.read(numbers) == [-1, 1]


async def test_slow_reads_run_one_at_a_time_and_delay_no_others(database: Database) -> None:
    go, running = threading.Event(), threading.Semaphore(0)

    def slow(_: sqlite3.Connection) -> bool:
        running.release()
        return go.wait(TIMEOUT)

    slow_ones = [asyncio.create_task(database.read(slow, slow=True)) for _ in range(5)]
    assert await asyncio.to_thread(running.acquire, timeout=TIMEOUT)
    for number in range(5):
        await database.write(adding(number))
    assert await asyncio.gather(*(database.read(numbers) for _ in range(5))) == [[0, 1, 2, 3, 4]] * 5
    assert not running.acquire(blocking=False)  # one at a time
    go.set()
    assert all(await asyncio.gather(*slow_ones))


async def test_a_long_log_restarts_while_writes_continue(database: Database) -> None:
    """A thread copies most of the log, the writer the rest; then the log is overwritten from its beginning."""
    log, number = database.path.with_name("chat.db-wal"), 0

    async def restarted() -> bool:
        nonlocal number
        number += 1
        begins = log_salt(log)
        await database.write(
            lambda tx: tx.execute("INSERT INTO things VALUES (?, ?)", (number, "x" * 999_000)).rowcount
        )
        return number > 1 and log_salt(log) != begins

    await wait_until(restarted)
    assert await database.read(numbers) == list(range(1, number + 1))


async def test_results_do_not_wait_for_a_checkpoint(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    monkeypatch.setattr(database._checkpointer, "keep_log_short", lambda: ended.wait(TIMEOUT))
    try:
        assert await asyncio.wait_for(database.write(adding(1)), TIMEOUT / 2) == 1
        assert not ended.is_set()
    finally:
        ended.set()


def log_salt(log: Path) -> bytes:
    """Return the log's salt, which changes when it restarts (https://www.sqlite.org/fileformat2.html#walformat)."""
    with log.open("rb") as file:
        return file.read(24)[16:]


async def test_a_read_cannot_write(database: Database) -> None:
    with pytest.raises(StoreUnavailable):
        await database.read(adding(1))
    assert await database.read(numbers) == []


# --- failures


async def recovers(database: Database) -> None:
    """Wait until the database answers again, and use it."""

    async def answers() -> bool:
        try:
            await database.write(lambda tx: tx.execute("INSERT OR REPLACE INTO things (number) VALUES (7)").rowcount)
            return 7 in await database.read(numbers)
        except StoreUnavailable:
            return False

    await wait_until(answers)


async def test_a_timeout_is_store_unavailable_and_recovers(tmp_path: Path) -> None:
    async with opened(tmp_path, timeout=2) as database:
        task, go = await busy(database)
        with pytest.raises(StoreUnavailable, match="no answer within 2 s"):
            await task
        with pytest.raises(StoreUnavailable):  # it is still busy
            await database.write(adding(1))
        with pytest.raises(StoreUnavailable):
            await database.read(lambda _: go.wait(TIMEOUT))
        go.set()
        await recovers(database)


class Nothing:
    """A job that reads nothing. A weak reference shows whether the database still holds it."""

    def __call__(self, _: sqlite3.Connection) -> None:
        pass


# The timeouts of the database and of the caller: the database gives up, or the caller leaves.
@pytest.mark.parametrize(("timeout", "caller_timeout"), [(1, 60), (60, 1)], ids=["given-up", "cancelled"])
async def test_hanging_readers_bound_abandoned_calls_and_recover(
    tmp_path: Path, timeout: float, caller_timeout: float
) -> None:
    begun, go = threading.Semaphore(0), threading.Event()
    held: WeakSet[Nothing] = WeakSet()

    def hanging(_: sqlite3.Connection) -> bool:
        begun.release()
        return go.wait(TIMEOUT)

    async def attempt(database: Database) -> None:
        held.add(job := Nothing())
        with suppress(StoreUnavailable, TimeoutError):
            async with asyncio.timeout(caller_timeout):
                await database.read(job)

    async def answers(database: Database) -> bool:
        with suppress(StoreUnavailable):
            await database.read(Nothing())
            return True
        return False

    def released() -> bool:
        gc.collect()
        return not held

    async with opened(tmp_path, timeout=timeout) as database:
        hang = [asyncio.create_task(database.read(hanging)) for _ in range(READERS - 1)]  # all but the slow one
        for _ in hang:
            assert await asyncio.to_thread(begun.acquire, timeout=TIMEOUT)
        for _ in range(5):
            await asyncio.gather(*(attempt(database) for _ in range(MAX_ABANDONED)))
        gc.collect()
        assert len(held) <= MAX_ABANDONED
        with pytest.raises(StoreUnavailable, match="abandoned calls"):
            await database.read(numbers)
        go.set()
        await wait_until(lambda: answers(database))
        await wait_until(released)
        await asyncio.gather(*hang, return_exceptions=True)


async def test_thousands_of_waiting_reads_are_all_answered(database: Database) -> None:
    go = threading.Event()
    hang = [asyncio.create_task(database.read(lambda _: go.wait(TIMEOUT))) for _ in range(READERS)]
    tasks = [asyncio.create_task(database.read(lambda _: 1)) for _ in range(3 * MAX_ABANDONED)]
    await all_submitted(*tasks)
    go.set()
    assert sum(await asyncio.gather(*tasks)) == 3 * MAX_ABANDONED
    assert all(await asyncio.gather(*hang))


async def test_a_locked_database_is_store_unavailable_and_recovers(tmp_path: Path) -> None:
    async with opened(tmp_path, timeout=0.2) as database:
        with closing(sqlite3.connect(tmp_path / "chat.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreUnavailable):
                await database.write(adding(1))
            other.execute("ROLLBACK")
        await recovers(database)


async def test_an_sqlite_error_is_store_unavailable_for_its_batch(database: Database) -> None:
    task, go = await busy(database)
    tasks = [asyncio.create_task(database.write(adding(n))) for n in range(3)]
    away = asyncio.create_task(database.write(lambda tx: tx.execute("SELECT * FROM nowhere").fetchone()))
    await all_submitted(*tasks)
    go.set()
    results = await asyncio.gather(*tasks, away, return_exceptions=True)
    await task
    assert [type(result) for result in results] == [StoreUnavailable] * 4
    assert await database.read(numbers) == [-1]


@pytest.mark.parametrize("together", [1, 2])
async def test_a_damaged_file_needs_a_backup(tmp_path: Path, together: int) -> None:
    async with opened(tmp_path) as database:
        await database.write(
            lambda tx: tx.executemany("INSERT INTO things VALUES (?, ?)", ((n, "x" * 900) for n in range(500)))
        )
    async with opened(tmp_path) as database:
        await database.write(lambda tx: tx.execute("PRAGMA shrink_memory").fetchall())  # empties its cache
        with (tmp_path / "chat.db").open("r+b") as file:
            file.seek(4096 * 20)
            file.write(b"\xff" * 4096 * 20)
        count = "UPDATE things SET text = 'y'"
        tasks = [asyncio.create_task(database.write(lambda tx: tx.execute(count).rowcount)) for _ in range(together)]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result) for result in results] == [StoreMisconfigured] * together
        with pytest.raises(StoreMisconfigured, match="restore a backup"):
            await database.read(
                lambda connection: connection.execute("SELECT sum(length(text)) FROM things").fetchone()
            )


async def test_emptying_the_log_does_not_make_writers_wait_for_readers(tmp_path: Path) -> None:
    async with opened(tmp_path, timeout=4.5) as database:
        await database.write(adding(1))
        with closing(sqlite3.connect(tmp_path / "chat.db", isolation_level=None)) as backup:
            backup.execute("BEGIN")
            assert numbers(backup) == [1]
            await database.write(adding(2))
            emptying = asyncio.create_task(database.checkpoint())
            await database.write(adding(3))
            assert numbers(backup) == [1]
        await emptying
        assert (tmp_path / "chat.db-wal").stat().st_size == 0
        with closing(
            sqlite3.connect(tmp_path / "chat.db", isolation_level=None)
        ) as other:  # its usual timeout applies again
            other.execute("BEGIN IMMEDIATE")
            task = asyncio.create_task(database.write(adding(4)))
            await asyncio.sleep(0.1)
            other.execute("ROLLBACK")
            assert await task == 4


# --- opening


async def test_a_second_owner_is_refused_and_the_first_continues(tmp_path: Path) -> None:
    async with opened(tmp_path) as database:
        with pytest.raises(StartError, match="another chat_server is running"):
            async with opened(tmp_path):
                pass
        assert await database.write(adding(1)) == 1
    async with opened(tmp_path) as database:
        assert await database.read(numbers) == [1]


async def test_schema_steps_run_once_and_later_steps_follow(tmp_path: Path) -> None:
    def steps(connection: sqlite3.Connection) -> dict[str, int]:
        return dict(connection.execute("SELECT part, step FROM schema_steps"))

    other = Schema("others", ("CREATE TABLE others (name TEXT) STRICT",))
    async with opened(tmp_path) as database:
        await database.write(adding(1))
        assert await database.read(steps) == {"things": 1}
    for _ in range(2):
        async with opened(tmp_path, MORE, other) as database:
            assert await database.read(steps) == {"things": 3, "others": 1}
            assert await database.read(numbers) == [1]


async def test_a_failing_schema_step_rolls_back_earlier_steps(tmp_path: Path) -> None:
    async with opened(tmp_path) as database:
        await database.write(adding(1))
    broken = Schema("things", (*MORE.steps, "CREATE TABLE things (again TEXT)"))
    with pytest.raises(StartError, match=r"chat\.db: table things already exists"):
        async with opened(tmp_path, broken):
            pass
    async with opened(tmp_path, MORE) as database:
        assert await database.read(numbers) == [1]


def made(path: Path, *statements: str) -> None:
    """Create a database without the class under test."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


async def refused(folder: Path, why: str) -> None:
    """Neither open nor examine accepts the folder's database or changes it."""
    before = contents(folder)
    with pytest.raises(StartError, match=why):
        examine(folder, (THINGS,))
    assert contents(folder) == before
    with pytest.raises(StartError, match=why):
        async with opened(folder):
            pass
    after = contents(folder)
    assert after.pop("chat.lock") == b""
    before.pop("chat.lock", None)
    assert after == before


async def test_a_newer_schema_is_refused_unchanged(tmp_path: Path) -> None:
    async with opened(tmp_path, MORE) as database:
        await database.write(adding(1))
    await refused(tmp_path, "was made by a newer chat_server")


async def test_another_programs_database_is_refused_unchanged(tmp_path: Path) -> None:
    made(tmp_path / "chat.db", "CREATE TABLE theirs (x)", "INSERT INTO theirs VALUES (1)")
    await refused(tmp_path, "is a database of another program")


@pytest.mark.parametrize("content", [b"no database at all" * 1000, b"SQLite format 3\0" + b"\xff" * 8000])
async def test_a_file_that_is_no_database_is_refused_unchanged(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "chat.db").write_bytes(content)
    await refused(tmp_path, r"chat\.db: .*restore it from a backup")


async def test_a_folder_that_cannot_be_created_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StartError, match="cannot be written"):
        async with opened(tmp_path / "file" / "data"):
            pass


# --- closing


async def test_close_finishes_submitted_writes(tmp_path: Path) -> None:
    async with opened(tmp_path) as database:
        task, go = await busy(database)
        tasks = [asyncio.create_task(database.write(adding(n))) for n in range(50)]
        await all_submitted(*tasks)
        closed = asyncio.create_task(database.close())
        await all_submitted(*tasks)
        go.set()
        await closed
        assert await asyncio.gather(task, *tasks) == [True, *range(50)]
    async with opened(tmp_path) as database:
        assert await database.read(numbers) == [-1, *range(50)]


async def test_close_finishes_writes_after_a_caller_was_cancelled(tmp_path: Path) -> None:
    async with opened(tmp_path) as database:
        task, go = await busy(database)
        tasks = [asyncio.create_task(database.write(adding(n))) for n in range(3)]
        await all_submitted(*tasks)
        tasks[-1].cancel()
        closed = asyncio.create_task(database.close())
        await all_submitted(tasks[0], tasks[1])
        go.set()
        await closed
        assert await asyncio.gather(task, *tasks[:-1]) == [True, 0, 1]
    async with opened(tmp_path) as database:
        assert set(await database.read(numbers)) >= {-1, 0, 1}


async def test_close_is_idempotent_and_frees_the_folder(tmp_path: Path) -> None:
    async with opened(tmp_path) as database:
        await database.write(adding(1))
        await database.read(numbers)
        await database.close()
        await database.close()
        await asyncio.gather(database.close(), database.close())
        async with opened(tmp_path) as other:
            assert await other.read(numbers) == [1]
    never = Database(tmp_path, timeout=5)
    await never.close()


async def test_after_close_everything_is_store_unavailable(tmp_path: Path) -> None:
    async with opened(tmp_path) as database:
        await database.close()
        with pytest.raises(StoreUnavailable):
            await database.write(adding(1))
        with pytest.raises(StoreUnavailable):
            await database.read(numbers)


async def test_close_leaves_no_thread_and_no_log(tmp_path: Path) -> None:
    async with opened(tmp_path) as database:
        await database.write(adding(1))
        await asyncio.gather(*(database.read(numbers) for _ in range(5)))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("sqlite-")]
    assert {path.name for path in tmp_path.iterdir()} == {"chat.db", "chat.lock"}


# --- inspection


def test_examine_creates_nothing(tmp_path: Path) -> None:
    assert "does not exist yet" in examine(tmp_path / "data" / "deep", (THINGS,))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StartError, match="cannot be written"):
        examine(tmp_path / "file" / "data", (THINGS,))


async def test_examine_changes_nothing_with_or_without_an_owner(tmp_path: Path) -> None:
    async with opened(tmp_path) as database:
        await database.write(adding(1))
        before = contents(tmp_path)
        assert "sound, schema up to date" in examine(tmp_path, (THINGS,))
        assert "sound, 2 schema steps to do" in examine(tmp_path, (MORE,))
        assert contents(tmp_path) == before
        assert await database.write(adding(2)) == 2
    before = contents(tmp_path)
    assert "sound, schema up to date" in examine(tmp_path, (THINGS,))
    assert contents(tmp_path) == before


async def test_examine_reads_the_files_of_a_killed_server_unchanged(tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    async with opened(tmp_path / "data") as database:
        await database.write(adding(1))
        shutil.copytree(tmp_path / "data", killed)
    for shared_memory in (True, False):
        if not shared_memory:
            (killed / "chat.db-shm").unlink()
        before = contents(killed)
        assert "sound, schema up to date" in examine(killed, (THINGS,))
        assert contents(killed) == before
    async with opened(killed) as database:
        assert await database.read(numbers) == [1]


async def test_examine_finds_damage(tmp_path: Path) -> None:
    async with opened(tmp_path) as database:
        await database.write(
            lambda tx: tx.executemany("INSERT INTO things VALUES (?, ?)", ((n, "x" * 900) for n in range(500)))
        )
    with (tmp_path / "chat.db").open("r+b") as file:
        file.seek(4096 * 20)
        file.write(b"\xff" * 4096 * 20)
    before = contents(tmp_path)
    with pytest.raises(StartError, match="restore it from a backup"):
        examine(tmp_path, (THINGS,))
    assert contents(tmp_path) == before
