"""The directory of a cluster in Redis: which users have sockets at which node. Each node writes its own hash."""

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

from chat_server.cache.redis import Scripts
from chat_server.cache.redis_changes import USERS
from chat_server.cache.redis_nodes import DIRECTORY_SECONDS
from chat_server.utils.batch import Batcher

# Users per script. A script that runs long delays all nodes.
MAX_USERS = 1000


class DirectoryEntry(NamedTuple):
    """A number of sockets at this node; `limit` of the sockets at all nodes, 0 for none."""

    user: str
    sockets: int
    limit: int


class RedisDirectory:
    """The entries of this node, whose current `name` may change. `channels`: see RedisChanges."""

    def __init__(self, scripts: Scripts, channels: str, name: Callable[[], str], timeout: float) -> None:
        self._scripts = scripts
        self._channels = channels
        self._name = name
        self.prefix = f"{scripts.prefix}sockets:"  # of the keys of all nodes
        self.incomplete = False  # an entry could not be written
        self._sockets: dict[str, int] = {}  # the entries as they should be; 0 until the entry is deleted
        self._entering: Batcher[DirectoryEntry, bool] = Batcher(
            self._enter, most=MAX_USERS, timeout=timeout, name=scripts.name
        )

    def set_sockets(self, user: str, sockets: int, limit: int = 0) -> asyncio.Future[bool]:
        """See Backplane."""
        self._sockets[user] = sockets
        return self._entering.submit(DirectoryEntry(user, sockets, limit))

    async def count_users(self) -> int:
        """See Backplane."""
        count: int = await self._scripts.run("users_count", ["nodes"], [self._name(), self.prefix, self._channels])
        return count

    async def publish_users(self, node: str, header: bytes) -> None:
        """Publish a message to this node: `header`, and a record USERS of another node. Raises StoreUnavailable."""
        channel, payload = self._channels + self._name(), USERS + node.encode()
        await self._scripts.run("publish_users", [f"sockets:{node}"], [channel, header, payload])

    async def write_all(self) -> None:
        """Write all entries of this node, in order with other changes of them. Raises StoreUnavailable."""
        entering = [self._entering.submit(DirectoryEntry(user, sockets, 0)) for user, sockets in self._sockets.items()]
        for entered in await asyncio.gather(*entering, return_exceptions=True):
            if isinstance(entered, BaseException):
                raise entered

    async def flush(self) -> None:
        """Return when no entry waits."""
        await self._entering.flush()

    async def _enter(self, entries: Sequence[DirectoryEntry]) -> Sequence[bool]:
        name = self._name()
        arguments: list[str | int] = [name, self.prefix, self._channels, int(DIRECTORY_SECONDS * 1000)]
        for entry in entries:
            arguments += entry
        try:
            entered = await self._scripts.run("sockets_set", ["nodes", f"sockets:{name}"], arguments)
        except BaseException:
            self.incomplete = True
            raise
        for entry in entries:
            if not entry.sockets and not self._sockets.get(entry.user):
                self._sockets.pop(entry.user, None)
        return [bool(one) for one in entered]
