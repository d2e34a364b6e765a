"""What may be measured while the server works. As they stand here, these measure nothing: metrics are off."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


class StoreMetrics:
    """Watches one store."""

    def timed(self, call: Awaitable[T]) -> Awaitable[T]:
        """The same call; how long it takes is to be known, and whether it raises StoreUnavailable."""
        return call

    def took(self, seconds: float, *, failed: bool) -> None:
        """A call took so long; or it failed, for the store is away."""

    def gathered(self, items: int) -> None:
        """So many requests are about to be done together."""

    def gave_up(self) -> None:
        """They were not answered in time, or refused because others were not."""


class Metrics:
    """Watches the server. Everything here is called often and must cost next to nothing."""

    def answered(self, op: int, statuses: Sequence[int]) -> None:
        """Frames with that op (0: it was no request) were answered so."""

    def too_slow(self) -> None:
        """A socket was closed because it reads too slowly."""

    def gauge(self, name: str, meaning: str, read: Callable[[], float]) -> None:
        """What `read` returns is to be known under that name; it is called when somebody asks."""

    def watch_health(self, store: str, up: Callable[[], bool]) -> None:
        """Expose whether a store is up; `up` says so without asking the store."""

    def watch_lease(self, store: str, left: Callable[[], float]) -> None:
        """Expose how many seconds the lease on a store has left."""

    def watch(self, store: str) -> StoreMetrics:
        """A watch on that store."""
        return NO_STORE_METRICS

    async def watch_loop(self) -> None:
        """Measure, until cancelled, how late the event loop is."""


NO_STORE_METRICS = StoreMetrics()
NO_METRICS = Metrics()
