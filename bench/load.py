"""The load generator: one process, picows sockets on uvloop, every message checked.

Three loads, each a coroutine for the runner: `pairs` (one-to-one), `group` (one to all) and `idle`
(sockets that only stay). By hand, against a server that already runs:

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

import msgspec
import uvloop

from bench.client import PATIENCE, Code, Peer, Say, connect, each, log_in
from bench.flows import Cast, Flow, Ledger

CLIENT_LIMIT = 0.9  # of a core: above it the load generator was measured, not the server
Window = AbstractContextManager[object]  # what the caller measures between its start and its end


class Latency(msgspec.Struct):
    """Milliseconds from the send to what is timed."""

    p50: float = math.nan
    p99: float = math.nan
    longest: float = math.nan

    @classmethod
    def of(cls, seconds: array[float]) -> Latency:
        """Take the percentiles of times given in seconds; not a number where there are none."""
        ranked = sorted(seconds)
        if not ranked:
            return cls()
        p50, p99 = (ranked[int(len(ranked) * part)] * 1000 for part in (0.5, 0.99))
        return cls(p50, p99, ranked[-1] * 1000)


class Outcome(msgspec.Struct, kw_only=True):
    """What one load measured.

    `seconds` is the length of the window, `count` the messages (of a group: the deliveries)
    completed in it, `pings` those answered in it, `client_cpu` the load generator's own use as a
    fraction of a core. `errors` counts every breach of the contract in the whole run, `problems`
    tells the first few. A group is `delivered` when its last socket has the message.
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
        """Completed per second."""
        return self.count / self.seconds


class Run:
    """A load at work: its flows, the sockets they use, and the window in which they are measured."""

    def __init__(self, ledger: Ledger, flows: Sequence[Flow | Cast], peers: Sequence[Peer]) -> None:
        self._ledger = ledger
        self._flows = flows
        self._peers = peers

    async def measure(self, in_flight: int, warm_up: float, seconds: float, window: Window) -> Outcome:
        """Send for `warm_up` and then `seconds`, measuring the latter; wait for what is on its way."""
        for flow in self._flows:
            flow.start(in_flight)
        await asyncio.sleep(warm_up)
        with window:
            began, cpu, count, pings = self._standing()
            self._ledger.since = began
            await asyncio.sleep(seconds)
            ended, cpu_then, count_then, pings_then = self._standing()
            self._ledger.since = math.inf
        await self._settle()
        return Outcome(
            seconds=ended - began,
            count=count_then - count,
            pings=pings_then - pings,
            client_cpu=(cpu_then - cpu) / (ended - began),
            acked=Latency.of(self._ledger.ack_seconds),
            delivered=Latency.of(self._ledger.delivery_seconds),
            errors=self._ledger.errors,
            problems=self._ledger.problems,
        )

    def _standing(self) -> tuple[float, float, int, int]:
        """Return the clock and the own CPU time in seconds, the messages done and the pings answered."""
        count = sum(flow.done for flow in self._flows)
        return time.perf_counter(), time.process_time(), count, sum(peer.pings for peer in self._peers)

    async def _settle(self, patience: float = PATIENCE) -> None:
        """Stop sending, give what is on its way `patience` seconds, and report what never came."""
        self._ledger.running = False
        deadline = time.monotonic() + patience
        while any(flow.open for flow in self._flows) and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        for flow in self._flows:
            flow.finish()
        for peer in self._peers:
            if peer.closed:
                self._ledger.wrong(f"{peer.uid} was {peer.closed}")


async def pairs(
    url: str,
    *,
    pairs: int,
    in_flight: int,
    seconds: float,
    warm_up: float,
    window: Window | None = None,
    accounts: bool = True,
) -> Outcome:
    """Let `pairs` users each write to one other as fast as acknowledgements allow; `accounts`: they log in first."""
    names = [(f"a{i}", f"b{i}") for i in range(pairs)]
    users = [name for pair in names for name in pair]
    tokens = await log_in(url, users) if accounts else dict.fromkeys(users, "")
    ledger = Ledger()
    async with opened(url, tokens, dict(names) | {b: a for a, b in names}) as peers:
        await each(lambda pair: befriend(peers[pair[0]], peers[pair[1]]), names, 16)
        flows = [Flow(ledger, peers[a], peers[b]) for a, b in names]
        run = Run(ledger, flows, list(peers.values()))
        return await run.measure(in_flight, warm_up, seconds, window or nullcontext())


