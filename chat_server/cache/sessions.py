"""What a store of sessions must do. It sees digests of tokens, never a token."""

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

import msgspec

# A user's sessions; beyond them a new one ends the one that was not used for longest. So a password change, which ends
# all others, is one short transaction.
MAX_SESSIONS = 100


class SessionStore(Protocol):
    """Sessions, each with a lifetime in seconds that use renews. Raises StoreUnavailable throughout."""

    async def add(self, digest: bytes, user: str) -> None:
        """Begin a session, and end the user's oldest ones beyond MAX_SESSIONS."""
        ...

    async def use(self, digests: Sequence[bytes]) -> dict[bytes, str]:
        """The users of those sessions that exist, which are thereby renewed."""
        ...

    async def end(self, digest: bytes) -> None:
        """End a session; one that does not exist is ended already."""
        ...

    async def end_others(self, user: str, keep: bytes = b"") -> int:
        """End every session of `user` but `keep`; returns how many there were."""
        ...

    async def ping(self) -> None:
        """Return if the store answers."""
        ...


class SessionRecord(msgspec.Struct, frozen=True):
    """A session as it is kept; `expires` in microseconds since the epoch."""

    digest: bytes
    user: str
    expires: int


class ExportableSessions(SessionStore, Protocol):
    """What moving sessions to another store needs besides."""

    def pages(self, count: int) -> AsyncIterator[list[SessionRecord]]:
        """All sessions, about `count` at a time, in no order; one may come twice."""
        ...

    async def peek(self, digests: Sequence[bytes]) -> list[SessionRecord]:
        """Those of these sessions that exist. Unlike `use` it renews none."""
        ...

    async def put(self, sessions: Sequence[SessionRecord]) -> None:
        """Keep these sessions as they are."""
        ...
