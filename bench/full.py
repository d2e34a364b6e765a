"""Every row of the table of goals: runs its experiment, writes what it gave, and says whether the goal is reached.

python -m bench.full --quick         # one-to-one and group, on the embedded store
python -m bench.full                 # every row; an hour
python -m bench.full --only idle     # one row; the others are taken from where they were written before
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from bench.__main__ import parser as experiments
from bench.harness import ROOT, allow_many_sockets
from bench.pictures import draw
from bench.report import Report

RESULTS = ROOT / "bench" / "results"


class Goal(NamedTuple):
    """A figure of a column that has to reach, or not to exceed, a bound; `ratio`: to the baseline's."""

    column: str
    label: str
    at_least: float = -math.inf
    at_most: float = math.inf
    ratio: bool = True

    def __str__(self) -> str:
        bound = f"≥ {self.at_least:g}" if self.at_least > -math.inf else f"≤ {self.at_most:g}"
        return f"{self.column}: {self.label} {bound}{' x' if self.ratio else ''}"


class Row(NamedTuple):
    """A row of the table: what is done, the command line of its experiment, the goals."""

    work: str
    command: str
    goals: Sequence[Goal]


FLAT = [
    Goal("1,000,000", f"{page}: p50 ms", at_most=1.5)
    for page in ("newest page", "page at depth", "page after an id", "unread, none", "conversations")
]
ROWS = {
    "pairs": Row(
        "one-to-one, 50 pairs, 16 in flight",
        "pairs",
        [Goal("server", "messages/s", at_least=0.75), Goal("server", "CPU µs/message", at_most=1.2)],
    ),
    "one": Row(
        "50 pairs, 1 in flight",
        "pairs --in-flight 1",
        [Goal("server", "messages/s", at_least=0.5), Goal("server", "ack p99 ms", at_most=3)],
    ),
    "group": Row("group message to 500 sockets", "group", [Goal("server", "deliveries/s", at_least=0.9)]),
    "stores": Row(
        "one-to-one on MySQL, MongoDB and Redis, 16 in flight",
        "stores --seconds 15",
        [Goal("databases", "CPU µs/message", at_most=2.5), Goal("stub", "CPU µs/message", at_most=2.5)],
    ),
    "stores-one": Row("the same, 1 in flight", "stores --in-flight 1 --seconds 8", []),
    "group-5000": Row(
        "group messages to 5,000 beside 20 other pairs",
        "trouble --kind group --rest 5",
        [Goal("group", "ack longest with, ms", at_most=50, ratio=False)],
    ),
    "idle": Row(
        "10,000 idle sockets",
        "idle --sockets 10000 --seconds 60",
        [
            Goal("server", "KiB per socket", at_most=1.25),
            Goal("server", "CPU while idle, % of a core", at_most=3, ratio=False),
            Goal("server", "sockets opened/s", at_least=0.6),
        ],
    ),
    "beside": Row(
        "10 busy pairs beside 10,000 idle sockets",
        "beside --seconds 6",
        [Goal("beside", "messages/s", at_least=0.83), Goal("beside", "CPU µs/message", at_most=1.2)],
    ),
    "history": Row(
        "pages of 1,000 and of 1,000,000 messages; start; op 3 of 100,000",
        "history",
        [
            *FLAT,
            Goal("1,000,000", "op 3, all unread: RSS grown at the peak, MiB", at_most=16, ratio=False),
            Goal("1,000,000", "start s", at_most=1, ratio=False),
        ],
    ),
    "return": Row(
        "1,000 sockets come back at once, 20 pairs beside them",
        "trouble --kind return --rest 5",
        [Goal("return", "longest wait to the median", at_most=10, ratio=False)],
    ),
    "logins": Row("logins", "logins", [Goal("server", "logins/s", at_least=0.9)]),
    "storm": Row(
        "chat beside a storm of logins",
        "trouble --kind logins --rest 5",
        [Goal("logins", "ack p99 ratio", at_most=2, ratio=False)],
    ),
    "through": Row(
        "1,000,000 messages through 1,000 sockets",
        "through",
        [Goal("server", "grown, MiB", at_most=16, ratio=False)],
    ),
}
QUICK = ("pairs", "one", "group")


def main() -> None:
    """Run rows, and print the table of all that were ever run."""
    parser = argparse.ArgumentParser(prog="python -m bench.full", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help=f"only {', '.join(QUICK)}")
    parser.add_argument("--only", nargs="*", choices=ROWS, help="these rows; none: print the table again")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder of what was measured")
    args = parser.parse_args()
    allow_many_sockets()
    names = QUICK if args.quick else ROWS if args.only is None else args.only
    errors = 0
    for name in names:
        print(f"{name}: {ROWS[name].work}", file=sys.stderr)
        options = experiments().parse_args(ROWS[name].command.split())
        report: Report = options.experiment(options)
        print(report.table(), flush=True)
        report.write(args.results / f"{name}.json")
        errors += report.errors
    print(table(args.results))
    draw(args.results)
    sys.exit(bool(errors))


def table(results: Path) -> str:
    """Return the goals and what was reached, as Markdown, of every row that was measured."""
    lines = ["| work | goal | reached | | measured on |", "|---|---|---|---|---|"]
    for name, row in ROWS.items():
        path = results / f"{name}.json"
        if not path.exists():
            lines.append(f"| {row.work} | {'; '.join(map(str, row.goals))} | not measured | | |")
            continue
        written: dict[str, Any] = msgspec.json.decode(path.read_bytes())
        for goal in row.goals:
            reached = _reached(written, goal)
            verdict = "yes" if goal.at_least <= reached <= goal.at_most else "**no**"
            unit = "x" if goal.ratio else ""
            lines.append(f"| {row.work} | {goal} | {reached:.3g}{unit} | {verdict} | {written['machine']['commit']} |")
    return "\n".join(lines)


def _reached(written: dict[str, Any], goal: Goal) -> float:
    """Take the median out of what a report wrote; not a number where it has none."""
    figures = written["columns"].get(goal.column, {}).get("ratios" if goal.ratio else "figures", {})
    value = figures.get(goal.label, {}).get("median")
    return math.nan if value is None else float(value)


if __name__ == "__main__":
    main()
