"""Ops 2 and 3: pages of stored messages (protocol section 2)."""

import re
from collections.abc import Awaitable, Callable, Mapping

from chat_server.model.messages import Message, MessageStore
from chat_server.service.answers import Answer
from chat_server.service.confirmations import Confirmations
from chat_server.service.coordinator import Coordinator
from chat_server.service.frames import Frames, Request
from chat_server.service.live_groups import LiveGroup
from chat_server.service.page_stream import NEWEST, PageStream, count_of
from chat_server.service.peers import Peers, View
from chat_server.service.references import LATEST, MAX_PAGE, References, names_of
from chat_server.service.registry import Socket
from chat_server.status import Reason, Refused, Status

# They match in linear time: no two adjacent unbounded repetitions can match the same character.
_SKIP = re.compile(r"([0-9]+)-([0-9]{1,3})")
_AFTER = re.compile(r"\+([0-9]{1,3})@(.+)", re.DOTALL)

FAILED = Status.HISTORY_FAILED


class Pages:
    """Sends pages to the socket that asks. The ops raise Refused, StoreUnavailable."""

    def __init__(
        self,
        peers: Peers,
        references: References,
        messages: MessageStore,
        confirmations: Confirmations,
        stream: PageStream,
        frames: Frames,
        coordinator: Coordinator,
    ) -> None:
        self._peers = peers
        self._references = references
        self._messages = messages
        self._confirmations = confirmations
        self._stream = stream
        self._frames = frames
        self._coordinator = coordinator

    async def history(self, socket: Socket, request: Request) -> Answer:
        """Op 2: a page of the conversation."""
        view = await self._peers.view(socket, request, FAILED)
        await self._confirmations.flush()
        async with self._stream.lock(socket.user):
            page = await self._page(view, request.content)
        until = page[-1].time if page else 0

        async def read_on(last: Message, most: int) -> list[Message]:
            page = await self._messages.after(view.key, last.time, most)
            return [message for message in page if message.time <= until]

        encode = await self._encoder(view)
        count = await self._stream.send(socket, page, len(page), read_on, encode)
        view.check(FAILED)
        return Answer(Status.HISTORY, str(count))

    async def unread(self, socket: Socket, request: Request) -> Answer:
        """Op 3: all unread messages from others, or the oldest N, streamed."""
        view = await self._peers.view(socket, request, FAILED)
        left = count_of(FAILED, request.content) if request.content else LATEST
        await self._confirmations.flush()
        until = await self._coordinator.end_of(view.key)
        read = self._unread_in(view.group, view) if view.group else self._unread_of(view)

        async def read_on(last: Message | None, most: int) -> list[Message]:
            page = await read(last, most)
            return [message for message in page if message.time < until]

        most = min(left, MAX_PAGE)
        async with self._stream.lock(socket.user):
            page = await read_on(None, most)
        most = left if len(page) == most else len(page)
        count = await self._stream.send(socket, page, most, read_on, lambda message: self._encode(view, message))
        view.check(FAILED)
        return Answer(Status.HISTORY, str(count))

    def _unread_of(self, view: View) -> Callable[[Message | None, int], Awaitable[list[Message]]]:
        async def read(last: Message | None, most: int) -> list[Message]:
            return await self._messages.unread(view.name, view.user, last.time if last else 0, most)

        return read

    def _unread_in(self, group: LiveGroup, view: View) -> Callable[[Message | None, int], Awaitable[list[Message]]]:
        """Read the messages by others after the read position.

        It also moves the position past the user's own messages that follow it, so that they are read only once.
        """

        async def read(last: Message | None, most: int) -> list[Message]:
            after = last.time if last else await self._position(group, view)
            found: list[Message] = []
            passed, size = 0, most
            while len(found) < most:
                page = await self._messages.after(group.key, after, size)
                found += [message for message in page if message.sender != view.user]
                if page and not found:
                    passed = page[-1].time
                if len(page) < size:
                    break
                after, size = page[-1].time, min(2 * size, MAX_PAGE)
            if passed and not last:
                await self._messages.move_position(group.key.number, view.user, passed)
            return found[:most]

        return read

    async def _position(self, group: LiveGroup, view: View) -> int:
        positions = await self._messages.positions([group.key.number])
        return max(positions[group.key.number].get(view.user, 0), view.since)

    async def _page(self, view: View, content: str) -> list[Message]:
        """The messages that `content` names (protocol section 2, op 2). Raises Refused."""
        if match := _SKIP.fullmatch(content):
            digits = match[1].lstrip("0") or "0"
            skip = int(digits) if len(digits) < 19 else LATEST
            return await self._messages.skip(view.key, skip, count_of(FAILED, match[2]), view.since)
        if match := NEWEST.fullmatch(content):
            count = count_of(FAILED, match[1])
            before = LATEST if match[2] is None else await self._place(view, match[2])
            return await self._messages.before(view.key, before, count, view.since)
        if match := _AFTER.fullmatch(content):
            count = count_of(FAILED, match[1])
            return await self._messages.after(view.key, await self._place(view, match[2]), count)
        raise Refused(FAILED, Reason.BAD_PAGE, "content is S-N, -N, -N@ID or +N@ID, N from 1 to 200")

    async def _place(self, view: View, reference: str) -> int:
        """The time of the message that a page starts from."""
        if not names_of(view, reference):
            raise Refused(FAILED, Reason.BAD_ID, f"no valid id: {reference[:80]}")
        if found := await self._references.find(view, reference):
            return found.time
        raise Refused(FAILED, Reason.NO_SUCH_MESSAGE, f"no such message: {reference[:160]}")

    async def _encoder(self, view: View) -> Callable[[Message], bytes]:
        """Encode messages of the history. In a group, read positions say whether a message is read."""
        if not view.group:
            return self._frames.stored
        positions = await self._messages.positions([view.group.key.number])
        read = ReadPositions(view.user, view.group, positions[view.group.key.number])
        return lambda message: self._encode(view, message, read=read.is_read(message))

    def _encode(self, view: View, message: Message, *, read: bool | None = None) -> bytes:
        """Encode a message while the user may read it. Raises Refused."""
        view.check(FAILED)
        return self._frames.stored(message, read=read)


class ReadPositions:
    """Says which messages of a group are read, as the member `user` sees it: from the members' read positions."""

    def __init__(self, user: str, group: LiveGroup, positions: Mapping[str, int]) -> None:
        reached = {member: max(since, positions.get(member, 0)) for member, since in group.members.items()}
        self._user = user
        self._own = reached.pop(user, 0)
        self._others = min(reached.values(), default=LATEST)

    def is_read(self, message: Message) -> bool:
        """Whether the user has read a message by another member, or all others have read one by the user."""
        return message.time <= (self._others if message.sender == self._user else self._own)
