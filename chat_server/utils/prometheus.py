"""The metrics for Prometheus. Labels are only ops, status codes and stores: few, and never names of users."""

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
# Seconds between two measurements of the loop's delay.
LAG_INTERVAL = 0.25


class PrometheusMetrics(Metrics):
    """All metrics of a server. Only the event loop calls it, so a frame costs one addition and no lock."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._frames = FrameCollector()
        self._registry.register(self._frames)
        self._slow = self._counter("chat_slow_readers", "Sockets closed with 1013 because they read too slowly.")
        self._lag = self._histogram("chat_loop_lag_seconds", "Delay of the event loop.", SECONDS)
        self._calls = self._histogram(
            "chat_store_call_seconds", "Duration of a call to a store; a batch is one call.", SECONDS, "store"
        )
        self._failures = self._counter(
            "chat_store_failures", "Calls that failed or were not answered in time.", "store"
        )
        self._batches = self._histogram("chat_batch_size", "Requests in one batch to a store.", SIZES, "store")
        self._up = Gauge(
            "chat_store_up",
            "1 if the store answered and accepted writes at the last probe, else 0.",
            ("store",),
            registry=self._registry,
        )
        self._leases = Gauge(
            "chat_lease_seconds", "Seconds until the lease on a store expires.", ("store",), registry=self._registry
        )

    def add_answers(self, op: int, statuses: Sequence[int]) -> None:
        counts, first = self._frames.counts, statuses[0]
        if statuses.count(first) == len(statuses):  # the usual case: one addition for the whole batch
            counts[op, first] += len(statuses)
            return
        for status in statuses:
            counts[op, status] += 1

    def add_slow_reader(self) -> None:
        self._slow.inc()

    def add_gauge(self, name: str, meaning: str, read: Callable[[], float]) -> None:
        Gauge(name, meaning, registry=self._registry).set_function(read)

    def add_counter(self, name: str, meaning: str, read: Callable[[], float]) -> None:
        self._registry.register(ReadCounter(name, meaning, read))

    def add_health(self, store: str, up: Callable[[], bool]) -> None:
        self._up.labels(store).set_function(up)

    def add_lease(self, store: str, left: Callable[[], float]) -> None:
        self._leases.labels(store).set_function(left)

    def for_store(self, store: str) -> StoreMetrics:
        return PrometheusStoreMetrics(
            self._calls.labels(store), self._failures.labels(store), self._batches.labels(store)
        )

    async def measure_loop_lag(self) -> None:
        while True:
            started = time.monotonic()
            await asyncio.sleep(LAG_INTERVAL)
            self._lag.observe(max(0.0, time.monotonic() - started - LAG_INTERVAL))

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """The current metrics in the format that the header `Accept` prefers, and the content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(name, meaning, labels, registry=self._registry)

    def _histogram(self, name: str, meaning: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(name, meaning, labels, registry=self._registry, buckets=buckets)


class FrameCollector(Collector):
    """Counts frames by op and status in a dict, because a Counter of prometheus_client costs ten times as much."""

    def __init__(self) -> None:
        self.counts: Tally[tuple[int, int]] = Tally()

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Yield the metric; the registry calls this for each scrape."""
        family = CounterMetricFamily(
            "chat_frames", "Frames from clients by op and status of the answer.", labels=("op", "status")
        )
        for (op, status), count in self.counts.items():
            family.add_metric([str(op) if op else "none", str(int(status))], count)
        yield family


class ReadCounter(Collector):
    """A counter whose value `read` returns."""

    def __init__(self, name: str, meaning: str, read: Callable[[], float]) -> None:
        self._name = name
        self._meaning = meaning
        self._read = read

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Yield the metric; the registry calls this for each scrape."""
        yield CounterMetricFamily(self._name, self._meaning, value=self._read())


class PrometheusStoreMetrics(StoreMetrics):
    """The metrics of one store. Their labels are looked up once."""

    def __init__(self, calls: Histogram, failures: Counter, batches: Histogram) -> None:
        self._calls = calls
        self._failures = failures
        self._batches = batches

    async def time_call(self, call: Awaitable[T]) -> T:
        started, failed = time.perf_counter(), False
        try:
            return await call
        except StoreUnavailable:
            failed = True
            raise
        finally:  # also if the caller was cancelled: the store was busy all the same
            self.add_call(time.perf_counter() - started, failed=failed)

    def add_call(self, seconds: float, *, failed: bool) -> None:
        self._calls.observe(seconds)
        if failed:
            self._failures.inc()

    def add_batch(self, size: int) -> None:
        self._batches.observe(size)

    def add_failure(self) -> None:
        self._failures.inc()
