"""Tools of the tests of faults. A test that needs a missing one is skipped (tests/needs.py)."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests import needs


def strace(trace: Path, calls: str, *options: str) -> tuple[str, ...]:
    """The command that runs a server and writes its system calls to `trace`."""
    program = needs.program("strace")
    needs.right("ptrace", lambda: _succeeds(program, "-f", "-e", "trace=none", "true"))
    return (program, "-D", "-f", "-q", *options, "-e", f"trace={calls}", "-e", "signal=none", "-o", str(trace))


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A disk of its own, of 4 MiB."""
    mount = ("mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "tmpfs", str(folder))
    needs.right("mount", lambda: not os.geteuid() and bool(shutil.which("mount")) and _succeeds(*mount))
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def _succeeds(*command: str) -> bool:
    return not subprocess.run(command, capture_output=True, check=False).returncode
