"""A WebSocket client without manners: it sends the bytes it is told, reads only when asked, and answers no ping.

async with raw.chat(server, "1", to="2") as one:
    await one.write(raw.frame(b"\\xff", raw.BINARY))
    assert await one.closed() == 1003
"""

import asyncio
import base64
import fcntl
import json
import os
import socket
import struct
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from chat_server.api.runner import KERNEL_BUFFER
from tests import described
from tests.harness import PATIENCE, Chat, Frame, Server, until

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
# How often nothing may move before a peer is said to have stopped; looked at every 10 ms.
STILL = 15


# At most so many bytes can be on their way to a reader with a small `buffer` that has stopped.
HELD_BY_KERNEL = 4 * KERNEL_BUFFER


class Cut(Exception):  # noqa: N818 - what happened, not an error of ours
    """The connection ended without a close frame."""


class Read(NamedTuple):
    """A frame that was read."""

    opcode: int
    payload: bytes
    fin: bool
    rsv: int


def frame(
    payload: bytes, opcode: int = TEXT, *, fin: bool = True, rsv: int = 0, mask: bytes = b"\x01\x02\x03\x04"
) -> bytes:
    """The bytes of a frame; `mask` empty: one that bears none, as no client may send it."""
    first = fin << 7 | rsv << 4 | opcode
    return struct.pack("!B", first) + _length(len(payload), bool(mask)) + mask + _masked(payload, mask)


def header(size: int, opcode: int = TEXT) -> bytes:
    """Only the beginning of a frame that announces `size` bytes."""
    return struct.pack("!BBQ", 0x80 | opcode, 0x80 | 127, size) + b"\0\0\0\0"


def request(op_type: int, content: str = "", **keys: Any) -> bytes:
    """The bytes of a request, in one frame."""
    return frame(json.dumps({"op_type": op_type, "content": content, **keys}).encode())


def close(code: int, why: bytes = b"") -> bytes:
    """The bytes of a close frame."""
    return frame(struct.pack("!H", code) + why, CLOSE)


def _length(size: int, masked: bool) -> bytes:
    bit = masked << 7
    if size < 126:
        return struct.pack("!B", bit | size)
    if size < 65536:
        return struct.pack("!BH", bit | 126, size)
    return struct.pack("!BQ", bit | 127, size)


