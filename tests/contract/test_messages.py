"""MessageStore on every backend."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chat_server.model.messages import MAX_UNREAD, Added, Confirmed, Conversation, Message, MessageStore, Pair
from chat_server.utils.clock import Timeline
from chat_server.utils.errors import StoreUnavailable
from tests.harness import SEARCH, TIMEOUT

END = 2**62
PAIR = Pair("1", "2")
TEXTS = [
    *("hello", " ", "\n", "a\nb\r\nc\n", "\0", "a\0b", "'", '"', "\\", "`", "''; DROP TABLE messages; --"),
    *("$", "$ne", '{"$ne": 1}', "a.b", ".", "%", "_", "*", "?", "[a]", "{}", "null", "1", "1.0", "0x1f", "1e400"),
    *("אבג", "مرحبا", "\u202eabc", "名字", "é", "e\u0301", "😀", "👩‍👩‍👧", "𠀀"),
    *("\ufeff", "\uffff", "\U0010ffff", "x" * 20000),
]
IDS = ["a", "A", "0", "00", "-1", ".", "..", "_id", "a.b", "a:b", "a-b", "a_b", "null", "1", "01", "x" * 64, "x" * 63]
# Pairs that a careless way to join two names would confuse.
PAIRS = [
    *(("a", "b.c"), ("a.b", "c"), ("a", "b-c"), ("a-b", "c"), ("a", "b_c"), ("a_b", "c"), ("a", "b@c"), ("a@b", "c")),
    *(("1", "11"), ("11", "1"), ("111", "1"), ("a", "B"), ("A", "b"), ("A", "B")),
    *(("א", "ב"), ("名", "字"), ("𠀀", "𠀁")),
    *(("aSEPb", "c"), ("a", "bSEPc"), ("ß", "ss"), ("é", "e"), (".", "_"), ("-", "@"), ("a", "."), ("null", "a")),
]


class Contributor:
    """Writes messages, each with the next time."""

    def __init__(self, store: MessageStore, timeline: Timeline) -> None:
        self.store = store
        self.timeline = timeline

    def message(self, id: str, text: str = "", sender: str = "1", receiver: str = "2") -> Message:
        return Message(sender, receiver, id, text or f"text of {id}", self.timeline.next())

    async def add(self, *ids: str, sender: str = "1", receiver: str = "2") -> list[Message]:
        """Store messages with these ids and return them."""
        run = [self.message(id, sender=sender, receiver=receiver) for id in ids]
        assert await self.store.add(run) == [Added(message.time) for message in run]
        return run

    async def all(self, one: str = "1", other: str = "2") -> list[Message]:
        return await self.store.after(Pair(one, other), 0, 10_000)


@pytest.fixture
def writer(messages: MessageStore, timeline: Timeline) -> Contributor:
    return Contributor(messages, timeline)


async def following(store: MessageStore, user: str, peer: str, count: int) -> list[Conversation]:
    """Return the user's conversations after the one with `peer`."""
    before = await store.listed_at(user, peer)
    if before is None:
        raise KeyError(peer)
    return await store.conversations(user, before, count)


def listing(peer: str, last: Message, unread: int) -> Conversation:
    return Conversation(peer, last, unread, last.time)


def ids(page: Sequence[Message]) -> list[str]:
    return [message.id for message in page]


# --- adding


async def test_added_messages_are_stored_unread_in_order(messages: MessageStore, writer: Contributor) -> None:
    run = [writer.message(f"m{number}", text) for number, text in enumerate(TEXTS)]
    assert await messages.add(run) == [Added(message.time) for message in run]
    assert await messages.after(PAIR, 0, 1000) == run
    assert await messages.before(Pair("2", "1"), END, 1000) == run
    assert await messages.skip(PAIR, 0, 1000) == run
    assert await messages.unread("1", "2", 0, 1000) == run


async def test_an_empty_store_has_no_messages(messages: MessageStore) -> None:
    assert await messages.add([]) == []
    assert await messages.newest() == 0
    assert await messages.skip(PAIR, 0, 10) == []
    assert await messages.before(PAIR, END, 10) == []
    assert await messages.after(PAIR, 0, 10) == []
    assert await messages.unread("1", "2", 0, 10) == []
    assert await messages.recent(PAIR, 10) == []
    assert await messages.have_written(["1"], "2") == set()
    assert await messages.time_of(PAIR, "1", "m") is None
    assert await messages.mark("1", "2", ["m"]) == (set(), [])
    assert await messages.mark_delivered([]) == set()
    assert await messages.mark_delivered([1, 2]) == set()
    assert await messages.delete(PAIR, [[("1", "m"), ("2", "m")]]) == [None]
    assert await messages.conversations("1", END, 10) == []
    assert await messages.purge(END, 10) == 0


