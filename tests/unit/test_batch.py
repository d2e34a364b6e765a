"""Batcher: what many ask for at once is done together, and each gets its own answer."""

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chat_server.utils.batch import Batcher
from chat_server.utils.errors import StoreUnavailable

FINE, FAILS, RAISES = "fine", "fails", "takes its batch with it"
Item = tuple[int, str]


class Work:
    """Works on a batch when it is let; knows what it got."""

    def __init__(self) -> None:
        self.permits = asyncio.Semaphore(0)
        self.batches: list[list[Item]] = []
        self.under_way = 0

    async def __call__(self, batch: list[Item]) -> Sequence[int | BaseException]:
        self.under_way += 1
        assert self.under_way == 1, "one batch is in flight at a time"
        self.batches.append(batch)
        try:
            await self.permits.acquire()
        finally:
            self.under_way -= 1
        if any(kind == RAISES for _, kind in batch):
            raise RuntimeError(batch)
        return [ValueError(number) if kind == FAILS else number * 2 for number, kind in batch]


async def turns(count: int = 5) -> None:
    """Let everything happen that can happen without a permit."""
    for _ in range(count):
        await asyncio.sleep(0)


def waiting_for(batcher: Batcher[Item, int], *numbers: int) -> list[asyncio.Future[int]]:
    return [batcher.submit((number, FINE)) for number in numbers]


steps = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.sampled_from([FINE, FINE, FAILS, RAISES])),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
        st.tuples(st.just("permit"), st.just(1)),
        st.tuples(st.just("turn"), st.just(1)),
    ),
    max_size=40,
)


@given(steps, st.integers(1, 4))
@settings(max_examples=150, deadline=None)
async def test_each_caller_gets_its_own_result_whatever_happens_to_the_others(
    steps: list[tuple[str, int | str]], most: int
) -> None:
    work = Work()
    batcher = Batcher(work, most=most)
    futures: list[asyncio.Future[int]] = []
    kinds: list[str] = []
    for step, value in steps:
        if step == "submit":
            kinds.append(str(value))
            futures.append(batcher.submit((len(futures), kinds[-1])))
        elif step == "cancel" and futures:
            futures[int(value) % len(futures)].cancel()
        elif step == "permit":
            work.permits.release()
        else:
            await turns()
    for _ in futures:
        work.permits.release()
    while work.under_way or sum(map(len, work.batches)) < len(futures):
        await turns()
    await turns()

    assert [item for batch in work.batches for item in batch] == list(enumerate(kinds))  # once each, in order
    assert all(1 <= len(batch) <= most for batch in work.batches)
    for batch in work.batches:
        for number, kind in batch:
            future = futures[number]
            assert future.done()
            if future.cancelled():
                continue
            error = future.exception()
            if any(other == RAISES for _, other in batch):
                assert isinstance(error, RuntimeError)
            elif kind == FAILS:
                assert isinstance(error, ValueError)
                assert error.args == (number,)
            else:
                assert future.result() == number * 2


async def test_what_one_turn_of_the_loop_brought_goes_together() -> None:
    work = Work()
    work.permits.release()
    await asyncio.gather(*waiting_for(Batcher(work), 1, 2, 3))
    assert work.batches == [[(1, FINE), (2, FINE), (3, FINE)]]


async def test_what_comes_meanwhile_is_the_next_batch() -> None:
    work = Work()
    batcher = Batcher(work)
    waiting_for(batcher, 1)
    await turns()
    waiting_for(batcher, 2, 3)
    await turns()
    assert work.batches == [[(1, FINE)]]
    work.permits.release()
    await turns()
    assert work.batches == [[(1, FINE)], [(2, FINE), (3, FINE)]]
    work.permits.release()
    await batcher.flush()


async def test_what_follows_on_a_result_is_in_the_next_batch_with_what_came_meanwhile() -> None:
    work = Work()
    batcher = Batcher(work)

    async def one_after_the_other(*numbers: int) -> None:
        for number in numbers:
            await batcher.submit((number, FINE))

    both = asyncio.gather(one_after_the_other(1, 2), one_after_the_other(3, 4))
    await turns()
    waiting_for(batcher, 5)
    work.permits.release()
    await turns()
    assert work.batches == [[(1, FINE), (3, FINE)], [(5, FINE), (2, FINE), (4, FINE)]]
    work.permits.release()
    await both


