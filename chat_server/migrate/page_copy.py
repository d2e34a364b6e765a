"""Copies the blocks or groups of users from one store to another, and compares them."""

import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol, TypeVar

import msgspec

from chat_server.migrate.advice import RETRY
from chat_server.utils.errors import StartError

Item = TypeVar("Item")


class PagedStore(Protocol[Item]):
    """A store that is read and written in pages, in one order on every backend."""

    def pages(self, count: int, /) -> AsyncIterator[list[Item]]: ...
    async def put(self, items: Sequence[Item], /) -> None: ...


async def copy_pages(
    what: str, source: PagedStore[Item], target: PagedStore[Item], size: int, plain: Callable[[Item], object]
) -> str:
    """Copy all items, `size` at a time, and return a summary. Raises StartError if source and target then differ.

    `what` names the items in texts. `plain` makes one of values that MessagePack encodes, equal for equal items.
    """
    async for page in source.pages(size):
        await target.put(page)
    (count, digest), copied = await _digest(source, size, plain), await _digest(target, size, plain)
    if copied != (count, digest):
        raise StartError(f"{what} differ: {count} in the source, {copied[0]} in the target; {RETRY}")
    return f"{what}: {count}, the same on both sides (digest of {what} {digest})"


async def _digest(store: PagedStore[Item], size: int, plain: Callable[[Item], object]) -> tuple[int, str]:
    """Return the number of items, and a digest of them in their order."""
    count, digest = 0, hashlib.sha256()
    async for page in store.pages(size):
        for item in page:
            digest.update(msgspec.msgpack.encode(plain(item)))
        count += len(page)
    return count, digest.hexdigest()[:32]
