"""The interface between the server processes of a cluster. A process of `Processes = one` has a LocalBackplane."""

from collections.abc import Awaitable, Collection, Sequence
from typing import NamedTuple, Protocol


class Item(NamedTuple):
    """A payload for the other processes that have sockets of `users`; for all other processes if `users` is None."""

    users: Sequence[str] | None
    payload: bytes


class Sockets(NamedTuple):
    """How many sockets, and sync sockets among them, a user has."""

    open: int
    sync: int


class Receiver(Protocol):
    """Handles what other processes publish, in the order in which each of them published it."""

    async def received(self, users: Sequence[str], payload: bytes) -> None:
        """Handle an item. `users` are those with sockets here, according to the directory."""
        ...

    async def apply(self, payload: bytes) -> None:
        """Handle a change for which another process waits. It may be called twice for one change."""
        ...

    async def recover(self, since: int) -> None:
        """Items published after `since` (microseconds) may be lost. Later items wait until this returns."""
        ...


class Backplane(Protocol):
    """Passes payloads to other processes, and knows which users have sockets there.

    It only notifies: an item may be lost, and the processes that may have lost it are told so (`Receiver.recover`).
    """

    has_peers: bool  # whether there can be other processes

    def lapsed(self) -> bool:
        """Whether this process can no longer be sure that the others know of it. It must then do nothing."""
        ...

    def start(self, receiver: Receiver) -> None:
        """Pass what others publish to `receiver` from now on."""
        ...

    def publish(self, items: Sequence[Item]) -> Awaitable[list[int]]:
        """Publish items in the order of the calls, also if the result is not awaited.

        Returns how many processes accepted each; 0 if Redis fails.
        """
        ...

    async def confirm(self, payload: bytes) -> None:
        """Return when every other process has applied a change, or can do nothing more. Raises StoreUnavailable."""
        ...

    def set_sockets(self, user: str, sockets: Sockets) -> Awaitable[int]:
        """Enter the sockets of a user here into the directory. Returns how many the user has elsewhere."""
        ...

    async def find_sockets(self, users: Collection[str]) -> dict[str, Sockets]:
        """Return the users who have sockets at other processes. Raises StoreUnavailable."""
        ...


class LocalBackplane:
    """The Backplane of a single process. Its users call it only where waiting costs nothing."""

    has_peers = False

    def lapsed(self) -> bool:
        return False

    def start(self, receiver: Receiver) -> None:
        """Nobody publishes."""

    async def publish(self, items: Sequence[Item]) -> list[int]:
        return [0] * len(items)

    async def confirm(self, payload: bytes) -> None:
        """Nobody else has to know."""

    async def set_sockets(self, user: str, sockets: Sockets) -> int:
        return 0

    async def find_sockets(self, users: Collection[str]) -> dict[str, Sockets]:
        return {}
