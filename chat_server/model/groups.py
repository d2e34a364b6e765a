"""The interface of a store of groups: their names, owners and members, but not their messages."""

from collections.abc import AsyncIterator, Mapping, Sequence
from enum import Enum, auto
from typing import Protocol

import msgspec

PAGE = 100  # groups per call of `get` and `put`


class Group(msgspec.Struct, frozen=True):
    """A group. `members` maps each member to the time of joining in microseconds; it is empty if the group is deleted.

    `number` keys the messages: the time of the group's creation in microseconds. It is never reused, so a new group
    with an old name shows no old messages.
    """

    number: int
    name: str
    owner: str
    members: Mapping[str, int]


class GroupProblem(Enum):
    """Why a group was not created or changed."""

    GROUP_EXISTS = auto()  # another group has the name
    NO_SUCH_GROUP = auto()  # deleted, or the caller is no member
    NO_SUCH_USER = auto()  # a user does not exist or is removed; for `remove`: is no member
    BLOCKED = auto()  # a user blocks the caller
    NOT_YOURS = auto()  # only the owner may do it
    GROUP_FULL = auto()
    TOO_MANY = auto()  # a user is in the maximum number of groups


class GroupRefusal(msgspec.Struct, frozen=True):
    """Nothing was changed. `user` is the user that the problem is about, if any."""

    problem: GroupProblem
    user: str = ""


class GroupLimits(msgspec.Struct, frozen=True):
    """The most members of a group, and the most groups of a user."""

    members: int
    groups: int


class GroupStore(Protocol):
    """Durable groups, stored with the users. Every method raises StoreUnavailable if the store does not answer.

    Each method is one atomic step together with its checks, durable on return. A deleted group keeps its number, but
    not its name, until `forget`.
    """

    async def newest(self) -> int:
        """Return the latest time of joining of all members, 0 if there is none."""
        ...

    async def create(
        self, number: int, name: str, owner: str, users: Sequence[str], limits: GroupLimits
    ) -> Group | GroupRefusal:
        """Create a group of the owner and the users, who all join at the time `number`.

        Duplicates, and the owner among the users, are skipped. Raises Duplicate if the number is in use.
        """
        ...

    async def add(
        self, number: int, by: str, users: Sequence[str], since: int, limits: GroupLimits
    ) -> Group | GroupRefusal:
        """Let the member `by` add users, who join at the time `since`. Members and duplicates are skipped.

        Returns the group as it is now.
        """
        ...

    async def remove(self, number: int, by: str, user: str) -> Group | GroupRefusal:
        """Let the owner remove a member, or a member itself. Returns the group as it is now.

        If the owner leaves, the member with the earliest time of joining becomes the owner; of several, the lesser
        name. If the last member leaves, the group is deleted.
        """
        ...

    async def delete(self, number: int, by: str) -> Group | GroupRefusal:
        """Let the owner delete the group. Returns it without members."""
        ...

    async def find(self, name: str) -> Group | None:
        """Return the group of exactly this name."""
        ...

    async def get(self, numbers: Sequence[int]) -> list[Group]:
        """Return those of these groups, at most PAGE, that exist and are not deleted."""
        ...

    async def numbers_of(self, user: str) -> list[int]:
        """Return the numbers of all groups that have the member `user`."""
        ...

    async def deleted(self, after: int, count: int) -> list[int]:
        """Return the first `count` numbers of deleted groups that are greater than `after`, in order."""
        ...

    async def forget(self, number: int) -> None:
        """Remove the rest of a deleted group. Erase its messages before. Idempotent."""
        ...


class ExportableGroups(GroupStore, Protocol):
    """What a migration needs in addition."""

    def pages(self, count: int) -> AsyncIterator[list[Group]]:
        """Iterate over all groups that are not deleted, ordered by number, at most `count` at a time."""
        ...

    async def put(self, groups: Sequence[Group]) -> None:
        """Add groups, at most PAGE, whatever the limits; those whose numbers are in use stay as they are.

        Raises Duplicate if another group has one of the names.
        """
        ...