async def test_newest_includes_deleted_messages(messages: MessageStore, writer: Contributor) -> None:
    await writer.add("a", "b")
    [newest] = await writer.add("c", sender="3", receiver="4")
    assert await messages.newest() == newest.time
    await messages.delete(Pair("3", "4"), [[("3", "c")]])
    assert await messages.newest() == newest.time


async def test_a_retry_is_stored_once_and_returns_the_first_time(messages: MessageStore, writer: Contributor) -> None:
    [first] = await writer.add("m")
    again = await messages.add([writer.message("m", first.text)])
    assert again == [Added(first.time, new=False, same=True, unread=True)]
    await messages.mark("1", "2", ["m"])
    again = await messages.add([writer.message("m", first.text)])
    assert again == [Added(first.time, new=False, same=True, unread=False)]
    assert ids(await writer.all()) == ["m"]


async def test_the_same_id_with_another_text_changes_nothing(messages: MessageStore, writer: Contributor) -> None:
    [first] = await writer.add("m")
    for text in ("other", first.text + " ", first.text.upper(), first.text + "\0"):
        again = await messages.add([writer.message("m", text)])
        assert again == [Added(first.time, new=False, same=False, unread=True)]
    assert await writer.all() == [first]


async def test_a_retry_is_recognized_by_any_text_and_after_deletion(
    messages: MessageStore, writer: Contributor
) -> None:
    for number, text in enumerate(TEXTS):
        first = writer.message(f"m{number}", text)
        await messages.add([first])
        assert await messages.add([writer.message(first.id, text)]) == [Added(first.time, new=False)], text
        assert not (await messages.add([writer.message(first.id, text + "x")]))[0].same, text
        await messages.delete(PAIR, [[("1", first.id)]])
        assert await messages.add([writer.message(first.id, text)]) == [Added(first.time, new=False, unread=False)], (
            text
        )
        assert not (await messages.add([writer.message(first.id, text + "x")]))[0].same, text


async def test_a_retry_within_a_batch_is_stored_once(messages: MessageStore, writer: Contributor) -> None:
    run = [writer.message(id, text) for id, text in (("a", "x"), ("b", "x"), ("a", "x"), ("a", "y"), ("c", "x"))]
    assert await messages.add(run) == [
        Added(run[0].time),
        Added(run[1].time),
        Added(run[0].time, new=False),
        Added(run[0].time, new=False, same=False),
        Added(run[4].time),
    ]
    assert await writer.all() == [run[0], run[1], run[4]]


async def test_concurrent_retries_are_stored_once(messages: MessageStore, writer: Contributor) -> None:
    run = [writer.message("m", "text") for _ in range(20)]
    added = [one for [one] in await asyncio.gather(*(messages.add([message]) for message in run))]
    [stored] = await writer.all()
    assert [one.new for one in added].count(True) == 1
    assert {one.time for one in added} == {stored.time}
    assert all(one.same for one in added)


async def test_concurrent_texts_with_one_id_store_one_message(messages: MessageStore, writer: Contributor) -> None:
    run = [writer.message("m", f"text {number}") for number in range(20)]
    added = [one for [one] in await asyncio.gather(*(messages.add([message]) for message in run))]
    winners = [message for message, one in zip(run, added, strict=True) if one.new]
    assert await writer.all() == winners
    assert len(winners) == 1
    assert {one.time for one in added} == {winners[0].time}
    assert [one.same for one in added].count(False) == 19


async def test_concurrent_conversations_keep_their_order(messages: MessageStore, writer: Contributor) -> None:
    runs = [
        [writer.message(f"m{batch}.{number}", sender=sender) for number in range(3)]
        for batch in range(10)
        for sender in ("1", "3", "4")
    ]
    await asyncio.gather(*map(messages.add, runs))
    for sender in ("1", "3", "4"):
        mine = [message for run in runs for message in run if message.sender == sender]
        assert await writer.all(sender, "2") == mine


async def test_an_id_is_unique_per_direction_of_a_conversation(messages: MessageStore, writer: Contributor) -> None:
    directions = [("1", "2"), ("2", "1"), ("1", "3"), ("3", "2")]
    run = [writer.message("m", f"{one} to {other}", one, other) for one, other in directions]
    assert await messages.add(run) == [Added(message.time) for message in run]
    assert await writer.all() == run[:2]
    for message in run:
        time = await messages.time_of(Pair(message.sender, message.receiver), message.sender, "m")
        assert time == message.time


