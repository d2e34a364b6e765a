"""Measure the latency of pairs that write at a fixed rate, first undisturbed and then during a disruption."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import msgspec

from bench import history
from bench.client import TIMEOUT, BenchError
from bench.disruptions import DISRUPTIONS, Disruption
from bench.fixed_rate import FixedRatePairs, PhaseLatency
from bench.load import greet, open_sockets
from bench.report import Figures
from bench.server_process import ROOT, BenchServer, machine_seconds

MIB = 2**20
MAX_RATIO, MAX_MIB = 3.0, 32.0  # the goals: ratio of p99 during the disruption to before, RSS growth after the rest
SETTINGS = {"RegistrationsPerHour": "0"}  # of the measured server; all other settings have their defaults
SETTLE_SECONDS = 3.0  # before the first phase, not measured


class DisruptionPlan(msgspec.Struct):
    """The load of the pairs and the duration of the phases."""

    pairs: int
    rate: float  # messages per second of each pair
    seconds: float  # of each phase
    rest: float  # seconds between the disruption and the last look at memory

    @property
    def names(self) -> list[tuple[str, str]]:
        """The sender and the receiver of each pair."""
        return [(f"a{i}", f"b{i}") for i in range(self.pairs)]


class DisruptionResult(msgspec.Struct, kw_only=True):
    """The measurements of one run; memory in bytes."""

    before: PhaseLatency
    during: PhaseLatency
    rss: list[int]  # at the start, before the disruption, at the peak, after the rest
    cpu: list[float]  # of the server, in cores, before and during
    others: list[float]  # of all other processes on the machine
    done: dict[str, int]  # counters of the disruption
    errors: int
    problems: list[str]

    @property
    def ratio(self) -> float:
        """The ratio of the p99 of acknowledgements during the disruption to the p99 before."""
        return self.during.acked.p99 / self.before.acked.p99

    @property
    def growth(self) -> float:
        """RSS growth after the rest, in MiB."""
        return (self.rss[3] - self.rss[0]) / MIB

    def missed_goals(self) -> list[str]:
        """Describe each missed goal."""
        delivered = self.during.delivered.p99 / self.before.delivered.p99
        missed = [
            f"{what} p99 is {ratio:.1f} times the p99 before (goal: {MAX_RATIO:g})"
            for what, ratio in (("ack", self.ratio), ("delivered", delivered))
            if not ratio <= MAX_RATIO
        ]
        if self.growth > MAX_MIB:
            missed.append(f"RSS is {self.growth:.0f} MiB above the start after the rest (goal: {MAX_MIB:g})")
        return missed

    def figures(self) -> Figures:
        """Return all measurements by label."""
        figures: Figures = {}
        for name in ("acked", "delivered"):
            before, during = getattr(self.before, name), getattr(self.during, name)
            for percentile in ("p50", "p99", "longest"):
                one, two = getattr(before, percentile), getattr(during, percentile)
                label = f"{name.replace('acked', 'ack')} {percentile}"
                figures |= {f"{label} before, ms": one, f"{label} during, ms": two, f"{label} ratio": two / one}
        moments = ("at the start", "before the disruption", "at the peak", "after the rest")
        figures |= {f"RSS {moment}, MiB": size / MIB for moment, size in zip(moments, self.rss, strict=True)}
        if "ms median wait" in self.done:
            figures |= {"longest wait / median wait": self.done["ms longest wait"] / self.done["ms median wait"]}
        figures |= {"RSS above the start after the rest, MiB": self.growth}
        for i, (name, phase) in enumerate((("before", self.before), ("during", self.during))):
            figures |= {
                f"CPU of server {name}, cores": self.cpu[i],
                f"CPU of all others {name}, cores": self.others[i],
                f"sent late p99 {name}, ms": phase.late.p99,
            }
        return figures


def users(plan: DisruptionPlan, disruption: Disruption) -> list[str]:
    """Return the names of all users."""
    writers = [history.WRITER] if disruption.stored else []
    return list(dict.fromkeys([*(name for pair in plan.names for name in pair), *disruption.users, *writers]))


async def introduce(url: str, tokens: Mapping[str, str], plan: DisruptionPlan, disruption: Disruption) -> None:
    """Let all users who will write to each other do so once, so that the contact limit does not apply."""
    partners = [*plan.names, *disruption.partners]
    async with open_sockets(url, {name: tokens[name] for pair in partners for name in pair}) as sockets:
        for a, b in partners:  # one after the other, because some users have several partners
            await greet(sockets[a], sockets[b])


def seed_messages(disruption: Disruption, data_dir: Path) -> None:
    """Store the messages that the disruption needs."""
    if disruption.stored:
        readers, count, text, unread = disruption.stored
        history.seed(data_dir, count, readers, text, unread=unread)


async def measure(
    server: BenchServer,
    tokens: Mapping[str, str],
    disrupted: tuple[BenchServer, Mapping[str, str]],
    plan: DisruptionPlan,
    name: str,
) -> DisruptionResult:
    """Measure the pairs, first undisturbed and then during the disruption `name`.

    `disrupted`: the server to disrupt, and the tokens of its users.
    """
    disruption = DISRUPTIONS[name]
    names = {name: tokens[name] for pair in plan.names for name in pair}
    partners = dict(plan.names) | {b: a for a, b in plan.names}
    async with (
        open_sockets(server.url, names, partners) as sockets,
        _disruption_process(disrupted[0].url, name, disrupted[1], plan.seconds) as process,
    ):
        pairs = FixedRatePairs([(sockets[a], sockets[b]) for a, b in plan.names], disruption.users)
        pairs.start(plan.rate)
        await asyncio.sleep(SETTLE_SECONDS)
        rss, usage = [server.rss()], [_usage(server)]
        before = await pairs.measure(plan.seconds)
        rss.append(server.rss())
        usage.append(_usage(server))
        server.reset_peak()
        process.begin()
        during = await pairs.measure(plan.seconds, last=True)
        usage.append(_usage(server))
        done = await process.wait()
        rss.append(server.peak())
        await asyncio.sleep(plan.rest)
        rss.append(server.rss())
        pairs.check_open()
    phases = [tuple(after - before for before, after in zip(*two, strict=True)) for two in pairwise(usage)]
    return DisruptionResult(
        before=before,
        during=during,
        rss=rss,
        cpu=[server_seconds / seconds for seconds, server_seconds, _ in phases],
        others=[(all_seconds - server_seconds) / seconds for seconds, server_seconds, all_seconds in phases],
        done=done,
        errors=pairs.recorder.errors,
        problems=pairs.recorder.problems,
    )


def _usage(server: BenchServer) -> tuple[float, float, float]:
    """Return the clock, the CPU time of the server, and the CPU time of the whole machine, in seconds."""
    return time.perf_counter(), server.cpu_seconds(), machine_seconds()


class _DisruptionProcess:
    """The process that runs a disruption (bench.disruptions)."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process, self._stdin, self._stdout = process, process.stdin, process.stdout

    async def prepare(self, tokens: Mapping[str, str]) -> None:
        """Pass the tokens of its users, and wait until it is ready."""
        self._stdin.write(msgspec.json.encode(tokens) + b"\n")
        if await self._read_line() != b"ready":
            raise BenchError("the disruption process did not get ready; its error is printed above")

    def begin(self) -> None:
        """Start the disruption."""
        self._stdin.write(b"go\n")

    async def wait(self) -> dict[str, int]:
        """Wait until the process ends; return its counters."""
        line = await self._read_line()
        if await self._process.wait():
            raise BenchError("the disruption process failed; its error is printed above")
        return msgspec.json.decode(line, type=dict[str, int])

    async def _read_line(self) -> bytes:
        async with asyncio.timeout(4 * TIMEOUT):
            return (await self._stdout.readline()).strip()


@asynccontextmanager
async def _disruption_process(
    url: str, name: str, tokens: Mapping[str, str], seconds: float
) -> AsyncIterator[_DisruptionProcess]:
    """Start the process of the disruption `name`; kill it if it is still running at the end of the block."""
    command = [sys.executable, "-m", "bench.disruptions", name, "--url", url, "--seconds", str(seconds)]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        disruption = _DisruptionProcess(process)
        await disruption.prepare({name: tokens[name] for name in DISRUPTIONS[name].users})
        yield disruption
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
