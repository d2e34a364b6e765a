"""Passwords: their preparation, and bcrypt in a small thread pool, so that many logins do not slow down chat."""

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

LONGEST = 72  # bytes: what bcrypt takes into account
# NFC combines at most three code points into two bytes, so longer input cannot become a valid password.
MAX_INPUT = 2 * LONGEST
_NOT_TEXT = ("Cc", "Cs", "Co", "Cn")  # categories of code points: control, surrogate, private use, unassigned


class TooBusy(Exception):  # noqa: N818 - an answer
    """A password would wait too long to be hashed; `retry_after` says, in seconds, when to come back."""

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"the wait would be {retry_after:.0f} s")
        self.retry_after = retry_after


def prepare(password: str) -> str:
    """The form in which a password is hashed: the profile OpaqueString of RFC 8265.

    Spaces become U+0020, then NFC. Input that is too long for a password is returned as it is.
    """
    if password.isascii() or len(password) > MAX_INPUT:
        return password
    spaced = "".join(" " if unicodedata.category(char) == "Zs" else char for char in password)
    return unicodedata.normalize("NFC", spaced)


def bad_password(password: str, shortest: int) -> str:
    """The rule that a new password breaks; empty if it breaks none. `shortest` in bytes.

    Of the code points that RFC 8264 disallows in a FreeformClass, controls, surrogates, private use and unassigned ones
    are refused. Joiners and variation selectors are not: keyboards insert them into emoji.
    """
    prepared = prepare(password)
    is_text = len(prepared) <= LONGEST and not any(unicodedata.category(char) in _NOT_TEXT for char in prepared)
    if is_text and shortest <= len(prepared.encode()) <= LONGEST:
        return ""
    return f"{shortest} to {LONGEST} bytes in UTF-8, no control characters"


class Passwords:
    """Hashes and checks passwords with bcrypt at `cost`. No request waits longer than `patience` seconds.

    The time of a hash is measured continually, so a request that would wait longer is refused at once (TooBusy).
    Clients, named by their addresses, take turns. A caller that is cancelled leaves the queue.
    """

    def __init__(self, cost: int, patience: float) -> None:
        self._cost = cost
        self._patience = patience
        self._threads = max(1, min(4, (os.cpu_count() or 2) - 1))  # one core stays with the event loop
        self._pool = ThreadPoolExecutor(self._threads, "passwords", initializer=lower_priority)
        self._turns = FairSemaphore(self._threads)
        self._seconds = 2**cost * 7e-5  # per turn: an estimate until the first measurement

    @property
    def waiting(self) -> int:
        """How many wait for their turn."""
        return self._turns.waiting

    def expect_room(self, client: str) -> None:
        """Raise TooBusy if a password of this client would wait too long now: then nothing need be asked or counted."""
        wait = self._turns.turns_before(client) / self._threads * self._seconds
        if wait > self._patience:
            raise TooBusy(wait)

    async def hash(self, password: str, client: str = "") -> str:
        """The bcrypt hash of a password that is not bad. Raises TooBusy."""
        secret = prepare(password).encode()
        hashed = await self._turn(client, lambda: bcrypt.hashpw(secret, bcrypt.gensalt(self._cost)))
        return hashed.decode()

    async def check(self, password: str, hashed: str | None, client: str = "") -> bool:
        """Whether `hashed` is of this password. None, for an unknown user, costs the same and is False. Raises TooBusy.

        A hash may also be of the unprepared password: early versions and the Go server made such hashes. How many
        hashes a check computes depends on the password alone.
        """
        secrets = _secrets(password)
        known = (hashed or _hash_of_nothing(self._cost)).encode()

        def check_all() -> bool:
            right = [bcrypt.checkpw(secret, known) for secret in secrets or [b""]]  # all of them, always
            return any(right)

        return await self._turn(client, check_all) and bool(secrets) and hashed is not None

    def close(self) -> None:
        """End the threads when they are done with what they do."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _turn(self, client: str, work: Callable[[], T]) -> T:
        self.expect_room(client)
        try:
            async with asyncio.timeout(self._patience):
                await self._turns.acquire(client)
        except TimeoutError:  # clients that came later took turns too
            raise TooBusy(self._patience) from None
        hashing = asyncio.get_running_loop().run_in_executor(self._pool, self._timed, work)
        # The turn lasts as long as its thread is busy, also if the caller is cancelled.
        hashing.add_done_callback(lambda _: self._turns.release())
        result, self._seconds = await asyncio.shield(hashing)
        return result

    @staticmethod
    def _timed(work: Callable[[], T]) -> tuple[T, float]:
        started = time.monotonic()
        return work(), time.monotonic() - started


def _secrets(password: str) -> Sequence[bytes]:
    """What may have been hashed for this password: its prepared form, then its own bytes where they differ."""
    if len(password) > MAX_INPUT:
        return []
    forms = dict.fromkeys(form.encode() for form in (prepare(password), password))
    # bcrypt refuses longer input, and reads input with a NUL as if it were repeated.
    return [form for form in forms if len(form) <= LONGEST and 0 not in form]


def _hash_of_nothing(cost: int) -> str:
    """A hash of that cost that no password has: checking against it takes as long as against a real one."""
    return f"$2b${cost:02d}$" + "." * 53
