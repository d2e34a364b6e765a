"""Fixtures that all tests share."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.harness import Server, serving


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """A server with the users 1 and 2, who have not written to each other yet."""
    async with serving(tmp_path) as server:
        await server.users("1", "2")
        yield server
