"""Calls to the threads of the database, bounded while the disk hangs."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, TypeVar

from chat_server.utils.errors import StoreUnavailable

T = TypeVar("T")

# A call whose caller gave up stays in the pool's queue until a thread reaches it, and takes a few kilobytes. Beyond
# this many, the pool refuses calls until its threads have caught up; only a hanging disk abandons that many. Calls
# whose callers still wait are not counted: thousands of clients reconnect at once, each with one call.
MAX_ABANDONED = 1024


class Pool:
    """Runs calls in the threads of `executor`; `timeout` in seconds bounds each call."""

    def __init__(self, executor: Executor, timeout: float) -> None:
        self.executor = executor
        self._timeout = timeout
        self._abandoned = 0  # since the threads last caught up

    async def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """Run `work` in a thread. Raises StoreUnavailable if it takes too long, or at once if the threads hang."""
        if self._abandoned >= MAX_ABANDONED:
            raise StoreUnavailable(f"the embedded database hangs: {self._abandoned} abandoned calls are in its queue")
        try:
            async with asyncio.timeout(self._timeout):
                return await asyncio.get_running_loop().run_in_executor(self.executor, work, *arguments)
        except TimeoutError as error:
            self._abandon()
            raise StoreUnavailable(f"the embedded database did not answer within {self._timeout:g} s") from error
        except asyncio.CancelledError:
            self._abandon()
            raise

    def _abandon(self) -> None:
        """Count an abandoned call until the threads have reached everything queued so far."""
        self._abandoned += 1
        if self._abandoned == 1:
            try:
                marker = asyncio.get_running_loop().run_in_executor(self.executor, time.monotonic)
            except RuntimeError:  # the pool is shut down
                return
            marker.add_done_callback(self._caught_up)

    def _caught_up(self, _: "asyncio.Future[float]") -> None:
        self._abandoned = 0
