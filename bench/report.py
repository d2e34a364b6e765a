"""Figures of several rounds and their ratios to a baseline in the same round, as a table and a JSON file."""

from __future__ import annotations

import math
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median

import msgspec

from bench.server_process import ROOT, UNLIMITED, counts_instructions

Figures = dict[str, float]  # by label; the label contains the unit


class Spread(msgspec.Struct):
    """Median, minimum and maximum over several rounds; NaN if nothing was measured."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Summarise the values, ignoring NaN."""
        known = [value for value in values if not math.isnan(value)] or [math.nan]
        return cls(median(known), min(known), max(known))

    def format(self, number: Callable[[float], str]) -> str:
        """Return `median (min..max)`."""
        if math.isnan(self.median):
            return "-"
        if self.min == self.max:
            return number(self.median)
        return f"{number(self.median)} ({number(self.min)}..{number(self.max)})"


class BenchReport:
    """The figures of one experiment: one column for each server (or size), with one entry for each round.

    There are ratios if one column is named `baseline`. `settings`: the server's settings that differ from the defaults.
    """

    def __init__(self, title: str, baseline: str, data: Path, settings: Mapping[str, str] = UNLIMITED) -> None:
        self.title = title
        self._settings = settings
        self.baseline = baseline
        self.errors = 0  # violations of the contract; if there are any, the figures are invalid
        self.notes = [f"data on {filesystem(data)}; settings: {', '.join(f'{k}={v}' for k, v in settings.items())}"]
        if not counts_instructions():
            self.notes.append("instructions: perf stat is not supported on this machine")
        self._rounds: dict[str, list[Figures]] = {}

    def add(self, column: str, figures: Figures) -> None:
        """Add one round of one column, and print its first figure."""
        rounds = self._rounds.setdefault(column, [])
        rounds.append(figures)
        label, value = next(iter(figures.items()))
        print(f"round {len(rounds)}: {column}: {_number(value)} {label}", file=sys.stderr, flush=True)

    def add_errors(self, column: str, errors: int, problems: list[str]) -> None:
        """Add the errors of one run of a column."""
        self.errors += errors
        if errors:
            self.notes.append(f"ERROR: {column}: {errors} errors, for example: {'; '.join(problems)}")

    def values(self, column: str, label: str) -> Spread:
        """Summarise a figure over all rounds."""
        return Spread.of([figures.get(label, math.nan) for figures in self._rounds[column]])

    def ratio(self, column: str, label: str) -> Spread:
        """Summarise the ratios of a figure to the baseline in the same round."""
        both = zip(self._rounds[column], self._rounds.get(self.baseline, []), strict=False)
        return Spread.of([_divide(one.get(label, math.nan), base.get(label, math.nan)) for one, base in both])

    def table(self) -> str:
        """Return a Markdown table with all figures and their ratios to the baseline."""
        labels = list(dict.fromkeys(label for rounds in self._rounds.values() for label in rounds[0]))
        lines = [f"**{self.title}**", "", f"| | {' | '.join(self._rounds)} |"]
        lines.append("|---" * (len(self._rounds) + 1) + "|")
        for label in labels:
            cells = [self._cell(column, label) for column in self._rounds]
            lines.append(f"| {label} | {' | '.join(cells)} |")
        return "\n".join([*lines, "", *(f"- {note}" for note in self.notes)])

    def _cell(self, column: str, label: str) -> str:
        values = self.values(column, label)
        if column == self.baseline:
            return values.format(_number)
        ratio = self.ratio(column, label)
        if math.isnan(ratio.median):
            return values.format(_number)
        return f"{_number(values.median)} = {ratio.format(_ratio)}"

    def write(self, path: Path) -> None:
        """Write all figures of all rounds as JSON."""
        columns = {
            column: {
                "rounds": rounds,
                "figures": {label: self.values(column, label) for label in rounds[0]},
            }
            | (
                {"ratios": {label: self.ratio(column, label) for label in rounds[0]}}
                if self.baseline in self._rounds
                else {}
            )
            for column, rounds in self._rounds.items()
        }
        contents = {
            "title": self.title,
            "baseline": self.baseline,
            "errors": self.errors,
            "notes": self.notes,
            "settings": self._settings,
            "machine": machine(),
            "columns": columns,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.format(msgspec.json.encode(contents), indent=2) + b"\n")


def machine() -> dict[str, str | int | None]:
    """Describe the machine, the versions, the commit and the time of a measurement."""
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":!bench/results", ":!bench/README.md")
    model = (line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line)
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _git("describe", "--always") + ("-dirty" if changed else ""),
        "cpu": next(model, "").partition(": ")[2],
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("aiohttp", "msgspec", "picows", "uvloop")},
    }


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


def filesystem(path: Path) -> str:
    """Return the type of the file system of `path`. On tmpfs a sync costs nothing, so the comparison is invalid."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    above = [(point, kind) for point, kind in mounts if path.resolve().is_relative_to(point)]
    kind = max(above, key=lambda mount: len(mount[0]))[1]
    return f"{kind} (in memory: a sync costs nothing)" if kind == "tmpfs" else kind


def _divide(one: float, other: float) -> float:
    return one / other if other else math.nan


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _ratio(value: float) -> str:
    return f"{value:.2f}x"
