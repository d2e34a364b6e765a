"""A wall clock for one process, which a test moves. `clock.c` is preloaded into the process."""

import struct
import subprocess
from pathlib import Path

from tests import needs

SOURCE = Path(__file__).with_name("clock.c")


class ShiftedClock:
    """The real-time clock of a process started with `prefix`. The monotonic clock is not changed."""

    def __init__(self, folder: Path) -> None:
        self._shift = folder / "clock"
        self._shift.write_bytes(bytes(8))
        library = folder / "clock.so"
        subprocess.run([needs.program("gcc"), "-shared", "-fPIC", "-O1", "-o", library, SOURCE], check=True)
        self.prefix = ("env", f"LD_PRELOAD={library}", f"CLOCK_SHIFT={self._shift}")

    def move(self, seconds: float) -> None:
        """Set the difference from the true time."""
        with self._shift.open("r+b") as file:
            file.write(struct.pack("=d", seconds))
