"""Limit and message in two stores that fail between the two steps: a stranger never gets one more."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest

from chat_server.backends import SCHEMAS
from chat_server.cache.contacts import ContactState, Decision
from chat_server.cache.sqlite import SqliteContacts
from chat_server.model.messages import Added, Message, MessageStore
from chat_server.model.sqlite import SqliteMessages
from chat_server.service.contact_limit import Outcome, SeparateStores
from chat_server.utils.clock import MICROSECONDS, Timeline
from chat_server.utils.errors import StoreUnavailable
from chat_server.utils.sqlite import Database
from tests.harness import ManualClock

LIMIT, WINDOW, KEPT = 3, 100, 40  # seconds


class Failing:
    """Messages whose storing fails while `fails`: `before` it was done, or after, when only the answer is lost.

    What failed before may be done all the same, much later: `land`. Whoever looks for a message while there is a
    `gate` waits until it opens, `looked` says that he does.
    """

    def __init__(self, messages: MessageStore) -> None:
        self._messages = messages
        self.fails: StoreUnavailable | None = None
        self.before = True
        self.under_way: list[Message] = []
        self.gate: asyncio.Event | None = None
        self.looked = asyncio.Event()
        self.recent, self.has_written = messages.recent, messages.has_written

    async def stored(self, messages: Sequence[Message]) -> list[Added | None]:
        found = await self._messages.stored(messages)
        if self.gate:
            self.looked.set()
            await self.gate.wait()
        return found

    async def add(self, run: Sequence[Message]) -> list[Added]:
        if self.fails and self.before:
            self.under_way += run
            raise self.fails
        added = await self._messages.add(run)
        if self.fails:
            raise self.fails
        return added

    async def land(self) -> None:
        """The database does what it was asked to do before, although nobody waits for it any more."""
        await self._messages.add(self.under_way)


class Lossy:
    """Counters that fail while `fails`, and count in `asked` how often they were waited for; `lose` empties them."""

    def __init__(self, database: Database) -> None:
        self._strangers = SqliteContacts(database, LIMIT, WINDOW, KEPT)
        self._database = database
        self.fails = False
        self.asked = 0

    async def take(
        self, sender: str, receiver: str, id: str, now: int, rebuilt: ContactState | None = None
    ) -> Decision:
        self._check()
        return await self._strangers.take(sender, receiver, id, now, rebuilt)

    async def allow(self, one: str, other: str, now: int) -> None:
        self._check()
        await self._strangers.allow(one, other, now)

    async def lose(self) -> None:
        await self._database.write(lambda tx: tx.execute("DELETE FROM strangers"))

    def _check(self) -> None:
        if self.fails:
            self.asked += 1
            raise StoreUnavailable("the counters are away")


class Bench:
    """Two steps on two databases."""

    def __init__(self, messages: SqliteMessages, strangers: Lossy) -> None:
        self.clock = ManualClock()
        self.messages = Failing(messages)
        self.strangers = strangers
        self._kept = messages
        self._timeline = Timeline(self.clock)
        self._send_strategy = SeparateStores(self.messages, strangers, LIMIT, WINDOW * MICROSECONDS)  # type: ignore[arg-type]

    async def send(self, id: str, sender: str = "a", receiver: str = "b", *, free: bool = False) -> Added | None:
        """What became of the message; None if the limit refused it. Raises StoreUnavailable."""
        [outcome] = await self.run((id, sender, receiver, free))
        if isinstance(outcome.added, StoreUnavailable):
            raise outcome.added
        return outcome.added

    async def run(self, *each: tuple[str, str, str, bool]) -> list[Outcome]:
        """What became of messages that are sent together: of each id, sender, receiver, and are the two friends?"""
        messages = [Message(sender, receiver, id, "text", self._timeline.next()) for id, sender, receiver, _ in each]
        return await self._send_strategy.add(messages, [free for *_, free in each])

    async def fail(self, id: str) -> None:
        with pytest.raises(StoreUnavailable):
            await self.send(id)

    async def stored(self, other: str = "b") -> list[str]:
        return [message.id for message in await self._kept.after("a", other, 0, 100)]

    async def expire(self) -> int:
        """Forget all messages."""
        return await self._kept.purge(self._timeline.next(), 100)

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


async def test_a_retry_that_looked_before_its_first_try_was_stored_takes_no_place_and_is_not_refused(
    bench: Bench,
) -> None:
    assert await bench.send("m0")
    bench.messages.gate = gate = asyncio.Event()
    retry = asyncio.create_task(bench.send("m1"))
    await bench.messages.looked.wait()
    bench.messages.gate = None
    assert (first := await bench.send("m1"))
    assert await bench.room() == LIMIT - 2
    gate.set()
    assert await retry == Added(first.time, new=False)


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


async def test_counters_lost_while_storing_fails_never_let_one_more_through(bench: Bench) -> None:
    for n in range(3 * LIMIT):
        bench.messages.fails = StoreUnavailable("no answer") if n % 2 else None
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


async def test_of_a_run_friends_have_theirs_while_the_counters_are_away(bench: Bench) -> None:
    """And the counters are waited for once, not once for each stranger."""
    bench.strangers.fails = True
    outcomes = await bench.run(*((f"m{n}", "a", "bcd"[n % 3], n % 3 == 0) for n in range(9)))
    assert [isinstance(outcome.added, Added) for outcome in outcomes] == [True, False, False] * 3
    assert await bench.stored("b") == ["m0", "m3", "m6"]
    assert await bench.stored("c") == await bench.stored("d") == []
    assert bench.strangers.asked == 2  # for the friend, and for the first stranger


async def test_of_a_run_what_was_refused_by_the_limit_stops_nothing_else(bench: Bench) -> None:
    outcomes = await bench.run(*((f"m{n}", "a", "bc"[n % 2], n % 2 == 0) for n in range(4 * LIMIT)))
    assert [outcome.added is not None for outcome in outcomes] == [True] * 2 * LIMIT + [True, False] * LIMIT
    assert await bench.stored("b") == [f"m{n}" for n in range(0, 4 * LIMIT, 2)]
    assert await bench.stored("c") == [f"m{n}" for n in range(1, 2 * LIMIT, 2)]


async def test_messages_away_fail_a_whole_run_and_are_waited_for_once_by_friends_and_once_by_strangers(
    bench: Bench,
) -> None:
    bench.messages.fails = StoreUnavailable("no answer")
    outcomes = await bench.run(*((f"m{n}", "a", "bc"[n % 2], n % 2 == 0) for n in range(6)))
    assert all(isinstance(outcome.added, StoreUnavailable) for outcome in outcomes)
    assert [message.id for message in bench.messages.under_way] == ["m0", "m2", "m4", "m1"]


@pytest.mark.parametrize("before", [True, False])
async def test_an_answer_frees_and_tells_so_also_where_it_is_not_known_to_be_stored(bench: Bench, before: bool) -> None:
    """Who had been refused is told once, by the try that frees: its retry cannot know."""
    await bench.room()
    bench.messages.fails, bench.messages.before = StoreUnavailable("no answer"), before
    [outcome] = await bench.run(("answer", "b", "a", False))
    assert isinstance(outcome.added, StoreUnavailable)
    assert outcome.unblocked
    bench.messages.fails = None
    for n in range(2 * LIMIT):
        assert await bench.send(f"free-{n}")
    [outcome] = await bench.run(("answer", "b", "a", False))
    assert isinstance(outcome.added, Added)
    assert not outcome.unblocked


async def test_messages_that_expire_within_a_window_give_no_places_back(bench: Bench) -> None:
    for n in range(LIMIT):
        assert await bench.send(f"m{n}")
    bench.clock.shift += KEPT
    assert await bench.expire() == LIMIT
    for n in range(LIMIT):
        assert await bench.send(f"m{n}") is None
