"""Contact limit and messages in two stores that fail between the two steps: no sender exceeds the limit."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest

from chat_server.backends import SCHEMAS
from chat_server.cache.contacts import ContactState, Decision
from chat_server.cache.sqlite import SqliteContacts
from chat_server.model.messages import Added, Message, MessageStore, Pair
from chat_server.model.sqlite import SqliteMessages
from chat_server.service.contact_limit import Outcome, SeparateStores
from chat_server.utils.clock import MICROSECONDS, Timeline
from chat_server.utils.errors import StoreUnavailable
from chat_server.utils.sqlite import Database
from tests.harness import ManualClock

LIMIT, WINDOW, KEPT = 3, 100, 40  # seconds


class FailingMessages:
    """A message store that raises `fails` in `add`: before it stores messages, or afterwards if not `before`.

    The database may complete a failed write much later: `complete_abandoned`. While `gate` is set, `stored` sets
    `looked_up` and waits for the gate before it returns.
    """

    def __init__(self, messages: MessageStore) -> None:
        self._messages = messages
        self.fails: StoreUnavailable | None = None
        self.before = True
        self.abandoned: list[Message] = []
        self.gate: asyncio.Event | None = None
        self.looked_up = asyncio.Event()
        self.recent, self.have_written = messages.recent, messages.have_written

    async def stored(self, messages: Sequence[Message]) -> list[Added | None]:
        found = await self._messages.stored(messages)
        if self.gate:
            self.looked_up.set()
            await self.gate.wait()
        return found

    async def add(self, batch: Sequence[Message]) -> list[Added]:
        if self.fails and self.before:
            self.abandoned += batch
            raise self.fails
        added = await self._messages.add(batch)
        if self.fails:
            raise self.fails
        return added

    async def complete_abandoned(self) -> None:
        """Complete the failed writes in the database, although no caller waits for them."""
        await self._messages.add(self.abandoned)


class FailingContacts:
    """A contact store that fails while `fails`, and counts that in `failures`. `lose` deletes its counters."""

    def __init__(self, database: Database) -> None:
        self._contacts = SqliteContacts(database, LIMIT, WINDOW, KEPT)
        self._database = database
        self.fails = False
        self.failures = 0

    async def take(
        self, sender: str, receiver: str, id: str, now: int, rebuilt: ContactState | None = None
    ) -> Decision:
        self._check()
        return await self._contacts.take(sender, receiver, id, now, rebuilt)

    async def allow(self, one: str, other: str, now: int) -> None:
        self._check()
        await self._contacts.allow(one, other, now)

    async def lose(self) -> None:
        await self._database.write(lambda tx: tx.execute("DELETE FROM strangers"))

    def _check(self) -> None:
        if self.fails:
            self.failures += 1
            raise StoreUnavailable("the counters are away")


class TwoDatabases:
    """Messages and counters in two databases, and the strategy that uses them."""

    def __init__(self, messages: SqliteMessages, contacts: FailingContacts) -> None:
        self.clock = ManualClock()
        self.messages = FailingMessages(messages)
        self.contacts = contacts
        self._kept = messages
        self._timeline = Timeline(self.clock)
        self._send_strategy = SeparateStores(self.messages, contacts, LIMIT, WINDOW * MICROSECONDS)  # type: ignore[arg-type]

    async def send(self, id: str, sender: str = "a", receiver: str = "b", *, free: bool = False) -> Added | None:
        """Send a message; return None if the limit refused it. Raises StoreUnavailable."""
        [outcome] = await self.send_batch((id, sender, receiver, free))
        if isinstance(outcome.added, StoreUnavailable):
            raise outcome.added
        return outcome.added

    async def send_batch(self, *each: tuple[str, str, str, bool]) -> list[Outcome]:
        """Send messages together: for each id, sender, receiver, and whether the pair has no limit."""
        messages = [Message(sender, receiver, id, "text", self._timeline.next()) for id, sender, receiver, _ in each]
        return await self._send_strategy.add(messages, [free for *_, free in each])

    async def send_in_vain(self, id: str) -> None:
        """Send a message; fail unless it raises StoreUnavailable."""
        with pytest.raises(StoreUnavailable):
            await self.send(id)

    async def stored_ids(self, other: str = "b") -> list[str]:
        return [message.id for message in await self._kept.after(Pair("a", other), 0, 100)]

    async def expire(self) -> int:
        """Delete all messages as expired."""
        return await self._kept.purge(self._timeline.next(), 100)

    async def count_allowed(self) -> int:
        """Send messages until the limit refuses one; return the number of accepted ones."""
        count = 0
        while await self.send(f"extra-{self._timeline.next()}"):
            count += 1
        return count


@pytest.fixture
async def stores(tmp_path: Path) -> AsyncIterator[TwoDatabases]:
    async with AsyncExitStack() as stack:
        databases = []
        for name in ("messages", "cache"):
            database = Database(tmp_path / name, timeout=20)
            stack.push_async_callback(database.close)
            await database.open(SCHEMAS)
            databases.append(database)
        yield TwoDatabases(SqliteMessages(databases[0]), FailingContacts(databases[1]))


@pytest.mark.parametrize("before", [True, False])
async def test_an_unknown_result_may_lose_a_place_but_never_gains_one(stores: TwoDatabases, before: bool) -> None:
    stores.messages.fails, stores.messages.before = StoreUnavailable("no answer"), before
    await stores.send_in_vain("m0")
    stores.messages.fails = None
    assert await stores.count_allowed() == LIMIT - 1
    assert len(await stores.stored_ids()) == (LIMIT - 1 if before else LIMIT)


async def test_an_abandoned_message_that_was_stored_is_never_refused(stores: TwoDatabases) -> None:
    """A message with an attempt that may still be stored keeps its place, and its retry gets that place."""
    stores.messages.fails = StoreUnavailable("no answer")
    await stores.send_in_vain("m0")
    stores.messages.fails = None
    assert await stores.count_allowed() == LIMIT - 1
    assert (retried := await stores.send("m0"))
    await stores.messages.complete_abandoned()
    assert await stores.send("m0") == Added(retried.time, new=False)
    assert len(await stores.stored_ids()) == LIMIT
    assert await stores.count_allowed() == 0


async def test_a_lost_place_is_free_again_in_the_next_window(stores: TwoDatabases) -> None:
    stores.messages.fails = StoreUnavailable("no answer")
    for n in range(LIMIT):
        await stores.send_in_vain(f"m{n}")
    stores.messages.fails = None
    assert await stores.count_allowed() == 0
    stores.clock.shift += WINDOW + 1
    assert await stores.count_allowed() == LIMIT


async def test_a_retry_of_a_stored_message_is_not_counted(stores: TwoDatabases) -> None:
    stores.messages.fails, stores.messages.before = StoreUnavailable("no answer"), False
    await stores.send_in_vain("m0")
    stores.messages.fails = None
    for _ in range(2 * LIMIT):
        assert (added := await stores.send("m0")) is not None
        assert not added.new
    assert await stores.count_allowed() == LIMIT - 1
    assert (await stores.stored_ids()).count("m0") == 1


async def test_parallel_retries_count_once_and_are_stored_once(stores: TwoDatabases) -> None:
    added = await asyncio.gather(*(stores.send("m0") for _ in range(LIMIT)))
    assert sorted(one.new for one in added if one) == [False] * (LIMIT - 1) + [True]
    assert await stores.stored_ids() == ["m0"]
    assert await stores.count_allowed() == LIMIT - 1


async def test_a_retry_during_its_first_attempt_takes_no_place(
    stores: TwoDatabases,
) -> None:
    assert await stores.send("m0")
    stores.messages.gate = gate = asyncio.Event()
    retry = asyncio.create_task(stores.send("m1"))
    await stores.messages.looked_up.wait()
    stores.messages.gate = None
    assert (first := await stores.send("m1"))
    assert await stores.count_allowed() == LIMIT - 2
    gate.set()
    assert await retry == Added(first.time, new=False)


async def test_any_number_of_parallel_retries_share_one_place(stores: TwoDatabases) -> None:
    assert all(await asyncio.gather(*(stores.send("m0") for _ in range(5 * LIMIT))))
    assert await stores.stored_ids() == ["m0"]
    assert await stores.count_allowed() == LIMIT - 1


async def test_parallel_messages_never_exceed_the_limit(stores: TwoDatabases) -> None:
    added = await asyncio.gather(*(stores.send(f"m{n}") for n in range(5 * LIMIT)))
    assert len([one for one in added if one]) == LIMIT == len(await stores.stored_ids())


async def test_lost_counters_are_rebuilt_from_the_messages(stores: TwoDatabases) -> None:
    for n in range(LIMIT - 1):
        assert await stores.send(f"m{n}")
        await stores.contacts.lose()
    assert await stores.count_allowed() == 1
    await stores.contacts.lose()
    assert await stores.count_allowed() == 0
    assert await stores.send("answer", "b", "a")
    await stores.contacts.lose()
    for n in range(2 * LIMIT):
        assert await stores.send(f"free-{n}")


async def test_counters_lost_during_failures_allow_no_more_messages(stores: TwoDatabases) -> None:
    for n in range(3 * LIMIT):
        stores.messages.fails = StoreUnavailable("no answer") if n % 2 else None
        with suppress(StoreUnavailable):
            await stores.send(f"m{n}")
        await stores.contacts.lose()
    stores.messages.fails = None
    await stores.count_allowed()
    assert len(await stores.stored_ids()) == LIMIT


async def test_without_counters_only_pairs_without_a_limit_can_write(stores: TwoDatabases) -> None:
    assert await stores.send("m0")
    stores.contacts.fails = True
    await stores.send_in_vain("m1")
    assert await stores.stored_ids() == ["m0"]
    assert await stores.send("m0")  # already stored: a retry needs no counter
    for n in range(2 * LIMIT):
        assert await stores.send(f"free-{n}", free=True)


async def test_free_messages_of_a_batch_are_stored_without_counters(stores: TwoDatabases) -> None:
    """The batch waits for the counters once, not once for each pair."""
    stores.contacts.fails = True
    outcomes = await stores.send_batch(*((f"m{n}", "a", "bcd"[n % 3], n % 3 == 0) for n in range(9)))
    assert [isinstance(outcome.added, Added) for outcome in outcomes] == [True, False, False] * 3
    assert await stores.stored_ids("b") == ["m0", "m3", "m6"]
    assert await stores.stored_ids("c") == await stores.stored_ids("d") == []
    assert stores.contacts.failures == 2  # for the free pair, and for the first pair with a limit


async def test_a_refused_message_does_not_stop_its_batch(stores: TwoDatabases) -> None:
    outcomes = await stores.send_batch(*((f"m{n}", "a", "bc"[n % 2], n % 2 == 0) for n in range(4 * LIMIT)))
    assert [outcome.added is not None for outcome in outcomes] == [True] * 2 * LIMIT + [True, False] * LIMIT
    assert await stores.stored_ids("b") == [f"m{n}" for n in range(0, 4 * LIMIT, 2)]
    assert await stores.stored_ids("c") == [f"m{n}" for n in range(1, 2 * LIMIT, 2)]


async def test_a_message_store_that_is_away_fails_the_whole_batch(
    stores: TwoDatabases,
) -> None:
    stores.messages.fails = StoreUnavailable("no answer")
    outcomes = await stores.send_batch(*((f"m{n}", "a", "bc"[n % 2], n % 2 == 0) for n in range(6)))
    assert all(isinstance(outcome.added, StoreUnavailable) for outcome in outcomes)
    assert [message.id for message in stores.messages.abandoned] == ["m0", "m2", "m4", "m1"]


@pytest.mark.parametrize("before", [True, False])
async def test_an_answer_unblocks_even_if_its_storing_is_uncertain(stores: TwoDatabases, before: bool) -> None:
    """Only the attempt that frees the pair unblocks the refused user; its retry cannot know this."""
    await stores.count_allowed()
    stores.messages.fails, stores.messages.before = StoreUnavailable("no answer"), before
    [outcome] = await stores.send_batch(("answer", "b", "a", False))
    assert isinstance(outcome.added, StoreUnavailable)
    assert outcome.unblocked
    stores.messages.fails = None
    for n in range(2 * LIMIT):
        assert await stores.send(f"free-{n}")
    [outcome] = await stores.send_batch(("answer", "b", "a", False))
    assert isinstance(outcome.added, Added)
    assert not outcome.unblocked


async def test_messages_that_expire_within_a_window_free_no_places(stores: TwoDatabases) -> None:
    for n in range(LIMIT):
        assert await stores.send(f"m{n}")
    stores.clock.shift += KEPT
    assert await stores.expire() == LIMIT
    for n in range(LIMIT):
        assert await stores.send(f"m{n}") is None
