"""Several server processes on the same MySQL, MongoDB and Redis, behind a balancer.

Each process has a proxy before Redis and one before MongoDB (FaultyNetwork), and its own log.

async with cluster(tmp_path, databases, 3, users=("1", "2")) as processes:
    async with processes[0].chat("1", to="2") as one, processes[1].chat("2", to="1") as two:
        await one.send("m1\\nhello")
        assert (await two.receive())["content"] == "m1\\nhello"
    async with processes.chat("1") as one:  # on the next process, by the balancer
        assert processes.process_of(one) is processes[0]
"""

import asyncio
import hashlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, overload

import httpx
import pymysql
from redis.asyncio import Redis

from tests import servers
from tests.cluster.clock import ShiftedClock
from tests.cluster.relay import Balancer, FaultyNetwork
from tests.harness import (
    TIMEOUT,
    ChatClient,
    ServerHandle,
    SubprocessServer,
    one_process_server,
    run_command,
    wait_until,
)
from tests.servers import DatabaseServer

T = TypeVar("T")

# The number of processes of the e2e suite (tests/cluster/suite.py).
PROCESSES = int(os.environ.get("CHAT_TEST_PROCESSES", "0"))
# A process counts as dead this many seconds after it was killed, and after it was frozen (contract).
KILL_SECONDS = 1.0
FREEZE_SECONDS = 11.0
# Times of the contract hold while there are free cores. The tests grant this much more, because a busy machine is slow:
# still less than what happens without the tested mechanism, which is the end of a lease or of a heartbeat.
BUSY_SECONDS = 4.0


class Databases(NamedTuple):
    """The databases of a cluster. Redis keeps its data, as operations.md recommends."""

    mysql: DatabaseServer
    mongodb: DatabaseServer
    redis: DatabaseServer

    def environ(self, name: str) -> dict[str, str]:
        """Return the environment of a server whose data in each database has this name. Create the database in MySQL.

        `name` consists of letters and digits.
        """
        with pymysql.connect(user="root", unix_socket=f"{self.mysql.folder}/socket") as root, root.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE IF NOT EXISTS {name}")
            cursor.execute(f"GRANT ALL ON {name}.* TO 'chat'@'127.0.0.1'")
        names = {"CHAT_MYSQL_DBNAME": name, "CHAT_MONGODB_MONGODBNAME": name, "CHAT_REDIS_REDISPREFIX": f"{name}:"}
        return servers.environ(**self._asdict()) | names


@contextmanager
def running_databases(*, durable: bool = True) -> Iterator[Databases]:
    """Run all databases of a cluster. `durable`: see `servers.running`."""
    with servers.running(durable=durable) as started:
        yield Databases(**{server.name: server for server in started})