async def test_it_goes_on_after_it_was_idle_and_after_a_failure() -> None:
    work = Work()
    batcher = Batcher(work)
    for _ in range(3):
        work.permits.release()
    assert await batcher.submit((1, FINE)) == 2
    with pytest.raises(RuntimeError):
        await batcher.submit((2, RAISES))
    assert await batcher.submit((3, FINE)) == 6


async def test_a_cancelled_caller_does_not_cancel_the_work() -> None:
    work = Work()
    batcher = Batcher(work)
    gone, stays = (asyncio.ensure_future(future) for future in waiting_for(batcher, 1, 2))
    await turns()
    gone.cancel()
    work.permits.release()
    assert await stays == 4
    assert gone.cancelled()


async def test_an_item_that_is_not_done_in_time_is_given_up_and_the_next_goes_on() -> None:
    work = Work()
    batcher = Batcher(work, most=1, timeout=0.03)
    late, later = waiting_for(batcher, 1, 2)
    for future in (late, later):
        with pytest.raises(StoreUnavailable):
            await future
    await batcher.flush()
    work.permits.release()
    assert await batcher.submit((3, FINE)) == 6


async def test_those_that_came_together_are_given_up_together() -> None:
    """No item waits longer than the timeout, counted from when it was handed over."""
    batcher = Batcher(Work(), most=1, timeout=0.05)
    futures = waiting_for(batcher, 1, 2, 3, 4)
    await asyncio.wait(futures[:1])
    await asyncio.wait(waiting_for(Batcher(Work(), timeout=0.05), 5))  # as long as one of them would wait from here
    await turns(100)
    assert [type(future.exception()) if future.done() else None for future in futures] == [StoreUnavailable] * 4


async def test_too_few_results_are_everybody_s_error_and_nobody_hangs() -> None:
    async def forgetful(batch: list[int]) -> list[int]:
        return batch[1:]

    batcher = Batcher(forgetful)
    results = await asyncio.gather(*map(batcher.submit, range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [RuntimeError] * 3


async def test_flush_returns_at_once_if_nothing_is_under_way() -> None:
    batcher = Batcher(Work())
    await batcher.flush()


async def test_flush_waits_for_what_is_in_flight_and_for_what_waits() -> None:
    work = Work()
    batcher = Batcher(work)
    waiting_for(batcher, 1)
    await turns()
    waiting_for(batcher, 2)
    settled = asyncio.create_task(batcher.flush())
    await turns()
    work.permits.release()
    await turns()
    assert not settled.done()
    work.permits.release()
    await settled


async def test_flush_waits_for_a_failure_and_does_not_raise_it() -> None:
    work = Work()
    batcher = Batcher(work)
    failure = batcher.submit((1, RAISES))
    settled = asyncio.create_task(batcher.flush())
    await turns()
    assert not settled.done()
    work.permits.release()
    await settled
    assert isinstance(failure.exception(), RuntimeError)


async def test_flush_waits_though_the_last_caller_was_cancelled() -> None:
    """It waits until everything handed over so far is done."""
    work = Work()
    batcher = Batcher(work)
    waiting_for(batcher, 1)
    await turns()
    stays, gone = waiting_for(batcher, 2, 3)
    gone.cancel()
    settled = asyncio.create_task(batcher.flush())
    await turns()
    early = settled.done()
    work.permits.release()
    work.permits.release()
    await settled
    assert await stays == 4
    assert not early


async def test_flush_does_not_wait_for_what_came_after_it() -> None:
    """It waits for everything handed over so far, so a stream of new items cannot hold it up for ever."""
    work = Work()
    batcher = Batcher(work)
    waiting_for(batcher, 1)
    await turns()
    settled = asyncio.create_task(batcher.flush())
    await turns()
    waiting_for(batcher, 2)
    work.permits.release()
    await turns()
    in_time = settled.done()
    work.permits.release()
    await settled
    assert in_time
