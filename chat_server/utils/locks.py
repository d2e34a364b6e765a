"""One at a time, per key; a few at a time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from chat_server.utils.errors import StoreUnavailable
from chat_server.utils.fair_semaphore import FairSemaphore


class KeyedLock:
    """A lock for each key that somebody holds or waits for; the others take no memory."""

    def __init__(self) -> None:
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}

    @asynccontextmanager
    async def hold(self, key: str) -> AsyncIterator[None]:
        """Wait for the lock of `key`, and hold it."""
        lock, users = self._locks.get(key) or (asyncio.Lock(), 0)
        self._locks[key] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            _, users = self._locks.pop(key)
            if users > 1:
                self._locks[key] = (lock, users - 1)


class ConcurrencyLimiter:
    """Lets `width` at a time through to a store. Keys take turns, and wait at most `patience` seconds."""

    def __init__(self, width: int, patience: float) -> None:
        self._room = FairSemaphore(width)
        self._patience = patience

    @asynccontextmanager
    async def hold(self, key: str) -> AsyncIterator[None]:
        """Wait for room, and take it. Raises StoreUnavailable."""
        try:
            async with asyncio.timeout(self._patience):
                await self._room.acquire(key)
        except TimeoutError as error:
            raise StoreUnavailable(f"no room within {self._patience:g} s") from error
        try:
            yield
        finally:
            self._room.release()
