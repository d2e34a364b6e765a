"""The open sockets of this process, by user, and frames for users wherever their sockets are."""

import asyncio
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from typing import Protocol

import msgspec

from chat_server.service.live_groups import LiveGroup

# A broadcast puts its frame on at most this many sockets per loop iteration: about 0.1 ms of work.
BROADCAST_STRIDE = 50


class Delivery(msgspec.Struct, gc=False):
    """A message that was put on sockets of its receiver, without its text; `time` in microseconds.

    `confirmed` once a pong of one of these sockets has proven that it arrived (protocol section 3, promise 2). A
    delivery to the members of a `group` is shared by all of them, and not marked so.
    """

    sender: str
    id: str
    time: int
    group: LiveGroup | None = None
    confirmed: bool = False


class Socket(Protocol):
    """A connected client, as the services see it."""

    @property
    def user(self) -> str:
        """The user who opened it."""
        ...

    @property
    def peer(self) -> str:
        """The receiver of a frame without `to`; empty if there is none."""
        ...

    @property
    def session(self) -> bytes:
        """The digest of the session that opened it."""
        ...

    @property
    def sync(self) -> bool:
        """Whether it also receives what happens on the user's other devices (protocol section 2, Sync)."""
        ...

    @property
    def opened(self) -> int:
        """When it opened, in microseconds."""
        ...

    def send(self, frames: bytes) -> None:
        """Send one or more whole frames, without waiting; a socket that is closing drops them."""
        ...

    def offer(self, frame: bytes) -> None:
        """Send a frame, unless the outbox is half full: the frame is optional."""
        ...

    def deliver(self, frames: bytes, deliveries: Sequence[Delivery]) -> None:
        """Send the frames of messages, and report the deliveries once they are confirmed."""
        ...

    async def drain(self) -> None:
        """Wait until little is left for the reader to take. Raises ConnectionResetError if the socket closes."""
        ...

    def close(self, code: int, why: str) -> None:
        """Close it and drop the requests that are not in work yet, also where it is closing already."""
        ...

    async def finish(self, code: int, why: str) -> None:
        """Finish the requests in work, for a bounded time, and close."""
        ...

    async def wait_idle(self) -> None:
        """Wait until no request of it is in work."""
        ...


class Forward(Protocol):
    """Passes a frame to the sockets that users have at other processes."""

    def __call__(
        self, users: Iterable[str], frame: bytes, *, to_all: bool = False, optional: bool = False, group: int = 0
    ) -> None:
        """Pass it to the sync sockets, or `to_all` sockets; see `Registry.notify`."""
        ...


