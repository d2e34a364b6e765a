"""The metrics that Prometheus reads. Its labels are ops, status codes and stores: few, and never a user's name."""

import asyncio
import time
from collections import Counter as Tally
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from chat_server.utils.errors import StoreUnavailable
from chat_server.utils.metrics import Metrics, StoreMetrics

T = TypeVar("T")

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
# The loop's lateness is measured so often, in seconds.
LAG_EVERY = 0.25


class PrometheusMetrics(Metrics):
    """All metrics of a server. Called from the event loop only, so a frame costs one addition and no lock."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._answers = FrameCollector()
        self._registry.register(self._answers)
        self._slow = self._counter("chat_slow_readers", "Sockets closed with 1013 because they read too slowly.")
        self._lag = self._histogram("chat_loop_lag_seconds", "How late the event loop was.", SECONDS)
        self._calls = self._histogram(
            "chat_store_call_seconds", "How long a store took for a call, or for a batch of them.", SECONDS, "store"
        )
        self._failures = self._counter("chat_store_failures", "Calls that a store failed, or did not answer.", "store")
        self._batches = self._histogram("chat_batch_size", "Requests that went to a store together.", SIZES, "store")
        self._up = Gauge(
            "chat_store_up", "Whether a store answered and accepted writes.", ("store",), registry=self._registry
        )
        self._leases = Gauge(
            "chat_lease_seconds", "Seconds until the lease on a store runs out.", ("store",), registry=self._registry
        )

    def answered(self, op: int, statuses: Sequence[int]) -> None:
        seen, first = self._answers.seen, statuses[0]
        if statuses.count(first) == len(statuses):  # nearly always: one addition for the whole run
            seen[op, first] += len(statuses)
            return
        for status in statuses:
            seen[op, status] += 1

    def too_slow(self) -> None:
        self._slow.inc()

    def gauge(self, name: str, meaning: str, read: Callable[[], float]) -> None:
        Gauge(name, meaning, registry=self._registry).set_function(read)

    def watch_health(self, store: str, up: Callable[[], bool]) -> None:
        self._up.labels(store).set_function(up)

    def watch_lease(self, store: str, left: Callable[[], float]) -> None:
        self._leases.labels(store).set_function(left)

    def watch(self, store: str) -> StoreMetrics:
        return PrometheusStoreMetrics(
            self._calls.labels(store), self._failures.labels(store), self._batches.labels(store)
        )

    async def watch_loop(self) -> None:
        while True:
            started = time.monotonic()
            await asyncio.sleep(LAG_EVERY)
            self._lag.observe(max(0.0, time.monotonic() - started - LAG_EVERY))

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """All metrics as they are now, in the text format that suits the header `Accept`, and its content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(name, meaning, labels, registry=self._registry)

    def _histogram(self, name: str, meaning: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(name, meaning, labels, registry=self._registry, buckets=buckets)


class FrameCollector(Collector):
    """Frames by op and answer, counted in a plain dict: a Counter of prometheus_client costs ten times as much."""

    def __init__(self) -> None:
        self.seen: Tally[tuple[int, int]] = Tally()

    def collect(self) -> Iterator[CounterMetricFamily]:
        """What the registry asks for."""
        family = CounterMetricFamily(
            "chat_frames", "Frames from clients by op and status of the answer.", labels=("op", "status")
        )
        for (op, status), count in self.seen.items():
            family.add_metric([str(op) if op else "none", str(int(status))], count)
        yield family


class PrometheusStoreMetrics(StoreMetrics):
    """A store's metrics, looked up once."""

    def __init__(self, calls: Histogram, failures: Counter, batches: Histogram) -> None:
        self._calls = calls
        self._failures = failures
        self._batches = batches

    async def timed(self, call: Awaitable[T]) -> T:
        started, failed = time.perf_counter(), False
        try:
            return await call
        except StoreUnavailable:
            failed = True
            raise
        finally:  # also where the caller left: the store was busy with it so long
            self.took(time.perf_counter() - started, failed=failed)

    def took(self, seconds: float, *, failed: bool) -> None:
        self._calls.observe(seconds)
        if failed:
            self._failures.inc()

    def gathered(self, items: int) -> None:
        self._batches.observe(items)

    def gave_up(self) -> None:
        self._failures.inc()
