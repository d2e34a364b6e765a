"""The recovery of a process from a gap."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

import msgspec

from bench import load
from bench.client import TIMEOUT, BenchError, ClientFrame, ServerFrame, StatusCode, UserSocket
from bench.cluster_servers import BenchStores
from bench.report import Figures
from bench.server_process import BenchServer
from chat_server.cache.redis_nodes import LEASE_SECONDS

INTERVAL = 0.02  # seconds between two messages
STEADY_SECONDS = 1.0  # of messages before a gap
WRITER = "writer"


class GapResult(msgspec.Struct, kw_only=True):
    """`recovery`: the longest wait for a message after the end of the gap, in seconds; `steady`: the longest before.

    `late`: messages that waited at least ten intervals.
    """

    recovery: float
    steady: float
    late: int
    sent: int

    def figures(self) -> Figures:
        """Return the figures by label."""
        return {
            "recovery ms": self.recovery * 1000,
            "longest wait before ms": self.steady * 1000,
            "messages": self.sent,
            "late messages": self.late,
        }


class GapTraffic:
    """Messages of one user, each to the next one of the receivers, with the times when they were sent and arrived."""

    def __init__(self, writer: UserSocket, receivers: Sequence[UserSocket]) -> None:
        self._writer = writer
        self._receivers = receivers
        self._sent: dict[str, float] = {}
        self._arrived: dict[str, float] = {}
        self._running = True
        self.problems: list[str] = []
        writer.on_frame = self._on_answer
        for receiver in receivers:
            receiver.on_frame = self._on_delivery

    async def run(self) -> None:
        """Send a message per INTERVAL until `finish`."""
        while self._running:
            number = len(self._sent)
            receiver = self._receivers[number % len(self._receivers)]
            self._sent[f"m{number}"] = time.perf_counter()
            self._writer.send(ClientFrame(receiver.uid, f"m{number}\nmessage {number}"))
            await asyncio.sleep(INTERVAL)

    async def finish(self, end: float) -> GapResult:
        """Wait for all messages; `end`: the end of the gap. Raises BenchError if one is lost or delivered twice."""
        self._running = False
        deadline = time.perf_counter() + TIMEOUT
        while len(self._arrived) < len(self._sent) and time.perf_counter() < deadline:
            await asyncio.sleep(INTERVAL)
        if lost := self._sent.keys() - self._arrived.keys():
            self.problems.append(f"{len(lost)} of {len(self._sent)} messages never arrived")
        if self.problems:
            raise BenchError(f"{len(self.problems)} problems: {'; '.join(self.problems[:5])}")
        waits = {id: self._arrived[id] - at for id, at in self._sent.items()}
        begin = next(iter(self._sent.values())) + STEADY_SECONDS - INTERVAL
        return GapResult(
            recovery=max(self._arrived[id] - max(at, end) for id, at in self._sent.items() if self._arrived[id] > end),
            steady=max(wait for id, wait in waits.items() if self._sent[id] + wait < begin),
            late=sum(wait > 10 * INTERVAL for wait in waits.values()),
            sent=len(self._sent),
        )

    def _on_answer(self, frame: ServerFrame) -> None:
        if frame.op_type not in (StatusCode.ONLINE, StatusCode.OFFLINE):
            self.problems.append(f"the writer got {frame}")

    def _on_delivery(self, frame: ServerFrame) -> None:
        if frame.op_type != StatusCode.RECEIVED or frame.id in self._arrived:
            self.problems.append(f"a receiver got {frame}")
        self._arrived[frame.id] = time.perf_counter()


async def kill_subscriptions(stores: BenchStores, _: BenchServer) -> None:
    """Let Redis close the connections of all subscribers."""
    await asyncio.to_thread(stores.redis.execute_command, "CLIENT", "KILL", "TYPE", "pubsub")


async def outlast_lease(_: BenchStores, server: BenchServer) -> None:
    """Freeze a process until its lease has ended."""
    os.kill(server.pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(LEASE_SECONDS + 1)
    finally:
        os.kill(server.pid, signal.SIGCONT)


GAPS = {"killed subscription": kill_subscriptions, "lapsed lease": outlast_lease}


async def measure_gap(
    stores: BenchStores,
    servers: Sequence[BenchServer],
    tokens: Mapping[str, str],
    cut: Callable[[BenchStores, BenchServer], Awaitable[None]],
) -> GapResult:
    """Let WRITER, at the first server, write to all others, at the last one, which has a gap caused by `cut`."""
    elsewhere = {WRITER: servers[0].url}
    async with load.open_sockets(servers[-1].url, tokens, elsewhere=elsewhere) as sockets:
        receivers = [socket for name, socket in sockets.items() if name != WRITER]
        await asyncio.sleep(3)  # until the work of opening is done
        traffic = GapTraffic(sockets[WRITER], receivers)
        sending = asyncio.create_task(traffic.run())
        await asyncio.sleep(STEADY_SECONDS)
        await cut(stores, servers[-1])
        end = time.perf_counter()
        await asyncio.sleep(STEADY_SECONDS)
        result = await traffic.finish(end)
        await sending
    return result
