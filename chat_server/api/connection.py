"""One socket: read its frames, and every way in which it can end."""

import asyncio
import struct
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from aiohttp import WSCloseCode, WSMsgType, web

from chat_server.api.inbox import Inbox
from chat_server.api.limits import (
    BYTES_PER_FRAME,
    CLOSE_TIMEOUT,
    FINISH_TIMEOUT,
    MAX_BAD_FRAMES,
    MAX_FRAGMENTED,
    MAX_IGNORED,
)
from chat_server.api.liveness import Liveness
from chat_server.api.outbox import Outbox
from chat_server.conf import SocketSettings
from chat_server.service.frames import Request, decode
from chat_server.service.registry import Delivery
from chat_server.status import Disconnect, Refused
from chat_server.utils.token_bucket import TokenBucket
from chat_server.utils.websocket import CLOSE, frame

# Read once: before Python 3.12 each access to an enum's member is a call.
_TEXT, _PONG, _PING, _BINARY = WSMsgType.TEXT, WSMsgType.PONG, WSMsgType.PING, WSMsgType.BINARY


class WebSocket(web.WebSocketResponse):
    """aiohttp's side of the socket, for the handshake and for reading. The Connection closes it."""

    async def close(self, *, code: int = WSCloseCode.OK, message: bytes = b"", drain: bool = True) -> bool:
        """Do nothing: aiohttp calls this when a frame breaks the protocol, before our answers are written."""
        return False


class Events(NamedTuple):
    """The functions that a connection calls."""

    requests_arrived: Callable[["Connection"], None]  # its inbox became active
    deliveries_confirmed: Callable[["Connection", Sequence[Delivery]], None]
    closing: Callable[["Connection"], None]  # nothing can be delivered any more
    reads_too_slowly: Callable[[], None]