class ServerProcess(ServerHandle):
    """One server process of a cluster, on a port of its own. It can be killed, frozen and started again.

    `clock`: the process has a wall clock of its own, which the test moves.
    `run_py`: the program of another version of the server.
    """

    def __init__(
        self,
        number: int,
        folder: Path,
        tokens: dict[str, str],
        databases: Databases,
        environ: Mapping[str, str],
        settings: Mapping[str, Any],
        *,
        clock: bool = False,
        log: Path | None = None,
        patient: bool = True,
    ) -> None:
        super().__init__("127.0.0.1", servers.free_port())
        self.tokens = tokens
        self.number = number
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.log = log or folder / "server.log"
        self.clock = ShiftedClock(folder) if clock else None
        self.redis = FaultyNetwork(lambda: databases.redis.port)
        self.mongodb = FaultyNetwork(lambda: databases.mongodb.port)
        self.run_py: Path | None = None
        self._environ = environ
        self._settings = dict(settings)
        self._patient = patient
        self.metrics_port = 0
        if "MetricsPort" in settings:  # each process needs a port of its own
            self._settings["MetricsPort"] = self.metrics_port = servers.free_port()
        self._stack = AsyncExitStack()
        self._server: SubprocessServer | None = None

    @property
    def server(self) -> SubprocessServer:
        """The running process."""
        assert self._server
        return self._server

    async def start(self) -> None:
        """Start the process, and wait until it is ready."""
        stores = {
            **self._environ,
            "CHAT_REDIS_REDISADDR": f"127.0.0.1:{self.redis.port}",
            # Without directConnection, the driver asks MongoDB for its address and connects to it without the proxy.
            "CHAT_MONGODB_MONGODBADDR": f"mongodb://127.0.0.1:{self.mongodb.port}/?directConnection=true",
        }
        prefix = self.clock.prefix if self.clock else ()
        settings = {**self._settings, "HttpPort": self.port}
        self._server = await self._stack.enter_async_context(
            one_process_server(
                self.folder / "data",
                prefix=prefix,
                stores=stores,
                log=self.log,
                run_py=self.run_py,
                patient=self._patient,
                **settings,
            )
        )

    async def kill(self) -> None:
        """kill -9. What a proxy held back is lost."""
        self.server.kill()
        await self.server.wait()
        for network in (self.redis, self.mongodb):
            network.cut(network.links)
        await self._stack.aclose()

    async def stop(self) -> None:
        """SIGTERM; fail unless the process ends without an error."""
        self.server.process.send_signal(signal.SIGTERM)
        assert await self.server.wait() == 0, self.log.read_text()[-2000:]
        await self._stack.aclose()

    async def restart(self) -> None:
        """Stop the process with SIGTERM, and start it again."""
        await self.stop()
        await self.start()

    @asynccontextmanager
    async def frozen(self) -> AsyncIterator[None]:
        """SIGSTOP; SIGCONT at the end."""
        self.server.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.server.process.send_signal(signal.SIGCONT)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the proxies; at the end, kill the process if it still runs."""
        async with self.redis.running(), self.mongodb.running():
            try:
                yield
            finally:
                await self._stack.aclose()


class ProcessGroup(ServerHandle, Sequence[ServerProcess]):
    """Processes behind a balancer, which sends each connection, and so each request, to the next process."""

    def __init__(
        self, processes: Sequence[ServerProcess], balancer: Balancer, tokens: dict[str, str], environ: Mapping[str, str]
    ) -> None:
        super().__init__("127.0.0.1", balancer.port)
        self.balancer = balancer
        self.environ = environ  # of a command on the same stores
        self.tokens = tokens
        self._processes = processes

    @overload
    def __getitem__(self, index: int) -> ServerProcess: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[ServerProcess]: ...
    def __getitem__(self, index: int | slice) -> ServerProcess | Sequence[ServerProcess]:
        return self._processes[index]

    def __len__(self) -> int:
        return len(self._processes)

    def client(self, **options: Any) -> httpx.AsyncClient:
        """Return an HTTP client that opens a connection for each request."""
        return super().client(**{"limits": httpx.Limits(max_keepalive_connections=0), **options})

    async def make_contacts(self, one: str, other: str) -> None:
        """Also wait until the directory no longer contains the sockets used for it, so that 40019 follows."""
        before = await self._directory(one, other)
        await super().make_contacts(one, other)

        async def left() -> bool:
            now = await self._directory(one, other)
            return now[0] <= before[0] and now[1] <= before[1]

        await wait_until(left, "the sockets of make_contacts have left the directory")

    async def _directory(self, *users: str) -> list[int]:
        """Return the number of sockets of each user at all processes, according to Redis."""
        host, port = self.environ["CHAT_REDIS_REDISADDR"].split(":")
        async with Redis(host=host, port=int(port)) as redis:
            nodes = [key async for key in redis.scan_iter(f"{self.environ['CHAT_REDIS_REDISPREFIX']}sockets:*")]
            rows = [await redis.hmget(node, users) for node in nodes]
        return [sum(int(count or 0) for count in counts) for counts in zip(*rows, strict=True)] or [0] * len(users)

    def process_of(self, chat: ChatClient) -> ServerProcess:
        """Return the process that has this socket."""
        local, remote = chat.connection.local_address[1], chat.connection.remote_address[1]
        port = self.balancer.target_port(local) if remote == self.port else remote
        return next(process for process in self._processes if process.port == port)

    async def command(self, *arguments: str) -> str:
        """Run `python run.py` on the same stores; fail unless it succeeds. Return its output."""
        code, out, err = await run_command(*arguments, environ=self.environ)
        assert code == 0, (out, err)
        return out

    async def rolling_restart(self, run_py: Path | None = None) -> None:
        """Restart one process after the other, with another version of the server if `run_py` is its program.

        As in a deployment, the balancer sends nothing to a process that restarts.
        """
        for process in self._processes:
            self.balancer.ports.remove(process.port)
            process.run_py = run_py
            await process.restart()
            self.balancer.ports.append(process.port)

    @property
    def log(self) -> Path:
        """The log of the first process, which in the e2e suite is the log of all."""
        return self._processes[0].log

    @property
    def pids(self) -> list[int]:
        """The ids of all processes."""
        return [process.server.process.pid for process in self._processes]

    def kill(self) -> None:
        """kill -9 for all processes."""
        self.send_signal(signal.SIGKILL)

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to all processes."""
        for process in self._processes:
            process.server.send_signal(number)

    async def wait(self) -> int:
        """Wait until all processes end; return their exit code, which must be the same."""
        return _same(await asyncio.gather(*(process.server.wait() for process in self._processes)))

    async def next_output(self) -> str:
        """Return the next line of the first process's standard output; "" at the end of all. JSON lines have a time."""
        lines = await asyncio.gather(*(process.server.next_output() for process in self._processes))
        _same([not line for line in lines])
        return lines[0]


