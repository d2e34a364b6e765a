"""The baseline: a bare aiohttp relay that stores and checks nothing.

It speaks just enough of the wire contract (ops 1 and 6, trivial accounts) that one load
generator drives it and the server alike. Nobody could use it: it is the price of aiohttp itself.

    python bench/relay.py --port 8090 [--gather] [--uvloop]

Plain, every frame is one `await ws.send_frame(...)`. With --gather the frames that one turn of the
loop makes for a socket go out as one transport write.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import defaultdict
from typing import Protocol

import msgspec
import uvloop
from aiohttp import WSMsgType, web


class Said(msgspec.Struct):
    """A frame from a client, as the contract has it."""

    op_type: int
    content: str
    sender: str = msgspec.field(name="from", default="")
    to: str = ""
    type: int = 1


class Told(msgspec.Struct):
    """A frame to a client, with all the keys that the server sends; `time` in ms."""

    sender: str = msgspec.field(name="from")
    to: str
    op_type: int
    content: str
    msg: str
    id: str = ""
    time: int = 0
    type: int = 1


class Link(Protocol):
    """How frames reach one socket."""

    async def send(self, payload: bytes) -> None:
        """Send one text frame."""


class PlainLink:
    """aiohttp's own writer: one write for each frame."""

    def __init__(self, ws: web.WebSocketResponse) -> None:
        self._ws = ws

    async def send(self, payload: bytes) -> None:
        """Send one text frame, waiting as aiohttp does while the buffer is full."""
        await self._ws.send_frame(payload, WSMsgType.TEXT)


class GatheredLink:
    """Frames built by hand and written once per turn of the loop. Unbounded: never copy this."""

    def __init__(self, transport: asyncio.WriteTransport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._frames: list[bytes] = []

    async def send(self, payload: bytes) -> None:
        """Leave one text frame for the end of this turn."""
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
    """Who is connected, and what becomes of each frame."""

    def __init__(self, gather: bool) -> None:
        self._gather = gather
        self._users: defaultdict[str, set[Link]] = defaultdict(set)
        self._encode = msgspec.json.Encoder().encode
        self._decode = msgspec.json.Decoder(Said).decode

    async def chat(self, request: web.Request) -> web.WebSocketResponse:
        """Serve one socket until it goes."""
        uid = request.query["uid"]
        ws = web.WebSocketResponse(compress=False)
        await ws.prepare(request)
        link = self._link(request, ws)
        self._users[uid].add(link)
        try:
            await link.send(self._encode(Told("System", uid, 40003, "", "connected")))
            async for message in ws:
                if message.type is not WSMsgType.TEXT:
                    break
                said = self._decode(message.data)
                await (self._to_all if said.op_type == 6 else self._to_one)(link, uid, said)
        finally:
            self._users[uid].discard(link)
            if not self._users[uid]:
                del self._users[uid]
        return ws

    def _link(self, request: web.Request, ws: web.WebSocketResponse) -> Link:
        if not self._gather:
            return PlainLink(ws)
        assert request.transport is not None
        return GatheredLink(request.transport)

    async def _to_one(self, link: Link, uid: str, said: Said) -> None:
        message_id = said.content.partition("\n")[0]
        now = time.time_ns() // 1_000_000
        links = self._users.get(said.to, ())
        told = Told(uid, said.to, 40011, said.content, "message received", message_id, now)
        payload = self._encode(told)
        for other in tuple(links):
            await other.send(payload)
        code, text = (40018, "receiver online") if links else (40019, "receiver offline")
        await link.send(self._encode(Told("System", uid, code, "", text, message_id, now)))

    async def _to_all(self, link: Link, uid: str, said: Said) -> None:
        payload = self._encode(Told(uid, "ALL", 40011, said.content, "message received"))
        others = [links for user, links in self._users.items() if user != uid]
        for other in [one for links in others for one in links]:
            await other.send(payload)
        await link.send(self._encode(Told("System", uid, 40009, str(len(others)), "sent")))


async def ping(request: web.Request) -> web.Response:
    """Say that the relay is up."""
    return web.json_response({"status": 200, "data": None, "msg": "ok", "error": ""})


async def register(request: web.Request) -> web.Response:
    """Register anybody: nothing is kept."""
    return web.json_response({"status": 41001, "data": None, "msg": "registered", "error": ""})


async def login(request: web.Request) -> web.Response:
    """Log anybody in, with a token that nobody asks for."""
    data = {"user_name": (await request.json())["user_name"], "token": "x", "expires_in": 1}
    return web.json_response({"status": 41003, "data": data, "msg": "logged in", "error": ""})


def main() -> None:
    """Serve on loopback until SIGTERM or SIGINT; say in one line when ready."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--gather", action="store_true", help="one write per socket per loop turn")
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
