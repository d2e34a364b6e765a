"""bcrypt in a small thread pool of its own, so that a storm of logins slows logins, not chat."""

import asyncio
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import bcrypt

from chat_server.utils.threads import step_back

T = TypeVar("T")

LONGEST = 72  # bytes: what bcrypt takes into account


class TooBusy(Exception):  # noqa: N818 - an answer
    """A password would wait too long to be hashed; `retry_after` says, in seconds, when to come back."""

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"the wait would be {retry_after:.0f} s")
        self.retry_after = retry_after


class Passwords:
    """Hashes and checks passwords with bcrypt at `cost`; nobody waits longer than `patience` seconds.

    How long one takes is measured as it goes, so whoever would wait longer is told at once (TooBusy).
    A caller that is cancelled leaves the queue.
    """

    def __init__(self, cost: int, patience: float) -> None:
        self._cost = cost
        self._patience = patience
        self._threads = max(1, min(4, (os.cpu_count() or 2) - 1))  # one core stays with the event loop
        self._pool = ThreadPoolExecutor(self._threads, "passwords", initializer=step_back)
        self._free = asyncio.Semaphore(self._threads)
        self._waiting = 0
        self._seconds = 2**cost * 7e-5  # what one password takes: a guess, until one was seen

    @property
    def waiting(self) -> int:
        """How many wait for their turn."""
        return self._waiting

    def expect_room(self) -> None:
        """Raise TooBusy if a password would have to wait too long now: then nothing need be asked or counted for it."""
        wait = (self._waiting + 1) / self._threads * self._seconds if self._free.locked() else 0.0
        if wait > self._patience:
            raise TooBusy(wait)

    async def hash(self, password: str) -> str:
        """The bcrypt hash of a password of at most 72 bytes without NUL. Raises TooBusy."""
        hashed = await self._turn(lambda: bcrypt.hashpw(password.encode(), bcrypt.gensalt(self._cost)))
        return hashed.decode()

    async def check(self, password: str, hashed: str | None) -> bool:
        """Whether `hashed` is of this password. None, for nobody's, takes as long and is False. Raises TooBusy."""
        secret = password.encode()
        if len(secret) > LONGEST or 0 in secret:  # bcrypt refuses the one, and reads the other up to there only
            secret, hashed = b"", None
        known = (hashed or _of_nobody(self._cost)).encode()
        return await self._turn(lambda: bcrypt.checkpw(secret, known)) and hashed is not None

    def close(self) -> None:
        """End the threads when they are done with what they do."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _turn(self, work: Callable[[], T]) -> T:
        self.expect_room()
        self._waiting += 1
        try:
            await self._free.acquire()
        finally:
            self._waiting -= 1
        try:
            started = time.monotonic()
            result = await asyncio.get_running_loop().run_in_executor(self._pool, work)
            self._seconds = time.monotonic() - started
            return result
        finally:
            self._free.release()


def _of_nobody(cost: int) -> str:
    """A hash of that cost that no password has: checking against it takes as long as against a real one."""
    return f"$2b${cost:02d}$" + "." * 53
