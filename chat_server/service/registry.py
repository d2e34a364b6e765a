"""Who is connected: user -> sockets. The one seam behind which a second process would fit."""

import asyncio
from collections.abc import Collection, Iterator
from typing import Protocol

import msgspec

# Between two turns of the loop a broadcast goes to at most so many sockets.
BROADCAST_STRIDE = 50


class Receipt(msgspec.Struct, gc=False):
    """A delivered message, without its text; `proven` once one of the receiver's sockets has shown that it arrived."""

    sender: str
    id: str
    time: int
    proven: bool = False


class Socket(Protocol):
    """A connected client, as the services see it."""

    @property
    def user(self) -> str:
        """Whose socket it is."""
        ...

    @property
    def peer(self) -> str:
        """To whom a frame without `to` goes; empty if to nobody."""
        ...

    @property
    def session(self) -> bytes:
        """The digest of the session that opened it."""
        ...

    @property
    def sync(self) -> bool:
        """Whether it also wants to know what happens on other devices."""
        ...

    def send(self, frame: bytes) -> None:
        """Send a frame; one that is closing takes it and forgets it. Never waits."""
        ...

    def offer(self, frame: bytes) -> None:
        """Send a frame that may be left out where much waits for the reader."""
        ...

    def deliver(self, frame: bytes, receipt: Receipt) -> None:
        """Send a message's frame, and report the receipt once it has provably arrived."""
        ...

    async def room(self) -> None:
        """Wait until the reader has taken what waits for it; at once if that is little."""
        ...

    def close(self, code: int, why: str) -> None:
        """Close it; if that is under way already, its frames that are not worked on yet are forgotten all the same."""
        ...

    async def idle(self) -> None:
        """Wait until no frame from it is being worked on."""
        ...


class Registry:
    """The sockets of this process, by user."""

    def __init__(self) -> None:
        self._sockets: dict[str, tuple[Socket, ...]] = {}
        self._leaving: set[Socket] = set()
        self.endings = 0  # grows whenever sessions end: an upgrade under way meanwhile must look again

    def add(self, socket: Socket) -> None:
        """A socket that is open from now on."""
        self._sockets[socket.user] = (*self.sockets(socket.user), socket)

    def leave(self, socket: Socket) -> None:
        """A socket that is closing, or gone: nothing is delivered to it any more, but frames of its may be in work."""
        self.remove(socket)
        self._leaving.add(socket)

    def remove(self, socket: Socket) -> None:
        """A socket that is gone, and so are its frames; without effect if it was not there."""
        self._leaving.discard(socket)
        if socket in (sockets := self.sockets(socket.user)):
            self._keep(socket.user, [other for other in sockets if other is not socket])

    def sockets(self, user: str) -> tuple[Socket, ...]:
        """The sockets that `user` has open."""
        return self._sockets.get(user, ())

    def online(self, user: str) -> bool:
        """Whether `user` has a socket open."""
        return user in self._sockets

    def users(self) -> int:
        """How many users have a socket open."""
        return len(self._sockets)

    async def broadcast(self, sender: Socket, frame: bytes) -> int:
        """Send to every socket of every other user, and to the sender's other sync sockets.

        Returns how many users it reached. Waits for no reader, and lets the loop go on meanwhile.
        """
        reached = 0
        budget = BROADCAST_STRIDE
        for user, sockets in list(self._sockets.items()):
            for socket in sockets:
                if user != sender.user or (socket.sync and socket is not sender):
                    socket.offer(frame)
                    budget -= 1
            reached += user != sender.user
            if budget <= 0:
                await asyncio.sleep(0)
                budget = BROADCAST_STRIDE
        return reached

    async def end(self, user: str, *, only: bytes | None = None, keep: bytes | None = None) -> None:
        """Close the sockets of ended sessions with 4001, and wait until no frame of theirs is being worked on.

        `only` that session's, or all of the user's but the session `keep`'s.
        """
        self.endings += 1
        open_or_closing = (*self.sockets(user), *(socket for socket in self._leaving if socket.user == user))
        ended = {s for s in open_or_closing if (s.session == only if only else s.session != keep)}
        self._leaving |= ended  # all together: to leave one by one takes the longer the more they are
        self._keep(user, [socket for socket in self.sockets(user) if socket not in ended])
        for socket in ended:
            socket.close(4001, "the session ended")
        for socket in ended:
            await socket.idle()

    def _keep(self, user: str, sockets: Collection[Socket]) -> None:
        if sockets:
            self._sockets[user] = tuple(sockets)
        else:
            self._sockets.pop(user, None)

    def __iter__(self) -> Iterator[Socket]:
        return iter([socket for sockets in self._sockets.values() for socket in sockets])

    def __len__(self) -> int:
        return sum(map(len, self._sockets.values()))
