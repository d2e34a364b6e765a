"""GroupStore on every backend."""

import asyncio
from typing import cast

import pytest

from chat_server.model.blocks import BlockResult
from chat_server.model.groups import (
    PAGE,
    ExportableGroups,
    Group,
    GroupLimits,
    GroupProblem,
    GroupRefusal,
    GroupStore,
)
from chat_server.model.users import ExportableUsers, State, User, UserStore
from chat_server.utils.errors import Duplicate, StoreUnavailable
from tests.contract.test_users import DIFFERENT, STRANGE

LIMITS = GroupLimits(members=5, groups=3)
MANY = GroupLimits(members=1000, groups=1000)
NAMES = [f"u{number:03}" for number in range(210)]


@pytest.fixture
async def groups(users: UserStore) -> GroupStore:
    """The groups of users who all exist."""
    await cast("ExportableUsers", users).put([User(name, "hash") for name in [*NAMES, *DIFFERENT]])
    return users.groups


def refusal(problem: GroupProblem, user: str = "") -> GroupRefusal:
    return GroupRefusal(problem, user)


async def make(groups: GroupStore, number: int, name: str, *users: str, limits: GroupLimits = MANY) -> Group:
    """Create a group; the first user is the owner."""
    group = await groups.create(number, name, users[0], users[1:], limits)
    assert isinstance(group, Group), group
    return group


async def test_a_created_group_is_found(groups: GroupStore) -> None:
    """Duplicates, and the owner among the users, are skipped."""
    created = await groups.create(7, "#team", "a", ["A", "a", "A"], LIMITS)
    assert created == Group(7, "#team", "a", {"a": 7, "A": 7})
    assert await groups.find("#team") == created
    assert await groups.get([7, 8]) == [created]
    assert await groups.numbers_of("A") == [7]
    assert await groups.numbers_of("u000") == []
    assert await make(groups, 8, "#alone", "a") == Group(8, "#alone", "a", {"a": 8})
    assert await groups.numbers_of("a") == [7, 8]
    assert await groups.find("#other") is None
    assert await groups.get([]) == []


async def test_the_newest_time_is_that_of_the_last_addition(groups: GroupStore) -> None:
    assert await groups.newest() == 0
    await make(groups, 7, "#team", "a")
    assert await groups.newest() == 7
    await make(groups, 8, "#other", "a")
    await groups.add(7, "a", ["A"], 9, MANY)
    assert await groups.newest() == 9


async def test_a_taken_name_is_refused(groups: GroupStore) -> None:
    first = await make(groups, 7, "#team", "a")
    assert await groups.create(8, "#team", "A", [], LIMITS) == refusal(GroupProblem.GROUP_EXISTS)
    assert await groups.find("#team") == first
    assert await groups.numbers_of("A") == []


async def test_a_used_number_is_a_duplicate(groups: GroupStore) -> None:
    """Also that of a deleted group until it is forgotten."""
    await make(groups, 7, "#team", "a")
    with pytest.raises(Duplicate):
        await groups.create(7, "#other", "A", [], LIMITS)
    await groups.delete(7, "a")
    with pytest.raises(Duplicate):
        await groups.create(7, "#other", "A", [], LIMITS)
    assert await groups.numbers_of("A") == []
    await groups.forget(7)
    await make(groups, 7, "#other", "A")


async def test_concurrent_creations_of_one_name_give_one_group(groups: GroupStore) -> None:
    """Of different users, and of users that several groups share."""
    for round_ in range(6):
        shared = ["a", "A"] if round_ % 2 else []
        results = await asyncio.gather(
            *(groups.create(10 * round_ + number, f"#{round_}", NAMES[number], shared, MANY) for number in range(8))
        )
        assert results.count(refusal(GroupProblem.GROUP_EXISTS)) == 7
        [created] = [result for result in results if isinstance(result, Group)]
        assert await groups.find(f"#{round_}") == created
    assert len(await groups.numbers_of("a")) == 3


