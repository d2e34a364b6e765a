"""The experiments: each starts servers, puts a load on them and returns a report."""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

import uvloop

from bench import databases, disruption_test, groups, history, load, login_rate, many_sockets
from bench.calls import FunctionCalls, profiling, read_profile, top_functions
from bench.client import TIMEOUT
from bench.disruptions import DISRUPTIONS
from bench.overload import IN_FLIGHT_FACTOR, RECOVERED, RECOVERY_SECONDS, pair_names
from bench.overload import measure as measure_overload
from bench.report import BenchReport, Figures
from bench.seed_users import seed_groups, seed_users
from bench.server_process import RELAYS, UNLIMITED, BenchServer, ResourceUsage, serving

T = TypeVar("T")
MIB = 2**20
SERVER_CPU, CLIENT_CPU = "CPU of server, cores", "CPU of load generator, cores"
UNREAD = 100_000  # messages to read with op 3
STORE_COLUMNS = ("relay", "embedded", "databases", "stub")


def pairs(args: argparse.Namespace) -> BenchReport:
    """One-to-one: throughput, CPU, latency and memory."""

    def work(server: BenchServer, usage: ResourceUsage) -> Awaitable[load.LoadResult]:
        return load.pairs(server.url, pairs=args.pairs, window=usage, **_timing(args))

    return _compare(args, _pairs_title(args), "message", work)


def relays(args: argparse.Namespace) -> BenchReport:
    """The relay on aiohttp, with gathered writes, and on picows: a comparison of WebSocket libraries."""

    def work(server: BenchServer, usage: ResourceUsage) -> Awaitable[load.LoadResult]:
        return load.pairs(server.url, pairs=args.pairs, window=usage, accounts=False, **_timing(args))

    return _compare(args, _pairs_title(args), "message", work)


def calls(args: argparse.Namespace) -> BenchReport:
    """Function calls on the event loop's thread per message or delivery (cProfile); independent of other load."""
    title = f"{args.pairs} pairs, and a group of {args.members} with {args.online} online, {args.seconds:g} s each"
    report = _report(args, f"calls on the event loop's thread, {title}")
    if args.stats:
        args.stats.mkdir(parents=True, exist_ok=True)
    for target in args.targets:
        figures: Figures = {}
        for kind, in_flight in product(args.loads, args.in_flight):
            functions, result = _profile(args, target, kind, in_flight)
            total = sum(function.calls for function in functions)
            unit = "message" if kind == "pairs" else "delivery"
            figures[f"calls/{unit}, {kind}, {in_flight} in flight"] = total / result.count
            report.add_errors(target, result.errors, result.problems)
            if args.top:
                print(f"**{target}, {kind}, {in_flight} in flight, per {unit} of {result.count:,}**\n")
                print(f"{top_functions(functions, result.count, args.top)}\n", flush=True)
        report.add(target, figures)
    return report


def _profile(
    args: argparse.Namespace, target: str, kind: str, in_flight: int
) -> tuple[list[FunctionCalls], load.LoadResult]:
    """Put the load `pairs` or `group` on one target under the profiler; return the functions that it called."""
    with data_folder(args.data) as folder:
        tokens = _seed_group(args, target, folder)
        stats = (args.stats or folder).resolve() / f"{Path(target).name}-{kind}-{in_flight}.pstats"
        with serving(target, folder, on_uvloop=args.uvloop, profile=stats) as server:
            timing = {"in_flight": in_flight, "seconds": args.seconds, "warm_up": args.warm_up}
            window = profiling(server.pid)
            if kind == "pairs":
                work = load.pairs(server.url, pairs=args.pairs, window=window, **timing)
            else:
                work = load.group(server.url, tokens, groups.GROUP, writers=args.writers, window=window, **timing)
            result = run_for(work, args.warm_up + args.seconds + 10 * TIMEOUT)
        return read_profile(stats), result


def broadcast(args: argparse.Namespace) -> BenchReport:
    """One to all: deliveries, CPU, and time until the last receiver has the message."""
    title = f"one to {args.sockets} sockets, {args.in_flight} in flight, {args.seconds:g} s, {args.rounds} rounds"

    def work(server: BenchServer, usage: ResourceUsage) -> Awaitable[load.LoadResult]:
        return load.broadcast(server.url, sockets=args.sockets, window=usage, **_timing(args))

    return _compare(args, title, "delivery", work)


