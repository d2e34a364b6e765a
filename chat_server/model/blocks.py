"""The interface of a store of blocks: which user blocks which (docs/protocol.md section 3, promise 6)."""

from collections.abc import AsyncIterator, Sequence
from enum import Enum, auto
from typing import Protocol

# A block: the user that blocks, the user that is blocked. A user is blocked as a member of conversations, so that
# groups can apply the same blocks.
Block = tuple[str, str]

MAX_BLOCKED = 1000  # users that one user can block
PAGE = 1000  # blocks per call of `existing` and `put`


class BlockResult(Enum):
    """The result of a request to block a user."""

    BLOCKED = auto()  # now or earlier
    NO_SUCH_USER = auto()  # one of the two does not exist or is removed
    TOO_MANY = auto()


class BlockStore(Protocol):
    """Durable blocks between two different users, stored with the users.

    Every method raises StoreUnavailable if the store does not answer.
    """

    async def block(self, blocker: str, blocked: str) -> BlockResult:
        """Store a block unless the blocker has MAX_BLOCKED others, in one atomic step with both checks.

        The block is durable on return. Once one of the users is removed, it is refused, so `forget` misses none.
        """
        ...

    async def unblock(self, blocker: str, blocked: str) -> None:
        """Delete a block. Idempotent."""
        ...

    async def blocked_by(self, user: str) -> list[str]:
        """Return the users that `user` blocks, ordered by the code points of their names."""
        ...

    async def existing(self, blocks: Sequence[Block]) -> set[Block]:
        """Return which of these blocks, at most PAGE, exist."""
        ...

    async def forget(self, user: str, *, by_others: bool) -> None:
        """Delete all blocks by a removed user; with `by_others` also the blocks of that user by others."""
        ...


class ExportableBlocks(BlockStore, Protocol):
    """What a migration needs in addition."""

    def pages(self, count: int) -> AsyncIterator[list[Block]]:
        """Iterate over all blocks, ordered by the code points of both names, at most `count` at a time."""
        ...

    async def put(self, blocks: Sequence[Block]) -> None:
        """Add blocks, at most PAGE, whatever their number; existing ones stay."""
        ...
