"""The baseline: a bare aiohttp relay that stores and checks nothing.

It implements the part of the protocol that the load generator needs (ops 1 and 6, and accounts without checks), so
that the same load runs against it and the server. It shows the cost of aiohttp itself and is not usable as a server.

    python bench/relay.py --port 8090 [--gather] [--uvloop]

By default, every frame is one `await ws.send_frame(...)`. With --gather, all frames for a socket from one loop
iteration go out in one transport write.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec
import uvloop
from aiohttp import WSMsgType, web


class RelayRequest(msgspec.Struct):
    """A frame from a client (docs/protocol.md, section 2)."""

    op_type: int
    content: str
    sender: str = msgspec.field(name="from", default="")
    to: str = ""
    type: int = 1


class RelayFrame(msgspec.Struct):
    """A frame to a client, with the same keys as a frame of the server; `time` in milliseconds."""

    sender: str = msgspec.field(name="from")
    to: str
    op_type: int
    content: str
    msg: str
    id: str = ""
    time: int = 0
    type: int = 1


class RelaySocket(Protocol):
    """The sending side of one socket."""

    async def send(self, payload: bytes) -> None:
        """Send one text frame."""


class PlainSocket:
    """A socket that uses aiohttp's writer: one write per frame."""

    def __init__(self, ws: web.WebSocketResponse) -> None:
        self._ws = ws

    async def send(self, payload: bytes) -> None:
        """Send one text frame; waits as aiohttp does while the buffer is full."""
        await self._ws.send_frame(payload, WSMsgType.TEXT)


class GatheringSocket:
    """A socket that builds frames itself and writes them once per loop iteration.

    Its buffer is unbounded: do not use this in a server.
    """

    def __init__(self, transport: asyncio.WriteTransport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._frames: list[bytes] = []

    async def send(self, payload: bytes) -> None:
        """Buffer one text frame until the end of this loop iteration."""
        if not self._frames:
            self._loop.call_soon(self._flush)
        self._frames.append(text_header(len(payload)))
        self._frames.append(payload)

    def _flush(self) -> None:
        frames, self._frames = self._frames, []
        if not self._transport.is_closing():
            self._transport.write(b"".join(frames))


def text_header(size: int) -> bytes:
    """Return the header of an unmasked, final text frame of `size` bytes (RFC 6455, 5.2)."""
    if size < 126:
        return bytes((0x81, size))
    if size < 65536:
        return b"\x81\x7e" + size.to_bytes(2, "big")
    return b"\x81\x7f" + size.to_bytes(8, "big")


class Relay:
    """The table of connected users, and the handling of each frame."""

    def __init__(self, gather: bool) -> None:
        self._gather = gather
        self._users: defaultdict[str, set[RelaySocket]] = defaultdict(set)
        self._encode = msgspec.json.Encoder().encode
        self._decode = msgspec.json.Decoder(RelayRequest).decode

    async def chat(self, request: web.Request) -> web.WebSocketResponse:
        """Serve one socket until it closes."""
        uid = request.query["uid"]
        ws = web.WebSocketResponse(compress=False)
        await ws.prepare(request)
        socket = self._socket(request, ws)
        self._users[uid].add(socket)
        try:
            await socket.send(self._encode(RelayFrame("System", uid, 40003, "", "connected")))
            async for message in ws:
                if message.type is not WSMsgType.TEXT:
                    break
                frame = self._decode(message.data)
                await self._handler(frame)(socket, uid, frame)
        finally:
            self._users[uid].discard(socket)
            if not self._users[uid]:
                del self._users[uid]
        return ws

    def _socket(self, request: web.Request, ws: web.WebSocketResponse) -> RelaySocket:
        if not self._gather:
            return PlainSocket(ws)
        assert request.transport is not None
        return GatheringSocket(request.transport)

    def _handler(self, frame: RelayRequest) -> Callable[[RelaySocket, str, RelayRequest], Awaitable[None]]:
        if frame.op_type == 6:
            return self._to_all
        return self._to_group if frame.to[:1] == "#" else self._to_one

    async def _to_one(self, socket: RelaySocket, uid: str, frame: RelayRequest) -> None:
        message_id = frame.content.partition("\n")[0]
        now = time.time_ns() // 1_000_000
        receivers = self._users.get(frame.to, ())
        payload = self._encode(RelayFrame(uid, frame.to, 40011, frame.content, "message received", message_id, now))
        for receiver in tuple(receivers):
            await receiver.send(payload)
        code, text = (40018, "receiver online") if receivers else (40019, "receiver offline")
        await socket.send(self._encode(RelayFrame("System", uid, code, "", text, message_id, now)))

    async def _to_all(self, socket: RelaySocket, uid: str, frame: RelayRequest) -> None:
        payload = self._encode(RelayFrame(uid, "ALL", 40011, frame.content, "message received"))
        others = await self._send_to_others(uid, payload)
        await socket.send(self._encode(RelayFrame("System", uid, 40009, str(others), "sent")))

    async def _to_group(self, socket: RelaySocket, uid: str, frame: RelayRequest) -> None:
        """Send to all other users: every user is a member of every group."""
        message_id = frame.content.partition("\n")[0]
        now = time.time_ns() // 1_000_000
        payload = self._encode(RelayFrame(uid, frame.to, 40011, frame.content, "message received", message_id, now))
        await self._send_to_others(uid, payload)
        await socket.send(self._encode(RelayFrame("System", uid, 40018, "", "receiver online", message_id, now)))

    async def _send_to_others(self, uid: str, payload: bytes) -> int:
        others = [sockets for user, sockets in self._users.items() if user != uid]
        for receiver in [receiver for sockets in others for receiver in sockets]:
            await receiver.send(payload)
        return len(others)


async def ping(request: web.Request) -> web.Response:
    """Answer that the relay is up."""
    return web.json_response({"status": 200, "data": None, "msg": "ok", "error": ""})


async def register(request: web.Request) -> web.Response:
    """Accept any registration and store nothing."""
    return web.json_response({"status": 41001, "data": None, "msg": "registered", "error": ""})


async def login(request: web.Request) -> web.Response:
    """Accept any login, with a token that is never checked."""
    data = {"user_name": (await request.json())["user_name"], "token": "x", "expires_in": 1}
    return web.json_response({"status": 41003, "data": data, "msg": "logged in", "error": ""})


def main() -> None:
    """Serve on loopback until SIGTERM or SIGINT; print one line when ready."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--gather", action="store_true", help="one write per socket and loop iteration")
    parser.add_argument("--uvloop", action="store_true", help="run on uvloop instead of asyncio")
    args = parser.parse_args()
    relay = Relay(args.gather)
    app = web.Application()
    app.add_routes(
        [
            web.get("/ping", ping),
            web.get("/chat/test", relay.chat),
            web.post("/user/register", register),
            web.post("/user/login", login),
        ]
    )
    web.run_app(
        app,
        host="127.0.0.1",
        port=args.port,
        loop=uvloop.new_event_loop() if args.uvloop else asyncio.new_event_loop(),
        access_log=None,
        shutdown_timeout=1,
        backlog=1024,
        print=lambda _: print(f"relay ready on http://127.0.0.1:{args.port}", flush=True),
    )


if __name__ == "__main__":
    main()
