"""The runner: `python -m bench pairs | group | idle | history | trouble`, each against fresh servers.

Every run is on loopback, in a temporary folder, and ends by itself. Exit code 1: a server broke the
contract (the figures mean nothing then) or did not run.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import uvloop

from bench import history, load, trouble
from bench.client import PATIENCE, BenchError, log_in
from bench.harness import TARGETS, Meter, NotRunningError, Server, serving
from bench.mischief import KINDS
from bench.report import Figures, Report

T = TypeVar("T")
MIB = 2**20
SERVER_CPU, CLIENT_CPU = "CPU of server, cores", "CPU of load generator, cores"


def main() -> None:
    """Run one experiment and print its table."""
    args = _parser().parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a shell's & had it ignored
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # both end the servers too
    try:
        report: Report = args.experiment(args)
    except (BenchError, NotRunningError, NotImplementedError, TimeoutError) as error:
        sys.exit(f"bench: {type(error).__name__}: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    print(report.table())
    if args.json:
        report.write(args.json)
    if report.errors:
        sys.exit(1)


def pairs(args: argparse.Namespace) -> Report:
    """One-to-one: rate, CPU, latency and memory."""
    title = f"{args.pairs} pairs, {args.in_flight} in flight each, {args.seconds:g} s, {args.rounds} rounds"

    def work(server: Server, meter: Meter) -> Awaitable[load.Outcome]:
        return load.pairs(server.url, pairs=args.pairs, window=meter, **_pace(args))

    return _compare(args, title, "message", work)


def group(args: argparse.Namespace) -> Report:
    """One to all: deliveries, CPU, and how long until the last has it."""
    title = f"one to {args.sockets} sockets, {args.in_flight} in flight, {args.seconds:g} s, {args.rounds} rounds"

    def work(server: Server, meter: Meter) -> Awaitable[load.Outcome]:
        return load.group(server.url, sockets=args.sockets, window=meter, **_pace(args))

    return _compare(args, title, "delivery", work)


def idle(args: argparse.Namespace) -> Report:
    """Silent sockets: memory of each, and CPU of all."""
    title = f"{args.sockets} idle sockets, {args.seconds:g} s, {args.rounds} rounds"
    report = _report(args, title)
    names = [f"i{number}" for number in range(args.sockets)]
    for target, folder in _turns(args):
        with serving(target, folder, on_uvloop=args.uvloop) as server:
            tokens = _run(log_in(server.url, names), 60 + args.sockets * 0.05)
        with serving(target, folder, on_uvloop=args.uvloop) as server:  # without what logins left in memory
            before, meter = server.rss(), Meter(server)
            holding = load.idle(server.url, tokens, seconds=args.seconds, window=meter)
            took = _run(holding, 60 + args.sockets * 0.05 + args.seconds)
        report.add(
            target,
            {
                "KiB per socket": (meter.rss_end - before) / 1024 / args.sockets,
                "sockets opened/s": args.sockets / took,
                "CPU while idle, % of a core": meter.cpu_seconds / args.seconds * 100,
                "RSS before MiB": before / MIB,
                "RSS with them MiB": meter.rss_end / MIB,
            },
        )
    return report


def pages(args: argparse.Namespace) -> Report:
    """Reading with few and with many messages stored; only the server can do it."""
    small, large = sorted(args.stored)
    title = f"pages of {history.PAGE} with {small:,} and with {large:,} messages stored, {args.times} of each"
    report = Report(title, f"{small:,}", args.data)
    for n in (small, large):
        with _folder(args.data) as folder:
            with serving("server", folder) as server:
                spoken = n if args.fill == "speak" else 0
                _run(history.speak(server.url, spoken), 60 + spoken * 0.005)
            if args.fill == "seed":
                history.seed(folder / "data", n)
            with serving("server", folder) as server:
                report.add(f"{n:,}", _run(history.read(server, n, args.times), 300))
    return report


def troubles(args: argparse.Namespace) -> Report:
    """What busy pairs notice of others who make trouble, and what memory the server gives back."""
    pace = trouble.Pace(args.pairs, args.rate, args.seconds, args.rest)
    title = (
        f"{args.pairs} pairs at {args.rate:g} messages/s each, {args.seconds:g} s without and {args.seconds:g} s with"
    )
    report = Report(f"{title} trouble, {args.rest:g} s of rest", "", args.data, trouble.LIFTED)
    for kind in list(KINDS) if args.kind == "all" else [args.kind]:
        for _ in range(args.rounds):
            with _folder(args.data) as folder:
                with serving("server", folder) as server:
                    tokens = _run(trouble.introduce(server.url, pace, KINDS[kind]), 120)
                trouble.fill(KINDS[kind], folder / "data")
                with serving("server", folder, settings=trouble.LIFTED) as server:
                    measuring = trouble.measure(server, tokens, pace, kind)
                    result = _run(measuring, 2 * args.seconds + args.rest + 10 * PATIENCE)
            report.add(kind, result.figures())
            report.blame(kind, result.errors, result.problems)
            made = ", ".join(f"{count:,} {what}" for what, count in sorted(result.done.items()))
            report.notes += [f"{kind}: {made}"] if made else []
            report.notes += [f"MISSED: {kind}: {miss}" for miss in result.misses()]
    return report


def _compare(
    args: argparse.Namespace,
    title: str,
    unit: str,
    work: Callable[[Server, Meter], Awaitable[load.Outcome]],
) -> Report:
    """Put every target under the same load in turn, round after round."""
    report = _report(args, title)
    for target, folder in _turns(args):
        with serving(target, folder, on_uvloop=args.uvloop) as server:
            meter = Meter(server)
            outcome = _run(work(server, meter), args.warm_up + args.seconds + 10 * PATIENCE)
        report.add(target, _figures(unit, outcome, meter))
        report.blame(target, outcome.errors, outcome.problems)
    for target in args.targets:
        client, server_cpu = report.values(target, CLIENT_CPU), report.values(target, SERVER_CPU)
        if client.max > load.CLIENT_LIMIT:
            report.notes.append(
                f"{target}: the load generator was at its limit (up to {client.max:.2f} of a core, the server up to"
                f" {server_cpu.max:.2f}): unless the server was at its own too, it may be faster than this"
            )
    return report


def _figures(unit: str, outcome: load.Outcome, meter: Meter) -> Figures:
    """Name what one run measured; a delivery or message is what CPU is divided by."""
    count = outcome.count or float("nan")
    units = "deliveries" if unit == "delivery" else f"{unit}s"
    figures = {
        f"{units}/s": outcome.rate,
        f"CPU µs/{unit}": meter.cpu_seconds / count * 1e6,
        "ack p50 ms": outcome.acked.p50,
        "ack p99 ms": outcome.acked.p99,
        "delivered p50 ms": outcome.delivered.p50,
        "delivered p99 ms": outcome.delivered.p99,
        "RSS start MiB": meter.rss_start / MIB,
        "RSS end MiB": meter.rss_end / MIB,
        f"pings/{unit}": outcome.pings / count,
        SERVER_CPU: meter.cpu_seconds / outcome.seconds,
        CLIENT_CPU: outcome.client_cpu,
        "CPU of all others, cores": (meter.machine_seconds - meter.cpu_seconds) / outcome.seconds - outcome.client_cpu,
    }
    if meter.instructions is not None:
        figures[f"instructions/{unit}"] = meter.instructions / count
    return figures


def _report(args: argparse.Namespace, title: str) -> Report:
    """Begin a report whose baseline is the plain relay."""
    report = Report(title, "relay", args.data)
    report.notes.append(f"the relays run on {'uvloop' if args.uvloop else 'asyncio'}")
    return report


def _turns(args: argparse.Namespace) -> Iterator[tuple[str, Path]]:
    """Give every target in turn, round after round, each with an empty folder of its own."""
    for _ in range(args.rounds):
        for target in args.targets:
            with _folder(args.data) as folder:
                yield target, folder


@contextmanager
def _folder(parent: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="chat-bench-", dir=parent) as name:
        yield Path(name)


def _pace(args: argparse.Namespace) -> dict[str, Any]:
    return {"in_flight": args.in_flight, "seconds": args.seconds, "warm_up": args.warm_up}


def _run(work: Awaitable[T], seconds: float) -> T:
    """Run `work` on a fresh uvloop, for `seconds` at most."""

    async def bounded() -> T:
        async with asyncio.timeout(seconds):
            return await work

    running: Coroutine[Any, Any, T] = bounded()
    return uvloop.run(running)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(required=True, metavar="pairs|group|idle|history|trouble")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", type=Path, help="write everything here, such as bench/results/pairs.json")
    common.add_argument("--data", type=Path, default=Path(tempfile.gettempdir()), help="parent of the data folders")

    command = commands.add_parser("pairs", parents=[common], help=pairs.__doc__)
    command.add_argument("--pairs", type=int, default=50)
    command.add_argument("--in-flight", type=int, default=16, help="unacknowledged messages of each sender (16)")
    command.add_argument("--warm-up", type=float, default=2, help="seconds before each window (2)")
    _add_rounds(command, rounds=3, targets=TARGETS)
    command.set_defaults(experiment=pairs)
    command = commands.add_parser("group", parents=[common], help=group.__doc__)
    command.add_argument("--sockets", type=int, default=500)
    command.add_argument("--in-flight", type=int, default=4, help="messages not yet with everybody (4)")
    command.add_argument("--warm-up", type=float, default=2, help="seconds before each window (2)")
    _add_rounds(command, rounds=3, targets=TARGETS)
    command.set_defaults(experiment=group)
    command = commands.add_parser("idle", parents=[common], help=idle.__doc__)
    command.add_argument("--sockets", type=int, default=5000)
    _add_rounds(command, rounds=1, targets=("relay", "server"))
    command.set_defaults(experiment=idle)
    command = commands.add_parser("history", parents=[common], help=pages.__doc__)
    command.add_argument("--stored", type=int, nargs=2, default=[1_000, 1_000_000])
    command.add_argument("--times", type=int, default=500, help="each page is asked for (500)")
    command.add_argument("--fill", choices=["speak", "seed"], default="speak", help="how messages get there")
    command.set_defaults(experiment=pages)
    command = commands.add_parser("trouble", parents=[common], help=troubles.__doc__)
    command.add_argument("--kind", choices=[*KINDS, "all"], default="all", help="of trouble (all)")
    command.add_argument("--pairs", type=int, default=20)
    command.add_argument("--rate", type=float, default=20, help="messages a second of each pair (20)")
    command.add_argument("--seconds", type=float, default=15, help="without, and again with the trouble (15)")
    command.add_argument("--rest", type=float, default=60, help="seconds until memory is looked at again (60)")
    command.add_argument("--rounds", type=int, default=1, help="(1)")
    command.set_defaults(experiment=troubles)
    return parser


def _add_rounds(command: argparse.ArgumentParser, *, rounds: int, targets: Sequence[str]) -> None:
    """Add what all experiments against several targets have in common."""
    command.add_argument("--targets", nargs="+", choices=TARGETS, default=targets, help="relay is the baseline")
    command.add_argument("--uvloop", action=argparse.BooleanOptionalAction, default=True, help="for the relays")
    command.add_argument("--seconds", type=float, default=10, help="measured in each run (10)")
    command.add_argument("--rounds", type=int, default=rounds, help=f"({rounds})")


if __name__ == "__main__":
    main()
