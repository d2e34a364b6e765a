"""The load generator: one process with picows sockets on uvloop, which checks every message.

It has four loads: `pairs` (one-to-one), `broadcast` (one to all), `group` (one to the other members of a group) and
`idle` (silent sockets). To run one of them by hand against a running server (all but `group`, which needs a group):

    python -m bench.load pairs --url http://127.0.0.1:8081 --sockets 50 --in-flight 16 --seconds 10
"""

from __future__ import annotations

import argparse
import asyncio
import math
import time
from array import array
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from types import MappingProxyType
from typing import Any

import msgspec
import uvloop

from bench.client import TIMEOUT, ClientFrame, StatusCode, UserSocket, connect, for_each, log_in
from bench.senders import FanOutSender, PairSender, Recorder

NOWHERE: Mapping[str, str] = MappingProxyType({})
CLIENT_LIMIT = 0.9  # of a core; above it, the load generator limits the throughput, not the server
Window = AbstractContextManager[object]  # entered at the start of the measured time and left at its end


class Latency(msgspec.Struct):
    """Percentiles of a time in milliseconds."""

    p50: float = math.nan
    p99: float = math.nan
    longest: float = math.nan

    @classmethod
    def of(cls, seconds: array[float]) -> Latency:
        """Return the percentiles of times in seconds; NaN if there are none."""
        ranked = sorted(seconds)
        if not ranked:
            return cls()
        p50, p99 = (ranked[int(len(ranked) * part)] * 1000 for part in (0.5, 0.99))
        return cls(p50, p99, ranked[-1] * 1000)


class LoadResult(msgspec.Struct, kw_only=True):
    """The measurements of one load.

    `seconds` is the length of the window. `count` is the number of messages completed in it (of deliveries, if a
    message has several receivers), and `pings` the number of pings answered in it. `client_cpu` is the CPU use of the
    load generator as a fraction of a core. `errors` counts all violations of the contract in the whole run, `problems`
    describes the first few. A message to several users counts as `delivered` when its last receiver has it.
    """

    seconds: float
    count: int
    pings: int
    client_cpu: float
    acked: Latency
    delivered: Latency
    errors: int
    problems: list[str]

    @property
    def rate(self) -> float:
        """Messages or deliveries completed per second."""
        return self.count / self.seconds


class LoadRun:
    """One run of a load: its senders and their sockets, measured in a window of time."""

    def __init__(
        self, recorder: Recorder, senders: Sequence[PairSender | FanOutSender], sockets: Sequence[UserSocket]
    ) -> None:
        self._recorder = recorder
        self._senders = senders
        self._sockets = sockets

    async def measure(self, in_flight: int, warm_up: float, seconds: float, window: Window) -> LoadResult:
        """Send for `warm_up` seconds, then measure for `seconds`, then wait for the outstanding messages."""
        for sender in self._senders:
            sender.start(in_flight)
        await asyncio.sleep(warm_up)
        with window:
            began, cpu, count, pings = self._totals()
            self._recorder.since = began
            await asyncio.sleep(seconds)
            ended, cpu_then, count_then, pings_then = self._totals()
            self._recorder.since = math.inf
        await self._finish()
        return LoadResult(
            seconds=ended - began,
            count=count_then - count,
            pings=pings_then - pings,
            client_cpu=(cpu_then - cpu) / (ended - began),
            acked=Latency.of(self._recorder.ack_seconds),
            delivered=Latency.of(self._recorder.delivery_seconds),
            errors=self._recorder.errors,
            problems=self._recorder.problems,
        )

    def _totals(self) -> tuple[float, float, int, int]:
        """Return the clock and the own CPU time in seconds, the completed messages, and the answered pings."""
        count = sum(sender.done for sender in self._senders)
        return time.perf_counter(), time.process_time(), count, sum(socket.pings for socket in self._sockets)

    async def _finish(self, timeout: float = TIMEOUT) -> None:
        """Stop sending, wait up to `timeout` seconds for the outstanding messages, and report the missing ones."""
        self._recorder.running = False
        deadline = time.monotonic() + timeout
        while any(sender.open for sender in self._senders) and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        for sender in self._senders:
            sender.finish()
        for socket in self._sockets:
            if socket.closed:
                self._recorder.report(f"{socket.uid} was {socket.closed}")


async def pairs(
    url: str,
    *,
    pairs: int,
    in_flight: int,
    seconds: float,
    warm_up: float,
    window: Window | None = None,
    accounts: bool = True,
    elsewhere: Mapping[str, str] = NOWHERE,
) -> LoadResult:
    """Let `pairs` users, a0, a1 and so on, write to b0, b1 and so on; every acknowledgement sends the next message.

    `accounts`: whether the users log in first. `elsewhere`: see `open_sockets`.
    """
    names = [(f"a{i}", f"b{i}") for i in range(pairs)]
    users = [name for pair in names for name in pair]
    tokens = await log_in(url, users) if accounts else dict.fromkeys(users, "")
    recorder = Recorder()
    async with open_sockets(url, tokens, dict(names) | {b: a for a, b in names}, elsewhere=elsewhere) as sockets:
        await for_each(lambda pair: greet(sockets[pair[0]], sockets[pair[1]]), names, 16)
        senders = [PairSender(recorder, sockets[a], sockets[b]) for a, b in names]
        run = LoadRun(recorder, senders, list(sockets.values()))
        return await run.measure(in_flight, warm_up, seconds, window or nullcontext())


