"""The experiments: each puts servers of its own under a load and returns the report of it."""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import uvloop

from bench import beyond as over
from bench import crowds, databases, history, load, trouble
from bench.calls import profiling, read_profile, top_functions
from bench.client import PATIENCE
from bench.harness import LIFTED, Meter, Server, serving
from bench.mischief import KINDS
from bench.people import enrol
from bench.report import Figures, Report

T = TypeVar("T")
MIB = 2**20
SERVER_CPU, CLIENT_CPU = "CPU of server, cores", "CPU of load generator, cores"
UNREAD = 100_000  # messages that op 3 streams
DATABASES = ("relay", "embedded", "databases", "stub")


def pairs(args: argparse.Namespace) -> Report:
    """One-to-one: rate, CPU, latency and memory."""

    def work(server: Server, meter: Meter) -> Awaitable[load.Outcome]:
        return load.pairs(server.url, pairs=args.pairs, window=meter, **_pace(args))

    return _compare(args, _pairs_title(args), "message", work)


def relays(args: argparse.Namespace) -> Report:
    """The relay on aiohttp, with gathered writes, and on picows: what another edge could give."""

    def work(server: Server, meter: Meter) -> Awaitable[load.Outcome]:
        return load.pairs(server.url, pairs=args.pairs, window=meter, accounts=False, **_pace(args))

    return _compare(args, _pairs_title(args), "message", work)


def calls(args: argparse.Namespace) -> Report:
    """Function calls on the event loop's thread per message, counted by cProfile; independent of other load."""
    report = _report(args, f"calls on the event loop's thread, {args.pairs} pairs, {args.seconds:g} s each")
    if args.stats:
        args.stats.mkdir(parents=True, exist_ok=True)
    for target in args.targets:
        figures: Figures = {}
        for in_flight in args.in_flight:
            with _folder(args.data) as folder:
                stats = (args.stats or folder).resolve() / f"{target}-{in_flight}.pstats"
                with serving(target, folder, on_uvloop=args.uvloop, profile=stats) as server:
                    pace = {"in_flight": in_flight, "seconds": args.seconds, "warm_up": args.warm_up}
                    window = profiling(server.pid)
                    work = load.pairs(server.url, pairs=args.pairs, window=window, **pace)
                    outcome = _run(work, args.warm_up + args.seconds + 10 * PATIENCE)
                functions = read_profile(stats)
            total = sum(one.calls for one in functions)
            figures[f"calls/message, {in_flight} in flight"] = total / outcome.count
            report.blame(target, outcome.errors, outcome.problems)
            if args.top:
                print(f"**{target}, {in_flight} in flight, {outcome.count:,} messages**\n")
                print(f"{top_functions(functions, outcome.count, args.top)}\n", flush=True)
        report.add(target, figures)
    return report


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
        tokens = enrol(folder / "data", names) if target == "server" else dict.fromkeys(names, "")
        with serving(target, folder, on_uvloop=args.uvloop) as server:
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


def stores(args: argparse.Namespace) -> Report:
    """One-to-one on MariaDB, MongoDB's stand-in and Redis, and with a MongoDB that answers at once."""
    lifted = LIFTED | {"StoreTimeout": "60"}  # the stand-in takes seconds for what is on its way
    report = Report(f"the same on other stores: {_pairs_title(args)}", "relay", args.data, lifted)
    report.notes.append("databases: MariaDB, secantusd, Redis; stub: a MongoDB that stores nothing, and the others")
    for _ in range(args.rounds):
        for column in DATABASES:
            with ExitStack() as stack:
                folder = stack.enter_context(_folder(args.data))
                environ = {}
                if column in ("databases", "stub"):
                    environ = stack.enter_context(databases.running(stub=column == "stub"))
                target = "relay" if column == "relay" else "server"
                server = stack.enter_context(serving(target, folder, settings=lifted, environ=environ))
                meter = Meter(server)
                work = load.pairs(server.url, pairs=args.pairs, window=meter, **_pace(args))
                outcome = _run(work, args.warm_up + args.seconds + 10 * PATIENCE)
            report.add(column, _figures("message", outcome, meter))
            report.blame(column, outcome.errors, outcome.problems)
    return report


def beside(args: argparse.Namespace) -> Report:
    """Busy pairs, alone and beside many idle sockets."""
    report = Report(f"10 busy pairs, alone and beside {args.sockets:,} idle sockets", "alone", args.data)
    names = [f"i{number}" for number in range(args.sockets)]
    for _ in range(args.rounds):
        with _folder(args.data) as folder:
            tokens = enrol(folder / "data", names)
            with serving("server", folder) as server:
                first, then = Meter(server), Meter(server)
                pace = {"seconds": args.seconds, "warm_up": args.warm_up}
                outcomes = _run(crowds.beside(server.url, tokens, first, then, **pace), 20 * PATIENCE)
        for column, meter, outcome in zip(("alone", "beside"), (first, then), outcomes, strict=True):
            report.add(column, _figures("message", outcome, meter))
            report.blame(column, outcome.errors, outcome.problems)
    return report


