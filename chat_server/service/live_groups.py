"""Groups in use: one object for each, kept like the store, so that every check sees the members of this moment."""

import asyncio
import logging
from collections.abc import Sequence
from typing import NamedTuple
from weakref import WeakValueDictionary

from chat_server.model.groups import PAGE, Group, GroupStore
from chat_server.model.messages import GroupKey, GroupView
from chat_server.service.blocks import Blocks
from chat_server.utils.errors import StoreUnavailable

log = logging.getLogger(__name__)

# Members of cached groups: about 15 MiB. Groups that a request holds stay alive beyond it.
CACHED_MEMBERS = 65536


class BlocksOf(NamedTuple):
    """The other members of a group who block a member, and those whom the member blocks."""

    by_others: frozenset[str]
    by_member: frozenset[str]


class LiveGroup:
    """A group in use. `members` maps each member to the time of joining; a deleted group has none.

    `blocks` has, for members who have written here, which blocks exist between them and the others. `deleting` is held
    while a member deletes messages.
    """

    __slots__ = ("__weakref__", "blocks", "deleting", "key", "members", "name", "owner")

    def __init__(self, group: Group) -> None:
        self.key = GroupKey(group.number, group.name)
        self.name = group.name
        self.owner = group.owner
        self.members = dict(group.members)
        self.blocks: dict[str, BlocksOf] = {}
        self.deleting = asyncio.Lock()

    def view(self, user: str) -> GroupView:
        """The conversation as the member `user` sees it."""
        return GroupView(self.key, self.members[user])


class LiveGroups:
    """Finds groups. There is at most one LiveGroup for each group; `apply` changes it in place.

    This process is the only one that changes groups, except that a command removes a user from all groups; `refresh`
    finds these changes. A lookup that began before a change gets the group as it is after the change.
    """

    def __init__(self, store: GroupStore, blocks: Blocks) -> None:
        self._store = store
        self._blocks = blocks
        self._live: WeakValueDictionary[int, LiveGroup] = WeakValueDictionary()
        self._cached: dict[str, LiveGroup] = {}  # by name; the oldest entry first
        self._members = 0  # of the cached groups
        self._lookups: list[dict[int, Group]] = []  # for each lookup in progress, the groups that changed meanwhile

    def cached(self, name: str, user: str) -> LiveGroup | None:
        """The group, if it is known without asking the store that it exists and has the member `user`."""
        group = self._cached.get(name)
        return group if group and user in group.members else None

    async def find(self, name: str, user: str) -> LiveGroup | None:
        """The group of this name if it exists and has the member `user`. Raises StoreUnavailable."""
        if group := self.cached(name, user):
            return group
        with _Lookup(self._lookups) as changed:
            found = await self._store.find(name)
        if found is None:
            return None
        group = self._get_live(changed.get(found.number, found))
        return group if user in group.members else None

    async def of(self, user: str) -> list[LiveGroup]:
        """All groups that have the member `user`. Raises StoreUnavailable."""
        numbers = await self._store.numbers_of(user)
        groups = [self._live.get(number) for number in numbers]
        missing = [number for number, group in zip(numbers, groups, strict=True) if group is None]
        found = [group for group in groups if group] + await self._load(missing)
        return [group for group in found if user in group.members]

    async def look_up_blocks(self, group: LiveGroup, user: str) -> BlocksOf:
        """Which blocks exist between `user` and the other members. Raises StoreUnavailable."""
        while (found := group.blocks.get(user)) is None:
            members = [member for member in group.members if member != user]
            pairs = [pair for member in members for pair in ((member, user), (user, member))]
            states = await self._blocks.states(pairs, cache=False)
            if len(states) < len(pairs):
                raise StoreUnavailable("the blocks between the members cannot be looked up")
            if members == [
                member for member in group.members if member != user
            ]:  # no user has joined or left meanwhile
                by_others = frozenset(member for member in members if states[member, user])
                by_member = frozenset(member for member in members if states[user, member])
                group.blocks[user] = BlocksOf(by_others, by_member)
        return found

    def block_changed(self, blocker: str, blocked: str) -> None:
        """Note that a block between two users was stored or deleted."""
        for group in list(self._live.values()):
            group.blocks.pop(blocker, None)
            group.blocks.pop(blocked, None)

    def apply(self, group: Group) -> tuple[LiveGroup, list[str]]:
        """Note the state of a group after a change. Returns it with one line for each change (protocol, 42011)."""
        for changed in self._lookups:
            changed[group.number] = group
        live = self._live.get(group.number)
        if live is None:
            live = self._get_live(group)
            return live, [*(f"+{member}" for member in group.members), f"!{group.owner}"]
        lines = [f"-{member}" for member in live.members if member not in group.members]
        lines += [f"+{member}" for member in group.members if member not in live.members]
        if group.members and group.owner != live.owner:
            lines.append(f"!{group.owner}")
        if lines:
            self._forget(live)
            live.owner = group.owner
            live.members = dict(group.members)
            live.blocks.clear()
            if live.members:
                self._keep(live)
        return live, lines

    async def refresh(self, only: Sequence[int] = ()) -> list[Group]:
        """Read these groups or all groups in use again. Returns their states; apply them before anything waits."""
        numbers, states = list(only or self._live.keys()), list[Group]()
        with _Lookup(self._lookups) as changed:
            for start in range(0, len(numbers), PAGE):
                page = numbers[start : start + PAGE]
                found = {group.number: group for group in await self._store.get(page)}
                states += [found.get(number) or Group(number, "", "", {}) for number in page]
        return [group for group in states if group.number not in changed]

    async def _load(self, numbers: Sequence[int]) -> list[LiveGroup]:
        loaded = []
        for start in range(0, len(numbers), PAGE):
            with _Lookup(self._lookups) as changed:
                found = await self._store.get(numbers[start : start + PAGE])
            loaded += [self._get_live(changed.get(group.number, group)) for group in found]
        return loaded

    def _get_live(self, group: Group) -> LiveGroup:
        """The one object for a group that was just read."""
        live = self._live.get(group.number)
        if live is None:
            live = self._live[group.number] = LiveGroup(group)
        if live.members and live.name not in self._cached:
            self._keep(live)
        return live

    def _keep(self, group: LiveGroup) -> None:
        self._cached[group.name] = group
        self._members += len(group.members)
        while self._members > CACHED_MEMBERS and len(self._cached) > 1:
            self._forget(next(iter(self._cached.values())))

    def _forget(self, group: LiveGroup) -> None:
        if self._cached.get(group.name) is group:
            del self._cached[group.name]
            self._members -= len(group.members)


class _Lookup:
    """Registers a lookup while the store is asked. The value has the groups that changed meanwhile."""

    def __init__(self, lookups: list[dict[int, Group]]) -> None:
        self._lookups = lookups
        self._changed: dict[int, Group] = {}

    def __enter__(self) -> dict[int, Group]:
        self._lookups.append(self._changed)
        return self._changed

    def __exit__(self, *_: object) -> None:
        self._lookups[:] = [changed for changed in self._lookups if changed is not self._changed]
