"""BlockStore, whatever the backend."""

import asyncio
from typing import cast

import pytest

from chat_server.model.blocks import MAX_BLOCKED, BlockResult, BlockStore, ExportableBlocks
from chat_server.model.users import ExportableUsers, State, User, UserStore
from chat_server.utils.errors import StoreUnavailable
from tests.contract.test_users import DIFFERENT, STRANGE


@pytest.fixture
async def blocks(users: UserStore) -> BlockStore:
    """The blocks between users who all exist."""
    for name in DIFFERENT:
        await users.add(User(name, "hash"))
    return users.blocks


async def test_a_block_exists_in_one_direction(blocks: BlockStore) -> None:
    assert await blocks.block("a", "A") is BlockResult.BLOCKED
    assert await blocks.existing([("a", "A"), ("A", "a"), ("a", "a"), ("A", "A")]) == {("a", "A")}
    assert await blocks.blocked_by("a") == ["A"]
    assert await blocks.blocked_by("A") == []


async def test_blocking_twice_is_blocking_once(blocks: BlockStore) -> None:
    results = await asyncio.gather(*(blocks.block("a", "A") for _ in range(5)))
    assert set(results) == {BlockResult.BLOCKED}
    assert await blocks.blocked_by("a") == ["A"]
    await blocks.unblock("a", "A")
    await blocks.unblock("a", "A")
    assert await blocks.existing([("a", "A")]) == set()


async def test_two_users_can_block_each_other_at_once(blocks: BlockStore) -> None:
    for _ in range(5):
        results = await asyncio.gather(blocks.block("a", "A"), blocks.block("A", "a"))
        assert set(results) == {BlockResult.BLOCKED}
        assert await blocks.existing([("a", "A"), ("A", "a")]) == {("a", "A"), ("A", "a")}
        await asyncio.gather(blocks.unblock("a", "A"), blocks.unblock("A", "a"))


async def test_a_name_is_exactly_that_name(blocks: BlockStore) -> None:
    blocker, *others = DIFFERENT
    for name in others[::2]:
        assert await blocks.block(blocker, name) is BlockResult.BLOCKED
        assert await blocks.block(name, others[1]) is BlockResult.BLOCKED
    assert await blocks.blocked_by(blocker) == sorted(others[::2])
    asked = [(one, other) for one in (blocker, others[1]) for other in others]
    assert await blocks.existing(asked) == {(blocker, name) for name in others[::2]}
    await blocks.unblock(blocker, others[0])
    assert await blocks.blocked_by(blocker) == sorted(others[2::2])


@pytest.mark.parametrize("name", STRANGE)
async def test_a_name_that_no_user_has_is_not_blocked(blocks: BlockStore, name: str) -> None:
    await blocks.block("a", "A")
    assert await blocks.block("a", name) is BlockResult.NO_SUCH_USER
    assert await blocks.block(name, "a") is BlockResult.NO_SUCH_USER
    assert await blocks.existing([("a", name), (name, "A"), ("a", "A")]) == {("a", "A")}
    await blocks.unblock("a", name)
    await blocks.unblock(name, "A")
    assert await blocks.blocked_by("a") == ["A"]


async def test_no_more_than_the_limit_are_blocked(users: UserStore) -> None:
    """Not even by requests that arrive together; a block that exists is not refused."""
    blocks = cast("ExportableBlocks", users.blocks)
    names = [f"u{number:04}" for number in range(MAX_BLOCKED + 3)]
    await cast("ExportableUsers", users).put([User(name, "hash") for name in names])
    await blocks.put([(names[0], name) for name in names[1 : MAX_BLOCKED - 1]])
    late = names[MAX_BLOCKED - 1 :]
    results = await asyncio.gather(*(blocks.block(names[0], name) for name in late))
    assert sorted(result.name for result in results) == ["BLOCKED"] * 2 + ["TOO_MANY"] * 2
    assert len(await blocks.blocked_by(names[0])) == MAX_BLOCKED
    assert await blocks.block(names[0], names[1]) is BlockResult.BLOCKED
    assert await blocks.block(names[1], names[0]) is BlockResult.BLOCKED
    await blocks.unblock(names[0], names[1])
    assert await blocks.block(names[0], late[results.index(BlockResult.TOO_MANY)]) is BlockResult.BLOCKED


async def test_as_many_blocks_as_a_call_may_name_are_found(blocks: BlockStore) -> None:
    await blocks.block("a", "A")
    asked = [("a", f"unknown{number}") for number in range(999)]
    assert await blocks.existing([*asked, ("a", "A")]) == {("a", "A")}
    assert await blocks.existing([]) == set()


async def test_a_removed_user_neither_blocks_nor_is_blocked(users: UserStore, blocks: BlockStore) -> None:
    await users.set_state("a", State.REMOVED)
    assert await blocks.block("a", "A") is BlockResult.NO_SUCH_USER
    assert await blocks.block("A", "a") is BlockResult.NO_SUCH_USER
    await users.set_state("á", State.DISABLED)
    assert await blocks.block("A", "á") is BlockResult.BLOCKED


async def test_the_blocks_of_a_removed_user_are_forgotten(blocks: BlockStore) -> None:
    for pair in (("a", "A"), ("a", "b"), ("A", "a"), ("á", "a"), ("A", "á")):
        assert await blocks.block(*pair) is not BlockResult.TOO_MANY
    others = [("A", "a"), ("á", "a"), ("A", "á")]
    await blocks.forget("a", by_others=False)
    assert await blocks.existing([("a", "A"), ("a", "b"), *others]) == set(others)
    await blocks.forget("a", by_others=True)
    await blocks.forget("a", by_others=True)
    assert await blocks.existing(others) == {("A", "á")}


async def test_a_store_that_is_away_says_so(users_away: UserStore) -> None:
    blocks = cast("ExportableBlocks", users_away.blocks)
    for call in (
        blocks.block("1", "2"),
        blocks.unblock("1", "2"),
        blocks.blocked_by("1"),
        blocks.existing([("1", "2")]),
        blocks.forget("1", by_others=True),
        blocks.put([("1", "2")]),
        anext(blocks.pages(1)),
    ):
        with pytest.raises(StoreUnavailable):
            await call


async def test_blocks_come_in_the_order_of_their_code_points(users: UserStore) -> None:
    blocks = cast("ExportableBlocks", users.blocks)
    names = ["-", "A", "a", "a-b", "aa", "é", "ﬀ", "𐐀"]
    there = [(one, other) for one in names for other in names if one != other]
    await blocks.put(there[::-1])
    await blocks.put(there[:5])
    pages = [page async for page in blocks.pages(10)]
    assert [block for page in pages for block in page] == there == sorted(there)
    assert {len(page) for page in pages[:-1]} == {10}
