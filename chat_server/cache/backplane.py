"""The interface between the server processes of a cluster. A process of `Processes = one` has none."""

import asyncio
from collections.abc import Awaitable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, Protocol


class Item(NamedTuple):
    """A payload for the other processes that have sockets of `users` or `others`; for all of them if `users` is None.

    Only processes with sockets of `users` count as having accepted it.
    """

    users: Sequence[str] | None
    payload: bytes
    others: Sequence[str] = ()


class Receiver(Protocol):
    """Handles what other processes publish, in the order in which each of them published it."""

    async def received(self, users: Sequence[str], payload: bytes) -> None:
        """Handle an item. `users` are those of its users and others with sockets here, according to the directory."""
        ...

    async def apply(self, payload: bytes) -> None:
        """Handle a change for which another process waits. It is called again if it fails."""
        ...

    def appeared(self, node: str, users: Sequence[str]) -> None:
        """Another process listens; these users have sockets there."""
        ...

    def vanished(self, node: str) -> None:
        """Another process listens no more: it has ended, or it may be told nothing now."""
        ...

    async def recover(self, since: int, *, own: bool) -> None:
        """Items published after `since` (microseconds) may be lost. Later items wait until this returns.

        `own`: this process did not receive them. Otherwise, another process may not have published them.
        Called again if it raises StoreUnavailable.
        """
        ...


class Backplane(Protocol):
    """Passes payloads to other processes, and knows which users have sockets there.

    It only notifies: an item may be lost, and then `Receiver.recover` is called.
    """

    def name(self) -> str:
        """Return the name of this process; another one after a lapse."""
        ...

    def lapsed(self) -> bool:
        """Whether this process can no longer be sure that the others know of it. It must then do nothing."""
        ...

    async def ping(self) -> None:
        """Return if this process has its lease and receives what others publish. Raises StoreUnavailable."""
        ...

    def start(self, receiver: Receiver) -> None:
        """Pass what others publish to `receiver` from now on."""
        ...

    def publish(self, items: Sequence[Item]) -> Awaitable[list[int]]:
        """Publish items in the order of the calls, also if the result is not awaited.

        Returns how many processes accepted each; 0 if Redis fails.
        """
        ...

    def congested(self) -> bool:
        """Whether the queue is long: callers of `publish` should then wait for the result, or drop optional items."""
        ...

    async def confirm(self, payload: bytes) -> None:
        """Return when every other process has applied a change, or can do nothing more. Raises StoreUnavailable."""
        ...

    def lock(self, name: str) -> AbstractAsyncContextManager[None]:
        """Hold the lock `name`, which one process at a time can hold. Raises StoreUnavailable."""
        ...

    def set_sockets(self, user: str, sockets: int, limit: int = 0) -> asyncio.Future[bool]:
        """Enter the number of a user's sockets here into the directory, in the order of the calls.

        Returns False and enters nothing if the user would have more than `limit` sockets at all processes; 0: no limit.
        Raises StoreUnavailable.
        """
        ...

    async def count_users(self) -> int:
        """Return how many users have sockets at any process, this one included. Raises StoreUnavailable."""
        ...
