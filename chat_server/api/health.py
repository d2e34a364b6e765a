"""Which stores do what they are for: what GET /health and the metrics tell."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping

import msgspec

from chat_server.utils.errors import StoreUnavailable

log = logging.getLogger(__name__)

Ping = Callable[[], Awaitable[None]]

# The stores are asked once in so many seconds, however many ask us.
EVERY = 0.9


class HealthState(msgspec.Struct, frozen=True):
    """Of one store: `up` or `away`, since when (ms since the epoch), and how long its last answer took (ms).

    A store that answers but refuses to write is `away` as well.
    """

    state: str
    since: int
    took_ms: float


class Health:
    """Asks the stores side by side, once for all who want to know: it takes as long as the slowest of them."""

    def __init__(self, stores: Mapping[str, Ping]) -> None:
        self._stores = stores
        self._states = dict.fromkeys(stores, HealthState("up", _now(), 0))  # the server starts with all of them up
        self._asking: asyncio.Task[None] | None = None
        self._until = 0.0

    async def probe(self) -> tuple[bool, dict[str, HealthState]]:
        """Whether all stores are up, and the state of each."""
        if self._asking is None and time.monotonic() >= self._until:
            self._asking = asyncio.create_task(self._ask())
        if self._asking:
            await asyncio.shield(self._asking)  # who leaves does not take the answer from the others
        return all(store.state == "up" for store in self._states.values()), self._states

    def up(self, names: Iterable[str]) -> bool:
        """Whether those stores were up when last asked."""
        return all(self._states[name].state == "up" for name in names)

    async def close(self) -> None:
        """Ask no more."""
        if self._asking:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)

    async def _ask(self) -> None:
        try:
            states = await asyncio.gather(*(self._state(name, ping) for name, ping in self._stores.items()))
            self._states = dict(zip(self._stores, states, strict=True))
            self._until = time.monotonic() + EVERY
        finally:
            self._asking = None

    async def _state(self, name: str, ping: Ping) -> HealthState:
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
