"""A WebSocket client that may break the protocol: it sends any bytes, reads only on request and answers no ping.

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
from tests import api_schemas
from tests.harness import TIMEOUT, ChatClient, Frame, ServerHandle, wait_until

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
# The number of polls, 10 ms apart, without progress after which the peer counts as stalled.
STALL_POLLS = 15


# The maximum number of bytes in the kernel's buffers on the way to a stopped reader with a small `buffer`.
MAX_KERNEL_BYTES = 4 * KERNEL_BUFFER


class ConnectionCut(Exception):  # noqa: N818 - an event, not an error of the test
    """The connection ended without a close frame."""


class RawFrame(NamedTuple):
    """A received frame."""

    opcode: int
    payload: bytes
    fin: bool
    rsv: int


def frame(
    payload: bytes, opcode: int = TEXT, *, fin: bool = True, rsv: int = 0, mask: bytes = b"\x01\x02\x03\x04"
) -> bytes:
    """Return the bytes of a frame. An empty `mask` makes an unmasked frame, which a client must not send."""
    first = fin << 7 | rsv << 4 | opcode
    return struct.pack("!B", first) + _length(len(payload), bool(mask)) + mask + _masked(payload, mask)


def header(size: int, opcode: int = TEXT) -> bytes:
    """Return only the header of a frame that announces `size` bytes."""
    return struct.pack("!BBQ", 0x80 | opcode, 0x80 | 127, size) + b"\0\0\0\0"


def request(op_type: int, content: str = "", **keys: Any) -> bytes:
    """Return the bytes of a request in one frame."""
    return frame(json.dumps({"op_type": op_type, "content": content, **keys}).encode())


def close(code: int, reason: bytes = b"") -> bytes:
    """Return the bytes of a close frame."""
    return frame(struct.pack("!H", code) + reason, CLOSE)


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


class RawSocket:
    """A socket of `user`. Its reading methods raise ConnectionCut if the connection ends without a close frame."""

    def __init__(self, sock: socket.socket, user: str) -> None:
        self.sock = sock
        self.user = user
        self.response = b""  # the head of the HTTP response to the upgrade
        self._received = bytearray()
        self._loop = asyncio.get_running_loop()

    # --- sending

    async def write(self, data: bytes) -> None:
        """Send bytes; wait until the kernel accepts them."""
        async with asyncio.timeout(TIMEOUT):
            await self._loop.sock_sendall(self.sock, data)

    async def put(self, op_type: int, content: str = "", **keys: Any) -> None:
        """Send a request; do not wait for the answer."""
        await self.write(request(op_type, content, **keys))

    async def flood(self, data: bytes, max_bytes: int) -> int:
        """Send `data` repeatedly until the kernel accepts no more (STALL_POLLS polls) or has accepted `max_bytes`.

        Returns the number of accepted bytes.
        """
        sent_bytes = idle_polls = 0
        view = memoryview(data)
        while idle_polls <= STALL_POLLS and sent_bytes < max_bytes:
            try:
                sent = self.sock.send(view)
                sent_bytes, idle_polls = sent_bytes + sent, 0
                view = view[sent:] or memoryview(data)
                await asyncio.sleep(0)
            except BlockingIOError:
                idle_polls += 1
                await asyncio.sleep(0.01)
        return sent_bytes

    def half_close(self) -> None:
        """Send a FIN; keep the reading side open."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """End the connection with an RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def vanish(self) -> None:
        """Close the connection as the kernel does when a process is killed."""
        self.sock.close()

    # --- receiving

    async def status(self) -> int:
        """Read the head of an HTTP response; return the status."""
        while b"\r\n\r\n" not in self._received:
            await self.read_bytes()
        response, _, self._received = self._received.partition(b"\r\n\r\n")
        self.response = bytes(response)
        return int(response.split(b" ")[1])

    async def read_bytes(self, max_bytes: int = 65536) -> int:
        """Read at most `max_bytes` from the kernel; return the number of bytes read."""
        async with asyncio.timeout(TIMEOUT):
            try:
                data = await self._loop.sock_recv(self.sock, max_bytes)
            except ConnectionError as error:
                raise ConnectionCut(str(error)) from None
        if not data:
            raise ConnectionCut("FIN")
        self._received += data
        return len(data)

    async def read(self) -> RawFrame:
        """Return the next frame of any kind."""
        while (read := self._next_frame()) is None:
            await self.read_bytes()
        return read

    async def receive(self) -> Frame:
        """Return the next text frame. Skip pings and pongs; fail on a close frame."""
        while (read := await self.read()).opcode != TEXT:
            assert read.opcode in (PING, PONG), read
        return self.json(read)

    @staticmethod
    def json(read: RawFrame) -> Frame:
        """Return the JSON object in a text frame."""
        text = read.payload.decode()
        api_schemas.check_frame(text)
        decoded: Frame = json.loads(text)
        return decoded

    async def pong(self) -> bytes:
        """Return the payload of the next pong. Skip other frames; fail on a close frame."""
        while (read := await self.read()).opcode != PONG:
            assert read.opcode != CLOSE, read
        return read.payload

    async def answer(self) -> Frame:
        """Return the next answer of the server. Skip messages."""
        while (received := await self.receive())["from"] != "System":
            pass
        return received

    async def ask(self, op_type: int, content: str = "", **keys: Any) -> Frame:
        """Send a request; return only the server's answer."""
        await self.put(op_type, content, **keys)
        return await self.answer()

    async def wait_closed(self) -> int | None:
        """Read up to the close frame; return its code, or None if the connection ends without one."""
        try:
            while (read := await self.read()).opcode != CLOSE:
                pass
        except ConnectionCut:
            return None
        return int.from_bytes(read.payload[:2], "big")

    async def read_to_end(self) -> list[Frame]:
        """Read to the end of the connection; return the received text frames."""
        frames: list[Frame] = []
        try:
            while True:
                if (read := await self.read()).opcode == TEXT:
                    frames.append(self.json(read))
        except ConnectionCut:
            return frames

    async def wait_stalled(self) -> None:
        """Wait, without reading, until unread data exists and its amount no longer grows."""
        previous = idle_polls = 0

        def is_stalled() -> bool:
            nonlocal previous, idle_polls
            (waiting,) = struct.unpack("i", fcntl.ioctl(self.sock.fileno(), termios.FIONREAD, b"\0\0\0\0"))
            idle_polls = idle_polls + 1 if waiting and waiting == previous else 0
            previous = waiting
            return idle_polls > STALL_POLLS

        await wait_until(is_stalled)

    def _next_frame(self) -> RawFrame | None:
        got = self._received
        if len(got) < 2:
            return None
        assert not got[1] & 0x80, "the server sent a masked frame"
        size, start = got[1], 2
        if size == 126:
            size, start = int.from_bytes(got[2:4], "big"), 4
        elif size == 127:
            size, start = int.from_bytes(got[2:10], "big"), 10
        if len(got) < start or len(got) < start + size:
            return None
        read = RawFrame(got[0] & 15, bytes(got[start : start + size]), bool(got[0] & 0x80), got[0] >> 4 & 7)
        del got[: start + size]
        return read


