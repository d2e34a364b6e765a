"""Threads: their priorities, and an executor with a cheap hand-over."""

import logging
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import SimpleQueue
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger(__name__)


class SingleThreadExecutor(Executor):
    """An executor with one thread and, next to `submit`, a cheaper way to give it a job: `post`.

    A posted job has no Future. ThreadPoolExecutor takes several locks for each job, and the two threads wait for each
    other at some of them: each batch of the store cost 10 to 25 µs more CPU in both threads.

    The thread is a daemon, so a database that was never closed does not keep the process alive.
    """

    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def post(self, job: Callable[[], object]) -> None:
        """Run `job` after all earlier jobs. An exception that it raises is logged."""
        self._jobs.put(job)

    def submit(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run a function after all earlier jobs. The future gets its result."""
        future: Future[T] = Future()

        def job() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function(*args, **kwargs))
                except BaseException as error:
                    future.set_exception(error)

        self.post(job)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Run all earlier jobs, whatever `cancel_futures` says, and end the thread. Later jobs never run."""
        self._jobs.put(None)
        if wait:
            self._thread.join()

    def _run(self) -> None:
        while job := self._jobs.get():
            try:
                job()
            except BaseException:
                log.exception("job failed")
            del job  # otherwise it would live until the next one


def lower_priority() -> None:
    """Let all other threads, such as the event loop's, run before this one. Only Linux has priorities of threads."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