def through(args: argparse.Namespace) -> Report:
    """Memory after few and after many messages through many sockets."""
    report = _report(args, f"{args.messages:,} messages through {args.sockets:,} sockets")
    names = [f"u{number}" for number in range(args.sockets)]
    few = 10 * args.sockets
    for target, folder in _turns(args):
        tokens = enrol(folder / "data", names) if target == "server" else dict.fromkeys(names, "")
        with serving(target, folder) as server:
            work = crowds.through(server, tokens, few, args.messages)
            after_few, after_all, seconds = _run(work, 60 + args.messages * 0.001)
        report.add(
            target,
            {
                f"RSS after {few:,} MiB": after_few / MIB,
                f"RSS after {args.messages:,} MiB": after_all / MIB,
                "grown, MiB": (after_all - after_few) / MIB,
                "messages/s": args.messages / seconds,
            },
        )
    return report


def logins(args: argparse.Namespace) -> Report:
    """Logins per second beside what bcrypt can do at the same cost in as many threads."""
    report = Report(
        f"logins, PasswordCost 12, {args.seconds:g} s", "bcrypt", args.data, LIFTED | {"PasswordCost": "12"}
    )
    for _ in range(args.rounds):
        report.add("bcrypt", {"logins/s": crowds.bcrypt_alone(args.seconds, 12)})
        settings = LIFTED | {"PasswordCost": "12", "PasswordWait": "60"}
        with _folder(args.data) as folder, serving("server", folder, settings=settings) as server:
            report.add("server", {"logins/s": _run(crowds.logins(server.url, args.seconds), args.seconds + 120)})
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
            unread = min(n, UNREAD)
            [(late, token)] = enrol(folder / "data", ["late"]).items()
            history.seed(folder / "data", unread, [late], unread=True)
            with serving("server", folder) as server:
                figures = _run(history.read(server, n, args.times), 300)
                report.add(f"{n:,}", figures | _run(history.stream(server, late, token, unread), 300))
    return report


def troubles(args: argparse.Namespace) -> Report:
    """What busy pairs notice of others who make trouble, and what memory the server gives back."""
    pace = trouble.Pace(args.pairs, args.rate, args.seconds, args.rest)
    title = (
        f"{args.pairs} pairs at {args.rate:g} messages/s each, {args.seconds:g} s without and {args.seconds:g} s with"
    )
    report = Report(f"{title} trouble, {args.rest:g} s of rest", "", args.data, trouble.LIFTED)
    if args.elsewhere:
        report.notes.append("the trouble was made at a server of its own: what the pairs notice is the machine's part")
    for kind in list(KINDS) if args.kind == "all" else [args.kind]:
        for _ in range(args.rounds):
            with ExitStack() as stack:
                server, tokens = _prepared(stack, args.data, pace, kind)
                troubled = _prepared(stack, args.data, pace, kind) if args.elsewhere else (server, tokens)
                measuring = trouble.measure(server, tokens, troubled, pace, kind)
                result = _run(measuring, 2 * args.seconds + args.rest + 10 * PATIENCE)
            report.add(kind, result.figures())
            report.blame(kind, result.errors, result.problems)
            made = ", ".join(f"{count:,} {what}" for what, count in sorted(result.done.items()))
            report.notes += [f"{kind}: {made}"] if made else []
            report.notes += [f"MISSED: {kind}: {miss}" for miss in result.misses()]
    return report


def _prepared(stack: ExitStack, data: Path, pace: trouble.Pace, kind: str) -> tuple[Server, Mapping[str, str]]:
    """Start a server whose users know each other, with what the trouble needs stored; return their tokens, too."""
    folder = stack.enter_context(_folder(data))
    tokens = enrol(folder / "data", trouble.cast(pace, KINDS[kind]))
    with serving("server", folder) as server:
        _run(trouble.introduce(server.url, tokens, pace, KINDS[kind]), 120)
    trouble.fill(KINDS[kind], folder / "data")
    return stack.enter_context(serving("server", folder, settings=trouble.LIFTED)), tokens


def beyond(args: argparse.Namespace) -> Report:
    """Twice the sockets and ten times the messages on their way, and how soon the rate is back."""
    title = f"{args.pairs} pairs, {args.in_flight} in flight each; then as many more with {over.TIMES} times that"
    report = Report(f"{title}, {args.seconds:g} s each, {args.rounds} rounds", "", args.data)
    names = [name for prefix in "ro" for pair in over.names(prefix, args.pairs) for name in pair]
    for _ in range(args.rounds):
        with _folder(args.data) as folder:
            tokens = enrol(folder / "data", names)
            with serving("server", folder) as server:
                measuring = over.measure(server, tokens, pairs=args.pairs, **_pace(args))
                result = _run(measuring, args.warm_up + 2 * args.seconds + over.WITHIN + 10 * PATIENCE)
        report.add("server", result.figures())
        report.blame("server", result.errors, result.problems)
        if result.back > over.WITHIN:
            report.notes.append(f"MISSED: {over.BACK:g} of the rate is not back within {over.WITHIN} s")
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


def _pairs_title(args: argparse.Namespace) -> str:
    return f"{args.pairs} pairs, {args.in_flight} in flight each, {args.seconds:g} s, {args.rounds} rounds"


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
