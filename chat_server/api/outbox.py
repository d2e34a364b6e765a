"""What goes out to one socket: bounded, one write per loop iteration, and deliveries that pongs confirm.

The frames go to the transport directly, past aiohttp's writer, because a write per frame took half of all CPU time. So
the bound is ours too: the outbox and the transport's buffer together stay below `limit` bytes.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from chat_server.api.limits import DRAINED_BYTES, MAX_UNCONFIRMED
from chat_server.service.registry import Delivery
from chat_server.utils.websocket import PING, PONG, deflated, frame

_PING_HEAD = frame(PING, bytes(8))[:2]


class Outbox:
    """The outgoing half of a connection. `window` is that of permessage-deflate in bits, 0 without compression.

    It is a base class of the connection, not a part of it: the two need each other, and references in both directions
    would keep a closed connection until the next garbage collection. Deliveries are reported only if `confirms`.
    """

    __slots__ = (
        *("_closing", "_confirms", "_drain", "_draining", "_frames", "_limit", "_loop", "_ping", "_pinged", "_pings"),
        *("_queued", "_scheduled", "_transport", "_unconfirmed", "_window", "wrote"),
    )

    def __init__(
        self,
        transport: asyncio.Transport,
        drain: Callable[[], Awaitable[None]],
        *,
        limit: int,
        window: int,
        confirms: bool,
    ) -> None:
        transport.set_write_buffer_limits(DRAINED_BYTES)  # above it, `drain` waits
        self._transport = transport
        self._drain = drain
        self._limit = limit
        self._window = window
        self._confirms = confirms
        self._loop = asyncio.get_running_loop()
        self._frames: list[bytes] = []
        self._queued = 0  # bytes in _frames
        self._scheduled = False  # a flush is scheduled
        self._closing = False  # frames are dropped
        self._draining: asyncio.Future[None] | None = None  # `drain` waits for the reader, or for the end
        self._unconfirmed: list[Delivery] = []  # since the ping that is in flight
        self._pinged: list[Delivery] = []  # before it
        self._ping = b""  # its payload; empty if no ping is in flight
        self._pings = 0
        self.wrote = False  # a frame other than our ping was written since this was reset

    def on_full(self) -> None:
        """The reader is too slow: close the socket."""
        raise NotImplementedError

    def on_confirmed(self, deliveries: Sequence[Delivery]) -> None:
        """A pong confirmed these deliveries."""
        raise NotImplementedError

    def send(self, frames: bytes) -> None:
        """Send one or more whole text frames; dropped when closing."""
        if self._closing:
            return
        if self._window:
            frames = deflated(frames, self._window)
        self._frames.append(frames)
        self._queued += len(frames)
        if not self._scheduled:
            self._loop.call_soon(self.flush)  # if this fails without memory, the next frame tries again
            self._scheduled = True
        elif self._queued > self._limit:
            self.flush()

    def deliver(self, frames: bytes, deliveries: Sequence[Delivery]) -> None:
        """Send the frames of messages, and report their deliveries once a pong confirms them."""
        self.send(frames)
        if self._confirms and not self._closing:
            self._unconfirmed += deliveries

    def offer(self, frame: bytes) -> None:
        """Send a text frame, unless the outbox is half full, so that a few more might close the socket."""
        if self.waiting < self._limit // 2:
            self.send(frame)

    def send_pong(self, payload: bytes) -> None:
        """Answer a ping of the peer."""
        if not self._closing:
            self._frames.append(pong := frame(PONG, payload))
            self._queued += len(pong)
            self._schedule()

    @property
    def waiting(self) -> int:
        """The bytes that wait for the reader."""
        return self._queued + self._transport.get_write_buffer_size()

    @property
    def is_awaited(self) -> bool:
        """Whether a request waits for the reader to take what it asked for."""
        return self._draining is not None

    async def drain(self) -> None:
        """Wait until less than DRAINED_BYTES wait for the reader. Raises ConnectionResetError if it is closing."""
        if self.waiting < DRAINED_BYTES and not self._closing:
            return
        self.flush()
        if self._transport.get_write_buffer_size() >= DRAINED_BYTES and not self._closing:
            self._draining = self._loop.create_future()
            drained = asyncio.ensure_future(self._drain())
            try:
                await asyncio.wait((drained, self._draining), return_when=asyncio.FIRST_COMPLETED)
            finally:
                self._draining = None
                drained.cancel()
                await asyncio.gather(drained, return_exceptions=True)
        if self._closing or self._transport.is_closing():
            raise ConnectionResetError("the socket is closing")

    def flush(self, *, ping: bool = False) -> None:
        """Write the frames of this loop iteration, and one ping if a delivery is among them or with `ping`."""
        self._scheduled = False
        if self._frames:
            self.wrote = True
        del self._unconfirmed[MAX_UNCONFIRMED - len(self._pinged) :]
        if (ping or self._unconfirmed) and not self._ping and not self._closing:
            self._append_ping()
        if not self._frames:
            return
        if not self._transport.is_closing():
            self._transport.write(b"".join(self._frames))
        self._frames.clear()
        self._queued = 0
        if self._transport.get_write_buffer_size() > self._limit and not self._closing:
            self.on_full()

    def ping(self) -> None:
        """Ask for a sign of life, unless a ping is in flight."""
        if not self._transport.is_closing():
            self.flush(ping=True)

    def is_our_pong(self, payload: bytes) -> bool:
        """Whether a pong echoes our ping. It confirms all deliveries before the ping, since the socket keeps order."""
        if not self._ping or payload != self._ping:
            return False
        confirmed, self._pinged, self._ping = self._pinged, [], b""
        if confirmed:
            self.on_confirmed(confirmed)
        if self._unconfirmed and not self._closing:
            self._schedule()
        return True

    def end_output(self) -> None:
        """Write what waits, and drop everything that is sent from now on. Idempotent."""
        if not self._closing:
            self._closing = True  # first: a flush that finds too much waiting would call on_full
            self.flush()
        if self._draining and not self._draining.done():
            self._draining.set_result(None)

    def _schedule(self) -> None:
        if not self._scheduled:
            self._loop.call_soon(self.flush)
            self._scheduled = True

    def _append_ping(self) -> None:
        self._pings += 1
        self._ping = self._pings.to_bytes(8, "big")
        self._pinged, self._unconfirmed = self._unconfirmed, []
        self._frames.append(_PING_HEAD + self._ping)
