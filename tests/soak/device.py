"""One client of a soak: it sends, reads, marks, deletes, and leaves in all the ways there are."""

import asyncio
import random
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing, suppress
from typing import NamedTuple

from tests import raw
from tests.harness import ServerHandle
from tests.soak.ledger import Ledger, Said
from tests.soak.session import Session

LONGEST = 2000  # characters of a text
MUTE = 0.2  # of all sockets answer no ping

Deed = Callable[[Session], Awaitable[None]]


class Pace(NamedTuple):
    """How much a client does: how many messages it sends at once, one of `runs`; the longest `pause`, in seconds."""

    runs: Sequence[int]
    pause: float


class Device:
    """A client of `user`, who writes to `peers`, and to those in `strangers` as often as the limit lets him.

    One without either only listens, and marks what it got.
    What was not acknowledged is sent again, in order, before anything else, as docs/clients.md asks of a client.
    """

    def __init__(
        self,
        ledger: Ledger,
        server: ServerHandle,
        seed: int,
        pace: Pace,
        name: str,
        user: str,
        peers: Sequence[str],
        *,
        strangers: Sequence[str] = (),
        sync: bool = False,
    ) -> None:
        self.name = name
        self.draining = False  # it shall send what is left, and end
        self._ledger = ledger
        self._server = server
        self._random = random.Random(f"{seed} {name}")
        self._pace = pace
        self.user = user
        self.peers = peers
        self._receivers = [*peers, *strangers]
        self._strangers = frozenset(strangers)
        self._sync = sync
        self._socket: raw.RawSocket | None = None
        self._outbox: dict[Said, None] = {}  # not acknowledged yet, in the order of sending
        self._count = 0
        self._got: deque[Said] = deque(maxlen=200)
        # what it does, and how often in comparison
        self._deeds: dict[Deed, int] = {self._listen: 20, self._mark: 8, self._stall: 2, self._vanish: 2}
        if self._receivers:
            self._deeds |= {self._send: 50, self._page: 6, self._unread: 4, self._delete: 2, self._cut: 2}
            self._deeds |= {Session.conversations: 2, self._broadcast: 1}

    async def run(self) -> None:
        """Open sockets, one after the other, until it shall end and all is sent."""
        while not self._done():
            try:
                with closing(await raw.connect(self._server)) as sock:
                    self._socket = raw.RawSocket(sock, self.user)
                    await self._open(self._socket)
            except (raw.ConnectionCut, ConnectionError):
                self._ledger.counts["connections lost"] += 1
            except TimeoutError:
                self._ledger.blame(f"{self.name} waited too long, {len(self._outbox)} messages are not acknowledged")
            finally:
                self._socket = None
            await asyncio.sleep(self._random.uniform(0.01, 0.2))

    def reset(self) -> None:
        """Cut the connection, whatever it is doing."""
        if self._socket:
            with suppress(OSError):  # it may be gone already
                self._socket.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self._socket.sock.shutdown(socket.SHUT_RDWR)

    def _done(self) -> bool:
        return self.draining and not self._outbox

    async def _open(self, wire: raw.RawSocket) -> None:
        await wire.write(raw.upgrade(self._server, self.user, sync=self._sync))
        if (status := await wire.status()) != 101:
            # 429: the server is going away; 503: a store is.
            if status != 429 and (status != 503 or self._ledger.steady):
                self._ledger.blame(f"{self.name} got no socket: {wire.response!r}")
            return
        mute = self._random.random() < MUTE
        session = Session(self._ledger, wire, self.name, self._outbox, self._got, sync=self._sync, mute=mute)
        await session.answers()
        while not self._done():
            if self._outbox:
                await session.send(list(self._outbox))
                await session.answers()
            if self._outbox:
                await asyncio.sleep(0.1)  # a store is away
            elif not self.draining:
                [deed] = self._random.choices(list(self._deeds), list(self._deeds.values()))
                await deed(session)
                await session.answers()
                await asyncio.sleep(self._random.uniform(0, self._pace.pause))

    # --- what it does

    async def _send(self, session: Session) -> None:
        for _ in range(self._random.randint(1, 3)):
            peer = self._random.choice(self._receivers) if self._random.random() < 0.7 else None
            count = 1 if peer in self._strangers else self._random.choice(self._pace.runs)
            messages = [self.new(peer or self._random.choice(self._receivers)) for _ in range(count)]
            self._outbox |= dict.fromkeys(messages)
            await session.send(messages)

    def new(self, peer: str) -> Said:
        """A message to `peer`, not sent yet."""
        self._count += 1
        id = f"{self.name}-{self._count}"
        more = self._random.choice(("hello", "two\nlines", "漢字 \U0001f600", "x" * self._random.randint(1, LONGEST)))
        said = Said(self.user, peer, id, f"{id} {more}", self.name, self._count, stranger=peer in self._strangers)
        self._ledger.say(said)
        return said

    async def _listen(self, session: Session) -> None:
        await asyncio.sleep(self._random.uniform(0.01, 0.3))
        await session.listen()

    async def _page(self, session: Session) -> None:
        count = self._random.randint(1, 200)
        content = self._random.choice((f"-{count}", f"{self._random.randint(0, 1000)}-{count}"))
        await session.page(self._random.choice(self._receivers), 2, content)

    async def _unread(self, session: Session) -> None:
        await session.page(self._random.choice(self._receivers), 3, str(self._random.randint(1, 200)))

    async def _mark(self, session: Session) -> None:
        if messages := self._some(self._got):
            await session.mark(messages[0].sender, messages)

    async def _delete(self, session: Session) -> None:
        if messages := self._some(self._got):
            await session.delete(messages[0].sender, messages[:3])

    def _some(self, messages: Sequence[Said]) -> list[Said]:
        """A few of them from one user, which nobody has tried to delete."""
        there = [said for said in messages if not said.may_be_gone]
        sender = self._random.choice(there).sender if there else ""
        return [said for said in there if said.sender == sender][-self._random.randint(1, 50) :]

    async def _broadcast(self, session: Session) -> None:
        await session.broadcast("to all")

    async def _stall(self, session: Session) -> None:
        await asyncio.sleep(self._random.uniform(0.1, 1))

    async def _cut(self, session: Session) -> None:
        """An RST behind a message, half of which was sent."""
        message = self.new(self._random.choice(self._receivers))
        self._outbox[message] = None
        request = raw.request(1, message.content, to=message.receiver)
        await session.socket.write(request[: self._random.randint(1, len(request))])
        message.tries += 1
        session.socket.reset()
        raise raw.ConnectionCut("by this client")

    async def _vanish(self, session: Session) -> None:
        raise raw.ConnectionCut("by this client")
