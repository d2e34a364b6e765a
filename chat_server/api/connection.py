"""One socket: what goes out and what came in, proof of delivery, signs of life, and every way to end.

What one turn of the loop sends goes out as one write, followed by one ping if messages are among it. The
frames are put on the transport by ourselves, so the bounds are ours too: the outbox and the transport's own
buffer together stay under `outbox_bytes`, or the socket closes with 1013.
"""

import asyncio
import struct
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol

from aiohttp import WSCloseCode, WSMessage, WSMsgType, web

from chat_server.conf import SocketSettings
from chat_server.service.frames import Request
from chat_server.service.registry import Receipt
from chat_server.status import Disconnect, Refused
from chat_server.utils.tcp import progress
from chat_server.utils.token_bucket import TokenBucket
from chat_server.utils.websocket import CLOSE, PING, PONG, deflated, frame

# Requests of a socket that wait to be worked on, at most so many and so many bytes; then it is not read.
INBOX_FRAMES = 128
INBOX_BYTES = 262144
# The op that sends to one user (protocol section 2).
SEND = 1
# A run of sends is worked on together, at most so many, and no more once it has so many bytes: while a run is
# stored, everybody else waits.
LONGEST_RUN = 32
RUN_BYTES = 16384
# Pages go on while less than this waits for the reader. In bytes.
ENOUGH_WAITING = 32768
# Messages of a socket without a pong, of which the receipts are kept; more stay unread.
MOST_UNPROVEN = 16384
BAD_FRAMES = 100
# A message counts as one frame of the user's rate, and as one more for each so many bytes on the wire: it may come in
# many fragments.
BYTES_PER_FRAME = 16384
# Between two messages a socket may send twice MaxFrameBytes and so many bytes more, headers included; further ones can
# only be fragments without end. aiohttp reads ahead by up to half of it.
MOST_FRAGMENTED = 1048576
# Behind our close frame a peer may still send so many bytes, which are dropped; then it is cut.
MOST_IGNORED = 8388608
# After our close frame the peer has so many seconds to answer it. aiohttp's own close() gave up too early
# for a peer that has much to read before it.
LINGER = 2.0
# A page that is being read slowly is left unfinished after so many seconds when the server ends.
FINISH = 2.0

# Looked up once: before Python 3.12 each look at an enum's member is a call.
_TEXT, _PONG = WSMsgType.TEXT, WSMsgType.PONG
_FRAMES = frozenset((_TEXT, _PONG, WSMsgType.PING, WSMsgType.BINARY))


class WebSocket(web.WebSocketResponse):
    """aiohttp's end of the socket, used for the handshake and for reading; the Connection closes it."""

    async def close(self, *, code: int = WSCloseCode.OK, message: bytes = b"", drain: bool = True) -> bool:
        """Nothing: aiohttp calls this when a frame breaks the protocol, before our answers are out."""
        return False


class Owner(Protocol):
    """What a connection needs of whoever keeps it."""

    def decode(self, data: str) -> Request | Refused:
        """The request in a frame, or what is wrong with it."""
        ...

    async def work(self, connection: "Connection", request: Request) -> None:
        """Answer a request that is no send."""
        ...

    async def store(self, connection: "Connection", run: Sequence[Request]) -> Callable[[], None]:
        """Store a run of sends; what it returns answers them."""
        ...

    def refuse(self, connection: "Connection", refused: Refused) -> None:
        """Answer what was no request."""
        ...

    def proven(self, connection: "Connection", receipts: Sequence[Receipt]) -> None:
        """These messages have arrived."""
        ...

    def closing(self, connection: "Connection") -> None:
        """From now on nothing can be delivered to it."""
        ...

    def too_slow(self) -> None:
        """A connection is closed because its peer reads too slowly."""
        ...

    def working(self, task: asyncio.Task[None]) -> None:
        """A task to wait for before the stores close."""
        ...


