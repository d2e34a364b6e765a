"""Users and their sockets for the load generator: aiohttp to log in, picows to chat."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from enum import IntEnum
from typing import TypeVar

import aiohttp
import msgspec
from picows import WSCloseCode, WSFrame, WSHandshakeError, WSListener, WSMsgType, WSTransport, ws_connect

T = TypeVar("T")

TIMEOUT = 30.0  # seconds for every wait that is not measured
PASSWORD = "correct horse"


class StatusCode(IntEnum):
    """The status codes of docs/protocol.md that the load generator expects."""

    CONNECTED = 40003
    HISTORY = 40005
    SENT_TO_ALL = 40009
    RECEIVED = 40011
    MARKED_READ = 40007
    ONLINE = 40018
    OFFLINE = 40019
    CONVERSATIONS = 40023
    REGISTERED = 41001
    LOGGED_IN = 41003
    USER_EXISTS = 41007


class ClientFrame(msgspec.Struct):
    """A frame to the server (docs/protocol.md, section 2)."""

    to: str
    content: str
    op_type: int = 1
    type: int = 1


class ServerFrame(msgspec.Struct, gc=False):
    """The fields of a frame from the server that the load generator checks."""

    op_type: int
    content: str = ""
    sender: str = msgspec.field(name="from", default="")
    id: str = ""


class BenchError(Exception):
    """The server under test broke the contract of docs/protocol.md."""


class _LoginData(msgspec.Struct):
    """The field of a login's `data` that the load generator uses."""

    token: str = ""


class _HttpResponse(msgspec.Struct):
    """The envelope of an HTTP response."""

    status: int
    data: _LoginData | None = None
    error: str = ""


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(ServerFrame).decode
_decode_response = msgspec.json.Decoder(_HttpResponse).decode


class UserSocket(WSListener):
    """One open socket of a user.

    Every text frame goes to `on_frame`. Until a load replaces this function, frames wait in a queue for `expect`.
    The socket answers and counts pings itself, because picows would not report them: the server takes a pong as
    confirmation of delivery, so the load generator has to know that it sent one.
    """

    def __init__(self, uid: str) -> None:
        self.uid = uid
        self._inbox: asyncio.Queue[ServerFrame] = asyncio.Queue()
        self._transport: WSTransport | None = None
        self.on_frame: Callable[[ServerFrame], None] = self._inbox.put_nowait
        self.handlers: dict[str, Callable[[ServerFrame], None]] = {}  # by the sender of the frame, for `handle`
        self.pings = 0
        self.closed = ""  # the reason, once the socket is closed

    def on_ws_connected(self, transport: WSTransport) -> None:
        """Keep the transport of the open socket."""
        self._transport = transport

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """Pass on a text frame, answer a ping, note a close frame."""
        kind = frame.msg_type
        if kind == WSMsgType.TEXT:
            self.on_frame(_decode(frame.get_payload_as_memoryview()))
        elif kind == WSMsgType.PING:
            transport.send_pong(frame.get_payload_as_bytes())
            self.pings += 1
        elif kind == WSMsgType.CLOSE:
            self.closed = f"closed by the server: {frame.get_close_code()} {frame.get_close_reason()}"
            transport.disconnect()

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        """Note that the socket is closed; a pending `expect` fails immediately."""
        self.closed = self.closed or "cut by the server"
        self._inbox.put_nowait(ServerFrame(op_type=0, content=self.closed))

    def handle(self, frame: ServerFrame) -> None:
        """Pass a frame to the handler of its sender. Raises KeyError if there is none."""
        self.handlers[frame.sender](frame)

    def send(self, frame: ClientFrame) -> None:
        """Send one frame, in one write of its own as real clients do."""
        assert self._transport is not None
        self._transport.send(WSMsgType.TEXT, _encode(frame))

    async def expect(self, code: StatusCode) -> ServerFrame:
        """Return the next frame. Raises BenchError if it has another code or does not arrive within TIMEOUT."""
        try:
            async with asyncio.timeout(TIMEOUT):
                frame = await self._inbox.get()
        except TimeoutError:
            raise BenchError(f"{self.uid} expected {code.value} {code.name}, but no frame arrived") from None
        if frame.op_type != code:
            raise BenchError(f"{self.uid} expected {code.value} {code.name}, got {frame}")
        return frame

    async def close(self) -> None:
        """Close the socket without reading the remaining frames."""
        self.on_frame = lambda _: None
        if self._transport is not None and not self.closed:
            self._transport.send_close(WSCloseCode.OK)
            self._transport.disconnect()
            await self._transport.wait_disconnected()


async def connect(url: str, uid: str, token: str, to: str = "") -> UserSocket:
    """Open a socket of `uid` to the server `url` (http://host:port) and wait for its 40003."""
    target = f"&to_uid={to}" if to else ""
    try:
        _, opened = await ws_connect(
            lambda: UserSocket(uid),
            f"{url.replace('http', 'ws', 1)}/chat/test?uid={uid}{target}",
            extra_headers={"Authorization": f"Bearer {token}"},
            enable_auto_pong=False,
            websocket_handshake_timeout=TIMEOUT,
        )
    except WSHandshakeError as error:
        raise BenchError(f"no socket for {uid}: {error} {error.raw_body!r}") from error
    assert isinstance(opened, UserSocket)
    await opened.expect(StatusCode.CONNECTED)
    return opened


async def log_in(url: str, names: Iterable[str], concurrency: int = 32) -> dict[str, str]:
    """Register the new users among `names`, log all of them in, and return their tokens by name."""
    tokens: dict[str, str] = {}
    async with aiohttp.ClientSession(url) as http:

        async def post(path: str, name: str, *expected: StatusCode) -> _LoginData:
            body = {"user_name": name, "password": PASSWORD}
            async with http.post(path, json=body) as response:
                answer = _decode_response(await response.read())
            if answer.status not in expected:
                raise BenchError(f"{path} of {name}: {answer}")
            return answer.data or _LoginData()

        async def enter(name: str) -> None:
            await post("/user/register", name, StatusCode.REGISTERED, StatusCode.USER_EXISTS)
            tokens[name] = (await post("/user/login", name, StatusCode.LOGGED_IN)).token

        await for_each(enter, names, concurrency)
    return tokens


async def for_each(work: Callable[[T], Awaitable[None]], items: Iterable[T], concurrency: int) -> None:
    """Call `work` for every item, `concurrency` at a time. The first failure cancels the rest and is raised."""
    remaining = iter(items)

    async def worker() -> None:
        for item in remaining:
            await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(worker())
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
