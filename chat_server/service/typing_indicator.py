"""Op 8, typing: tell the sync sockets of the other users, but store nothing (docs/protocol.md section 2, Op 8)."""

import asyncio
from collections.abc import Collection
from weakref import WeakKeyDictionary

from chat_server.service.answers import Answer
from chat_server.service.blocks import Blocks
from chat_server.service.contact_limit import ContactLimit
from chat_server.service.frames import Frames, Request
from chat_server.service.live_groups import LiveGroup, LiveGroups
from chat_server.service.peers import Peer, Peers
from chat_server.service.registry import Registry, Socket
from chat_server.status import Reason, Refused, Status
from chat_server.utils.clock import Clock

STOPPED, STARTED = CONTENTS = ("0", "1")
# Seconds between two `1` that pass, for each socket and conversation.
INTERVAL = 2.0
# Other work runs after a frame was sent to the sync sockets of this many users.
RECEIVERS_PER_TURN = 50
# Conversations that are tracked for each socket.
TRACKED = 16


class TypingIndicator:
    """Passes on who is typing. A request that is accepted gets no answer, whether it was passed on or not."""

    def __init__(
        self,
        peers: Peers,
        groups: LiveGroups,
        limit: ContactLimit,
        blocks: Blocks,
        registry: Registry,
        frames: Frames,
        clock: Clock,
    ) -> None:
        self._peers = peers
        self._groups = groups
        self._limit = limit
        self._blocks = blocks
        self._registry = registry
        self._frames = frames
        self._clock = clock
        self._limiters: WeakKeyDictionary[Socket, TypingLimiter] = WeakKeyDictionary()

    async def typing(self, socket: Socket, request: Request) -> Answer:
        """Op 8. Raises Refused, StoreUnavailable."""
        failed, me = Status.TYPING_FAILED, socket.user
        peer = await self._peers.of(socket, request, failed)
        if request.content not in CONTENTS:
            raise Refused(failed, Reason.BAD_FRAME, "content is 1 (typing) or 0 (stopped)", field="content")
        limiter = self._limiters.setdefault(socket, TypingLimiter())
        to = peer.name if isinstance(peer, LiveGroup) else peer
        if limiter.allows(to, request.content, self._clock.monotonic()):
            frame = self._frames.typing(me, to, request.content)
            receivers = await self._receivers(me, peer)
            if self._registry.forward:
                group = peer.key.number if isinstance(peer, LiveGroup) else 0
                self._registry.forward(receivers, frame, optional=True, group=group)
            for number, receiver in enumerate(receivers, 1):
                if isinstance(peer, LiveGroup) and not peer.members.keys() >= {me, receiver}:
                    continue  # removed while other work ran in between
                self._registry.notify_here((receiver,), frame, optional=True)
                if number % RECEIVERS_PER_TURN == 0:
                    await asyncio.sleep(0)
        return Answer(Status.TYPING, "", silent=True)

    async def _receivers(self, me: str, peer: Peer) -> Collection[str]:
        """The users who may know that `me` is typing."""
        if isinstance(peer, LiveGroup):
            blocks = await self._groups.look_up_blocks(peer, me)
            if me not in peer.members:  # removed meanwhile
                return []
            return self._registry.may_be_online(peer.members) - blocks.by_others - blocks.by_member - {me}
        if await self._limit.are_contacts(me, peer, self._clock.now()):
            states = await self._blocks.states([(me, peer), (peer, me)])
            if list(states.values()) == [False, False]:
                return [peer]
        return []


class TypingLimiter:
    """Bounds the op 8 frames of one socket that pass: at most TRACKED `1` in INTERVAL, and one `0` after each.

    A conversation is forgotten only after INTERVAL, so changing between many does not exceed the bound.
    """

    def __init__(self) -> None:
        self._started: dict[str, float] = {}  # conversation -> when the last `1` passed; the oldest first
        self._typing: set[str] = set()  # conversations in which no `0` has passed since

    def allows(self, conversation: str, content: str, now: float) -> bool:
        """Whether this frame passes at `now` (seconds)."""
        if content == STOPPED:
            typing = conversation in self._typing
            self._typing.discard(conversation)
            return typing
        if now < self._started.get(conversation, -INTERVAL) + INTERVAL:
            return False
        if conversation not in self._started and len(self._started) == TRACKED:
            oldest = next(iter(self._started))
            if now < self._started[oldest] + INTERVAL:
                return False
            del self._started[oldest]
            self._typing.discard(oldest)
        self._started.pop(conversation, None)
        self._started[conversation] = now
        self._typing.add(conversation)
        return True
