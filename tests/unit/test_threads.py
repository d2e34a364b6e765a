"""SingleThreadExecutor: one thread, jobs in order."""

import threading
from collections.abc import Iterator

import pytest

from chat_server.utils.threads import SingleThreadExecutor
from tests.harness import TIMEOUT


@pytest.fixture
def executor() -> Iterator[SingleThreadExecutor]:
    executor = SingleThreadExecutor("one")
    yield executor
    executor.shutdown()


def test_jobs_run_in_order_in_one_thread(executor: SingleThreadExecutor) -> None:
    names = []
    executor.post(lambda: names.append(threading.current_thread().name))
    assert executor.submit(lambda: names[:]).result(TIMEOUT) == ["one"]


def test_a_failing_job_is_logged_and_the_next_one_runs(
    executor: SingleThreadExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    executor.post(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        executor.submit(lambda: 1 / 0).result(TIMEOUT)
    assert executor.submit(divmod, 7, 2).result(TIMEOUT) == (3, 1)
    assert [record.message for record in caplog.records] == ["job failed"]


def test_a_cancelled_call_does_not_run(executor: SingleThreadExecutor) -> None:
    running = threading.Event()
    executor.post(lambda: running.wait(TIMEOUT))
    cancelled = executor.submit(int)
    assert cancelled.cancel()
    running.set()
    assert executor.submit(int).result(TIMEOUT) == 0


def test_shutdown_runs_earlier_jobs_and_ends_the_thread(executor: SingleThreadExecutor) -> None:
    last = executor.submit(int)
    executor.shutdown()
    executor.shutdown()
    assert last.done()
    assert not executor._thread.is_alive()
