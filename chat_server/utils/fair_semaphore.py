"""A semaphore whose waiting keys take turns."""

import asyncio
from collections import OrderedDict


class FairSemaphore:
    """Admits `free` holders at a time. Waiting keys take turns, so no key can delay another by waiting often."""

    def __init__(self, free: int) -> None:
        self._free = free
        self._queues: OrderedDict[str, OrderedDict[asyncio.Future[None], None]] = OrderedDict()
        self._waiting = 0

    @property
    def waiting(self) -> int:
        """The number of callers that wait."""
        return self._waiting

    def turns_before(self, key: str) -> int:
        """The number of turns, at most, before that of the next caller with this key, as of now."""
        if self._free:
            return 0
        own = len(self._queues.get(key, ()))
        keys = len(self._queues) + (key not in self._queues)
        return 1 + min(self._waiting, (own + 1) * keys - 1)

    async def acquire(self, key: str) -> None:
        """Wait for a turn of this key. A caller that is cancelled leaves the queue."""
        if self._free:
            self._free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._queues.setdefault(key, OrderedDict())[turn] = None
        self._waiting += 1
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._leave(key, turn)
            else:  # the turn came in the same moment
                self.release()
            raise

    def release(self) -> None:
        """End a turn; the next key has the next one."""
        while self._queues:
            key, queue = self._queues.popitem(last=False)
            turn, _ = queue.popitem(last=False)
            self._waiting -= 1
            if queue:
                self._queues[key] = queue
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    def _leave(self, key: str, turn: asyncio.Future[None]) -> None:
        queue = self._queues.get(key)
        if queue is None or turn not in queue:
            return
        del queue[turn]
        self._waiting -= 1
        if not queue:
            del self._queues[key]
