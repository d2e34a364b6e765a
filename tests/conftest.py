"""Fixtures that all tests share."""

import gc
import os
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests import needs
from tests.harness import CLUSTER, ServerHandle, serving

# How long an example takes depends on what else the machine does.
settings.register_profile("without deadlines", deadline=None)
settings.load_profile("without deadlines")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Disable garbage collection while pytest formats a failure.

    pytest parses source files to format a failure. If an unclosed resource is collected meanwhile, its warning is
    formatted too, which parses again. Python 3.11 raises SystemError for the nested parse, and the whole run ends.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """With CHAT_TEST_PROCESSES, skip the tests that make sense with one process only."""
    if not CLUSTER:
        return
    from tests.cluster import suite  # noqa: PLC0415 - only a run on several processes needs it

    for item in items:
        name = item.function.__name__
        if reason := suite.reason(item.path.name, name, item.fixturenames):
            item.add_marker(pytest.mark.skip(reason=reason))


def pytest_xdist_auto_num_workers() -> int:
    """Start two workers per core, because workers often wait."""
    return 2 * (os.cpu_count() or 1)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtestloop(session: pytest.Session) -> Generator[None, object, object]:
    """Disable the coverage threshold, which pytest-cov checks later, if a test was skipped for a missing program."""
    result = yield
    coverage = session.config.pluginmanager.get_plugin("_cov")
    if coverage and _missing(session.config):
        coverage.options.cov_fail_under = None
    return result


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print one line about missing programs and rights."""
    if line := _missing(terminalreporter.config):
        terminalreporter.write_line(line, yellow=True)


def _missing(config: pytest.Config) -> str:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []  # an xdist worker has no reporter
    return needs.summary(report.longrepr[2] for report in skipped if isinstance(report.longrepr, tuple))


@pytest.fixture(scope="module", autouse=True)
def garbage_collection() -> Iterator[None]:
    """Collect garbage after each file, so that the warning of an unclosed resource fails the file that left it open.

    The collection takes milliseconds, because it does not examine objects from before the file, which are frozen.
    """
    gc.freeze()
    yield
    gc.collect()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ServerHandle]:
    """Run a server with the users 1 and 2, who have not written to each other."""
    async with serving(tmp_path, users=("1", "2")) as server:
        yield server
