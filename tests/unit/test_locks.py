"""KeyedLock admits one holder per key at a time, ConcurrencyLimiter a few."""

import asyncio

import pytest

from chat_server.utils.errors import StoreUnavailable
from chat_server.utils.locks import ConcurrencyLimiter, KeyedLock
from tests.harness import TIMEOUT


async def hold_ten_times(lock: KeyedLock | ConcurrencyLimiter) -> tuple[list[int], int]:
    """Let ten tasks hold one key; return their order, and the maximum number of simultaneous holders."""
    holding = most = 0
    order = []

    async def work(number: int) -> None:
        nonlocal holding, most
        async with lock.hold("a"):
            holding += 1
            most = max(most, holding)
            await asyncio.sleep(0)
            order.append(number)
            holding -= 1

    await asyncio.gather(*map(work, range(10)))
    return order, most


async def test_holders_of_one_key_take_turns_in_order() -> None:
    assert await hold_ten_times(KeyedLock()) == (list(range(10)), 1)


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
    assert await hold_ten_times(ConcurrencyLimiter(3, TIMEOUT)) == (list(range(10)), 3)


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
