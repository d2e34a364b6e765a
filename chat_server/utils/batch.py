"""Group commit for any store: calls that arrive together are executed together."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

from chat_server.utils.errors import StoreUnavailable
from chat_server.utils.metrics import NO_STORE_METRICS, StoreMetrics

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """Collects items while a batch is in work, and hands them over together as the next batch.

    There is no timer: an item that finds nothing in work goes in the next loop iteration, with all items of this one.
    Callers that get a result have one loop iteration to submit their next item, which then is in the next batch.
    `work` gets 1 to `most` items and returns one result, or exception, for each; an exception that it raises goes to
    all callers. After `timeout` seconds since it was submitted, an item is given up: its caller gets StoreUnavailable.
    The callers bound the number of items, because each waits for its own result. Cancelling one caller affects neither
    the batch nor the other callers.
    """

    def __init__(
        self,
        work: Callable[[list[Item]], Awaitable[Sequence[Result | BaseException]]],
        *,
        most: int = 1024,
        timeout: float | None = None,
        watch: StoreMetrics = NO_STORE_METRICS,
        name: str = "the store",
    ) -> None:
        self._work = work
        self._name = name  # in error texts
        self._watch = watch
        self._most = most
        self._timeout = timeout
        self._waiting: deque[tuple[Item, asyncio.Future[Result], float]] = deque()  # the last: when it was submitted
        self._runner: asyncio.Task[None] | None = None
        self._submitted = self._done = 0  # items so far
        self._flushes: list[tuple[int, asyncio.Future[None]]] = []  # the value of _done that each waits for

    def submit(self, item: Item) -> asyncio.Future[Result]:
        """Hand over an item. The future gets its result."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        self._waiting.append((item, future, loop.time()))
        self._submitted += 1
        if self._runner is None:
            self._runner = loop.create_task(self._run())
        return future

    def waiting(self) -> int:
        """Return how many items are submitted and not done."""
        return self._submitted - self._done

    async def flush(self) -> None:
        """Wait until all items submitted so far are done, whether they succeeded or failed."""
        if self._done < self._submitted:
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._flushes.append((self._submitted, done))
            await done

    async def _run(self) -> None:
        try:
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))]
                set_results([future for _, future, _ in batch], await self._results(batch))
                self._done += len(batch)
                self._end_flushes()
                await asyncio.sleep(0)  # in this loop iteration the callers submit their next items
        finally:
            self._runner = None

    async def _results(
        self, batch: Sequence[tuple[Item, asyncio.Future[Result], float]]
    ) -> Sequence[Result | BaseException]:
        deadline = None if self._timeout is None else batch[0][2] + self._timeout
        self._watch.add_batch(len(batch))
        try:
            async with asyncio.timeout_at(deadline):
                results = await self._work([item for item, *_ in batch])
            expect_each(batch, results)
        except TimeoutError:
            self._watch.add_failure()
            return [StoreUnavailable(f"{self._name}: no answer within {self._timeout:g} s") for _ in batch]
        except Exception as error:
            return [error] * len(batch)
        return results

    def _end_flushes(self) -> None:
        ended = [done for target, done in self._flushes if target <= self._done]
        self._flushes = [flush for flush in self._flushes if flush[0] > self._done]
        for done in ended:
            if not done.done():  # its caller may have been cancelled
                done.set_result(None)


def expect_each(items: Sequence[object], results: Sequence[object]) -> None:
    """Raise RuntimeError unless there is one result for each item."""
    if len(results) != len(items):
        raise RuntimeError(f"{len(results)} results for {len(items)} items")


def set_results(futures: Sequence[asyncio.Future[Any]], results: Sequence[Any]) -> None:
    """Give each future its result or exception, unless it is done: it was cancelled or given up."""
    for future, result in zip(futures, results, strict=True):
        if future.done():
            continue
        if isinstance(result, BaseException):
            future.set_exception(result)
        else:
            future.set_result(result)