class Registry:
    """The sockets of this process, by user."""

    def __init__(self) -> None:
        self._sockets: dict[str, tuple[Socket, ...]] = {}
        self.sync_users: set[str] = set()  # with an open sync socket: most messages concern none of them
        self._leaving: set[Socket] = set()  # closing or closed, with requests that may still be in work
        self.endings = 0  # the number of `end` calls: an upgrade in progress then checks its session again
        self.changed: Callable[[str], None] = lambda user: None  # called when a socket of a user opened or closed
        self.forward: Forward | None = None  # passes frames to other processes, if there can be any

    def add(self, socket: Socket) -> None:
        """Deliver to this socket from now on."""
        self._keep(socket.user, (*self.sockets(socket.user), socket))

    def leave(self, socket: Socket) -> None:
        """Deliver nothing more to a socket that closes. Its requests may still be in work."""
        self.remove(socket)
        self._leaving.add(socket)

    def remove(self, socket: Socket) -> None:
        """Forget a socket whose requests are all done. Idempotent."""
        self._leaving.discard(socket)
        if socket in (sockets := self.sockets(socket.user)):
            self._keep(socket.user, [other for other in sockets if other is not socket])

    def sockets(self, user: str) -> tuple[Socket, ...]:
        """The open sockets of `user`."""
        return self._sockets.get(user, ())

    def sync_sockets(self, user: str, without: Socket | None = None) -> list[Socket]:
        """The open sync sockets of `user`, except the socket `without`."""
        return [socket for socket in self._sockets.get(user, ()) if socket.sync and socket is not without]

    def may_listen(self, users: Iterable[str]) -> bool:
        """Whether `notify` may find a sync socket."""
        return self.forward is not None or not self.sync_users.isdisjoint(users)

    def may_be_online(self, users: Mapping[str, object]) -> Set[str]:
        """Those of the users who may have a socket at some process."""
        return users.keys() if self.forward else self._sockets.keys() & users.keys()

    def notify(
        self,
        users: Collection[str],
        frame: bytes,
        *,
        without: Socket | None = None,
        to_all: bool = False,
        optional: bool = False,
        group: int = 0,
    ) -> None:
        """Send a frame to the sync sockets of users except `without`, or `to_all` their sockets, at all processes.

        An `optional` frame is sent only while there is room. The users are members of the group with the number
        `group`; another process sends the frame only to those who are members still.
        """
        self.notify_here(users, frame, without=without, to_all=to_all, optional=optional)
        if self.forward:
            self.forward(users, frame, to_all=to_all, optional=optional, group=group)

    def notify_here(
        self,
        users: Iterable[str],
        frame: bytes,
        *,
        without: Socket | None = None,
        to_all: bool = False,
        optional: bool = False,
    ) -> None:
        """As `notify`, but only at this process."""
        for user in users:
            for socket in self.sockets(user) if to_all else self.sync_sockets(user, without):
                (socket.offer if optional else socket.send)(frame)

    def online(self, user: str) -> bool:
        """Whether `user` has a socket open."""
        return user in self._sockets

    def sockets_among(self, users: Mapping[str, object]) -> dict[str, tuple[Socket, ...]]:
        """The open sockets of those of the users who have any."""
        return {user: self._sockets[user] for user in self._sockets.keys() & users.keys()}

    def users(self) -> int:
        """How many users have a socket open."""
        return len(self._sockets)

    async def broadcast(self, sender: str, frame: bytes, without: Socket | None = None) -> int:
        """Send to every socket of every other user, and to the sender's sync sockets except `without`.

        Returns the number of users it reached. Never waits for a reader; other work runs in between.
        """
        reached = 0
        budget = BROADCAST_STRIDE
        for user, sockets in list(self._sockets.items()):
            for socket in sockets:
                if user != sender or (socket.sync and socket is not without):
                    socket.offer(frame)
                    budget -= 1
            reached += user != sender
            if budget <= 0:
                await asyncio.sleep(0)
                budget = BROADCAST_STRIDE
        return reached

    async def end(self, user: str, *, only: bytes | None = None, keep: bytes | None = None) -> None:
        """Close the sockets of ended sessions with 4001, and wait until none of their requests is in work.

        The ended sessions are `only` that one, or all sessions of the user except `keep`.
        """
        self.endings += 1
        open_or_closing = (*self.sockets(user), *(socket for socket in self._leaving if socket.user == user))
        ended = {s for s in open_or_closing if (s.session == only if only else s.session != keep)}
        self._leaving |= ended  # all at once: leaving one by one would take quadratic time
        self._keep(user, [socket for socket in self.sockets(user) if socket not in ended])
        for socket in ended:
            socket.close(4001, "the session ended")
        for socket in ended:
            await socket.wait_idle()

    def _keep(self, user: str, sockets: Collection[Socket]) -> None:
        if sockets:
            self._sockets[user] = tuple(sockets)
        else:
            self._sockets.pop(user, None)
        if any(socket.sync for socket in sockets):
            self.sync_users.add(user)
        else:
            self.sync_users.discard(user)
        self.changed(user)

    def __iter__(self) -> Iterator[Socket]:
        return iter([socket for sockets in self._sockets.values() for socket in sockets])

    def __len__(self) -> int:
        return sum(map(len, self._sockets.values()))
