"""One client of the soak test: it sends, reads, marks, deletes, and ends connections in various ways."""

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
from tests.soak.device_socket import DeviceSocket
from tests.soak.ledger import Ledger, SentMessage

MAX_TEXT = 2000  # characters
MUTE_SHARE = 0.2  # of all sockets answer no ping

Action = Callable[[DeviceSocket], Awaitable[None]]


class Pace(NamedTuple):
    """The activity of a client: the sizes of its batches of messages, and the longest pause in seconds."""

    batch_sizes: Sequence[int]
    max_pause: float


class Device:
    """A client of `user` that writes to `peers`, to `groups`, and to `silent_peers`, which never answer.

    A client without receivers only reads and marks.
    Before any other action, a client sends its unacknowledged messages again, in order, as docs/clients.md requires.
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
        silent_peers: Sequence[str] = (),
        groups: Sequence[str] = (),
        sync: bool = False,
    ) -> None:
        self.name = name
        self.draining = False  # whether to end as soon as all messages are acknowledged
        self._ledger = ledger
        self._server = server
        self._random = random.Random(f"{seed} {name}")
        self._pace = pace
        self.user = user
        self.peers = peers
        self._receivers = [*peers, *silent_peers, *groups]
        self._silent_peers = frozenset(silent_peers)
        self._sync = sync
        self._socket: raw.RawSocket | None = None
        self._outbox: dict[SentMessage, None] = {}  # unacknowledged, in the order of sending
        self._count = 0
        self._received: deque[SentMessage] = deque(maxlen=200)
        # relative frequencies
        self._actions: dict[Action, int] = {self._listen: 20, self._mark: 8, self._stall: 2, self._vanish: 2}
        if self._receivers:
            self._actions |= {
                self._send: 50,
                self._page: 6,
                self._unread: 4,
                self._delete: 2,
                self._cut: 2,
                self._typing: 8,
            }
            self._actions |= {DeviceSocket.conversations: 2, self._broadcast: 1, self._typing: 8}

    async def run(self) -> None:
        """Open one socket after another until `draining` is set and all messages are acknowledged."""
        while not self._done():
            try:
                with closing(await raw.connect(self._server)) as sock:
                    self._socket = raw.RawSocket(sock, self.user)
                    await self._open(self._socket)
            except (raw.ConnectionCut, ConnectionError):
                self._ledger.counts["connections lost"] += 1
            except TimeoutError:
                self._ledger.fault(
                    f"{self.name} got no answer in time; {len(self._outbox)} messages are unacknowledged"
                )
            finally:
                self._socket = None
            await asyncio.sleep(self._random.uniform(0.01, 0.2))

    def reset(self) -> None:
        """Reset the connection."""
        if self._socket:
            with suppress(OSError):  # it may have ended already
                self._socket.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self._socket.sock.shutdown(socket.SHUT_RDWR)

    def _done(self) -> bool:
        return self.draining and not self._outbox

    async def _open(self, wire: raw.RawSocket) -> None:
        await wire.write(raw.upgrade(self._server, self.user, sync=self._sync))
        if (status := await wire.status()) != 101:
            # 429: the server is shutting down; 503: a store is away.
            if status != 429 and (status != 503 or self._ledger.steady):
                self._ledger.fault(f"{self.name} got no socket: {wire.response!r}")
            return
        mute = self._random.random() < MUTE_SHARE
        client = DeviceSocket(self._ledger, wire, self.name, self._outbox, self._received, sync=self._sync, mute=mute)
        await client.read_answers()
        while not self._done():
            if self._outbox:
                await client.send(list(self._outbox))
                await client.read_answers()
            if self._outbox:
                await asyncio.sleep(self._random.uniform(0.1, 1))  # a store is away
            elif not self.draining:
                [action] = self._random.choices(list(self._actions), list(self._actions.values()))
                await action(client)
                await client.read_answers()
                await asyncio.sleep(self._random.uniform(0, self._pace.max_pause))

    # --- actions

    async def _send(self, client: DeviceSocket) -> None:
        for _ in range(self._random.randint(1, 3)):
            peer = self._random.choice(self._receivers) if self._random.random() < 0.7 else None
            count = 1 if peer in self._silent_peers else self._random.choice(self._pace.batch_sizes)
            messages = [self.new(peer or self._random.choice(self._receivers)) for _ in range(count)]
            self._outbox |= dict.fromkeys(messages)
            await client.send(messages)

    def new(self, peer: str) -> SentMessage:
        """Return a new message to `peer`."""
        self._count += 1
        id = f"{self.name}-{self._count}"
        more = self._random.choice(("hello", "two\nlines", "漢字 \U0001f600", "x" * self._random.randint(1, MAX_TEXT)))
        message = SentMessage(
            *(self.user, peer, id, f"{id} {more}", self.name, self._count),
            limited=peer in self._silent_peers,
            group=self._ledger.groups.get(peer),
        )
        self._ledger.add(message)
        return message

    async def _listen(self, client: DeviceSocket) -> None:
        await asyncio.sleep(self._random.uniform(0.01, 0.3))
        await client.read_sent()

    async def _page(self, client: DeviceSocket) -> None:
        count = self._random.randint(1, 200)
        content = self._random.choice((f"-{count}", f"{self._random.randint(0, 1000)}-{count}"))
        await client.page(self._random.choice(self._receivers), 2, content)

    async def _unread(self, client: DeviceSocket) -> None:
        await client.page(self._random.choice(self._receivers), 3, str(self._random.randint(1, 200)))

    async def _mark(self, client: DeviceSocket) -> None:
        if messages := self._some(self._received):
            await client.mark(messages[0].peer, messages)

    async def _delete(self, client: DeviceSocket) -> None:
        if messages := self._some([message for message in self._received if not message.group]):
            await client.delete(messages[0].sender, messages[:3])

    def _some(self, messages: Sequence[SentMessage]) -> list[SentMessage]:
        """Return a few of the messages, of one conversation, that no client has tried to delete."""
        kept = [message for message in messages if not message.may_be_deleted]
        peer = self._random.choice(kept).peer if kept else ""
        return [message for message in kept if message.peer == peer][-self._random.randint(1, 50) :]

    async def _broadcast(self, client: DeviceSocket) -> None:
        await client.broadcast("to all")

    async def _typing(self, client: DeviceSocket) -> None:
        await client.typing(self._random.choice(self._receivers), self._random.choice("10"))

    async def _stall(self, client: DeviceSocket) -> None:
        await asyncio.sleep(self._random.uniform(0.1, 1))

    async def _cut(self, client: DeviceSocket) -> None:
        """Send a part of a message, then reset the connection."""
        message = self.new(self._random.choice(self._receivers))
        self._outbox[message] = None
        request = raw.request(1, message.content, to=message.receiver)
        await client.socket.write(request[: self._random.randint(1, len(request))])
        message.tries += 1
        client.socket.reset()
        raise raw.ConnectionCut("by this client")

    async def _vanish(self, client: DeviceSocket) -> None:
        raise raw.ConnectionCut("by this client")
