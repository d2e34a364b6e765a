"""Op 7: the user's conversations with users and groups, the newest first (protocol section 2)."""

from collections.abc import Sequence

from chat_server.model.messages import Conversation, GroupView, MessageStore
from chat_server.service.answers import Answer
from chat_server.service.confirmations import Confirmations
from chat_server.service.frames import Frames, Request
from chat_server.service.live_groups import LiveGroup, LiveGroups
from chat_server.service.names import GROUP_SIGN, normal
from chat_server.service.page_stream import NEWEST, PageStream, count_of
from chat_server.service.pages import ReadPositions
from chat_server.service.peers import Peers, check_from
from chat_server.service.presence import Presence
from chat_server.service.references import LATEST
from chat_server.service.registry import Socket
from chat_server.status import Reason, Refused, Status

FAILED = Status.CONVERSATIONS_FAILED


class ConversationList:
    """Sends the list of conversations to the socket that asks."""

    def __init__(
        self,
        peers: Peers,
        groups: LiveGroups,
        messages: MessageStore,
        confirmations: Confirmations,
        presence: Presence,
        stream: PageStream,
        frames: Frames,
    ) -> None:
        self._peers = peers
        self._groups = groups
        self._messages = messages
        self._confirmations = confirmations
        self._presence = presence
        self._stream = stream
        self._frames = frames

    async def conversations(self, socket: Socket, request: Request) -> Answer:
        """Op 7. Raises Refused, StoreUnavailable."""
        check_from(socket, request)
        match = NEWEST.fullmatch(request.content)
        if not match:
            raise Refused(FAILED, Reason.BAD_PAGE, "content is -N, -N@USER or -N@#GROUP, N from 1 to 200")
        count = count_of(FAILED, match[1])
        await self._confirmations.flush()
        me = socket.user
        before = LATEST if match[2] is None else await self._listed_at(me, normal(match[2]))
        page = ConversationPage(me, self._messages, self._groups, self._presence)

        async def read_on(last: Conversation, most: int) -> list[Conversation]:
            return await page.read(last.time, most)

        def encode(one: Conversation) -> bytes | None:
            if page.has_left(one):
                return None
            return self._frames.conversation(one, me, online=page.online(one), read=page.is_read(one))

        async with self._stream.lock(me):
            first = await page.read(before, count)
        sent = await self._stream.send(socket, first, len(first), read_on, encode)
        return Answer(Status.CONVERSATIONS, str(sent))

    async def _listed_at(self, me: str, peer: str) -> int:
        """The position of a conversation in the list: the time of its newest message."""
        if peer[:1] == GROUP_SIGN:
            group = await self._peers.group(me, peer, FAILED)
            [conversation] = await self._messages.group_conversations(me, [group.view(me)])
            return conversation.time
        found = await self._messages.listed_at(me, peer)
        if found is None:
            raise Refused(FAILED, Reason.NO_SUCH_USER, f"there is no conversation with {peer[:80]}")
        return found


class ConversationPage:
    """Reads a page of the list in parts, with what the frames need: who is online, and what is read in groups."""

    def __init__(self, me: str, messages: MessageStore, groups: LiveGroups, presence: Presence) -> None:
        self._me = me
        self._messages = messages
        self._groups = groups
        self._presence = presence
        self._live: dict[int, LiveGroup] = {}
        self._since: dict[int, int] = {}
        self._times: dict[int, int] = {}  # of the groups, when they were read last
        self._read: dict[int, ReadPositions] = {}
        self._online: set[str] = set()

    async def read(self, before: int, most: int) -> list[Conversation]:
        """Return at most `most` conversations whose newest message is older than `before`. Raises StoreUnavailable."""
        me = self._me
        page = await self._messages.conversations(me, before, most)
        self._live = {group.key.number: group for group in await self._groups.of(me)}
        self._since = {number: group.members[me] for number, group in self._live.items()}
        if views := self._views(before, most):
            listed = await self._messages.group_conversations(me, views)
            self._times |= {conversation.group: conversation.time for conversation in listed}
            page += [conversation for conversation in listed if conversation.time < before]
            page = sorted(page, key=lambda one: one.time, reverse=True)[:most]
        await self._look_up(page)
        return page

    def _views(self, before: int, most: int) -> list[GroupView]:
        """The groups that may belong to the next part: all, until their times are known."""
        times = {number: self._times.get(number, 0) for number in self._live}
        earlier = [number for number in sorted(times, key=times.__getitem__, reverse=True) if times[number] < before]
        return [self._live[number].view(self._me) for number in (earlier[:most] if self._times else earlier)]

    def has_left(self, one: Conversation) -> bool:
        """Whether the user has left the group, or joined it again, since it was read."""
        return bool(one.group) and self._live[one.group].members.get(self._me) != self._since[one.group]

    def online(self, one: Conversation) -> bool:
        """Whether the user sees the peer, or another member of the group, as online."""
        names = self._live[one.group].members if one.group else [one.peer]
        return any(name in self._online and self._presence.online(name, self._me) for name in names if name != self._me)

    def is_read(self, one: Conversation) -> bool:
        """Whether the newest message is read."""
        if one.last is None:
            return True
        return self._read[one.group].is_read(one.last) if one.group else one.last.read

    async def _look_up(self, page: Sequence[Conversation]) -> None:
        shown = [one.group for one in page if one.group]
        positions = await self._messages.positions(shown) if shown else {}
        self._read = {number: ReadPositions(self._me, self._live[number], positions[number]) for number in shown}
        names = {one.peer for one in page if not one.group}
        names.update(name for number in shown for name in self._live[number].members if name != self._me)
        self._online = await self._presence.seen_online(self._me, names)