async def test_an_id_is_exactly_that_id(messages: MessageStore, writer: Contributor) -> None:
    run = await writer.add(*IDS)
    for message in run:
        assert await messages.time_of(PAIR, "1", message.id) == message.time
        assert await messages.mark("1", "2", [message.id]) == ({message.id}, [message.id])
    for message in run:
        assert await messages.delete(PAIR, [[("1", message.id)]]) == [("1", message.id)]


async def test_conversations_never_mix_for_any_names(messages: MessageStore, writer: Contributor) -> None:
    run = [writer.message("m", f"{one} to {other}", one, other) for one, other in PAIRS]
    added = await messages.add(run)
    for (one, other), message, result in zip(PAIRS, run, added, strict=True):
        assert result == Added(message.time)
        assert [found for found in await writer.all(one, other) if found.sender == one] == [message]
        assert await messages.unread(one, other, 0, 10) == [message]
        assert {conversation.peer for conversation in await messages.conversations(one, END, 100)} == {
            *(b for a, b in PAIRS if a == one),
            *(a for a, b in PAIRS if b == one),
        }


async def test_cancelling_a_caller_does_not_affect_others(messages: MessageStore, writer: Contributor) -> None:
    """Whether the cancelled message was stored is unknown; its retry is stored once."""
    run = [writer.message(f"m{number}") for number in range(20)]
    tasks = [asyncio.create_task(messages.add([message])) for message in run]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for message, task in zip(run[1::2], tasks[1::2], strict=True):
        assert await task == [Added(message.time)]
    for message in run[::2]:
        [again] = await messages.add([writer.message(message.id, message.text)])
        assert again.same
    assert sorted(ids(await writer.all())) == sorted(ids(run))


async def test_stored_returns_existing_messages(messages: MessageStore, writer: Contributor) -> None:
    first, deleted = await writer.add("m", "deleted")
    await messages.delete(PAIR, [[("1", "deleted")]])
    assert await messages.stored(
        [
            writer.message("m", first.text),
            writer.message("other"),
            writer.message("m", "other"),
            writer.message("deleted", deleted.text),
            writer.message("m", first.text, "2", "1"),
        ]
    ) == [
        Added(first.time, new=False),
        None,
        Added(first.time, new=False, same=False),
        Added(deleted.time, new=False, unread=False),
        None,
    ]
    assert ids(await writer.all()) == ["m"]


# --- queries of the contact limit


async def test_recent_returns_sender_and_time_newest_first(messages: MessageStore, writer: Contributor) -> None:
    run = [
        *await writer.add("a", "b"),
        *await writer.add("c", sender="2", receiver="1"),
        *await writer.add("d"),
    ]
    await writer.add("e", sender="1", receiver="3")
    newest_first = [(message.sender, message.time) for message in run[::-1]]
    assert await messages.recent(PAIR, 10) == newest_first
    assert await messages.recent(Pair("2", "1"), 3) == newest_first[:3]


async def test_a_deleted_message_still_counts_as_written(messages: MessageStore, writer: Contributor) -> None:
    run = await writer.add("a", "b", "c")
    await messages.delete(PAIR, [[("1", "b")], [("1", "c")]])
    expected = [("1", message.time) for message in run[::-1]]
    assert await messages.recent(PAIR, 10) == expected
    assert await messages.recent(PAIR, 2) == expected[:2]
    await messages.delete(PAIR, [[("1", "a")]])
    assert await messages.have_written(["1"], "2") == {"1"}


async def test_have_written_covers_one_direction(messages: MessageStore, writer: Contributor) -> None:
    await writer.add("a")
    await writer.add("b", sender="3", receiver="2")
    await writer.add("c", sender="2", receiver="4")
    assert await messages.have_written(["4", "3", "1", "unknown", "2"], "2") == {"1", "3"}
    assert await messages.have_written(["1", "2"], "1") == set()
    assert await messages.have_written(["1"], "3") == set()
    assert await messages.have_written([], "2") == set()


# --- pages


async def test_time_of_depends_on_sender_and_conversation(messages: MessageStore, writer: Contributor) -> None:
    [mine] = await writer.add("m")
    [other] = await writer.add("m", sender="2", receiver="1")
    assert await messages.time_of(PAIR, "1", "m") == mine.time
    assert await messages.time_of(Pair("2", "1"), "1", "m") == mine.time
    assert await messages.time_of(PAIR, "2", "m") == other.time
    assert await messages.time_of(Pair("1", "3"), "1", "m") is None
    assert await messages.time_of(PAIR, "1", "M") is None


