"""The costs of groups in the embedded store, counted as in test_costs.py, and the numbers of their senders."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from chat_server.backends import SCHEMAS
from chat_server.model.messages import Confirmed, GroupKey, GroupView, Message
from chat_server.utils.errors import StoreUnavailable
from chat_server.utils.sqlite import Database
from tests.unit.test_costs import END, Store

GROUP = GroupKey(1_700_000_000_000_000, "#group")
MEMBERS = [f"user{n}" for n in range(50)]
IN_FLIGHT = 16


class GroupMessagesStore(Store):
    """An embedded message store with a group."""

    def sent(self, count: int = IN_FLIGHT, sender: str = "user0", group: GroupKey = GROUP) -> list[Message]:
        """Return new messages of a sender."""
        times = [self.timeline.next() for _ in range(count)]
        return [Message(sender, group.name, f"id-{time}", "hello", time, group=group.number) for time in times]

    async def fill(self, count: int) -> None:
        """Add `count` messages, of all members in turn."""
        for start in range(0, count, 1000):
            part = range(start, min(start + 1000, count))
            await self.messages.add([message for n in part for message in self.sent(1, MEMBERS[n % 50])])

    async def read_all(self) -> None:
        """Move the positions of all members to the newest message."""
        newest = await self.messages.newest()
        await self.messages.put_positions(GROUP.number, dict.fromkeys(MEMBERS, newest))


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[GroupMessagesStore]:
    database = Database(tmp_path, timeout=20)
    await database.open(SCHEMAS)
    yield GroupMessagesStore(database)
    await database.close()


def reads(store: GroupMessagesStore, middle: Message, confirmed: list[int]) -> dict[str, Callable[[], Awaitable[Any]]]:
    """Return every read whose cost must not grow with the number of stored messages."""
    messages, since = store.messages, middle.time - 10**9
    return {
        "the newest": lambda: messages.before(GROUP, END, 20, since),
        "those before": lambda: messages.before(GROUP, middle.time, 20, since),
        "those after": lambda: messages.after(GROUP, middle.time, 20),
        "the time of an id": lambda: messages.time_of(GROUP, middle.sender, middle.id),
        "the newest of an id": lambda: messages.newest_with_id(GROUP, middle.id),
        "conversations": lambda: messages.group_conversations("user1", [GroupView(GROUP, 0)]),
        "positions": lambda: messages.positions([GROUP.number]),
        "advance": lambda: messages.advance(GROUP.number, {user: Confirmed(0, confirmed) for user in MEMBERS}),
        "the search for traces of a user": lambda: messages.erase_sent(GROUP.number, "unknown", 500),
        "a stuck position": lambda: messages.advance(GROUP.number, {"stuck": Confirmed(0, confirmed)}),
    }


async def test_reads_of_groups_cost_the_same_with_100000_messages(store: GroupMessagesStore) -> None:
    async def steps() -> dict[str, int]:
        await store.read_all()
        await store.messages.add(run := store.sent())
        times = [message.time for message in run]
        return {name: await store.steps(read) for name, read in reads(store, run[3], times).items()}

    await store.fill(200)
    few = await steps()
    assert all(few.values())
    await store.fill(100_000)
    await store.messages.add(store.sent(1000, group=GroupKey(GROUP.number + 1, "#other")))
    many = await steps()
    assert {name: steps for name, steps in many.items() if steps > 1.1 * few[name]} == {}, few


async def test_confirming_for_50_members_takes_few_steps(store: GroupMessagesStore) -> None:
    """Members with the same position share the read, and a member with an old unread message costs little."""
    await store.fill(2000)
    positions = {f"stuck{n}": await store.messages.newest() - n for n in range(50)}
    await store.messages.put_positions(GROUP.number, positions)
    await store.read_all()
    await store.messages.add(run := store.sent())
    times = [message.time for message in run]
    for users, most in ((MEMBERS, 6000), (list(positions), 60_000)):
        confirmed = {user: Confirmed(0, times) for user in users}
        assert await store.steps(partial(store.messages.advance, GROUP.number, confirmed)) < most


async def test_confirming_takes_one_write(store: GroupMessagesStore) -> None:
    await store.messages.add(run := store.sent())
    confirmed = {user: Confirmed(0, [message.time for message in run]) for user in MEMBERS}
    statements = await store.written(lambda: store.messages.advance(GROUP.number, confirmed))
    assert len(statements) == 3, statements  # BEGIN, INSERT, COMMIT
    assert await store.written(lambda: store.messages.advance(GROUP.number, confirmed)) == []


async def test_a_batch_of_known_senders_is_a_single_statement(store: GroupMessagesStore) -> None:
    await store.fill(50)
    runs = [store.sent(5, user) for user in MEMBERS]

    async def add() -> None:
        await asyncio.gather(*map(store.messages.add, runs))

    await store.messages.add(store.sent())  # the first message after a restart reads the number
    statements = await store.written(add)
    assert len([one for one in statements if not one.startswith("SELECT side")]) == 1, statements


async def test_reads_of_groups_use_an_index_and_do_not_sort(store: GroupMessagesStore) -> None:
    await store.fill(1000)
    await store.messages.add(run := store.sent())
    for name, read in reads(store, run[3], [run[4].time]).items():
        for part in await store.plans(read):
            assert "TEMP B-TREE" not in part, (name, part)
            scanned = part.removeprefix("SCAN ") if part.startswith("SCAN ") else "("
            assert scanned == "g" or scanned[0] == "(" or "VIRTUAL TABLE" in scanned, (
                name,
                part,
            )  # g: of GROUPS_LISTED


async def test_messages_of_groups_are_in_no_index_of_unread_ones(store: GroupMessagesStore) -> None:
    await store.fill(100)
    query = "SELECT count(*) FROM messages INDEXED BY messages_unread WHERE read = 0"
    assert await store.database.fetch(query, ()) == [(0,)]
    assert await store.database.fetch("SELECT count(*) FROM conversations", ()) == [(0,)]


# --- numbers of senders


class RefusedError(Exception):
    """Makes a transaction fail."""


def refuse(_: sqlite3.Connection) -> None:
    raise RefusedError


async def test_a_rollback_leaves_no_number_of_a_new_sender(store: GroupMessagesStore) -> None:
    """Another sender gets the number that the rolled back transaction had assigned."""
    [lost] = store.sent(1, "lost")

    def add_then_fail(tx: sqlite3.Connection) -> None:
        store.messages.add_in(tx, [lost, *store.sent(1, "lost")])
        raise RefusedError

    with pytest.raises(RefusedError):
        await store.database.write(add_then_fail)
    await store.messages.add(first := store.sent(1, "first"))
    await store.messages.add(second := [lost, *store.sent(1, "lost")])
    assert [m.sender for m in await store.messages.after(GROUP, 0, 9)] == ["lost", "first", "lost"]
    assert {m.time: m.sender for m in await store.messages.after(GROUP, 0, 9)} == {
        m.time: m.sender for m in [*first, *second]
    }


async def test_a_failing_write_next_to_new_senders_changes_nothing(store: GroupMessagesStore) -> None:
    """A batch of writes that rolls back is repeated write by write."""
    runs = [store.sent(2, f"user{n}") for n in range(20)]
    results = await asyncio.gather(
        *(job for run in runs for job in (store.messages.add(run), store.database.write(refuse))),
        return_exceptions=True,
    )
    assert sum(isinstance(result, RefusedError) for result in results) == 20
    assert await store.messages.after(GROUP, 0, 100) == [message for run in runs for message in run]


async def test_a_used_time_assigns_no_number(store: GroupMessagesStore) -> None:
    [taken] = store.sent(1, "a")
    await store.messages.add([taken])
    with pytest.raises(StoreUnavailable):
        await store.messages.add([Message("new", GROUP.name, "m", "text", taken.time, group=GROUP.number)])
    await store.messages.add(store.sent(1, "b"))
    rows = await store.database.fetch("SELECT user, side FROM group_senders ORDER BY side", ())
    assert rows == [("a", 0), ("b", 1)]