async def connect(server: ServerHandle, *, buffer: int = 0) -> socket.socket:
    """Open a TCP connection. `buffer` is the approximate receive buffer of the kernel in bytes (0: the default)."""
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
    server: ServerHandle, user: str, to: str = "", *, token: str | None = None, extensions: str = "", sync: bool = False
) -> bytes:
    """Return the bytes of the upgrade request."""
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
    server: ServerHandle,
    user: str,
    to: str = "",
    *,
    buffer: int = 0,
    token: str | None = None,
    extensions: str = "",
    early: bytes = b"",
) -> AsyncIterator[RawSocket]:
    """Open a socket of `user` and read the greeting (40003). `early` is sent together with the upgrade."""
    sock = await connect(server, buffer=buffer)
    try:
        raw = RawSocket(sock, user)
        await raw.write(upgrade(server, user, to, token=token, extensions=extensions) + early)
        assert await raw.status() == 101, raw.response
        greeting = await raw.receive()
        assert greeting["op_type"] == 40003, greeting
        yield raw
    finally:
        sock.close()


async def store_messages(server: ServerHandle, sender: str, receiver: str, count: int, text: str = "x" * 16000) -> None:
    """Let `sender` send `count` messages m0, m1, ... to `receiver`. The contact limit must not apply to them."""
    async with chat(server, sender, receiver) as raw:
        for start in range(0, count, 50):
            part = range(start, min(start + 50, count))
            await raw.write(b"".join(request(1, f"m{n}\n{text}") for n in part))
            assert [(await raw.answer()).get("id") for n in part] == [f"m{n}" for n in part]


async def wait_offline(witness: ChatClient) -> None:
    """Wait until the server reports the peer of `witness` as offline. The contact limit must not apply to them."""

    async def offline() -> bool:
        return bool((await witness.send("are you there?"))["op_type"] == 40019)

    await wait_until(offline)
