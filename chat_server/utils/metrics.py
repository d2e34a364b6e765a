"""The interface of metrics, as classes that measure nothing: they are used while metrics are off."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


class StoreMetrics:
    """The metrics of one store."""

    def time_call(self, call: Awaitable[T]) -> Awaitable[T]:
        """Measure the duration of a call, and count it as failed if it raises StoreUnavailable. Returns its result."""
        return call

    def add_call(self, seconds: float, *, failed: bool) -> None:
        """Add a call that took `seconds`; `failed` if the store was unavailable."""

    def add_batch(self, size: int) -> None:
        """Add a batch of `size` requests that go to the store together."""

    def add_failure(self) -> None:
        """Add a call that the store did not answer in time, or that was refused because earlier calls still wait."""


class Metrics:
    """The metrics of the server. All methods are called often, so they must cost almost nothing."""

    def add_answers(self, op: int, statuses: Sequence[int]) -> None:
        """Add the statuses with which frames of this op were answered; op 0: not a valid frame."""

    def add_slow_reader(self) -> None:
        """Add a socket that was closed because its client reads too slowly."""

    def add_gauge(self, name: str, meaning: str, read: Callable[[], float]) -> None:
        """Register a gauge. Each scrape calls `read` for the current value."""

    def add_counter(self, name: str, meaning: str, read: Callable[[], float]) -> None:
        """Register a counter. Each scrape calls `read` for the current value."""

    def add_health(self, store: str, up: Callable[[], bool]) -> None:
        """Register the health of a store. Each scrape calls `up`, which must not call the store."""

    def add_lease(self, store: str, left: Callable[[], float]) -> None:
        """Register the lease on a store. Each scrape calls `left` for the seconds until it expires."""

    def for_store(self, store: str) -> StoreMetrics:
        """The metrics of the store with this label."""
        return NO_STORE_METRICS

    async def measure_loop_lag(self) -> None:
        """Measure the delay of the event loop until cancelled."""


NO_STORE_METRICS = StoreMetrics()
NO_METRICS = Metrics()
