"""FairSemaphore: keys take turns, and callers that are cancelled leave no trace."""

import asyncio

from chat_server.utils.fair_semaphore import FairSemaphore


class Work:
    """Holders of a semaphore, in the order of their turns; each turn ends when it is told to."""

    def __init__(self, free: int = 1) -> None:
        self.semaphore = FairSemaphore(free)
        self.turns: list[str] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def wait(self, *keys: str) -> None:
        """Let these wait for their turns."""
        for key in keys:
            self.tasks.append(asyncio.create_task(self._hold(key)))
        await asyncio.sleep(0)

    async def _hold(self, key: str) -> None:
        await self.semaphore.acquire(key)
        self.turns.append(key)

    async def end(self, turns: int) -> None:
        """End so many turns, one after the other."""
        for _ in range(turns):
            self.semaphore.release()
            await asyncio.sleep(0)


async def test_keys_take_turns() -> None:
    work = Work()
    await work.wait("a", *("a" for _ in range(5)), "b", "b", "c")
    await work.end(9)
    assert "".join(work.turns) == "aabcabaaa"


async def test_a_new_key_waits_for_one_turn_of_each_key() -> None:
    work = Work()
    await work.wait(*("a" for _ in range(100)), *("b" for _ in range(100)))
    await work.wait("new")
    await work.end(3)
    assert work.turns[1:] == ["a", "b", "new"]


async def test_as_many_hold_it_as_are_admitted() -> None:
    work = Work(free=2)
    await work.wait("a", "a", "a")
    assert (work.turns, work.semaphore.waiting) == (["a", "a"], 1)
    await work.end(3)
    await work.wait("a", "a", "a")
    assert (len(work.turns), work.semaphore.waiting) == (5, 1)


async def test_the_turns_before_are_known_in_advance() -> None:
    work = Work()
    assert work.semaphore.turns_before("a") == 0
    await work.wait("a")
    assert work.semaphore.turns_before("a") == 1  # the one that holds it
    await work.wait(*("a" for _ in range(10)), "b")
    for key, most in (("a", 12), ("b", 4), ("new", 3)):
        assert work.semaphore.turns_before(key) == most


async def test_cancelled_callers_leave_the_queue() -> None:
    work = Work()
    await work.wait("a", "a", "b", "a", "b")
    for task in work.tasks[1:4]:
        task.cancel()
    await asyncio.sleep(0)
    assert work.semaphore.waiting == 1
    assert work.semaphore.turns_before("new") == 2
    await work.end(2)
    assert work.turns == ["a", "b"]
    assert work.semaphore.turns_before("a") == 0


async def test_a_turn_that_comes_with_a_cancellation_is_passed_on() -> None:
    for cancel_first in (False, True):
        work = Work()
        await work.wait("a", "b", "c")
        if cancel_first:
            work.tasks[1].cancel()
        work.semaphore.release()
        work.tasks[1].cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert work.turns == ["a", "c"]
        assert work.semaphore.waiting == 0
        work.semaphore.release()
        assert work.semaphore.turns_before("a") == 0
