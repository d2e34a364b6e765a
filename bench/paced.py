"""Pairs at a fixed rate, for `bench trouble`: they write on whatever happens, as people who know nothing of it do."""

from __future__ import annotations

import asyncio
import math
import time
from array import array
from collections.abc import Collection, Sequence

import msgspec

from bench.client import Heard, Peer
from bench.flows import Flow, Ledger
from bench.load import Latency


class Phase(msgspec.Struct, kw_only=True):
    """What the pairs noticed in one part of a run; `late` is the load generator's own delay in sending."""

    sent: int
    acked: Latency
    delivered: Latency
    late: Latency


class Paced(Flow):
    """One user writing to another at a fixed rate; each message is timed from when it was due to be sent."""

    def __init__(self, ledger: Ledger, sender: Peer, receiver: Peer, others: Collection[str]) -> None:
        super().__init__(ledger, sender, receiver)
        self._others = others  # whose broadcasts are no part of it

    async def pace(self, begin: float, rate: float, late: array[float]) -> None:
        """Send `rate` messages a second, the first at `begin`; note how late each went out."""
        while self._ledger.running:
            due = begin + self.sent / rate
            while (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(math.ceil(wait * 1000) / 1000)  # the loop's clock ticks in milliseconds
            late.append(time.perf_counter() - due)
            self._send(due)

    def _follow(self) -> None:
        """Send nothing: only the clock does."""

    def _on_answer(self, heard: Heard) -> None:
        if heard.sender not in self._others:
            super()._on_answer(heard)

    def _on_delivery(self, heard: Heard) -> None:
        if heard.sender not in self._others:
            super()._on_delivery(heard)


class Crowd:
    """All pairs of one run at the same rate, their messages spread evenly over time."""

    def __init__(self, pairs: Sequence[tuple[Peer, Peer]], others: Collection[str]) -> None:
        self.ledger = Ledger()
        self._peers = [peer for pair in pairs for peer in pair]
        self._flows = [Paced(self.ledger, a, b, others) for a, b in pairs]
        self._late = array("d")
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, rate: float) -> None:
        """Let each pair write `rate` messages a second from now on."""
        begin = time.perf_counter() + 0.1
        for number, flow in enumerate(self._flows):
            offset = number / len(self._flows) / rate
            self._tasks.append(asyncio.create_task(flow.pace(begin + offset, rate, self._late)))

    async def phase(self, seconds: float, *, last: bool = False) -> Phase:
        """Measure what is sent in the next `seconds`; the last phase ends the sending and waits for the rest."""
        ledger = self.ledger
        for times in (ledger.ack_seconds, ledger.delivery_seconds, self._late):
            del times[:]
        before = sum(flow.sent for flow in self._flows)
        ledger.since = time.perf_counter()
        await asyncio.sleep(seconds)
        if last:
            await self._settle()
        return Phase(
            sent=sum(flow.sent for flow in self._flows) - before,
            acked=Latency.of(ledger.ack_seconds),
            delivered=Latency.of(ledger.delivery_seconds),
            late=Latency.of(self._late),
        )

    async def _settle(self, patience: float = 10.0) -> None:
        """Stop sending, and report what does not come within `patience` seconds."""
        self.ledger.running = False
        await asyncio.gather(*self._tasks)
        deadline = time.monotonic() + patience
        while any(flow.open for flow in self._flows) and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        for flow in self._flows:
            flow.finish()

    def look(self) -> None:
        """Report every socket that the server has ended."""
        for peer in self._peers:
            if peer.closed:
                self.ledger.wrong(f"{peer.uid} was {peer.closed}")