async def test_a_tombstone_stays_a_position_and_is_in_no_page(messages: MessageStore, writer: Contributor) -> None:
    run = await writer.add("a", "b", "c", "d")
    await messages.delete(PAIR, [[("1", "b")]])
    time = await messages.time_of(PAIR, "1", "b")
    assert time == run[1].time
    assert ids(await messages.before(PAIR, time, 10)) == ["a"]
    assert ids(await messages.after(PAIR, time, 10)) == ["c", "d"]
    assert ids(await messages.skip(PAIR, 1, 10)) == ["c", "d"]
    assert ids(await messages.unread("1", "2", 0, 10)) == ["a", "c", "d"]


async def test_pages_contain_both_directions_with_sender_and_read(messages: MessageStore, writer: Contributor) -> None:
    [mine], [other] = await writer.add("m"), await writer.add("n", sender="2", receiver="1")
    await messages.mark("2", "1", ["n"])
    expected = [mine, Message("2", "1", "n", other.text, other.time, read=True)]
    for page in (
        messages.skip(PAIR, 0, 5),
        messages.before(Pair("2", "1"), END, 5),
        messages.after(PAIR, 0, 5),
    ):
        assert await page == expected


async def test_skipping_everything_returns_an_empty_page(messages: MessageStore, writer: Contributor) -> None:
    await writer.add("a", "b")
    for skip in (2, 3, 10**15, 2**62):
        assert await messages.skip(PAIR, skip, 10) == []


people = (f"p{number}" for number in range(10**9))
sent = st.lists(st.tuples(st.booleans(), st.sampled_from(["stays", "stays", "read", "deleted"])), max_size=14)
looks = st.lists(
    st.tuples(st.sampled_from(["skip", "before", "after", "unread", "last"]), st.integers(-1, 15), st.integers(1, 6)),
    min_size=3,
    max_size=10,
)


