"""A WebSocket client for `bench disruption` that sends arbitrary bytes and reads only on request."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
import struct
from urllib.parse import urlsplit

from bench.client import TIMEOUT, BenchError

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
ZERO_MASK = b"\0\0\0\0"  # a mask that changes nothing
ConnectionEnded = (ConnectionError, asyncio.IncompleteReadError)  # raised once the server has closed the connection


def frame(payload: bytes, opcode: int = TEXT, *, fin: bool = True) -> bytes:
    """Return the bytes of a masked frame (RFC 6455, 5.2)."""
    size = len(payload)
    if size < 126:
        length = struct.pack("!B", 0x80 | size)
    elif size < 65536:
        length = struct.pack("!BH", 0x80 | 126, size)
    else:
        length = struct.pack("!BQ", 0x80 | 127, size)
    return bytes([fin << 7 | opcode]) + length + ZERO_MASK + payload


def request(op_type: int, content: str = "", to: str = "") -> bytes:
    """Return the bytes of a request in one frame."""
    return frame(json.dumps({"op_type": op_type, "to": to, "content": content}).encode())


class RawClient:
    """An open WebSocket connection. Data that it does not read stays in the kernel, and then at the server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, url: str, uid: str, token: str, *, buffer: int = 0) -> RawClient:
        """Open a socket of `uid` to the server `url`; `buffer` limits the kernel's receive buffer, in bytes."""
        address = urlsplit(url)
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        try:
            async with asyncio.timeout(TIMEOUT):
                await asyncio.get_running_loop().sock_connect(sock, (address.hostname, address.port))
                client = cls(*await asyncio.open_connection(sock=sock, limit=buffer or 65536))
        except BaseException:
            sock.close()
            raise
        try:
            async with asyncio.timeout(TIMEOUT):
                await client._handshake(address.netloc, uid, token)
        except BaseException:
            client.reset()
            raise
        return client

    async def _handshake(self, host: str, uid: str, token: str) -> None:
        lines = [
            f"GET /chat/test?uid={uid} HTTP/1.1",
            f"Host: {host}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
            f"Authorization: Bearer {token}",
        ]
        await self.write("\r\n".join([*lines, "", ""]).encode())
        response = await self._reader.readuntil(b"\r\n\r\n")
        if not response.startswith(b"HTTP/1.1 101 "):
            raise BenchError(f"no socket for {uid}: {response!r}")
        await self.read()  # 40003

    async def write(self, data: bytes) -> None:
        """Send bytes. Waits while the server does not read."""
        self._writer.write(data)
        await self._writer.drain()

    async def read(self) -> tuple[int, bytes]:
        """Return the opcode and payload of the next frame. Raises one of ConnectionEnded."""
        first, size = await self._reader.readexactly(2)
        if size == 126:
            (size,) = struct.unpack("!H", await self._reader.readexactly(2))
        elif size == 127:
            (size,) = struct.unpack("!Q", await self._reader.readexactly(8))
        return first & 15, await self._reader.readexactly(size)

    async def read_answer(self) -> bytes:
        """Return the next frame from System. Answers pings and drops frames from users.

        Raises ConnectionError with the close code if the server closes the socket.
        """
        while True:
            opcode, payload = await self.read()
            if opcode == PING:
                self._writer.write(frame(payload, PONG))  # without drain: reading must not depend on writing
            elif opcode == CLOSE:
                raise ConnectionAbortedError(f"closed with {int.from_bytes(payload[:2], 'big')}")
            elif b'"from":"System"' in payload[:200]:
                return payload

    def reset(self) -> None:
        """End the connection with a TCP reset, which discards unsent data."""
        sock = self._writer.get_extra_info("socket")
        if sock is not None and not self._writer.is_closing():
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()
