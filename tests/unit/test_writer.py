"""Writer: items submitted while its thread is busy are written together, and each caller gets its own result."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress

import pytest

from chat_server.utils.errors import StoreUnavailable
from chat_server.utils.metrics import StoreMetrics
from chat_server.utils.threads import SingleThreadExecutor
from chat_server.utils.writer import Writer
from tests.harness import TIMEOUT, wait_until

FAILS, RAISES = -1, -2


class GatedThreadWork:
    """The work of a Writer: doubles numbers in its thread, one batch for each permit, and records all batches."""

    def __init__(self) -> None:
        self.permits = threading.Semaphore(0)
        self.batches: list[list[int]] = []
        self.done: list[object] = []  # the finished jobs of the thread, in order

    def __call__(self, batch: list[int]) -> Sequence[int | BaseException]:
        self.batches.append(batch)
        assert self.permits.acquire(timeout=TIMEOUT)
        self.done.append(batch)
        if RAISES in batch:
            raise ZeroDivisionError
        return [ValueError(number) if number == FAILS else number * 2 for number in batch]

    def permit(self, count: int = 1) -> None:
        """Let the thread finish `count` batches."""
        self.permits.release(count)


@pytest.fixture
async def thread() -> AsyncIterator[SingleThreadExecutor]:
    pool = SingleThreadExecutor("writer")
    yield pool
    await asyncio.to_thread(pool.shutdown)


@pytest.fixture
def work() -> GatedThreadWork:
    return GatedThreadWork()


@pytest.fixture
def writer(thread: SingleThreadExecutor, work: GatedThreadWork) -> Writer[int]:
    return Writer(thread, work, timeout=TIMEOUT)


async def start_batch(writer: Writer[int], work: GatedThreadWork, number: int = 0) -> asyncio.Future[int]:
    """Submit a number, and wait until the thread works on it."""
    future = writer.submit(number)
    await wait_until(lambda: number in (work.batches or [[]])[-1])
    return future


async def wait_until_it_works(writer: Writer[int], work: GatedThreadWork) -> None:
    """Wait until the writer writes an item."""

    async def works() -> bool:
        work.permit()
        with suppress(StoreUnavailable):
            await writer.submit(21)
            return True
        return False

    await wait_until(works)


async def test_submissions_of_one_loop_iteration_form_a_batch(writer: Writer[int], work: GatedThreadWork) -> None:
    work.permit()
    assert await asyncio.gather(*map(writer.submit, (1, 2, 3))) == [2, 4, 6]
    assert work.batches == [[1, 2, 3]]


async def test_the_thread_takes_the_next_batch_without_the_loop(writer: Writer[int], work: GatedThreadWork) -> None:
    futures = [await start_batch(writer, work), *map(writer.submit, (1, 2))]
    work.permit(2)
    deadline = asyncio.get_running_loop().time() + TIMEOUT
    while work.done != [[0], [1, 2]]:  # without returning to the event loop
        assert asyncio.get_running_loop().time() < deadline
    assert not any(future.done() for future in futures)
    assert await asyncio.gather(*futures) == [0, 2, 4]


async def test_batches_are_bounded_and_other_jobs_run_in_between(
    thread: SingleThreadExecutor, work: GatedThreadWork
) -> None:
    writer: Writer[int] = Writer(thread, work, timeout=TIMEOUT, most=2)
    first = await start_batch(writer, work)
    futures = list(map(writer.submit, range(1, 6)))
    other = asyncio.get_running_loop().run_in_executor(thread, work.done.append, "other")
    work.permit(4)
    await asyncio.gather(first, other, *futures)
    assert work.done == [[0], "other", [1, 2], [3, 4], [5]]


async def test_a_failed_item_fails_alone_a_failed_batch_as_a_whole(writer: Writer[int], work: GatedThreadWork) -> None:
    work.permit(3)
    results = await asyncio.gather(*map(writer.submit, (1, FAILS, 3)), return_exceptions=True)
    assert [str(result) for result in results] == ["2", "-1", "6"]
    results = await asyncio.gather(*map(writer.submit, (1, RAISES)), return_exceptions=True)
    assert [type(result) for result in results] == [ZeroDivisionError] * 2
    assert await writer.submit(4) == 8


async def test_missing_results_fail_every_item_of_the_batch(thread: SingleThreadExecutor) -> None:
    writer: Writer[int] = Writer(thread, lambda batch: batch[1:], timeout=TIMEOUT)
    results = await asyncio.gather(*map(writer.submit, range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [RuntimeError] * 3


async def test_a_cancelled_item_is_dropped_without_affecting_others(writer: Writer[int], work: GatedThreadWork) -> None:
    started = await start_batch(writer, work)
    waiting, other = map(writer.submit, (1, 2))
    started.cancel()
    waiting.cancel()
    work.permit(2)
    assert await other == 4
    assert work.batches == [[0], [2]]


async def test_items_that_time_out_before_their_batch_are_dropped(
    thread: SingleThreadExecutor, work: GatedThreadWork
) -> None:
    abandoned = []

    class AbandonedCounter(StoreMetrics):
        def add_failure(self) -> None:
            abandoned.append(1)

    writer: Writer[int] = Writer(thread, work, timeout=1, most=1, watch=AbandonedCounter())
    results = await asyncio.gather(*map(writer.submit, range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [StoreUnavailable] * 3
    assert abandoned
    work.permit()
    await writer.flush()
    assert work.batches == [[0]]


async def test_cancelled_items_take_no_place_in_a_batch(thread: SingleThreadExecutor, work: GatedThreadWork) -> None:
    writer: Writer[int] = Writer(thread, work, timeout=TIMEOUT, most=2)
    futures = [await start_batch(writer, work), *map(writer.submit, range(1, 6))]
    for future in futures[:4]:
        future.cancel()
    work.permit(2)
    assert await asyncio.gather(*futures[4:]) == [8, 10]
    assert work.batches == [[0], [4, 5]]


async def test_items_are_refused_while_the_thread_hangs(thread: SingleThreadExecutor, work: GatedThreadWork) -> None:
    writer: Writer[int] = Writer(thread, work, timeout=1, most=1)
    await asyncio.gather(*map(writer.submit, range(3)), return_exceptions=True)
    for number in range(3, 100):
        with pytest.raises(StoreUnavailable):
            writer.submit(number)
    assert len(writer._waiting) <= 2
    assert not writer._unanswered
    work.permit()
    await writer.flush()
    assert not writer._waiting
    await wait_until_it_works(writer, work)
    assert {number for batch in work.batches for number in batch} == {0, 21}


async def test_cancelled_items_do_not_pile_up_while_the_thread_hangs(
    thread: SingleThreadExecutor, work: GatedThreadWork
) -> None:
    writer: Writer[int] = Writer(thread, work, timeout=1)
    (await start_batch(writer, work)).cancel()

    def refused() -> bool:
        try:
            writer.submit(1).cancel()
        except StoreUnavailable:
            return True
        return False

    await wait_until(refused)
    work.permit()
    await wait_until_it_works(writer, work)


async def test_waiting_items_are_written_when_the_thread_recovers(
    thread: SingleThreadExecutor, work: GatedThreadWork
) -> None:
    writer: Writer[int] = Writer(thread, work, timeout=6)
    started, waiting = await start_batch(writer, work), writer.submit(1)

    def refused() -> bool:
        nonlocal waiting
        try:
            new = writer.submit(1)
        except StoreUnavailable:
            return True
        waiting.cancel()  # the newest item has the most time left
        waiting = new
        return False

    await wait_until(refused)
    assert isinstance(started.exception(), StoreUnavailable)
    work.permit()
    await wait_until(lambda: work.batches == [[0], [1]])
    more = writer.submit(2)
    work.permit(2)
    assert [await waiting, await more] == [2, 4]


async def test_a_timeout_after_the_recovery_refuses_no_new_item(
    thread: SingleThreadExecutor, work: GatedThreadWork
) -> None:
    writer: Writer[int] = Writer(thread, work, timeout=1)
    loop, recovered = asyncio.get_running_loop(), asyncio.Event()
    started = await start_batch(writer, work)
    deadline = loop.time() + 1

    def recover() -> None:
        work.permit()
        thread.submit(int).result(TIMEOUT)  # runs after the batch
        recovered.set()

    # Block the event loop until the timeout. Its next iteration first calls `recover`, then abandons the item.
    while loop.time() <= deadline:
        pass
    loop.call_soon(recover)
    with pytest.raises(StoreUnavailable):
        await started
    await recovered.wait()
    writer.submit(1).cancel()  # it is accepted


async def test_flush_waits_for_the_thread_if_all_callers_left(writer: Writer[int], work: GatedThreadWork) -> None:
    await writer.flush()
    started = await start_batch(writer, work)
    waiting = writer.submit(1)
    started.cancel()
    flush = asyncio.create_task(writer.flush())
    await asyncio.sleep(0.01)
    assert not flush.done()
    work.permit(2)
    await flush
    assert work.done == [[0], [1]]
    assert await waiting == 2


async def test_answered_items_are_not_kept(writer: Writer[int], work: GatedThreadWork) -> None:
    work.permit(10)
    for number in range(10):
        await writer.submit(number)
    assert not writer._unanswered
    assert not writer._waiting
