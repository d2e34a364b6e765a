"""What a process reads again after a gap, and what it does with items of other processes."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from chat_server.model.messages import LogEntry, Message
from chat_server.service import cluster_receiver
from chat_server.service.cluster_receiver import ClusterReceiver
from chat_server.service.packets import Notice, encode
from chat_server.utils.clock import Clock, Timeline
from tests.unit.test_live_groups import slow_groups


def entry(conversation: str, time: int, before: int, *, deleted: bool = False) -> LogEntry:
    message = Message("ann", conversation, f"m{time}", "hello", time)
    return LogEntry(conversation, time, before, None if deleted else message)


class GrowingLog:
    """A log of messages; those in `late` appear after the first read."""

    def __init__(self, *entries: LogEntry, late: Sequence[LogEntry] = ()) -> None:
        self._entries = list(entries)
        self._late = late

    async def since(self, time: int, count: int) -> list[LogEntry]:
        found = sorted((one for one in self._entries if one.time > time), key=lambda one: one.time)[:count]
        self._entries += self._late
        self._late = ()
        return found


async def delivered(log: GrowingLog, start: int, monkeypatch: Any) -> list[int]:
    """Return the times of the messages that are delivered, in order."""
    stub: Any = None
    receiver = ClusterReceiver(log, stub, stub, stub, stub, stub, stub, stub, Timeline(Clock()))  # type: ignore[arg-type]
    times: list[int] = []

    async def deliver(messages: list[Message]) -> None:
        times.extend(message.time for message in messages)

    monkeypatch.setattr(cluster_receiver, "PAGE", 3)
    monkeypatch.setattr(receiver, "_deliver_again", deliver)
    await receiver._read_again(start)
    return times


async def test_a_gap_is_read_in_order_and_to_the_end(monkeypatch: Any) -> None:
    log = GrowingLog(*[entry("bob", time, time - 1) for time in range(1, 10)])
    assert await delivered(log, 2, monkeypatch) == list(range(3, 10))


async def test_a_message_that_appears_late_comes_before_its_successor(monkeypatch: Any) -> None:
    """Messages 14 and 15 appear after a read that ended at 16, in another conversation."""
    log = GrowingLog(
        *(entry("bob", 11, 5), entry("cid", 12, 0), entry("cid", 16, 12)),
        late=[entry("bob", 14, 11), entry("bob", 15, 14), entry("bob", 17, 15)],
    )
    assert await delivered(log, 10, monkeypatch) == [11, 12, 16, 14, 15, 17]


async def test_a_deleted_or_erased_message_does_not_stop_a_gap(monkeypatch: Any) -> None:
    """A deleted one leaves a tombstone; an erased one is looked for once."""
    log = GrowingLog(
        *(entry("bob", 11, 0, deleted=True), entry("bob", 12, 11), entry("bob", 14, 13), entry("bob", 15, 14))
    )
    assert await delivered(log, 10, monkeypatch) == [12, 14, 15]


async def test_a_new_member_receives_before_the_change_arrives() -> None:
    """The store has the member already, and the item comes from a process that knows it."""
    store, groups = slow_groups()
    assert await groups.find("#1", "a")
    store.members["c"] = 2
    receivers = list[str]()
    stub: Any = None
    registry: Any = SimpleNamespace(notify_here=lambda users, *_, **__: receivers.extend(users))
    live: Any = SimpleNamespace(live=groups)
    receiver = ClusterReceiver(stub, registry, stub, stub, stub, stub, live, stub, Timeline(Clock()))
    await receiver.received(["b", "c", "d"], encode(Notice(b"frame", False, False, group=1)))
    assert receivers == ["b", "c"]
