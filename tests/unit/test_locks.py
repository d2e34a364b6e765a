"""KeyedLock admits one holder per key at a time, ConcurrencyLimiter a few."""

import asyncio

import pytest

from chat_server.utils.errors import StoreUnavailable
from chat_server.utils.locks import ConcurrencyLimiter, KeyedLock
from tests.harness import TIMEOUT


async def test_holders_of_one_key_take_turns_in_order() -> None:
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


async def test_different_keys_do_not_wait_for_each_other() -> None:
    lock = KeyedLock()
    async with asyncio.timeout(TIMEOUT), lock.hold("a"), lock.hold("b"):
        pass


async def test_an_error_or_a_cancelled_waiter_releases_the_lock() -> None:
    lock = KeyedLock()
    entered = []

    async def work(name: str) -> None:
        async with lock.hold("a"):
            entered.append(name)

    try:
        async with lock.hold("a"):
            cancelled, waiting = asyncio.create_task(work("cancelled")), asyncio.create_task(work("waiting"))
            await asyncio.sleep(0)
            cancelled.cancel()
            raise ValueError
    except ValueError:
        pass
    await asyncio.gather(cancelled, waiting, return_exceptions=True)
    async with asyncio.timeout(TIMEOUT):
        await work("after")
    assert entered == ["waiting", "after"]


async def test_unused_keys_take_no_memory() -> None:
    lock = KeyedLock()

    async def work(key: str) -> None:
        async with lock.hold(key):
            await asyncio.sleep(0)

    await asyncio.gather(*(work(str(number % 7)) for number in range(50)))
    assert not lock._locks


async def test_a_limiter_admits_a_few_at_a_time_in_order() -> None:
    limiter = ConcurrencyLimiter(3, 1)
    holding = 0
    order = []

    async def work(number: int) -> None:
        nonlocal holding
        async with limiter.hold("a"):
            holding += 1
            assert holding <= 3
            await asyncio.sleep(0)
            order.append(number)
            holding -= 1

    await asyncio.gather(*map(work, range(10)))
    assert order == list(range(10))


async def test_a_busy_key_delays_no_other_key_of_a_limiter() -> None:
    limiter = ConcurrencyLimiter(1, 5)
    order = []

    async def work(key: str) -> None:
        async with limiter.hold(key):
            await asyncio.sleep(0)
            order.append(key)

    await asyncio.gather(*(work("a") for _ in range(10)), work("b"))
    assert order.index("b") <= 2


async def test_a_limiter_refuses_a_caller_that_waits_too_long() -> None:
    limiter = ConcurrencyLimiter(1, 0.01)
    async with limiter.hold("a"):
        with pytest.raises(StoreUnavailable):
            async with limiter.hold("a"):
                pass
    async with limiter.hold("a"):
        pass
