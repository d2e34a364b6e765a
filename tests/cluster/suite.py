"""The e2e suite on several processes: CHAT_TEST_PROCESSES=2 .venv/bin/python -m pytest tests/e2e

Every request and every socket goes to the next process. A test that cannot make sense there is skipped, with a reason
that begins with "one process:". Three rules decide, so no test is edited for it:

- a fixture that changes code in the process of the test (FIXTURES)
- an argument of `serving` or `subprocess_server` that one process of many cannot have
- the list ONE_PROCESS
"""

import asyncio
import atexit
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, cast

import pytest

from chat_server.utils.clock import Clock
from tests.cluster.harness import PROCESSES, Cluster, Databases, cluster, running_databases
from tests.harness import SubprocessServer

PREFIX = "one process: "
FIXTURES = {"monkeypatch": "the test changes code or variables of its own process"}
EMBEDDED = "the test reads or damages the embedded database"
COMMANDS = "the test runs commands on the embedded stores of the server"
PROCESS = "the test measures or signals one process"
MEMORY = "the test is about the memory of one process"
# File, or file::test, below tests/e2e -> the reason.
ONE_PROCESS: dict[str, str] = {}


def reason(file: str, test: str, fixtures: Sequence[str]) -> str | None:
    """Return the reason for which a test cannot run on several processes, or None."""
    found = [text for name, text in FIXTURES.items() if name in fixtures]
    found += [text for key, text in ONE_PROCESS.items() if key in (file, f"{file}::{test}")]
    return PREFIX + found[0] if found else None


def _skip(why: str) -> NoReturn:
    pytest.skip(PREFIX + why)


@cache
def databases() -> Databases:
    """Start the databases, once for all tests of this run."""
    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(running_databases())


@asynccontextmanager
async def serving(
    folder: Path, clock: Clock | None, *, stores: Mapping[str, str] | None, **options: Any
) -> AsyncIterator[Cluster]:
    """Replace `harness.serving`."""
    if clock:
        _skip("the test moves the clock of its own process")
    if stores:
        _skip("the test selects stores")
    port = options.pop("HttpPort", 0)
    started = await asyncio.to_thread(databases)
    async with cluster(folder, started, PROCESSES, port=port, **options) as running:
        yield running


@asynccontextmanager
async def subprocess_server(
    folder: Path, *, prefix: tuple[str, ...], coverage: bool = True, **options: Any
) -> AsyncIterator[SubprocessServer]:
    """Replace `harness.subprocess_server`. A cluster has the same methods, for all of its processes."""
    if prefix:
        _skip("the test runs the server under another program")
    if not coverage:
        _skip(PROCESS)
    options = {"stores": None, "log": folder.parent / "server.log", **options}
    async with serving(folder, None, **options) as running:
        yield cast("SubprocessServer", running)
