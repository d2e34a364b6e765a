"""Writer: what many ask for while its thread is busy is done together, and each gets its own answer."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from chat_server.utils.errors import StoreUnavailable
from chat_server.utils.metrics import StoreMetrics
from chat_server.utils.writer import Writer
from tests.harness import TIMEOUT, wait_until

FAILS, RAISES = -1, -2


class Work:
    """Doubles numbers in its thread, a batch for each permit; knows what it got."""

    def __init__(self) -> None:
        self.permits = threading.Semaphore(0)
        self.batches: list[list[int]] = []
        self.done: list[object] = []  # what the thread did, in order

    def __call__(self, batch: list[int]) -> Sequence[int | BaseException]:
        self.batches.append(batch)
        assert self.permits.acquire(timeout=TIMEOUT)
        self.done.append(batch)
        if RAISES in batch:
            raise ZeroDivisionError
        return [ValueError(number) if number == FAILS else number * 2 for number in batch]

    def permit(self, count: int = 1) -> None:
        """Let it work on so many batches."""
        self.permits.release(count)


@pytest.fixture
async def thread() -> AsyncIterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(1)
    yield pool
    await asyncio.to_thread(pool.shutdown)


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
def writer(thread: ThreadPoolExecutor, work: Work) -> Writer[int]:
    return Writer(thread, work, timeout=TIMEOUT)


async def busy(writer: Writer[int], work: Work, number: int = 0) -> asyncio.Future[int]:
    """Hand over a number, and wait until the thread is at it."""
    future = writer.submit(number)
    await wait_until(lambda: number in (work.batches or [[]])[-1])
    return future


async def works_again(writer: Writer[int], work: Work) -> None:
    """By and by it does what it is asked."""

    async def works() -> bool:
        work.permit()
        with suppress(StoreUnavailable):
            await writer.submit(21)
            return True
        return False

    await wait_until(works)


async def test_what_one_turn_of_the_loop_brought_goes_together(writer: Writer[int], work: Work) -> None:
    work.permit()
    assert await asyncio.gather(*map(writer.submit, (1, 2, 3))) == [2, 4, 6]
    assert work.batches == [[1, 2, 3]]


async def test_what_comes_meanwhile_is_the_next_batch_and_the_loop_is_not_asked(
    writer: Writer[int], work: Work
) -> None:
    futures = [await busy(writer, work), *map(writer.submit, (1, 2))]
    work.permit(2)
    deadline = asyncio.get_running_loop().time() + TIMEOUT
    while work.done != [[0], [1, 2]]:  # the loop has no turn meanwhile
        assert asyncio.get_running_loop().time() < deadline
    assert not any(future.done() for future in futures)
    assert await asyncio.gather(*futures) == [0, 2, 4]


async def test_a_batch_has_a_bound_and_other_work_of_the_thread_its_turn_in_between(
    thread: ThreadPoolExecutor, work: Work
) -> None:
    writer: Writer[int] = Writer(thread, work, timeout=TIMEOUT, most=2)
    first = await busy(writer, work)
    futures = list(map(writer.submit, range(1, 6)))
    other = asyncio.get_running_loop().run_in_executor(thread, work.done.append, "other")
    work.permit(4)
    await asyncio.gather(first, other, *futures)
    assert work.done == [[0], "other", [1, 2], [3, 4], [5]]


async def test_one_that_fails_fails_alone_and_what_work_raises_is_everybody_s(writer: Writer[int], work: Work) -> None:
    work.permit(3)
    results = await asyncio.gather(*map(writer.submit, (1, FAILS, 3)), return_exceptions=True)
    assert [str(result) for result in results] == ["2", "-1", "6"]
    results = await asyncio.gather(*map(writer.submit, (1, RAISES)), return_exceptions=True)
    assert [type(result) for result in results] == [ZeroDivisionError] * 2
    assert await writer.submit(4) == 8


async def test_too_few_results_are_everybody_s_error_and_nobody_hangs(thread: ThreadPoolExecutor) -> None:
    writer: Writer[int] = Writer(thread, lambda batch: batch[1:], timeout=TIMEOUT)
    results = await asyncio.gather(*map(writer.submit, range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [RuntimeError] * 3


async def test_a_cancelled_caller_takes_nobody_with_it_and_what_was_not_begun_is_left_out(
    writer: Writer[int], work: Work
) -> None:
    begun = await busy(writer, work)
    waits, stays = map(writer.submit, (1, 2))
    begun.cancel()
    waits.cancel()
    work.permit(2)
    assert await stays == 4
    assert work.batches == [[0], [2]]


async def test_who_is_not_answered_in_time_is_told_and_what_was_not_begun_is_left_out(
    thread: ThreadPoolExecutor, work: Work
) -> None:
    given_up = []

    class Watching(StoreMetrics):
        def add_failure(self) -> None:
            given_up.append(1)

    writer: Writer[int] = Writer(thread, work, timeout=0.2, most=1, watch=Watching())
    results = await asyncio.gather(*map(writer.submit, range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [StoreUnavailable] * 3
    assert given_up
    work.permit()
    await writer.flush()
    assert work.batches == [[0]]


async def test_what_nobody_waits_for_takes_no_place_in_a_batch(thread: ThreadPoolExecutor, work: Work) -> None:
    writer: Writer[int] = Writer(thread, work, timeout=TIMEOUT, most=2)
    futures = [await busy(writer, work), *map(writer.submit, range(1, 6))]
    for future in futures[:4]:
        future.cancel()
    work.permit(2)
    assert await asyncio.gather(*futures[4:]) == [8, 10]
    assert work.batches == [[0], [4, 5]]


async def test_while_the_thread_hangs_what_comes_is_refused_at_once_and_not_kept_and_it_heals(
    thread: ThreadPoolExecutor, work: Work
) -> None:
    writer: Writer[int] = Writer(thread, work, timeout=0.2, most=1)
    await asyncio.gather(*map(writer.submit, range(3)), return_exceptions=True)
    for number in range(3, 100):
        with pytest.raises(StoreUnavailable):
            writer.submit(number)
    assert len(writer._waiting) <= 2
    assert not writer._unanswered
    work.permit()
    await writer.flush()
    assert not writer._waiting
    await works_again(writer, work)
    assert {number for batch in work.batches for number in batch} == {0, 21}


async def test_while_the_thread_hangs_nothing_piles_up_though_every_caller_leaves_early(
    thread: ThreadPoolExecutor, work: Work
) -> None:
    writer: Writer[int] = Writer(thread, work, timeout=0.2)
    (await busy(writer, work)).cancel()

    def refused() -> bool:
        try:
            writer.submit(1).cancel()
        except StoreUnavailable:
            return True
        return False

    await wait_until(refused)
    work.permit()
    await works_again(writer, work)


async def test_once_the_thread_is_back_what_still_waits_is_done_and_more_is_taken_in(
    thread: ThreadPoolExecutor, work: Work
) -> None:
    writer: Writer[int] = Writer(thread, work, timeout=3)
    begun, waits = await busy(writer, work), writer.submit(1)

    def refused() -> bool:
        nonlocal waits
        try:
            new = writer.submit(1)
        except StoreUnavailable:
            return True
        waits.cancel()  # the last of them has the most time left
        waits = new
        return False

    await wait_until(refused)
    assert isinstance(begun.exception(), StoreUnavailable)
    work.permit()
    await wait_until(lambda: work.batches == [[0], [1]])
    more = writer.submit(2)
    work.permit(2)
    assert [await waits, await more] == [2, 4]


async def test_who_is_given_up_when_the_thread_is_back_already_stops_nobody(
    thread: ThreadPoolExecutor, work: Work
) -> None:
    writer: Writer[int] = Writer(thread, work, timeout=0.2)
    loop, back = asyncio.get_running_loop(), asyncio.Event()
    begun = await busy(writer, work)
    deadline = loop.time() + 0.2

    def come_back() -> None:
        work.permit()
        thread.submit(int).result(TIMEOUT)  # that has its turn after the batch
        back.set()

    while loop.time() <= deadline:  # the loop has no turn meanwhile: in the next one it gives up, after what is called
        pass
    loop.call_soon(come_back)
    with pytest.raises(StoreUnavailable):
        await begun
    await back.wait()
    writer.submit(1).cancel()  # it was taken in


async def test_flush_waits_for_the_thread_though_every_caller_is_gone(writer: Writer[int], work: Work) -> None:
    await writer.flush()
    begun = await busy(writer, work)
    waits = writer.submit(1)
    begun.cancel()
    settled = asyncio.create_task(writer.flush())
    await asyncio.sleep(0.01)
    assert not settled.done()
    work.permit(2)
    await settled
    assert work.done == [[0], [1]]
    assert await waits == 2


async def test_what_is_answered_is_not_kept(writer: Writer[int], work: Work) -> None:
    work.permit(10)
    for number in range(10):
        await writer.submit(number)
    assert not writer._unanswered
    assert not writer._waiting
