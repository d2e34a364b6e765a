"""Outbox: what counts as written, and what waits for a pong."""

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from functools import partial

import pytest

from chat_server.api.limits import MAX_UNCONFIRMED
from chat_server.api.outbox import Outbox
from chat_server.service.registry import Delivery


class Recording(Outbox):
    """An outbox on one end of a pair of sockets; knows what was confirmed."""

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__(transport, partial(asyncio.sleep, 0), limit=65536, window=0, confirms=True)
        self.confirmed: list[Delivery] = []

    def on_confirmed(self, deliveries: Sequence[Delivery]) -> None:
        """Keep them."""
        self.confirmed += deliveries


@pytest.fixture
async def outbox() -> AsyncIterator[Recording]:
    ours, theirs = socket.socketpair()
    with theirs:
        transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=ours)
        yield Recording(transport)
        transport.abort()
        await asyncio.sleep(0)


async def test_frames_count_as_written_and_pings_do_not(outbox: Recording) -> None:
    outbox.ping()
    assert not outbox.wrote
    outbox.send(b"frame")
    await asyncio.sleep(0)
    assert outbox.wrote


async def test_a_pong_confirms_what_came_before_its_ping(outbox: Recording) -> None:
    first, second = Delivery("1", "m1", 1), Delivery("1", "m2", 2)
    outbox.deliver(b"m1", [first])
    await asyncio.sleep(0)
    outbox.deliver(b"m2", [second])
    await asyncio.sleep(0)
    assert not outbox.is_our_pong(b"")
    assert outbox.is_our_pong((1).to_bytes(8, "big"))
    assert outbox.confirmed == [first]
    await asyncio.sleep(0)  # now the second ping is in flight
    assert outbox.is_our_pong((2).to_bytes(8, "big"))
    assert outbox.confirmed == [first, second]


async def test_unconfirmed_deliveries_are_bounded(outbox: Recording) -> None:
    for number in range(MAX_UNCONFIRMED + 100):
        outbox.deliver(b"", [Delivery("1", f"m{number}", number)])
    await asyncio.sleep(0)
    assert outbox.is_our_pong((1).to_bytes(8, "big"))
    assert [delivery.time for delivery in outbox.confirmed] == list(range(MAX_UNCONFIRMED))


async def test_deliveries_before_and_after_a_ping_share_one_bound(outbox: Recording) -> None:
    for number in range(MAX_UNCONFIRMED - 10):
        outbox.deliver(b"", [Delivery("1", f"m{number}", number)])
    await asyncio.sleep(0)  # a ping is in flight
    for number in range(MAX_UNCONFIRMED - 10, MAX_UNCONFIRMED + 100):
        outbox.deliver(b"", [Delivery("1", f"m{number}", number)])
    await asyncio.sleep(0)
    assert outbox.is_our_pong((1).to_bytes(8, "big"))
    await asyncio.sleep(0)
    assert outbox.is_our_pong((2).to_bytes(8, "big"))
    assert [delivery.time for delivery in outbox.confirmed] == list(range(MAX_UNCONFIRMED))
