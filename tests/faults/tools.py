"""What the tests of faults need of the system: a tool that is not there leaves its tests out, and says so."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest


def tool(name: str, package: str) -> str:
    """The path of a program of a Debian package; skips where there is none."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") or _left_out(name, package)


def library(name: str, package: str) -> str:
    """The path of a library of a Debian package that is to be preloaded; skips where there is none."""
    found = next((str(path) for lib in (Path("/usr/lib"), Path("/usr/lib64")) for path in lib.rglob(name)), None)
    return found or _left_out(name, package)


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A disk of 4 MiB of its own; skips where it cannot be had."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "tmpfs", str(folder)]
    if os.geteuid() or not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small disk")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def _left_out(name: str, package: str) -> NoReturn:
    if os.environ.get("CHAT_TEST_ALL"):  # there nothing may be
        raise RuntimeError(f"{name} is missing: apt-get install {package}")
    pytest.skip(f"{name} is missing: apt-get install {package}")
