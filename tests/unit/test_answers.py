"""Answers: which sockets get which messages of a batch, and in how many pieces."""

from collections.abc import Sequence
from typing import Any

import pytest

from chat_server.model.groups import Group
from chat_server.model.messages import Added, Message
from chat_server.service.answers import Answers
from chat_server.service.frames import Frames, Request
from chat_server.service.live_groups import BlocksOf, LiveGroup
from chat_server.service.registry import Delivery, Registry
from chat_server.service.sending import Batch, Sent
from chat_server.utils.metrics import NO_METRICS


class SocketStub:
    """A socket that keeps what it gets."""

    sync = False

    def __init__(self, user: str) -> None:
        self.user = user
        self.pieces: list[bytes] = []
        self.times: list[int] = []

    def send(self, frames: bytes) -> None:
        """Keep answers."""
        self.pieces.append(frames)

    def deliver(self, frames: bytes, deliveries: Sequence[Delivery]) -> None:
        """Keep messages."""
        self.pieces.append(frames)
        self.times += [delivery.time for delivery in deliveries]


class Answering:
    """Answers, with a socket of each of the users."""

    def __init__(self, *users: str) -> None:
        self.registry = registry = Registry()
        self.answers = Answers(registry, Frames("en"), NO_METRICS)
        self.sockets: list[Any] = [SocketStub(user) for user in users]
        for socket in self.sockets:
            registry.add(socket)

    def answer(self, receivers: dict[str, Any], *sent: tuple[str, Added]) -> None:
        """Answer a batch of the first user: `to` and what the store returned, for each message."""
        requests = [Request(1, to=to) for to, _ in sent]
        results = [Sent(Message("1", to, f"m{added.time}", "hello", added.time), added) for to, added in sent]
        self.answers.sent(Batch(self.sockets[0], requests, receivers, True, results))


def live_group(members: dict[str, int]) -> LiveGroup:
    """A group in which no user blocks."""
    group = LiveGroup(Group(1, "#group", "1", members))
    group.blocks["1"] = BlocksOf(frozenset(), frozenset())
    return group


@pytest.mark.parametrize("to", ["2", "#group"])
def test_a_batch_to_one_receiver_is_one_piece_for_each_socket(to: str) -> None:
    answering = Answering("1", "2")
    receivers = {"2": "2", "#group": live_group({"1": 0, "2": 0})}
    answering.answer(receivers, *((to, Added(time)) for time in range(1, 6)))
    sender, receiver = answering.sockets
    assert (len(sender.pieces), len(receiver.pieces)) == (1, 1)
    assert [sender.pieces[0].count(b'"id":"m%d"' % time) for time in range(1, 6)] == [1] * 5
    assert receiver.times == [1, 2, 3, 4, 5]


def test_messages_to_several_receivers_keep_their_order() -> None:
    answering = Answering("1", "2", "3")
    receivers = {"2": "2", "3": "3", "#group": live_group({"1": 0, "2": 0, "3": 0})}
    answering.answer(receivers, *zip(["2", "#group", "3", "#group", "2"], map(Added, range(1, 6)), strict=True))
    assert [socket.times for socket in answering.sockets] == [[], [1, 2, 4, 5], [2, 3, 4]]


def test_a_new_member_gets_no_retry_of_an_earlier_message() -> None:
    answering = Answering("1", "2", "3")
    receivers = {"#group": live_group({"1": 0, "2": 0, "3": 50})}
    answering.answer(receivers, ("#group", Added(60)), ("#group", Added(40, new=False)), ("#group", Added(61)))
    assert [socket.times for socket in answering.sockets] == [[], [60, 40, 61], [60, 61]]


def test_a_retry_in_the_same_batch_is_delivered_once() -> None:
    answering = Answering("1", "2")
    answering.answer({"2": "2"}, ("2", Added(60)), ("2", Added(60, new=False)))
    assert answering.sockets[1].times == [60]
    assert answering.sockets[0].pieces[0].count(b'"id":"m60"') == 2


def test_a_message_read_again_meanwhile_is_delivered_once() -> None:
    """A process that reads again after a gap may find a message before it is answered. Copies are no deliveries."""
    answering = Answering("1", "2", "1")
    other_device = answering.sockets[2]
    other_device.sync = True
    answering.registry.sync_users.add("1")
    answering.answers.receive(Message("1", "2", "m60", "hello", 60), ["2"], None)
    answering.answer({"2": "2"}, ("2", Added(60)), ("2", Added(61)))
    answering.answer({"2": "2"}, ("2", Added(61, new=False)))
    assert answering.sockets[1].times == [60, 61]
    assert [b"".join(other_device.pieces).count(b'"id":"m%d"' % time) for time in (60, 61)] == [1, 1]
