"""Tools of the fault tests. A test that needs a missing tool is skipped (tests/needs.py)."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests import needs


def strace(trace: Path, calls: str, *options: str) -> tuple[str, ...]:
    """Return the prefix of a command that writes the system calls of the server to `trace`."""
    program = needs.program("strace")
    needs.right("ptrace", lambda: _succeeds(program, "-f", "-e", "trace=none", "true"))
    return (program, "-D", "-f", "-q", *options, "-e", f"trace={calls}", "-e", "signal=none", "-o", str(trace))


class WallClock:
    """The real-time clock of a server, which libfaketime moves while it runs. The monotonic clock is not changed."""

    def __init__(self, folder: Path) -> None:
        self._shift = folder / "clock"
        self.move("+0")
        variables = {
            "LD_PRELOAD": needs.program("libfaketimeMT.so.1"),
            "FAKETIME_TIMESTAMP_FILE": self._shift,
            "FAKETIME_NO_CACHE": 1,
            "FAKETIME_DONT_FAKE_MONOTONIC": 1,
            "FAKETIME_FORCE_MONOTONIC_FIX": 0,  # otherwise, Python's threads wait for each other for seconds
        }
        self.prefix = ("env", *(f"{name}={value}" for name, value in variables.items()))

    def move(self, shift: str) -> None:
        """Set the difference from the true time, such as -1d or +2h."""
        self._shift.write_text(shift)


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Mount a file system of 4 MiB on `folder`."""
    mount = ("mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "tmpfs", str(folder))
    needs.right("mount", lambda: not os.geteuid() and bool(shutil.which("mount")) and _succeeds(*mount))
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def _succeeds(*command: str) -> bool:
    return not subprocess.run(command, capture_output=True, check=False).returncode
