"""Batcher: items submitted together are processed together, and each caller gets its own result."""

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chat_server.utils.batch import Batcher
from chat_server.utils.errors import StoreUnavailable

FINE, FAILS, RAISES = "fine", "fails", "fails with its whole batch"
Item = tuple[int, str]


class GatedWork:
    """The work of a Batcher: waits for a permit before it finishes a batch, and records all batches."""

    def __init__(self) -> None:
        self.permits = asyncio.Semaphore(0)
        self.batches: list[list[Item]] = []
        self.running = 0

    async def __call__(self, batch: list[Item]) -> Sequence[int | BaseException]:
        self.running += 1
        assert self.running == 1, "one batch is in flight at a time"
        self.batches.append(batch)
        try:
            await self.permits.acquire()
        finally:
            self.running -= 1
        if any(kind == RAISES for _, kind in batch):
            raise RuntimeError(batch)
        return [ValueError(number) if kind == FAILS else number * 2 for number, kind in batch]


async def turns(count: int = 5) -> None:
    """Run the event loop until nothing more can happen without a permit."""
    for _ in range(count):
        await asyncio.sleep(0)


def submit_all(batcher: Batcher[Item, int], *numbers: int) -> list[asyncio.Future[int]]:
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
@settings(max_examples=150)
async def test_each_caller_of_a_batch_gets_its_own_result(steps: list[tuple[str, int | str]], most: int) -> None:
    work = GatedWork()
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
    while work.running or sum(map(len, work.batches)) < len(futures):
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


async def test_items_of_one_loop_iteration_form_a_batch() -> None:
    work = GatedWork()
    work.permits.release()
    await asyncio.gather(*submit_all(Batcher(work), 1, 2, 3))
    assert work.batches == [[(1, FINE), (2, FINE), (3, FINE)]]


async def test_items_submitted_during_a_batch_form_the_next_one() -> None:
    work = GatedWork()
    batcher = Batcher(work)
    submit_all(batcher, 1)
    await turns()
    submit_all(batcher, 2, 3)
    await turns()
    assert work.batches == [[(1, FINE)]]
    work.permits.release()
    await turns()
    assert work.batches == [[(1, FINE)], [(2, FINE), (3, FINE)]]
    work.permits.release()
    await batcher.flush()


async def test_items_that_follow_a_result_join_the_next_batch() -> None:
    work = GatedWork()
    batcher = Batcher(work)

    async def submit_in_sequence(*numbers: int) -> None:
        for number in numbers:
            await batcher.submit((number, FINE))

    both = asyncio.gather(submit_in_sequence(1, 2), submit_in_sequence(3, 4))
    await turns()
    submit_all(batcher, 5)
    work.permits.release()
    await turns()
    assert work.batches == [[(1, FINE), (3, FINE)], [(5, FINE), (2, FINE), (4, FINE)]]
    work.permits.release()
    await both


async def test_the_batcher_continues_after_a_pause_and_a_failure() -> None:
    work = GatedWork()
    batcher = Batcher(work)
    for _ in range(3):
        work.permits.release()
    assert await batcher.submit((1, FINE)) == 2
    with pytest.raises(RuntimeError):
        await batcher.submit((2, RAISES))
    assert await batcher.submit((3, FINE)) == 6


async def test_cancelling_a_caller_does_not_cancel_the_batch() -> None:
    work = GatedWork()
    batcher = Batcher(work)
    cancelled, other = (asyncio.ensure_future(future) for future in submit_all(batcher, 1, 2))
    await turns()
    cancelled.cancel()
    work.permits.release()
    assert await other == 4
    assert cancelled.cancelled()


async def test_an_item_that_takes_too_long_is_abandoned() -> None:
    work = GatedWork()
    batcher = Batcher(work, most=1, timeout=0.03)
    late, later = submit_all(batcher, 1, 2)
    for future in (late, later):
        with pytest.raises(StoreUnavailable):
            await future
    await batcher.flush()
    work.permits.release()
    assert await batcher.submit((3, FINE)) == 6


async def test_the_timeout_starts_when_an_item_is_submitted() -> None:
    """No item waits longer than the timeout, however many batches are before it."""
    batcher = Batcher(GatedWork(), most=1, timeout=0.05)
    futures = submit_all(batcher, 1, 2, 3, 4)
    await asyncio.wait(futures[:1])
    await asyncio.wait(submit_all(Batcher(GatedWork(), timeout=0.05), 5))  # the same time, from now
    await turns(100)
    assert [type(future.exception()) if future.done() else None for future in futures] == [StoreUnavailable] * 4


async def test_missing_results_fail_every_caller_of_the_batch() -> None:
    async def one_missing(batch: list[int]) -> list[int]:
        return batch[1:]

    batcher = Batcher(one_missing)
    results = await asyncio.gather(*map(batcher.submit, range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [RuntimeError] * 3


async def test_flush_returns_immediately_when_idle() -> None:
    batcher = Batcher(GatedWork())
    await batcher.flush()


async def test_flush_waits_for_the_current_and_the_next_batch() -> None:
    work = GatedWork()
    batcher = Batcher(work)
    submit_all(batcher, 1)
    await turns()
    submit_all(batcher, 2)
    flush = asyncio.create_task(batcher.flush())
    await turns()
    work.permits.release()
    await turns()
    assert not flush.done()
    work.permits.release()
    await flush


async def test_flush_waits_for_a_failure_without_raising_it() -> None:
    work = GatedWork()
    batcher = Batcher(work)
    failure = batcher.submit((1, RAISES))
    flush = asyncio.create_task(batcher.flush())
    await turns()
    assert not flush.done()
    work.permits.release()
    await flush
    assert isinstance(failure.exception(), RuntimeError)


async def test_flush_waits_if_the_last_caller_was_cancelled() -> None:
    work = GatedWork()
    batcher = Batcher(work)
    submit_all(batcher, 1)
    await turns()
    other, cancelled = submit_all(batcher, 2, 3)
    cancelled.cancel()
    flush = asyncio.create_task(batcher.flush())
    await turns()
    early = flush.done()
    work.permits.release()
    work.permits.release()
    await flush
    assert await other == 4
    assert not early


async def test_flush_does_not_wait_for_later_items() -> None:
    """A stream of new items cannot delay it forever."""
    work = GatedWork()
    batcher = Batcher(work)
    submit_all(batcher, 1)
    await turns()
    flush = asyncio.create_task(batcher.flush())
    await turns()
    submit_all(batcher, 2)
    work.permits.release()
    await turns()
    in_time = flush.done()
    work.permits.release()
    await flush
    assert in_time
