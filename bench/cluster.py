"""Measure several server processes, compared with one process on the same stores in the same run.

The stores are MariaDB, Redis and a MongoDB stub that stores nothing: secantusd would hide the cost of the processes.
All processes, the stores and the load generator share this machine. Exit code 1: a server did not start, or it violated
the contract of docs/protocol.md, which makes the figures invalid.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from bench import load
from bench.client import TIMEOUT, BenchError, log_in
from bench.cluster_gap import GAPS, WRITER, measure_gap
from bench.cluster_servers import BenchStores, RedisUsage, cluster_servers, cluster_stores, node_with_users
from bench.experiments import MIB, load_figures, run_for
from bench.fixed_rate import FixedRatePairs
from bench.report import BenchReport, Figures
from bench.server_process import UNLIMITED, BenchServer, NotRunningError, ResourceUsage, allow_many_sockets

# A loaded machine must not end a lease or a call: then the figures would be those of a failure.
SETTINGS = UNLIMITED | {"StoreTimeout": "30"}
SETTLE_SECONDS = 4.0  # until a process has found a new node, and its memory is constant


class Placement(NamedTuple):
    """Where the sockets are: the number of processes, and the index of a process for the number of a user."""

    processes: int
    sender: Callable[[int], int]
    receiver: Callable[[int], int]

    def elsewhere(self, servers: Sequence[BenchServer], pairs: int) -> dict[str, str]:
        """Return the URLs of the users of `load.pairs`."""
        senders = {f"a{i}": servers[self.sender(i)].url for i in range(pairs)}
        return senders | {f"b{i}": servers[self.receiver(i)].url for i in range(pairs)}


ONE = Placement(1, lambda _: 0, lambda _: 0)
# The second process has no sockets, or all those of the receivers: its CPU counts.
PLACEMENTS = {
    "one": ONE,
    "local": Placement(2, lambda _: 0, lambda _: 0),
    "remote": Placement(2, lambda _: 0, lambda _: 1),
}
# Both processes have half of the senders.
SPREAD = {
    "one": ONE,
    "two, local": Placement(2, lambda i: i % 2, lambda i: i % 2),
    "two, remote": Placement(2, lambda i: i % 2, lambda i: (i + 1) % 2),
}
# The writer is at the first process, and each process has a quarter of the receivers.
BROADCAST = {"one": ONE, "four": Placement(4, lambda _: 0, lambda i: i % 4)}


def pairs(args: argparse.Namespace) -> Iterator[BenchReport]:
    """One-to-one at one process and between two: CPU, latency, and the work of Redis, per message."""
    for in_flight in args.in_flight:
        yield _compare_placements(args, PLACEMENTS, in_flight, "all sockets, or all senders, at the first process")


def two(args: argparse.Namespace) -> Iterator[BenchReport]:
    """Two busy processes against one on this machine: throughput."""
    for in_flight in args.in_flight:
        yield _compare_placements(args, SPREAD, in_flight, "half of the senders at each process")


def _compare_placements(
    args: argparse.Namespace, placements: Mapping[str, Placement], in_flight: int, place: str
) -> BenchReport:
    report = _report(args, f"{args.pairs} pairs, {in_flight} in flight each; {place}")
    for column, placement, servers, stores in _runs(args, placements):
        usage, redis = ResourceUsage(*servers), RedisUsage(stores.redis)
        work = load.pairs(
            servers[0].url,
            pairs=args.pairs,
            in_flight=in_flight,
            seconds=args.seconds,
            warm_up=args.warm_up,
            window=_both(usage, redis),
            elsewhere=placement.elsewhere(servers, args.pairs),
        )
        result = run_for(work, args.warm_up + args.seconds + 10 * TIMEOUT)
        report.add(column, load_figures("message", result, usage) | redis.per("message", result.count))
        report.add_errors(column, result.errors, result.problems)
    return report


def latency(args: argparse.Namespace) -> Iterator[BenchReport]:
    """Latency of pairs that write at a fixed rate."""
    report = _report(args, f"{args.pairs} pairs at {args.rate:g} messages/s each")
    for column, placement, servers, stores in _runs(args, PLACEMENTS):
        usage, redis = ResourceUsage(*servers), RedisUsage(stores.redis)
        figures, problems = run_for(_at_fixed_rate(args, placement, servers, usage, redis), args.seconds + 10 * TIMEOUT)
        report.add(column, figures)
        report.add_errors(column, len(problems), problems)
    yield report


async def _at_fixed_rate(
    args: argparse.Namespace,
    placement: Placement,
    servers: Sequence[BenchServer],
    usage: ResourceUsage,
    redis: RedisUsage,
) -> tuple[Figures, list[str]]:
    names = [(f"a{i}", f"b{i}") for i in range(args.pairs)]
    tokens = await log_in(servers[0].url, [name for pair in names for name in pair])
    elsewhere = placement.elsewhere(servers, args.pairs)
    async with load.open_sockets(servers[0].url, tokens, dict(names), elsewhere=elsewhere) as sockets:
        for a, b in names:
            await load.greet(sockets[a], sockets[b])
        writing = FixedRatePairs([(sockets[a], sockets[b]) for a, b in names], ())
        writing.start(args.rate)
        await writing.measure(args.warm_up)
        with _both(usage, redis):
            measured = await writing.measure(args.seconds, last=True)
        writing.check_open()
    figures = {
        "ack p50 ms": measured.acked.p50,
        "ack p99 ms": measured.acked.p99,
        "delivered p50 ms": measured.delivered.p50,
        "delivered p99 ms": measured.delivered.p99,
        "CPU µs/message": usage.cpu_seconds / measured.sent * 1e6,
        "load generator late p99 ms": measured.late.p99,
    }
    return figures | redis.per("message", measured.sent), writing.recorder.problems


def broadcast(args: argparse.Namespace) -> Iterator[BenchReport]:
    """One user writes to all others, at one process and at four: CPU per delivery, time until all have it."""
    report = _report(args, f"broadcasts to {args.sockets} sockets, 1 in flight")
    for column, placement, servers, stores in _runs(args, BROADCAST):
        usage, redis = ResourceUsage(*servers), RedisUsage(stores.redis)
        work = load.broadcast(
            servers[0].url,
            sockets=args.sockets,
            in_flight=1,
            seconds=args.seconds,
            warm_up=args.warm_up,
            window=_both(usage, redis),
            elsewhere={f"r{i}": servers[placement.receiver(i)].url for i in range(args.sockets)},
        )
        result = run_for(work, args.warm_up + args.seconds + 10 * TIMEOUT)
        report.add(column, load_figures("delivery", result, usage) | redis.per("delivery", result.count))
        report.add_errors(column, result.errors, result.problems)
    yield report


def directory(args: argparse.Namespace) -> Iterator[BenchReport]:
    """Memory for users who are online at another process: in Redis, and at each process."""
    report = BenchReport(f"{args.users:,} users online at another process", "", args.data, SETTINGS)
    names = [f"user{number:08}" for number in range(args.users)]

    for _ in range(args.rounds):
        with cluster_stores() as stores, cluster_servers(stores, 2, args.data, SETTINGS) as servers:
            time.sleep(SETTLE_SECONDS)
            server = servers[0]
            before, cpu = server.rss(), server.cpu_seconds()
            with node_with_users(stores, names) as key:
                time.sleep(SETTLE_SECONDS)
                size, growth = int(stores.redis.memory_usage(key, samples=0) or 0), server.rss() - before
                used = server.cpu_seconds() - cpu
        figures = {
            "Redis MiB": size / MIB,
            "Redis bytes/user": size / args.users,
            "RSS growth of a process, MiB": growth / MIB,
            "RSS growth of a process, bytes/user": growth / args.users,
            "CPU of a process to learn of the users, ms": used * 1000,
        }
        report.add("users", figures)
    yield report


def gap(args: argparse.Namespace) -> Iterator[BenchReport]:
    """Recovery from a gap: a killed subscription, and a lapsed lease, with few and with many sockets at one process."""
    settings = SETTINGS | {"StrangerLimit": "0"}  # one user writes to all others
    few, many = args.gap_sockets
    report = BenchReport(f"a gap of a process with {few:,} and with {many:,} sockets", f"{few:,}", args.data, settings)
    for _ in range(args.rounds):
        for count in (few, many):
            names = [WRITER, *(f"r{number}" for number in range(count))]
            figures: Figures = {}
            for cause, cut in GAPS.items():
                with cluster_stores() as stores:
                    tokens = run_for(stores.seed_users(names), 120)
                    with cluster_servers(stores, 2, args.data, settings) as servers:
                        result = run_for(measure_gap(stores, servers, tokens, cut), 180 + count * 0.02)
                figures |= {f"{cause}: {label}": value for label, value in result.figures().items()}
            report.add(f"{count:,}", figures)
    yield report


PARTS = {part.__name__: part for part in (pairs, latency, two, broadcast, directory, gap)}


def _runs(
    args: argparse.Namespace, placements: Mapping[str, Placement]
) -> Iterator[tuple[str, Placement, list[BenchServer], BenchStores]]:
    """Start the stores and the processes of each column, for each round."""
    for _ in range(args.rounds):
        for column, placement in placements.items():
            with (
                cluster_stores() as stores,
                cluster_servers(stores, placement.processes, args.data, SETTINGS) as servers,
            ):
                yield column, placement, servers, stores


@contextmanager
def _both(usage: ResourceUsage, redis: RedisUsage) -> Iterator[None]:
    with redis, usage:
        yield


def _report(args: argparse.Namespace, title: str) -> BenchReport:
    """Return an empty report with one process as the baseline."""
    report = BenchReport(f"{title}, {args.seconds:g} s, {args.rounds} rounds", "one", args.data, SETTINGS)
    report.notes.append("CPU and RSS are the sums of all server processes; MongoDB is a stub that stores nothing")
    return report


def main() -> None:
    """Run the parts and print their tables."""
    parser = argparse.ArgumentParser(prog="python -m bench.cluster", description=__doc__.partition("\n")[0])
    described = "; ".join(f"{name}: {part.__doc__}" for name, part in PARTS.items())
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"default: all. {described}")
    parser.add_argument("--pairs", type=int, default=50, help="(50)")
    parser.add_argument("--in-flight", type=int, nargs="+", default=[16, 1], help="one table for each (16 1)")
    parser.add_argument("--rate", type=float, default=10, help="messages per second of each pair of latency (10)")
    parser.add_argument("--sockets", type=int, default=500, help="receivers of a broadcast (500)")
    parser.add_argument("--users", type=int, default=100_000, help="of the directory (100,000)")
    parser.add_argument("--gap-sockets", type=int, nargs=2, default=[100, 10_000], help="(100 10,000)")
    parser.add_argument("--warm-up", type=float, default=2, help="seconds before each window (2)")
    parser.add_argument("--seconds", type=float, default=10, help="measured time of each run (10)")
    parser.add_argument("--rounds", type=int, default=3, help="(3)")
    parser.add_argument("--json", type=Path, metavar="FOLDER", help="write all figures to this folder")
    parser.add_argument("--data", type=Path, default=Path(tempfile.gettempdir()), help="parent of the data folders")
    args = parser.parse_args()
    if unknown := set(args.parts) - PARTS.keys():
        parser.error(f"no such part: {', '.join(sorted(unknown))}; the parts are {', '.join(PARTS)}")
    allow_many_sockets()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have made a background job ignore it
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # both signals also end the servers
    failed = False
    try:
        for name in args.parts or PARTS:
            for number, report in enumerate(PARTS[name](args)):
                print(f"{report.table()}\n", flush=True)
                failed = failed or bool(report.errors)
                if args.json:
                    report.write(args.json / f"cluster-{name}{f'-{args.in_flight[number]}' if number else ''}.json")
    except (BenchError, NotRunningError, TimeoutError) as error:
        sys.exit(f"bench: {type(error).__name__}: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(failed)


if __name__ == "__main__":
    main()
