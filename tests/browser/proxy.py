"""Proxies between a browser and a server: one holds back WebSocket upgrades, one is slow and drops connections."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

from tests.harness import ServerHandle

# Copies bytes in both directions: client reader and writer, then server reader and writer.
Relay = Callable[
    [asyncio.StreamReader, asyncio.StreamWriter, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]
]


class HoldingProxy(NamedTuple):
    """The server behind the proxy, and the event that lets upgrades pass."""

    server: ServerHandle
    upgrades_allowed: asyncio.Event


@asynccontextmanager
async def holding_proxy(server: ServerHandle) -> AsyncIterator[HoldingProxy]:
    """Run a proxy that holds back WebSocket upgrades until `upgrades_allowed` is set."""
    allowed = asyncio.Event()

    async def relay(
        client: asyncio.StreamReader,
        to_client: asyncio.StreamWriter,
        upstream: asyncio.StreamReader,
        to_upstream: asyncio.StreamWriter,
    ) -> None:
        await asyncio.gather(_copy(client, to_upstream, allowed), _copy(upstream, to_client))

    async with _proxy(server, relay) as proxied:
        yield HoldingProxy(proxied, allowed)


@asynccontextmanager
async def bad_network(server: ServerHandle, delay: float, cut_after: int) -> AsyncIterator[ServerHandle]:
    """Run a proxy that delays all data by `delay` seconds and drops the first four WebSocket connections.

    The first one is dropped after `cut_after` bytes from the browser, each following one after twice as many.
    """
    limits = [cut_after * 2**times for times in range(4)]

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limit: float) -> None:
        while limit > 0 and (data := await reader.read(1024)):
            await asyncio.sleep(delay)
            limit -= len(data)
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError

    async def relay(
        client: asyncio.StreamReader,
        to_client: asyncio.StreamWriter,
        upstream: asyncio.StreamReader,
        to_upstream: asyncio.StreamWriter,
    ) -> None:
        first = await client.read(65536)
        to_upstream.write(first)
        limit = limits.pop(0) if limits and b"Upgrade: websocket" in first else float("inf")
        await asyncio.gather(copy(client, to_upstream, limit), copy(upstream, to_client, float("inf")))

    async with _proxy(server, relay) as proxied:
        yield proxied


@asynccontextmanager
async def _proxy(server: ServerHandle, relay: Relay) -> AsyncIterator[ServerHandle]:
    """Listen on a free port and run `relay` for each connection, until one direction ends."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream, to_upstream = await asyncio.open_connection(server.host, server.port)
        try:
            await relay(reader, writer, upstream, to_upstream)
        except OSError:
            pass  # the proxy or a peer has closed the connection
        finally:
            to_upstream.close()
            writer.close()

    listener = await asyncio.start_server(serve, server.host, 0)
    async with listener:
        yield ServerHandle(server.host, listener.sockets[0].getsockname()[1])


async def _copy(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, upgrades_allowed: asyncio.Event | None = None
) -> None:
    """Copy data until the connection ends; hold back an upgrade until `upgrades_allowed` is set."""
    while data := await reader.read(65536):
        if upgrades_allowed and b"Upgrade: websocket" in data:
            await upgrades_allowed.wait()
        writer.write(data)
        await writer.drain()
    raise ConnectionResetError  # ends the other direction, too
