"""Pushed presence: tell sync sockets which peers come online and go offline (protocol section 2, Presence)."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Set
from itertools import islice
from typing import Any

from chat_server.model.messages import MessageStore
from chat_server.service.blocks import Blocks
from chat_server.service.frames import Frames
from chat_server.service.registry import Registry
from chat_server.status import Status
from chat_server.utils.clock import Clock
from chat_server.utils.errors import StoreUnavailable

log = logging.getLogger(__name__)

# Seconds between two rounds of frames: with two lookups per user a change is pushed within one second.
ROUND_SECONDS = 0.5
# A user is offline this many seconds after their last socket closed; reconnecting in between causes no frame.
GRACE_SECONDS = 5.0
# The peers of a user's newest conversations receive their changes: at most this many.
PEERS = 200
# Users per round: it bounds the lookups per second and the lines of a frame. Further users wait for the next rounds.
USERS_PER_ROUND = 200
# Users whose change waits for its round. Beyond it the oldest changes are dropped; op 7 still reports them.
MAX_WAITING = 65536
# A round yields to the event loop after this many recipients.
RECIPIENTS_PER_TURN = 50


class Presence:
    """Who is online, as peers see it, and the frames that tell them about changes.

    Op 7 asks `online`, so it reports exactly the state whose changes are pushed: if a socket learns a state from
    op 7 and that state changes later, a frame follows. Each frame states the state at the time it is sent, so a user
    who changes again during a round is announced once more, never wrongly.

    A user whom another user blocks sees the other as offline.
    """

    def __init__(
        self, messages: MessageStore, blocks: Blocks, registry: Registry, frames: Frames, clock: Clock
    ) -> None:
        self._messages = messages
        self._blocks = blocks
        self._registry = registry
        self._frames = frames
        self._clock = clock
        self._online: set[str] = set()  # at this process
        self._elsewhere: dict[str, set[str]] = {}  # other processes that are known -> the users who are online there
        self.tell: Callable[[str, bool], None] = lambda user, online: None  # called when a user is online here, or not
        self._leaving: dict[str, float] = {}  # users without a socket -> when they are offline; in order of time
        self._changed: dict[str, None] = {}  # users whose peers have no frame yet; the oldest change first
        self._changed_for: dict[str, set[str]] = {}  # likewise, but only these peers get a frame

    async def seen_online(self, viewer: str, users: Iterable[str]) -> set[str]:
        """Return the users that `viewer` sees as online. Check `online` too when the result is used later."""
        online = [user for user in users if self._is_online(user)]
        blocks = await self._blocks.states([(user, viewer) for user in online], cache=False)
        return {user for user in online if blocks.get((user, viewer)) is False}

    def online(self, user: str, viewer: str) -> bool:
        """Return whether `user` has a socket, or closed the last one less than GRACE_SECONDS ago.

        False if `user` has just blocked `viewer`; `seen_online` finds earlier blocks.
        """
        return self._is_online(user) and not self._blocks.is_cached(user, viewer)

    def waiting(self) -> int:
        """Return how many users have changed and wait for their round."""
        return len(self._changed) + len(self._changed_for)

    def changed(self, user: str) -> None:
        """Note that a socket of `user` opened or closed. The registry calls this."""
        if self._registry.online(user):
            if user not in self._online:
                self._online.add(user)
                self.tell(user, True)
                if not self._is_elsewhere(user):
                    self._announce(user)
            elif self._leaving.pop(user, None):
                self.tell(user, True)  # a process that has read the directory in between has counted sockets only
        elif user in self._online:
            self._leaving.setdefault(user, self._clock.monotonic() + GRACE_SECONDS)
        else:
            self.tell(user, False)  # their socket did not open, but such a process has counted it

    def changed_elsewhere(self, node: str, user: str, *, online: bool) -> None:
        """Note that a user came online at another process, or went offline there.

        A process that is not known yet appears soon. What one that has vanished published before may still arrive.
        """
        if (users := self._elsewhere.get(node)) is None:
            return
        before = self._is_online(user)
        (users.add if online else users.discard)(user)
        if self._is_online(user) != before:
            self._announce(user)

    def appeared(self, node: str, users: Set[str]) -> None:
        """Note which users are online at another process, and no others."""
        for user in self._elsewhere.setdefault(node, set()) ^ users:
            self.changed_elsewhere(node, user, online=user in users)

    def vanished(self, node: str) -> None:
        """Note that another process has ended."""
        self.appeared(node, set())
        del self._elsewhere[node]

    def _is_online(self, user: str) -> bool:
        return user in self._online or self._is_elsewhere(user)

    def _is_elsewhere(self, user: str) -> bool:
        return bool(self._elsewhere) and any(user in users for users in self._elsewhere.values())

    def changed_for(self, user: str, peer: str) -> None:
        """Note that `user` has blocked or unblocked `peer`, who then sees `user` go offline or come online."""
        if self._is_online(user):
            _make_room(self._changed_for, user)
            self._changed_for.setdefault(user, set()).add(peer)

    async def push(self) -> None:
        """Run one round: look up the peers of changed users, then send each recipient one frame.

        If a store is unavailable, the remaining users wait for the next round.
        """
        self._end_grace()
        changes: dict[str, dict[str, bool]] = {}  # recipient -> user -> whether the user does not block the recipient
        try:
            for user in list(islice(self._changed, USERS_PER_ROUND)):
                for peer, visible in (await self._listening_peers(user)).items():
                    if visible:
                        changes.setdefault(peer, {})[user] = True
                self._changed.pop(user, None)  # a further change from now on needs another round
            for user in list(islice(self._changed_for, USERS_PER_ROUND)):
                peers = await self._listening_peers(user)
                for peer in self._changed_for.pop(user, set()) & peers.keys():
                    changes.setdefault(peer, {})[user] = peers[peer]
        except StoreUnavailable as error:
            log.warning("presence delayed", extra={"error": str(error), "users": self.waiting()})
        for number, (recipient, users) in enumerate(changes.items(), 1):
            self._send(recipient, users)
            if number % RECIPIENTS_PER_TURN == 0:
                await asyncio.sleep(0)

    async def _listening_peers(self, user: str) -> dict[str, bool]:
        """Return the peers of `user` who have sync sockets, and whether `user` does not block them."""
        peers = await self._messages.newest_peers(user, PEERS)
        blocks = [(user, peer) for peer in peers if self._registry.sync_sockets(peer)]
        states = await self._blocks.states(blocks, cache=False)
        if len(states) < len(blocks):
            raise StoreUnavailable("the blocks of the user cannot be looked up")
        return {block[1]: not states[block] for block in blocks}

    def _end_grace(self) -> None:
        now = self._clock.monotonic()
        while self._leaving and (user := next(iter(self._leaving))) and self._leaving[user] <= now:
            del self._leaving[user]
            self._online.discard(user)
            self.tell(user, False)
            if not self._is_elsewhere(user):
                self._announce(user)

    def _announce(self, user: str) -> None:
        if self._registry.sync_users:  # otherwise no socket here knows the state before
            _make_room(self._changed, user)
            self._changed[user] = None

    def _send(self, recipient: str, users: dict[str, bool]) -> None:
        lines = [f"{'+' if visible and self.online(user, recipient) else '-'}{user}" for user, visible in users.items()]
        frame = self._frames.answer(recipient, Status.PRESENCE, "\n".join(lines))
        for socket in self._registry.sync_sockets(recipient):
            socket.offer(frame)


def _make_room(waiting: dict[str, Any], user: str) -> None:
    """Drop the oldest change if there are MAX_WAITING and `user` is not among them."""
    if len(waiting) >= MAX_WAITING and user not in waiting:
        del waiting[next(iter(waiting))]
