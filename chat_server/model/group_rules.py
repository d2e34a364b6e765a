"""The rules of groups. Every GroupStore applies them within its transactions."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import msgspec

from chat_server.model.groups import Group, GroupLimits, GroupProblem, GroupRefusal

Removal = Callable[[Group | None], Group | GroupRefusal]  # `remove_member` or `remove_all_members` for a group


class JoinFacts(NamedTuple):
    """What the store contains about users that are to join a group."""

    present: Collection[str]  # the users that exist and are not removed; the caller may be among them
    blocking: Collection[str]  # the users that block the caller
    memberships: Mapping[str, int]  # the number of groups of each user; a user without groups may be missing


def check_size(members: int, joining: Sequence[str], limits: GroupLimits) -> GroupRefusal | None:
    """Return a refusal if the users `joining` do not fit into a group of `members` members."""
    return GroupRefusal(GroupProblem.GROUP_FULL) if members + len(joining) > limits.members else None


def check_joining(by: str, joining: Sequence[str], facts: JoinFacts, limits: GroupLimits) -> GroupRefusal | None:
    """Return a refusal if the user `by` cannot add all users in `joining`. It names the first user with a problem."""
    if by not in facts.present:
        return GroupRefusal(GroupProblem.NO_SUCH_USER, by)
    for user in joining:
        if user not in facts.present:
            return GroupRefusal(GroupProblem.NO_SUCH_USER, user)
        if user in facts.blocking:
            return GroupRefusal(GroupProblem.BLOCKED, user)
        if facts.memberships.get(user, 0) >= limits.groups:
            return GroupRefusal(GroupProblem.TOO_MANY, user)
    return None


def add_members(group: Group, joining: Sequence[str], since: int) -> Group:
    """Return the group with the users `joining`, who join at the time `since`."""
    return msgspec.structs.replace(group, members={**group.members, **dict.fromkeys(joining, since)})


def remove_member(group: Group | None, by: str, user: str) -> Group | GroupRefusal:
    """Return the group after the user `by` has removed `user`.

    If the owner leaves, the member with the earliest time of joining becomes the owner; of several, the lesser name.
    """
    if group is None or by not in group.members:
        return GroupRefusal(GroupProblem.NO_SUCH_GROUP)
    if by not in (user, group.owner):
        return GroupRefusal(GroupProblem.NOT_YOURS)
    if user not in group.members:
        return GroupRefusal(GroupProblem.NO_SUCH_USER, user)
    members = {member: since for member, since in group.members.items() if member != user}
    owner = group.owner
    if user == owner and members:
        owner = min(members, key=lambda member: (members[member], member))
    return msgspec.structs.replace(group, owner=owner, members=members)


def remove_all_members(group: Group | None, by: str) -> Group | GroupRefusal:
    """Return the group without members, as its owner `by` deletes it."""
    if group is None or by not in group.members:
        return GroupRefusal(GroupProblem.NO_SUCH_GROUP)
    if by != group.owner:
        return GroupRefusal(GroupProblem.NOT_YOURS)
    return msgspec.structs.replace(group, members={})
