"""The costs of the embedded store, counted instead of timed: transactions, statements, steps of SQLite."""

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import pytest

from chat_server.backends import SCHEMAS
from chat_server.cache.sqlite import MAX_CALLERS, SqliteSessions
from chat_server.model.messages import Message, Pair
from chat_server.model.sqlite import SqliteMessages
from chat_server.utils.clock import Clock, Timeline
from chat_server.utils.metrics import StoreMetrics
from chat_server.utils.sqlite import READERS, Database

T = TypeVar("T")

PAIRS = 40
RUN = 5
END = 2**62


class Store:
    """An embedded message store with conversations of a0 and b0, a1 and b1, ..."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.messages = SqliteMessages(database)
        self.timeline = Timeline(Clock())

    def run(self, pair: int, count: int = RUN) -> list[Message]:
        """Return new messages of a pair."""
        times = [self.timeline.next() for _ in range(count)]
        return [Message(f"a{pair}", f"b{pair}", f"id-{time}", "hello", time) for time in times]

    async def add_together(self, count: int = RUN) -> list[Message]:
        """Add one batch of each pair concurrently. Returns the messages."""
        runs = [self.run(pair, count) for pair in range(PAIRS)]
        await asyncio.gather(*map(self.messages.add, runs))
        return [message for run in runs for message in run]

    async def written(self, work: Callable[[], Awaitable[Any]]) -> list[str]:
        """Return the statements by which `work` writes. A statement and its trigger count once."""
        statements: list[str] = []
        await self.database.write(lambda tx: tx.set_trace_callback(statements.append))
        statements.clear()
        await work()
        found = [statement for statement, _ in groupby(statements)]
        await self.database.write(lambda tx: tx.set_trace_callback(None))
        return found

    async def steps(self, work: Callable[[], Awaitable[Any]]) -> int:
        """Return how many steps of SQLite's virtual machine `work` takes to read."""
        steps = 0

        def step() -> int:
            nonlocal steps
            steps += 1
            return 0

        await self._each_reader(lambda connection: connection.set_progress_handler(step, 1))
        await work()
        await self._each_reader(lambda connection: connection.set_progress_handler(None, 1))
        return steps

    async def plans(self, work: Callable[[], Awaitable[Any]]) -> list[str]:
        """Return the parts of the query plans of all statements by which `work` reads."""
        statements: list[str] = []
        await self._each_reader(lambda connection: connection.set_trace_callback(statements.append))
        await work()
        await self._each_reader(lambda connection: connection.set_trace_callback(None))
        assert statements
        return [row[3] for one in set(statements) for row in await self.database.fetch(f"EXPLAIN QUERY PLAN {one}", ())]

    async def _each_reader(self, job: Callable[[Any], None]) -> None:
        for _ in range(READERS):  # they take turns
            await self.database.read(job)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    database = Database(tmp_path, timeout=20)
    await database.open(SCHEMAS)
    store = Store(database)
    await store.add_together(1)
    yield store
    await database.close()


async def test_a_batch_of_messages_is_a_single_statement(store: Store) -> None:
    statements = await store.written(store.add_together)
    assert len(statements) == 1, [statement[:60] for statement in statements]


async def test_a_message_alone_is_one_statement(store: Store) -> None:
    statements = await store.written(lambda: store.messages.add(store.run(0, 1)))
    assert len(statements) == 1, statements


async def test_a_batch_with_other_writes_takes_few_statements(store: Store) -> None:
    async def with_a_mark() -> None:
        runs = [store.run(pair) for pair in range(PAIRS)]
        await asyncio.gather(store.messages.mark_delivered([1]), *map(store.messages.add, runs))

    statements = await store.written(with_a_mark)
    assert [statements[0], statements[-1]] == ["BEGIN IMMEDIATE", "COMMIT"]
    assert len(statements) <= 4 + PAIRS * RUN // 20, [statement[:60] for statement in statements]


