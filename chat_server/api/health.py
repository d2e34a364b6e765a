"""The health of the stores, for GET /health and the metrics."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping

import msgspec

from chat_server.utils.errors import StoreUnavailable
from chat_server.utils.tasks import cancel

log = logging.getLogger(__name__)

Ping = Callable[[], Awaitable[None]]

# The stores are probed at most once in this many seconds, however many clients ask.
MIN_INTERVAL = 0.9


class HealthState(msgspec.Struct, frozen=True):
    """The state of one store: `up` or `away`, since when (ms since the epoch), and the time of the last probe (ms).

    A store that answers but refuses writes is `away` too.
    """

    state: str
    since: int
    took_ms: float


class Health:
    """Probes all stores concurrently. Callers that ask at the same time share one probe.

    With several processes, one of the stores is `cluster`: the connection of this process to the others.
    """

    def __init__(self, stores: Mapping[str, Ping]) -> None:
        self._stores = stores
        self._states = dict.fromkeys(stores, HealthState("up", _now(), 0))  # the server only starts with all stores up
        self._probing: asyncio.Task[None] | None = None
        self._valid_until = 0.0

    async def probe(self) -> tuple[bool, dict[str, HealthState]]:
        """Return whether all stores are up, and the state of each. Takes as long as the slowest store."""
        if self._probing is None and time.monotonic() >= self._valid_until:
            self._probing = asyncio.create_task(self._probe_all())
        if self._probing:
            await asyncio.shield(self._probing)  # a cancelled caller does not cancel the probe of the others
        return all(store.state == "up" for store in self._states.values()), self._states

    def is_up(self, names: Iterable[str]) -> bool:
        """Whether all stores in `names` were up at the last probe."""
        return all(self._states[name].state == "up" for name in names)

    async def close(self) -> None:
        """Cancel the running probe, if there is one."""
        if self._probing:
            await cancel(self._probing)

    async def _probe_all(self) -> None:
        try:
            states = await asyncio.gather(*(self._probe_store(name, ping) for name, ping in self._stores.items()))
            self._states = dict(zip(self._stores, states, strict=True))
            self._valid_until = time.monotonic() + MIN_INTERVAL
        finally:
            self._probing = None

    async def _probe_store(self, name: str, ping: Ping) -> HealthState:
        started = time.perf_counter()
        before = self._states[name]
        try:
            await ping()
            state = "up"
            if before.state != state:
                log.info("store available", extra={"store": name})
        except StoreUnavailable as error:
            state = "away"
            if before.state != state:
                log.warning("store unavailable", extra={"store": name, "error": str(error)})
        took = round((time.perf_counter() - started) * 1000, 1)
        return HealthState(state, before.since if state == before.state else _now(), took)


def _now() -> int:
    return int(time.time() * 1000)
