"""The exportable stores: migrations read and write data as it is stored."""

from collections.abc import Awaitable
from typing import cast

import pytest

from chat_server.cache.contacts import ContactRecord, ContactState, ContactStore, ExportableContacts, Permission
from chat_server.cache.sessions import ExportableSessions, SessionRecord, SessionStore
from chat_server.model.messages import ExportableMessages, Message, MessageStore, Pair, Record
from chat_server.model.users import ExportableUsers, State, User, UserStore
from chat_server.utils.clock import MICROSECONDS, Clock
from chat_server.utils.digest import digest
from chat_server.utils.errors import Duplicate, StoreUnavailable

EVER = 2**62
PAIR = Pair("1", "2")
T = 1_700_000_000_000_000


def record(sender: str, receiver: str, time: int, text: str | bytes = "text", *, read: bool = False) -> Record:
    """Return a stored message with an id made from its time."""
    return Record(sender, receiver, f"m{time}", text, T + time, read or isinstance(text, bytes))


# --- users


async def test_users_are_ordered_by_code_points(users: UserStore) -> None:
    store = cast("ExportableUsers", users)
    names = ["-", "A", "Z", "a", "a-b", "a.b", "aa", "é", "ﬀ", "𐐀"]
    await store.put([User(name, f"hash of {name}") for name in reversed(names)])
    pages = [page async for page in store.pages(3)]
    assert [user.name for page in pages for user in page] == names == sorted(names)
    assert [len(page) for page in pages] == [3, 3, 3, 1]
    assert await store.count() == len(names)


async def test_users_keep_their_state(users: UserStore) -> None:
    store = cast("ExportableUsers", users)
    there = [User("1", "hash"), User("2", "hash", State.DISABLED), User("3", "", State.REMOVED)]
    await store.put(there)
    assert [user for page in [page async for page in store.pages(2)] for user in page] == there
    await store.put([User("2", "hash")])
    assert await store.get("2") == there[1]


async def test_put_keeps_existing_users(users: UserStore) -> None:
    store = cast("ExportableUsers", users)
    await store.add(User("1", "first"))
    await store.put([User("1", "second"), User("2", "new")])
    assert await store.get("1") == User("1", "first")
    assert await store.get("2") == User("2", "new")


# --- messages


async def test_put_and_records_preserve_messages_and_tombstones(messages: MessageStore) -> None:
    store = cast("ExportableMessages", messages)
    there = [
        record("1", "2", 1, "\0 ' $ \u202e 🙂"),
        record("2", "1", 2, digest("deleted")),
        record("2", "1", 3, "", read=True),
        record("1", "2", 4, digest("deleted")),
        record("1", "2", 6),
    ]
    await store.put(there[:3])
    await store.put(there[3:])
    await store.update_last(PAIR)
    assert await store.records(Pair("2", "1"), 0, EVER, 10) == there
    assert await store.records(PAIR, 0, EVER, 2) == there[:2]
    assert await store.records(PAIR, T + 1, T + 4, 10) == there[1:4]
    assert await store.count() == 5
    assert [pair async for pair in store.pairs()] == [("1", "2")]
    assert await store.used_times([T + 1, T + 4, T + 5]) == {T + 1, T + 4}
    assert [message.time for message in await store.after(PAIR, 0, 10)] == [T + 1, T + 3, T + 6]
    assert [message.time for message in await store.unread("1", "2", 0, 10)] == [T + 1, T + 6]
    [tombstone] = await store.stored([Message("2", "1", "m2", "deleted", EVER)])
    assert tombstone
    assert (tombstone.same, tombstone.unread, tombstone.time) == (True, False, T + 2)


async def test_put_replaces_an_earlier_state_of_a_message(messages: MessageStore) -> None:
    store = cast("ExportableMessages", messages)
    await store.put([record("1", "2", 1), record("1", "2", 2), record("1", "2", 3)])
    now = [
        record("1", "2", 1),
        record("1", "2", 2, read=True),
        record("1", "2", 3, digest("text")),
        record("2", "1", 4),
    ]
    await store.put(now)
    await store.put(now)
    assert await store.records(PAIR, 0, EVER, 10) == now
    assert await store.count() == 4


@pytest.mark.parametrize(
    "other",
    [
        record("2", "1", 1),
        record("3", "4", 1),
        Record("1", "2", "m1", "text", T + 9, read=False),
    ],
    ids=["its time, by the other", "its time, elsewhere", "its id"],
)
async def test_put_refuses_to_replace_another_message(messages: MessageStore, other: Record) -> None:
    store = cast("ExportableMessages", messages)
    await store.put([record("1", "2", 1)])
    with pytest.raises(Duplicate):
        await store.put([other])
    assert await store.records(PAIR, 0, EVER, 10) == [record("1", "2", 1)]
    assert await store.count() == 1


