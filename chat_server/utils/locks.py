"""Locks by key, and a limit of concurrent calls."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from chat_server.utils.errors import StoreUnavailable
from chat_server.utils.fair_semaphore import FairSemaphore


class KeyedLock:
    """A lock for each key. Only keys that are held or waited for take memory."""

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
    """Allows `width` callers at a time. Keys take turns; a caller waits at most `timeout` seconds.

    The error of a caller that waited for too long begins with `refusal`.
    """

    def __init__(self, width: int, timeout: float, refusal: str = "no place") -> None:
        self._places = FairSemaphore(width)
        self._timeout = timeout
        self._refusal = refusal

    @asynccontextmanager
    async def hold(self, key: str = "") -> AsyncIterator[None]:
        """Wait for a place and hold it. Raises StoreUnavailable."""
        try:
            async with asyncio.timeout(self._timeout):
                await self._places.acquire(key)
        except TimeoutError as error:
            raise StoreUnavailable(f"{self._refusal} within {self._timeout:g} s") from error
        try:
            yield
        finally:
            self._places.release()