def group(args: argparse.Namespace) -> BenchReport:
    """A message to a group: deliveries to its online members, CPU, and time until the last one has the message."""
    title = f"a group of {args.members} with {args.online} online, writers: {args.writers}, {args.in_flight} in flight"
    report = _report(args, f"{title}, {args.seconds:g} s, {args.rounds} rounds")
    for target, folder in _rounds(args):
        tokens = _seed_group(args, target, folder)
        with serving(target, folder, on_uvloop=args.uvloop) as server:
            usage = ResourceUsage(server)
            work = load.group(server.url, tokens, groups.GROUP, writers=args.writers, window=usage, **_timing(args))
            result = run_for(work, args.warm_up + args.seconds + 10 * TIMEOUT)
        report.add(target, load_figures("delivery", result, usage))
        report.add_errors(target, result.errors, result.problems)
    _note_busy_client(report, args.targets)
    return report


def _seed_group(args: argparse.Namespace, target: str, folder: Path) -> Mapping[str, str]:
    """Create groups.GROUP, unless the target is a relay. Returns the tokens of the members who will be online."""
    members = [f"m{number}" for number in range(args.members)]
    if target in RELAYS:
        return dict.fromkeys(members[: args.online], "")
    tokens = seed_users(folder / "data", members)
    seed_groups(folder / "data", {groups.GROUP: members})
    return {name: tokens[name] for name in members[: args.online]}


def idle(args: argparse.Namespace) -> BenchReport:
    """Idle sockets: memory per socket, and CPU of all."""
    title = f"{args.sockets} idle sockets, {args.seconds:g} s, {args.rounds} rounds"
    report = _report(args, title)
    names = [f"i{number}" for number in range(args.sockets)]
    for target, folder in _rounds(args):
        tokens = seed_users(folder / "data", names) if target not in RELAYS else dict.fromkeys(names, "")
        with serving(target, folder, on_uvloop=args.uvloop) as server:
            before, usage = server.rss(), ResourceUsage(server)
            holding = load.idle(server.url, tokens, seconds=args.seconds, window=usage)
            took = run_for(holding, 60 + args.sockets * 0.05 + args.seconds)
        report.add(
            target,
            {
                "KiB per socket": (usage.rss_end - before) / 1024 / args.sockets,
                "sockets opened/s": args.sockets / took,
                "CPU while idle, % of a core": usage.cpu_seconds / args.seconds * 100,
                "RSS before MiB": before / MIB,
                "RSS with sockets MiB": usage.rss_end / MIB,
            },
        )
    return report


def stores(args: argparse.Namespace) -> BenchReport:
    """One-to-one on MariaDB, secantusd (for MongoDB) and Redis, and with a MongoDB stub that stores nothing."""
    settings = UNLIMITED | {"StoreTimeout": "60"}  # secantusd takes seconds for the messages in flight
    report = BenchReport(f"stores: {_pairs_title(args)}", "relay", args.data, settings)
    report.notes.append("databases: MariaDB, secantusd, Redis; stub: MariaDB, a MongoDB that stores nothing, Redis")
    for _ in range(args.rounds):
        for column in STORE_COLUMNS:
            with ExitStack() as stack:
                folder = stack.enter_context(data_folder(args.data))
                environ = {}
                if column in ("databases", "stub"):
                    environ = stack.enter_context(databases.run_databases(stub=column == "stub"))
                target = "relay" if column == "relay" else "server"
                server = stack.enter_context(serving(target, folder, settings=settings, environ=environ))
                usage = ResourceUsage(server)
                work = load.pairs(server.url, pairs=args.pairs, window=usage, **_timing(args))
                result = run_for(work, args.warm_up + args.seconds + 10 * TIMEOUT)
            report.add(column, load_figures("message", result, usage))
            report.add_errors(column, result.errors, result.problems)
    return report


