"""A little of it in each turn of the loop: what many connections want at the same moment does not hold up the rest."""

import asyncio
from collections import deque
from collections.abc import Callable


class Pace:
    """Makes the calls handed to it in order, at most `most` in a turn of the event loop.

    Nothing waits for time to pass: where there is nothing else to do, one turn follows another at once.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting: deque[Callable[[], None]] = deque()
        self._at_it = False  # the next turn will look for what waits

    def call(self, call: Callable[[], None]) -> None:
        """Make this call when its turn has come. What it raises goes to the loop's exception handler."""
        self._waiting.append(call)
        if not self._at_it:
            self._go_on()

    def _go_on(self) -> None:
        self._at_it = bool(self._waiting)
        if self._at_it:
            asyncio.get_running_loop().call_soon(self._some)

    def _some(self) -> None:
        try:
            for _ in range(min(self._most, len(self._waiting))):
                self._waiting.popleft()()
        finally:
            self._go_on()
