"""The server of a soak with its clients: many lives of one server, on the same port and data."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from tests import servers
from tests.faults.stores import connections
from tests.harness import ServerHandle, SubprocessServer, subprocess_server, wait_until
from tests.servers import DatabaseServer
from tests.soak.device import Device, Pace
from tests.soak.ledger import Ledger

USERS = 16
STAR = "star"  # never answers
LIMIT = 5  # for strangers
HURRIED = Pace((1, 1, 2, 8, 32, 64), 0)
# The tests' stand-in for MongoDB has no indexes for sorting: its answers take long.
UNHURRIED = Pace((1, 1, 2, 4), 1)
DRAINED = 120.0  # seconds in which everybody must have sent what was left


class Size(NamedTuple):
    """What the server's process uses: bytes, file descriptors, and besides those its connections to databases."""

    memory: int
    files: int
    pooled: int


class World:
    """Users in a ring, each of whom writes to the three on either side, from one to three devices.

    Every fourth also writes to a star, who never answers.
    """

    def __init__(self, seed: int, folder: Path, databases: Sequence[DatabaseServer] = ()) -> None:
        self.ledger = Ledger(steady=not databases)
        self.server = ServerHandle("127.0.0.1", servers.free_port())
        self.devices: list[Device] = []
        self.databases = databases
        self._folder = folder
        self.seed = seed
        self._pace = UNHURRIED if databases else HURRIED
        self._stores = servers.environ(**{database.name: database for database in databases})
        users = [f"u{n}" for n in range(USERS)]
        for n, user in enumerate(users):
            peers = [users[(n + step) % USERS] for step in (-3, -2, -1, 1, 2, 3)]
            for number in range(1 + n % 3):
                name = f"{user}.{number}"
                strangers = [STAR] if n % 4 == 0 else []
                self._add(name, user, peers, strangers=strangers, sync=number == 1)
        self._add(f"{STAR}.0", STAR, [])

    def _add(self, name: str, user: str, peers: Sequence[str], **options: Any) -> None:
        self.devices.append(Device(self.ledger, self.server, self.seed, self._pace, name, user, peers, **options))

    @asynccontextmanager
    async def life(self) -> AsyncIterator[SubprocessServer]:
        """The server, from a start to an end."""
        settings: dict[str, Any] = {"HttpPort": self.server.port, "StrangerLimit": LIMIT}
        async with subprocess_server(self._folder / "data", stores=self._stores, **settings) as server:
            server.tokens = self.server.tokens
            yield server

    async def settle(self) -> None:
        """Everybody gets a name, and writes to each of his peers once, so that they are no strangers."""
        async with self.life() as server:
            await server.add_users(*{device.user: None for device in self.devices})
            for device in self.devices:
                async with server.chat(device.user) as chat:
                    for peer in device.peers:
                        said = device.new(peer)
                        said.tries = 1
                        self.ledger.acknowledged(said, (await chat.send(said.content, to=peer))["time"])

    @asynccontextmanager
    async def load(self) -> AsyncIterator[None]:
        """Every device at work. At the end, where the server must be up, each sends what it has left and closes."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(device.run(), name=device.name) for device in self.devices]
            yield
            for device in self.devices:
                device.draining = True
            _, late = await asyncio.wait(tasks, timeout=DRAINED)
            for task in late:
                self.ledger.blame(f"{task.get_name()} could not send all within {DRAINED:.0f} s")
                task.cancel()
        for device in self.devices:
            device.draining = False


async def size(server: SubprocessServer, databases: Sequence[DatabaseServer], files: int = 0) -> Size:
    """The size of a server whose clients have gone; waits until it has at most so many files open, for TIMEOUT."""
    process = psutil.Process(server.process.pid)

    def now() -> Size:
        pooled = sum(connections(process.pid, database.port) for database in databases)
        return Size(process.memory_info().rss, process.num_fds() - pooled, pooled)

    with suppress(TimeoutError):
        await wait_until(lambda: now().files <= files)
    return now()
