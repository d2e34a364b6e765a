"""A clock that tests can replace, and the strictly increasing times that order messages."""

import time

MICROSECONDS = 1_000_000


class Clock:
    """The machine's clocks."""

    def now(self) -> int:
        """Microseconds since the epoch. May jump when the machine's clock is set."""
        return time.time_ns() // 1000

    def monotonic(self) -> float:
        """Seconds since an arbitrary moment; never decreases."""
        return time.monotonic()


class Timeline:
    """Times in microseconds since the epoch, each later than all before it: the order of messages.

    `newest` is the newest time that an earlier process used, so a clock that was set back reorders nothing.
    """

    def __init__(self, clock: Clock, newest: int = 0) -> None:
        self._last = newest
        self.now = clock.now

    def next(self) -> int:
        """A time that no other message of this process has, not before the clock's."""
        return self.take(1)[0]

    def take(self, count: int) -> range:
        """`count` such times."""
        now = self.now()
        first = now if now > self._last else self._last + 1
        self._last = first + count - 1
        return range(first, first + count)

    def ahead(self) -> int:
        """By how many microseconds the last time is ahead of the clock; negative if it is behind."""
        return self._last - self.now()
