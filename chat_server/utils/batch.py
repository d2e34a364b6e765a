"""Group commit for anything: what many callers ask for at once is done together."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """Gathers items while one batch is being worked on, and hands them over together as the next.

    There is no timer: an item that finds nothing under way goes at once, with whatever else the same turn
    of the loop brought. `work` gets 1 to `most` items and returns one result, or exception, for each;
    what it raises itself is every caller's exception. Each caller waits for its own result, so what can
    be gathered is bounded by the callers. A cancelled caller takes neither the batch nor its neighbours
    with it.
    """

    def __init__(
        self, work: Callable[[list[Item]], Awaitable[Sequence[Result | BaseException]]], *, most: int = 1024
    ) -> None:
        self._work = work
        self._most = most
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._runner: asyncio.Task[None] | None = None

    def submit(self, item: Item) -> asyncio.Future[Result]:
        """Hand over an item; the future brings its result."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        self._waiting.append((item, future))
        if self._runner is None:
            self._runner = loop.create_task(self._run())
        return future

    async def settled(self) -> None:
        """Wait until everything handed over so far is done, whether it succeeded or failed."""
        if self._waiting:
            await asyncio.wait([self._waiting[-1][1]])
        elif self._runner is not None:
            await asyncio.wait([self._runner])

    async def _run(self) -> None:
        while self._waiting:
            batch = list(islice(self._waiting, self._most))
            for _ in batch:
                self._waiting.popleft()
            try:
                results = await self._work([item for item, _ in batch])
            except Exception as error:
                results = [error] * len(batch)
            for (_, future), result in zip(batch, results, strict=True):
                if future.done():  # its caller was cancelled
                    continue
                if isinstance(result, BaseException):
                    future.set_exception(result)
                else:
                    future.set_result(result)
        self._runner = None
