"""RateStore on every backend."""

import asyncio

import pytest

from chat_server.cache.rates import Rate, RateStore
from chat_server.utils.errors import StoreUnavailable
from tests.contract.conftest import Later
from tests.harness import ManualClock

SLACK = 5.0  # seconds that a test may take


def rate(*key: str, limit: int = 3, window: float = 100) -> Rate:
    return Rate(key or ("a",), limit, window)


async def taken(rates: RateStore, *wanted: Rate) -> int:
    """Return how often the rates can be taken now, at most 20 times."""
    for count in range(20):
        if await rates.take(wanted):
            return count
    return 20


async def test_a_rate_allows_its_limit(rates: RateStore) -> None:
    assert await taken(rates, rate()) == 3
    assert await taken(rates, rate()) == 0
    assert await taken(rates, rate(limit=1)) == 0
    assert await taken(rates, rate(limit=5)) == 2


async def test_a_refusal_returns_the_seconds_to_wait(rates: RateStore, later: Later) -> None:
    assert [await rates.take([rate()]) for _ in range(3)] == [0, 0, 0]
    assert 100 - SLACK < await rates.take([rate()]) <= 100
    await later(60)
    assert 40 - SLACK < await rates.take([rate()]) <= 40


async def test_a_new_window_starts_after_the_first_one_ends(rates: RateStore, later: Later) -> None:
    assert not await rates.take([rate()])
    await later(60)
    assert await taken(rates, rate()) == 2
    await later(41)
    assert await taken(rates, rate()) == 3


async def test_a_clock_that_is_a_little_behind_starts_no_window(rates: RateStore, clock: ManualClock) -> None:
    """The clocks of processes differ. Otherwise the requests of one of them would reset the counts of the others."""
    for shift in (0.0, -0.002, -9.0):
        clock.shift = shift
        assert not await rates.take([rate()])
    assert await rates.count(rate()) == 3
    assert await taken(rates, rate()) == 0
    clock.shift = -100000.0  # it was set back
    assert await rates.count(rate()) == 0
    assert await taken(rates, rate()) == 3


async def test_refused_attempts_do_not_extend_the_wait(rates: RateStore, later: Later) -> None:
    await taken(rates, rate())
    for _ in range(10):
        await later(9)
        assert await rates.take([rate()])
    await later(11)
    assert await taken(rates, rate()) == 3


async def test_a_refusal_by_one_rate_counts_for_none(rates: RateStore) -> None:
    tight, wide = rate("tight", limit=1), rate("wide", limit=5)
    assert await taken(rates, tight, wide) == 1
    assert await rates.take([wide, tight])
    assert await taken(rates, wide) == 4


async def test_the_wait_lasts_until_the_last_exceeded_window_ends(rates: RateStore) -> None:
    short, long, free = rate("short", limit=1, window=10), rate("long", limit=1, window=1000), rate("free")
    assert not await rates.take([short, long, free])
    assert 1000 - SLACK < await rates.take([short, long, free]) <= 1000
    assert 1000 - SLACK < await rates.take([free, long, short]) <= 1000
    assert 10 - SLACK < await rates.take([short, free]) <= 10


async def test_nothing_at_all_is_allowed(rates: RateStore) -> None:
    assert await rates.take([]) == 0


async def test_parts_of_a_key_are_not_confused(rates: RateStore) -> None:
    keys: list[tuple[str, ...]] = [
        *(("a", "b"), ("ab",), ("a:b",), ("a", "b", ""), ("", "a", "b"), ("b", "a"), ("a b",), ("a,b",), ("a\0b",)),
        *(("A", "b"), ("á", "b"), ("a", "b "), ("",), ("", ""), ("'",), ('"',), ("\\",), ("*",), ("?",), ("a*",)),
        *(("$a",), ("a.b",), ("a", ".b"), ("{a}",), ("[a]",), ("%",), ("_",), ("אב",), ("בא",), ("😀",), ("\n",)),
    ]
    for key in keys:
        assert await taken(rates, rate(*key, limit=1)) == 1, key
    for key in keys:
        await rates.forget(rate(*key))
        assert await taken(rates, rate(*key, limit=1)) == 1, key


async def test_a_long_key_is_a_key(rates: RateStore) -> None:
    assert await taken(rates, rate("a" * 16000)) == 3
    assert await taken(rates, rate("a" * 16000 + "b")) == 3


async def test_concurrent_attempts_do_not_exceed_the_limit(rates: RateStore) -> None:
    waits = await asyncio.gather(*(rates.take([rate(limit=7), rate("other", limit=50)]) for _ in range(40)))
    assert waits.count(0) == 7
    assert await taken(rates, rate("other", limit=50)) == 20


async def test_a_returned_count_can_be_taken_again(rates: RateStore) -> None:
    both = [rate("a"), rate("b")]
    for _ in range(3):
        assert not await rates.take(both)
    await rates.give_back(both, 0)
    assert await taken(rates, rate("a")) == 1
    assert await taken(rates, rate("b")) == 1


async def test_a_count_never_falls_below_zero(rates: RateStore) -> None:
    await rates.give_back([rate()], 0)
    assert await taken(rates, rate()) == 3
    for _ in range(5):
        await rates.give_back([rate()], 0)
    assert await taken(rates, rate()) == 3


async def test_give_back_ignores_counts_of_an_earlier_window(rates: RateStore, later: Later) -> None:
    """Otherwise a client could save counts of one window for the next."""
    assert await taken(rates, rate()) == 3
    await later(101)
    assert await taken(rates, rate()) == 3
    for _ in range(3):
        await rates.give_back([rate()], 60)
    assert await taken(rates, rate()) == 0
    await rates.forget(rate())
    assert await taken(rates, rate()) == 3
    await rates.give_back([rate()], 60)
    assert await taken(rates, rate()) == 0


async def test_count_covers_the_current_window(rates: RateStore, later: Later) -> None:
    assert await rates.count(rate()) == 0
    for number in (1, 2):
        assert not await rates.take([rate()])
        assert await rates.count(rate()) == number
    assert await rates.count(rate("b")) == 0
    await later(90)
    assert await rates.count(rate()) == 2
    await later(11)
    assert await rates.count(rate()) == 0
    await rates.take([rate()])
    await rates.forget(rate())
    assert await rates.count(rate()) == 0


async def test_a_forgotten_rate_starts_again(rates: RateStore) -> None:
    await taken(rates, rate("a"))
    await taken(rates, rate("b"))
    await rates.forget(rate("a"))
    await rates.forget(rate("never taken"))
    assert await taken(rates, rate("a")) == 3
    assert await taken(rates, rate("b")) == 0


async def test_cancelling_a_caller_does_not_affect_others(rates: RateStore) -> None:
    tasks = [asyncio.create_task(rates.take([rate(limit=100)])) for _ in range(10)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    waits = await asyncio.gather(*tasks, return_exceptions=True)
    assert waits[1::2] == [0] * 5


async def test_ping_returns(rates: RateStore) -> None:
    await rates.ping()


async def test_an_unavailable_store_raises_store_unavailable(rates_away: RateStore) -> None:
    for asked in (
        rates_away.take([rate()]),
        rates_away.count(rate()),
        rates_away.give_back([rate()], 0),
        rates_away.forget(rate()),
        rates_away.ping(),
    ):
        with pytest.raises(StoreUnavailable):
            await asked
