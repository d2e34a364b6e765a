"""Several processes write to one conversation: nothing earlier appears after a message that is visible."""

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from chat_server.model import mongodb
from chat_server.model.messages import CACHED_SECONDS, Added, Confirmed, GroupKey, Message, Pair
from chat_server.model.mongodb.chain import ChainedMessages
from chat_server.utils.clock import Clock, Timeline
from chat_server.utils.lease import always
from tests import servers
from tests.contract.conftest import _server
from tests.contract.test_nodes import OffsetClock

ANN, BOB = "ann", "bob"
PAIR = Pair(ANN, BOB)
GROUP = GroupKey(7, "#group")


class Node:
    """The message store of one process. `number` makes its ids differ from those of others."""

    def __init__(self, store: ChainedMessages, timeline: Timeline, number: int) -> None:
        self.store = store
        self.timeline = timeline
        self._number = number
        self._ids = 0

    def message(self, text: str = "hello", *, id: str = "", group: bool = False) -> Message:
        self._ids += 1
        to, number = (GROUP.name, GROUP.number) if group else (BOB, 0)
        return Message(ANN, to, id or f"{self._number}-{self._ids}", text, self.timeline.next(), group=number)

    async def add(self, *messages: Message) -> list[Added]:
        return await self.store.add(messages)


@pytest.fixture
async def nodes() -> AsyncIterator[list[Node]]:
    """Three processes on one database, with clocks up to 2 s apart."""
    config = servers.mongodb_config(_server("mongodb"), f"t{uuid.uuid4().hex}")
    client, opened = mongodb.client(config, 20), []
    for slot, seconds in enumerate((0.0, -2.0, 0.5)):
        clock: Clock = OffsetClock(seconds)
        timeline = Timeline(clock)
        timeline.use_slot(slot)
        store = await mongodb.connect(config, client, 20, 0, always, timeline=timeline)
        assert isinstance(store, ChainedMessages)
        opened.append(Node(store, timeline, slot))
    yield opened
    await client.drop_database(config.name)
    client.close()


async def times(node: Node) -> list[int]:
    return [message.time for message in await node.store.after(PAIR, 0, 1000)]


async def test_a_node_with_an_early_clock_stores_after_the_newest(nodes: list[Node]) -> None:
    [first] = await nodes[0].add(nodes[0].message())
    [second] = await nodes[1].add(nodes[1].message())
    assert second.new
    assert second.time > first.time
    assert await times(nodes[2]) == [first.time, second.time]


async def test_an_outdated_cache_only_costs_a_repeated_insert(nodes: list[Node]) -> None:
    stored = []
    for turn in range(6):
        node = nodes[turn % 2]
        stored += [one.time for one in await node.add(node.message(), node.message())]
    assert stored == sorted(set(stored))
    assert await times(nodes[2]) == stored


async def test_a_delayed_write_becomes_visible_at_the_end(nodes: list[Node], monkeypatch: pytest.MonkeyPatch) -> None:
    """The store delays one of two writes until a reader has seen the other one."""
    slow, fast = nodes[0], nodes[2]
    await slow.add(slow.message())
    arrived, go = asyncio.Event(), asyncio.Event()
    insert = slow.store._insert_links

    async def delayed(links: Sequence[Any]) -> int:
        arrived.set()
        await go.wait()
        return await insert(links)

    monkeypatch.setattr(slow.store, "_insert_links", delayed)
    late = asyncio.create_task(slow.add(slow.message("late")))
    await arrived.wait()
    [seen] = await fast.add(fast.message("seen"))
    assert (await times(nodes[1]))[-1] == seen.time
    go.set()
    [stored] = await late
    assert stored.time > seen.time
    assert [message.text for message in await nodes[1].store.after(PAIR, seen.time, 10)] == ["late"]


async def test_the_inbox_of_a_repeated_insert_is_not_behind(nodes: list[Node], monkeypatch: pytest.MonkeyPatch) -> None:
    """Op 7 pages by the time of the newest message, and a stored time before it would list the conversation twice."""
    one, other = nodes[2], nodes[0]  # whose clock is behind, so that the new time needs no correction
    await one.add(one.message())
    touched, touch = list[int](), one.store._conversations.touch

    async def note(messages: Sequence[Message]) -> None:
        touched.extend(message.time for message in messages)
        await touch(messages)

    insert = one.store._insert_links

    async def overtaken(links: Sequence[Any]) -> int:
        monkeypatch.undo()
        monkeypatch.setattr(one.store._conversations, "touch", note)
        await other.add(other.message())
        return await insert(links)

    monkeypatch.setattr(one.store, "_insert_links", overtaken)
    [stored] = await one.add(one.message())
    assert one.store.conflicts == 1
    assert max(touched, default=0) >= stored.time


