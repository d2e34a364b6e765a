"""The disruptions of a cluster during a soak test: of its processes, its databases and the networks between them."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable

from tests.cluster.harness import FREEZE_SECONDS, ProcessGroup, ServerProcess
from tests.faults.stores import unavailable
from tests.soak.run import ClusterRun

# Relative frequencies.
OF_PROCESSES = {"kill": 6, "stop": 2, "freeze": 4, "freeze beyond the lease": 1, "cut": 2}
OF_DATABASES = {"kill database": 4, "freeze database": 2}
OF_NETWORKS = {
    "cut subscription": 3,
    "half-open subscription": 2,
    "unread subscription": 2,
    "delay redis": 2,
    "delay mongodb": 2,
    "cut redis": 2,
    "cut redis beyond the lease": 1,
    "cut mongodb": 2,
}

# The longest pause between two disruptions of one kind, in seconds. With shorter ones, hardly any message is accepted.
MAX_PAUSE = 10.0
START_TRIES = 5

Action = Callable[[str, random.Random], Awaitable[None]]


async def disrupt_cluster(run: ClusterRun, seconds: float) -> None:
    """Disrupt processes, databases and networks at the same time; then let the clients send the rest.

    Each of the three has a random sequence of its own, so that a seed repeats the same actions.
    """
    await run.prepare()
    async with run.serving() as cluster:
        disruptions = _ClusterDisruptions(run, cluster)
        async with run.load(), asyncio.TaskGroup() as group:
            for kinds, action in (
                (OF_PROCESSES, disruptions.disrupt_process),
                (OF_DATABASES, disruptions.disrupt_database),
                (OF_NETWORKS, disruptions.disrupt_network),
            ):
                group.create_task(disruptions.repeat(kinds, action, seconds))
        disruptions.check_processes()
        disruptions.check_logs()


class _ClusterDisruptions:
    def __init__(self, run: ClusterRun, cluster: ProcessGroup) -> None:
        self._run = run
        self._processes: list[ServerProcess] = list(dict.fromkeys(cluster))

    async def repeat(self, kinds: dict[str, int], action: Action, seconds: float) -> None:
        """Repeat a random action of these kinds for `seconds`. Each action ends with everything running again."""
        rng = random.Random(f"{self._run.seed} {' '.join(kinds)}")
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            await asyncio.sleep(rng.uniform(0.5, MAX_PAUSE))
            [kind] = rng.choices(list(kinds), list(kinds.values()))
            self._run.ledger.counts[kind] += 1
            await action(kind, rng)

    def check_processes(self) -> None:
        """Record processes that ended by themselves."""
        for process in self._processes:
            if (code := process.server.process.returncode) is not None:
                self._run.ledger.fault(f"process {process.number} ended by itself with {code}")

    def check_logs(self) -> None:
        """Record unexpected errors in the logs."""
        for process in self._processes:
            for line in process.log.read_text().splitlines():
                if "exception=" in line:
                    self._run.ledger.fault(f"process {process.number} logged an unexpected error: {line[:2000]}")

    async def disrupt_process(self, kind: str, rng: random.Random) -> None:
        """Kill, stop or freeze a process, or cut all clients."""
        process, pause = rng.choice(self._processes), rng.uniform(0, 3)
        self.check_processes()
        if kind == "cut":
            for device in self._run.devices:
                device.reset()
        elif kind.startswith("freeze"):
            async with process.frozen():
                await asyncio.sleep(pause + (FREEZE_SECONDS if "lease" in kind else 0))
        else:
            await (process.kill() if kind == "kill" else process.stop())
            await asyncio.sleep(pause)
            await self._start(process)

    async def _start(self, process: ServerProcess) -> None:
        """Start a process as a service manager does: again and again, because another disruption may end a start."""
        for _ in range(START_TRIES):
            try:
                await process.start()
            except AssertionError:
                self._run.ledger.counts["start failed"] += 1
            else:
                return
        self._run.ledger.fault(f"process {process.number} did not start {START_TRIES} times")

    async def disrupt_database(self, kind: str, rng: random.Random) -> None:
        """Kill or freeze a database."""
        async with unavailable(rng.choice(self._run.databases), "killed" if kind.startswith("kill") else "frozen"):
            await asyncio.sleep(rng.uniform(0, 2))

    async def disrupt_network(self, kind: str, rng: random.Random) -> None:
        """Disturb the connections of one process to Redis or MongoDB."""
        process, pause = rng.choice(self._processes), rng.uniform(1, 6)
        network = process.mongodb if "mongodb" in kind else process.redis
        if kind.startswith("delay"):
            network.delay = rng.uniform(0.01, 0.5)
            await asyncio.sleep(pause)
            network.delay = 0
        elif kind == "cut subscription":
            network.cut(network.subscriptions())
        elif kind == "half-open subscription":
            async with network.half_open(network.subscriptions()):
                await asyncio.sleep(pause)
        elif kind == "unread subscription":
            async with network.unread(network.subscriptions()):
                await asyncio.sleep(pause)
        else:
            async with network.unreachable():
                await asyncio.sleep(pause + (FREEZE_SECONDS if "lease" in kind else 0))
