"""An echo server that uses the connection code of chat_server, to test the WebSocket protocol alone.

It accepts binary frames and long messages, because the test suite sends them. Everything else is as in the server.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from aiohttp import web

from chat_server.api.connection import Connection, WebSocket
from chat_server.api.envelope import Envelope
from chat_server.api.runner import listening
from chat_server.conf import SocketSettings
from chat_server.service.frames import Request
from chat_server.service.registry import Receipt
from chat_server.status import Refused
from chat_server.utils.websocket import TEXT, frame

BINARY = 0x82
MAX_MESSAGE_BYTES = 1 << 25  # the longest messages of the suite have 16 MiB


class Echo:
    """The Owner of connections that send back every frame. The data of a frame becomes the content of a Request."""

    def __init__(self) -> None:
        self._workers: set[asyncio.Task[None]] = set()

    def decode(self, data: str | bytes) -> Request | Refused:
        """Return a Request with the data; binary data is decoded as latin-1 and marked in `to`."""
        if isinstance(data, str):
            return Request(op_type=0, content=data)
        return Request(op_type=0, content=data.decode("latin-1"), to="binary")

    async def work(self, connection: Connection, request: Request) -> None:
        """Send the data back."""
        content = request.content
        connection.send(frame(BINARY, content.encode("latin-1")) if request.to else frame(TEXT, content.encode()))
        await connection.room()

    async def store(self, connection: Connection, run: Sequence[Request]) -> Callable[[], None]:
        """Not called: no request is a send."""
        raise NotImplementedError

    def refuse(self, connection: Connection, refused: Refused) -> None:
        """Not called: every frame is decoded."""

    def proven(self, connection: Connection, receipts: Sequence[Receipt]) -> None:
        """Not called: no message is delivered."""

    def closing(self, connection: Connection) -> None:
        """Do nothing: the connection is in no table."""

    def too_slow(self) -> None:
        """Do nothing: there are no metrics."""

    def working(self, task: asyncio.Task[None]) -> None:
        """Keep a reference to the task until it is done."""
        self._workers.add(task)
        task.add_done_callback(self._workers.discard)


@asynccontextmanager
async def echo_server(*, compress: bool = True) -> AsyncIterator[str]:
    """Run an echo server on a free port; yields its URL."""
    echo = Echo()
    config = SocketSettings(outbox_bytes=4 * MAX_MESSAGE_BYTES, compress=compress)

    async def upgrade(request: web.Request) -> web.StreamResponse:
        ws = WebSocket(autoclose=False, autoping=False, compress=compress, max_msg_size=MAX_MESSAGE_BYTES)
        writer = await ws.prepare(request)
        if request.transport:
            connection = Connection(
                echo,
                config,
                ws,
                request.transport,
                writer.drain,
                request.protocol.close,
                user="echo",
                peer="",
                session=b"",
                sync=False,
                address="",
                bucket=None,
                binary=True,
            )
            await connection.serve()
            connection.gone()
        return ws

    application = web.Application()
    application.add_routes([web.get("/", upgrade)])
    async with listening(application, Envelope("en"), "127.0.0.1", 0, 75) as (host, port):
        yield f"ws://{host}:{port}/"
