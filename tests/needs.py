"""What tests need of the system that may be missing: programs and rights.

A test that asks for something missing is skipped, and one line at the end of the run says what to install.

CHAT_TEST_ALL=1 lets such a test fail instead. CHAT_TEST_HIDE="chromium mount", or CHAT_TEST_HIDE=all, hides what is
there. `python3 tests/needs.py` prints the Debian packages that are missing; it needs nothing but Python.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn

# A program, or a library to preload -> its Debian packages.
PACKAGES = {
    "caddy": "caddy",
    "chromium": "chromium fonts-noto-cjk fonts-noto-color-emoji",
    "gcc": "gcc libc6-dev",
    "ip": "iproute2",
    "libfaketimeMT.so.1": "libfaketime",
    "mariadb-install-db": "mariadb-server",
    "mariadbd": "mariadb-server",
    "nginx": "nginx-light",
    "redis-server": "redis-server",
    "strace": "strace",
}
# Root has these rights, but for some containers.
RIGHTS = {"mount": "mount a disk", "netns": "make a network", "ptrace": "trace a process"}
# Not every user's PATH has the last two.
PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
HIDDEN = set(os.environ.get("CHAT_TEST_HIDE", "").split())
if unknown := HIDDEN - {"all", *PACKAGES, *RIGHTS}:
    raise ValueError(f"CHAT_TEST_HIDE: unknown: {' '.join(unknown)}; known: all {' '.join([*PACKAGES, *RIGHTS])}")


def program(name: str) -> str:
    """The path of a program or library; skips the test if it is missing."""
    return _find(name) or _skip(name)


def right(name: str, granted: Callable[[], bool]) -> None:
    """Skip the test unless a right is granted."""
    if _hidden(name) or not granted():
        _skip(name)


def missing(*names: str) -> str:
    """The Debian packages to install for these programs, or for all; empty if all are there."""
    packages = {package for name in names or PACKAGES if not _find(name) for package in PACKAGES[name].split()}
    return " ".join(sorted(packages))


def summary(reasons: Iterable[str]) -> str:
    """One line about the tests that were skipped for want of something; empty if none was. Takes all skips' reasons."""
    wanted = [found[1] for reason in reasons if (found := re.search(r"needs (\S+) of the system", reason))]
    if not wanted:
        return ""
    programs = sorted({name for name in wanted if name in PACKAGES})
    rights = [does for name, does in RIGHTS.items() if name in wanted]
    parts = [f"{len(wanted)} tests skipped, and the coverage threshold with them."]
    if programs:
        packages = sorted({package for name in programs for package in PACKAGES[name].split()})
        parts.append(f"Missing: {', '.join(programs)}; Debian: apt-get install {' '.join(packages)}.")
    if rights:
        parts.append(f"No right to {', '.join(rights)}: run as root.")
    return " ".join(parts)


def _find(name: str) -> str:
    if _hidden(name):
        return ""
    if ".so" in name:
        folders = (Path("/usr/lib"), Path("/usr/lib64"))
        return next((str(path) for folder in folders for path in folder.glob(f"**/faketime/{name}")), "")
    return shutil.which(name, path=PATH) or ""


def _hidden(name: str) -> bool:
    return bool(HIDDEN & {"all", name})


def _skip(name: str) -> NoReturn:
    import pytest  # noqa: PLC0415 - this module also runs as a script, without packages

    reason = f"needs {name} of the system"
    if os.environ.get("CHAT_TEST_ALL"):
        pytest.fail(f"{reason}, and CHAT_TEST_ALL allows no skipping")
    pytest.skip(reason)


if __name__ == "__main__":
    print(missing())
