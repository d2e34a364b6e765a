"""Fixtures that all tests share."""

import gc
from collections.abc import AsyncIterator, Generator
from pathlib import Path

import pytest

from tests.harness import Server, serving


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Collect no garbage while a failure is put into words.

    pytest parses sources then. The warning of something unclosed that is collected meanwhile is put into words too,
    which parses as well, and Python 3.11 takes one parse within another for a SystemError: that ends the whole run.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """A server with the users 1 and 2, who have not written to each other yet."""
    async with serving(tmp_path) as server:
        await server.users("1", "2")
        yield server
