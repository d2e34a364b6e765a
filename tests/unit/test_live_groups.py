"""The cache of groups is bounded by their members and the blocks between them."""

import asyncio
from collections.abc import Sequence
from itertools import permutations
from typing import Any, cast

import pytest

from chat_server.model.groups import Group
from chat_server.service import live_groups as module
from chat_server.service.blocks import Blocks
from chat_server.service.live_groups import LiveGroups
from tests.unit.test_blocks import BlockStoreStub


class GroupStoreStub:
    """Contains a group of every name, with the same members."""

    async def find(self, name: str) -> Group:
        return Group(int(name[1:]), name, "a", dict.fromkeys("abc", 1))


async def test_blocks_between_members_count_in_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CACHED_ENTRIES", 20)
    block_store: Any = BlockStoreStub()
    block_store.blocks = set(permutations("abc", 2))
    store: Any = GroupStoreStub()
    groups = LiveGroups(store, Blocks(block_store))
    names = [f"#{number}" for number in range(1, 7)]
    for name in names:
        assert await groups.find(name, "a")
    assert [name for name in names if groups.named(name)] == names
    newest = groups.named(names[-1])
    assert newest
    for user in "abc":
        blocks = await groups.look_up_blocks(newest, user)
        assert blocks.by_others == blocks.by_member == set("abc") - {user}
    assert [name for name in names if groups.named(name)] == [names[-2], names[-1]]


class SlowGroupStore:
    """Contains the group #1. An answer has the members as they were when it was asked for, and waits for `go`."""

    def __init__(self) -> None:
        self.members = {"a": 1, "b": 1}
        self.go = asyncio.Event()
        self.go.set()

    async def find(self, name: str) -> Group:
        group = Group(1, "#1", "a", dict(self.members))
        await self.go.wait()
        return group

    async def get(self, numbers: Sequence[int]) -> list[Group]:
        return [await self.find("#1")]


def slow_groups() -> tuple[SlowGroupStore, LiveGroups]:
    store, block_store = SlowGroupStore(), BlockStoreStub()
    return store, LiveGroups(cast("Any", store), Blocks(cast("Any", block_store)))


async def test_a_new_member_is_found_before_its_process_tells() -> None:
    store, groups = slow_groups()
    group = await groups.find("#1", "a")
    assert group
    store.members["c"] = 2
    await groups.read_ahead(group)
    assert set(group.members) == {"a", "b", "c"}


async def test_an_old_answer_does_not_undo_what_was_told_meanwhile() -> None:
    store, groups = slow_groups()
    group = await groups.find("#1", "a")
    assert group
    store.go.clear()
    reading = asyncio.create_task(groups.read_ahead(group))
    await asyncio.sleep(0)
    groups.apply(Group(1, "#1", "a", {"a": 1}))
    store.go.set()
    await reading
    assert set(group.members) == {"a"}


async def test_a_lookup_in_progress_learns_of_a_change() -> None:
    store, groups = slow_groups()
    store.go.clear()
    finding = asyncio.create_task(groups.find("#1", "b"))
    await asyncio.sleep(0)
    assert groups.may_be_used(1)
    old, store.go, store.members = store.go, asyncio.Event(), {"a": 1}
    store.go.set()
    assert await groups.reload(1, "#1") == []
    old.set()
    assert await finding is None