class Connection(Outbox):
    """An open socket of a user; a service.registry.Socket."""

    __slots__ = (
        *("__weakref__", "_bad_frames", "_binary", "_bucket", "_bytes", "_decode", "_events", "_ignore_input"),
        *("_liveness", "_max_frame_bytes", "_ws", "address", "close_code", "inbox", "peer", "session", "slot"),
        *("opened", "sync", "user"),
    )

    def __init__(  # noqa: PLR0913 - the parts of a socket, each by name
        self,
        events: Events,
        config: SocketSettings,
        ws: WebSocket,
        transport: asyncio.Transport,
        drain: Callable[[], Awaitable[None]],
        ignore_input: Callable[[], None],
        *,
        user: str,
        peer: str = "",
        session: bytes = b"",
        sync: bool = False,
        address: str = "",
        slot: int = 0,
        bucket: TokenBucket | None = None,
        decode: Callable[[Any], Request | Refused] = decode,
        binary: bool = False,
    ) -> None:
        # On a sync socket only op 4 marks messages as read.
        super().__init__(transport, drain, limit=config.outbox_bytes, window=int(ws.compress), confirms=not sync)
        self.user = user
        self.peer = peer
        self.session = session
        self.sync = sync
        self.opened = time.time_ns() // 1000
        self.address = address
        self.slot = slot  # of the heartbeat
        self.close_code: int | None = None
        self.inbox = Inbox()
        self._liveness = Liveness()
        self._events = events
        self._max_frame_bytes = config.max_frame_bytes
        self._ws = ws
        self._ignore_input = ignore_input  # bytes that come after this call are dropped and not parsed
        self._bucket = bucket
        self._decode = decode
        self._binary = binary  # binary frames are decoded, too
        self._bytes = 0  # since the last message
        self._bad_frames = 0  # in a row

    # --- reading

    def bytes_arrived(self, size: int) -> None:
        """Count bytes on the wire, and stop a peer that sends many without completing a message."""
        self._bytes += size
        if self._bytes <= MAX_FRAGMENTED + 2 * self._max_frame_bytes:
            return
        if not self._closing:
            self.close(WSCloseCode.POLICY_VIOLATION, "too many bytes for one message")
            self._transport.pause_reading()
        elif self._bytes <= MAX_IGNORED:
            self._ignore_input()
        else:  # the peer ignores the close frame
            self._transport.abort()

    async def serve(self) -> None:
        """Read until the peer disconnects or closes; then close."""
        try:
            await self._read()
        except Disconnect as disconnect:
            await self.inbox.wait_idle()
            self.close(disconnect.code, disconnect.why)
            await self._discard_input()

    async def _read(self) -> None:
        """Put each request into the inbox, at the rate of the user and as long as there is room. Raises Disconnect."""
        receive, liveness = self._ws.receive, self._liveness
        while True:
            message = await receive()
            kind, data = message.type, message.data
            liveness.heard = True
            if kind is _PONG and self.is_our_pong(data):
                self._bytes = 0
                continue
            if kind is not _TEXT and kind is not _PING and kind is not _PONG and kind is not _BINARY:
                return await self._read_last(kind, data)
            if self._closing:
                continue
            frames, self._bytes = 1 + self._bytes // BYTES_PER_FRAME, 0
            if self._bucket and (wait := self._bucket.take(self._loop.time(), frames)):
                await liveness.pause_reading(asyncio.sleep(wait))
                if self._closing:
                    continue
            if kind is _TEXT or (kind is _BINARY and self._binary):
                if self._accept(data):
                    await liveness.pause_reading(self.inbox.wait_for_room())
            elif kind is _PING:
                self.send_pong(data)
            elif kind is _BINARY:
                raise Disconnect(WSCloseCode.UNSUPPORTED_DATA, "text frames only")

    def _accept(self, data: Any) -> bool:
        """Put the request of a frame into the inbox. Returns whether the inbox is full. Raises Disconnect."""
        request, inbox = self._decode(data), self.inbox
        is_full = inbox.put(request, data.__sizeof__())  # in memory: four bytes per character with an emoji
        if not inbox.active:
            inbox.active = True
            self._events.requests_arrived(self)
        self._bad_frames = self._bad_frames + 1 if type(request) is Refused else 0
        if self._bad_frames >= MAX_BAD_FRAMES:
            raise Disconnect(WSCloseCode.POLICY_VIOLATION, f"{MAX_BAD_FRAMES} bad frames in a row")
        return is_full

    async def _read_last(self, kind: WSMsgType, data: Any) -> None:
        """The peer has closed, broke the protocol or disconnected. Raises Disconnect."""
        if kind is WSMsgType.CLOSE:
            if data == WSCloseCode.ABNORMAL_CLOSURE or data >= 5000:  # no peer may send these; aiohttp lets them pass
                raise Disconnect(WSCloseCode.PROTOCOL_ERROR, f"invalid close code: {data}")
            await self.inbox.wait_idle()
            self.close(data or WSCloseCode.OK, "")
        elif kind is WSMsgType.ERROR and (code := getattr(data, "code", None)) is not None:
            raise Disconnect(code, str(data))

    # --- liveness

    def check_liveness(self) -> None:
        """Called every HeartbeatSeconds: disconnect a dead peer, and ping the others."""
        if self._liveness.check(self._transport, self):
            self.ping()
        else:
            self._transport.abort()

    # --- the end

    def close(self, code: int, why: str) -> None:
        """Write what waits, then the close frame; drop the requests that are not in work yet."""
        self.inbox.clear()
        if self._closing:
            return
        self.end_output()
        self._events.closing(self)
        self.close_code = code
        if not self._transport.is_closing():
            self._transport.write(frame(CLOSE, struct.pack("!H", code) + why.encode()[:120]))
            self._loop.call_later(CLOSE_TIMEOUT, self._transport.abort)

    def disconnect(self) -> None:
        """End the connection at once, without a close frame; drop the requests that are not in work yet."""
        self.inbox.clear()
        self._transport.abort()

    def connection_lost(self) -> None:
        """Nothing can be sent any more. Requests that came before are worked on."""
        self.end_output()

    async def finish(self, code: int, why: str) -> None:
        """Finish the requests in work, for at most FINISH_TIMEOUT, and close."""
        with suppress(TimeoutError):
            async with asyncio.timeout(FINISH_TIMEOUT):
                await self.inbox.wait_idle()
        self.close(code, why)
        await self.inbox.wait_idle()

    async def wait_idle(self) -> None:
        """Wait until no request of it is in work."""
        await self.inbox.wait_idle()

    def on_full(self) -> None:
        """Close the socket: its reader is too slow."""
        self._events.reads_too_slowly()
        self.close(WSCloseCode.TRY_AGAIN_LATER, "reads too slowly")

    def on_confirmed(self, deliveries: Sequence[Delivery]) -> None:
        """Report the deliveries that a pong confirmed."""
        self._events.deliveries_confirmed(self, deliveries)

    async def _discard_input(self) -> None:
        """Let the peer read our close frame before the connection ends: it may still be sending."""
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                for _ in range(MAX_BAD_FRAMES):
                    kind = (await self._ws.receive()).type
                    if kind in (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED):
                        return
                    if kind is WSMsgType.ERROR:  # nothing more can be understood
                        break
                self._ignore_input()
                await asyncio.sleep(CLOSE_TIMEOUT)  # cancelled when the connection is lost
