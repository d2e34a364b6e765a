"""Runs many small jobs concurrently, and shows a progress bar."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

# Conversations that are copied at the same time. Most are short, so their round trips overlap.
CONCURRENCY = 8


@contextmanager
def progress_bar(name: str, total: int) -> Iterator["tqdm[None]"]:
    """Show a progress bar on standard error if that is a terminal."""
    with tqdm(desc=name, total=total, unit="", unit_scale=True, disable=None, mininterval=0.5) as bar:
        yield bar


async def for_each(items: AsyncIterator[Item], work: Callable[[Item], Awaitable[None]]) -> None:
    """Run `work` for each item, at most CONCURRENCY at the same time. Raises the first error of a job."""
    free = asyncio.Semaphore(CONCURRENCY)

    async def run(item: Item) -> None:
        try:
            await work(item)
        finally:
            free.release()

    try:
        async with asyncio.TaskGroup() as group:
            async for item in items:
                await free.acquire()
                group.create_task(run(item))
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def as_async(items: Iterable[Item]) -> AsyncIterator[Item]:
    """Iterate over `items` asynchronously, for `for_each`."""
    for item in items:
        yield item