async def test_a_group_name_is_exactly_that_name(groups: GroupStore) -> None:
    names = [f"#{name}" for name in DIFFERENT] + [
        "#a ",
        "#a  ",
        "# a",
        "#é",
        "#e\u0301",
        "#" + "𠀀" * 63,
        "#" + "𠀀" * 62,
    ]
    for number, name in enumerate(names, 1):
        await make(groups, number, name, "a")
    for number, name in enumerate(names, 1):
        assert await groups.find(name) == Group(number, name, "a", {"a": number})


async def test_a_member_name_is_exactly_that_name(groups: GroupStore) -> None:
    owner, *others = DIFFERENT
    members = [owner, *others[::2]]
    await make(groups, 1, "#team", *members)
    assert await groups.get([1]) == [Group(1, "#team", owner, dict.fromkeys(members, 1))]
    for name in others[1::2]:
        assert await groups.numbers_of(name) == []
        assert await groups.add(1, name, ["u000"], 2, MANY) == refusal(GroupProblem.NO_SUCH_GROUP)
        assert await groups.remove(1, owner, name) == refusal(GroupProblem.NO_SUCH_USER, name)
    added = await groups.add(1, owner, others, 2, MANY)
    assert isinstance(added, Group)
    assert added.members == dict.fromkeys(members, 1) | dict.fromkeys(others[1::2], 2)
    for name in others[::2]:
        assert isinstance(await groups.remove(1, owner, name), Group)
    [group] = await groups.get([1])
    assert group.members == {owner: 1} | dict.fromkeys(others[1::2], 2)


@pytest.mark.parametrize("name", STRANGE)
async def test_a_name_that_no_user_has_is_refused(groups: GroupStore, name: str) -> None:
    """Nothing is changed, although the other users could join."""
    group = await make(groups, 1, "#team", "a")
    assert await groups.create(2, "#new", "a", ["A", name], LIMITS) == refusal(GroupProblem.NO_SUCH_USER, name)
    assert await groups.create(2, "#new", name, ["A"], LIMITS) == refusal(GroupProblem.NO_SUCH_USER, name)
    assert await groups.add(1, "a", ["A", name, "u000"], 2, LIMITS) == refusal(GroupProblem.NO_SUCH_USER, name)
    assert await groups.add(1, name, ["A"], 2, LIMITS) == refusal(GroupProblem.NO_SUCH_GROUP)
    assert await groups.remove(1, "a", name) == refusal(GroupProblem.NO_SUCH_USER, name)
    assert await groups.remove(1, name, name) == refusal(GroupProblem.NO_SUCH_GROUP)
    assert await groups.delete(1, name) == refusal(GroupProblem.NO_SUCH_GROUP)
    assert await groups.numbers_of(name) == []
    assert await groups.find(name) is None
    assert await groups.find("#new") is None
    assert await groups.get([1]) == [group]


async def test_members_join_at_their_own_time(groups: GroupStore) -> None:
    """Any member may add users. Existing members keep their time."""
    await make(groups, 1, "#team", "a", "A")
    expected = Group(1, "#team", "a", {"a": 1, "A": 1, "u000": 5, "u001": 5})
    assert await groups.add(1, "A", ["u000", "a", "u001", "u000", "A"], 5, LIMITS) == expected
    assert await groups.add(1, "u000", ["u001"], 6, LIMITS) == expected
    assert await groups.add(1, "a", [], 6, LIMITS) == expected
    assert await groups.find("#team") == expected


async def test_a_non_member_finds_no_group(groups: GroupStore) -> None:
    group = await make(groups, 1, "#team", "a", "A")
    for number in (1, 2):
        for by in ("u000", "unknown"):
            assert await groups.add(number, by, ["u001"], 2, LIMITS) == refusal(GroupProblem.NO_SUCH_GROUP)
            assert await groups.remove(number, by, "a") == refusal(GroupProblem.NO_SUCH_GROUP)
            assert await groups.remove(number, by, by) == refusal(GroupProblem.NO_SUCH_GROUP)
            assert await groups.delete(number, by) == refusal(GroupProblem.NO_SUCH_GROUP)
    assert await groups.get([1, 2]) == [group]


