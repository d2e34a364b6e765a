"""Copies groups between two stores of users, and compares them."""

import hashlib

import msgspec

from chat_server.migrate.advice import NOT_EMPTY, RETRY
from chat_server.model.groups import PAGE, ExportableGroups
from chat_server.utils.errors import StartError


async def copy_groups(source: ExportableGroups, target: ExportableGroups) -> str:
    """Copy all groups with their members, and return a summary. Raises StartError if the target has others.

    Groups that are deleted are not copied.
    """
    await _refuse_others(source, target)
    async for page in source.pages(PAGE):
        await target.put(page)
    (count, digest), copied = await _digest(source), await _digest(target)
    if copied != (count, digest):
        raise StartError(f"groups differ: {count} in the source, {copied[0]} in the target; {RETRY}")
    return f"groups: {count}, the same on both sides (digest of groups {digest})"


async def _refuse_others(source: ExportableGroups, target: ExportableGroups) -> None:
    """Raise StartError for a group of the target that the source does not have, or has with other members."""
    async for page in target.pages(PAGE):
        there = {group.number: group for group in await source.get([group.number for group in page])}
        for group in page:
            if group != there.get(group.number):
                what = "has another name, owner or members" if group.number in there else "is missing"
                raise StartError(f"the group {group.name!r} of the target {what} in the source: {NOT_EMPTY}")
    if await target.deleted(0, 1):
        raise StartError(f"the target has a deleted group, and perhaps messages of it: {NOT_EMPTY}")


async def _digest(groups: ExportableGroups) -> tuple[int, str]:
    """Return the number of groups, and a digest of them with their members, in order of their numbers."""
    count, digest = 0, hashlib.sha256()
    async for page in groups.pages(PAGE):
        for group in page:
            members = sorted(group.members.items())
            digest.update(msgspec.msgpack.encode((group.number, group.name, group.owner, members)))
        count += len(page)
    return count, digest.hexdigest()[:32]
