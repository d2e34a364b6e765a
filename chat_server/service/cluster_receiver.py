"""What this process does for the other processes of its cluster."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from math import inf

from chat_server.model.messages import Message, MessageLog
from chat_server.service.answers import Answers
from chat_server.service.blocks import Blocks
from chat_server.service.frames import Frames
from chat_server.service.groups import Groups
from chat_server.service.live_groups import LiveGroup
from chat_server.service.packets import (
    BlockChanged,
    BroadcastMessage,
    GroupChanged,
    Notice,
    PresenceChanged,
    SessionsEnded,
    StoredMessage,
    decode_change,
    decode_packet,
    unpack,
)
from chat_server.service.presence import Presence
from chat_server.service.registry import Registry, Socket
from chat_server.service.sending import Sending
from chat_server.utils.clock import Timeline
from chat_server.utils.errors import StoreUnavailable

log = logging.getLogger(__name__)

# Messages that are read again at a time after a gap.
PAGE = 1000


class ClusterReceiver:
    """Handles what other processes publish; a Receiver of the backplane."""

    def __init__(
        self,
        messages: MessageLog,
        registry: Registry,
        answers: Answers,
        frames: Frames,
        sending: Sending,
        blocks: Blocks,
        groups: Groups,
        presence: Presence,
        timeline: Timeline,
    ) -> None:
        self._messages = messages
        self._registry = registry
        self._answers = answers
        self._frames = frames
        self._sending = sending
        self._blocks = blocks
        self._groups = groups
        self._presence = presence
        self._timeline = timeline
        self.check_sessions: Callable[[], Awaitable[None]] = _nothing  # closes the sockets whose sessions have ended
        self.refresh: Callable[[], Awaitable[None]] = _nothing  # finds what a command has changed
        self.close_slowly: Callable[[Sequence[Socket]], None] = lambda sockets: None

    async def received(self, users: Sequence[str], payload: bytes) -> None:
        packet = decode_packet(payload)
        if isinstance(packet, StoredMessage):
            await self._receive(users, unpack(packet))
        elif isinstance(packet, Notice):
            if packet.group:
                _, users = await self._members(packet.group, users)
            self._registry.notify_here(users, packet.frame, to_all=packet.to_all, optional=packet.optional)
        elif isinstance(packet, BroadcastMessage):
            frame = self._frames.broadcast(packet.sender, packet.content, packet.time)
            await self._registry.broadcast(packet.sender, frame)
        elif isinstance(packet, PresenceChanged):
            self._presence.changed_elsewhere(packet.node, packet.user, online=packet.online)

    def appeared(self, node: str, users: Sequence[str]) -> None:
        self._presence.appeared(node, set(users))

    def vanished(self, node: str) -> None:
        self._presence.vanished(node)

    async def _receive(self, users: Sequence[str], message: Message) -> None:
        self._timeline.advance(message.time)  # an answer to it is later
        self._messages.saw(message)
        group = None
        if message.group:
            group, users = await self._members(message.group, users, message.time)
        others = [user for user in users if user != message.sender]
        if self._blocks.is_cached(message.receiver, message.sender):  # blocked since, or unblocked just now
            await self._blocks.read_again(message.receiver, message.sender)
        if not self._blocks.is_cached(message.receiver, message.sender):
            self._answers.receive(message, others, group)
        if len(others) < len(users):
            self._registry.notify_here([message.sender], self._frames.live(message, message.time))

    async def _members(
        self, number: int, users: Sequence[str], time: float = inf
    ) -> tuple[LiveGroup | None, Sequence[str]]:
        """Return the group of this number, and those of the users who joined it before `time` and are members still.

        Without its store, all users: so what they receive stays unread.
        """
        try:
            group = await self._groups.live.get(number)
        except StoreUnavailable as error:
            log.warning("store unavailable", extra={"error": str(error)})
            return None, users
        if group and not group.members.keys() >= set(users):  # a new member: the change may arrive after the message
            with suppress(StoreUnavailable):
                await self._groups.live.read_ahead(group)
        members = group.members if group else {}
        return group, [user for user in users if members.get(user, time) < time]

    async def apply(self, payload: bytes) -> None:
        change = decode_change(payload)
        if isinstance(change, SessionsEnded):
            await self._registry.end(change.user, only=change.only, keep=change.keep)
            if change.only is None and change.keep is None:
                await self.refresh()
        elif isinstance(change, BlockChanged):
            await self._blocks.read_again(change.blocker, change.blocked)
            self._presence.changed_for(change.blocker, change.blocked)
            await self._sending.settle(change.blocker, change.blocked)
        elif isinstance(change, GroupChanged):
            await self._groups.changed_elsewhere(change)

    async def recover(self, since: int, *, own: bool) -> None:
        log.info("gap noticed", extra={"since": since, "own": own})
        # Marks, deletions and presence have no log: the clients of these sockets must load the state again.
        outdated = [socket for socket in self._registry if socket.sync] if own else []
        self._blocks.clear()
        self._groups.live.forget_blocks()
        await (self.refresh() if own else self._groups.refresh())
        await self.check_sessions()
        await self._read_again(since)
        self.close_slowly(outdated)

    async def _read_again(self, start: int) -> None:
        """Deliver what was stored after `start` and may have been missed. Raises StoreUnavailable.

        A message may appear behind the one that was read last. The next message of its conversation names it; then
        it is read first, so that each conversation stays in order.
        """
        newest = dict[str, int]()  # what was read last of each conversation
        searched = set[int]()  # a message that is still not found then is erased
        since = start
        while page := await self._messages.since(since, PAGE):
            since = page[-1].time
            messages = list[Message]()
            for conversation, time, before, message in page:
                last = newest.get(conversation, start)
                if last < before and before not in searched:
                    searched.add(before)
                    since = before - 1
                    break
                if last < time:
                    newest[conversation] = time
                    messages += [message] if message else []
            await self._deliver_again(messages)

    async def _deliver_again(self, page: Sequence[Message]) -> None:
        """Deliver messages that may have been missed. Raises StoreUnavailable.

        A message that another device has read is missing on the sockets that were open before it.
        """
        missed = [
            message
            for message in page
            if message.group
            or any(not message.read or one.opened < message.time for one in self._registry.sockets(message.receiver))
        ]
        pairs = {(message.receiver, message.sender) for message in missed if not message.group}
        if len(await self._blocks.states(pairs)) < len(pairs):
            raise StoreUnavailable("the store of users is away: blocks are not known")
        for message in missed:
            if not message.group:
                await self._receive([message.receiver], message)
            elif group := await self._groups.live.get(message.group):
                users = self._registry.sockets_among(group.members).keys() - {message.sender}
                await self._receive(list(users), message)


async def _nothing() -> None:
    pass