async def test_only_the_owner_removes_others_and_deletes(groups: GroupStore) -> None:
    group = await make(groups, 1, "#team", "a", "A", "u000")
    assert await groups.remove(1, "A", "a") == refusal(GroupProblem.NOT_YOURS)
    assert await groups.remove(1, "A", "u000") == refusal(GroupProblem.NOT_YOURS)
    assert await groups.remove(1, "A", "unknown") == refusal(GroupProblem.NOT_YOURS)
    assert await groups.delete(1, "A") == refusal(GroupProblem.NOT_YOURS)
    assert await groups.get([1]) == [group]
    assert await groups.remove(1, "A", "A") == Group(1, "#team", "a", {"a": 1, "u000": 1})
    assert await groups.remove(1, "a", "u000") == Group(1, "#team", "a", {"a": 1})
    assert await groups.numbers_of("A") == await groups.numbers_of("u000") == []


async def test_the_longest_standing_member_becomes_owner(groups: GroupStore) -> None:
    """Of several who joined together, the one with the lesser name."""
    await make(groups, 1, "#team", "u005")
    await groups.add(1, "u005", ["u001"], 3, LIMITS)
    await groups.add(1, "u005", ["ﬁ", "u009", "á"], 2, LIMITS)
    for owner, following in (("u005", "u009"), ("u009", "á"), ("á", "ﬁ"), ("ﬁ", "u001")):
        group = await groups.remove(1, owner, owner)
        assert isinstance(group, Group)
        assert group.owner == following
        assert await groups.get([1]) == [group]
    assert group == Group(1, "#team", "u001", {"u001": 3})


async def test_a_group_without_members_is_deleted(groups: GroupStore) -> None:
    await make(groups, 1, "#team", "a", "A")
    await groups.remove(1, "a", "a")
    assert await groups.remove(1, "A", "A") == Group(1, "#team", "A", {})
    assert await groups.find("#team") is None
    assert await groups.get([1]) == []
    assert await groups.deleted(0, 10) == [1]


async def test_a_deleted_group_frees_its_name_but_not_its_number(groups: GroupStore) -> None:
    await make(groups, 1, "#team", "a", "A")
    assert await groups.delete(1, "a") == Group(1, "#team", "a", {})
    assert await groups.numbers_of("a") == await groups.numbers_of("A") == []
    assert await groups.add(1, "a", ["A"], 2, LIMITS) == refusal(GroupProblem.NO_SUCH_GROUP)
    assert await groups.remove(1, "a", "A") == refusal(GroupProblem.NO_SUCH_GROUP)
    assert await groups.delete(1, "a") == refusal(GroupProblem.NO_SUCH_GROUP)
    again = await make(groups, 2, "#team", "A")
    assert await groups.find("#team") == again
    await groups.delete(2, "A")
    await make(groups, 3, "#team", "A")
    assert await groups.deleted(0, 10) == [1, 2]
    assert await groups.deleted(0, 1) == [1]
    assert await groups.deleted(1, 10) == [2]
    for _ in range(2):
        for number in (1, 2, 3):  # the last one is not deleted
            await groups.forget(number)
    assert await groups.deleted(0, 10) == []
    assert await groups.find("#team") == Group(3, "#team", "A", {"A": 3})


