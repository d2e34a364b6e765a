"""The performance goals: run the experiment of each row, write its results, and print which goals are reached.

python -m bench.goals --quick         # one-to-one and broadcast, on the embedded store
python -m bench.goals                 # all rows, about half an hour
python -m bench.goals --only idle     # one row; the table takes the other rows from their result files
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
from bench.charts import draw_charts
from bench.report import BenchReport
from bench.server_process import ROOT, allow_many_sockets

RESULTS = ROOT / "bench" / "results"


class Goal(NamedTuple):
    """A bound for a figure of a column, or for its ratio to the baseline."""

    column: str
    label: str
    at_least: float = -math.inf
    at_most: float = math.inf
    ratio: bool = True

    def __str__(self) -> str:
        bound = f"≥ {self.at_least:g}" if self.at_least > -math.inf else f"≤ {self.at_most:g}"
        return f"{self.column}: {self.label} {bound}{' x' if self.ratio else ''}"


class GoalRow(NamedTuple):
    """A row of the table: its workload, the command line of its experiment, its goals."""

    workload: str
    command: str
    goals: Sequence[Goal]


PAGE_GOALS = [
    Goal("1,000,000", f"{page}: p50 ms", at_most=1.5)
    for page in ("newest page", "page at depth", "page after an id", "unread, none", "conversations")
]
GROUP_GOALS = [
    Goal("1,000,000", f"{request}: p50 ms", at_most=1.5)
    for request in ("newest page", "page at depth", "page after an id", "unread, 20 of all", "unread, none", "marks")
]
GROUP_GOALS += [Goal("1,000,000", f"conversations, {unread} unread: p50 ms", at_most=1.5) for unread in ("all", "none")]
ROWS = {
    "pairs": GoalRow(
        "one-to-one, 50 pairs, 16 in flight",
        "pairs",
        [Goal("server", "messages/s", at_least=0.75), Goal("server", "CPU µs/message", at_most=1.5)],
    ),
    "pairs-1": GoalRow(
        "50 pairs, 1 in flight",
        "pairs --in-flight 1",
        [Goal("server", "messages/s", at_least=0.4), Goal("server", "ack p99 ms", at_most=4)],
    ),
    "broadcast": GoalRow("broadcast to 500 sockets", "broadcast", [Goal("server", "deliveries/s", at_least=0.9)]),
    "group": GoalRow(
        "group of 200 with 50 online, 16 in flight", "group", [Goal("server", "CPU µs/delivery", at_most=1.5)]
    ),
    "group-writers": GoalRow("the same, 16 writers with 1 in flight", "group --writers 16 --in-flight 1", []),
    "stores": GoalRow(
        "one-to-one on MySQL, MongoDB and Redis, 16 in flight",
        "stores --seconds 15",
        [Goal("databases", "CPU µs/message", at_most=2.5), Goal("stub", "CPU µs/message", at_most=2.5)],
    ),
    "stores-1": GoalRow("the same, 1 in flight", "stores --in-flight 1 --seconds 8", []),
    "disruption-broadcast": GoalRow(
        "20 pairs during broadcasts to 5,000 sockets",
        "disruption --kind broadcast --rest 5",
        [Goal("broadcast", "ack longest during, ms", at_most=50, ratio=False)],
    ),
    "idle": GoalRow(
        "10,000 idle sockets",
        "idle --sockets 10000 --seconds 60",
        [
            Goal("server", "KiB per socket", at_most=1.25),
            Goal("server", "CPU while idle, % of a core", at_most=3, ratio=False),
            Goal("server", "sockets opened/s", at_least=0.6),
        ],
    ),
    "mixed": GoalRow(
        "10 busy pairs with 10,000 idle sockets",
        "mixed --seconds 6",
        [Goal("with idle", "messages/s", at_least=0.83), Goal("with idle", "CPU µs/message", at_most=1.2)],
    ),
    "history": GoalRow(
        "history with 1,000 and 1,000,000 messages; start; op 3 with 100,000 unread",
        "history",
        [
            *PAGE_GOALS,
            Goal("1,000,000", "op 3, all unread: RSS growth at the peak, MiB", at_most=16, ratio=False),
            Goal("1,000,000", "start s", at_most=1, ratio=False),
        ],
    ),
    "group-history": GoalRow("group with 1,000, 100,000 and 1,000,000 messages", "group-history", GROUP_GOALS),
    "idle-groups": GoalRow(
        "10,000 idle groups of 20 members",
        "idle-groups",
        [
            Goal("groups", "growth, MiB", at_most=32, ratio=False),
            Goal("groups", "growth by the last op 7, MiB", at_most=1, ratio=False),
        ],
    ),
    "disruption-group-flood": GoalRow(
        "20 pairs during a flood in a group of 200",
        "disruption --kind group-flood --rest 5 --rounds 3",
        [Goal("group-flood", "ack p99 ratio", at_most=3, ratio=False)],
    ),
    "disruption-reconnect": GoalRow(
        "1,000 clients reconnect at the same time",
        "disruption --kind reconnect --rest 5",
        [Goal("reconnect", "longest wait / median wait", at_most=10, ratio=False)],
    ),
    "logins": GoalRow("logins", "logins", [Goal("server", "logins/s", at_least=0.9)]),
    "disruption-logins": GoalRow(
        "20 pairs during 64 concurrent logins",
        "disruption --kind logins --rest 5",
        [Goal("logins", "ack p99 ratio", at_most=2, ratio=False)],
    ),
    "memory": GoalRow(
        "1,000,000 messages through 1,000 sockets",
        "memory",
        [Goal("server", "growth, MiB", at_most=16, ratio=False)],
    ),
}
QUICK = ("pairs", "pairs-1", "broadcast")


def main() -> None:
    """Run the rows and print the table of all rows with results."""
    parser = argparse.ArgumentParser(prog="python -m bench.goals", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help=f"run only {', '.join(QUICK)}")
    parser.add_argument(
        "--only", nargs="*", choices=ROWS, help="run only these rows; without a name: only print the table"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result files")
    args = parser.parse_args()
    allow_many_sockets()
    names = QUICK if args.quick else ROWS if args.only is None else args.only
    errors = 0
    for name in names:
        print(f"{name}: {ROWS[name].workload}", file=sys.stderr)
        options = experiments().parse_args(ROWS[name].command.split())
        report: BenchReport = options.experiment(options)
        print(report.table(), flush=True)
        report.write(args.results / f"{name}.json")
        errors += report.errors
    print(table(args.results))
    draw_charts(args.results)
    sys.exit(bool(errors))


def table(results: Path) -> str:
    """Return a Markdown table of the goals and the measured figures."""
    lines = ["| workload | goal | reached | | measured on |", "|---|---|---|---|---|"]
    for name, row in ROWS.items():
        path = results / f"{name}.json"
        if not path.exists():
            lines.append(f"| {row.workload} | {'; '.join(map(str, row.goals))} | not measured | | |")
            continue
        written: dict[str, Any] = msgspec.json.decode(path.read_bytes())
        for goal in row.goals:
            reached = _reached(written, goal)
            verdict = "yes" if goal.at_least <= reached <= goal.at_most else "**no**"
            unit = "x" if goal.ratio else ""
            lines.append(
                f"| {row.workload} | {goal} | {reached:.3g}{unit} | {verdict} | {written['machine']['commit']} |"
            )
    return "\n".join(lines)


def _reached(written: dict[str, Any], goal: Goal) -> float:
    """Return the median from the contents of a result file; NaN if there is none."""
    figures = written["columns"].get(goal.column, {}).get("ratios" if goal.ratio else "figures", {})
    value = figures.get(goal.label, {}).get("median")
    return math.nan if value is None else float(value)


if __name__ == "__main__":
    main()
