"""Which user blocks which: a cache over the store, for the rules of docs/protocol.md section 3, promise 6."""

import logging
from collections.abc import Callable, Collection, Iterable, Sequence

from chat_server.model.blocks import PAGE, Block, BlockResult, BlockStore
from chat_server.utils.errors import StoreUnavailable
from chat_server.utils.locks import KeyedLock

log = logging.getLogger(__name__)

# Cached directions of pairs of users, about 30 MiB. A message needs both directions of its pair.
CACHED_BLOCKS = 131072


class Blocks:
    """Answers whether one user blocks another, from the cache or with one lookup in the store.

    This process is the only one that blocks and unblocks. Each change enters the cache and the lookups in progress
    before it is reported as done, so no result is older than the last change. A command alongside the server only
    deletes the blocks of a removed user; `refresh` finds these deletions.
    """

    def __init__(self, store: BlockStore) -> None:
        self._store = store
        self._cached: dict[Block, bool] = {}  # whether the block exists; the oldest entry first
        self._existing: set[Block] = set()  # the cached blocks that exist
        self._lookups: dict[int, dict[Block, bool]] = {}  # what the lookups in progress have found so far
        self.changed: Callable[[Collection[str]], None] = lambda users: None  # called with the users of changed blocks
        self._change_lock = KeyedLock()  # by blocker: the store and the cache see changes in the same order

    def none_between(self, one: str, other: str) -> bool:
        """Whether it is cached that neither user blocks the other."""
        return self._cached.get((one, other)) is False and self._cached.get((other, one)) is False

    def is_cached(self, blocker: str, blocked: str) -> bool:
        """Whether it is cached that `blocker` blocks `blocked`, as it is after each `block`."""
        return (blocker, blocked) in self._existing

    async def states(self, blocks: Iterable[Block], *, cache: bool = True) -> dict[Block, bool]:
        """Return for each block whether it exists; blocks that the store cannot look up now are missing.

        The result is valid until the caller waits for anything. With `cache`, new results are remembered; leave it out
        for long lists of users who do not write to each other, because they would displace the users who do.
        """
        asked = set(blocks)
        states = {block: self._cached[block] for block in asked if block in self._cached}
        if unknown := [block for block in asked if block not in states]:
            try:
                await self._look_up(unknown, states)
            except StoreUnavailable as error:
                log.warning("store unavailable", extra={"error": str(error)})
            if cache:
                for block in unknown:
                    if block in states:
                        self._remember(block, exists=states[block])
        return states

    async def block(self, blocker: str, blocked: str) -> BlockResult:
        """Store a block. Every check after the return sees it. Raises StoreUnavailable."""
        async with self._change_lock.hold(blocker):
            try:
                result = await self._store.block(blocker, blocked)
            except BaseException:  # the store may have changed: `refresh` finds out
                self._change((blocker, blocked), exists=True)
                raise
            if result is BlockResult.BLOCKED:
                self._change((blocker, blocked), exists=True)
            return result

    async def unblock(self, blocker: str, blocked: str) -> None:
        """Delete a block. Raises StoreUnavailable."""
        async with self._change_lock.hold(blocker):
            try:
                await self._store.unblock(blocker, blocked)
            except BaseException:  # likewise
                self._change((blocker, blocked), exists=True)
                raise
            self._change((blocker, blocked), exists=False)

    async def read_again(self, blocker: str, blocked: str) -> None:
        """Note a change by another process. If the store is unavailable, assume a block; `refresh` finds out."""
        block = (blocker, blocked)
        async with self._change_lock.hold(blocker):
            try:
                exists = block in await self._store.existing([block])
            except StoreUnavailable as error:
                log.warning("store unavailable", extra={"error": str(error)})
                exists = True
            self._change(block, exists=exists)

    def clear(self) -> None:
        """Forget everything: changes by other processes may have been missed."""
        self._cached.clear()
        self._existing.clear()

    async def blocked_by(self, user: str) -> list[str]:
        """Return the users that `user` blocks, ordered by name. Raises StoreUnavailable."""
        return await self._store.blocked_by(user)

    async def refresh(self) -> None:
        """Look up the cached blocks again. Raises StoreUnavailable."""
        cached, states = list(self._existing), dict[Block, bool]()
        await self._look_up(cached, states)
        for block in cached:
            self._remember(block, exists=states[block])
        self.changed({user for block in cached if not states[block] for user in block})

    async def _look_up(self, blocks: Sequence[Block], states: dict[Block, bool]) -> None:
        """Add what the store has to `states`. A change made during the lookup enters `states` too, and wins."""
        self._lookups[id(states)] = states
        try:
            for start in range(0, len(blocks), PAGE):
                page = blocks[start : start + PAGE]
                existing = await self._store.existing(page)
                for block in page:
                    states.setdefault(block, block in existing)
        finally:
            del self._lookups[id(states)]

    def _change(self, block: Block, *, exists: bool) -> None:
        for states in self._lookups.values():
            states[block] = exists
        self._remember(block, exists=exists)
        self.changed(block)

    def _remember(self, block: Block, *, exists: bool) -> None:
        self._forget(block)
        if len(self._cached) >= CACHED_BLOCKS:
            self._forget(next(iter(self._cached)))
        self._cached[block] = exists
        if exists:
            self._existing.add(block)

    def _forget(self, block: Block) -> None:
        self._cached.pop(block, None)
        self._existing.discard(block)