def mixed(args: argparse.Namespace) -> BenchReport:
    """Busy pairs, alone and with many idle sockets."""
    report = BenchReport(f"10 busy pairs, alone and with {args.sockets:,} idle sockets", "alone", args.data)
    names = [f"i{number}" for number in range(args.sockets)]
    for _ in range(args.rounds):
        with data_folder(args.data) as folder:
            tokens = seed_users(folder / "data", names)
            with serving("server", folder) as server:
                usages = ResourceUsage(server), ResourceUsage(server)
                timing = {"seconds": args.seconds, "warm_up": args.warm_up}
                work = many_sockets.pairs_with_idle_sockets(server.url, tokens, *usages, **timing)
                results = run_for(work, 20 * TIMEOUT)
        for column, usage, result in zip(("alone", "with idle"), usages, results, strict=True):
            report.add(column, load_figures("message", result, usage))
            report.add_errors(column, result.errors, result.problems)
    return report


def memory(args: argparse.Namespace) -> BenchReport:
    """Memory after 10 messages per socket and after many messages through many sockets."""
    report = _report(args, f"{args.messages:,} messages through {args.sockets:,} sockets")
    names = [f"u{number}" for number in range(args.sockets)]
    few = 10 * args.sockets
    for target, folder in _rounds(args):
        tokens = seed_users(folder / "data", names) if target not in RELAYS else dict.fromkeys(names, "")
        with serving(target, folder) as server:
            work = many_sockets.memory_after_messages(server, tokens, few, args.messages)
            after_few, after_all, seconds = run_for(work, 60 + args.messages * 0.001)
        report.add(
            target,
            {
                f"RSS after {few:,} MiB": after_few / MIB,
                f"RSS after {args.messages:,} MiB": after_all / MIB,
                "growth, MiB": (after_all - after_few) / MIB,
                "messages/s": args.messages / seconds,
            },
        )
    return report


def logins(args: argparse.Namespace) -> BenchReport:
    """Logins per second, compared with bcrypt alone at the same cost and with the same number of threads."""
    report = BenchReport(
        f"logins, PasswordCost 12, {args.seconds:g} s", "bcrypt", args.data, UNLIMITED | {"PasswordCost": "12"}
    )
    for _ in range(args.rounds):
        report.add("bcrypt", {"logins/s": login_rate.bcrypt_checks_per_second(args.seconds, 12)})
        settings = UNLIMITED | {"PasswordCost": "12", "PasswordWait": "60"}
        with data_folder(args.data) as folder, serving("server", folder, settings=settings) as server:
            report.add(
                "server",
                {"logins/s": run_for(login_rate.logins_per_second(server.url, args.seconds), args.seconds + 120)},
            )
    return report


def read_history(args: argparse.Namespace) -> BenchReport:
    """Page latency with few and with many stored messages, for the server only."""
    small, large = sorted(args.stored)
    title = f"pages of {history.PAGE} messages out of {small:,} and {large:,}, {args.times} of each kind"
    report = BenchReport(title, f"{small:,}", args.data)
    for n in (small, large):
        with data_folder(args.data) as folder:
            with serving("server", folder) as server:
                sent = n if args.fill == "send" else 0
                run_for(history.send_messages(server.url, sent), 60 + sent * 0.005)
            if args.fill == "seed":
                history.seed(folder / "data", n)
            unread = min(n, UNREAD)
            [(late, token)] = seed_users(folder / "data", ["late"]).items()
            history.seed(folder / "data", unread, [late], unread=True)
            with serving("server", folder) as server:
                figures = run_for(history.measure_pages(server, n, args.times), 300)
                report.add(f"{n:,}", figures | run_for(history.measure_unread(server, late, token, unread), 300))
    return report


def group_history(args: argparse.Namespace) -> BenchReport:
    """Pages, marks and the list of conversations of a group with few and with many messages, for the server only."""
    sizes = sorted(args.stored)
    title = f"a group of {args.members} with {', '.join(f'{n:,}' for n in sizes)} messages, {args.times} requests each"
    report = BenchReport(title, f"{sizes[0]:,}", args.data)
    with ExitStack() as stack:
        prepared = {}
        for n in sizes:
            data = stack.enter_context(data_folder(args.data)) / "data"
            members = [f"m{number}" for number in range(args.members)]
            tokens = seed_users(data, members)
            prepared[n] = data, tokens[groups.READER], groups.seed_group(data, members, n)
        for number in range(args.rounds):
            for n, (data, token, group) in prepared.items():
                run_for(groups.reset_position(data, group), 60)
                with serving("server", data.parent) as server:
                    figures = run_for(groups.measure_requests(server, token, n, args.times), 300)
                figures |= run_for(groups.count_steps(data, group, n), 60) if number == 0 else {}
                report.add(f"{n:,}", figures)
    return report


