"""Create and change groups, and tell their members (docs/protocol.md section 1, Groups, and section 2, Sync)."""

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from chat_server.model.groups import Group, GroupRefusal, GroupStore
from chat_server.service.additions import Additions
from chat_server.service.coordinator import Coordinator
from chat_server.service.live_groups import LiveGroup, LiveGroups
from chat_server.service.names import GROUP_RULES, is_group_name, normal
from chat_server.service.notices import Notices
from chat_server.service.packets import GroupChanged
from chat_server.service.peers import Peers, no_such_group
from chat_server.service.presence import Presence
from chat_server.status import Reason, Refused, Status
from chat_server.utils.clock import Timeline


class Member(NamedTuple):
    """A member of a group as another member sees it; `since`, the time of joining, in milliseconds."""

    user_name: str
    owner: bool
    online: bool
    since: int


class Groups:
    """The requests of users who create and change groups. The methods raise Refused, StoreUnavailable.

    `settle` waits until all messages to a group that passed their checks are answered. So after the answer to a change,
    nothing is stored or delivered that the old state allowed. A group is locked by its name meanwhile, so notices are
    sent in the order of the changes.
    """

    def __init__(
        self,
        store: GroupStore,
        live: LiveGroups,
        additions: Additions,
        peers: Peers,
        settle: Callable[[LiveGroup], Awaitable[None]],
        presence: Presence,
        notices: Notices,
        timeline: Timeline,
        coordinator: Coordinator,
    ) -> None:
        self._store = store
        self.live = live
        self._additions = additions
        self._peers = peers
        self._settle = settle
        self._presence = presence
        self._notices = notices
        self._timeline = timeline
        self._coordinator = coordinator

    async def create(self, user: str, name: str, users: Sequence[str]) -> None:
        """Create a group. `user` becomes the owner, and `users` are the other members."""
        failed = Status.GROUP_CREATE_FAILED
        name = normal(name)
        if not is_group_name(name):
            raise Refused(failed, Reason.BAD_NAME, f"group: {GROUP_RULES}", field="group")
        others = await self._additions.check(failed, user, users, [user])
        async with self._coordinator.hold(name):
            result = await self._store.create(self._timeline.next(), name, user, others, self._additions.limits)
            if earlier := self.live.named(name):  # it may have been deleted by a request that seemed to fail
                await self._reload(earlier)
            if isinstance(result, GroupRefusal):
                raise self._additions.refusal(failed, result)
            group, _ = self.live.apply(result)
            await self._change(group, [*(f"+{member}" for member in result.members), f"!{user}"])

    async def add(self, user: str, name: str, users: Sequence[str]) -> list[str]:
        """Add users to a group of `user`. Returns the users who joined."""
        failed = Status.GROUP_ADD_FAILED
        group = await self._find(failed, user, name)
        others = await self._additions.check(failed, user, users, group.members)
        async with self._coordinator.hold(group.name):
            # The messages before it stay hidden, also those with the time of another process, whose clock is ahead.
            self._timeline.advance(await self._coordinator.end_of(group.key))
            since = self._timeline.next()
            result = await self._store.add(group.key.number, user, others, since, self._additions.limits)
            await self._apply(failed, result, group)
            return [other for other in others if isinstance(result, Group) and result.members.get(other) == since]

    async def remove(self, user: str, name: str, other: str) -> None:
        """Remove the member `other`. The owner can remove every member, other members only themselves."""
        failed = Status.GROUP_REMOVE_FAILED
        group = await self._find(failed, user, name)
        async with self._coordinator.hold(group.name):
            await self._apply(failed, await self._store.remove(group.key.number, user, normal(other)), group)

    async def delete(self, user: str, name: str) -> None:
        """Delete a group that `user` owns. Its messages are erased later."""
        failed = Status.GROUP_DELETE_FAILED
        group = await self._find(failed, user, name)
        async with self._coordinator.hold(group.name):
            await self._apply(failed, await self._store.delete(group.key.number, user), group)

    async def members(self, user: str, name: str) -> list[Member]:
        """Return the members of a group, the longest-standing first."""
        failed = Status.GROUP_MEMBERS_FAILED
        group = await self._find(failed, user, name)
        online = await self._presence.seen_online(user, group.members)
        if user not in group.members:  # removed meanwhile
            raise no_such_group(failed, "group")
        return [
            Member(member, member == group.owner, member in online, since // 1000)
            for member, since in sorted(group.members.items(), key=lambda entry: (entry[1], entry[0]))
        ]

    async def refresh(self) -> None:
        """Find what was changed by a command, or by a request that seemed to fail, in all groups in use."""
        for group in await self.live.find_outdated():
            async with self._coordinator.hold(group.name):
                await self._reload(group)

    async def changed_elsewhere(self, change: GroupChanged) -> None:
        """Note a change by another process, which holds the lock, and tell the members. Raises StoreUnavailable."""
        if self.live.may_be_used(change.number):
            await self.live.reload(change.number, change.name)
        self._timeline.advance(change.time)  # so that new members may read what is written here
        await self._announce(change)

    async def _find(self, failed: Status, user: str, name: str) -> LiveGroup:
        return await self._peers.group(user, normal(name), failed, "group")

    async def _apply(self, failed: Status, result: Group | GroupRefusal, group: LiveGroup) -> None:
        """Note a change of a group and tell the members, or refuse the request. The caller holds the lock."""
        if isinstance(result, GroupRefusal):
            await self._reload(group)  # an earlier change that seemed to fail may have been stored
            raise self._additions.refusal(failed, result)
        await self._change(*self.live.apply(result))

    async def _change(self, group: LiveGroup, lines: Sequence[str]) -> None:
        """Tell the members, at all processes, what has changed. The caller holds the lock."""
        change = self._describe(group, lines)
        await self._announce(change)
        await self._coordinator.confirm(change)

    async def _reload(self, group: LiveGroup) -> None:
        """Read a group again and tell the members what has changed. The caller holds the lock."""
        if lines := await self.live.reload(group.key.number, group.name):
            await self._announce(self._describe(group, lines))  # every process finds it

    def _describe(self, group: LiveGroup, lines: Sequence[str]) -> GroupChanged:
        return GroupChanged(group.key.number, group.name, list(group.members), list(lines), self._timeline.next())

    async def _announce(self, change: GroupChanged) -> None:
        """Send the changes to the members, and to each former member its own removal as the last frame of the group."""
        former = [line for line in change.lines if line[0] == "-"]
        group = self.live.in_use(change.number)
        if former and group:
            await self._settle(group)
            async with group.deleting:
                pass
        self._notices.group_changed(change.members, change.name, change.lines)
        for line in former:
            self._notices.group_changed([line[1:]], change.name, [line])