async def test_a_full_group_takes_nobody(groups: GroupStore) -> None:
    assert await groups.create(1, "#team", "a", NAMES[:5], LIMITS) == refusal(GroupProblem.GROUP_FULL)
    assert await groups.find("#team") is None
    group = await make(groups, 1, "#team", "a", *NAMES[:4], limits=LIMITS)
    assert await groups.add(1, "a", [NAMES[5]], 2, LIMITS) == refusal(GroupProblem.GROUP_FULL)
    assert await groups.add(1, "a", NAMES, 2, LIMITS) == refusal(GroupProblem.GROUP_FULL)
    assert await groups.add(1, "a", NAMES[:4], 2, LIMITS) == group
    assert await groups.add(1, "a", NAMES[:4], 2, GroupLimits(1, 1)) == group  # the limits were lowered
    await groups.remove(1, "a", NAMES[0])
    assert await groups.add(1, "a", NAMES[4:6], 2, LIMITS) == refusal(GroupProblem.GROUP_FULL)
    assert isinstance(await groups.add(1, "a", NAMES[4:5], 2, LIMITS), Group)


async def test_concurrent_adds_reach_the_limit_exactly(groups: GroupStore) -> None:
    await make(groups, 1, "#team", "a", "A")
    results = await asyncio.gather(*(groups.add(1, "aA"[n % 2], [NAMES[n]], 2 + n, LIMITS) for n in range(12)))
    assert [result for result in results if isinstance(result, GroupRefusal)] == [refusal(GroupProblem.GROUP_FULL)] * 9
    [group] = await groups.get([1])
    assert len(group.members) == 5


async def test_a_user_is_in_a_limited_number_of_groups(groups: GroupStore) -> None:
    """Also if it is added to several at once. The caller of `add` is not counted."""
    await asyncio.gather(*(make(groups, number, f"#{number}", NAMES[number], "u100") for number in range(1, 9)))
    results = await asyncio.gather(*(groups.add(n, NAMES[n], ["u101", "a"], 20, LIMITS) for n in range(1, 9)))
    assert [result for result in results if isinstance(result, GroupRefusal)] == [
        refusal(GroupProblem.TOO_MANY, "u101")
    ] * 5
    assert len(await groups.numbers_of("u101")) == len(await groups.numbers_of("a")) == 3
    assert await groups.create(30, "#new", "a", ["u102", "A"], LIMITS) == refusal(GroupProblem.TOO_MANY, "a")
    assert await groups.create(30, "#new", "A", ["u102", "a"], LIMITS) == refusal(GroupProblem.TOO_MANY, "a")
    assert isinstance(await groups.add(1, "u100", ["u102"], 21, LIMITS), Group)
    await groups.remove((await groups.numbers_of("a"))[0], "a", "a")
    assert isinstance(await groups.create(30, "#new", "A", ["u102", "a"], LIMITS), Group)


async def test_a_user_who_blocks_the_caller_cannot_be_added(users: UserStore, groups: GroupStore) -> None:
    """A block in the other direction, or of another member, does not matter."""
    await make(groups, 1, "#team", "a", "A")
    for blocker, blocked in (("u000", "a"), ("A", "u001"), ("a", "u001")):
        assert await users.blocks.block(blocker, blocked) is BlockResult.BLOCKED
    assert await groups.add(1, "a", ["u001", "u000"], 2, LIMITS) == refusal(GroupProblem.BLOCKED, "u000")
    assert await groups.create(2, "#new", "a", ["u001", "u000"], LIMITS) == refusal(GroupProblem.BLOCKED, "u000")
    added = await groups.add(1, "A", ["u000", "u001"], 2, LIMITS)
    assert added == Group(1, "#team", "a", {"a": 1, "A": 1, "u000": 2, "u001": 2})
    assert await groups.add(1, "a", ["u000"], 3, LIMITS) == added  # a member already


