"""The runner: `python -m bench pairs | group | idle | history | trouble`, each against fresh servers.

Every run is on loopback, in a temporary folder, and ends by itself. Exit code 1: a server broke the
contract (the figures mean nothing then) or did not run.
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
from bench.harness import TARGETS, NotRunningError, allow_many_sockets
from bench.mischief import KINDS
from bench.report import Report


def main() -> None:
    """Run one experiment and print its table."""
    args = parser().parse_args()
    allow_many_sockets()
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


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser: `experiment(args)` of what it parses returns the report."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(required=True, metavar="EXPERIMENT")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", type=Path, help="write everything here, such as bench/results/pairs.json")
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
    command.add_argument("--pairs", type=int, default=50)
    command.add_argument("--in-flight", type=int, nargs="+", default=[16, 1], help="one run for each (16 1)")
    command.add_argument("--targets", nargs="+", choices=TARGETS, default=["relay", "server"])
    command.add_argument("--uvloop", action=argparse.BooleanOptionalAction, default=True, help="for the relays")
    command.add_argument("--top", type=int, default=0, metavar="N", help="also list the N functions called most (0)")
    command.add_argument("--stats", type=Path, metavar="FOLDER", help="keep the profiles here, for python -m pstats")
    command.add_argument("--warm-up", type=float, default=1, help="seconds before each window (1)")
    command.add_argument("--seconds", type=float, default=5, help="profiled in each run (5)")
    command.set_defaults(experiment=experiments.calls)
    command = commands.add_parser("group", parents=[common], help=experiments.group.__doc__)
    command.add_argument("--sockets", type=int, default=500)
    command.add_argument("--in-flight", type=int, default=4, help="messages not yet with everybody (4)")
    _add_rounds(command, rounds=3, targets=TARGETS)
    command.set_defaults(experiment=experiments.group)
    command = commands.add_parser("idle", parents=[common], help=experiments.idle.__doc__)
    command.add_argument("--sockets", type=int, default=5000)
    _add_rounds(command, rounds=1, targets=("relay", "server"))
    command.set_defaults(experiment=experiments.idle)
    command = commands.add_parser("stores", parents=[common], help=experiments.stores.__doc__)
    _add_pairs(command)
    _add_pace(command, rounds=1)
    command.set_defaults(experiment=experiments.stores)
    command = commands.add_parser("beside", parents=[common], help=experiments.beside.__doc__)
    command.add_argument("--sockets", type=int, default=10_000, help="that are idle (10,000)")
    _add_pace(command, rounds=2)
    command.set_defaults(experiment=experiments.beside)
    command = commands.add_parser("through", parents=[common], help=experiments.through.__doc__)
    command.add_argument("--sockets", type=int, default=1000)
    command.add_argument("--messages", type=int, default=1_000_000)
    _add_rounds(command, rounds=1, targets=("relay", "server"))
    command.set_defaults(experiment=experiments.through)
    command = commands.add_parser("logins", parents=[common], help=experiments.logins.__doc__)
    _add_pace(command, rounds=2)
    command.set_defaults(experiment=experiments.logins)
    command = commands.add_parser("history", parents=[common], help=experiments.pages.__doc__)
    command.add_argument("--stored", type=int, nargs=2, default=[1_000, 1_000_000])
    command.add_argument("--times", type=int, default=500, help="each page is asked for (500)")
    command.add_argument("--fill", choices=["speak", "seed"], default="seed", help="how messages get there")
    command.set_defaults(experiment=experiments.pages)
    command = commands.add_parser("beyond", parents=[common], help=experiments.beyond.__doc__)
    _add_pairs(command)
    _add_pace(command, rounds=1)
    command.set_defaults(experiment=experiments.beyond)
    command = commands.add_parser("trouble", parents=[common], help=experiments.troubles.__doc__)
    command.add_argument("--kind", choices=[*KINDS, "all"], default="all", help="of trouble (all)")
    command.add_argument("--pairs", type=int, default=20)
    command.add_argument("--rate", type=float, default=20, help="messages a second of each pair (20)")
    command.add_argument("--seconds", type=float, default=15, help="without, and again with the trouble (15)")
    command.add_argument("--rest", type=float, default=60, help="seconds until memory is looked at again (60)")
    command.add_argument("--rounds", type=int, default=1, help="(1)")
    command.add_argument("--elsewhere", action="store_true", help="trouble at another server: the machine's part")
    command.set_defaults(experiment=experiments.troubles)
    return parser


def _add_pairs(command: argparse.ArgumentParser) -> None:
    """Add who writes, for the experiments whose users write in pairs."""
    command.add_argument("--pairs", type=int, default=50)
    command.add_argument("--in-flight", type=int, default=16, help="unacknowledged messages of each sender (16)")


def _add_rounds(command: argparse.ArgumentParser, *, rounds: int, targets: Sequence[str]) -> None:
    """Add what all experiments against several targets have in common."""
    command.add_argument(
        "--targets", nargs="+", choices=(*TARGETS, "picows"), default=targets, help="relay is the baseline"
    )
    command.add_argument("--uvloop", action=argparse.BooleanOptionalAction, default=True, help="for the relays")
    _add_pace(command, rounds=rounds)


def _add_pace(command: argparse.ArgumentParser, *, rounds: int) -> None:
    """Add how long and how often."""
    command.add_argument("--warm-up", type=float, default=2, help="seconds before each window (2)")
    command.add_argument("--seconds", type=float, default=10, help="measured in each run (10)")
    command.add_argument("--rounds", type=int, default=rounds, help=f"({rounds})")


if __name__ == "__main__":
    main()
