"""Between a browser and a server: a door that holds sockets back, and a network that is slow and loses them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from tests.harness import ServerHandle


class Door(NamedTuple):
    """The server as it is seen from before the door, and what opens that."""

    outside: ServerHandle
    opened: asyncio.Event


@asynccontextmanager
async def door(server: ServerHandle) -> AsyncIterator[Door]:
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
        yield Door(ServerHandle(server.host, listener.sockets[0].getsockname()[1]), opened)


@asynccontextmanager
async def bad_network(server: ServerHandle, delay: float, cut_after: int) -> AsyncIterator[ServerHandle]:
    """Everything takes `delay` seconds in either direction, and each of the first connections is cut after so many
    bytes from the browser, twice as many each time."""
    limits = [cut_after * 2**times for times in range(4)]

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limit: float) -> None:
        while limit > 0 and (data := await reader.read(1024)):
            await asyncio.sleep(delay)
            limit -= len(data)
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(server.host, server.port)
        first = await reader.read(65536)
        back.write(first)
        limit = limits.pop(0) if limits and b"Upgrade: websocket" in first else float("inf")
        try:
            await asyncio.gather(pass_on(reader, back, limit), pass_on(there, writer, float("inf")))
        except OSError:
            pass  # cut, or one of them has left
        finally:
            back.close()
            writer.close()

    listener = await asyncio.start_server(serve, server.host, 0)
    async with listener:
        yield ServerHandle(server.host, listener.sockets[0].getsockname()[1])


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
