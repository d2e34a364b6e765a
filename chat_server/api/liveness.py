"""Whether the peer of one socket is still there (protocol section 2, Heartbeat)."""

import asyncio
from collections.abc import Awaitable

from chat_server.api.limits import MAX_MISSED
from chat_server.api.outbox import Outbox
from chat_server.utils.tcp import progress


class Liveness:
    """Compares the progress of a peer from one check to the next: bytes it sent, and bytes it took."""

    __slots__ = ("_acked", "_missed", "_paused", "_received", "_waiting", "_was_paused", "heard")

    def __init__(self) -> None:
        self.heard = False  # a frame came since the last check
        self._paused = False  # the server does not read, so it cannot hear the peer
        self._was_paused = False  # at some time since the last check
        self._received = self._acked = self._waiting = self._missed = 0

    async def pause_reading(self, wait: Awaitable[object]) -> None:
        """Do not read until `wait` is over, which is no silence of the peer."""
        self._paused = self._was_paused = True
        await wait
        self._paused = False

    def check(self, transport: asyncio.Transport, outbox: Outbox) -> bool:
        """Whether the peer is there. Called every HeartbeatSeconds."""
        received, acked, waiting = progress(transport.get_extra_info("socket"))
        waiting += transport.get_write_buffer_size()
        # The peer took bytes, and there were bytes other than our ping to take: the kernel takes a ping for a program
        # that hangs.
        took = (self._waiting or outbox.wrote) and (acked != self._acked or waiting < self._waiting)
        # The server paused reading. If it did so because the peer does not read its page, that is the peer's silence.
        paused = self._was_paused and not outbox.is_awaited
        alive = self.heard or received != self._received or took or paused
        self.heard = outbox.wrote = False
        self._was_paused = self._paused
        self._received, self._acked, self._waiting = received, acked, waiting
        self._missed = 0 if alive else self._missed + 1
        return self._missed < MAX_MISSED
