"""Measure chat_server and a bare aiohttp relay under the same load. Each command starts its own servers.

Every run uses loopback and a temporary folder, and ends by itself. Exit code 1: a server did not start, or it
violated the contract of docs/protocol.md, which makes the figures invalid.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench import experiments
from bench.client import BenchError
from bench.disruptions import DISRUPTIONS
from bench.report import BenchReport
from bench.server_process import RELAYS, TARGETS, NotRunningError, allow_many_sockets, target_name


def main() -> None:
    """Run one experiment and print its table."""
    args = parser().parse_args()
    allow_many_sockets()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have made a background job ignore it
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # both signals also end the servers
    try:
        report: BenchReport = args.experiment(args)
    except (BenchError, NotRunningError, NotImplementedError, TimeoutError) as error:
        sys.exit(f"bench: {type(error).__name__}: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    print(report.table())
    if args.json:
        report.write(args.json)
    if report.errors:
        sys.exit(1)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line. `args.experiment(args)` runs the experiment and returns its report."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(required=True, metavar="EXPERIMENT")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--json", type=Path, help="write all figures to this file, for example bench/results/pairs.json"
    )
    common.add_argument("--data", type=Path, default=Path(tempfile.gettempdir()), help="parent of the data folders")

    command = commands.add_parser("pairs", parents=[common], help=experiments.pairs.__doc__)
    _add_pairs(command)
    _add_rounds(command, rounds=3, targets=TARGETS)
    command.set_defaults(experiment=experiments.pairs)
    command = commands.add_parser("relays", parents=[common], help=experiments.relays.__doc__)
    _add_pairs(command)
    _add_rounds(command, rounds=3, targets=("relay", "gather", "picows"))
    command.set_defaults(experiment=experiments.relays)
    command = commands.add_parser("calls", parents=[common], help=experiments.calls.__doc__)
    command.add_argument("--loads", nargs="+", choices=["pairs", "group"], default=["pairs", "group"])
    command.add_argument("--pairs", type=int, default=50)
    _add_group(command)
    command.add_argument("--in-flight", type=int, nargs="+", default=[16, 1], help="one run for each (16 1)")
    command.add_argument("--targets", nargs="+", type=target_name, default=["relay", "server"], metavar="TARGET")
    command.add_argument("--uvloop", action=argparse.BooleanOptionalAction, default=True, help="for the relays")
    command.add_argument("--top", type=int, default=0, metavar="N", help="also list the N functions called most (0)")
    command.add_argument("--stats", type=Path, metavar="FOLDER", help="keep the profiles here, for python -m pstats")
    command.add_argument("--warm-up", type=float, default=1, help="seconds before each window (1)")
    command.add_argument("--seconds", type=float, default=5, help="profiled in each run (5)")
    command.set_defaults(experiment=experiments.calls)
    command = commands.add_parser("broadcast", parents=[common], help=experiments.broadcast.__doc__)
    command.add_argument("--sockets", type=int, default=500)
    command.add_argument("--in-flight", type=int, default=4, help="messages not yet delivered to everyone (4)")
    _add_rounds(command, rounds=3, targets=TARGETS)
    command.set_defaults(experiment=experiments.broadcast)
    command = commands.add_parser("group", parents=[common], help=experiments.group.__doc__)
    _add_group(command)
    command.add_argument("--in-flight", type=int, default=16, help="messages of each, not yet delivered to all (16)")
    _add_rounds(command, rounds=5, targets=("relay", "server"))
    command.set_defaults(experiment=experiments.group)
    command = commands.add_parser("idle", parents=[common], help=experiments.idle.__doc__)
    command.add_argument("--sockets", type=int, default=5000)
    _add_rounds(command, rounds=1, targets=("relay", "server"))
    command.set_defaults(experiment=experiments.idle)
    command = commands.add_parser("stores", parents=[common], help=experiments.stores.__doc__)
    _add_pairs(command)
    _add_timing(command, rounds=1)
    command.set_defaults(experiment=experiments.stores)
    command = commands.add_parser("mixed", parents=[common], help=experiments.mixed.__doc__)
    command.add_argument("--sockets", type=int, default=10_000, help="idle sockets (10,000)")
    _add_timing(command, rounds=2)
    command.set_defaults(experiment=experiments.mixed)
    command = commands.add_parser("memory", parents=[common], help=experiments.memory.__doc__)
    command.add_argument("--sockets", type=int, default=1000)
    command.add_argument("--messages", type=int, default=1_000_000)
    _add_rounds(command, rounds=1, targets=("relay", "server"))
    command.set_defaults(experiment=experiments.memory)
    command = commands.add_parser("logins", parents=[common], help=experiments.logins.__doc__)
    _add_timing(command, rounds=2)
    command.set_defaults(experiment=experiments.logins)
    command = commands.add_parser("history", parents=[common], help=experiments.read_history.__doc__)
    command.add_argument("--stored", type=int, nargs=2, default=[1_000, 1_000_000], help="messages (1,000 1,000,000)")
    command.add_argument("--times", type=int, default=500, help="requests for each kind of page (500)")
    command.add_argument(
        "--fill",
        choices=["send", "seed"],
        default="seed",
        help="how to store the messages: through the server, or directly (seed)",
    )
    command.set_defaults(experiment=experiments.read_history)
    command = commands.add_parser("group-history", parents=[common], help=experiments.group_history.__doc__)
    command.add_argument(
        "--stored", type=int, nargs="+", default=[1_000, 100_000, 1_000_000], help="messages (1,000 100,000 1,000,000)"
    )
    command.add_argument("--members", type=int, default=200, help="of the group (200)")
    command.add_argument("--times", type=int, default=300, help="requests of each kind (300)")
    command.add_argument("--rounds", type=int, default=3, help="(3)")
    command.set_defaults(experiment=experiments.group_history)
    command = commands.add_parser("idle-groups", parents=[common], help=experiments.idle_groups.__doc__)
    command.add_argument("--groups", type=int, default=10_000, help="(10,000)")
    command.add_argument("--members", type=int, default=20, help="of each group (20)")
    command.add_argument("--rounds", type=int, default=1, help="(1)")
    command.set_defaults(experiment=experiments.idle_groups)
    command = commands.add_parser("overload", parents=[common], help=experiments.overload.__doc__)
    _add_pairs(command)
    _add_timing(command, rounds=1)
    command.set_defaults(experiment=experiments.overload)
    command = commands.add_parser("disruption", parents=[common], help=experiments.disruption.__doc__)
    command.add_argument("--kind", choices=[*DISRUPTIONS, "all"], default="all", help="of disruption (all)")
    command.add_argument("--pairs", type=int, default=20)
    command.add_argument("--rate", type=float, default=20, help="messages per second of each pair (20)")
    command.add_argument("--seconds", type=float, default=15, help="before the disruption, and during it (15)")
    command.add_argument("--rest", type=float, default=60, help="seconds until memory is measured again (60)")
    command.add_argument("--rounds", type=int, default=1, help="(1)")
    command.add_argument("--other-server", action="store_true", help="disrupt another server: shows the machine's part")
    command.set_defaults(experiment=experiments.disruption)
    return parser


def _add_pairs(command: argparse.ArgumentParser) -> None:
    """Add the options of experiments with pairs of users."""
    command.add_argument("--pairs", type=int, default=50)
    command.add_argument("--in-flight", type=int, default=16, help="unacknowledged messages of each sender (16)")


def _add_group(command: argparse.ArgumentParser) -> None:
    """Add the options of experiments with a group."""
    command.add_argument("--members", type=int, default=200, help="of the group (200)")
    command.add_argument("--online", type=int, default=50, help="members with a socket (50)")
    command.add_argument("--writers", type=int, default=1, help="members who write (1)")


def _add_rounds(command: argparse.ArgumentParser, *, rounds: int, targets: Sequence[str]) -> None:
    """Add the options of experiments with several targets."""
    command.add_argument(
        "--targets",
        nargs="+",
        type=target_name,
        default=targets,
        metavar="TARGET",
        help=f"{', '.join(RELAYS)}, server, or the folder of another checkout; relay is the baseline",
    )
    command.add_argument("--uvloop", action=argparse.BooleanOptionalAction, default=True, help="for the relays")
    _add_timing(command, rounds=rounds)


def _add_timing(command: argparse.ArgumentParser, *, rounds: int) -> None:
    """Add the options for duration and rounds."""
    command.add_argument("--warm-up", type=float, default=2, help="seconds before each window (2)")
    command.add_argument("--seconds", type=float, default=10, help="measured time of each run (10)")
    command.add_argument("--rounds", type=int, default=rounds, help=f"({rounds})")


if __name__ == "__main__":
    main()
