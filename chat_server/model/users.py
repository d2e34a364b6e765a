"""The interface of a user store, and its records."""

from collections.abc import AsyncIterator, Sequence
from enum import IntEnum
from typing import Protocol

import msgspec

from chat_server.model.blocks import BlockStore, ExportableBlocks
from chat_server.model.groups import ExportableGroups, GroupStore


class State(IntEnum):
    """What a user may do. The stores contain these numbers."""

    ENABLED = 0
    DISABLED = 1  # cannot log in; messages to the user are stored
    REMOVED = 2  # the name stays reserved; it receives no messages, but its old ones can be read


class User(msgspec.Struct, frozen=True):
    """A user: the name (NFC, case-sensitive) and the bcrypt hash of the password, empty if there is none."""

    name: str
    password: str
    state: State = State.ENABLED


class UserStore(Protocol):
    """Durable users. Every method raises StoreUnavailable if the store does not answer."""

    @property
    def blocks(self) -> BlockStore:
        """The blocks between these users, stored with them."""
        ...

    @property
    def groups(self) -> GroupStore:
        """The groups of these users, stored with them."""
        ...

    async def add(self, user: User) -> None:
        """Add a user. Raises Duplicate if the name is taken, even if both arrive together."""
        ...

    async def get(self, name: str) -> User | None:
        """Return the user of exactly this name: A is not a, and é is not e."""
        ...

    async def set_password(self, name: str, old: str, new: str) -> bool:
        """Replace the hash `old` with `new`. Returns False and changes nothing if the hash is no longer `old`."""
        ...

    async def enabled(self, names: Sequence[str]) -> set[str]:
        """Return the names, of at most a thousand, that belong to users who may log in."""
        ...

    async def set_state(self, name: str, state: State) -> bool:
        """Change the state; False if there is no such user."""
        ...

    async def remove(self, name: str) -> bool:
        """Remove the user, so that the name is free; False if there is no such user.

        Call `blocks.forget` before, and remove the user from all groups.
        """
        ...

    async def ping(self) -> None:
        """Return if the store answers."""
        ...


class ExportableUsers(UserStore, Protocol):
    """What a migration needs in addition."""

    @property
    def blocks(self) -> ExportableBlocks:
        """The blocks between these users."""
        ...

    @property
    def groups(self) -> ExportableGroups:
        """The groups of these users."""
        ...

    async def count(self) -> int:
        """Return the number of users."""
        ...

    def pages(self, count: int) -> AsyncIterator[list[User]]:
        """Iterate over all users, ordered by the code points of their names, at most `count` at a time."""
        ...

    async def put(self, users: Sequence[User]) -> None:
        """Add the users whose names are free; existing users stay unchanged."""
        ...
