"""The interface of a session store, and its records. It gets digests of tokens, never a token."""

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

import msgspec

# Sessions per user. One more ends the session that was unused for longest. The limit keeps a password change, which
# ends all other sessions, a short transaction.
MAX_SESSIONS = 100


class SessionStore(Protocol):
    """Sessions with a lifetime that each use renews. Every method raises StoreUnavailable if the store fails."""

    async def add(self, digest: bytes, user: str) -> None:
        """Start a session and end the user's oldest ones beyond MAX_SESSIONS."""
        ...

    async def use(self, digests: Sequence[bytes]) -> dict[bytes, str]:
        """Return the users of the sessions that exist, and renew these sessions."""
        ...

    async def end(self, digest: bytes) -> None:
        """End a session. Nothing happens if it does not exist."""
        ...

    async def end_others(self, user: str, keep: bytes = b"") -> int:
        """End every session of `user` except `keep`. Returns how many there were."""
        ...

    async def ping(self) -> None:
        """Return if the store answers."""
        ...


class SessionRecord(msgspec.Struct, frozen=True):
    """A session as it is stored; `expires` in microseconds since the epoch."""

    digest: bytes
    user: str
    expires: int


class ExportableSessions(SessionStore, Protocol):
    """What a migration needs in addition."""

    def pages(self, count: int) -> AsyncIterator[list[SessionRecord]]:
        """Iterate over all sessions, about `count` at a time, in no particular order; a session may occur twice."""
        ...

    async def peek(self, digests: Sequence[bytes]) -> list[SessionRecord]:
        """Return the sessions that exist, without renewing them."""
        ...

    async def put(self, sessions: Sequence[SessionRecord]) -> None:
        """Store these sessions as they are."""
        ...
