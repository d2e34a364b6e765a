"""What this process remembers, in bounds: who are friends, and what was delivered lately."""

from array import array
from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from enum import IntEnum

Pair = tuple[str, str]  # of users, the lesser name first


class Recent:
    """The greatest `most` to twice as many of the numbers that were added, which come nearly in order.

    Kept as machine integers in one piece: objects would lie scattered among all that is made meanwhile, and hold on to
    the memory around them long after the rest has gone.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._numbers = array("q")  # in order

    def add(self, number: int) -> None:
        """Remember `number`."""
        if number in self:
            return
        if len(self._numbers) >= 2 * self._most:
            del self._numbers[: self._most]
        insort(self._numbers, number)

    def __contains__(self, number: int) -> bool:
        place = bisect_left(self._numbers, number)
        return place < len(self._numbers) and self._numbers[place] == number


class Relation(IntEnum):
    """What is known of two users."""

    UNKNOWN = 0  # whether they are friends: ask the counters
    DUE = 1  # they are, and the counters should hear of it again
    FREE = 2  # they are


# Looked up once: before Python 3.12 each look at an enum's member is a call.
_UNKNOWN, _DUE, _FREE = Relation


class Friends:
    """Pairs known to talk freely, so that their messages need not ask the counters.

    A pair is free for `window` microseconds after its last message. The counters are told of it again
    once a fiftieth of that has passed, so they know nearly as much after a restart.
    """

    def __init__(self, window: int, most: int) -> None:
        self._window = window
        self._most = most
        self._pairs: dict[Pair, tuple[int, int]] = {}  # -> free until, tell the counters from

    def lookup(self, one: str, other: str, now: int) -> Relation:
        """What is known of two users of whom one writes now, and so goes on to talk."""
        pair = (one, other) if one < other else (other, one)
        known = self._pairs.get(pair)
        if known is None or now >= known[0]:
            return _UNKNOWN
        self._pairs[pair] = (now + self._window, known[1])
        return _FREE if now < known[1] else _DUE

    def remember(self, one: str, other: str, now: int) -> None:
        """The counters know that the two talk freely from `now` on."""
        pair = (one, other) if one < other else (other, one)
        self._pairs.pop(pair, None)
        if len(self._pairs) >= self._most:
            del self._pairs[next(iter(self._pairs))]
        self._pairs[pair] = (now + self._window, now + self._window // 50)

    def pairs(self) -> Sequence[Pair]:
        """Those known now."""
        return list(self._pairs)

    def forget(self, pairs: Iterable[Pair]) -> None:
        """Know nothing of them any more."""
        for pair in pairs:
            self._pairs.pop(pair, None)