async def test_a_retry_at_another_node_is_the_same_message(nodes: list[Node]) -> None:
    [first] = await nodes[0].add(nodes[0].message(id="m1"))
    again, other, new = await nodes[1].add(
        nodes[1].message(id="m1"), nodes[1].message("another text", id="m1"), nodes[1].message(id="m2")
    )
    assert again == Added(first.time, new=False)
    assert (other.time, other.same) == (first.time, False)
    assert new.new
    assert await times(nodes[2]) == [first.time, new.time]


async def test_one_id_twice_in_a_batch_is_stored_once(nodes: list[Node]) -> None:
    batch = [nodes[0].message(id=id) for id in ("m1", "m1", "m2")]
    added = await nodes[0].add(*batch)
    assert [one.new for one in added] == [True, False, True]
    assert await times(nodes[1]) == [added[0].time, added[2].time]


async def test_a_time_that_is_taken_is_replaced(nodes: list[Node]) -> None:
    one, two = nodes[0], nodes[1]
    message = one.message()
    await one.add(message)
    [added] = await two.add(Message(BOB, "cid", "m1", "hello", message.time))
    assert added.new
    assert added.time != message.time


async def test_deleted_messages_stay_in_the_chain(nodes: list[Node]) -> None:
    message = nodes[0].message()
    await nodes[0].add(message)
    await nodes[1].store.delete(PAIR, [[(ANN, message.id)]])
    [added] = await nodes[1].add(nodes[1].message())
    assert added.time > message.time


async def in_group(node: Node) -> list[int]:
    return [message.time for message in await node.store.after(GROUP, 0, 1000)]


