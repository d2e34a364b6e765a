"""The cache of blocks: no result is older than the last change, whatever the store does meanwhile."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from chat_server.model.blocks import Block, BlockResult
from chat_server.service import blocks as module
from chat_server.service.blocks import Blocks
from chat_server.utils.errors import StoreUnavailable


class BlockStoreStub:
    """A store of blocks in memory. `held` lookups have read the store, and wait before they return."""

    def __init__(self) -> None:
        self.blocks: set[Block] = set()
        self.lookups = 0
        self.away = False
        self.held: asyncio.Event | None = None

    async def block(self, blocker: str, blocked: str) -> BlockResult:
        self.blocks.add((blocker, blocked))
        if self.away:
            raise StoreUnavailable("away")
        return BlockResult.BLOCKED

    async def unblock(self, blocker: str, blocked: str) -> None:
        if self.away:
            raise StoreUnavailable("away")
        self.blocks.discard((blocker, blocked))

    async def existing(self, blocks: Sequence[Block]) -> set[Block]:
        self.lookups += 1
        found = self.blocks & set(blocks)
        if self.away:
            raise StoreUnavailable("away")
        if self.held:
            await self.held.wait()
        return found


@pytest.fixture
def store() -> Any:
    return BlockStoreStub()


@pytest.fixture
def blocks(store: Any) -> Blocks:
    return Blocks(store)


async def test_a_pair_is_looked_up_once(store: Any, blocks: Blocks) -> None:
    store.blocks = {("a", "b")}
    pairs = [("a", "b"), ("b", "a"), ("a", "c"), ("c", "a")]
    assert not blocks.none_between("a", "c")
    for _ in range(2):
        assert await blocks.states(pairs) == {("a", "b"): True, ("b", "a"): False, ("a", "c"): False, ("c", "a"): False}
    assert store.lookups == 1
    assert blocks.none_between("a", "c")
    assert blocks.none_between("c", "a")
    assert not blocks.none_between("a", "b")
    assert not blocks.none_between("b", "a")
    assert blocks.is_cached("a", "b")
    assert not blocks.is_cached("b", "a")


async def test_a_long_list_displaces_nothing(store: Any, blocks: Blocks) -> None:
    await blocks.states([("a", "b")], cache=False)
    await blocks.states([("a", "b")], cache=False)
    assert store.lookups == 2


@pytest.mark.parametrize("exists", [True, False])
async def test_a_change_wins_over_a_lookup_in_progress(store: Any, blocks: Blocks, exists: bool) -> None:
    """The lookup read the store before the change."""
    store.blocks = set() if exists else {("a", "b")}
    store.held = asyncio.Event()
    pairs = [("a", "b"), ("c", "d")]
    lookups = [asyncio.create_task(blocks.states(pairs, cache=cache)) for cache in (True, False)]
    await asyncio.sleep(0)
    await (blocks.block if exists else blocks.unblock)("a", "b")
    store.held.set()
    for lookup in lookups:
        assert await lookup == {("a", "b"): exists, ("c", "d"): False}
    assert await blocks.states(pairs) == {("a", "b"): exists, ("c", "d"): False}


async def test_a_store_that_is_away_leaves_states_unknown(store: Any, blocks: Blocks) -> None:
    await blocks.states([("a", "b")])
    store.away = True
    assert await blocks.states([("a", "b"), ("c", "d")]) == {("a", "b"): False}
    assert not blocks.none_between("c", "d")
    store.away = False
    assert await blocks.states([("c", "d")]) == {("c", "d"): False}


async def test_a_change_that_fails_counts_as_a_block_until_a_refresh(store: Any, blocks: Blocks) -> None:
    store.away = True
    for change in (blocks.block, blocks.unblock):
        with pytest.raises(StoreUnavailable):
            await change("a", "b")
        assert await blocks.states([("a", "b")]) == {("a", "b"): True}
    with pytest.raises(StoreUnavailable):
        await blocks.refresh()
    assert blocks.is_cached("a", "b")
    store.away = False
    store.blocks.clear()
    await blocks.refresh()
    assert await blocks.states([("a", "b")]) == {("a", "b"): False}


async def test_a_refresh_finds_blocks_that_a_command_deleted(store: Any, blocks: Blocks) -> None:
    pairs = [(f"a{number}", "b") for number in range(2500)]
    store.blocks = set(pairs)
    assert all((await blocks.states(pairs)).values())
    store.blocks = set(pairs[:10])
    await blocks.refresh()
    assert {pair for pair, exists in (await blocks.states(pairs)).items() if exists} == set(pairs[:10])
    assert store.lookups == 6


async def test_a_block_made_during_a_refresh_stays(store: Any, blocks: Blocks) -> None:
    await blocks.block("a", "b")
    store.blocks.clear()
    store.held = asyncio.Event()
    refreshing = asyncio.create_task(blocks.refresh())
    await asyncio.sleep(0)
    await blocks.block("a", "b")
    store.held.set()
    await refreshing
    assert blocks.is_cached("a", "b")


async def test_the_cache_is_bounded(store: Any, blocks: Blocks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CACHED_BLOCKS", 10)
    store.blocks = {("a", f"{number}") for number in range(0, 100, 2)}
    for number in range(100):
        await blocks.states([("a", f"{number}")])
    assert [number for number in range(100) if blocks.is_cached("a", f"{number}")] == [90, 92, 94, 96, 98]
    assert len(blocks._cached) == 10
    assert await blocks.states([("a", "0"), ("a", "1")]) == {("a", "0"): True, ("a", "1"): False}
