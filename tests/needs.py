"""Programs and rights that tests need and that the system may lack.

A test that needs a missing program or right is skipped. One line at the end of the run says what to install.

CHAT_TEST_ALL=1 makes such a test fail instead. CHAT_TEST_HIDE="chromium mount" treats these as missing, and
CHAT_TEST_HIDE=all treats everything as missing. `python3 tests/needs.py` prints the missing Debian packages; it needs
only the Python standard library.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn

# Program or preloaded library -> its Debian packages.
PACKAGES = {
    "bash": "bash",
    "caddy": "caddy",
    "chromium": "chromium fonts-noto-cjk fonts-noto-color-emoji",
    "firefox-esr": "firefox-esr",
    "gcc": "gcc libc6-dev",
    "ip": "iproute2",
    "libfaketimeMT.so.1": "libfaketime",
    "mariadb-install-db": "mariadb-server",
    "mariadbd": "mariadb-server",
    "nginx": "nginx-light",
    "redis-server": "redis-server",
    "setpriv": "util-linux",
    "strace": "strace",
    "WebKitWebDriver": "webkit2gtk-driver xvfb",
    "Xvfb": "xvfb",
}
# Root has these rights, except in some containers.
RIGHTS = {"mount": "mount a disk", "netns": "make a network", "ptrace": "trace a process"}
# The PATH of an ordinary user may lack the last two.
PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
HIDDEN = set(os.environ.get("CHAT_TEST_HIDE", "").split())
if unknown := HIDDEN - {"all", *PACKAGES, *RIGHTS}:
    raise ValueError(f"CHAT_TEST_HIDE: unknown: {' '.join(unknown)}; known: all {' '.join([*PACKAGES, *RIGHTS])}")


def program(name: str) -> str:
    """Return the path of a program or library; skip the test if it is missing."""
    return _find(name) or _skip(name)


def right(name: str, granted: Callable[[], bool]) -> None:
    """Skip the test unless `granted` returns True for the right `name`."""
    if _hidden(name) or not granted():
        _skip(name)


def missing(*names: str) -> str:
    """Return the missing Debian packages for these programs (default: all programs), separated by spaces."""
    packages = {package for name in names or PACKAGES if not _find(name) for package in PACKAGES[name].split()}
    return " ".join(sorted(packages))


def summary(reasons: Iterable[str]) -> str:
    """Return one line about the tests that lacked a program or right; empty if none did.

    `reasons` are the reasons of all skipped tests.
    """
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
    import pytest  # noqa: PLC0415 - as a script, this module must run without pytest

    reason = f"needs {name} of the system"
    if os.environ.get("CHAT_TEST_ALL"):
        pytest.fail(f"{reason}, and CHAT_TEST_ALL allows no skipping")
    pytest.skip(reason)


if __name__ == "__main__":
    print(missing())
