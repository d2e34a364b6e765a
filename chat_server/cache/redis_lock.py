"""Locks between processes, in Redis. They keep notices in order; data is protected by the stores' own transactions."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from chat_server.cache.redis import Scripts
from chat_server.utils.errors import StoreUnavailable

# Seconds until a lock expires whose process was killed, and that a caller waits for it: longer than a change takes
# that waits for the lease of a frozen process.
LOCK_SECONDS = 30
# Seconds between two attempts to take a lock.
POLL_SECONDS = 0.02


class RedisLocks:
    """Takes locks by name."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts

    @asynccontextmanager
    async def hold(self, name: str) -> AsyncIterator[None]:
        """Wait for a lock, and hold it. Raises StoreUnavailable."""
        keys, token = [f"lock:{name}"], secrets.token_hex(8)
        try:
            await self._take(name, keys, token)
            yield
        finally:  # also if a call without an answer may have taken it
            with suppress(StoreUnavailable):  # it expires
                await self._scripts.run("lock_release", keys, [token])

    async def _take(self, name: str, keys: list[str], token: str) -> None:
        try:
            async with asyncio.timeout(LOCK_SECONDS):
                while not await self._scripts.run("lock_take", keys, [token, LOCK_SECONDS * 1000]):  # noqa: ASYNC110
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError as error:
            why = f"{self._scripts.name}: the lock {name} was not free for {LOCK_SECONDS} s"
            raise StoreUnavailable(why) from error
