"""The databases of the fault tests. Each test module has its own ones, which its tests may kill and restart."""

from collections.abc import Callable, Iterator

import pytest

from tests import servers


def _running(start: Callable[[], servers.DatabaseServer]) -> Iterator[servers.DatabaseServer]:
    server = start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def mysql() -> Iterator[servers.DatabaseServer]:
    yield from _running(servers.mysql)


@pytest.fixture(scope="module")
def mongodb() -> Iterator[servers.DatabaseServer]:
    yield from _running(servers.mongodb)


@pytest.fixture(scope="module")
def redis() -> Iterator[servers.DatabaseServer]:
    """A Redis that keeps its data, as operations.md recommends."""
    yield from _running(lambda: servers.redis("--appendonly", "yes", "--appendfsync", "always"))
