"""UserStore on every backend."""

import asyncio

import pytest

from chat_server.model.users import State, User, UserStore
from chat_server.utils.errors import Duplicate, StoreUnavailable

# Names that a collation, an index or a query language could confuse or interpret.
DIFFERENT = [
    *("a", "A", "á", "à", "ä", "æ", "ae", "ª", "Ａ", "а"),  # the last is Cyrillic
    *("ß", "ss", "SS", "ẞ", "i", "I", "ı", "İ", "ﬁ", "fi", "ǆ", "dž"),
    *("1", "１", "²", "2", "①", "01", "1.0", "٣", "3"),
    *(".", "..", "_", "-", "@", "a.b", "a_b", "a-b", "aab", "a@b", "_id", "null", "None", "true"),
    *("名字", "名", "か", "カ", "が", "אבג", "مرحبا", "กำ", "𝔘", "𠀀", "𠀁", "a\u0301\u0323"),
]
# No user can have these names, but a client may ask for them.
STRANGE = ["", " ", "a ", " a", "%", "*", "$ne", "$", "'", '"', "\\", "\0", "a\0", "\0a", "a\n", "😀", "a" * 5000]


async def test_an_added_user_is_found(users: UserStore) -> None:
    await users.add(User("1", "hash"))
    assert await users.get("1") == User("1", "hash")


async def test_an_unknown_user_is_not_found(users: UserStore) -> None:
    assert await users.get("1") is None


async def test_a_name_is_taken_once(users: UserStore) -> None:
    await users.add(User("1", "first"))
    with pytest.raises(Duplicate):
        await users.add(User("1", "second"))
    assert await users.get("1") == User("1", "first")


async def test_concurrent_registrations_create_one_user(users: UserStore) -> None:
    """Users with similar names stay unchanged."""
    adding = [users.add(User("1", f"hash {number}")) for number in range(10)]
    adding += [users.add(User(f"neighbour{number}", "hash")) for number in range(10)]
    results = await asyncio.gather(*adding, return_exceptions=True)
    winners = [number for number, result in enumerate(results[:10]) if result is None]
    assert len(winners) == 1
    assert sum(isinstance(result, Duplicate) for result in results[:10]) == 9
    assert results[10:] == [None] * 10
    assert await users.get("1") == User("1", f"hash {winners[0]}")


async def test_a_name_is_exactly_that_name(users: UserStore) -> None:
    for name in DIFFERENT:
        await users.add(User(name, f"hash of {name}"))
    for name in DIFFERENT:
        assert await users.get(name) == User(name, f"hash of {name}")


async def test_the_longest_names_differ_in_their_last_letter(users: UserStore) -> None:
    for last in ("a", "b", "𠀀"):
        await users.add(User("𠀀" * 63 + last, last))
    for last in ("a", "b", "𠀀"):
        assert await users.get("𠀀" * 63 + last) == User("𠀀" * 63 + last, last)


@pytest.mark.parametrize("name", STRANGE)
async def test_an_impossible_name_is_not_found(users: UserStore, name: str) -> None:
    for known in ("a", "aa", "1", "."):
        await users.add(User(known, "hash"))
    assert await users.get(name) is None
    assert not await users.set_password(name, "hash", "new")
    assert not await users.set_state(name, State.DISABLED)
    assert not await users.remove(name)
    assert await users.enabled([name, "a", "aa", "1", "."]) == {"a", "aa", "1", "."}


async def test_set_password_requires_the_old_hash(users: UserStore) -> None:
    await users.add(User("1", "old"))
    await users.add(User("2", "old"))
    assert await users.set_password("1", "old", "new")
    assert await users.get("1") == User("1", "new")
    assert await users.get("2") == User("2", "old")
    assert not await users.set_password("1", "old", "newer")
    assert not await users.set_password("1", "NEW", "newer")
    assert await users.get("1") == User("1", "new")


async def test_set_password_of_an_unknown_user_returns_false(users: UserStore) -> None:
    assert not await users.set_password("1", "old", "new")
    assert await users.get("1") is None


async def test_one_of_many_concurrent_password_changes_succeeds(users: UserStore) -> None:
    await users.add(User("1", "old"))
    changed = await asyncio.gather(*(users.set_password("1", "old", f"new {number}") for number in range(10)))
    assert changed.count(True) == 1
    assert await users.get("1") == User("1", f"new {changed.index(True)}")


async def test_set_state_changes_only_this_user(users: UserStore) -> None:
    for name in ("a", "A", "b"):
        await users.add(User(name, "hash"))
    for state in (State.DISABLED, State.REMOVED, State.REMOVED, State.ENABLED, State.ENABLED):
        assert await users.set_state("a", state)
        assert await users.get("a") == User("a", "hash", state)
        assert await users.get("A") == User("A", "hash")
    await users.add(User("c", "hash", State.DISABLED))
    assert await users.get("c") == User("c", "hash", State.DISABLED)


async def test_set_state_of_an_unknown_user_returns_false(users: UserStore) -> None:
    assert not await users.set_state("1", State.DISABLED)
    assert await users.get("1") is None


async def test_enabled_returns_only_users_who_may_log_in(users: UserStore) -> None:
    for name in DIFFERENT:
        await users.add(User(name, "hash"))
    for name in DIFFERENT[1::2]:
        await users.set_state(name, State.DISABLED)
    await users.set_state(DIFFERENT[0], State.REMOVED)
    assert await users.enabled([*DIFFERENT, "unknown"]) == set(DIFFERENT[2::2])
    assert await users.enabled([f"unknown{number}" for number in range(1000)]) == set()
    assert await users.enabled([]) == set()


async def test_remove_deletes_a_user_and_frees_the_name(users: UserStore) -> None:
    for name in DIFFERENT:
        await users.add(User(name, "hash"))
    assert await users.remove(DIFFERENT[0])
    assert not await users.remove(DIFFERENT[0])
    assert await users.get(DIFFERENT[0]) is None
    assert await users.enabled(DIFFERENT) == set(DIFFERENT[1:])
    await users.add(User(DIFFERENT[0], "another"))
    assert await users.get(DIFFERENT[0]) == User(DIFFERENT[0], "another")


async def test_cancelling_a_caller_does_not_affect_others(users: UserStore) -> None:
    """Whether the cancelled user was added is unknown; a second attempt tells."""
    tasks = [asyncio.create_task(users.add(User(f"user{number}", "hash"))) for number in range(10)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for number in range(1, 10, 2):
        assert await users.get(f"user{number}") == User(f"user{number}", "hash")
    for number in range(0, 10, 2):
        try:
            await users.add(User(f"user{number}", "hash"))
        except Duplicate:
            pass
        assert await users.get(f"user{number}") == User(f"user{number}", "hash")


async def test_ping_returns(users: UserStore) -> None:
    await users.ping()


async def test_an_unavailable_store_raises_store_unavailable(users_away: UserStore) -> None:
    for asked in (
        users_away.add(User("1", "hash")),
        users_away.get("1"),
        users_away.set_password("1", "old", "new"),
        users_away.enabled(["1"]),
        users_away.set_state("1", State.DISABLED),
        users_away.remove("1"),
        users_away.ping(),
    ):
        with pytest.raises(StoreUnavailable):
            await asked
