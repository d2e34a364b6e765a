"""GET /health pings the stores in parallel, and shares the answer between callers."""

import asyncio
import time

import pytest

from chat_server.api import health
from chat_server.api.health import Health
from chat_server.utils.errors import StoreUnavailable
from tests.harness import TIMEOUT


class PingStub:
    """A store that only answers a ping after `seconds` and when `others` are pinged too, or is away."""

    def __init__(self, seconds: float = 0.0, *, others: asyncio.Barrier | None = None, away: bool = False) -> None:
        self.seconds = seconds
        self.others = others
        self.away = away
        self.pings = 0

    async def ping(self) -> None:
        self.pings += 1
        if self.others:
            await self.others.wait()
        await asyncio.sleep(self.seconds)
        if self.away:
            raise StoreUnavailable("away")


async def test_all_stores_are_pinged_at_once() -> None:
    together = asyncio.Barrier(3)
    stores = {name: PingStub(0.2, others=together) for name in "abc"}
    async with asyncio.timeout(TIMEOUT):
        up, states = await Health({name: store.ping for name, store in stores.items()}).probe()
    assert up
    assert all(state.took_ms >= 200 for state in states.values())


async def test_many_probes_ping_a_store_once_in_an_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "MIN_INTERVAL", 4.0)
    store = PingStub(0.05)
    health_check = Health({"a": store.ping})
    await asyncio.gather(*(health_check.probe() for _ in range(1000)))
    for _ in range(1000):
        await health_check.probe()
    assert store.pings == 1
    await asyncio.sleep(health.MIN_INTERVAL)
    await health_check.probe()
    assert store.pings == 2


async def test_each_store_has_its_own_state_and_time() -> None:
    away, up = PingStub(away=True), PingStub()
    health_check = Health({"away": away.ping, "up": up.ping})
    before = int(time.time() * 1000)
    all_up, first = await health_check.probe()
    assert not all_up
    assert (first["away"].state, first["up"].state) == ("away", "up")
    assert before <= first["away"].since <= time.time() * 1000
    await asyncio.sleep(health.MIN_INTERVAL)
    _, second = await health_check.probe()
    assert second["away"].since == first["away"].since  # unchanged while the state lasts
    away.away = False
    await asyncio.sleep(health.MIN_INTERVAL)
    all_up, third = await health_check.probe()
    assert all_up
    assert third["away"].since > second["away"].since
    assert third["up"].since == first["up"].since


async def test_cancelling_one_caller_does_not_affect_the_others() -> None:
    store = PingStub(0.1)
    health_check = Health({"a": store.ping})
    first, second = asyncio.create_task(health_check.probe()), asyncio.create_task(health_check.probe())
    await asyncio.sleep(0.01)
    first.cancel()
    up, _ = await second
    assert up
    assert store.pings == 1


async def test_close_does_not_wait_for_a_store() -> None:
    health_check = Health({"a": PingStub(60).ping})
    probe = asyncio.create_task(health_check.probe())
    await asyncio.sleep(0.01)
    async with asyncio.timeout(TIMEOUT):
        await health_check.close()
    await asyncio.gather(probe, return_exceptions=True)