async def test_a_user_is_not_added_after_a_block_was_answered(users: UserStore, groups: GroupStore) -> None:
    """An add that overlaps the block may succeed, but then before it; neither waits for the other forever."""
    await make(groups, 1, "#team", "a")
    for _ in range(5):
        added, blocked = await asyncio.gather(groups.add(1, "a", NAMES[:3], 2, MANY), users.blocks.block("u001", "a"))
        assert blocked is BlockResult.BLOCKED
        assert isinstance(added, Group) or added == refusal(GroupProblem.BLOCKED, "u001")
        [group] = await groups.get([1])
        assert set(group.members) == ({"a", *NAMES[:3]} if isinstance(added, Group) else {"a"})
        for name in set(group.members) - {"a"}:
            await groups.remove(1, "a", name)
        assert await groups.add(1, "a", ["u001"], 3, MANY) == refusal(GroupProblem.BLOCKED, "u001")
        await users.blocks.unblock("u001", "a")


@pytest.mark.parametrize("state", [State.REMOVED, None])
async def test_a_removed_user_is_in_no_group_afterwards(
    users: UserStore, groups: GroupStore, state: State | None
) -> None:
    """Adds that overlap the removal either happen before it or are refused."""
    await asyncio.gather(*(make(groups, number, f"#{number}", NAMES[number]) for number in range(1, 9)))

    async def end() -> None:
        await (users.set_state("a", state) if state else users.remove("a"))
        for number in await groups.numbers_of("a"):
            assert isinstance(await groups.remove(number, "a", "a"), Group)

    adding = (groups.add(n, NAMES[n], ["u100", "a"], 20, MANY) for n in range(1, 9))
    _, *results = await asyncio.gather(end(), *adding)
    for result in results:
        assert isinstance(result, Group) or result == refusal(GroupProblem.NO_SUCH_USER, "a")
    assert await groups.numbers_of("a") == []
    assert await groups.add(1, NAMES[1], ["a"], 30, MANY) == refusal(GroupProblem.NO_SUCH_USER, "a")
    assert await groups.create(30, "#new", "a", [], MANY) == refusal(GroupProblem.NO_SUCH_USER, "a")


async def test_a_removed_member_adds_nobody_but_leaves(users: UserStore, groups: GroupStore) -> None:
    """A disabled user can be added."""
    await make(groups, 1, "#team", "a", "A")
    await users.set_state("a", State.REMOVED)
    await users.set_state("u000", State.DISABLED)
    assert await groups.add(1, "a", ["u000"], 2, LIMITS) == refusal(GroupProblem.NO_SUCH_USER, "a")
    assert isinstance(await groups.add(1, "A", ["u000"], 2, LIMITS), Group)
    assert await groups.remove(1, "a", "a") == Group(1, "#team", "A", {"A": 1, "u000": 2})


async def test_concurrent_changes_of_a_group_follow_each_other(groups: GroupStore) -> None:
    """Adds and removals in both directions, and by members who leave: the end agrees with the answers."""
    await make(groups, 1, "#team", "a", "A")
    for round_ in range(3):
        results = await asyncio.gather(
            groups.add(1, "a", ["u001", "u002"], 10 + round_, MANY),
            groups.remove(1, "a", "u001"),
            groups.add(1, "A", ["u002", "u001", "u003"], 20 + round_, MANY),
            groups.remove(1, "u003", "u003"),
            groups.remove(1, "a", "u002"),
        )
        [group] = await groups.get([1])
        assert group in results
        assert {"a", "A"} <= set(group.members) <= {"a", "A", "u001", "u002", "u003"}
        for name in set(group.members) - {"a", "A"}:
            await groups.remove(1, "a", name)


async def test_all_members_can_leave_at_once(groups: GroupStore) -> None:
    """One answer is the last, and the group is deleted."""
    for round_ in range(3):
        names = NAMES[:8]
        await make(groups, round_ + 1, "#team", *names)
        results = await asyncio.gather(*(groups.remove(round_ + 1, name, name) for name in names))
        assert sorted(len(result.members) for result in results if isinstance(result, Group)) == list(range(8))
        assert await groups.find("#team") is None


