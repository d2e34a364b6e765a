"""The cache of groups is bounded by their members and the blocks between them."""

from itertools import permutations
from typing import Any

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