async def broadcast(url: str, *, sockets: int, **options: Any) -> LoadResult:
    """Let one user write to the users r0, r1 and so on at the same time (op 6). `options`: see `group`."""
    tokens = await log_in(url, ["writer", *(f"r{i}" for i in range(sockets))])
    return await group(url, tokens, "", **options)


async def group(
    url: str,
    tokens: Mapping[str, str],
    name: str,
    *,
    writers: int = 1,
    in_flight: int,
    seconds: float,
    warm_up: float,
    window: Window | None = None,
    elsewhere: Mapping[str, str] = NOWHERE,
) -> LoadResult:
    """Open a socket for each user and let the first ones write to the group `name`; without a name, to all users.

    `elsewhere`: see `open_sockets`.
    """
    async with open_sockets(url, tokens, elsewhere=elsewhere) as opened:
        sockets, recorder = list(opened.values()), Recorder()
        senders = [
            FanOutSender(recorder, writer, [other for other in sockets if other is not writer], name)
            for writer in sockets[:writers]
        ]
        run = LoadRun(recorder, senders, sockets)
        return await run.measure(in_flight, warm_up, seconds, window or nullcontext())


async def idle(url: str, tokens: Mapping[str, str], *, seconds: float, window: Window | None = None) -> float:
    """Keep one silent socket open for each user for `seconds`; return the seconds that opening them took."""
    began = time.perf_counter()
    async with open_sockets(url, tokens) as sockets:
        took = time.perf_counter() - began
        recorder = Recorder()
        await asyncio.sleep(2)  # so that work left over from opening is not measured
        await LoadRun(recorder, [], list(sockets.values())).measure(0, 0, seconds, window or nullcontext())
        if recorder.errors:
            raise RuntimeError(f"{recorder.errors} idle sockets were closed: {recorder.problems}")
    return took


async def greet(a: UserSocket, b: UserSocket) -> None:
    """Let each user write to the other once, so that the contact limit does not apply; wait for the acks."""
    for sender, receiver in ((b, a), (a, b)):
        sender.send(ClientFrame(receiver.uid, "\nhello"))
        await receiver.expect(StatusCode.RECEIVED)
        await sender.expect(StatusCode.ONLINE)


@asynccontextmanager
async def open_sockets(
    url: str,
    tokens: Mapping[str, str],
    partners: Mapping[str, str] | None = None,
    concurrency: int = 32,
    *,
    elsewhere: Mapping[str, str] = NOWHERE,
) -> AsyncIterator[dict[str, UserSocket]]:
    """Open one socket for each user of `tokens`, in this order; close all of them at the end of the block.

    `partners` maps a user to the `to_uid` of its socket, and `elsewhere` to the URL of another process than `url`.
    """
    sockets: dict[str, UserSocket] = {}

    async def open_one(uid: str) -> None:
        sockets[uid] = await connect(elsewhere.get(uid, url), uid, tokens[uid], (partners or {}).get(uid, ""))

    try:
        await for_each(open_one, tokens, concurrency)
        yield {uid: sockets[uid] for uid in tokens}
    finally:
        await for_each(UserSocket.close, list(sockets.values()), 256)


def main() -> None:
    """Run one load against a running server and print the measurements as JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.load", description=__doc__.partition("\n")[0])
    parser.add_argument("load", choices=["pairs", "broadcast", "idle"])
    parser.add_argument("--url", required=True, help="of the server, http://127.0.0.1:8081")
    parser.add_argument("--sockets", type=int, default=50, help="pairs, receivers or idle sockets (50)")
    parser.add_argument("--in-flight", type=int, default=16, help="unacknowledged messages per sender (16)")
    parser.add_argument("--seconds", type=float, default=10, help="measured time (10)")
    parser.add_argument("--warm-up", type=float, default=2, help="seconds before the measured time (2)")
    args = parser.parse_args()
    uvloop.run(_by_hand(args))


async def _by_hand(args: argparse.Namespace) -> None:
    timing = {"seconds": args.seconds, "warm_up": args.warm_up, "in_flight": args.in_flight}
    async with asyncio.timeout(args.warm_up + args.seconds + 10 * TIMEOUT):
        if args.load == "idle":
            tokens = await log_in(args.url, [f"i{i}" for i in range(args.sockets)])
            took = await idle(args.url, tokens, seconds=args.seconds)
            print(f"{args.sockets} sockets opened in {took:.2f} s")
            return
        if args.load == "pairs":
            result = await pairs(args.url, pairs=args.sockets, **timing)
        else:
            result = await broadcast(args.url, sockets=args.sockets, **timing)
    print(f"{result.rate:,.0f}/s", msgspec.json.format(msgspec.json.encode(result), indent=2).decode())
    if result.client_cpu > CLIENT_LIMIT:
        print("the load generator was the limit: the figures are not those of the server")
    if result.errors:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
