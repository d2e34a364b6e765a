"""SessionStore on every backend."""

import asyncio
import hashlib

import pytest

from chat_server.cache.sessions import MAX_SESSIONS, SessionStore
from chat_server.utils.errors import StoreUnavailable
from tests.contract.conftest import LIFETIME, Later


def digest(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


async def test_a_session_belongs_to_its_user(sessions: SessionStore) -> None:
    await sessions.add(digest(1), "1")
    await sessions.add(digest(2), "2")
    assert await sessions.use([digest(1)]) == {digest(1): "1"}
    assert await sessions.use([digest(2), digest(1)]) == {digest(1): "1", digest(2): "2"}


async def test_an_unknown_session_has_no_user(sessions: SessionStore) -> None:
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


async def test_a_new_session_ends_the_oldest_beyond_the_limit(sessions: SessionStore, later: Later) -> None:
    await sessions.add(digest(1000), "2")
    for number in range(MAX_SESSIONS + 3):
        await sessions.add(digest(number), "1")
        await later(0.01)
    found = await sessions.use([digest(number) for number in range(MAX_SESSIONS + 3)])
    assert set(found) == {digest(number) for number in range(3, MAX_SESSIONS + 3)}
    assert await sessions.use([digest(1000)]) == {digest(1000): "2"}
    assert await sessions.end_others("1") == MAX_SESSIONS


async def test_end_ends_only_this_session(sessions: SessionStore) -> None:
    await sessions.add(digest(1), "1")
    await sessions.add(digest(2), "1")
    await sessions.end(digest(1))
    assert await sessions.use([digest(1), digest(2)]) == {digest(2): "1"}
    await sessions.end(digest(1))
    await sessions.end(digest(3))
    assert await sessions.use([digest(1), digest(2)]) == {digest(2): "1"}


async def test_end_others_ends_only_sessions_of_this_user(sessions: SessionStore) -> None:
    for number in range(5):
        await sessions.add(digest(number), "1")
    await sessions.add(digest(5), "2")
    await sessions.add(digest(6), "11")
    assert await sessions.end_others("1", digest(3)) == 4
    alive = await sessions.use([digest(number) for number in range(7)])
    assert alive == {digest(3): "1", digest(5): "2", digest(6): "11"}


async def test_end_others_ignores_a_session_of_another_user(sessions: SessionStore) -> None:
    await sessions.add(digest(1), "1")
    await sessions.add(digest(2), "2")
    assert await sessions.end_others("1", digest(2)) == 1
    assert await sessions.use([digest(1), digest(2)]) == {digest(2): "2"}


async def test_end_others_without_keep_ends_all_sessions(sessions: SessionStore) -> None:
    for number in range(3):
        await sessions.add(digest(number), "1")
    await sessions.add(digest(3), "2")
    assert await sessions.end_others("1") == 3
    assert await sessions.end_others("1") == 0
    assert await sessions.use([digest(number) for number in range(4)]) == {digest(3): "2"}


async def test_an_unused_session_expires(sessions: SessionStore, later: Later) -> None:
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


async def test_use_does_not_restore_a_session_that_is_ending(sessions: SessionStore, later: Later) -> None:
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


async def test_cancelling_a_caller_does_not_affect_others(sessions: SessionStore) -> None:
    tasks = [asyncio.create_task(sessions.add(digest(number), "1")) for number in range(10)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    others = [digest(number) for number in range(1, 10, 2)]
    assert await sessions.use(others) == dict.fromkeys(others, "1")


async def test_ping_returns(sessions: SessionStore) -> None:
    await sessions.ping()


async def test_an_unavailable_store_raises_store_unavailable(sessions_away: SessionStore) -> None:
    for asked in (
        sessions_away.add(digest(1), "1"),
        sessions_away.use([digest(1)]),
        sessions_away.end(digest(1)),
        sessions_away.end_others("1", digest(1)),
        sessions_away.ping(),
    ):
        with pytest.raises(StoreUnavailable):
            await asked
