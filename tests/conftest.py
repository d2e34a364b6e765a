"""Fixtures that all tests share."""

import gc
import os
from collections.abc import AsyncIterator, Generator
from pathlib import Path

import pytest

from tests import needs
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


def pytest_xdist_auto_num_workers() -> int:
    """One worker more than there are cores: workers often wait."""
    return (os.cpu_count() or 1) + 1


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtestloop(session: pytest.Session) -> Generator[None, object, object]:
    """Let pytest-cov, which checks the threshold after this, check none if something was missing."""
    result = yield
    coverage = session.config.pluginmanager.get_plugin("_cov")
    if coverage and _missing(session.config):
        coverage.options.cov_fail_under = None
    return result


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was missing, in one line."""
    if line := _missing(terminalreporter.config):
        terminalreporter.write_line(line, yellow=True)


def _missing(config: pytest.Config) -> str:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []  # a worker has no reporter
    return needs.summary(report.longrepr[2] for report in skipped if isinstance(report.longrepr, tuple))


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """A server with the users 1 and 2, who have not written to each other yet."""
    async with serving(tmp_path) as server:
        await server.users("1", "2")
        yield server
