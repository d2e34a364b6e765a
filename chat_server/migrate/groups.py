"""Copies groups between two stores of users, and compares them."""

from chat_server.migrate.advice import NOT_EMPTY
from chat_server.migrate.page_copy import copy_pages
from chat_server.model.groups import PAGE, ExportableGroups, Group
from chat_server.utils.errors import StartError


async def copy_groups(source: ExportableGroups, target: ExportableGroups) -> str:
    """Copy all groups with their members, and return a summary. Raises StartError if the target has others.

    Groups that are deleted are not copied.
    """
    await _refuse_others(source, target)
    return await copy_pages("groups", source, target, PAGE, _plain)


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


def _plain(group: Group) -> object:
    return group.number, group.name, group.owner, sorted(group.members.items())
