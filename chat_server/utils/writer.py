"""Group commit in a thread: the items that arrive while one batch is written form the next batch."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from chat_server.utils.batch import expect_each, set_results
from chat_server.utils.errors import StoreUnavailable
from chat_server.utils.metrics import NO_STORE_METRICS, StoreMetrics
from chat_server.utils.threads import SingleThreadExecutor

Item = TypeVar("Item")


class _Entry(NamedTuple):
    item: Any
    future: asyncio.Future[Any]
    since: float  # when it was submitted, on the loop's clock


class Writer(Generic[Item]):
    """Hands all items that wait to `work` in `thread` whenever the thread is free.

    The thread takes its batches itself, so it never waits for a busy event loop, which gets the results of one batch
    while the thread works on the next. Other jobs of the thread run between two batches.
    `work` gets 1 to `most` items and returns one result, or exception, for each; an exception that it raises goes to
    all callers. After `timeout` seconds a caller gets StoreUnavailable; if the thread has not begun with the item, it
    is dropped, as is the item of a cancelled caller. Until the thread answers again, new items are refused, so the
    callers bound the number of items however long the thread hangs: each waits for its own result.
    """

    def __init__(
        self,
        thread: SingleThreadExecutor,
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
        # The loop appends, the thread takes. `_scheduled` is true while a call of `_next` is due or runs. To lose no
        # item, the loop appends before it reads the flag, and the thread clears the flag before it checks for items.
        self._waiting: deque[_Entry] = deque()
        self._scheduled = False
        # A caller got no answer in time, and the thread has finished no batch since. It counts only while `_scheduled`:
        # the thread clears it before `_scheduled`, so the next submit or the next batch clears one that was set late.
        self._stuck = False
        self._unanswered: deque[_Entry] = deque()  # the oldest first; only the loop uses it
        self._alarm: asyncio.TimerHandle | None = None  # when the oldest has waited too long

    def submit(self, item: Item) -> asyncio.Future[Any]:
        """Hand over an item. The future gets its result. Raises StoreUnavailable while the thread hangs."""
        if self._stuck:
            if self._scheduled:
                self._watch.add_failure()
                raise StoreUnavailable(f"the embedded database: no answer for more than {self._timeout:g} s")
            self._stuck = False
        loop = asyncio.get_running_loop()
        entry = _Entry(item, loop.create_future(), loop.time())
        self._waiting.append(entry)
        self._unanswered.append(entry)
        if not self._scheduled:
            loop.call_soon(self._start)  # with all other items of this loop iteration
            self._scheduled = True
        if self._alarm is None:
            self._alarm = loop.call_at(entry.since + self._timeout, self._give_up, loop)
        return entry.future

    async def flush(self) -> None:
        """Wait until no item waits and the thread works on none."""
        while self._scheduled:
            await asyncio.get_running_loop().run_in_executor(self._thread, time.monotonic)

    def _start(self) -> None:
        try:
            self._thread.post(self._next)
        except BaseException:  # without memory for a call; the next submit tries again
            self._scheduled = False
            raise

    def _next(self) -> None:
        """Write what waits. Runs in the thread."""
        try:
            batch: list[_Entry] = []
            while self._waiting and len(batch) < self._most:  # entries that no caller waits for are dropped, too
                entry = self._waiting.popleft()
                if not entry.future.done():
                    batch.append(entry)
            if batch:
                began = time.monotonic()
                results = self._results([entry.item for entry in batch])
                batch[0].future.get_loop().call_soon_threadsafe(self._answer, batch, results, time.monotonic() - began)
        finally:
            self._stuck = False
            self._scheduled = False
            if self._waiting:
                self._thread.post(self._next)
                self._scheduled = True

    def _results(self, items: list[Item]) -> Sequence[Any]:
        try:
            results = self._work(items)
            expect_each(items, results)
        except Exception as error:
            return [error] * len(items)
        return results

    def _answer(self, batch: Sequence[_Entry], results: Sequence[Any], seconds: float) -> None:
        self._watch.add_batch(len(batch))
        self._watch.add_call(seconds, failed=isinstance(results[0], StoreUnavailable))
        set_results([entry.future for entry in batch], results)
        while self._unanswered and self._unanswered[0].future.done():
            self._unanswered.popleft()

    def _give_up(self, loop: asyncio.AbstractEventLoop) -> None:
        waiting, given_up = self._unanswered, 0
        while waiting and ((due := waiting[0].since + self._timeout <= loop.time()) or waiting[0].future.done()):
            future = waiting.popleft().future
            if due:  # also if the caller was cancelled: the item may still wait
                self._stuck = True
            if not future.done():
                future.set_exception(StoreUnavailable(f"the embedded database: no answer within {self._timeout:g} s"))
                given_up += 1
        if given_up:
            self._watch.add_failure()
        self._alarm = loop.call_at(waiting[0].since + self._timeout, self._give_up, loop) if waiting else None
