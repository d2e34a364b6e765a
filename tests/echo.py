"""An echo server that uses the connection code of chat_server, to test the WebSocket protocol alone.

It accepts binary frames and long messages, because the test suite sends them. Everything else is as in the server.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from aiohttp import web

from chat_server.api.connection import Connection, Events, WebSocket
from chat_server.api.envelope import Envelope
from chat_server.api.runner import listening
from chat_server.conf import SocketSettings
from chat_server.service.frames import Request
from chat_server.utils.websocket import TEXT, frame

BINARY = 0x82
MAX_MESSAGE_BYTES = 1 << 25  # the longest messages of the suite have 16 MiB


class Echo:
    """Sends everything back; the data of a frame travels as the content of a Request."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def decode(self, data: str | bytes) -> Request:
        """The data, as latin-1 if it is bytes, which `to` says."""
        if isinstance(data, str):
            return Request(op_type=0, content=data)
        return Request(op_type=0, content=data.decode("latin-1"), to="binary")

    def add(self, connection: Connection) -> None:
        """Send back the next frame of a connection."""
        task = asyncio.create_task(self._send_back(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send_back(self, connection: Connection) -> None:
        [request], _ = connection.inbox.take()
        content = request.content
        connection.send(frame(BINARY, content.encode("latin-1")) if request.to else frame(TEXT, content.encode()))
        with suppress(ConnectionError):
            await connection.drain()
        if connection.inbox.done():
            self.add(connection)


@asynccontextmanager
async def echo_server(*, compress: bool = True) -> AsyncIterator[str]:
    """Run an echo server on a free port; yields its URL."""
    echo = Echo()
    events = Events(echo.add, lambda *_: None, lambda _: None, lambda: None)
    config = SocketSettings(outbox_bytes=4 * MAX_MESSAGE_BYTES, compress=compress)

    async def upgrade(request: web.Request) -> web.StreamResponse:
        ws = WebSocket(autoclose=False, autoping=False, compress=compress, max_msg_size=MAX_MESSAGE_BYTES)
        writer = await ws.prepare(request)
        if request.transport:
            connection = Connection(
                events,
                config,
                ws,
                request.transport,
                writer.drain,
                request.protocol.close,
                user="echo",
                decode=echo.decode,
                binary=True,
            )
            await connection.serve()
            connection.connection_lost()
        return ws

    application = web.Application()
    application.add_routes([web.get("/", upgrade)])
    async with listening(application, Envelope("en"), "127.0.0.1", 0, 75) as (host, port):
        yield f"ws://{host}:{port}/"
