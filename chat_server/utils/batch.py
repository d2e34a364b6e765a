"""Group commit for anything: what many callers ask for at once is done together."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

from chat_server.utils.errors import StoreUnavailable
from chat_server.utils.metrics import NO_STORE_METRICS, StoreMetrics

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """Gathers items while one batch is being worked on, and hands them over together as the next.

    There is no timer unless `gather` is given: an item that finds nothing under way goes at once, with whatever else
    the same turn of the loop brought. With `gather` it waits so many seconds for others, or until somebody waits for
    it to be settled. Whoever gets a result has one turn to hand over what follows on it, so that it is in the
    next batch already. `work` gets 1 to `most` items and returns one result, or exception, for each;
    what it raises itself is every caller's exception. No item waits longer than `timeout` seconds, counted from
    when it was handed over: then its caller gets StoreUnavailable. Where each caller waits for its own result, what is
    gathered is bounded by the callers; one that does not wait must bound what it hands over. A cancelled caller takes
    neither the batch nor its neighbours with it.
    """

    def __init__(
        self,
        work: Callable[[list[Item]], Awaitable[Sequence[Result | BaseException]]],
        *,
        most: int = 1024,
        timeout: float | None = None,
        gather: float = 0,
        watch: StoreMetrics = NO_STORE_METRICS,
        name: str = "the store",
    ) -> None:
        self._work = work
        self._name = name  # for people
        self._watch = watch
        self._most = most
        self._timeout = timeout
        self._gather = gather
        self._waiting: deque[tuple[Item, asyncio.Future[Result], float]] = deque()  # the last: since when
        self._runner: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None  # begins the next batch
        self._taken = self._done = 0  # items handed over, and done with, so far
        self._watchers: list[tuple[int, asyncio.Future[None]]] = []

    def submit(self, item: Item) -> asyncio.Future[Result]:
        """Hand over an item; the future brings its result."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        self._waiting.append((item, future, loop.time()))
        self._taken += 1
        if self._runner is None and self._timer is None:
            self._begin(self._gather)
        return future

    async def flush(self) -> None:
        """Wait until everything handed over so far is done, whether it succeeded or failed."""
        if self._done < self._taken:
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._watchers.append((self._taken, done))
            if self._timer:
                self._begin()
            await done

    def _begin(self, after: float = 0) -> None:
        """Begin the next batch, after so many seconds."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        loop = asyncio.get_running_loop()
        if after:
            self._timer = loop.call_later(after, self._begin)
        else:
            self._runner = loop.create_task(self._run())

    async def _run(self) -> None:
        try:
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))]
                answer([future for _, future, _ in batch], await self._results(batch))
                self._done += len(batch)
                self._tell_watchers()
                await asyncio.sleep(0)  # the turn in which those who have their results go on
                if self._gather and 0 < len(self._waiting) < self._most and not self._watchers:
                    self._begin(self._gather)
                    break
        finally:
            self._runner = None

    async def _results(
        self, batch: Sequence[tuple[Item, asyncio.Future[Result], float]]
    ) -> Sequence[Result | BaseException]:
        deadline = None if self._timeout is None else batch[0][2] + self._timeout
        self._watch.gathered(len(batch))
        try:
            async with asyncio.timeout_at(deadline):
                results = await self._work([item for item, *_ in batch])
            expect_each(batch, results)
        except TimeoutError:
            self._watch.gave_up()
            return [StoreUnavailable(f"{self._name}: no answer within {self._timeout:g} s") for _ in batch]
        except Exception as error:
            return [error] * len(batch)
        return results

    def _tell_watchers(self) -> None:
        due = [done for target, done in self._watchers if target <= self._done]
        self._watchers = [watcher for watcher in self._watchers if watcher[0] > self._done]
        for done in due:
            if not done.done():
                done.set_result(None)


def expect_each(items: Sequence[object], results: Sequence[object]) -> None:
    """Raise RuntimeError unless there is a result for each item."""
    if len(results) != len(items):
        raise RuntimeError(f"{len(results)} results for {len(items)} items")


def answer(futures: Sequence[asyncio.Future[Any]], results: Sequence[Any]) -> None:
    """Give each future its result, or exception; one that is done was cancelled, or given up."""
    for future, result in zip(futures, results, strict=True):
        if future.done():
            continue
        if isinstance(result, BaseException):
            future.set_exception(result)
        else:
            future.set_result(result)
