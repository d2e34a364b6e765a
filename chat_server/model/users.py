"""What a store of users must do."""

from collections.abc import AsyncIterator, Sequence
from enum import IntEnum
from typing import Protocol

import msgspec


class State(IntEnum):
    """What a user may do. The numbers are kept in the stores."""

    ENABLED = 0
    DISABLED = 1  # no login; what is sent to it waits
    REMOVED = 2  # the name alone is left: nobody gets it, nothing is sent to it, what was said with it can be read


class User(msgspec.Struct, frozen=True):
    """A user: the name (NFC, case-sensitive) and the bcrypt hash of the password, empty if there is none."""

    name: str
    password: str
    state: State = State.ENABLED


class UserStore(Protocol):
    """Users, kept for good. Every method raises StoreUnavailable when the store does not answer."""

    async def add(self, user: User) -> None:
        """Add a user. Raises Duplicate if the name is taken, also when two come at once."""
        ...

    async def get(self, name: str) -> User | None:
        """The user of exactly that name: A is not a, and é is not e."""
        ...

    async def set_password(self, name: str, old: str, new: str) -> bool:
        """Replace the hash `old` by `new`; False, changing nothing, if it is no longer `old`."""
        ...

    async def enabled(self, names: Sequence[str]) -> set[str]:
        """Those of the names, at most a thousand, that are users who may log in."""
        ...

    async def set_state(self, name: str, state: State) -> bool:
        """Change the state; False if there is no such user."""
        ...

    async def remove(self, name: str) -> bool:
        """Forget the user, so that the name is free; False if there is no such user."""
        ...

    async def ping(self) -> None:
        """Return if the store answers."""
        ...


class ExportableUsers(UserStore, Protocol):
    """What moving users to another store needs besides."""

    async def count(self) -> int:
        """How many there are."""
        ...

    def pages(self, count: int) -> AsyncIterator[list[User]]:
        """All users in the order of their names' code points, at most `count` at a time."""
        ...

    async def put(self, users: Sequence[User]) -> None:
        """Add those whose names are free; the others stay as they are."""
        ...