async def test_messages_of_the_first_conversation_write_no_row_of_it(store: Store) -> None:
    rows = await store.database.fetch("SELECT * FROM conversations", ())
    await store.messages.add(store.run(0))
    await store.add_together()
    assert await store.database.fetch("SELECT * FROM conversations", ()) == rows


async def test_any_number_of_delivered_marks_takes_four_statements(store: Store) -> None:
    times = [message.time for message in await store.add_together()]
    statements = await store.written(lambda: store.messages.mark_delivered(times))
    assert len(statements) == 4, [statement[:60] for statement in statements]
    assert await store.messages.mark_delivered(times) == set()


class Reads(StoreMetrics):
    """Counts the reads of a database."""

    count = 0

    def time_call(self, call: Awaitable[T]) -> Awaitable[T]:
        self.count += 1
        return call


async def test_concurrent_session_lookups_share_queries(tmp_path: Path) -> None:
    reads = Reads()
    database = Database(tmp_path, timeout=20, watch=reads)
    await database.open(SCHEMAS)
    sessions = SqliteSessions(database, 3600, Clock())
    digests = [bytes([number]) * 32 for number in range(PAIRS)]
    for digest in digests:
        await sessions.add(digest, digest.hex())
    reads.count = 0
    found = await asyncio.gather(*(sessions.use([digest]) for digest in digests))
    assert found == [{digest: digest.hex()} for digest in digests]
    assert reads.count == math.ceil(PAIRS / MAX_CALLERS)
    await database.close()


def reads(store: Store, middle: Message) -> dict[str, Callable[[], Awaitable[Any]]]:
    """Return every read whose cost must not grow with the number of stored messages."""
    messages, pair = store.messages, Pair(middle.sender, middle.receiver)
    one, other = pair
    return {
        "the newest": lambda: messages.before(pair, END, 20),
        "those before": lambda: messages.before(pair, middle.time, 20),
        "those after": lambda: messages.after(pair, middle.time, 20),
        "unread": lambda: messages.unread(one, other, middle.time, 20),
        "none unread": lambda: messages.unread(other, one, 0, 20),
        "the time of an id": lambda: messages.time_of(pair, one, middle.id),
        "a retry": lambda: messages.stored([middle]),
        "for the contact limit": lambda: messages.recent(pair, 6),
        "whether one has written": lambda: messages.have_written([one, other], other),
        "conversations": lambda: messages.conversations(one, END, 20),
        "newest peers": lambda: messages.newest_peers(one, 200),
        "the newest time": messages.newest,
    }


async def test_reads_cost_no_more_among_20000_messages_than_among_1000(store: Store) -> None:
    run = store.run(0, 1000)
    await store.messages.add(run)
    few = {name: await store.steps(read) for name, read in reads(store, run[500]).items()}
    assert all(few.values())
    for _ in range(10):
        await store.messages.add(run := store.run(0, 1000))
    for _ in range(10):
        await store.messages.add(store.run(1, 1000))  # of another conversation, and newer
    many = {name: await store.steps(read) for name, read in reads(store, run[500]).items()}
    assert {name: steps for name, steps in many.items() if steps > 1.1 * few[name]} == {}, few


async def test_emptied_conversations_cost_op_7_nothing(store: Store) -> None:
    async def conversations() -> None:
        await store.messages.conversations("a0", END, 20)

    few = await store.steps(conversations)
    emptied = [Message("a0", f"peer{number}", "m", "gone", store.timeline.next()) for number in range(1000)]
    await store.messages.add(emptied)
    for message in emptied:
        await store.messages.delete(Pair("a0", message.receiver), [[("a0", "m")]])
    assert await store.steps(conversations) <= 1.1 * few


async def test_reads_use_an_index_and_do_not_sort(store: Store) -> None:
    run = store.run(0, 1000)
    await store.messages.add(run)
    for name, read in reads(store, run[500]).items():
        for part in await store.plans(read):
            by_index = "USING" in part or "VIRTUAL TABLE" in part or not part.startswith("SCAN")  # json_each
            assert "TEMP B-TREE" not in part and (by_index or "subquery" in part), (name, part)  # noqa: PT018
