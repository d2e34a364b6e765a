"""One after the other: what many connections want at the same moment does not hold up the rest."""

import asyncio
from collections import deque
from collections.abc import Callable


class TurnQueue:
    """Makes the calls handed to it in order, one in a turn of the event loop.

    Nothing waits for time to pass: where there is nothing else to do, one turn follows another at once.
    """

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()
        self._at_it = False  # the next turn will look for what waits

    def call(self, call: Callable[[], None]) -> None:
        """Make this call when its turn has come. What it raises goes to the loop's exception handler."""
        self._waiting.append(call)
        if not self._at_it:
            self._go_on()

    async def turn(self) -> None:
        """Return when the caller's turn has come."""
        turn = asyncio.get_running_loop().create_future()

        def come() -> None:
            if not turn.done():  # its caller may have been cancelled
                turn.set_result(None)

        self.call(come)
        await turn

    def _go_on(self) -> None:
        self._at_it = False
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._next)  # without memory this fails, and the next call tries again
            self._at_it = True

    def _next(self) -> None:
        try:
            self._waiting.popleft()()
        finally:
            self._go_on()
