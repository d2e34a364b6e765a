"""SessionStore, whatever the backend."""

import asyncio
import hashlib

import pytest

from chat_server.cache.sessions import MAX_SESSIONS, SessionStore
from chat_server.utils.errors import StoreUnavailable
from tests.contract.conftest import LIFETIME, Later


def digest(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


async def test_a_session_is_its_user_s(sessions: SessionStore) -> None:
    await sessions.add(digest(1), "1")
    await sessions.add(digest(2), "2")
    assert await sessions.use([digest(1)]) == {digest(1): "1"}
    assert await sessions.use([digest(2), digest(1)]) == {digest(1): "1", digest(2): "2"}


async def test_a_session_that_does_not_exist_is_nobody_s(sessions: SessionStore) -> None:
    await sessions.add(digest(1), "1")
    assert await sessions.use([digest(2)]) == {}
    assert await sessions.use([digest(1), digest(2), digest(1)]) == {digest(1): "1"}
    assert await sessions.use([]) == {}


async def test_any_bytes_may_be_a_digest(sessions: SessionStore) -> None:
    odd = [b"\0" * 32, b"\xff" * 32, b"'; DROP TABLE sessions; --" + b" " * 6, b"*" * 32, b"\r\n" * 16]
    for number, one in enumerate(odd):
        await sessions.add(one, str(number))
    assert await sessions.use(odd) == {one: str(number) for number, one in enumerate(odd)}


async def test_any_letters_may_be_a_user(sessions: SessionStore) -> None:
    names = ["a", "A", "名字", "אבג", "a.b", "a_b", "*", "𠀀", "a\u0301", "é", ":", "a:b", "$x", "'"]
    for number, name in enumerate(names):
        await sessions.add(digest(number), name)
        await sessions.add(digest(100 + number), name)
    for number, name in enumerate(names):
        await sessions.end_others(name, digest(number))
    assert await sessions.use([digest(number) for number in range(200)]) == {
        digest(number): name for number, name in enumerate(names)
    }


async def test_a_new_session_ends_the_oldest_beyond_a_number(sessions: SessionStore, later: Later) -> None:
    await sessions.add(digest(1000), "2")
    for number in range(MAX_SESSIONS + 3):
        await sessions.add(digest(number), "1")
        await later(0.01)
    found = await sessions.use([digest(number) for number in range(MAX_SESSIONS + 3)])
    assert set(found) == {digest(number) for number in range(3, MAX_SESSIONS + 3)}
    assert await sessions.use([digest(1000)]) == {digest(1000): "2"}
    assert await sessions.end_others("1") == MAX_SESSIONS


async def test_a_session_that_ended_is_gone_and_ends_no_other(sessions: SessionStore) -> None:
    await sessions.add(digest(1), "1")
    await sessions.add(digest(2), "1")
    await sessions.end(digest(1))
    assert await sessions.use([digest(1), digest(2)]) == {digest(2): "1"}
    await sessions.end(digest(1))
    await sessions.end(digest(3))
    assert await sessions.use([digest(1), digest(2)]) == {digest(2): "1"}


async def test_the_others_of_a_user_end_and_nobody_else_s(sessions: SessionStore) -> None:
    for number in range(5):
        await sessions.add(digest(number), "1")
    await sessions.add(digest(5), "2")
    await sessions.add(digest(6), "11")
    assert await sessions.end_others("1", digest(3)) == 4
    alive = await sessions.use([digest(number) for number in range(7)])
    assert alive == {digest(3): "1", digest(5): "2", digest(6): "11"}


async def test_all_of_a_user_end_if_the_one_to_keep_is_not_his(sessions: SessionStore) -> None:
    await sessions.add(digest(1), "1")
    await sessions.add(digest(2), "2")
    assert await sessions.end_others("1", digest(2)) == 1
    assert await sessions.use([digest(1), digest(2)]) == {digest(2): "2"}


async def test_all_of_a_user_end_where_none_is_to_be_kept(sessions: SessionStore) -> None:
    for number in range(3):
        await sessions.add(digest(number), "1")
    await sessions.add(digest(3), "2")
    assert await sessions.end_others("1") == 3
    assert await sessions.end_others("1") == 0
    assert await sessions.use([digest(number) for number in range(4)]) == {digest(3): "2"}


async def test_a_session_nobody_used_for_its_lifetime_is_gone(sessions: SessionStore, later: Later) -> None:
    await sessions.add(digest(1), "1")
    await later(LIFETIME + 1)
    assert await sessions.use([digest(1)]) == {}
    await sessions.add(digest(2), "1")
    assert await sessions.use([digest(1), digest(2)]) == {digest(2): "1"}


async def test_use_renews_a_session(sessions: SessionStore, later: Later) -> None:
    await sessions.add(digest(1), "1")
    await sessions.add(digest(2), "1")
    for _ in range(5):
        await later(0.6 * LIFETIME)
        assert await sessions.use([digest(1)]) == {digest(1): "1"}
    assert await sessions.use([digest(2)]) == {}


async def test_frequent_use_renews_a_session_too(sessions: SessionStore, later: Later) -> None:
    await sessions.add(digest(1), "1")
    for _ in range(250):
        await later(0.005 * LIFETIME)
        assert await sessions.use([digest(1)]) == {digest(1): "1"}


async def test_use_does_not_bring_back_what_ends_at_the_same_time(sessions: SessionStore, later: Later) -> None:
    for number in range(20):
        await sessions.add(digest(number), "1")
    await later(LIFETIME / 2)
    digests = [digest(number) for number in range(20)]
    await asyncio.gather(sessions.use(digests), sessions.end_others("1", digest(0)), sessions.use(digests))
    assert await sessions.use(digests) == {digest(0): "1"}


async def test_many_sessions_at_once(sessions: SessionStore) -> None:
    await asyncio.gather(*(sessions.add(digest(number), str(number)) for number in range(300)))
    assert await sessions.use([digest(number) for number in range(300)]) == {
        digest(number): str(number) for number in range(300)
    }


async def test_a_caller_who_goes_takes_nobody_with_him(sessions: SessionStore) -> None:
    tasks = [asyncio.create_task(sessions.add(digest(number), "1")) for number in range(10)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    others = [digest(number) for number in range(1, 10, 2)]
    assert await sessions.use(others) == dict.fromkeys(others, "1")


async def test_it_answers(sessions: SessionStore) -> None:
    await sessions.ping()


async def test_a_store_that_is_away_says_so(sessions_away: SessionStore) -> None:
    for asked in (
        sessions_away.add(digest(1), "1"),
        sessions_away.use([digest(1)]),
        sessions_away.end(digest(1)),
        sessions_away.end_others("1", digest(1)),
        sessions_away.ping(),
    ):
        with pytest.raises(StoreUnavailable):
            await asked
