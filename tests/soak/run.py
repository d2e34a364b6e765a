"""The clients of a soak test, and its server, which is started many times with the same port and data."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from tests import servers
from tests.cluster.harness import Databases, ProcessGroup, cluster
from tests.faults.stores import count_connections
from tests.harness import ServerHandle, SubprocessServer, subprocess_server, wait_until
from tests.servers import DatabaseServer
from tests.soak.device import Device, Pace
from tests.soak.groups import Keeper
from tests.soak.ledger import Ledger, SoakGroup

USERS = 16
SILENT_USER = "star"  # never answers
BLOCKER, BLOCKED = "u2", "u1"
STRANGER_LIMIT = 5
FAST = Pace((1, 1, 2, 8, 32, 64), 0)
PROCESSES = 4  # of a cluster
# secantusd, which represents MongoDB, sorts without indexes and answers slowly.
SLOW = Pace((1, 1, 2, 4, 8), 1)
DRAIN_TIMEOUT = 120.0  # seconds in which every client must have sent its remaining messages


class ResourceUse(NamedTuple):
    """The resources of the server process: bytes, file descriptors, and separately its connections to databases."""

    memory: int
    files: int
    pooled: int


class SoakRun:
    """Users in a ring. Each writes to the three users on either side, from one to three devices.

    Every fourth user also writes to SILENT_USER, and owns a group of the three users before it and, as guests, the
    three after it.
    """

    gaps = False  # see Ledger

    def __init__(self, seed: int, folder: Path, databases: Sequence[DatabaseServer] = ()) -> None:
        self.ledger = Ledger(steady=not databases, gaps=self.gaps)
        self.server = ServerHandle("127.0.0.1", servers.free_port())
        self.devices: list[Device] = []
        self.databases = databases
        self.folder = folder
        self.seed = seed
        self._pace = SLOW if databases else FAST
        self.stores = servers.environ(**{database.name: database for database in databases})
        users = [f"u{n}" for n in range(USERS)]
        for n in range(0, USERS, 4):
            members, guests = [[users[(n + step) % USERS] for step in steps] for steps in ((0, -1, -2, -3), (1, 2, 3))]
            self.ledger.groups[f"#g{n}"] = SoakGroup(f"#g{n}", members, guests)
        self.keeper = Keeper(self.ledger, self.server, seed, list(self.ledger.groups.values()))
        for n, user in enumerate(users):
            peers = [users[(n + step) % USERS] for step in (-3, -2, -1, 1, 2, 3)]
            for number in range(1 + n % 3):
                name = f"{user}.{number}"
                silent_peers = [SILENT_USER] if n % 4 == 0 else []
                groups = [one.name for one in self.ledger.groups.values() if user in (*one.members, *one.guests)]
                self._add(name, user, peers, silent_peers=silent_peers, groups=groups, sync=number == 1)
        self._add(f"{SILENT_USER}.0", SILENT_USER, [])

    def _add(self, name: str, user: str, peers: Sequence[str], **options: Any) -> None:
        self.devices.append(Device(self.ledger, self.server, self.seed, self._pace, name, user, peers, **options))

    def serving(self) -> AbstractAsyncContextManager[ServerHandle]:
        """Run the server once."""
        raise NotImplementedError

    async def prepare(self) -> None:
        """Register all users, and let each write to its peers once, so that no contact limit applies to them."""
        async with self.serving() as server:
            await server.add_users(*{device.user: None for device in self.devices})
            for device in self.devices:
                async with server.chat(device.user) as chat:
                    for peer in device.peers:
                        message = device.new(peer)
                        message.tries = 1
                        self.ledger.acknowledge(message, (await chat.send(message.content, to=peer))["time"])
            await self._block(server)
            await self.keeper.create()

    async def _block(self, server: ServerHandle) -> None:
        """Let BLOCKER block one of its peers, which goes on writing to it."""
        headers = {"Authorization": f"Bearer {server.tokens[BLOCKER]}"}
        response = await server.post("/user/block", {"user_name": BLOCKED}, headers=headers)
        assert response.status_code == 200, response.text
        self.ledger.blocks.add((BLOCKER, BLOCKED))

    @asynccontextmanager
    async def load(self) -> AsyncIterator[None]:
        """Run all devices. At the end, with the server running, each sends its remaining messages and closes."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(device.run(), name=device.name) for device in self.devices]
            tasks.append(group.create_task(self.keeper.run(), name="the keeper of the groups"))
            yield
            self.keeper.draining = True
            for device in self.devices:
                device.draining = True
            _, late = await asyncio.wait(tasks, timeout=DRAIN_TIMEOUT)
            for task in late:
                self.ledger.fault(f"{task.get_name()} could not send all messages within {DRAIN_TIMEOUT:.0f} s")
                task.cancel()
        self.keeper.draining = False
        for device in self.devices:
            device.draining = False


class ServerRun(SoakRun):
    """The users of one server process."""

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[SubprocessServer]:
        """Run the server once."""
        port = self.server.port
        async with subprocess_server(
            self.folder / "data", stores=self.stores, HttpPort=port, StrangerLimit=STRANGER_LIMIT
        ) as server:
            server.tokens = self.server.tokens
            yield server


class ClusterRun(SoakRun):
    """The users of several processes behind a balancer."""

    gaps = True

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[ProcessGroup]:
        """Run all processes."""
        named = {database.name: database for database in self.databases}
        async with cluster(
            self.folder,
            Databases(**named),
            PROCESSES,
            port=self.server.port,
            patient=False,
            StrangerLimit=STRANGER_LIMIT,
        ) as processes:
            processes.tokens = self.server.tokens
            yield processes


async def measure(server: SubprocessServer, databases: Sequence[DatabaseServer], files: int = 0) -> ResourceUse:
    """Measure a server without clients; wait until it has at most `files` open, no longer than TIMEOUT."""
    process = psutil.Process(server.process.pid)

    def now() -> ResourceUse:
        pooled = sum(count_connections(process.pid, database.port) for database in databases)
        return ResourceUse(process.memory_info().rss, process.num_fds() - pooled, pooled)

    with suppress(TimeoutError):
        await wait_until(lambda: now().files <= files)
    return now()