def idle_groups(args: argparse.Namespace) -> BenchReport:
    """Memory of many groups that were used once, compared with the same users without groups."""
    report = BenchReport(f"{args.groups:,} idle groups of {args.members} members", "no groups", args.data)
    named = groups.idle_groups(args.groups, args.members)
    users = sorted({member for members in named.values() for member in members})
    for _ in range(args.rounds):
        for column, some in (("no groups", {}), ("groups", named)):
            with data_folder(args.data) as folder:
                tokens = seed_users(folder / "data", users)
                seed_groups(folder / "data", some)
                with serving("server", folder) as server:
                    report.add(column, run_for(groups.measure_memory(server, tokens, some), 600))
    return report


def disruption(args: argparse.Namespace) -> BenchReport:
    """Latency of pairs at a fixed rate while other clients misbehave, and the memory that the server keeps."""
    plan = disruption_test.DisruptionPlan(args.pairs, args.rate, args.seconds, args.rest)
    title = (
        f"{args.pairs} pairs at {args.rate:g} messages/s each, {args.seconds:g} s before and {args.seconds:g} s during"
    )
    settings = disruption_test.SETTINGS
    report = BenchReport(f"{title} a disruption, {args.rest:g} s of rest", "", args.data, settings)
    if args.other_server:
        report.notes.append("the disruption hit another server on this machine: the pairs show the machine's part")
    for kind in list(DISRUPTIONS) if args.kind == "all" else [args.kind]:
        for _ in range(args.rounds):
            with ExitStack() as stack:
                server, tokens = _prepared_server(stack, args.data, plan, kind)
                disrupted = _prepared_server(stack, args.data, plan, kind) if args.other_server else (server, tokens)
                work = disruption_test.measure(server, tokens, disrupted, plan, kind)
                result = run_for(work, 2 * args.seconds + args.rest + 10 * TIMEOUT)
            report.add(kind, result.figures())
            report.add_errors(kind, result.errors, result.problems)
            done = ", ".join(f"{count:,} {what}" for what, count in sorted(result.done.items()))
            report.notes += [f"{kind}: {done}"] if done else []
            report.notes += [f"MISSED: {kind}: {goal}" for goal in result.missed_goals()]
    return report


def _prepared_server(
    stack: ExitStack, data: Path, plan: disruption_test.DisruptionPlan, kind: str
) -> tuple[BenchServer, Mapping[str, str]]:
    """Start a server with the users and the stored messages of a disruption; return it and the users' tokens."""
    folder = stack.enter_context(data_folder(data))
    tokens = seed_users(folder / "data", disruption_test.users(plan, DISRUPTIONS[kind]))
    if DISRUPTIONS[kind].group:
        seed_groups(folder / "data", {DISRUPTIONS[kind].group: DISRUPTIONS[kind].users})
    with serving("server", folder) as server:
        run_for(disruption_test.introduce(server.url, tokens, plan, DISRUPTIONS[kind]), 120)
    disruption_test.seed_messages(DISRUPTIONS[kind], folder / "data")
    return stack.enter_context(serving("server", folder, settings=disruption_test.SETTINGS)), tokens


def overload(args: argparse.Namespace) -> BenchReport:
    """Twice the sockets with ten times the messages in flight, and the time until throughput recovers."""
    title = f"{args.pairs} pairs, {args.in_flight} in flight each; then as many more with {IN_FLIGHT_FACTOR} times that"
    report = BenchReport(f"{title}, {args.seconds:g} s each, {args.rounds} rounds", "", args.data)
    names = [name for prefix in "ro" for pair in pair_names(prefix, args.pairs) for name in pair]
    for _ in range(args.rounds):
        with data_folder(args.data) as folder:
            tokens = seed_users(folder / "data", names)
            with serving("server", folder) as server:
                work = measure_overload(server, tokens, pairs=args.pairs, **_timing(args))
                result = run_for(work, args.warm_up + 2 * args.seconds + RECOVERY_SECONDS + 10 * TIMEOUT)
        report.add("server", result.figures())
        report.add_errors("server", result.errors, result.problems)
        if result.recovery_seconds > RECOVERY_SECONDS:
            report.notes.append(f"MISSED: {RECOVERED:g} of the throughput is not back within {RECOVERY_SECONDS} s")
    return report