def _same(values: Sequence[T]) -> T:
    """Return the only value; fail if there are several."""
    [value] = set(values)
    return value


def data_name(folder: Path) -> str:
    """Return the name of the data of a cluster in each database."""
    return "t" + hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]


@asynccontextmanager
async def cluster(
    folder: Path,
    databases: Databases,
    count: int,
    *,
    users: Sequence[str] = (),
    port: int = 0,
    clocks: bool = False,
    log: Path | None = None,
    patient: bool = True,
    **settings: Any,
) -> AsyncIterator[ProcessGroup]:
    """Run `count` processes with their data below `folder`. Register `users`, and log them in, through the balancer.

    `port` is the port of the balancer, `log` the log of all processes (default: one log each). `clocks`: each process
    has a wall clock of its own. `patient=False`: a process notices within seconds that nothing arrives, as in
    production (tests/cluster/patient.py). A second call with the same `folder` uses the same data.
    """
    if count > 1:
        settings["Processes"] = "many"
    environ = await asyncio.to_thread(databases.environ, data_name(folder))
    tokens: dict[str, str] = {}
    processes = [
        ServerProcess(
            number,
            folder / f"process{number}",
            tokens,
            databases,
            environ,
            settings,
            clock=clocks,
            log=log,
            patient=patient,
        )
        for number in range(count)
    ]
    async with AsyncExitStack() as stack:
        for process in processes:
            await stack.enter_async_context(process.running())
        await asyncio.gather(*(process.start() for process in processes))
        balancer = await stack.enter_async_context(Balancer([process.port for process in processes], port).running())
        commands = environ | {f"CHAT_SERVICE_{key.upper()}": str(value) for key, value in settings.items()}
        running = ProcessGroup(processes, balancer, tokens, commands)
        await running.add_users(*users)
        yield running


def at_most(seconds: float) -> asyncio.Timeout:
    """Time out after `seconds` and BUSY_SECONDS."""
    return asyncio.timeout(seconds + BUSY_SECONDS)


async def within(seconds: float, what: str, condition: Callable[[], Awaitable[bool]]) -> None:
    """Fail unless `condition()`, which is awaited repeatedly, becomes true within `seconds` and BUSY_SECONDS."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds + BUSY_SECONDS
    while not await condition():
        assert loop.time() < deadline, f"not within {seconds:g} s: {what}"
        await asyncio.sleep(0.02)


async def receive_ids(chat: ChatClient, count: int) -> list[str]:
    """Return the ids of the next `count` messages, without other frames."""
    ids: list[str] = []
    async with asyncio.timeout(TIMEOUT):
        while len(ids) < count:
            if (frame := await chat.receive())["op_type"] == 40011:
                ids.append(frame["id"])
    return ids


async def is_online(chat: ChatClient, peer: str) -> bool:
    """Return the online flag of the peer in op 7."""
    *page, _ = await chat.ask(7, "-200")
    return next(bool(frame["online"]) for frame in page if "online" in frame and peer in (frame["from"], frame["to"]))
