"""Overload: twice the sockets with ten times the messages in flight, and the time until throughput recovers."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping, Sequence

import msgspec

from bench.client import UserSocket, for_each
from bench.load import greet, open_sockets
from bench.report import Figures
from bench.senders import PairSender, Recorder
from bench.server_process import BenchServer

MIB = 2**20
IN_FLIGHT_FACTOR = 10  # messages in flight of each additional pair, as a multiple of those of a regular pair
# The goal: this fraction of the throughput is back within this number of seconds.
RECOVERED, RECOVERY_SECONDS = 0.9, 10


class OverloadResult(msgspec.Struct, kw_only=True):
    """The measurements of one run: messages per second for each second, and memory in bytes."""

    before: list[float]
    overload: list[float]  # the regular pairs
    additional: list[float]  # the additional pairs
    after: list[float]  # the regular pairs, after the additional ones stopped
    rss: list[int]  # before, at the peak, at the end
    errors: int
    problems: list[str]

    @property
    def rate(self) -> float:
        """Messages per second before the overload."""
        return sum(self.before) / len(self.before)

    @property
    def recovery_seconds(self) -> float:
        """Seconds until the throughput recovered; infinite if it did not."""
        return next((n for n, rate in enumerate(self.after, 1) if rate >= RECOVERED * self.rate), math.inf)

    def figures(self) -> Figures:
        """Return all measurements by label."""
        end = self.after[RECOVERY_SECONDS // 2 :]
        return {
            "messages/s before": self.rate,
            "messages/s of the regular pairs during overload": sum(self.overload) / len(self.overload),
            "messages/s of all pairs during overload": sum(self.overload + self.additional) / len(self.overload),
            f"seconds until {RECOVERED:g} of the throughput is back": self.recovery_seconds,
            "throughput in the last seconds, ratio to before": sum(end) / len(end) / self.rate,
            "RSS before, MiB": self.rss[0] / MIB,
            "RSS at the peak, MiB": self.rss[1] / MIB,
            "RSS at the end, MiB": self.rss[2] / MIB,
        }


class _ClosedLoopPairs:
    """Pairs that send the next message at each acknowledgement."""

    def __init__(self, sockets: Mapping[str, UserSocket], names: Sequence[tuple[str, str]]) -> None:
        self.recorder = Recorder()
        self._senders = [PairSender(self.recorder, sockets[a], sockets[b]) for a, b in names]

    def start(self, in_flight: int) -> None:
        """Send the first messages of each pair."""
        for sender in self._senders:
            sender.start(in_flight)

    @property
    def done(self) -> int:
        """The number of messages that are both acknowledged and delivered."""
        return sum(sender.done for sender in self._senders)

    async def stop(self, timeout: float = 30.0) -> None:
        """Stop sending, wait up to `timeout` seconds for the outstanding messages, and report the missing ones."""
        self.recorder.running = False
        deadline = time.monotonic() + timeout
        while any(sender.open for sender in self._senders) and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        for sender in self._senders:
            sender.finish()


def pair_names(prefix: str, pairs: int) -> list[tuple[str, str]]:
    """Return the sender and the receiver of each pair."""
    return [(f"{prefix}a{i}", f"{prefix}b{i}") for i in range(pairs)]


async def measure(
    server: BenchServer, tokens: Mapping[str, str], *, pairs: int, in_flight: int, warm_up: float, seconds: float
) -> OverloadResult:
    """Measure regular pairs alone, then with additional pairs that overload the server, then alone again."""
    regular, additional = pair_names("r", pairs), pair_names("o", pairs)
    regular_tokens = {name: tokens[name] for pair in regular for name in pair}
    additional_tokens = {name: tokens[name] for pair in additional for name in pair}
    async with open_sockets(server.url, regular_tokens, dict(regular)) as sockets:
        await for_each(lambda pair: greet(sockets[pair[0]], sockets[pair[1]]), regular, 16)
        load = _ClosedLoopPairs(sockets, regular)
        load.start(in_flight)
        await asyncio.sleep(warm_up)
        rss = [server.rss()]
        before = await _rates([load], seconds)
        server.reset_peak()
        async with open_sockets(server.url, additional_tokens, dict(additional)) as more:
            await for_each(lambda pair: greet(more[pair[0]], more[pair[1]]), additional, 16)
            extra = _ClosedLoopPairs(more, additional)
            extra.start(in_flight * IN_FLIGHT_FACTOR)
            overload = await _rates([load, extra], seconds)
            stopping = asyncio.create_task(extra.stop())
            after = await _rates([load], RECOVERY_SECONDS)
            await stopping
        rss += [server.peak(), server.rss()]
        await load.stop()
    return OverloadResult(
        before=before[0],
        overload=overload[0],
        additional=overload[1],
        after=after[0],
        rss=rss,
        errors=load.recorder.errors + extra.recorder.errors,
        problems=load.recorder.problems + extra.recorder.problems,
    )


async def _rates(loads: Sequence[_ClosedLoopPairs], seconds: float) -> list[list[float]]:
    """Return the messages per second of each load, for each of the next `seconds`."""
    rates: list[list[float]] = [[] for _ in loads]
    last, counts = time.perf_counter(), [load.done for load in loads]
    for _ in range(max(1, round(seconds))):
        await asyncio.sleep(1)
        now, new_counts = time.perf_counter(), [load.done for load in loads]
        for rate, old, new in zip(rates, counts, new_counts, strict=True):
            rate.append((new - old) / (now - last))
        last, counts = now, new_counts
    return rates
