"""Copies blocks between two stores of users, and compares them."""

from chat_server.migrate.advice import NOT_EMPTY
from chat_server.migrate.page_copy import copy_pages
from chat_server.model.blocks import PAGE, ExportableBlocks
from chat_server.utils.errors import StartError


async def copy_blocks(source: ExportableBlocks, target: ExportableBlocks) -> str:
    """Copy all blocks; return a sentence about it. Raises StartError if the target has others."""
    await _refuse_others(source, target)
    return await copy_pages("blocks", source, target, PAGE, lambda block: block)


async def _refuse_others(source: ExportableBlocks, target: ExportableBlocks) -> None:
    """Raise StartError for a block that the target has and the source has not."""
    async for page in target.pages(PAGE):
        if other := set(page) - await source.existing(page):
            blocker, blocked = min(other)
            raise StartError(f"in the target, {blocker!r} blocks {blocked!r}, but not in the source: {NOT_EMPTY}")
