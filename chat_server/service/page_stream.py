"""Send pages to a socket at the pace of its reader."""

import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

from chat_server.model.messages import Conversation, Message
from chat_server.service.references import MAX_PAGE
from chat_server.service.registry import Socket
from chat_server.status import Reason, Refused, Status
from chat_server.utils.locks import KeyedLock

T = TypeVar("T", Message, Conversation)

# Characters of a page that are kept for its reader at a time. The largest page has 200 texts of 16 KiB: 3 MiB, for each
# socket that does not read.
PIECE = 32768

# `-N` and `-N@MARKER`, for ops 2 and 7.
NEWEST = re.compile(r"-([0-9]{1,3})(?:@(.+))?", re.DOTALL)
_COUNT = re.compile(r"[0-9]{1,3}")


class PageStream:
    """Sends pages. For each user, one page is read at a time, however many sockets ask."""

    def __init__(self, lease_check: Callable[[], Callable[[], None]] | None = None) -> None:
        self._lock = KeyedLock()
        self._lease_check = lease_check  # see Cluster; None in a single process

    def lock(self, user: str) -> AbstractAsyncContextManager[None]:
        """Hold it while reading the beginning of a page for `user`."""
        return self._lock.hold(user)

    async def send(
        self,
        socket: Socket,
        page: list[T],
        most: int,
        read_on: Callable[[T, int], Awaitable[list[T]]],
        encode: Callable[[T], bytes | None],
    ) -> int:
        """Send the page and what `read_on` finds after it, at most `most` in all. Returns the number sent.

        Of a page with more than PIECE characters only the beginning is kept until the reader has taken it; then the
        rest is read again. So a socket that is not read takes little memory, whatever it requests. `encode` is called
        just before an item is sent: it returns None, or raises Refused, if the user may no longer read it.

        Raises StoreUnavailable if the process loses its lease meanwhile.
        """
        sent = 0
        check = self._lease_check() if self._lease_check else None
        while page:
            piece = page[: _fitting(page)]
            page.clear()  # the caller refers to this list, too
            for one in piece:
                if check is not None:
                    check()
                if frame := encode(one):
                    socket.send(frame)
                    sent += 1
                    await socket.drain()
            most -= len(piece)
            if most > 0:
                async with self.lock(socket.user):
                    page = await read_on(piece[-1], min(most, MAX_PAGE, 2 * len(piece)))
        if check is not None:
            check()
        return sent


def count_of(failed: Status, text: str) -> int:
    """The number of items in a request for a page. Raises Refused."""
    if not _COUNT.fullmatch(text) or not 1 <= int(text) <= MAX_PAGE:
        raise Refused(failed, Reason.BAD_PAGE, f"N is 1 to {MAX_PAGE}")
    return int(text)


def _fitting(page: Sequence[Message | Conversation]) -> int:
    """The number of items at the beginning of a page that have PIECE characters together; at least one."""
    size = 0
    for number, one in enumerate(page):
        message = one.last if isinstance(one, Conversation) else one
        size += len(message.text) if message else 0
        if number and size > PIECE:
            return number
    return len(page)
