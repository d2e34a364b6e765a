"""The requests of one socket that wait to be worked on."""

import asyncio
from collections.abc import Callable
from typing import Any

from chat_server.api.limits import BATCH_BYTES, BATCH_REQUESTS, INBOX_BYTES, INBOX_FRAMES
from chat_server.service.frames import SEND, Request
from chat_server.status import Refused

BAD_FRAME = 0  # in place of an op: the frame is no request


class Inbox:
    """A bounded queue of requests, in the order of their arrival. Each `take` must be followed by a `done`.

    `active` is true from the first `put` until the last answer. The connection sets it and calls the dispatcher, and
    `done` clears it. While it is true, the dispatcher must not get the connection again.
    """

    __slots__ = ("_bytes", "_in_work", "_items", "_room", "_when_idle", "active")

    def __init__(self) -> None:
        # (op, request or refusal, bytes). It is short; a deque takes 600 bytes even if it is empty.
        self._items: list[tuple[int, Request | Refused, int]] = []
        self._bytes = 0
        self._in_work = 0
        self._room: asyncio.Future[None] | None = None  # the reader waits for room
        self._when_idle: list[Callable[[], None]] | None = None
        self.active = False

    def put(self, item: Request | Refused, size: int) -> bool:
        """Append a request, or the refusal of a bad frame, of `size` bytes. Returns whether the inbox is full."""
        self._items.append((item.op_type if type(item) is Request else BAD_FRAME, item, size))
        self._bytes += size
        return self._bytes >= INBOX_BYTES or len(self._items) >= INBOX_FRAMES

    def next_is_send(self) -> bool:
        """Whether the next request is a send."""
        return bool(self._items) and self._items[0][0] == SEND

    def take(self) -> tuple[list[Any], int]:
        """The next items to work on, and their bytes: a batch of sends, or one other item; nothing if none waits."""
        count = size = 0
        for op, _, bytes_ in self._items:
            if count and (op != SEND or size >= BATCH_BYTES):
                break
            count += 1
            size += bytes_
            if op != SEND or count == BATCH_REQUESTS:
                break
        taken = [item for _, item, _ in self._items[:count]]
        del self._items[:count]
        self._bytes -= size
        self._in_work += 1
        if self._room:
            self._let_reader_go_on()
        return taken, size

    def done(self) -> bool:
        """What was taken is answered. Returns whether the next requests should be taken now."""
        self._in_work -= 1
        if self._in_work or self._items:
            return not self._in_work
        self.active = False
        if self._when_idle:
            waiting, self._when_idle = self._when_idle, None
            for call in waiting:
                call()
        return False

    def clear(self) -> None:
        """Drop what waits."""
        self._items.clear()
        self._bytes = 0
        if self._room:
            self._let_reader_go_on()

    def wait_for_room(self) -> asyncio.Future[None]:
        """A future that is done once something was taken; for one reader."""
        self._room = asyncio.get_running_loop().create_future()
        return self._room

    def when_idle(self, call: Callable[[], None]) -> None:
        """Call once nothing waits or is in work; at once if that is so now."""
        if not self.active:
            call()
        elif self._when_idle is None:
            self._when_idle = [call]
        else:
            self._when_idle.append(call)

    async def wait_idle(self) -> None:
        """Wait until nothing waits or is in work."""
        while self.active:
            idle = asyncio.Event()
            self.when_idle(idle.set)
            await idle.wait()

    def _let_reader_go_on(self) -> None:
        if self._room and not self._room.done():  # the reader may have been cancelled
            self._room.set_result(None)
        self._room = None
