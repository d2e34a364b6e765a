"""An echo on the very connection code of the server, for tests of the WebSocket protocol alone.

Binary frames and long messages are let through, as those tests want them; all else is as in the server.
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
LARGEST = 1 << 25  # the suite's longest messages have 16 MiB


class Echo:
    """The Owner of connections that say everything back; a frame's data travels as the content of a Request."""

    def __init__(self) -> None:
        self._workers: set[asyncio.Task[None]] = set()

    def decode(self, data: str | bytes) -> Request | Refused:
        """The data, as latin-1 where it is bytes: `to` says so."""
        if isinstance(data, str):
            return Request(op_type=0, content=data)
        return Request(op_type=0, content=data.decode("latin-1"), to="binary")

    async def work(self, connection: Connection, request: Request) -> None:
        """Say it back."""
        content = request.content
        connection.send(frame(BINARY, content.encode("latin-1")) if request.to else frame(TEXT, content.encode()))
        await connection.room()

    async def store(self, connection: Connection, run: Sequence[Request]) -> Callable[[], None]:
        """Never: nothing is a send."""
        raise NotImplementedError

    def refuse(self, connection: Connection, refused: Refused) -> None:
        """Never: everything is decoded."""

    def proven(self, connection: Connection, receipts: Sequence[Receipt]) -> None:
        """Never: nothing is delivered."""

    def closing(self, connection: Connection) -> None:
        """Nothing to do: nobody else knows of it."""

    def too_slow(self) -> None:
        """Nothing is counted."""

    def working(self, task: asyncio.Task[None]) -> None:
        """Keep it until it is done."""
        self._workers.add(task)
        task.add_done_callback(self._workers.discard)


@asynccontextmanager
async def echoing(*, compress: bool = True) -> AsyncIterator[str]:
    """An echo server on a free port; yields its URL."""
    echo = Echo()
    config = SocketSettings(outbox_bytes=4 * LARGEST, compress=compress)

    async def upgrade(request: web.Request) -> web.StreamResponse:
        ws = WebSocket(autoclose=False, autoping=False, compress=compress, max_msg_size=LARGEST)
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
