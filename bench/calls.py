"""Count the function calls of a server's event loop per message: a measure of work that needs no quiet machine.

cProfile counts calls only on the thread that enables it. So the server runs under this module, which turns the
profiler on and off in the main thread, where the event loop runs, at each SIGUSR1. The counts include C functions.

    python -m bench.calls STATS SCRIPT [ARGUMENT ...]

runs SCRIPT as `python SCRIPT ...` does, and at its end writes the profile to the file STATS. `python -m bench calls`
starts the servers in this way. `python -m pstats STATS` shows callers and callees.
"""

from __future__ import annotations

import cProfile
import os
import pstats
import runpy
import signal
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = [sysconfig.get_path(name) for name in ("platlib", "purelib", "stdlib")]


class FunctionCalls(NamedTuple):
    """How often one function was called, `where` as file:line, or empty for a C function."""

    calls: int
    name: str
    where: str


@contextmanager
def profiling(pid: int) -> Iterator[None]:
    """Profile the process `pid`, which runs under this module, until the end of the block."""
    os.kill(pid, signal.SIGUSR1)
    yield
    os.kill(pid, signal.SIGUSR1)


def read_profile(stats: Path) -> list[FunctionCalls]:
    """Return the functions of a profile, the most often called first. Recursive calls count."""
    entries = pstats.Stats(str(stats)).stats  # type: ignore[attr-defined]  # typeshed does not declare it
    functions = [
        FunctionCalls(calls, name, "" if file == "~" else f"{_short(file)}:{line}")
        for (file, line, name), (_, calls, *_) in entries.items()
    ]
    return sorted(functions, reverse=True)


def top_functions(functions: list[FunctionCalls], messages: int, limit: int) -> str:
    """Return the first `limit` functions as Markdown, with their calls per message (or delivery)."""
    lines = ["| calls | function | where |", "|---|---|---|"]
    lines += [f"| {one.calls / messages:.2f} | `{one.name}` | {one.where} |" for one in functions[:limit]]
    return "\n".join(lines)


def _short(file: str) -> str:
    """Return a path relative to the package folder it is in."""
    for folder in (*LIBRARIES, str(ROOT)):
        if file.startswith(f"{folder}/"):
            return file.removeprefix(f"{folder}/")
    return file


def main() -> None:
    """Run a script under the profiler, which each SIGUSR1 turns on or off."""
    stats, *sys.argv = sys.argv[1:]
    profile, enabled = cProfile.Profile(), False

    def toggle(*_: object) -> None:
        nonlocal enabled
        enabled = not enabled
        if enabled:
            profile.enable()
        else:
            profile.disable()

    signal.signal(signal.SIGUSR1, toggle)
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        profile.disable()
        profile.dump_stats(stats)


if __name__ == "__main__":
    main()
