"""What this process tells the other processes of its cluster."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager

from chat_server.cache.backplane import Backplane, Item
from chat_server.model.messages import MessageLog
from chat_server.service.live_groups import LiveGroup
from chat_server.service.packets import BroadcastMessage, Change, Notice, PresenceChanged, encode, pack
from chat_server.service.registry import Registry
from chat_server.service.sending import Batch, Sent
from chat_server.utils.errors import StoreUnavailable
from chat_server.utils.locks import KeyedLock

_NOTHING = encode(Notice(b"", to_all=False, optional=True))  # published only to count the processes of users


class Cluster:
    """Coordinator of several processes. Publishes messages, frames and changes, and keeps the directory."""

    def __init__(self, backplane: Backplane, log: MessageLog, registry: Registry) -> None:
        self._backplane = backplane
        self._locks = KeyedLock()
        self.end_of = log.end_of
        self._registry = registry
        self._opening: Counter[str] = Counter()  # sockets of users that are not in the registry yet
        self.lapsed = backplane.lapsed
        self.start = backplane.start
        registry.forward = self.forward_frame

    def lease_check(self) -> Callable[[], None]:
        """Return a function that raises StoreUnavailable if the lease has ended since, also if there is another now."""
        name = self._backplane.name()

        def check() -> None:
            if self.lapsed() or self._backplane.name() != name:
                raise StoreUnavailable("the lease of this process has ended")

        return check

    def forward(self, batch: Batch) -> Awaitable[None] | None:
        """Publish the stored messages of a batch. Await the result, if there is one, before the batch is answered.

        A message with a receiver at this process is acknowledged without waiting for the others, unless the queue
        is long: then the senders must slow down.
        """
        user, items, published = batch.socket.user, list[Item](), list[Sent]()
        wait = self._backplane.congested()
        for request, sent in zip(batch.requests, batch.results, strict=True):
            peer = batch.receivers[request.to]
            if not isinstance(sent, Sent) or peer in batch.blocked_by:
                continue
            seen, others = [sent.message.receiver], list[str]()
            if isinstance(peer, LiveGroup):
                seen, others = _members(peer, user, sent.added.time)
            if sent.added.new:
                others.append(user)
            if sent.added.new or sent.added.unread:
                items.append(Item(seen, pack(sent.message, sent.added.time), others))
            else:
                items.append(Item(seen, _NOTHING))
            published.append(sent)
            wait = wait or not any(map(self._registry.online, seen))
        if not items:
            return None
        publishing = self._backplane.publish(items)
        return _count(published, publishing) if wait else None

    def forward_frame(
        self, users: Iterable[str], frame: bytes, *, to_all: bool = False, optional: bool = False, group: int = 0
    ) -> None:
        """A Forward of the registry."""
        names = list(users)
        if names and not (optional and self._backplane.congested()):
            self._backplane.publish([Item(names, encode(Notice(frame, to_all, optional, group)))])

    async def broadcast(self, sender: str, content: str, time: int) -> int:
        """Publish a message to all online users. Returns how many others there are. Raises StoreUnavailable."""
        await self._backplane.publish([Item(None, encode(BroadcastMessage(sender, content, time)))])
        return await self._backplane.count_users() - 1

    def tell_presence(self, user: str, online: bool) -> None:
        """Tell the others that a user came online here, or went offline."""
        self._backplane.publish([Item(None, encode(PresenceChanged(self._backplane.name(), user, online)))])

    async def confirm(self, change: Change) -> None:
        """See Coordinator."""
        await self._backplane.confirm(encode(change))

    @asynccontextmanager
    async def hold(self, name: str) -> AsyncIterator[None]:
        """See Coordinator."""
        async with self._locks.hold(name), self._backplane.lock(name):
            yield

    async def open(self, user: str, limit: int) -> bool:
        """Enter a socket that will open into the directory: from now on messages arrive. Raises StoreUnavailable.

        False if the user would have more than `limit` sockets at all processes; 0: no limit. Call `opened` afterwards.
        """
        self._opening[user] += 1
        return await self._enter(user, limit)

    def opened(self, user: str) -> None:
        """The registry has a socket for which `open` was called, or it does not open."""
        self._opening[user] -= 1
        if not self._opening[user]:
            del self._opening[user]
        self._registry.changed(user)

    def sockets_changed(self, user: str) -> None:
        """Enter the number of a user's sockets into the directory."""
        self._enter(user).add_done_callback(_entered)

    def _enter(self, user: str, limit: int = 0) -> asyncio.Future[bool]:
        return self._backplane.set_sockets(user, len(self._registry.sockets(user)) + self._opening[user], limit)


def _entered(entry: "asyncio.Future[bool]") -> None:
    if not entry.cancelled():
        entry.exception()  # the backplane enters it again


async def _count(published: Sequence[Sent], publishing: Awaitable[list[int]]) -> None:
    for sent, accepted in zip(published, await publishing, strict=True):
        sent.elsewhere = accepted


def _members(group: LiveGroup, sender: str, time: int) -> tuple[list[str], list[str]]:
    """The other members who may read a message: those whom the sender sees as online if they are, and the others."""
    blocks = group.blocks.get(sender)
    seen, unseen = list[str](), list[str]()
    for user, since in group.members.items():
        if user != sender and since < time:
            (seen if blocks and user not in blocks.by_others else unseen).append(user)
    return seen, unseen
