"""Ops 2, 3 and 7: pages of stored messages and conversations (protocol section 2)."""

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from chat_server.model.messages import Conversation, Message, MessageStore, Pair
from chat_server.service.answers import Answer
from chat_server.service.frames import Frames, Request
from chat_server.service.marks import MAX_PAGE, Marks, names_of
from chat_server.service.names import normal
from chat_server.service.peers import Peers, check_from
from chat_server.service.presence import Presence
from chat_server.service.registry import Socket
from chat_server.status import Reason, Refused, Status
from chat_server.utils.clock import Timeline
from chat_server.utils.locks import KeyedLock

T = TypeVar("T", Message, Conversation)

# Characters of a page that are kept for its reader at a time. The largest page has 200 texts of 16 KiB: 3 MiB, for each
# socket that does not read.
PIECE = 32768
LATEST = 2**62  # after every message's time, and more than there can be

# They match in linear time: no two adjacent unbounded repetitions can match the same character.
_SKIP = re.compile(r"([0-9]+)-([0-9]{1,3})")
_NEWEST = re.compile(r"-([0-9]{1,3})(?:@(.+))?", re.DOTALL)
_AFTER = re.compile(r"\+([0-9]{1,3})@(.+)", re.DOTALL)
_COUNT = re.compile(r"[0-9]{1,3}")


class Pages:
    """Streams pages to the socket that asks, at the pace of its reader. The methods raise Refused, StoreUnavailable."""

    def __init__(
        self,
        peers: Peers,
        messages: MessageStore,
        marks: Marks,
        presence: Presence,
        frames: Frames,
        timeline: Timeline,
    ) -> None:
        self._peers = peers
        self._messages = messages
        self._marks = marks
        self._presence = presence
        self._frames = frames
        self._timeline = timeline
        self._page_lock = KeyedLock()  # by user: one page is read at a time, however many sockets ask

    async def history(self, socket: Socket, request: Request) -> Answer:
        """Op 2: a page of the conversation."""
        failed = Status.HISTORY_FAILED
        peer = await self._peers.of(socket, request, failed)
        await self._marks.flush()
        me = socket.user
        async with self._page_lock.hold(me):
            page = await self._page(me, peer, request.content)
        until = page[-1].time if page else 0

        async def read_on(last: Message, most: int) -> list[Message]:
            page = await self._messages.after(Pair(me, peer), last.time, most)
            return [message for message in page if message.time <= until]

        count = await self._stream(socket, page, len(page), read_on, self._frames.stored)
        return Answer(Status.HISTORY, str(count))

    async def _page(self, me: str, peer: str, content: str) -> list[Message]:
        """The messages that `content` names (protocol section 2, op 2). Raises Refused."""
        failed = Status.HISTORY_FAILED
        if match := _SKIP.fullmatch(content):
            digits = match[1].lstrip("0") or "0"
            skip = int(digits) if len(digits) < 19 else LATEST
            return await self._messages.skip(Pair(me, peer), skip, _count(failed, match[2]))
        if match := _NEWEST.fullmatch(content):
            count = _count(failed, match[1])
            before = LATEST if match[2] is None else await self._place(me, peer, match[2])
            return await self._messages.before(Pair(me, peer), before, count)
        if match := _AFTER.fullmatch(content):
            count = _count(failed, match[1])
            return await self._messages.after(Pair(me, peer), await self._place(me, peer, match[2]), count)
        raise Refused(failed, Reason.BAD_PAGE, "content is S-N, -N, -N@ID or +N@ID, N from 1 to 200")

    async def unread(self, socket: Socket, request: Request) -> Answer:
        """Op 3: all unread messages from the peer, or the oldest N, streamed."""
        failed = Status.HISTORY_FAILED
        peer = await self._peers.of(socket, request, failed)
        left = _count(failed, request.content) if request.content else LATEST
        await self._marks.flush()
        until = self._timeline.next()

        async def read_on(last: Message | None, most: int) -> list[Message]:
            page = await self._messages.unread(peer, socket.user, last.time if last else 0, most)
            return [message for message in page if message.time < until]

        most = min(left, MAX_PAGE)
        async with self._page_lock.hold(socket.user):
            page = await read_on(None, most)
        count = await self._stream(socket, page, left if len(page) == most else len(page), read_on, self._frames.stored)
        return Answer(Status.HISTORY, str(count))

    async def conversations(self, socket: Socket, request: Request) -> Answer:
        """Op 7: the user's conversations, the newest first."""
        failed = Status.CONVERSATIONS_FAILED
        check_from(socket, request)
        match = _NEWEST.fullmatch(request.content)
        if not match:
            raise Refused(failed, Reason.BAD_PAGE, "content is -N or -N@USER, N from 1 to 200")
        count = _count(failed, match[1])
        await self._marks.flush()
        before = LATEST
        if match[2] is not None:
            peer = normal(match[2])
            found = await self._messages.listed_at(socket.user, peer)
            if found is None:
                raise Refused(failed, Reason.NO_SUCH_USER, f"there is no conversation with {peer[:80]}")
            before = found

        me, online = socket.user, set[str]()

        async def read(before: int, most: int) -> list[Conversation]:
            page = await self._messages.conversations(me, before, most)
            online.update(await self._presence.seen_online(me, [one.peer for one in page]))
            return page

        async def read_on(last: Conversation, most: int) -> list[Conversation]:
            return await read(last.time, most)

        def encode(one: Conversation) -> bytes:
            return self._frames.conversation(one, one.peer in online and self._presence.online(one.peer, me))

        async with self._page_lock.hold(me):
            page = await read(before, count)
        count = await self._stream(socket, page, len(page), read_on, encode)
        return Answer(Status.CONVERSATIONS, str(count))

    async def _stream(
        self,
        socket: Socket,
        page: list[T],
        most: int,
        read_on: Callable[[T, int], Awaitable[list[T]]],
        encode: Callable[[T], bytes],
    ) -> int:
        """Send the page and what `read_on` finds after it, at most `most` in all. Returns the number sent.

        Of a page with more than PIECE characters only the beginning is kept until the reader has taken it; then the
        rest is read again. So a socket that is not read takes little memory, whatever it requests.
        """
        sent = 0
        while page:
            piece = page[: _fitting(page)]
            page.clear()  # the caller refers to this list, too
            for one in piece:
                socket.send(encode(one))
                await socket.drain()
            sent += len(piece)
            if sent < most:
                async with self._page_lock.hold(socket.user):
                    page = await read_on(piece[-1], min(most - sent, MAX_PAGE, 2 * len(piece)))
        return sent

    async def _place(self, me: str, peer: str, marker: str) -> int:
        """The time of the message that a page starts from."""
        [choices] = names_of([marker], me, peer)
        if not choices:
            raise Refused(Status.HISTORY_FAILED, Reason.BAD_ID, f"no valid id: {marker[:80]}")
        for sender, id in choices:
            if (time := await self._messages.time_of(Pair(me, peer), sender, id)) is not None:
                return time
        raise Refused(Status.HISTORY_FAILED, Reason.NO_SUCH_MESSAGE, f"no such message: {marker}")


def _count(failed: Status, text: str) -> int:
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
