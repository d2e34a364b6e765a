"""Pairs of users who write at a fixed rate, however slowly the server answers (an open-loop load)."""

from __future__ import annotations

import asyncio
import math
import time
from array import array
from collections.abc import Collection, Sequence

import msgspec

from bench.client import ServerFrame, UserSocket
from bench.load import Latency
from bench.senders import PairSender, Recorder


class PhaseLatency(msgspec.Struct, kw_only=True):
    """The latencies of the pairs in one phase of a run; `late` is the load generator's own delay in sending."""

    sent: int
    acked: Latency
    delivered: Latency
    late: Latency


class FixedRateSender(PairSender):
    """One user who writes to another at a fixed rate. Each message is timed from the moment it was due.

    Frames from `ignored` users (broadcasts of other users) are not checked.
    """

    def __init__(self, recorder: Recorder, sender: UserSocket, receiver: UserSocket, ignored: Collection[str]) -> None:
        super().__init__(recorder, sender, receiver)
        self._ignored = ignored

    async def run(self, begin: float, rate: float, late: array[float]) -> None:
        """Send `rate` messages per second, the first at `begin`; append the delay of each send to `late`."""
        while self._recorder.running:
            due = begin + self.sent / rate
            while (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(math.ceil(wait * 1000) / 1000)  # uvloop's clock has a resolution of 1 ms
            late.append(time.perf_counter() - due)
            self._send(due)

    def _on_acknowledged(self) -> None:
        """Do nothing: only the clock triggers messages."""

    def _on_answer(self, frame: ServerFrame) -> None:
        if frame.sender not in self._ignored:
            super()._on_answer(frame)

    def _on_delivery(self, frame: ServerFrame) -> None:
        if frame.sender not in self._ignored:
            super()._on_delivery(frame)


class FixedRatePairs:
    """All pairs of one run, at the same rate, with their messages spread evenly over time."""

    def __init__(self, pairs: Sequence[tuple[UserSocket, UserSocket]], ignored: Collection[str]) -> None:
        self.recorder = Recorder()
        self._sockets = [socket for pair in pairs for socket in pair]
        self._senders = [FixedRateSender(self.recorder, a, b, ignored) for a, b in pairs]
        self._late = array("d")
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, rate: float) -> None:
        """Let each pair write `rate` messages per second from now on."""
        begin = time.perf_counter() + 0.1
        for number, sender in enumerate(self._senders):
            offset = number / len(self._senders) / rate
            self._tasks.append(asyncio.create_task(sender.run(begin + offset, rate, self._late)))

    async def measure(self, seconds: float, *, last: bool = False) -> PhaseLatency:
        """Measure the messages sent in the next `seconds`. The last phase stops sending and waits for the rest."""
        recorder = self.recorder
        for times in (recorder.ack_seconds, recorder.delivery_seconds, self._late):
            del times[:]
        before = sum(sender.sent for sender in self._senders)
        recorder.since = time.perf_counter()
        await asyncio.sleep(seconds)
        if last:
            await self._finish()
        return PhaseLatency(
            sent=sum(sender.sent for sender in self._senders) - before,
            acked=Latency.of(recorder.ack_seconds),
            delivered=Latency.of(recorder.delivery_seconds),
            late=Latency.of(self._late),
        )

    async def _finish(self, timeout: float = 10.0) -> None:
        """Stop sending, wait up to `timeout` seconds for the outstanding messages, and report the missing ones."""
        self.recorder.running = False
        await asyncio.gather(*self._tasks)
        deadline = time.monotonic() + timeout
        while any(sender.open for sender in self._senders) and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        for sender in self._senders:
            sender.finish()

    def check_open(self) -> None:
        """Report every socket that the server has closed."""
        for socket in self._sockets:
            if socket.closed:
                self.recorder.report(f"{socket.uid} was {socket.closed}")