async def test_update_last_lists_a_conversation_at_its_newest_message(messages: MessageStore) -> None:
    store = cast("ExportableMessages", messages)
    await store.put([record("1", "2", 1), record("2", "1", 9, digest("deleted"))])
    await store.put([record("1", "3", 5)])
    await store.put([record("1", "4", 7, digest("deleted"))])
    for other in ("2", "3", "4"):
        await store.update_last(Pair("1", other))
    assert [conversation.peer for conversation in await store.conversations("1", 2**62, 10)] == ["3", "2"]
    assert [pair async for pair in store.pairs()] == [("1", "2"), ("1", "3"), ("1", "4")]
    await store.add([Message("2", "1", "new", "new", T + 10)])
    assert [conversation.peer for conversation in await store.conversations("1", 2**62, 10)] == ["2", "3"]


# --- sessions and counters


async def test_put_and_peek_preserve_sessions(sessions: SessionStore) -> None:
    store = cast("ExportableSessions", sessions)
    ends = Clock().now() // 1000 * 1000 + 500 * MICROSECONDS
    there = [SessionRecord(bytes([n]) * 32, "user", ends + n * MICROSECONDS) for n in range(5)]
    await store.put(there)
    await store.put(there[:2])
    found = [session for page in [page async for page in store.pages(2)] for session in page]
    assert sorted(set(found), key=str) == sorted(there, key=str)
    assert await store.peek([there[3].digest, b"none" * 8]) == [there[3]]
    assert await store.use([there[0].digest]) == {there[0].digest: "user"}
    await store.end_others("user", there[4].digest)
    assert await store.peek([session.digest for session in there]) == [there[4]]


async def test_peeking_renews_nothing(sessions: SessionStore) -> None:
    store = cast("ExportableSessions", sessions)
    ends = Clock().now() // 1000 * 1000 + 100 * MICROSECONDS
    await store.put([SessionRecord(b"1" * 32, "1", ends)])
    assert await store.peek([b"1" * 32]) == await store.peek([b"1" * 32]) == [SessionRecord(b"1" * 32, "1", ends)]


async def test_put_and_peek_preserve_contact_states(strangers: ContactStore) -> None:
    store = cast("ExportableContacts", strangers)
    now = Clock().now()
    there = [
        ContactRecord("1", "2", ContactState("2", 3, now, refused=True), now + 200 * MICROSECONDS),
        ContactRecord("1", "é.-@", ContactState("1", 1, now), now + 200 * MICROSECONDS),
        ContactRecord("A", "a", ContactState(until=now + 90 * MICROSECONDS), now + 200 * MICROSECONDS),
    ]
    await store.put(there)
    found = [one for page in [page async for page in store.pages(2)] for one in page]
    assert {(one.one, one.other): one.state for one in found} == {(one.one, one.other): one.state for one in there}
    assert all(abs(one.expires - now - 200 * MICROSECONDS) < 5 * MICROSECONDS for one in found)
    [peeked] = await store.peek([("A", "a"), ("A", "b")])
    assert peeked.state == there[2].state
    assert (await store.take("2", "1", "one", now + 1)).permission is Permission.REFUSED
    assert (await store.take("a", "A", "one", now + 1)).permission is Permission.FREE
    assert (await store.take("1", "é.-@", "one", now + 1)).permission is Permission.COUNTED
    [counted] = await store.peek([("1", "é.-@")])
    assert counted.state == ContactState("1", 2, now)
    await store.put([ContactRecord("1", "é.-@", ContactState("1", 3, now), now + 200 * MICROSECONDS)])
    assert (await store.take("1", "é.-@", "one", now + 2)).permission is Permission.REFUSED


# --- unavailable


async def test_unavailable_users_raise_store_unavailable(users_away: UserStore) -> None:
    store = cast("ExportableUsers", users_away)
    await _all_fail(store.count(), store.put([User("1", "hash")]), anext(store.pages(1)))


async def test_unavailable_messages_raise_store_unavailable(messages_away: MessageStore) -> None:
    store = cast("ExportableMessages", messages_away)
    await _all_fail(
        store.count(),
        store.put([record("1", "2", 1)]),
        store.update_last(PAIR),
        store.records(PAIR, 0, EVER, 1),
        store.used_times([1]),
        anext(store.pairs()),
    )


async def test_unavailable_sessions_raise_store_unavailable(sessions_away: SessionStore) -> None:
    store = cast("ExportableSessions", sessions_away)
    session = SessionRecord(b"1", "1", Clock().now())
    await _all_fail(store.put([session]), store.peek([b"1"]), anext(store.pages(1)))


async def test_unavailable_contacts_raise_store_unavailable(strangers_away: ContactStore) -> None:
    store = cast("ExportableContacts", strangers_away)
    state = ContactRecord("1", "2", ContactState(), 1)
    await _all_fail(store.put([state]), store.peek([("1", "2")]), anext(store.pages(1)))


async def _all_fail(*calls: Awaitable[object]) -> None:
    for call in calls:
        with pytest.raises(StoreUnavailable):
            await call
