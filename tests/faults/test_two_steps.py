"""Limit and message in two stores that fail between the two steps: a stranger never gets one more."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest

from chat_server.backends import SCHEMAS
from chat_server.cache.limits import Ruling, Stranger
from chat_server.cache.sqlite import SqliteStrangers
from chat_server.model.messages import Added, Message, MessageStore
from chat_server.model.sqlite import SqliteMessages
from chat_server.service.sending import TwoSteps
from chat_server.utils.clock import MICROSECONDS, Timeline
from chat_server.utils.errors import StoreUnavailable
from chat_server.utils.sqlite import Database
from tests.harness import HandClock

LIMIT, WINDOW = 3, 100  # seconds


class Failing:
    """Messages whose storing fails while `fails`: `before` it was done, or after, when only the answer is lost.

    What failed before may be done all the same, much later: `land`.
    """

    def __init__(self, messages: MessageStore) -> None:
        self._messages = messages
        self.fails: StoreUnavailable | None = None
        self.before = True
        self._under_way: list[Message] = []
        self.stored, self.recent, self.has_written = messages.stored, messages.recent, messages.has_written

    async def add(self, run: Sequence[Message]) -> list[Added]:
        if self.fails and self.before:
            self._under_way += run
            raise self.fails
        added = await self._messages.add(run)
        if self.fails:
            raise self.fails
        return added

    async def land(self) -> None:
        """The database does what it was asked to do before, although nobody waits for it any more."""
        await self._messages.add(self._under_way)


class Lossy:
    """Counters that fail while `fails`; `lose` empties them."""

    def __init__(self, database: Database) -> None:
        self._strangers = SqliteStrangers(database, LIMIT, WINDOW)
        self._database = database
        self.fails = False

    async def take(self, sender: str, receiver: str, id: str, now: int, rebuilt: Stranger | None = None) -> Ruling:
        self._check()
        return await self._strangers.take(sender, receiver, id, now, rebuilt)

    async def befriend(self, one: str, other: str, now: int) -> None:
        self._check()
        await self._strangers.befriend(one, other, now)

    async def give_back(self, sender: str, receiver: str, id: str, now: int) -> None:
        self._check()
        await self._strangers.give_back(sender, receiver, id, now)

    async def lose(self) -> None:
        await self._database.write(lambda tx: tx.execute("DELETE FROM strangers"))

    def _check(self) -> None:
        if self.fails:
            raise StoreUnavailable("the counters are away")


class Bench:
    """Two steps on two databases."""

    def __init__(self, messages: SqliteMessages, strangers: Lossy) -> None:
        self.clock = HandClock()
        self.messages = Failing(messages)
        self.strangers = strangers
        self._kept = messages
        self._timeline = Timeline(self.clock)
        self._sending = TwoSteps(self.messages, strangers, LIMIT, WINDOW * MICROSECONDS)  # type: ignore[arg-type]

    async def send(self, id: str, sender: str = "a", receiver: str = "b", *, free: bool = False) -> Added | None:
        """What became of the message; None if the limit refused it."""
        message = Message(sender, receiver, id, "text", self._timeline.next())
        [outcome] = await self._sending.add([message], [free])
        return outcome.added

    async def fail(self, id: str) -> None:
        with pytest.raises(StoreUnavailable):
            await self.send(id)

    async def stored(self) -> list[str]:
        return [message.id for message in await self._kept.after("a", "b", 0, 100)]

    async def room(self) -> int:
        """How many more are let through."""
        count = 0
        while await self.send(f"room-{self._timeline.next()}"):
            count += 1
        return count


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with AsyncExitStack() as stack:
        opened = []
        for name in ("messages", "cache"):
            database = Database(tmp_path / name, timeout=20)
            stack.push_async_callback(database.close)
            await database.open(SCHEMAS)
            opened.append(database)
        yield Bench(SqliteMessages(opened[0]), Lossy(opened[1]))


async def test_the_place_of_what_was_certainly_not_stored_is_given_back(bench: Bench) -> None:
    bench.messages.fails = StoreUnavailable("away", nothing_done=True)
    for n in range(2 * LIMIT):
        await bench.fail(f"m{n}")
    bench.messages.fails = None
    assert await bench.room() == LIMIT


@pytest.mark.parametrize("before", [True, False])
async def test_where_that_is_unknown_a_place_is_lost_but_never_won(bench: Bench, before: bool) -> None:
    bench.messages.fails, bench.messages.before = StoreUnavailable("no answer"), before
    await bench.fail("m0")
    bench.messages.fails = None
    assert await bench.room() == LIMIT - 1
    assert len(await bench.stored()) == (LIMIT - 1 if before else LIMIT)


async def test_what_was_given_up_and_stored_all_the_same_is_never_refused(bench: Bench) -> None:
    """A refusal is final: a message of which one try may yet be stored keeps its place, and the next try gets it."""
    bench.messages.fails = StoreUnavailable("no answer")
    await bench.fail("m0")
    bench.messages.fails = None
    assert await bench.room() == LIMIT - 1
    assert (retried := await bench.send("m0"))
    await bench.messages.land()
    assert await bench.send("m0") == Added(retried.time, new=False)
    assert len(await bench.stored()) == LIMIT
    assert await bench.room() == 0


async def test_a_try_that_certainly_failed_takes_no_place_from_one_that_may_yet_be_stored(bench: Bench) -> None:
    bench.messages.fails = StoreUnavailable("no answer")
    await bench.fail("m0")
    bench.messages.fails = StoreUnavailable("away", nothing_done=True)
    await bench.fail("m0")
    bench.messages.fails = None
    assert await bench.room() == LIMIT - 1
    await bench.messages.land()
    assert len(await bench.stored()) == LIMIT


async def test_the_lost_place_comes_back_with_the_next_window(bench: Bench) -> None:
    bench.messages.fails = StoreUnavailable("no answer")
    for n in range(LIMIT):
        await bench.fail(f"m{n}")
    bench.messages.fails = None
    assert await bench.room() == 0
    bench.clock.shift += WINDOW + 1
    assert await bench.room() == LIMIT


async def test_a_retry_of_what_was_stored_without_an_answer_is_acknowledged_and_counts_nothing(bench: Bench) -> None:
    bench.messages.fails, bench.messages.before = StoreUnavailable("no answer"), False
    await bench.fail("m0")
    bench.messages.fails = None
    for _ in range(2 * LIMIT):
        assert (added := await bench.send("m0")) is not None
        assert not added.new
    assert await bench.room() == LIMIT - 1
    assert (await bench.stored()).count("m0") == 1


async def test_parallel_retries_count_once_and_are_stored_once(bench: Bench) -> None:
    added = await asyncio.gather(*(bench.send("m0") for _ in range(LIMIT)))
    assert sorted(one.new for one in added if one) == [False] * (LIMIT - 1) + [True]
    assert await bench.stored() == ["m0"]
    assert await bench.room() == LIMIT - 1


async def test_more_parallel_retries_than_places_share_one(bench: Bench) -> None:
    assert all(await asyncio.gather(*(bench.send("m0") for _ in range(5 * LIMIT))))
    assert await bench.stored() == ["m0"]
    assert await bench.room() == LIMIT - 1


async def test_many_at_once_never_pass_the_limit(bench: Bench) -> None:
    added = await asyncio.gather(*(bench.send(f"m{n}") for n in range(5 * LIMIT)))
    assert len([one for one in added if one]) == LIMIT == len(await bench.stored())


async def test_lost_counters_are_rebuilt_from_the_messages(bench: Bench) -> None:
    for n in range(LIMIT - 1):
        assert await bench.send(f"m{n}")
        await bench.strangers.lose()
    assert await bench.room() == 1
    await bench.strangers.lose()
    assert await bench.room() == 0
    assert await bench.send("answer", "b", "a")
    await bench.strangers.lose()
    for n in range(2 * LIMIT):
        assert await bench.send(f"free-{n}")


@pytest.mark.parametrize("nothing_done", [True, False])
async def test_counters_lost_while_storing_fails_never_let_one_more_through(bench: Bench, nothing_done: bool) -> None:
    for n in range(3 * LIMIT):
        bench.messages.fails = StoreUnavailable("away", nothing_done=nothing_done) if n % 2 else None
        with suppress(StoreUnavailable):
            await bench.send(f"m{n}")
        await bench.strangers.lose()
    bench.messages.fails = None
    await bench.room()
    assert len(await bench.stored()) == LIMIT


async def test_without_counters_nothing_is_stored_but_between_friends(bench: Bench) -> None:
    assert await bench.send("m0")
    bench.strangers.fails = True
    await bench.fail("m1")
    assert await bench.stored() == ["m0"]
    assert await bench.send("m0")  # stored before: a retry needs no counter
    for n in range(2 * LIMIT):
        assert await bench.send(f"free-{n}", free=True)
    bench.strangers.fails = False


async def test_a_place_that_cannot_be_given_back_is_lost_and_no_more(bench: Bench) -> None:
    bench.messages.fails = StoreUnavailable("away", nothing_done=True)
    give_back = bench.strangers.give_back

    async def refuse(sender: str, receiver: str, id: str, now: int) -> None:
        raise StoreUnavailable("away as well")

    bench.strangers.give_back = refuse  # type: ignore[method-assign]
    await bench.fail("m0")
    bench.strangers.give_back = give_back  # type: ignore[method-assign]
    bench.messages.fails = None
    assert await bench.room() == LIMIT - 1
