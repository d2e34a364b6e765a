"""Copies blocks between two stores of users, and compares them."""

import hashlib

import msgspec

from chat_server.migrate.advice import NOT_EMPTY, RETRY
from chat_server.model.blocks import PAGE, ExportableBlocks
from chat_server.utils.errors import StartError


async def copy_blocks(source: ExportableBlocks, target: ExportableBlocks) -> str:
    """Copy all blocks; return a sentence about it. Raises StartError if the target has others."""
    await _refuse_others(source, target)
    async for page in source.pages(PAGE):
        await target.put(page)
    (count, digest), copied = await _digest(source), await _digest(target)
    if copied != (count, digest):
        raise StartError(f"blocks differ: {count} in the source, {copied[0]} in the target; {RETRY}")
    return f"blocks: {count}, the same on both sides (digest of blocks {digest})"


async def _refuse_others(source: ExportableBlocks, target: ExportableBlocks) -> None:
    """Raise StartError for a block that the target has and the source has not."""
    async for page in target.pages(PAGE):
        if other := set(page) - await source.existing(page):
            blocker, blocked = min(other)
            raise StartError(f"in the target, {blocker!r} blocks {blocked!r}, but not in the source: {NOT_EMPTY}")


async def _digest(blocks: ExportableBlocks) -> tuple[int, str]:
    """Return the number of blocks, and a digest of them in their order."""
    count, digest = 0, hashlib.sha256()
    async for page in blocks.pages(PAGE):
        for block in page:
            digest.update(msgspec.msgpack.encode(block))
        count += len(page)
    return count, digest.hexdigest()[:32]
