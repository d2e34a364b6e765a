"""A door in front of a server: requests pass, and the upgrade of a socket waits until it is opened."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from tests.harness import Server


class Door(NamedTuple):
    """The server as it is seen from before the door, and what opens that."""

    outside: Server
    opened: asyncio.Event


@asynccontextmanager
async def door(server: Server) -> AsyncIterator[Door]:
    """A closed door."""
    opened = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(server.host, server.port)
        try:
            await asyncio.gather(carry(reader, back, opened), carry(there, writer))
        except OSError:
            pass  # one of them has left
        finally:
            back.close()
            writer.close()

    listener = await asyncio.start_server(serve, server.host, 0)
    async with listener:
        yield Door(Server(server.host, listener.sockets[0].getsockname()[1]), opened)


async def carry(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, opened: asyncio.Event | None = None
) -> None:
    """Write what is read, up to the end; an upgrade when it is `opened`."""
    while data := await reader.read(65536):
        if opened and b"Upgrade: websocket" in data:
            await opened.wait()
        writer.write(data)
        await writer.drain()
    raise ConnectionResetError  # the other direction ends with this one
