"""Groups in use: one object for each, which changes together with the store, so each check sees the current members."""

import asyncio
import logging
from collections.abc import Collection, Sequence
from typing import NamedTuple, final
from weakref import WeakValueDictionary

from chat_server.model.groups import PAGE, Group, GroupStore
from chat_server.model.messages import GroupKey, GroupView
from chat_server.service.blocks import Blocks
from chat_server.utils.errors import StoreUnavailable

log = logging.getLogger(__name__)

# Members of cached groups, and blocks between them: about 40 MiB. Groups that a request holds stay alive beyond it.
CACHED_ENTRIES = 65536


class BlocksOf(NamedTuple):
    """The other members of a group who block a member, and those whom the member blocks."""

    by_others: frozenset[str]
    by_member: frozenset[str]


NO_BLOCKS = BlocksOf(frozenset(), frozenset())  # of most members: shared, because two empty sets take 500 bytes


@final
class LiveGroup:
    """A group in use. `members` maps each member to the time of joining; a deleted group has none.

    `blocks` has, for members who have written here, which blocks exist between them and the others. `deleting` is held
    while a member deletes messages.
    """

    __slots__ = ("__weakref__", "blocks", "cached_entries", "deleting", "key", "members", "name", "owner")

    def __init__(self, group: Group) -> None:
        self.key = GroupKey(group.number, group.name)
        self.name = group.name
        self.owner = group.owner
        self.members = dict(group.members)
        self.blocks: dict[str, BlocksOf] = {}
        self.deleting = asyncio.Lock()
        self.cached_entries = 0  # as LiveGroups counted them

    def entries(self) -> int:
        """The number of members, and of blocks between them that were looked up."""
        return len(self.members) + sum(
            [len(by_others) + len(by_member) for by_others, by_member in self.blocks.values()]
        )

    def differs_from(self, group: Group | None) -> bool:
        """Whether the group has other members or another owner in the store; there, a deleted group is None."""
        return bool(self.members) if group is None else (self.owner, self.members) != (group.owner, group.members)

    def view(self, user: str) -> GroupView:
        """The conversation as the member `user` sees it."""
        return GroupView(self.key, self.members[user])


class LiveGroups:
    """Finds groups. There is at most one LiveGroup for each group; `apply` changes it in place.

    Each change enters here before it is reported as done, those of other processes included. Two do not: a command
    removes a user from all groups, and a change that seemed to fail may be stored later. `find_outdated` finds them. A
    lookup that began before a change gets the group as it is after the change.
    """

    def __init__(self, store: GroupStore, blocks: Blocks) -> None:
        self._store = store
        self._blocks = blocks
        self._live: WeakValueDictionary[int, LiveGroup] = WeakValueDictionary()
        self._cached: dict[str, LiveGroup] = {}  # by name; the oldest entry first
        self._entries = 0  # of the cached groups
        self._lookups: list[dict[int, Group]] = []  # for each lookup in progress, the groups that changed meanwhile

    def cached(self, name: str, user: str) -> LiveGroup | None:
        """The group, if it is known without asking the store that it exists and has the member `user`."""
        group = self._cached.get(name)
        return group if group and user in group.members else None

    def named(self, name: str) -> LiveGroup | None:
        """The group that is cached under this name."""
        return self._cached.get(name)

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
        """All groups that have the member `user`; if the store is away, those in use."""
        try:
            return await self._all_of(user)
        except StoreUnavailable as error:
            log.warning("store unavailable", extra={"error": str(error)})
            return [group for group in list(self._live.values()) if user in group.members]

    async def _all_of(self, user: str) -> list[LiveGroup]:
        numbers = await self._store.numbers_of(user)
        groups = [self._live.get(number) for number in numbers]
        missing = [number for number, group in zip(numbers, groups, strict=True) if group is None]
        found = [group for group in groups if group] + await self._load(missing)
        return [group for group in found if user in group.members]

    def in_use(self, number: int) -> LiveGroup | None:
        """The group of this number, if anything here uses it."""
        return self._live.get(number)

    def may_be_used(self, number: int) -> bool:
        """Whether anything here uses this group, or a lookup in progress may find it."""
        return number in self._live or bool(self._lookups)

    async def get(self, number: int) -> LiveGroup | None:
        """The group of this number, if it exists. Raises StoreUnavailable."""
        return self._live.get(number) or next(iter(await self._load([number])), None)

    async def look_up_blocks(self, group: LiveGroup, user: str) -> BlocksOf:
        """Which blocks exist between `user` and the other members. Raises StoreUnavailable."""
        while (found := group.blocks.get(user)) is None:
            members = dict(group.members)
            pairs = [pair for member in members if member != user for pair in ((member, user), (user, member))]
            states = await self._blocks.states(pairs, cache=False)
            if not states.keys() >= set(pairs):
                raise StoreUnavailable("the blocks between the members cannot be looked up")
            if members == group.members:  # no user has joined or left meanwhile
                by_others = frozenset(member for member in members if states.get((member, user)))
                by_member = frozenset(member for member in members if states.get((user, member)))
                group.blocks[user] = BlocksOf(by_others, by_member) if by_others or by_member else NO_BLOCKS
                if self._cached.get(group.name) is group:
                    self._keep(group)  # which counts its entries again
        return found

    def blocks_changed(self, users: Collection[str]) -> None:
        """Note that blocks between these users were stored or deleted."""
        for group in list(self._live.values()):
            if group.blocks:
                for user in group.blocks.keys() & users:
                    del group.blocks[user]

    def forget_blocks(self) -> None:
        """Forget all blocks between members: changes by other processes may have been missed."""
        for group in list(self._live.values()):
            group.blocks.clear()

    def apply(self, group: Group) -> tuple[LiveGroup, list[str]]:
        """Note the state of a group after a change. Returns it with one line for each difference (protocol, 42011)."""
        for changed in self._lookups:
            changed[group.number] = group
        live = self._get_live(group)
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

    async def find_outdated(self) -> list[LiveGroup]:
        """Return the groups in use that the store has in another state. Raises StoreUnavailable."""
        outdated = []
        groups = list(self._live.values())
        for start in range(0, len(groups), PAGE):
            page = groups[start : start + PAGE]
            found = {group.number: group for group in await self._store.get([live.key.number for live in page])}
            outdated += [live for live in page if live.differs_from(found.get(live.key.number))]
        return outdated

    async def reload(self, number: int, name: str) -> list[str]:
        """Read a group again, which nothing may change meanwhile. Returns the differences, as `apply`."""
        found = await self._store.get([number])
        _, lines = self.apply(found[0] if found else Group(number, name, "", {}))
        return lines

    async def read_ahead(self, live: LiveGroup) -> None:
        """Read a group that another process changes just now. What that process tells meanwhile is newer.

        Raises StoreUnavailable.
        """
        with _Lookup(self._lookups) as changed:
            found = await self._store.get([live.key.number])
        if found and live.key.number not in changed:
            self.apply(found[0])

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
        if live.members and self._cached.get(live.name) is not live:
            self._keep(live)
        return live

    def _keep(self, group: LiveGroup) -> None:
        if earlier := self._cached.get(group.name):  # itself, or a group whose deletion seemed to fail
            self._forget(earlier)
        self._cached[group.name] = group
        group.cached_entries = group.entries()
        self._entries += group.cached_entries
        while self._entries > CACHED_ENTRIES and len(self._cached) > 1:
            self._forget(next(iter(self._cached.values())))

    def _forget(self, group: LiveGroup) -> None:
        if self._cached.get(group.name) is group:
            del self._cached[group.name]
            self._entries -= group.cached_entries


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
