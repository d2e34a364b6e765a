"""Time: a clock that tests may own, and the strictly increasing time that orders messages."""

import time

MICROSECONDS = 1_000_000


class Clock:
    """The machine's clocks."""

    def now(self) -> int:
        """Microseconds since the epoch. May jump when the machine's clock is set."""
        return time.time_ns() // 1000

    def monotonic(self) -> float:
        """Seconds since some moment; never goes back."""
        return time.monotonic()


class Timeline:
    """Times in microseconds since the epoch, each later than any before: the order of messages.

    `newest` is the newest time already given out (by an earlier process): a clock that was set back
    does not reorder.
    """

    def __init__(self, clock: Clock, newest: int = 0) -> None:
        self._clock = clock
        self._last = newest

    def next(self) -> int:
        """A time that no other message of this process has, not before the clock's."""
        now = self._clock.now()
        self._last = now if now > self._last else self._last + 1
        return self._last

    def ahead(self) -> int:
        """By how many microseconds the last time is ahead of the clock; negative if it is behind."""
        return self._last - self._clock.now()