def _masked(payload: bytes, mask: bytes) -> bytes:
    if not mask:
        return payload
    key = (mask * (len(payload) // 4 + 1))[: len(payload)]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")).to_bytes(len(payload), "big")


class Raw:
    """A socket of `user`. Raises Cut where the connection ended without a close frame."""

    def __init__(self, sock: socket.socket, user: str) -> None:
        self.sock = sock
        self.user = user
        self.response = b""  # the head of the one to the upgrade
        self._got = bytearray()
        self._loop = asyncio.get_running_loop()

    # --- out

    async def write(self, data: bytes) -> None:
        """Send bytes; waits until the kernel has taken them."""
        async with asyncio.timeout(PATIENCE):
            await self._loop.sock_sendall(self.sock, data)

    async def put(self, op_type: int, content: str = "", **keys: Any) -> None:
        """Send a request and wait for nothing."""
        await self.write(request(op_type, content, **keys))

    async def flood(self, data: bytes, most: int) -> int:
        """Send `data` again and again until the kernel has not taken any for a while, or it took `most` bytes.

        Returns how many it took.
        """
        taken = still = 0
        view = memoryview(data)
        while still <= STILL and taken < most:
            try:
                sent = self.sock.send(view)
                taken, still = taken + sent, 0
                view = view[sent:] or memoryview(data)
                await asyncio.sleep(0)
            except BlockingIOError:
                still += 1
                await asyncio.sleep(0.01)
        return taken

    def half_close(self) -> None:
        """Send a FIN; go on reading."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """End the connection with an RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def vanish(self) -> None:
        """End the connection as the kernel does for a process that was killed."""
        self.sock.close()

    # --- in

    async def status(self) -> int:
        """Read the head of an HTTP response; its status."""
        while b"\r\n\r\n" not in self._got:
            await self.read_bytes()
        response, _, self._got = self._got.partition(b"\r\n\r\n")
        self.response = bytes(response)
        return int(response.split(b" ")[1])

    async def read_bytes(self, most: int = 65536) -> int:
        """Take at most so many bytes from the kernel; returns how many came."""
        async with asyncio.timeout(PATIENCE):
            try:
                data = await self._loop.sock_recv(self.sock, most)
            except ConnectionError as error:
                raise Cut(str(error)) from None
        if not data:
            raise Cut("FIN")
        self._got += data
        return len(data)

    async def read(self) -> Read:
        """The next frame, of whatever kind."""
        while (read := self._parsed()) is None:
            await self.read_bytes()
        return read

    async def receive(self) -> Frame:
        """The next text frame; others before it are passed over, a close frame is an error."""
        while (read := await self.read()).opcode != TEXT:
            assert read.opcode in (PING, PONG), read
        return self.json(read)

    @staticmethod
    def json(read: Read) -> Frame:
        """What a text frame says."""
        text = read.payload.decode()
        described.frame(text)
        found: Frame = json.loads(text)
        return found

    async def pong(self) -> bytes:
        """What the next pong carries; others before it are passed over."""
        while (read := await self.read()).opcode != PONG:
            assert read.opcode != CLOSE, read
        return read.payload

    async def answer(self) -> Frame:
        """The next answer of the server's; what is no answer is passed over."""
        while (found := await self.receive())["from"] != "System":
            pass
        return found

    async def ask(self, op_type: int, content: str = "", **keys: Any) -> Frame:
        """Send a request; the server's answer alone."""
        await self.put(op_type, content, **keys)
        return await self.answer()

    async def closed(self) -> int | None:
        """Read to the close frame; its code, None if the connection was cut without one."""
        try:
            while (read := await self.read()).opcode != CLOSE:
                pass
        except Cut:
            return None
        return int.from_bytes(read.payload[:2], "big")

    async def rest(self) -> list[Frame]:
        """Read to the end of the connection; the text frames that came."""
        found: list[Frame] = []
        try:
            while True:
                if (read := await self.read()).opcode == TEXT:
                    found.append(self.json(read))
        except Cut:
            return found

    async def stalled(self) -> None:
        """Wait, reading nothing, until something waits to be read and no more is coming."""
        seen = still = 0

        def is_still() -> bool:
            nonlocal seen, still
            (waiting,) = struct.unpack("i", fcntl.ioctl(self.sock.fileno(), termios.FIONREAD, b"\0\0\0\0"))
            still = still + 1 if waiting and waiting == seen else 0
            seen = waiting
            return still > STILL

        await until(is_still)

    def _parsed(self) -> Read | None:
        got = self._got
        if len(got) < 2:
            return None
        assert not got[1] & 0x80, "a server's frame bears no mask"
        size, start = got[1], 2
        if size == 126:
            size, start = int.from_bytes(got[2:4], "big"), 4
        elif size == 127:
            size, start = int.from_bytes(got[2:10], "big"), 10
        if len(got) < start or len(got) < start + size:
            return None
        read = Read(got[0] & 15, bytes(got[start : start + size]), bool(got[0] & 0x80), got[0] >> 4 & 7)
        del got[: start + size]
        return read


async def connect(server: Server, *, buffer: int = 0) -> socket.socket:
    """A TCP connection; `buffer`: the kernel holds about so many bytes for a reader that does not read."""
    sock = socket.socket()
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    try:
        await asyncio.get_running_loop().sock_connect(sock, (server.host, server.port))
    except BaseException:
        sock.close()
        raise
    return sock


def upgrade(
    server: Server, user: str, to: str = "", *, token: str | None = None, extensions: str = "", sync: bool = False
) -> bytes:
    """The request for a socket."""
    path = server.socket_url(user, to, sync=sync).partition(f":{server.port}")[2]
    lines = [
        f"GET {path} HTTP/1.1",
        f"Host: {server.host}:{server.port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
        f"Authorization: Bearer {token or server.tokens[user]}",
        *([f"Sec-WebSocket-Extensions: {extensions}"] if extensions else []),
    ]
    return "\r\n".join([*lines, "", ""]).encode()


@asynccontextmanager
async def chat(
    server: Server,
    user: str,
    to: str = "",
    *,
    buffer: int = 0,
    token: str | None = None,
    extensions: str = "",
    early: bytes = b"",
) -> AsyncIterator[Raw]:
    """An open socket of `user`, greeted; `early` is sent together with the upgrade."""
    sock = await connect(server, buffer=buffer)
    try:
        raw = Raw(sock, user)
        await raw.write(upgrade(server, user, to, token=token, extensions=extensions) + early)
        assert await raw.status() == 101, raw.response
        greeting = await raw.receive()
        assert greeting["op_type"] == 40003, greeting
        yield raw
    finally:
        sock.close()


async def store(server: Server, sender: str, receiver: str, count: int, text: str = "x" * 16000) -> None:
    """Have `sender` send m0, m1, ... to `receiver`; there must be no limit between them."""
    async with chat(server, sender, receiver) as raw:
        for start in range(0, count, 50):
            part = range(start, min(start + 50, count))
            await raw.write(b"".join(request(1, f"m{n}\n{text}") for n in part))
            assert [(await raw.answer()).get("id") for n in part] == [f"m{n}" for n in part]


async def gone(witness: Chat) -> None:
    """Wait until the server knows that the peer of `witness` has no socket; there must be no limit between them."""

    async def offline() -> bool:
        return bool((await witness.send("are you there?"))["op_type"] == 40019)

    await until(offline)
