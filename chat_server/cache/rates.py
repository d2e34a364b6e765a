"""The interface of a store that counts how often something was tried."""

from collections.abc import Sequence
from typing import Protocol

import msgspec

# The clocks of the processes that share a store differ by less than this many seconds: each of them by at most MAX_SKEW
# (redis_nodes.py) from the clock of Redis. A window that ends later than such a clock allows is one of a clock that was
# set back, and is over.
CLOCK_TOLERANCE = 10.0


class Rate(msgspec.Struct, frozen=True):
    """At most `limit` times per `window` seconds for each `key`, whose parts cannot be confused."""

    key: tuple[str, ...]
    limit: int
    window: float


class RateStore(Protocol):
    """Counts attempts in fixed windows. All methods raise StoreUnavailable.

    The clocks of callers may differ by CLOCK_TOLERANCE.
    """

    async def take(self, rates: Sequence[Rate]) -> float:
        """Count one attempt for each rate, if all rates allow it, in one atomic step.

        Returns 0. If a rate is exceeded, counts nothing and returns the seconds until the last exceeded window ends.
        """
        ...

    async def count(self, rate: Rate) -> int:
        """The count of the current window."""
        ...

    async def give_back(self, rates: Sequence[Rate], age: float) -> None:
        """Undo what `take` counted `age` seconds ago; a window that began later is not changed."""
        ...

    async def forget(self, rate: Rate) -> None:
        """Reset the count."""
        ...

    async def ping(self) -> None:
        """Return if the store answers."""
        ...
