"""Many small jobs, several at a time, and a bar that shows how far they are."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

# Conversations that are copied at a time: most are short, and their round trips overlap.
TOGETHER = 8


@contextmanager
def progress(what: str, total: int) -> Iterator["tqdm[None]"]:
    """A bar on standard error, if that is a terminal."""
    with tqdm(desc=what, total=total, unit="", unit_scale=True, disable=None, mininterval=0.5) as bar:
        yield bar


async def together(items: AsyncIterator[Item], work: Callable[[Item], Awaitable[None]]) -> None:
    """Do `work` for each of `items`, TOGETHER at a time. Raises what the first that fails raises."""
    room = asyncio.Semaphore(TOGETHER)

    async def one(item: Item) -> None:
        try:
            await work(item)
        finally:
            room.release()

    try:
        async with asyncio.TaskGroup() as group:
            async for item in items:
                await room.acquire()
                group.create_task(one(item))
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def listed(items: Iterable[Item]) -> AsyncIterator[Item]:
    """Items that are all there, for `together`."""
    for item in items:
        yield item
