"""What others notice of trouble beside them: pairs at a fixed rate, first without and then with it."""

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
from bench.client import PATIENCE, BenchError
from bench.harness import ROOT, Server, machine_seconds
from bench.load import befriend, opened
from bench.mischief import KINDS, Kind
from bench.paced import Crowd, Phase
from bench.report import Figures

MIB = 2**20
MOST_RATIO, MOST_MIB = 3.0, 32.0  # the goals: p99 with to without the trouble, growth after a rest
LIFTED = {"RegistrationsPerHour": "0"}  # for the server that is measured; everything else is at its default
CALM = 3.0  # seconds without trouble that are not measured


class Pace(msgspec.Struct):
    """How the pairs are to write, and for how long each phase goes on."""

    pairs: int
    rate: float  # messages a second of each pair
    seconds: float
    rest: float

    @property
    def names(self) -> list[tuple[str, str]]:
        """Who writes to whom."""
        return [(f"a{i}", f"b{i}") for i in range(self.pairs)]


class Result(msgspec.Struct, kw_only=True):
    """What one run measured; memory in bytes."""

    without: Phase
    beside: Phase
    rss: list[int]  # at the start, before the trouble, at the peak, after the rest
    cpu: list[float]  # of the server, in cores, without and with
    others: list[float]  # of everything else on the machine
    done: dict[str, int]  # by the trouble
    errors: int
    problems: list[str]

    @property
    def ratio(self) -> float:
        """p99 of the acknowledgements with the trouble to that without."""
        return self.beside.acked.p99 / self.without.acked.p99

    @property
    def grown(self) -> float:
        """MiB that were not given back."""
        return (self.rss[3] - self.rss[0]) / MIB

    def misses(self) -> list[str]:
        """Name the goals that were missed."""
        delivered = self.beside.delivered.p99 / self.without.delivered.p99
        found = [
            f"{what} p99 is {ratio:.1f} times that without (goal: {MOST_RATIO:g})"
            for what, ratio in (("ack", self.ratio), ("delivered", delivered))
            if not ratio <= MOST_RATIO
        ]
        if self.grown > MOST_MIB:
            found.append(f"{self.grown:.0f} MiB above the start after the rest (goal: {MOST_MIB:g})")
        return found

    def figures(self) -> Figures:
        """Return everything by label."""
        figures: Figures = {}
        for name in ("acked", "delivered"):
            one, two = getattr(self.without, name), getattr(self.beside, name)
            for part in ("p50", "p99", "longest"):
                before, after = getattr(one, part), getattr(two, part)
                label = f"{name.replace('acked', 'ack')} {part}"
                figures |= {
                    f"{label} without, ms": before,
                    f"{label} with, ms": after,
                    f"{label} ratio": after / before,
                }
        places = ("at the start", "before the trouble", "at the peak", "after the rest")
        figures |= {f"RSS {place}, MiB": bytes_ / MIB for place, bytes_ in zip(places, self.rss, strict=True)}
        if "ms of the median" in self.done:
            figures |= {"longest wait to the median": self.done["ms of the longest"] / self.done["ms of the median"]}
        figures |= {"RSS above the start after the rest, MiB": self.grown}
        for i, (name, phase) in enumerate((("without", self.without), ("with", self.beside))):
            figures |= {
                f"CPU of server {name}, cores": self.cpu[i],
                f"CPU of all others {name}, cores": self.others[i],
                f"sent late p99 {name}, ms": phase.late.p99,
            }
        return figures


def cast(pace: Pace, kind: Kind) -> list[str]:
    """Name all users."""
    writers = [history.WRITER] if kind.stored else []
    return list(dict.fromkeys([*(name for pair in pace.names for name in pair), *kind.users, *writers]))


async def introduce(url: str, tokens: Mapping[str, str], pace: Pace, kind: Kind) -> None:
    """Let those who will write to each other do so once."""
    friends = [*pace.names, *kind.friends]
    async with opened(url, {name: tokens[name] for pair in friends for name in pair}) as peers:
        for a, b in friends:  # in turn, as some have several friends
            await befriend(peers[a], peers[b])


def fill(kind: Kind, data_dir: Path) -> None:
    """Store beforehand what the trouble needs."""
    if kind.stored:
        readers, count, text, unread = kind.stored
        history.seed(data_dir, count, readers, text, unread=unread)


async def measure(
    server: Server, tokens: Mapping[str, str], troubled: tuple[Server, Mapping[str, str]], pace: Pace, name: str
) -> Result:
    """Let the pairs write, first by themselves and then beside trouble of the kind `name`.

    `troubled`: the server where the trouble is made, and the tokens of its users.
    """
    kind = KINDS[name]
    names = {name: tokens[name] for pair in pace.names for name in pair}
    talks_to = dict(pace.names) | {b: a for a, b in pace.names}
    async with (
        opened(server.url, names, talks_to) as peers,
        _trouble(troubled[0].url, name, troubled[1], pace.seconds) as trouble,
    ):
        crowd = Crowd([(peers[a], peers[b]) for a, b in pace.names], kind.users)
        crowd.start(pace.rate)
        await asyncio.sleep(CALM)
        rss, used = [server.rss()], [_used(server)]
        without = await crowd.phase(pace.seconds)
        rss.append(server.rss())
        used.append(_used(server))
        server.forget_peak()
        trouble.begin()
        beside = await crowd.phase(pace.seconds, last=True)
        used.append(_used(server))
        done = await trouble.end()
        rss.append(server.peak())
        await asyncio.sleep(pace.rest)
        rss.append(server.rss())
        crowd.look()
    spans = [tuple(after - before for before, after in zip(*two, strict=True)) for two in pairwise(used)]
    return Result(
        without=without,
        beside=beside,
        rss=rss,
        cpu=[server_seconds / seconds for seconds, server_seconds, _ in spans],
        others=[(all_seconds - server_seconds) / seconds for seconds, server_seconds, all_seconds in spans],
        done=done,
        errors=crowd.ledger.errors,
        problems=crowd.ledger.problems,
    )


def _used(server: Server) -> tuple[float, float, float]:
    """Return the clock, the CPU time of the server and that of the whole machine."""
    return time.perf_counter(), server.cpu_seconds(), machine_seconds()


class _Trouble:
    """The process that makes trouble."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process, self._stdin, self._stdout = process, process.stdin, process.stdout

    async def prepare(self, tokens: Mapping[str, str]) -> None:
        """Tell it who it is; wait until it is ready."""
        self._stdin.write(msgspec.json.encode(tokens) + b"\n")
        if await self._line() != b"ready":
            raise BenchError("the process that makes trouble did not get ready")

    def begin(self) -> None:
        """Let it begin."""
        self._stdin.write(b"go\n")

    async def end(self) -> dict[str, int]:
        """Wait for its end; return what it did."""
        line = await self._line()
        if await self._process.wait():
            raise BenchError("the process that makes trouble failed")
        return msgspec.json.decode(line, type=dict[str, int])

    async def _line(self) -> bytes:
        async with asyncio.timeout(4 * PATIENCE):
            return (await self._stdout.readline()).strip()


@asynccontextmanager
async def _trouble(url: str, kind: str, tokens: Mapping[str, str], seconds: float) -> AsyncIterator[_Trouble]:
    """Start the process that makes trouble, and see that it ends."""
    command = [sys.executable, "-m", "bench.mischief", kind, "--url", url, "--seconds", str(seconds)]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        trouble = _Trouble(process)
        await trouble.prepare({name: tokens[name] for name in KINDS[kind].users})
        yield trouble
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
