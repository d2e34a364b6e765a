"""The databases of the cluster tests. Each test module has its own ones, which its tests may kill and restart."""

from collections.abc import Iterator

import pytest

from tests.cluster.harness import Databases, running_databases


@pytest.fixture(scope="module")
def databases() -> Iterator[Databases]:
    with running_databases() as running:
        yield running