@pytest.mark.parametrize("limit", [1, 100])
async def test_writers_agree_on_the_end_of_a_group_after_an_erasure(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """One writer has read the newest message, then it is erased, and the other one writes first."""
    slow, fast, command = nodes
    kept = Message(BOB, GROUP.name, "kept", "hello", slow.timeline.next(), group=GROUP.number)
    before = [(await slow.add(message))[0].time for message in (slow.message(group=True), kept)]
    await slow.add(slow.message(group=True), slow.message(id="last", group=True))
    insert = slow.store._insert_links

    async def delayed(links: Sequence[Any]) -> int:
        monkeypatch.undo()
        while (erased := await command.store.erase_sent(GROUP.number, ANN, limit)) == limit:
            counts.append(erased)
        counts.append(erased)
        fast.timeline.advance(links[0].message.time)  # its message is later, and visible first
        [stored] = await fast.add(Message("cid", GROUP.name, "seen", "hello", fast.timeline.next(), group=GROUP.number))
        seen.append(stored.time)
        assert await in_group(fast) == [before[1], stored.time]
        return await insert(links)

    counts, seen = list[int](), list[int]()
    monkeypatch.setattr(slow.store, "_insert_links", delayed)
    late = Message(BOB, GROUP.name, "late", "hello", slow.timeline.next(), group=GROUP.number)
    [stored] = await slow.add(late)
    assert sum(counts) == 3
    assert await in_group(command) == [before[1], seen[0], stored.time]
    records = await command.store.records(GROUP, 0, stored.time, 100)
    assert [record.sender for record in records] == [BOB, "", "cid", BOB]


async def test_writers_agree_on_a_conversation_that_was_erased(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`user remove` frees a name CACHED_SECONDS and 10 s after its last message. Both writers had cached messages."""
    slow, fast, command = nodes
    for node in (slow, fast):
        await node.add(node.message())
    assert await command.store.erase(PAIR, 100) == 2
    for node in nodes:
        monkeypatch.setattr(node.timeline, "now", lambda now=node.timeline.now: now() + (CACHED_SECONDS + 10) * 10**6)
    insert, seen = slow.store._insert_links, list[int]()

    async def delayed(links: Sequence[Any]) -> int:
        monkeypatch.setattr(slow.store, "_insert_links", insert)
        fast.timeline.advance(links[0].message.time)  # its message is later, and visible first
        seen.extend([added.time for added in await fast.add(fast.message())])
        return await insert(links)

    monkeypatch.setattr(slow.store, "_insert_links", delayed)
    [stored] = await slow.add(slow.message())
    assert await times(command) == [*seen, stored.time]


async def test_messages_of_a_single_process_come_first(nodes: list[Node]) -> None:
    """After a change from one process to several, the old messages have no link."""
    old = [nodes[2].message() for _ in range(3)]
    single = mongodb.MongoMessages(nodes[0].store._database, 20)
    await single.add(old)
    [added] = await nodes[1].add(nodes[1].message())
    assert await times(nodes[0]) == [*(message.time for message in old), added.time]


async def test_a_position_is_not_moved_back_by_another_process(nodes: list[Node]) -> None:
    sent = [(await nodes[0].add(nodes[0].message(group=True)))[0].time for _ in range(3)]
    await nodes[0].store.move_position(GROUP.number, BOB, sent[1])
    assert not await nodes[1].store.move_position(GROUP.number, BOB, sent[0])
    assert await nodes[2].store.positions([GROUP.number]) == {GROUP.number: {BOB: sent[1]}}
    assert await nodes[1].store.advance(GROUP.number, {BOB: Confirmed(0, [sent[2]])}) == {BOB: sent[2]}


async def test_two_processes_move_a_position_once(nodes: list[Node]) -> None:
    """Each confirms the same deliveries, such as those of two sockets of one member."""
    sent = [(await nodes[0].add(nodes[0].message(group=True)))[0].time for _ in range(20)]
    for number in range(0, 20, 2):
        confirmed = {BOB: Confirmed(0, sent[number : number + 2])}
        moved = await asyncio.gather(*(node.store.advance(GROUP.number, confirmed) for node in nodes))
        assert sorted(map(len, moved)) == [0, 0, 1]
        assert {BOB: sent[number + 1]} in moved
    moves = await asyncio.gather(*(node.store.move_position(GROUP.number, ANN, sent[-1]) for node in nodes))
    assert sorted(moves) == [False, False, True]


async def at_once(nodes: list[Node], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let two nodes read which messages are unread before either of them marks any."""
    barrier = asyncio.Barrier(2)
    for node in nodes[:2]:

        async def mark(times: Sequence[Any], mark: Any = node.store._mark_times) -> set[int]:
            await barrier.wait()
            marked: set[int] = await mark(times)
            return marked

        monkeypatch.setattr(node.store, "_mark_times", mark)


async def test_two_processes_mark_each_message_once(nodes: list[Node], monkeypatch: pytest.MonkeyPatch) -> None:
    one, two, _ = nodes
    sent = [one.message(id=f"m{number}") for number in range(6)]
    times = [added.time for added in await one.add(*sent)]
    await at_once(nodes, monkeypatch)
    (found, first), second = await asyncio.gather(
        one.store.mark(ANN, BOB, ["m0", "m1", "m2", "m3"]), two.store.mark_delivered(times[2:])
    )
    assert found == {"m0", "m1", "m2", "m3"}
    marked = [*first, *(f"m{times.index(time)}" for time in second)]
    assert sorted(marked) == [f"m{number}" for number in range(6)]


async def test_two_processes_delete_a_message_once(nodes: list[Node]) -> None:
    """The later one does not delete another message that its line could mean instead."""
    await nodes[0].add(nodes[0].message(id="m1"))
    reply = Message(BOB, ANN, "m1", "hello", nodes[0].timeline.next())
    await nodes[0].add(reply)
    alternatives = [[(ANN, "m1"), (BOB, "m1")]]
    deleted = await asyncio.gather(*(node.store.delete(PAIR, alternatives) for node in nodes))
    assert sorted(map(str, deleted)) == sorted(map(str, [[(ANN, "m1")], [None], [None]]))
    assert len(await times(nodes[0])) == 1


@pytest.mark.parametrize("seed", range(3))
async def test_readers_of_concurrent_writers_skip_nothing(nodes: list[Node], seed: int) -> None:
    """A reader that continues after the last message that it has seen finds every message, in the same order."""
    chance = random.Random(seed)
    seen: list[int] = []
    writing = True

    async def write(node: Node) -> list[int]:
        stored = []
        for _ in range(12):
            batch = [node.message() for _ in range(chance.randint(1, 4))]
            stored += [one.time for one in await node.add(*batch)]
            await asyncio.sleep(chance.random() * 0.01)
        return stored

    async def read() -> None:
        while True:
            last = not writing
            seen.extend([message.time for message in await nodes[1].store.after(PAIR, seen[-1] if seen else 0, 1000)])
            if last:
                return
            await asyncio.sleep(0)

    reading = asyncio.create_task(read())
    stored = await asyncio.gather(*map(write, nodes))
    writing = False
    await reading
    assert seen == sorted(time for some in stored for time in some)
    for some in stored:
        assert some == sorted(some)
