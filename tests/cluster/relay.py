"""TCP relays on the event loop of a test: a load balancer before servers, and a faulty network before a database."""

import asyncio
import re
import socket
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from enum import Enum, auto
from typing import Self

# Bytes in one buffer of a relay. Small buffers pass the backpressure of a reader on to the writer.
BUFFER = 65_536
LINGER_RESET = struct.pack("ii", 1, 0)  # closing sends an RST
SUBSCRIBE = re.compile(rb"\r\n[PS]?SUBSCRIBE\r\n\$\d+\r\n([^\r]+)", re.IGNORECASE)


class Direction(Enum):
    """The direction of data through a relay."""

    REQUESTS = auto()  # from the client
    REPLIES = auto()  # to the client


class RelayedConnection:
    """One client's connection through a relay, and the connection to its target."""

    def __init__(self, client: asyncio.StreamWriter, target: asyncio.StreamWriter) -> None:
        self._ends = {Direction.REQUESTS: target, Direction.REPLIES: client}
        self.client_port: int = client.get_extra_info("peername")[1]
        self.target_port: int = target.get_extra_info("peername")[1]
        self.channel = b""  # of Redis, to which the client subscribed first
        self.is_discarding = False  # both directions
        self.replies_read = asyncio.Event()
        self.replies_read.set()

    async def write(self, direction: Direction, data: bytes) -> None:
        """Write data in this direction; without data, end it with a FIN."""
        writer = self._ends[direction]
        if data:
            writer.write(data)
            await writer.drain()
        else:
            writer.write_eof()

    def cut(self) -> None:
        """End both connections with an RST."""
        for writer in self._ends.values():
            _reset(writer)


def _reset(writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
    writer.transport.abort()


class TcpRelay:
    """Relays each connection to the first of `candidate_ports` that accepts it. A FIN stays a FIN, an RST an RST."""

    def __init__(self, port: int = 0) -> None:
        self.port = port
        self.links: set[RelayedConnection] = set()
        self._relaying: set[asyncio.Task[None]] = set()

    def candidate_ports(self) -> Sequence[int]:
        """Return ports of 127.0.0.1 to try, in this order. If none accepts, the client's connection gets an RST."""
        raise NotImplementedError

    async def forward(self, link: RelayedConnection, direction: Direction, data: bytes) -> None:
        """Forward data; empty data is the end of this direction."""
        await link.write(direction, data)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Listen on `port`, or on a free one, which is then in `port`."""
        listener = await asyncio.start_server(self._accept, "127.0.0.1", self.port, limit=BUFFER)
        self.port = listener.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            listener.close()
            self.cut(self.links)
            for task in self._relaying:
                task.cancel()
            await asyncio.gather(*self._relaying, return_exceptions=True)

    def cut(self, links: Sequence[RelayedConnection] | set[RelayedConnection]) -> None:
        """End connections with an RST."""
        for link in list(links):
            link.cut()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._relay(reader, writer))
        self._relaying.add(task)

        def done(task: asyncio.Task[None]) -> None:
            self._relaying.discard(task)
            if task.cancelled():  # perhaps before there was a link that could be cut
                _reset(writer)

        task.add_done_callback(done)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for port in self.candidate_ports():
            with suppress(OSError):
                target_reader, target = await asyncio.open_connection("127.0.0.1", port, limit=BUFFER)
                break
        else:
            _reset(writer)
            return
        link = RelayedConnection(writer, target)
        self.links.add(link)
        copies = [
            asyncio.create_task(self._copy(link, Direction.REQUESTS, reader)),
            asyncio.create_task(self._copy(link, Direction.REPLIES, target_reader)),
        ]
        try:
            for copied in asyncio.as_completed(copies):
                await copied
            for end in (writer, target):
                end.close()
        except OSError:
            link.cut()
        finally:
            self.links.discard(link)
            for copy in copies:
                copy.cancel()
            await asyncio.gather(*copies, return_exceptions=True)

    async def _copy(self, link: RelayedConnection, direction: Direction, reader: asyncio.StreamReader) -> None:
        while True:
            if direction is Direction.REPLIES:
                await link.replies_read.wait()
            data = await reader.read(BUFFER)
            await self.forward(link, direction, data)
            if not data:
                return


class Balancer(TcpRelay):
    """Sends each connection to the next of `ports`, or to the one after it if no process listens there.

    It has no health checks: a frozen process still gets connections. A test takes a process out by removing its port.
    """

    def __init__(self, ports: Sequence[int], port: int = 0) -> None:
        super().__init__(port)
        self.ports = list(ports)
        self._turn = 0

    def candidate_ports(self) -> Sequence[int]:
        first = self._turn % max(1, len(self.ports))
        self._turn += 1
        return self.ports[first:] + self.ports[:first]

    def target_port(self, client_port: int) -> int:
        """Return the port of the process to which the open connection of this client leads."""
        [found] = [link.target_port for link in self.links if link.client_port == client_port]
        return found


class FaultyNetwork(TcpRelay):
    """The network between one process and one database. `delay`: seconds by which each packet is late."""

    def __init__(self, target: Callable[[], int]) -> None:
        super().__init__()
        self.delay = 0.0
        self.is_refusing = False
        self._target = target
        self._held_text: bytes | None = None
        self._holding = asyncio.Event()
        self._released = asyncio.Event()

    def candidate_ports(self) -> Sequence[int]:
        return () if self.is_refusing else (self._target(),)

    async def forward(self, link: RelayedConnection, direction: Direction, data: bytes) -> None:
        if direction is Direction.REQUESTS:
            if not link.channel and (found := SUBSCRIBE.search(data)):
                link.channel = found[1]
            if self._held_text is not None and self._held_text in data:
                self._holding.set()
                await self._released.wait()
        if self.delay:
            await asyncio.sleep(self.delay)
        if data and link.is_discarding:
            return
        await link.write(direction, data)

    def redirect_to(self, port: int) -> None:
        """Forward new connections to this port; open ones stay."""
        self._target = lambda: port

    def subscriptions(self) -> list[RelayedConnection]:
        """Return the open connections that subscribed to a channel of Redis."""
        return [link for link in self.links if link.channel]

    @asynccontextmanager
    async def holding(self, text: bytes) -> AsyncIterator[asyncio.Event]:
        """Hold back requests that contain `text`, and what follows them on the same connection, until the end.

        The event is set when the first one is held.
        """
        self._held_text, self._holding, self._released = text, asyncio.Event(), asyncio.Event()
        try:
            yield self._holding
        finally:
            self._held_text = None
            self._released.set()

    @asynccontextmanager
    async def unread(self, links: Sequence[RelayedConnection]) -> AsyncIterator[None]:
        """Read no replies on these connections until the end, so that the database buffers them."""
        for link in links:
            link.replies_read.clear()
        try:
            yield
        finally:
            for link in links:
                link.replies_read.set()

    @asynccontextmanager
    async def half_open(self, links: Sequence[RelayedConnection]) -> AsyncIterator[None]:
        """Drop all data on these connections, without an error on either side. At the end, cut them."""
        for link in links:
            link.is_discarding = True
        try:
            yield
        finally:
            self.cut(links)

    @asynccontextmanager
    async def unreachable(self) -> AsyncIterator[None]:
        """Cut all connections, and refuse new ones until the end."""
        self.is_refusing = True
        self.cut(self.links)
        try:
            yield
        finally:
            self.is_refusing = False