@given(sent, looks)
@settings(max_examples=60 * SEARCH, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_pages_match_a_list_model(
    messages: MessageStore, timeline: Timeline, sent: list[tuple[bool, str]], looks: list[tuple[str, int, int]]
) -> None:
    one, other = next(people), next(people)
    names = [(one, other), (other, one)]
    run = [Message(*names[mine], f"m{n}", f"text {n}", timeline.next()) for n, (mine, _) in enumerate(sent)]
    await messages.add(run)
    model: list[Message] = []
    for message, (_, fate) in zip(run, sent, strict=True):
        if fate == "read":
            await messages.mark(message.sender, message.receiver, [message.id])
        if fate == "deleted":
            await messages.delete(Pair(one, other), [[(message.sender, message.id)]])
        else:
            model.append(msgspec.structs.replace(message, read=fate == "read"))
    for look, at, count in looks:
        time = 0 if at < 0 else run[at].time if at < len(run) else END
        if look == "skip":
            assert await messages.skip(Pair(other, one), max(at, 0), count) == model[max(at, 0) :][:count]
        elif look == "before":
            assert await messages.before(Pair(one, other), time, count) == [m for m in model if m.time < time][-count:]
        elif look == "after":
            assert await messages.after(Pair(other, one), time, count) == [m for m in model if m.time > time][:count]
        elif look == "unread":
            unread = [m for m in model if m.sender == one and not m.read and m.time > time]
            assert await messages.unread(one, other, time, count) == unread[:count]
        else:
            mine = [m for m in model if m.sender == other and not m.read]
            expected = [listing(other, model[-1], len(mine))] if model else []
            assert await messages.conversations(one, END, count) == expected


# --- marks


async def test_mark_returns_existing_and_changed_ids(messages: MessageStore, writer: Contributor) -> None:
    await writer.add("a", "b", "c")
    assert await messages.mark("1", "2", ["a", "no", "c"]) == ({"a", "c"}, ["a", "c"])
    assert await messages.mark("1", "2", ["c", "b", "no"]) == ({"b", "c"}, ["b"])
    assert await messages.mark("1", "2", []) == (set(), [])
    assert await messages.unread("1", "2", 0, 10) == []
    assert all(message.read for message in await writer.all())


async def test_mark_affects_one_direction_of_one_conversation(messages: MessageStore, writer: Contributor) -> None:
    await writer.add("m")
    await writer.add("m", sender="2", receiver="1")
    await writer.add("m", sender="1", receiver="3")
    assert await messages.mark("2", "1", ["m"]) == ({"m"}, ["m"])
    assert await messages.mark("2", "3", ["m"]) == (set(), [])
    assert ids(await messages.unread("1", "2", 0, 10)) == ["m"]
    assert ids(await messages.unread("1", "3", 0, 10)) == ["m"]
    assert ids(await messages.unread("2", "1", 0, 10)) == []


async def test_simultaneous_deletes_delete_one_message(messages: MessageStore, writer: Contributor) -> None:
    """The call that comes second finds the tombstone, which ends its search."""
    await writer.add("m")
    [other] = await writer.add("m", sender="2", receiver="1")
    alternatives = [[("1", "m"), ("2", "m")]]
    deleted = await asyncio.gather(*(messages.delete(PAIR, alternatives) for _ in range(8)))
    assert sorted(deleted, key=str) == [[("1", "m")], *[[None]] * 7]
    assert await messages.unread("2", "1", 0, 10) == [other]


async def test_a_deleted_message_cannot_be_marked(messages: MessageStore, writer: Contributor) -> None:
    await writer.add("a", "b")
    await messages.delete(PAIR, [[("1", "a")]])
    assert await messages.mark("1", "2", ["a", "b"]) == ({"b"}, ["b"])


async def test_mark_delivered_returns_each_message_once(messages: MessageStore, writer: Contributor) -> None:
    run = await writer.add("a", "b", "c")
    await messages.mark("1", "2", ["b"])
    await messages.delete(PAIR, [[("1", "c")]])
    times = [message.time for message in run]
    assert await messages.mark_delivered(times) == {run[0].time}
    assert await messages.mark_delivered(times) == set()
    assert await messages.unread("1", "2", 0, 10) == []


async def test_mark_delivered_covers_several_conversations(messages: MessageStore, writer: Contributor) -> None:
    run = [
        *await writer.add("m"),
        *await writer.add("m", sender="2", receiver="1"),
        *await writer.add("m", sender="3", receiver="1"),
    ]
    times = [message.time for message in run[:2]]
    assert await messages.mark_delivered([*times, times[0] - 1]) == set(times)
    assert ids(await messages.unread("3", "1", 0, 10)) == ["m"]
    assert ids(await messages.unread("1", "2", 0, 10)) == []


async def test_concurrent_marks_return_each_message_once(messages: MessageStore, writer: Contributor) -> None:
    run = await writer.add(*(f"m{number}" for number in range(200)))
    marks = await asyncio.gather(
        messages.mark("1", "2", ids(run)),
        messages.mark("1", "2", ids(run)[::-1]),
        messages.mark_delivered([message.time for message in run]),
    )
    changed = [*marks[0][1], *marks[1][1], *(message.id for message in run if message.time in marks[2])]
    assert sorted(changed) == sorted(ids(run))


# --- deleting


async def test_delete_takes_the_first_existing_alternative(messages: MessageStore, writer: Contributor) -> None:
    await writer.add("both", "mine")
    await writer.add("both", "other", sender="2", receiver="1")
    assert await messages.delete(
        PAIR,
        [
            [("1", "both"), ("2", "both")],
            [("1", "other"), ("2", "other")],
            [("2", "mine")],
            [("1", "no"), ("2", "no")],
        ],
    ) == [("1", "both"), ("2", "other"), None, None]
    assert [(message.sender, message.id) for message in await writer.all()] == [("1", "mine"), ("2", "both")]


async def test_delete_affects_both_users_of_one_conversation_once(messages: MessageStore, writer: Contributor) -> None:
    await writer.add("m")
    await writer.add("m", sender="1", receiver="3")
    deleted = await asyncio.gather(*(messages.delete(Pair("2", "1"), [[("1", "m")]]) for _ in range(5)))
    assert sorted(deleted, key=str) == [[("1", "m")], [None], [None], [None], [None]]
    assert await writer.all("1", "2") == []
    assert await messages.unread("1", "2", 0, 10) == []
    assert ids(await writer.all("1", "3")) == ["m"]


async def test_the_id_of_a_deleted_message_stays_used(messages: MessageStore, writer: Contributor) -> None:
    """A retry is acknowledged, but not stored or delivered."""
    [first] = await writer.add("m")
    await messages.delete(PAIR, [[("1", "m")]])
    assert await messages.add([writer.message("m", first.text), writer.message("m", "other")]) == [
        Added(first.time, new=False, same=True, unread=False),
        Added(first.time, new=False, same=False, unread=False),
    ]
    assert await writer.all() == []


# --- conversations


async def test_conversations_list_newest_first_with_last_and_unread(
    messages: MessageStore, writer: Contributor
) -> None:
    await writer.add("a", "b", sender="2", receiver="1")
    [to_three] = await writer.add("c", sender="1", receiver="3")
    [from_four] = await writer.add("d", sender="4", receiver="1")
    [to_two] = await writer.add("e")
    await writer.add("f", sender="2", receiver="3")
    await messages.mark("2", "1", ["a"])
    expected = [listing("2", to_two, 1), listing("4", from_four, 1), listing("3", to_three, 0)]
    assert await messages.conversations("1", END, 10) == expected
    assert await messages.conversations("1", END, 2) == expected[:2]
    assert await following(messages, "1", "2", 10) == expected[1:]
    assert await following(messages, "1", "4", 1) == expected[2:]
    assert await following(messages, "1", "3", 10) == []
    assert [one.unread for one in await messages.conversations("3", END, 10)] == [1, 1]


async def test_pages_of_conversations_start_after_a_given_one(messages: MessageStore, writer: Contributor) -> None:
    await writer.add("m")
    for name in ("3", "1", "", "A", "22", "\0", "2\0", "%", "*", "$ne", "'", '"', "\\", "א", "😀", "x" * 5000):
        with pytest.raises(KeyError):
            await following(messages, "1", name, 10)


changes = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.lists(st.integers(0, 4), min_size=1, max_size=3)),
        st.tuples(st.just("add late"), st.lists(st.integers(0, 4), min_size=2, max_size=2)),
        st.tuples(st.just("delete"), st.lists(st.integers(0, 20), min_size=1, max_size=3)),
        st.tuples(st.just("purge"), st.lists(st.integers(0, 5), min_size=1, max_size=1)),
    ),
    max_size=15,
)


