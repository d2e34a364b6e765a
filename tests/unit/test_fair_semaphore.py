"""FairSemaphore: keys take turns, and cancelled callers leave no trace."""

import asyncio

from chat_server.utils.fair_semaphore import FairSemaphore


class SemaphoreHolders:
    """Tasks that wait for and hold a semaphore; `end` releases their turns one by one."""

    def __init__(self, free: int = 1) -> None:
        self.semaphore = FairSemaphore(free)
        self.turns: list[str] = []  # the keys of the turns so far
        self.tasks: list[asyncio.Task[None]] = []

    async def wait(self, *keys: str) -> None:
        """Start a task for each key that waits for its turn."""
        for key in keys:
            self.tasks.append(asyncio.create_task(self._hold(key)))
        await asyncio.sleep(0)

    async def _hold(self, key: str) -> None:
        await self.semaphore.acquire(key)
        self.turns.append(key)

    async def end(self, turns: int) -> None:
        """End this many turns, one after another."""
        for _ in range(turns):
            self.semaphore.release()
            await asyncio.sleep(0)


async def test_keys_take_turns() -> None:
    holders = SemaphoreHolders()
    await holders.wait("a", *("a" for _ in range(5)), "b", "b", "c")
    await holders.end(9)
    assert "".join(holders.turns) == "aabcabaaa"


async def test_a_new_key_waits_for_one_turn_of_each_key() -> None:
    holders = SemaphoreHolders()
    await holders.wait(*("a" for _ in range(100)), *("b" for _ in range(100)))
    await holders.wait("new")
    await holders.end(3)
    assert holders.turns[1:] == ["a", "b", "new"]


async def test_it_admits_the_given_number_of_holders() -> None:
    holders = SemaphoreHolders(free=2)
    await holders.wait("a", "a", "a")
    assert (holders.turns, holders.semaphore.waiting) == (["a", "a"], 1)
    await holders.end(3)
    await holders.wait("a", "a", "a")
    assert (len(holders.turns), holders.semaphore.waiting) == (5, 1)


async def test_turns_before_counts_the_turns_until_a_key_is_served() -> None:
    holders = SemaphoreHolders()
    assert holders.semaphore.turns_before("a") == 0
    await holders.wait("a")
    assert holders.semaphore.turns_before("a") == 1  # the holder
    await holders.wait(*("a" for _ in range(10)), "b")
    for key, most in (("a", 12), ("b", 4), ("new", 3)):
        assert holders.semaphore.turns_before(key) == most


async def test_cancelled_callers_leave_the_queue() -> None:
    holders = SemaphoreHolders()
    await holders.wait("a", "a", "b", "a", "b")
    for task in holders.tasks[1:4]:
        task.cancel()
    await asyncio.sleep(0)
    assert holders.semaphore.waiting == 1
    assert holders.semaphore.turns_before("new") == 2
    await holders.end(2)
    assert holders.turns == ["a", "b"]
    assert holders.semaphore.turns_before("a") == 0


async def test_the_turn_of_a_cancelled_caller_is_passed_on() -> None:
    for cancel_first in (False, True):
        holders = SemaphoreHolders()
        await holders.wait("a", "b", "c")
        if cancel_first:
            holders.tasks[1].cancel()
        holders.semaphore.release()
        holders.tasks[1].cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert holders.turns == ["a", "c"]
        assert holders.semaphore.waiting == 0
        holders.semaphore.release()
        assert holders.semaphore.turns_before("a") == 0
