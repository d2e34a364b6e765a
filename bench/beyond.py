"""Beyond the limits: twice the sockets and ten times the messages on their way, and how soon the rate is back."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping, Sequence

import msgspec

from bench.client import Peer, each
from bench.flows import Flow, Ledger
from bench.harness import Server
from bench.load import befriend, opened
from bench.report import Figures

MIB = 2**20
TIMES = 10  # as many messages on their way as before
BACK, WITHIN = 0.9, 10  # the goal: so much of the rate, within so many seconds


class Result(msgspec.Struct, kw_only=True):
    """What one run measured: messages a second, second by second, and the memory in bytes."""

    before: list[float]
    beyond: list[float]  # of those who were there before
    others: list[float]  # of those who came on top
    after: list[float]  # of those who were there before, from the moment when the others stopped
    rss: list[int]  # before, at the peak, at the end
    errors: int
    problems: list[str]

    @property
    def rate(self) -> float:
        """Messages a second before."""
        return sum(self.before) / len(self.before)

    @property
    def back(self) -> float:
        """After how many seconds the rate was back; infinite if it was not."""
        return next((n for n, rate in enumerate(self.after, 1) if rate >= BACK * self.rate), math.inf)

    def figures(self) -> Figures:
        """Return everything by label."""
        late = self.after[WITHIN // 2 :]
        return {
            "messages/s before": self.rate,
            "messages/s of the same beyond": sum(self.beyond) / len(self.beyond),
            "messages/s of all beyond": sum(self.beyond + self.others) / len(self.beyond),
            f"seconds until {BACK:g} of the rate is back": self.back,
            "rate in the last seconds, to that before": sum(late) / len(late) / self.rate,
            "RSS before, MiB": self.rss[0] / MIB,
            "RSS at the peak, MiB": self.rss[1] / MIB,
            "RSS at the end, MiB": self.rss[2] / MIB,
        }


class _Crowd:
    """Pairs that write as fast as they are answered."""

    def __init__(self, peers: Mapping[str, Peer], names: Sequence[tuple[str, str]]) -> None:
        self.ledger = Ledger()
        self._flows = [Flow(self.ledger, peers[a], peers[b]) for a, b in names]

    def start(self, in_flight: int) -> None:
        """Send the first messages of each; every answer sends another."""
        for flow in self._flows:
            flow.start(in_flight)

    @property
    def done(self) -> int:
        """Messages both acknowledged and delivered."""
        return sum(flow.done for flow in self._flows)

    async def stop(self, patience: float = 30.0) -> None:
        """Send no more; report what does not come within `patience` seconds."""
        self.ledger.running = False
        deadline = time.monotonic() + patience
        while any(flow.open for flow in self._flows) and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        for flow in self._flows:
            flow.finish()


def names(prefix: str, pairs: int) -> list[tuple[str, str]]:
    """Who writes to whom."""
    return [(f"{prefix}a{i}", f"{prefix}b{i}") for i in range(pairs)]


async def measure(
    server: Server, tokens: Mapping[str, str], *, pairs: int, in_flight: int, warm_up: float, seconds: float
) -> Result:
    """Let pairs write by themselves, then beside as many others with TIMES as much on its way, then alone again."""
    regulars, others = names("r", pairs), names("o", pairs)
    here = {name: tokens[name] for pair in regulars for name in pair}
    there = {name: tokens[name] for pair in others for name in pair}
    async with opened(server.url, here, dict(regulars)) as peers:
        await each(lambda pair: befriend(peers[pair[0]], peers[pair[1]]), regulars, 16)
        crowd = _Crowd(peers, regulars)
        crowd.start(in_flight)
        await asyncio.sleep(warm_up)
        rss = [server.rss()]
        before = await _rates([crowd], seconds)
        server.forget_peak()
        async with opened(server.url, there, dict(others)) as more:
            await each(lambda pair: befriend(more[pair[0]], more[pair[1]]), others, 16)
            beside = _Crowd(more, others)
            beside.start(in_flight * TIMES)
            beyond = await _rates([crowd, beside], seconds)
            stopping = asyncio.create_task(beside.stop())
            after = await _rates([crowd], WITHIN)
            await stopping
        rss += [server.peak(), server.rss()]
        await crowd.stop()
    return Result(
        before=before[0],
        beyond=beyond[0],
        others=beyond[1],
        after=after[0],
        rss=rss,
        errors=crowd.ledger.errors + beside.ledger.errors,
        problems=crowd.ledger.problems + beside.ledger.problems,
    )


async def _rates(crowds: Sequence[_Crowd], seconds: float) -> list[list[float]]:
    """Messages a second of each crowd, second by second."""
    rates: list[list[float]] = [[] for _ in crowds]
    at, done = time.perf_counter(), [crowd.done for crowd in crowds]
    for _ in range(max(1, round(seconds))):
        await asyncio.sleep(1)
        now, then = time.perf_counter(), [crowd.done for crowd in crowds]
        for rate, one, other in zip(rates, done, then, strict=True):
            rate.append((other - one) / (now - at))
        at, done = now, then
    return rates
