"""KeyedLock: one at a time, per key. ConcurrencyLimiter: a few at a time."""

import asyncio

import pytest

from chat_server.utils.errors import StoreUnavailable
from chat_server.utils.locks import ConcurrencyLimiter, KeyedLock
from tests.harness import TIMEOUT


async def test_one_at_a_time_for_the_same_key_in_the_order_of_asking() -> None:
    lock = KeyedLock()
    holding = 0
    order = []

    async def work(number: int) -> None:
        nonlocal holding
        async with lock.hold("a"):
            holding += 1
            assert holding == 1
            await asyncio.sleep(0)
            order.append(number)
            holding -= 1

    await asyncio.gather(*map(work, range(10)))
    assert order == list(range(10))


async def test_another_key_does_not_wait() -> None:
    lock = KeyedLock()
    async with asyncio.timeout(TIMEOUT), lock.hold("a"), lock.hold("b"):
        pass


async def test_it_is_free_again_after_an_error_and_after_a_cancelled_waiter() -> None:
    lock = KeyedLock()
    entered = []

    async def work(name: str) -> None:
        async with lock.hold("a"):
            entered.append(name)

    try:
        async with lock.hold("a"):
            cancelled, patient = asyncio.create_task(work("cancelled")), asyncio.create_task(work("patient"))
            await asyncio.sleep(0)
            cancelled.cancel()
            raise ValueError
    except ValueError:
        pass
    await asyncio.gather(cancelled, patient, return_exceptions=True)
    async with asyncio.timeout(TIMEOUT):
        await work("after")
    assert entered == ["patient", "after"]


async def test_a_key_that_nobody_holds_takes_no_memory() -> None:
    lock = KeyedLock()

    async def work(key: str) -> None:
        async with lock.hold(key):
            await asyncio.sleep(0)

    await asyncio.gather(*(work(str(number % 7)) for number in range(50)))
    assert not lock._locks


async def test_a_lane_lets_a_few_through_at_a_time_in_the_order_of_asking() -> None:
    lane = ConcurrencyLimiter(3, 1)
    holding = 0
    order = []

    async def work(number: int) -> None:
        nonlocal holding
        async with lane.hold("a"):
            holding += 1
            assert holding <= 3
            await asyncio.sleep(0)
            order.append(number)
            holding -= 1

    await asyncio.gather(*map(work, range(10)))
    assert order == list(range(10))


async def test_a_key_that_waits_often_delays_no_other_in_a_lane() -> None:
    lane = ConcurrencyLimiter(1, 5)
    order = []

    async def work(key: str) -> None:
        async with lane.hold(key):
            await asyncio.sleep(0)
            order.append(key)

    await asyncio.gather(*(work("a") for _ in range(10)), work("b"))
    assert order.index("b") <= 2


async def test_who_waits_too_long_for_a_lane_is_told_and_takes_no_room() -> None:
    lane = ConcurrencyLimiter(1, 0.01)
    async with lane.hold("a"):
        with pytest.raises(StoreUnavailable):
            async with lane.hold("a"):
                pass
    async with lane.hold("a"):
        pass