async def group(
    url: str, *, sockets: int, in_flight: int, seconds: float, warm_up: float, window: Window | None = None
) -> Outcome:
    """Let one user write to `sockets` others at once (op 6)."""
    tokens = await log_in(url, ["speaker", *(f"r{i}" for i in range(sockets))])
    async with opened(url, tokens) as peers:
        speaker, *receivers = peers.values()
        ledger = Ledger()
        run = Run(ledger, [Cast(ledger, speaker, receivers)], [speaker, *receivers])
        return await run.measure(in_flight, warm_up, seconds, window or nullcontext())


async def idle(url: str, tokens: Mapping[str, str], *, seconds: float, window: Window | None = None) -> float:
    """Hold one silent socket for each user for `seconds`; return how long opening them took (s)."""
    began = time.perf_counter()
    async with opened(url, tokens) as peers:
        took = time.perf_counter() - began
        ledger = Ledger()
        await asyncio.sleep(2)  # what opening has left to do is not idleness
        await Run(ledger, [], list(peers.values())).measure(0, 0, seconds, window or nullcontext())
        if ledger.errors:
            raise RuntimeError(f"{ledger.errors} idle sockets are gone: {ledger.problems}")
    return took


async def befriend(a: Peer, b: Peer) -> None:
    """Let each write to the other once, so that neither counts as a stranger; wait for the acks."""
    for one, other in ((b, a), (a, b)):
        one.say(Say(other.uid, "\nhello"))
        await other.expect(Code.RECEIVED)
        await one.expect(Code.ONLINE)


@asynccontextmanager
async def opened(
    url: str, tokens: Mapping[str, str], talks_to: Mapping[str, str] | None = None, at_once: int = 32
) -> AsyncIterator[dict[str, Peer]]:
    """Open one socket for each user of `tokens`, in its order, and close them at the end."""
    peers: dict[str, Peer] = {}

    async def enter(uid: str) -> None:
        peers[uid] = await connect(url, uid, tokens[uid], (talks_to or {}).get(uid, ""))

    try:
        await each(enter, tokens, at_once)
        yield {uid: peers[uid] for uid in tokens}
    finally:
        await each(Peer.close, list(peers.values()), 256)


def main() -> None:
    """Run one load against a server that is already there and print what it measured as JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.load", description=__doc__.partition("\n")[0])
    parser.add_argument("load", choices=["pairs", "group", "idle"])
    parser.add_argument("--url", required=True, help="of the server, http://127.0.0.1:8081")
    parser.add_argument("--sockets", type=int, default=50, help="pairs, receivers or idle sockets (50)")
    parser.add_argument("--in-flight", type=int, default=16, help="unacknowledged per sender (16)")
    parser.add_argument("--seconds", type=float, default=10, help="measured (10)")
    parser.add_argument("--warm-up", type=float, default=2, help="seconds before that (2)")
    args = parser.parse_args()
    uvloop.run(_by_hand(args))


async def _by_hand(args: argparse.Namespace) -> None:
    timing = {"seconds": args.seconds, "warm_up": args.warm_up, "in_flight": args.in_flight}
    async with asyncio.timeout(args.warm_up + args.seconds + 10 * PATIENCE):
        if args.load == "idle":
            tokens = await log_in(args.url, [f"i{i}" for i in range(args.sockets)])
            took = await idle(args.url, tokens, seconds=args.seconds)
            print(f"{args.sockets} sockets opened in {took:.2f} s")
            return
        if args.load == "pairs":
            outcome = await pairs(args.url, pairs=args.sockets, **timing)
        else:
            outcome = await group(args.url, sockets=args.sockets, **timing)
    print(f"{outcome.rate:,.0f}/s", msgspec.json.format(msgspec.json.encode(outcome), indent=2).decode())
    if outcome.client_cpu > CLIENT_LIMIT:
        print("the load generator was the limit: this says nothing about the server")
    if outcome.errors:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
