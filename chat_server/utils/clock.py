"""A clock that tests can replace, and the strictly increasing times that order messages."""

import time

MICROSECONDS = 1_000_000
# Processes that can share the stores, at most.
SLOTS = 64


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
        self._slot, self._step = 0, 1
        self.now = clock.now

    def next(self) -> int:
        """A time that no other message of this process has, not before the clock's."""
        return self.take(1)[0]

    def take(self, count: int) -> range:
        """`count` such times."""
        now = self.now()
        first = now if now > self._last else self._last + 1
        step = self._step
        if step > 1:
            first += (self._slot - first) % step
        end = first + count * step
        self._last = end - step
        return range(first, end, step)

    def use_slot(self, slot: int) -> None:
        """Take only times that no process with another slot takes: congruent to `slot` modulo SLOTS."""
        self._slot, self._step = slot, SLOTS

    def advance(self, time: int) -> None:
        """Take only times after `time`, which another process took, from now on."""
        self._last = max(self._last, time)

    def ahead(self) -> int:
        """By how many microseconds the last time is ahead of the clock; negative if it is behind."""
        return self._last - self.now()
