"""Users and their sockets, as the load generator needs them: aiohttp to log in, picows to chat."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from enum import IntEnum
from typing import TypeVar

import aiohttp
import msgspec
from picows import WSCloseCode, WSFrame, WSHandshakeError, WSListener, WSMsgType, WSTransport, ws_connect

T = TypeVar("T")

PATIENCE = 30.0  # seconds to wait for anything that is not being measured


class Code(IntEnum):
    """The status codes of the contract that the load generator meets."""

    CONNECTED = 40003
    HISTORY = 40005
    SENT_TO_ALL = 40009
    RECEIVED = 40011
    ONLINE = 40018
    CONVERSATIONS = 40023
    REGISTERED = 41001
    LOGGED_IN = 41003
    USER_EXISTS = 41007


class Say(msgspec.Struct):
    """A frame to the server."""

    to: str
    content: str
    op_type: int = 1
    type: int = 1


class Heard(msgspec.Struct, gc=False):
    """What the load generator looks at in a frame from the server."""

    op_type: int
    content: str = ""
    sender: str = msgspec.field(name="from", default="")
    id: str = ""


class BenchError(Exception):
    """The server under test answered something else than the contract says."""


class _Account(msgspec.Struct):
    """The part of a login's answer that matters."""

    token: str = ""


class _Answer(msgspec.Struct):
    """The envelope of an HTTP answer."""

    status: int
    data: _Account | None = None
    error: str = ""


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Heard).decode
_decode_answer = msgspec.json.Decoder(_Answer).decode


class Peer(WSListener):
    """One open socket of a user.

    Every text frame goes to `hear`; until a load puts its own function there, frames queue up for
    `expect`. Pings are answered here and counted, not by picows: the server takes the pong as proof
    of delivery, so the load generator has to know that it was sent.
    """

    def __init__(self, uid: str) -> None:
        self.uid = uid
        self._inbox: asyncio.Queue[Heard] = asyncio.Queue()
        self._transport: WSTransport | None = None
        self.hear: Callable[[Heard], None] = self._inbox.put_nowait
        self.pings = 0
        self.closed = ""  # why, once the socket is gone

    def on_ws_connected(self, transport: WSTransport) -> None:
        """Take the open socket."""
        self._transport = transport

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """Hand on a text frame, answer a ping, note a close."""
        kind = frame.msg_type
        if kind == WSMsgType.TEXT:
            self.hear(_decode(frame.get_payload_as_memoryview()))
        elif kind == WSMsgType.PING:
            transport.send_pong(frame.get_payload_as_bytes())
            self.pings += 1
        elif kind == WSMsgType.CLOSE:
            self.closed = f"closed by the server: {frame.get_close_code()} {frame.get_close_reason()}"
            transport.disconnect()

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        """Remember that the socket is gone; who expects a frame learns it at once."""
        self.closed = self.closed or "cut by the server"
        self._inbox.put_nowait(Heard(op_type=0, content=self.closed))

    def say(self, frame: Say) -> None:
        """Send one frame, in a write of its own as any client does."""
        assert self._transport is not None
        self._transport.send(WSMsgType.TEXT, _encode(frame))

    async def expect(self, code: Code) -> Heard:
        """Return the next frame, which has to bear `code`."""
        try:
            async with asyncio.timeout(PATIENCE):
                heard = await self._inbox.get()
        except TimeoutError:
            raise BenchError(f"{self.uid} expected {code.value} {code.name}, and nothing came") from None
        if heard.op_type != code:
            raise BenchError(f"expected {code.value} {code.name}, got {heard}")
        return heard

    async def close(self) -> None:
        """Close the socket, without waiting for what is still unread."""
        self.hear = lambda _: None
        if self._transport is not None and not self.closed:
            self._transport.send_close(WSCloseCode.OK)
            self._transport.disconnect()
            await self._transport.wait_disconnected()


async def connect(url: str, uid: str, token: str, to: str = "") -> Peer:
    """Open a socket of `uid` at the server `url` (http://host:port) and wait for its 40003."""
    target = f"&to_uid={to}" if to else ""
    try:
        _, peer = await ws_connect(
            lambda: Peer(uid),
            f"{url.replace('http', 'ws', 1)}/chat/test?uid={uid}{target}",
            extra_headers={"Authorization": f"Bearer {token}"},
            enable_auto_pong=False,
            websocket_handshake_timeout=PATIENCE,
        )
    except WSHandshakeError as error:
        raise BenchError(f"no socket for {uid}: {error} {error.raw_body!r}") from error
    assert isinstance(peer, Peer)
    await peer.expect(Code.CONNECTED)
    return peer


async def log_in(url: str, names: Iterable[str], at_once: int = 32) -> dict[str, str]:
    """Register those of `names` that are new, log all in, and return the token of each."""
    tokens: dict[str, str] = {}
    async with aiohttp.ClientSession(url) as http:

        async def post(path: str, name: str, *wanted: Code) -> _Account:
            body = {"user_name": name, "password": "correct horse"}
            async with http.post(path, json=body) as response:
                answer = _decode_answer(await response.read())
            if answer.status not in wanted:
                raise BenchError(f"{path} of {name}: {answer}")
            return answer.data or _Account()

        async def enter(name: str) -> None:
            await post("/user/register", name, Code.REGISTERED, Code.USER_EXISTS)
            tokens[name] = (await post("/user/login", name, Code.LOGGED_IN)).token

        await each(enter, names, at_once)
    return tokens


async def each(work: Callable[[T], Awaitable[None]], items: Iterable[T], at_once: int) -> None:
    """Do `work` on every item, `at_once` of them at a time; the first failure ends it all."""
    waiting = iter(items)

    async def worker() -> None:
        for item in waiting:
            await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(worker())
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