def _compare(
    args: argparse.Namespace,
    title: str,
    unit: str,
    work: Callable[[BenchServer, ResourceUsage], Awaitable[load.LoadResult]],
) -> BenchReport:
    """Put the same load on each target in turn, for each round."""
    report = _report(args, title)
    for target, folder in _rounds(args):
        with serving(target, folder, on_uvloop=args.uvloop) as server:
            usage = ResourceUsage(server)
            result = run_for(work(server, usage), args.warm_up + args.seconds + 10 * TIMEOUT)
        report.add(target, load_figures(unit, result, usage))
        report.add_errors(target, result.errors, result.problems)
    _note_busy_client(report, args.targets)
    return report


def _note_busy_client(report: BenchReport, targets: Sequence[str]) -> None:
    """Note each target whose figures the load generator may have limited."""
    for target in targets:
        client, server_cpu = report.values(target, CLIENT_CPU), report.values(target, SERVER_CPU)
        if client.max > load.CLIENT_LIMIT:
            report.notes.append(
                f"{target}: the load generator was at its limit (up to {client.max:.2f} of a core, the server up to"
                f" {server_cpu.max:.2f}): the figure is a lower bound unless the server was at 1.0 too"
            )


def load_figures(unit: str, result: load.LoadResult, usage: ResourceUsage) -> Figures:
    """Return the measurements of one run by label, per `unit` (message or delivery)."""
    count = result.count or float("nan")
    units = "deliveries" if unit == "delivery" else f"{unit}s"
    figures = {
        f"{units}/s": result.rate,
        f"CPU µs/{unit}": usage.cpu_seconds / count * 1e6,
        "ack p50 ms": result.acked.p50,
        "ack p99 ms": result.acked.p99,
        "delivered p50 ms": result.delivered.p50,
        "delivered p99 ms": result.delivered.p99,
        "RSS start MiB": usage.rss_start / MIB,
        "RSS end MiB": usage.rss_end / MIB,
        f"pings/{unit}": result.pings / count,
        SERVER_CPU: usage.cpu_seconds / result.seconds,
        CLIENT_CPU: result.client_cpu,
        "CPU of all others, cores": (usage.machine_seconds - usage.cpu_seconds) / result.seconds - result.client_cpu,
    }
    if usage.instructions is not None:
        figures[f"instructions/{unit}"] = usage.instructions / count
    return figures


def _pairs_title(args: argparse.Namespace) -> str:
    return f"{args.pairs} pairs, {args.in_flight} in flight each, {args.seconds:g} s, {args.rounds} rounds"


def _report(args: argparse.Namespace, title: str) -> BenchReport:
    """Return an empty report with the plain relay as the baseline."""
    report = BenchReport(title, "relay", args.data)
    report.notes.append(f"the relays run on {'uvloop' if args.uvloop else 'asyncio'}")
    return report


def _rounds(args: argparse.Namespace) -> Iterator[tuple[str, Path]]:
    """Yield each target with an empty folder, for each round."""
    for _ in range(args.rounds):
        for target in args.targets:
            with data_folder(args.data) as folder:
                yield target, folder


@contextmanager
def data_folder(parent: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="chat-bench-", dir=parent) as name:
        yield Path(name)


def _timing(args: argparse.Namespace) -> dict[str, Any]:
    return {"in_flight": args.in_flight, "seconds": args.seconds, "warm_up": args.warm_up}


def run_for(work: Awaitable[T], seconds: float) -> T:
    """Run `work` on a new uvloop. Raises TimeoutError after `seconds`."""

    async def bounded() -> T:
        async with asyncio.timeout(seconds):
            return await work

    running: Coroutine[Any, Any, T] = bounded()
    return uvloop.run(running)