class Connection:
    """A user's open socket; a service.registry.Socket."""

    __slots__ = (
        "__weakref__",
        "_acked",
        "_bad",
        "_binary",
        "_bucket",
        "_bytes",
        "_closing",
        "_config",
        "_drain",
        "_ended",
        "_flushing",
        "_heard",
        "_held",
        "_holding",
        "_ignore_input",
        "_inbox",
        "_inbox_bytes",
        "_loop",
        "_missed",
        "_outbox",
        "_owner",
        "_ping",
        "_pinged",
        "_pings",
        "_queued",
        "_received",
        "_room",
        "_spoke",
        "_transport",
        "_unproven",
        "_waited",
        "_window",
        "_worker",
        "_ws",
        "address",
        "close_code",
        "peer",
        "session",
        "sync",
        "user",
    )

    def __init__(  # noqa: PLR0913 - what a socket is made of, each by name
        self,
        owner: Owner,
        config: SocketSettings,
        ws: WebSocket,
        transport: asyncio.Transport,
        drain: Callable[[], Awaitable[None]],
        ignore_input: Callable[[], None],
        *,
        user: str,
        peer: str,
        session: bytes,
        sync: bool,
        address: str,
        bucket: TokenBucket | None,
        binary: bool = False,
    ) -> None:
        self.user = user
        self.peer = peer
        self.session = session
        self.sync = sync
        self.address = address
        self.close_code: int | None = None
        self._owner = owner
        self._config = config
        self._ws = ws
        self._window = int(ws.compress)  # of permessage-deflate; 0: frames are not compressed
        self._transport = transport
        transport.set_write_buffer_limits(ENOUGH_WAITING)  # above it, `drain` waits
        self._drain = drain
        self._ignore_input = ignore_input  # from then on bytes that come are dropped and not parsed
        self._bucket = bucket
        self._binary = binary  # frames that are not text are decoded, too
        self._loop = asyncio.get_running_loop()
        # out
        self._outbox: list[bytes] = []
        self._queued = 0
        self._flushing = False
        self._closing = False
        self._ended: asyncio.Future[None] | None = None  # somebody waits for room: told when it closes
        # proof of delivery: not pinged yet, and pinged with _ping
        self._unproven: list[Receipt] = []
        self._pinged: list[Receipt] = []
        self._ping = b""
        self._pings = 0
        # in
        self._bytes = 0  # since the last message
        self._inbox: list[tuple[Request | Refused, int]] = []  # short; a deque takes 600 bytes, also when it is empty
        self._inbox_bytes = 0
        self._room: asyncio.Future[None] | None = None  # the reader waits for room in the inbox
        self._worker: asyncio.Task[None] | None = None
        self._bad = 0
        # signs of life, as of the last beat
        self._received = self._acked = self._waited = self._missed = 0
        self._heard = self._spoke = False  # frames came, and went, since the last beat
        self._held = self._holding = False  # since the last beat, and now, the server itself does not read

    # --- out

    def send(self, frame: bytes) -> None:
        """Send a text frame; a socket that is closing forgets it."""
        if not self._closing:
            self._put(deflated(frame, self._window) if self._window else frame)

    def offer(self, frame: bytes) -> None:
        """Send a text frame, unless so much waits for the reader that a few more might close the socket."""
        if self.waiting < self._config.outbox_bytes // 2:
            self.send(frame)

    def deliver(self, frame: bytes, receipt: Receipt) -> None:
        """Send a message's frame and report its receipt once a pong proves it; on a sync socket only op 4 does."""
        if self._closing:
            return
        self.send(frame)
        if not self.sync and len(self._unproven) < MOST_UNPROVEN:
            self._unproven.append(receipt)

    @property
    def waiting(self) -> int:
        """The bytes that wait for the reader."""
        return self._queued + self._transport.get_write_buffer_size()

    async def room(self) -> None:
        """Wait until the reader has taken enough. Raises ConnectionResetError if the socket is closing."""
        if self.waiting < ENOUGH_WAITING and not self._closing:
            return
        self._flush()
        if self._transport.get_write_buffer_size() >= ENOUGH_WAITING and not self._closing:
            self._ended = self._loop.create_future()
            draining = asyncio.ensure_future(self._drain())
            try:
                await asyncio.wait((draining, self._ended), return_when=asyncio.FIRST_COMPLETED)
            finally:
                self._ended = None
                draining.cancel()
                await asyncio.gather(draining, return_exceptions=True)
        if self._closing or self._transport.is_closing():
            raise ConnectionResetError("the socket is closing")

    def _put(self, frame: bytes) -> None:
        self._spoke = True
        self._outbox.append(frame)
        self._queued += len(frame)
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)
        elif self._queued > self._config.outbox_bytes:
            self._flush()

    def _flush(self) -> None:
        """Put on the transport what this turn of the loop sent."""
        self._flushing = False
        if self._unproven and not self._ping and not self._closing:
            self._send_ping()
        if not self._outbox or self._transport.is_closing():
            self._outbox.clear()
            self._queued = 0
            return
        self._transport.write(b"".join(self._outbox))
        self._outbox.clear()
        self._queued = 0
        if self._transport.get_write_buffer_size() > self._config.outbox_bytes and not self._closing:
            self._owner.too_slow()
            self.close(WSCloseCode.TRY_AGAIN_LATER, "reads too slowly")

    def _send_ping(self) -> None:
        self._pings += 1
        self._ping = self._pings.to_bytes(8, "big")
        self._pinged, self._unproven = self._unproven, []
        self._outbox.append(frame(PING, self._ping))

    def _pong(self) -> None:
        """The pong that echoes our ping proves that all before it arrived."""
        proven, self._pinged, self._ping = self._pinged, [], b""
        if proven:
            self._owner.proven(self, proven)
        if self._unproven and not self._flushing and not self._closing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    # --- in

    async def serve(self) -> None:
        """Read until the peer is gone or has closed; then say goodbye."""
        try:
            while await self._read(await self._ws.receive()):
                pass
        except Disconnect as disconnect:
            await self.idle()
            self.close(disconnect.code, disconnect.why)
            await self._discard()

    def arrived(self, size: int) -> None:
        """So many bytes have come on the wire; there is an end to those that are no message."""
        self._bytes += size
        if self._bytes <= MOST_FRAGMENTED + 2 * self._config.max_frame_bytes:
            return
        if not self._closing:
            self.close(WSCloseCode.POLICY_VIOLATION, "too many bytes for one message")
            self._transport.pause_reading()
        elif self._bytes <= MOST_IGNORED:
            self._ignore_input()
        else:  # the peer does not heed the close frame
            self._transport.abort()

    async def _read(self, message: WSMessage) -> bool:
        """Take in one frame; False if it was the last."""
        kind, data = message.type, message.data
        self._heard = True
        if kind is _PONG and self._ping and data == self._ping:
            self._bytes = 0
            self._pong()
        elif kind not in _FRAMES:
            return await self._read_last(kind, data)
        elif not self._closing:
            frames, self._bytes = 1 + self._bytes // BYTES_PER_FRAME, 0
            if self._bucket and (wait := self._bucket.take(self._loop.time(), frames)):
                await self._hold(asyncio.sleep(wait))
                if self._closing:
                    return True
            if kind is _TEXT or (kind is WSMsgType.BINARY and self._binary):
                self._accept(data)
                if len(self._inbox) >= INBOX_FRAMES or self._inbox_bytes >= INBOX_BYTES:
                    self._room = self._loop.create_future()
                    await self._hold(self._room)
            elif kind is WSMsgType.PING:
                self._put(frame(PONG, data))
            elif kind is WSMsgType.BINARY:
                raise Disconnect(WSCloseCode.UNSUPPORTED_DATA, "text frames only")
        return True

    async def _read_last(self, kind: WSMsgType, data: Any) -> bool:
        """The peer has closed, or broke the protocol, or is gone."""
        if kind is WSMsgType.CLOSE:
            if data == WSCloseCode.ABNORMAL_CLOSURE or data >= 5000:  # no peer may send these; aiohttp lets them pass
                raise Disconnect(WSCloseCode.PROTOCOL_ERROR, f"invalid close code: {data}")
            await self.idle()
            self.close(data or WSCloseCode.OK, "")
        elif kind is WSMsgType.ERROR and (code := getattr(data, "code", None)) is not None:
            raise Disconnect(code, str(data))
        return False

    def _accept(self, data: str) -> None:
        """Take a frame to be worked on."""
        item = self._owner.decode(data)
        size = data.__sizeof__()  # of text with an emoji four bytes for each character
        self._inbox.append((item, size))
        self._inbox_bytes += size
        if self._worker is None:
            # A task begins with the next turn of the loop: by then all frames that arrived with this one are here.
            self._worker = self._loop.create_task(self._work())
            self._owner.working(self._worker)
        self._bad = self._bad + 1 if isinstance(item, Refused) else 0
        if self._bad >= BAD_FRAMES:
            raise Disconnect(WSCloseCode.POLICY_VIOLATION, f"{BAD_FRAMES} bad frames in a row")

    async def _work(self) -> None:
        try:
            while self._inbox:
                enough = self._inbox_bytes - RUN_BYTES
                item = self._take()
                if isinstance(item, Refused):
                    self._owner.refuse(self, item)
                    continue
                self._make_room()
                if item.op_type != SEND:
                    await self._owner.work(self, item)
                    continue
                run = [item]
                while len(run) < LONGEST_RUN and self._inbox_bytes > enough and self._next_is_send():
                    run.append(self._take())  # type: ignore[arg-type]
                # Answers are given in the next turn of the loop: by then the next runs of all sockets are with the
                # store, which works on them meanwhile.
                self._loop.call_soon(await self._owner.store(self, run))
                if not self._next_is_send():
                    await asyncio.sleep(0)
        except ConnectionError:
            self._forget_inbox()  # nobody is there any more to be answered
        finally:
            self._worker = None
            self._make_room()

    async def _hold(self, wait: Awaitable[None]) -> None:
        """Do not read for a while: that is no silence of the peer's."""
        self._holding = self._held = True
        await wait
        self._holding = False

    def _take(self) -> Request | Refused:
        item, size = self._inbox.pop(0)
        self._inbox_bytes -= size
        return item

    def _forget_inbox(self) -> None:
        self._inbox.clear()
        self._inbox_bytes = 0
        self._make_room()

    def _next_is_send(self) -> bool:
        return bool(self._inbox) and getattr(self._inbox[0][0], "op_type", 0) == SEND

    def _make_room(self) -> None:
        if self._room and not self._room.done():
            self._room.set_result(None)

    # --- signs of life

    def beat(self) -> None:
        """Called every HeartbeatSeconds: asks a peer for a sign of life, and cuts one that gave none for two beats."""
        sock = self._transport.get_extra_info("socket")
        received, acked, waiting = progress(sock)
        waiting += self._transport.get_write_buffer_size()
        # Our pings do not count as taken: the system takes them for a program that hangs.
        took = (self._waited or self._spoke) and (acked != self._acked or waiting < self._waited)
        held = self._held and not self._ended  # not by a peer that takes nothing of what was asked for
        alive = self._heard or received != self._received or took or held
        self._heard = self._spoke = False
        self._received, self._acked, self._waited = received, acked, waiting
        self._held = self._holding
        self._missed = 0 if alive else self._missed + 1
        if self._missed >= 2:
            self._transport.abort()
        elif not self._ping and not self._closing and not self._transport.is_closing():
            self._send_ping()
            self._flush()

    # --- the end

    def close(self, code: int, why: str) -> None:
        """Say goodbye: what waits goes out, then the close frame; frames not worked on yet are forgotten."""
        if self._closing:
            self._forget_inbox()
            return
        self._closing = True  # first: a flush that finds too much waiting would close, too
        self._owner.closing(self)
        self._flush()
        self.close_code = code
        self._forget_inbox()
        self._stop_waiting()
        if not self._transport.is_closing():
            self._transport.write(frame(CLOSE, struct.pack("!H", code) + why.encode()[:120]))
            self._loop.call_later(LINGER, self._transport.abort)

    def gone(self) -> None:
        """The connection has ended: nothing can be sent any more; frames that came before are worked on."""
        self._closing = True
        self._make_room()
        self._stop_waiting()

    def _stop_waiting(self) -> None:
        """Whoever waits for the reader need not."""
        if self._ended and not self._ended.done():
            self._ended.set_result(None)

    async def finish(self, code: int, why: str) -> None:
        """Finish the frames in work, for FINISH seconds at most, and close it."""
        with suppress(TimeoutError):
            async with asyncio.timeout(FINISH):
                await self.idle()
        self.close(code, why)
        await self.idle()

    async def idle(self) -> None:
        """Wait until no frame from it is being worked on."""
        while self._worker:
            await asyncio.wait((self._worker,))

    def when_idle(self, call: Callable[[], None]) -> None:
        """Make this call once no frame from it is being worked on; after `gone` there come no more."""
        if self._worker:
            self._worker.add_done_callback(lambda _: call())
        else:
            call()

    async def _discard(self) -> None:
        """Let the peer read the close frame before the connection ends: it may still be sending."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER):
                for _ in range(INBOX_FRAMES):
                    kind = (await self._ws.receive()).type
                    if kind in (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED):
                        return
                    if kind is WSMsgType.ERROR:  # nothing more can be understood
                        break
                self._ignore_input()
                await asyncio.sleep(LINGER)  # a connection that is lost cancels this
