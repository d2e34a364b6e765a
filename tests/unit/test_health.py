"""GET /health asks the stores side by side, and once for all who want to know."""

import asyncio
import time

from chat_server.api import health
from chat_server.api.health import Health
from chat_server.utils.errors import StoreUnavailable


class Store:
    """Answers a ping after `seconds`, or is away."""

    def __init__(self, seconds: float = 0.0, *, away: bool = False) -> None:
        self.seconds = seconds
        self.away = away
        self.asked = 0

    async def ping(self) -> None:
        self.asked += 1
        await asyncio.sleep(self.seconds)
        if self.away:
            raise StoreUnavailable("away")


async def test_the_slowest_store_says_how_long_it_takes() -> None:
    stores = {name: Store(0.2) for name in "abc"}
    started = time.monotonic()
    up, states = await Health({name: store.ping for name, store in stores.items()}).probe()
    assert 0.2 <= time.monotonic() - started < 0.5
    assert up
    assert all(200 <= state.took_ms < 500 for state in states.values())


async def test_however_many_ask_a_store_is_asked_once_a_second() -> None:
    store = Store(0.05)
    house = Health({"a": store.ping})
    await asyncio.gather(*(house.probe() for _ in range(1000)))
    for _ in range(1000):
        await house.probe()
    assert store.asked == 1
    await asyncio.sleep(health.MIN_INTERVAL)
    await house.probe()
    assert store.asked == 2


async def test_each_store_has_its_own_state_and_time() -> None:
    away, up = Store(away=True), Store()
    house = Health({"away": away.ping, "up": up.ping})
    before = int(time.time() * 1000)
    all_up, first = await house.probe()
    assert not all_up
    assert (first["away"].state, first["up"].state) == ("away", "up")
    assert before <= first["away"].since <= time.time() * 1000
    await asyncio.sleep(health.MIN_INTERVAL)
    _, second = await house.probe()
    assert second["away"].since == first["away"].since  # still, not again
    away.away = False
    await asyncio.sleep(health.MIN_INTERVAL)
    all_up, third = await house.probe()
    assert all_up
    assert third["away"].since > second["away"].since
    assert third["up"].since == first["up"].since


async def test_who_leaves_does_not_take_the_answer_from_the_others() -> None:
    store = Store(0.1)
    house = Health({"a": store.ping})
    first, second = asyncio.create_task(house.probe()), asyncio.create_task(house.probe())
    await asyncio.sleep(0.01)
    first.cancel()
    up, _ = await second
    assert up
    assert store.asked == 1


async def test_the_end_does_not_wait_for_a_store() -> None:
    house = Health({"a": Store(60).ping})
    asking = asyncio.create_task(house.probe())
    await asyncio.sleep(0.01)
    async with asyncio.timeout(30):
        await house.close()
    await asyncio.gather(asking, return_exceptions=True)
