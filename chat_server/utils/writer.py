"""Group commit in a thread: what comes while one batch is being written is the next."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, NamedTuple, TypeVar

from chat_server.utils.batch import answer, expect_each
from chat_server.utils.errors import StoreUnavailable
from chat_server.utils.metrics import NO_STORE_METRICS, StoreMetrics

Item = TypeVar("Item")


class _Asked(NamedTuple):
    item: Any
    future: asyncio.Future[Any]
    since: float  # on the loop's clock


class Writer(Generic[Item]):
    """Hands items to `work` in `thread`, a pool of one: those that have come by the time it is free, together.

    The thread itself takes what there is, so that from one batch to the next it does not wait for a busy event loop,
    which is told the results meanwhile. Whatever else was handed to the thread has its turn between two batches.
    `work` gets 1 to `most` items and returns one result, or exception, for each; what it raises itself is
    every caller's exception. No caller waits longer than `timeout` seconds: then it gets StoreUnavailable, and its item
    is left out if the thread has not begun with it, as is one whose caller was cancelled. Until the thread is back what
    comes then is refused: where each caller waits for its own result, what is held is bounded by the callers, however
    long the thread hangs.
    """

    def __init__(
        self,
        thread: ThreadPoolExecutor,
        work: Callable[[list[Item]], Sequence[Any]],
        *,
        timeout: float,
        most: int = 1024,
        watch: StoreMetrics = NO_STORE_METRICS,
    ) -> None:
        self._thread = thread
        self._work = work
        self._timeout = timeout
        self._most = most
        self._watch = watch
        # The loop appends and the thread takes. Whoever is to look at it next is on the way while `_coming` is true:
        # the loop appends before it looks at that, the thread clears it before it looks whether something waits.
        self._waiting: deque[_Asked] = deque()
        self._coming = False
        # Somebody waited in vain, and the thread has not ended a batch since. The loop sets it; the thread clears it
        # before it clears `_coming`. What is set in between or later stays until the next batch has ended; without
        # `_coming` it means nothing.
        self._stuck = False
        self._open: deque[_Asked] = deque()  # not answered yet, the oldest first; only the loop uses it
        self._alarm: asyncio.TimerHandle | None = None  # when the oldest has waited too long

    def submit(self, item: Item) -> asyncio.Future[Any]:
        """Hand over an item; the future brings its result. Raises StoreUnavailable while the thread hangs."""
        if self._stuck:
            if self._coming:
                self._watch.gave_up()
                raise StoreUnavailable(f"the embedded database: no answer for more than {self._timeout:g} s")
            self._stuck = False
        loop = asyncio.get_running_loop()
        asked = _Asked(item, loop.create_future(), loop.time())
        self._waiting.append(asked)
        self._open.append(asked)
        if not self._coming:
            self._coming = True
            loop.call_soon(self._thread.submit, self._next, loop)  # with whatever else this turn of the loop brings
        if self._alarm is None:
            self._alarm = loop.call_at(asked.since + self._timeout, self._give_up, loop)
        return asked.future

    async def flush(self) -> None:
        """Wait until nothing waits and the thread is at nothing that was handed over here."""
        while self._coming:
            await asyncio.get_running_loop().run_in_executor(self._thread, time.monotonic)

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        """Write what waits. In the thread."""
        try:
            batch: list[_Asked] = []
            while self._waiting and len(batch) < self._most:  # all that nobody waits for goes, or it would add up
                asked = self._waiting.popleft()
                if not asked.future.done():
                    batch.append(asked)
            if batch:
                began = time.monotonic()
                results = self._results([asked.item for asked in batch])
                loop.call_soon_threadsafe(self._answer, batch, results, time.monotonic() - began)
        finally:
            self._stuck = False
            self._coming = False
            if self._waiting:
                self._thread.submit(self._next, loop)
                self._coming = True

    def _results(self, items: list[Item]) -> Sequence[Any]:
        try:
            results = self._work(items)
            expect_each(items, results)
        except Exception as error:
            return [error] * len(items)
        return results

    def _answer(self, batch: Sequence[_Asked], results: Sequence[Any], seconds: float) -> None:
        self._watch.gathered(len(batch))
        self._watch.took(seconds, failed=isinstance(results[0], StoreUnavailable))
        answer([asked.future for asked in batch], results)
        while self._open and self._open[0].future.done():
            self._open.popleft()

    def _give_up(self, loop: asyncio.AbstractEventLoop) -> None:
        late, now = 0, loop.time()
        while self._open and ((due := self._open[0].since + self._timeout <= now) or self._open[0].future.done()):
            future = self._open.popleft().future
            if due:  # also where the caller was cancelled: the item may still wait
                self._stuck = True
            if not future.done():
                future.set_exception(StoreUnavailable(f"the embedded database: no answer within {self._timeout:g} s"))
                late += 1
        if late:
            self._watch.gave_up()
        self._alarm = loop.call_at(self._open[0].since + self._timeout, self._give_up, loop) if self._open else None
