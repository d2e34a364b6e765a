"""Calls one after the other, so that many at the same moment do not delay everything else."""

import asyncio
from collections import deque
from collections.abc import Callable


class TurnQueue:
    """Makes calls in order, one per loop iteration. There is no timer: an idle loop makes one call after the other."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()
        self._scheduled = False  # the next loop iteration makes a call

    def call(self, call: Callable[[], None]) -> None:
        """Make this call in its turn. An exception goes to the exception handler of the loop."""
        self._waiting.append(call)
        if not self._scheduled:
            self._schedule()

    async def turn(self) -> None:
        """Wait for the turn of the caller."""
        turn = asyncio.get_running_loop().create_future()

        def begin() -> None:
            if not turn.done():  # its caller may have been cancelled
                turn.set_result(None)

        self.call(begin)
        await turn

    def _schedule(self) -> None:
        self._scheduled = False
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._next)  # if this fails without memory, the next call tries again
            self._scheduled = True

    def _next(self) -> None:
        try:
            self._waiting.popleft()()
        finally:
            self._schedule()