@given(changes)
@settings(max_examples=60 * SEARCH, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_conversations_match_a_list_model(
    messages: MessageStore, timeline: Timeline, changes: list[tuple[str, list[int]]]
) -> None:
    """Op 7 lists by the newest remaining messages, whatever was added (in any order of time), deleted and purged."""
    users = [next(people) for _ in range(4)]
    pairs = [(users[a], users[b]) for a, b in ((0, 1), (2, 0), (0, 3), (1, 2), (3, 1))]
    model: list[Message] = []
    for kind, numbers in changes:
        if kind.startswith("add"):
            batch = [Message(*pairs[n], f"m{timeline.next()}", "text", timeline.next()) for n in numbers]
            retries = [msgspec.structs.replace(message, time=timeline.next()) for message in model[-1:]]
            late = [[*batch[1:], *retries], batch[:1]]  # the first message arrives last
            times = {}
            for part in late if kind == "add late" else [batch]:
                added = await messages.add(part)
                times.update({message.id: one.time for message, one in zip(part, added, strict=True)})
            model += [msgspec.structs.replace(message, time=times[message.id]) for message in batch]
        elif kind == "delete":
            for message in [model.pop(n) for n in numbers if n < len(model)]:
                await messages.delete(Pair(message.sender, message.receiver), [[(message.sender, message.id)]])
        elif model:
            before = sorted(message.time for message in model)[min(numbers[0], len(model) - 1)]
            await messages.purge(before, 1000)
            model = [message for message in model if message.time >= before]
        assert await messages.conversations(users[0], END, 10) == listed(model, users[0])
    for user in users:
        expected = listed(model, user)
        for number, conversation in enumerate(expected):
            assert await following(messages, user, conversation.peer, 10) == expected[number + 1 :]
            assert await messages.conversations(user, conversation.time, 10) == expected[number + 1 :]


def listed(model: Sequence[Message], user: str) -> list[Conversation]:
    """Return the user's conversations by the rules of op 7."""
    by_peer: dict[str, list[Message]] = {}
    for message in sorted(model, key=lambda one: one.time, reverse=True):
        if user in (message.sender, message.receiver):
            by_peer.setdefault(message.receiver if message.sender == user else message.sender, []).append(message)
    return [listing(peer, mine[0], sum(message.receiver == user for message in mine)) for peer, mine in by_peer.items()]


async def test_the_last_message_is_the_newest_remaining_one(messages: MessageStore, writer: Contributor) -> None:
    run = await writer.add("a", "b", "c")
    await messages.delete(PAIR, [[("1", "c")]])
    assert [one.last for one in await messages.conversations("2", END, 10)] == [run[1]]
    assert [one.unread for one in await messages.conversations("2", END, 10)] == [2]


async def test_a_conversation_of_tombstones_is_not_listed(messages: MessageStore, writer: Contributor) -> None:
    await writer.add("a", sender="1", receiver="3")
    await writer.add("b")
    await messages.delete(PAIR, [[("1", "b")]])
    assert [one.peer for one in await messages.conversations("1", END, 10)] == ["3"]
    assert [one.peer for one in await messages.conversations("1", END, 1)] == ["3"]
    assert await messages.conversations("2", END, 10) == []
    await writer.add("c", sender="2", receiver="1")
    assert [one.peer for one in await messages.conversations("1", END, 10)] == ["2", "3"]


async def test_a_page_continues_after_an_emptied_conversation(messages: MessageStore, writer: Contributor) -> None:
    for peer in ("4", "3", "2"):
        await writer.add("m", sender="1", receiver=peer)
    await messages.delete(Pair("1", "3"), [[("1", "m")]])
    assert [one.peer for one in await following(messages, "1", "3", 10)] == ["4"]
    assert [one.peer for one in await messages.conversations("1", END, 10)] == ["2", "4"]


async def test_purge_hides_a_conversation_of_newer_tombstones(messages: MessageStore, writer: Contributor) -> None:
    run = await writer.add("a", "b")
    await messages.delete(PAIR, [[("1", "b")]])
    assert await messages.purge(run[1].time, 100) == 1
    assert await messages.conversations("1", END, 10) == []
    assert await following(messages, "1", "2", 10) == []
    [again] = await writer.add("c")
    assert [one.last for one in await messages.conversations("2", END, 10)] == [again]
    assert await messages.purge(END, 100) == 2
    with pytest.raises(KeyError):
        await following(messages, "1", "2", 10)


async def test_unread_messages_are_counted_up_to_a_bound(messages: MessageStore, writer: Contributor) -> None:
    await writer.add(*(f"m{number}" for number in range(MAX_UNREAD - 1)))
    assert [one.unread for one in await messages.conversations("2", END, 1)] == [MAX_UNREAD - 1]
    await writer.add("one more", "and more")
    assert [one.unread for one in await messages.conversations("2", END, 1)] == [MAX_UNREAD]
    assert [one.unread for one in await messages.conversations("1", END, 1)] == [0]


async def test_a_retry_does_not_raise_its_conversation(messages: MessageStore, writer: Contributor) -> None:
    [first] = await writer.add("m")
    await writer.add("later", sender="1", receiver="3")
    await messages.add([writer.message("m", first.text)])
    assert [one.peer for one in await messages.conversations("1", END, 10)] == ["3", "2"]
    await messages.add([writer.message("m", first.text), writer.message("new", "", "1", "4")])
    assert [one.peer for one in await messages.conversations("1", END, 10)] == ["4", "3", "2"]


async def test_a_retry_does_not_raise_a_conversation_above_newer_ones(
    messages: MessageStore, writer: Contributor
) -> None:
    [first] = await writer.add("m")
    new = writer.message("new")
    await writer.add("newer", sender="1", receiver="3")
    await messages.add([new, writer.message("m", first.text)])
    assert [one.peer for one in await messages.conversations("1", END, 10)] == ["3", "2"]


async def test_a_batch_out_of_order_is_listed_by_its_newest_message(
    messages: MessageStore, writer: Contributor
) -> None:
    late = writer.message("late")
    await writer.add("between", sender="1", receiver="3")
    await messages.add([writer.message("newest"), late])
    assert [one.peer for one in await messages.conversations("1", END, 10)] == ["2", "3"]


# --- purging


async def test_purge_removes_old_messages_without_tombstones(messages: MessageStore, writer: Contributor) -> None:
    run = await writer.add("a", "b", "c", "d")
    await messages.delete(PAIR, [[("1", "b")]])
    assert await messages.purge(run[2].time, 100) == 2
    assert ids(await writer.all()) == ["c", "d"]
    assert await messages.purge(run[2].time, 100) == 0
    for id in ("a", "b"):
        assert await messages.time_of(PAIR, "1", id) is None
    assert [one.new for one in await messages.add([writer.message("b"), writer.message("a", "other")])] == [True, True]
    assert ids(await messages.unread("1", "2", 0, 10)) == ["c", "d", "b", "a"]


async def test_purge_removes_at_most_the_limit(messages: MessageStore, writer: Contributor) -> None:
    await writer.add(*(f"m{number}" for number in range(7)))
    await writer.add(*(f"m{number}" for number in range(3)), sender="3", receiver="4")
    assert [await messages.purge(END, 4) for _ in range(4)] == [4, 4, 2, 0]


async def test_purge_removes_empty_conversations(messages: MessageStore, writer: Contributor) -> None:
    await writer.add("a")
    [later] = await writer.add("b", sender="3", receiver="1")
    await messages.purge(later.time, 100)
    assert [one.peer for one in await messages.conversations("1", END, 10)] == ["3"]
    assert await messages.conversations("2", END, 10) == []
    with pytest.raises(KeyError):
        await following(messages, "1", "2", 10)
    assert await messages.have_written(["1"], "2") == set()
    [again] = await writer.add("a", sender="2", receiver="1")
    assert [one.last for one in await messages.conversations("1", END, 1)] == [again]
    assert await writer.all() == [again]


# --- peers and erasing


async def test_peers_include_senders_and_receivers(messages: MessageStore, writer: Contributor) -> None:
    for one, other in PAIRS:
        await writer.add("m", sender=one, receiver=other)
    for user in {name for pair in PAIRS for name in pair}:
        expected = {other for pair in PAIRS for one, other in (pair, pair[::-1]) if one == user}
        found = [peer async for peer in messages.peers(user)]
        assert set(found) == expected
        assert len(found) == len(expected)
    assert [peer async for peer in messages.peers("unknown")] == []


async def test_peers_include_conversations_of_tombstones(messages: MessageStore, writer: Contributor) -> None:
    await writer.add("a")
    await messages.delete(PAIR, [[("1", "a")]])
    assert [peer async for peer in messages.peers("2")] == ["1"]


async def test_erase_removes_messages_and_tombstones_in_steps(messages: MessageStore, writer: Contributor) -> None:
    await writer.add("a", "b", "c")
    await writer.add("a", "b", sender="2", receiver="1")
    await messages.delete(PAIR, [[("1", "b")], [("2", "a")]])
    [other] = await writer.add("a", receiver="3")
    assert [await messages.erase(Pair("2", "1"), 2) for _ in range(3)] == [2, 2, 1]
    assert await writer.all() == []
    assert await messages.recent(PAIR, 10) == []
    assert [peer async for peer in messages.peers("1")] == ["3"]
    assert [peer async for peer in messages.peers("2")] == []
    assert await writer.all("1", "3") == [other]
    assert await messages.erase(PAIR, 2) == 0


async def test_an_erased_conversation_starts_again(messages: MessageStore, writer: Contributor) -> None:
    """A cached conversation number must not survive."""
    await writer.add("a", "b")
    assert await messages.erase(PAIR, 10) == 2
    assert await messages.have_written(["1"], "2") == set()
    again = await writer.add("a", "c", sender="2", receiver="1")
    assert await writer.all() == again
    assert [(one.peer, one.unread) for one in await messages.conversations("1", END, 10)] == [("2", 2)]
    assert ids(await messages.unread("2", "1", 0, 10)) == ["a", "c"]


# --- the store itself


async def test_ping_returns(messages: MessageStore) -> None:
    await messages.ping()


message = Message("1", "2", "m", "text", 1)


@pytest.mark.parametrize(
    "ask",
    [
        lambda store: store.newest(),
        lambda store: store.add([message]),
        lambda store: store.stored([message]),
        lambda store: store.recent(PAIR, 1),
        lambda store: store.have_written(["1"], "2"),
        lambda store: store.time_of(PAIR, "1", "m"),
        lambda store: store.skip(PAIR, 0, 1),
        lambda store: store.before(PAIR, 1, 1),
        lambda store: store.after(PAIR, 1, 1),
        lambda store: store.unread("1", "2", 0, 1),
        lambda store: store.mark("1", "2", ["m"]),
        lambda store: store.mark_delivered([1]),
        lambda store: store.delete(PAIR, [[("1", "m")]]),
        lambda store: store.conversations("1", END, 1),
        lambda store: store.newest_peers("1", 1),
        lambda store: store.purge(1, 1),
        lambda store: anext(store.peers("1")),
        lambda store: store.erase(PAIR, 1),
        lambda store: store.ping(),
    ],
)
async def test_an_unavailable_store_raises_store_unavailable(
    messages_away: MessageStore, ask: Callable[[MessageStore], Awaitable[Any]]
) -> None:
    with pytest.raises(StoreUnavailable):
        await ask(messages_away)


@pytest.mark.parametrize(
    "ask",
    [
        lambda store: store.mark("1", "2", ["m"]),
        lambda store: store.mark_delivered([1]),
        lambda store: store.advance(1, {"1": Confirmed(0, [1])}),
    ],
)
async def test_many_calls_learn_together_that_the_store_is_away(
    messages_away: MessageStore, ask: Callable[[MessageStore], Awaitable[Any]]
) -> None:
    """Although such calls come one after the other: in turn, 1,000 timeouts would take 100 seconds."""
    async with asyncio.timeout(TIMEOUT / 2):
        results = await asyncio.gather(*(ask(messages_away) for _ in range(1000)), return_exceptions=True)
    assert {type(result) for result in results} == {StoreUnavailable}