async def test_two_members_who_add_each_others_users_do_not_fail(groups: GroupStore) -> None:
    """The users are named in opposite orders, in two groups."""
    await make(groups, 1, "#one", "a", "A")
    await make(groups, 2, "#two", "A", "a")
    for round_ in range(5):
        await asyncio.gather(
            groups.add(1, "a", NAMES[:20], 10, MANY),
            groups.add(2, "A", NAMES[:20][::-1], 10, MANY),
            groups.create(10 + round_, f"#{round_}", NAMES[10], NAMES[5:15][::-1], MANY),
        )
        for number, by in ((1, "a"), (2, "A")):
            [group] = await groups.get([number])
            assert len(group.members) == 22
            await asyncio.gather(*(groups.remove(number, by, name) for name in NAMES[:20]))


async def test_a_group_has_two_hundred_members(groups: GroupStore) -> None:
    limits = GroupLimits(members=200, groups=100)
    await make(groups, 1, "#team", *NAMES[:100], limits=limits)
    added = await groups.add(1, NAMES[99], NAMES[50:200], 2, limits)
    assert added == Group(1, "#team", NAMES[0], dict.fromkeys(NAMES[:100], 1) | dict.fromkeys(NAMES[100:200], 2))
    assert await groups.find("#team") == added
    assert await groups.add(1, NAMES[0], [NAMES[200]], 3, limits) == refusal(GroupProblem.GROUP_FULL)


async def test_as_many_groups_as_a_call_may_name_are_found(groups: GroupStore) -> None:
    there = [Group(number, f"#{number}", "a", {"a": number, "A": number}) for number in range(1, PAGE + 1)]
    await cast("ExportableGroups", groups).put(there)
    found = await groups.get([group.number for group in there])
    assert sorted(found, key=lambda group: group.number) == there
    assert await groups.numbers_of("A") == [group.number for group in there]


async def test_an_unavailable_group_store_says_so(users_away: UserStore) -> None:
    groups = cast("ExportableGroups", users_away.groups)
    for call in (
        groups.create(1, "#team", "a", ["A"], LIMITS),
        groups.add(1, "a", ["A"], 2, LIMITS),
        groups.remove(1, "a", "A"),
        groups.delete(1, "a"),
        groups.find("#team"),
        groups.get([1]),
        groups.numbers_of("a"),
        groups.deleted(0, 1),
        groups.forget(1),
        groups.put([Group(1, "#team", "a", {"a": 1})]),
        anext(groups.pages(1)),
    ):
        with pytest.raises(StoreUnavailable):
            await call


async def test_groups_are_read_in_pages_by_number(groups: GroupStore) -> None:
    """Deleted groups are skipped."""
    exportable = cast("ExportableGroups", groups)
    there = [Group(number, f"#{number}", "a", {"a": number, "A": 50}) for number in range(1, 30)]
    await exportable.put(there[::-1])
    for number in (3, 4, 5, 6, 7, 8, 9, 29):
        await groups.delete(number, "a")
    pages = [page async for page in exportable.pages(5)]
    assert [group for page in pages for group in page] == [*there[:2], *there[9:28]]
    assert {len(page) for page in pages[:-1]} == {5}


async def test_groups_are_added_as_they_are(groups: GroupStore) -> None:
    """Whatever the limits and users; a group whose number is in use stays as it is, also a deleted one."""
    exportable = cast("ExportableGroups", groups)
    first = Group(1, "#team", "a", dict.fromkeys(NAMES, 3))
    await exportable.put([first, Group(2, "#deleted", "a", {"a": 2})])
    await groups.delete(2, "a")
    third = Group(3, "#third", "unknown", {"unknown": 3})
    await exportable.put([Group(1, "#other", "A", {"A": 1}), Group(2, "#again", "a", {"a": 2}), third])
    assert await groups.get([1, 2, 3]) == [first, third]
    with pytest.raises(Duplicate):
        await exportable.put([Group(4, "#fourth", "a", {"a": 4}), Group(5, "#team", "a", {"a": 5})])
    assert await groups.find("#team") == first
    assert await groups.find("#fourth") is None
