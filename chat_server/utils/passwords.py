"""Prepares and hashes passwords. bcrypt runs in a small thread pool, so that many logins do not slow down chat."""

import asyncio
import os
import time
import unicodedata
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import bcrypt

from chat_server.utils.fair_semaphore import FairSemaphore
from chat_server.utils.threads import lower_priority

T = TypeVar("T")

MAX_BYTES = 72  # bcrypt ignores further bytes
# NFC combines at most three code points into two bytes, so longer input cannot become a valid password.
MAX_INPUT = 2 * MAX_BYTES
_NOT_TEXT = ("Cc", "Cs", "Co", "Cn")  # Unicode categories: control, surrogate, private use, unassigned


class TooBusy(Exception):  # noqa: N818 - an answer
    """Too many passwords wait to be hashed. A retry can succeed after `retry_after` seconds."""

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"the wait would be {retry_after:.0f} s")
        self.retry_after = retry_after


def prepare(password: str) -> str:
    """Prepare a password for hashing with the profile OpaqueString of RFC 8265.

    All spaces become U+0020, then NFC. Input that is too long for a password is returned unchanged.
    """
    if password.isascii() or len(password) > MAX_INPUT:
        return password
    spaced = "".join(" " if unicodedata.category(char) == "Zs" else char for char in password)
    return unicodedata.normalize("NFC", spaced)


def bad_password(password: str, min_bytes: int) -> str:
    """The rule that a new password breaks; empty if it is valid.

    RFC 8264 disallows more code points in a FreeformClass than the refused ones (controls, surrogates, private use,
    unassigned). Joiners and variation selectors are allowed, because keyboards insert them into emoji.
    """
    prepared = prepare(password)
    is_text = len(prepared) <= MAX_BYTES and not any(unicodedata.category(char) in _NOT_TEXT for char in prepared)
    if is_text and min_bytes <= len(prepared.encode()) <= MAX_BYTES:
        return ""
    return f"{min_bytes} to {MAX_BYTES} bytes in UTF-8, no control characters"


class Passwords:
    """Hashes and checks passwords with bcrypt at `cost`. No request waits longer than `timeout` seconds.

    The duration of a hash is measured continuously: requests that would wait too long get TooBusy immediately. Clients,
    identified by their addresses, take turns. A cancelled caller leaves the queue.
    """

    def __init__(self, cost: int, timeout: float) -> None:
        self._cost = cost
        self._timeout = timeout
        self._threads = max(1, min(4, (os.cpu_count() or 2) - 1))  # leave one core to the event loop
        self._pool = ThreadPoolExecutor(self._threads, "passwords", initializer=lower_priority)
        self._turns = FairSemaphore(self._threads)
        self._seconds = 2**cost * 7e-5  # duration of one turn: an estimate until the first measurement

    @property
    def waiting(self) -> int:
        """The number of requests that wait for their turn."""
        return self._turns.waiting

    def check_wait(self, client: str) -> None:
        """Raise TooBusy if a password of this client would wait too long, before any store is used for the request."""
        wait = self._turns.turns_before(client) / self._threads * self._seconds
        if wait > self._timeout:
            raise TooBusy(wait)

    async def hash(self, password: str, client: str = "") -> str:
        """Hash a valid password with bcrypt. Raises TooBusy."""
        secret = prepare(password).encode()
        hashed = await self._run_in_turn(client, lambda: bcrypt.hashpw(secret, bcrypt.gensalt(self._cost)))
        return hashed.decode()

    async def check(self, password: str, hashed: str | None, client: str = "") -> bool:
        """Check a password against a hash. None, for an unknown user, takes as long and returns False. Raises TooBusy.

        Early versions and the Go server hashed the unprepared password, so both forms are checked. The number of
        computed hashes depends only on the password.
        """
        secrets = _secrets(password)
        known = (hashed or _unmatchable_hash(self._cost)).encode()

        def check_all() -> bool:
            matches = [
                bcrypt.checkpw(secret, known) for secret in secrets or [b""]
            ]  # always all: the time must not show which one matches
            return any(matches)

        return await self._run_in_turn(client, check_all) and bool(secrets) and hashed is not None

    def close(self) -> None:
        """Stop the threads after their current hash."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _run_in_turn(self, client: str, work: Callable[[], T]) -> T:
        self.check_wait(client)
        try:
            async with asyncio.timeout(self._timeout):
                await self._turns.acquire(client)
        except TimeoutError:  # later clients also took turns
            raise TooBusy(self._timeout) from None
        hashing = asyncio.get_running_loop().run_in_executor(self._pool, self._timed, work)
        # The turn lasts until its thread is free, even if the caller is cancelled.
        hashing.add_done_callback(lambda _: self._turns.release())
        result, self._seconds = await asyncio.shield(hashing)
        return result

    @staticmethod
    def _timed(work: Callable[[], T]) -> tuple[T, float]:
        started = time.monotonic()
        return work(), time.monotonic() - started


def _secrets(password: str) -> Sequence[bytes]:
    """The byte strings that may have been hashed for this password: prepared, and unprepared if that differs."""
    if len(password) > MAX_INPUT:
        return []
    forms = dict.fromkeys(form.encode() for form in (prepare(password), password))
    # bcrypt refuses longer input, and reads input with a NUL as a repetition.
    return [form for form in forms if len(form) <= MAX_BYTES and 0 not in form]


def _unmatchable_hash(cost: int) -> str:
    """A hash that matches no password. A check against it takes as long as against a real one."""
    return f"$2b${cost:02d}$" + "." * 53
