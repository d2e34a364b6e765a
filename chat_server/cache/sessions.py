"""What a store of sessions must do. It sees digests of tokens, never a token."""

from collections.abc import Sequence
from typing import Protocol


class SessionStore(Protocol):
    """Sessions, each with a lifetime in seconds that use renews. Raises StoreUnavailable throughout."""

    async def add(self, digest: bytes, user: str) -> None:
        """Begin a session."""
        ...

    async def use(self, digests: Sequence[bytes]) -> dict[bytes, str]:
        """The users of those sessions that exist, which are thereby renewed."""
        ...

    async def end(self, digest: bytes) -> None:
        """End a session; one that does not exist is ended already."""
        ...

    async def end_others(self, user: str, keep: bytes) -> None:
        """End every session of `user` but `keep`."""
        ...

    async def ping(self) -> None:
        """Return if the store answers."""
        ...
