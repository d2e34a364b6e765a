"""MessageStore, whatever the backend."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chat_server.model.messages import MAX_UNREAD, Added, Conversation, Message, MessageStore
from chat_server.utils.clock import Timeline
from chat_server.utils.errors import StoreUnavailable

END = 2**62
TEXTS = [
    *("hello", " ", "\n", "a\nb\r\nc\n", "\0", "a\0b", "'", '"', "\\", "`", "''; DROP TABLE messages; --"),
    *("$", "$ne", '{"$ne": 1}', "a.b", ".", "%", "_", "*", "?", "[a]", "{}", "null", "1", "1.0", "0x1f", "1e400"),
    *("אבג", "مرحبا", "\u202eabc", "名字", "é", "e\u0301", "😀", "👩‍👩‍👧", "𠀀"),
    *("\ufeff", "\uffff", "\U0010ffff", "x" * 20000),
]
IDS = ["a", "A", "0", "00", "-1", ".", "..", "_id", "a.b", "a:b", "a-b", "a_b", "null", "1", "01", "x" * 64, "x" * 63]
# Pairs that some way to glue two names together would mix.
PAIRS = [
    *(("a", "b.c"), ("a.b", "c"), ("a", "b-c"), ("a-b", "c"), ("a", "b_c"), ("a_b", "c"), ("a", "b@c"), ("a@b", "c")),
    *(("1", "11"), ("11", "1"), ("111", "1"), ("a", "B"), ("A", "b"), ("A", "B")),
    *(("א", "ב"), ("名", "字"), ("𠀀", "𠀁")),
    *(("aSEPb", "c"), ("a", "bSEPc"), ("ß", "ss"), ("é", "e"), (".", "_"), ("-", "@"), ("a", "."), ("null", "a")),
]


class Writer:
    """Writes messages, each at the next time."""

    def __init__(self, store: MessageStore, timeline: Timeline) -> None:
        self.store = store
        self.timeline = timeline

    def message(self, id: str, text: str = "", sender: str = "1", receiver: str = "2") -> Message:
        return Message(sender, receiver, id, text or f"text of {id}", self.timeline.next())

    async def add(self, *ids: str, sender: str = "1", receiver: str = "2") -> list[Message]:
        """Store messages with these ids; the messages."""
        run = [self.message(id, sender=sender, receiver=receiver) for id in ids]
        assert await self.store.add(run) == [Added(message.time) for message in run]
        return run

    async def all(self, one: str = "1", other: str = "2") -> list[Message]:
        return await self.store.after(one, other, 0, 10_000)


@pytest.fixture
def writer(messages: MessageStore, timeline: Timeline) -> Writer:
    return Writer(messages, timeline)


async def following(store: MessageStore, user: str, peer: str, count: int) -> list[Conversation]:
    """The user's conversations after the one with `peer`."""
    before = await store.listed_at(user, peer)
    if before is None:
        raise KeyError(peer)
    return await store.conversations(user, before, count)


def ids(page: Sequence[Message]) -> list[str]:
    return [message.id for message in page]


# --- adding


async def test_what_was_added_is_there_as_it_was_unread_and_in_order(messages: MessageStore, writer: Writer) -> None:
    run = [writer.message(f"m{number}", text) for number, text in enumerate(TEXTS)]
    assert await messages.add(run) == [Added(message.time) for message in run]
    assert await messages.after("1", "2", 0, 1000) == run
    assert await messages.before("2", "1", END, 1000) == run
    assert await messages.skip("1", "2", 0, 1000) == run
    assert await messages.unread("1", "2", 0, 1000) == run


async def test_nothing_was_added(messages: MessageStore) -> None:
    assert await messages.add([]) == []
    assert await messages.newest() == 0
    assert await messages.skip("1", "2", 0, 10) == []
    assert await messages.before("1", "2", END, 10) == []
    assert await messages.after("1", "2", 0, 10) == []
    assert await messages.unread("1", "2", 0, 10) == []
    assert await messages.recent("1", "2", 10) == []
    assert not await messages.has_written("1", "2")
    assert await messages.time_of("1", "2", "1", "m") is None
    assert await messages.mark("1", "2", ["m"]) == (set(), [])
    assert await messages.mark_delivered([]) == set()
    assert await messages.mark_delivered([1, 2]) == set()
    assert await messages.delete("1", "2", [[("1", "m"), ("2", "m")]]) == [None]
    assert await messages.conversations("1", END, 10) == []
    assert await messages.purge(END, 10) == 0


async def test_newest_is_the_time_of_the_newest_of_all_deleted_or_not(messages: MessageStore, writer: Writer) -> None:
    await writer.add("a", "b")
    [newest] = await writer.add("c", sender="3", receiver="4")
    assert await messages.newest() == newest.time
    await messages.delete("3", "4", [[("3", "c")]])
    assert await messages.newest() == newest.time


async def test_the_same_again_is_stored_once_and_known_by_its_first_time(
    messages: MessageStore, writer: Writer
) -> None:
    [first] = await writer.add("m")
    again = await messages.add([writer.message("m", first.text)])
    assert again == [Added(first.time, new=False, same=True, unread=True)]
    await messages.mark("1", "2", ["m"])
    again = await messages.add([writer.message("m", first.text)])
    assert again == [Added(first.time, new=False, same=True, unread=False)]
    assert ids(await writer.all()) == ["m"]


async def test_the_same_id_with_another_text_changes_nothing(messages: MessageStore, writer: Writer) -> None:
    [first] = await writer.add("m")
    for text in ("other", first.text + " ", first.text.upper(), first.text + "\0"):
        again = await messages.add([writer.message("m", text)])
        assert again == [Added(first.time, new=False, same=False, unread=True)]
    assert await writer.all() == [first]


@pytest.mark.parametrize("text", TEXTS)
async def test_the_same_text_is_known_whatever_is_in_it_and_also_when_deleted(
    messages: MessageStore, writer: Writer, text: str
) -> None:
    first = writer.message("m", text)
    await messages.add([first])
    assert await messages.add([writer.message("m", text)]) == [Added(first.time, new=False)]
    assert not (await messages.add([writer.message("m", text + "x")]))[0].same
    await messages.delete("1", "2", [[("1", "m")]])
    assert await messages.add([writer.message("m", text)]) == [Added(first.time, new=False, unread=False)]
    assert not (await messages.add([writer.message("m", text + "x")]))[0].same


async def test_the_same_twice_in_a_run_is_stored_once(messages: MessageStore, writer: Writer) -> None:
    run = [writer.message(id, text) for id, text in (("a", "x"), ("b", "x"), ("a", "x"), ("a", "y"), ("c", "x"))]
    assert await messages.add(run) == [
        Added(run[0].time),
        Added(run[1].time),
        Added(run[0].time, new=False),
        Added(run[0].time, new=False, same=False),
        Added(run[4].time),
    ]
    assert await writer.all() == [run[0], run[1], run[4]]


async def test_of_the_same_many_times_at_once_one_is_stored(messages: MessageStore, writer: Writer) -> None:
    run = [writer.message("m", "text") for _ in range(20)]
    added = [one for [one] in await asyncio.gather(*(messages.add([message]) for message in run))]
    [stored] = await writer.all()
    assert [one.new for one in added].count(True) == 1
    assert {one.time for one in added} == {stored.time}
    assert all(one.same for one in added)


async def test_of_different_texts_at_once_one_gets_the_id(messages: MessageStore, writer: Writer) -> None:
    run = [writer.message("m", f"text {number}") for number in range(20)]
    added = [one for [one] in await asyncio.gather(*(messages.add([message]) for message in run))]
    winners = [message for message, one in zip(run, added, strict=True) if one.new]
    assert await writer.all() == winners
    assert len(winners) == 1
    assert {one.time for one in added} == {winners[0].time}
    assert [one.same for one in added].count(False) == 19


async def test_many_conversations_at_once_keep_each_its_order(messages: MessageStore, writer: Writer) -> None:
    runs = [
        [writer.message(f"m{batch}.{number}", sender=sender) for number in range(3)]
        for batch in range(10)
        for sender in ("1", "3", "4")
    ]
    await asyncio.gather(*map(messages.add, runs))
    for sender in ("1", "3", "4"):
        mine = [message for run in runs for message in run if message.sender == sender]
        assert await writer.all(sender, "2") == mine


async def test_an_id_is_unique_per_direction_of_a_conversation(messages: MessageStore, writer: Writer) -> None:
    directions = [("1", "2"), ("2", "1"), ("1", "3"), ("3", "2")]
    run = [writer.message("m", f"{one} to {other}", one, other) for one, other in directions]
    assert await messages.add(run) == [Added(message.time) for message in run]
    assert await writer.all() == run[:2]
    for message in run:
        time = await messages.time_of(message.sender, message.receiver, message.sender, "m")
        assert time == message.time


async def test_an_id_is_exactly_that_id(messages: MessageStore, writer: Writer) -> None:
    run = await writer.add(*IDS)
    for message in run:
        assert await messages.time_of("1", "2", "1", message.id) == message.time
        assert await messages.mark("1", "2", [message.id]) == ({message.id}, [message.id])
    for message in run:
        assert await messages.delete("1", "2", [[("1", message.id)]]) == [("1", message.id)]


async def test_conversations_do_not_mix_whatever_the_names(messages: MessageStore, writer: Writer) -> None:
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


async def test_a_caller_who_goes_takes_nobody_with_him(messages: MessageStore, writer: Writer) -> None:
    """Whether his own was stored is not known: the same again is stored once."""
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


async def test_stored_says_what_is_there_already(messages: MessageStore, writer: Writer) -> None:
    first, deleted = await writer.add("m", "deleted")
    await messages.delete("1", "2", [[("1", "deleted")]])
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


# --- what the limit for strangers needs


async def test_recent_is_sender_and_time_of_the_newest_first(messages: MessageStore, writer: Writer) -> None:
    run = [
        *await writer.add("a", "b"),
        *await writer.add("c", sender="2", receiver="1"),
        *await writer.add("d"),
    ]
    await writer.add("e", sender="1", receiver="3")
    newest_first = [(message.sender, message.time) for message in run[::-1]]
    assert await messages.recent("1", "2", 10) == newest_first
    assert await messages.recent("2", "1", 3) == newest_first[:3]


async def test_a_deleted_message_still_counts_as_written(messages: MessageStore, writer: Writer) -> None:
    run = await writer.add("a", "b", "c")
    await messages.delete("1", "2", [[("1", "b")], [("1", "c")]])
    expected = [("1", message.time) for message in run[::-1]]
    assert await messages.recent("1", "2", 10) == expected
    assert await messages.recent("1", "2", 2) == expected[:2]
    await messages.delete("1", "2", [[("1", "a")]])
    assert await messages.has_written("1", "2")


async def test_has_written_is_about_one_direction(messages: MessageStore, writer: Writer) -> None:
    await writer.add("a")
    assert await messages.has_written("1", "2")
    assert not await messages.has_written("2", "1")
    assert not await messages.has_written("1", "3")


# --- pages


async def test_a_place_is_that_of_one_sender_s_message_in_one_conversation(
    messages: MessageStore, writer: Writer
) -> None:
    [mine] = await writer.add("m")
    [other] = await writer.add("m", sender="2", receiver="1")
    assert await messages.time_of("1", "2", "1", "m") == mine.time
    assert await messages.time_of("2", "1", "1", "m") == mine.time
    assert await messages.time_of("1", "2", "2", "m") == other.time
    assert await messages.time_of("1", "3", "1", "m") is None
    assert await messages.time_of("1", "2", "1", "M") is None


async def test_a_tombstone_keeps_its_place_and_is_in_no_page(messages: MessageStore, writer: Writer) -> None:
    run = await writer.add("a", "b", "c", "d")
    await messages.delete("1", "2", [[("1", "b")]])
    time = await messages.time_of("1", "2", "1", "b")
    assert time == run[1].time
    assert ids(await messages.before("1", "2", time, 10)) == ["a"]
    assert ids(await messages.after("1", "2", time, 10)) == ["c", "d"]
    assert ids(await messages.skip("1", "2", 1, 10)) == ["c", "d"]
    assert ids(await messages.unread("1", "2", 0, 10)) == ["a", "c", "d"]


async def test_a_page_of_both_directions_says_who_wrote_and_what_is_read(
    messages: MessageStore, writer: Writer
) -> None:
    [mine], [other] = await writer.add("m"), await writer.add("n", sender="2", receiver="1")
    await messages.mark("2", "1", ["n"])
    expected = [mine, Message("2", "1", "n", other.text, other.time, read=True)]
    for page in (
        messages.skip("1", "2", 0, 5),
        messages.before("2", "1", END, 5),
        messages.after("1", "2", 0, 5),
    ):
        assert await page == expected


async def test_skipping_more_than_there_is_leaves_nothing(messages: MessageStore, writer: Writer) -> None:
    await writer.add("a", "b")
    for skip in (2, 3, 10**15, 2**62):
        assert await messages.skip("1", "2", skip, 10) == []


people = (f"p{number}" for number in range(10**9))
sent = st.lists(st.tuples(st.booleans(), st.sampled_from(["stays", "stays", "read", "deleted"])), max_size=14)
looks = st.lists(
    st.tuples(st.sampled_from(["skip", "before", "after", "unread", "last"]), st.integers(-1, 15), st.integers(1, 6)),
    min_size=3,
    max_size=10,
)


@given(sent, looks)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_pages_are_those_of_a_plain_list(
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
            await messages.delete(one, other, [[(message.sender, message.id)]])
        else:
            model.append(msgspec.structs.replace(message, read=fate == "read"))
    for look, at, count in looks:
        time = 0 if at < 0 else run[at].time if at < len(run) else END
        if look == "skip":
            assert await messages.skip(other, one, max(at, 0), count) == model[max(at, 0) :][:count]
        elif look == "before":
            assert await messages.before(one, other, time, count) == [m for m in model if m.time < time][-count:]
        elif look == "after":
            assert await messages.after(other, one, time, count) == [m for m in model if m.time > time][:count]
        elif look == "unread":
            unread = [m for m in model if m.sender == one and not m.read and m.time > time]
            assert await messages.unread(one, other, time, count) == unread[:count]
        else:
            mine = [m for m in model if m.sender == other and not m.read]
            expected = [Conversation(other, model[-1], len(mine))] if model else []
            assert await messages.conversations(one, END, count) == expected


# --- marks


async def test_marking_says_what_exists_and_what_changed(messages: MessageStore, writer: Writer) -> None:
    await writer.add("a", "b", "c")
    assert await messages.mark("1", "2", ["a", "no", "c"]) == ({"a", "c"}, ["a", "c"])
    assert await messages.mark("1", "2", ["c", "b", "no"]) == ({"b", "c"}, ["b"])
    assert await messages.mark("1", "2", []) == (set(), [])
    assert await messages.unread("1", "2", 0, 10) == []
    assert all(message.read for message in await writer.all())


async def test_marking_is_about_one_direction_and_one_conversation(messages: MessageStore, writer: Writer) -> None:
    await writer.add("m")
    await writer.add("m", sender="2", receiver="1")
    await writer.add("m", sender="1", receiver="3")
    assert await messages.mark("2", "1", ["m"]) == ({"m"}, ["m"])
    assert await messages.mark("2", "3", ["m"]) == (set(), [])
    assert ids(await messages.unread("1", "2", 0, 10)) == ["m"]
    assert ids(await messages.unread("1", "3", 0, 10)) == ["m"]
    assert ids(await messages.unread("2", "1", 0, 10)) == []


async def test_a_deleted_message_cannot_be_marked(messages: MessageStore, writer: Writer) -> None:
    await writer.add("a", "b")
    await messages.delete("1", "2", [[("1", "a")]])
    assert await messages.mark("1", "2", ["a", "b"]) == ({"b"}, ["b"])


async def test_what_was_delivered_is_marked_once(messages: MessageStore, writer: Writer) -> None:
    run = await writer.add("a", "b", "c")
    await messages.mark("1", "2", ["b"])
    await messages.delete("1", "2", [[("1", "c")]])
    times = [message.time for message in run]
    assert await messages.mark_delivered(times) == {run[0].time}
    assert await messages.mark_delivered(times) == set()
    assert await messages.unread("1", "2", 0, 10) == []


async def test_what_was_delivered_of_several_conversations_is_marked(messages: MessageStore, writer: Writer) -> None:
    run = [
        *await writer.add("m"),
        *await writer.add("m", sender="2", receiver="1"),
        *await writer.add("m", sender="3", receiver="1"),
    ]
    times = [message.time for message in run[:2]]
    assert await messages.mark_delivered([*times, times[0] - 1]) == set(times)
    assert ids(await messages.unread("3", "1", 0, 10)) == ["m"]
    assert ids(await messages.unread("1", "2", 0, 10)) == []


async def test_many_are_marked_at_once_by_several(messages: MessageStore, writer: Writer) -> None:
    run = await writer.add(*(f"m{number}" for number in range(200)))
    marks = await asyncio.gather(
        messages.mark("1", "2", ids(run)),
        messages.mark("1", "2", ids(run)[::-1]),
        messages.mark_delivered([message.time for message in run]),
    )
    changed = [*marks[0][1], *marks[1][1], *(message.id for message in run if message.time in marks[2])]
    assert sorted(changed) == sorted(ids(run))


# --- deleting


async def test_deleting_takes_the_first_of_the_names_that_is_there(messages: MessageStore, writer: Writer) -> None:
    await writer.add("both", "mine")
    await writer.add("both", "other", sender="2", receiver="1")
    assert await messages.delete(
        "1",
        "2",
        [
            [("1", "both"), ("2", "both")],
            [("1", "other"), ("2", "other")],
            [("2", "mine")],
            [("1", "no"), ("2", "no")],
        ],
    ) == [("1", "both"), ("2", "other"), None, None]
    assert [(message.sender, message.id) for message in await writer.all()] == [("1", "mine"), ("2", "both")]


async def test_a_message_is_deleted_once_for_both_and_only_there(messages: MessageStore, writer: Writer) -> None:
    await writer.add("m")
    await writer.add("m", sender="1", receiver="3")
    deleted = await asyncio.gather(*(messages.delete("2", "1", [[("1", "m")]]) for _ in range(5)))
    assert sorted(deleted, key=str) == [[("1", "m")], [None], [None], [None], [None]]
    assert await writer.all("1", "2") == []
    assert await messages.unread("1", "2", 0, 10) == []
    assert ids(await writer.all("1", "3")) == ["m"]


async def test_the_id_of_a_deleted_message_stays_used(messages: MessageStore, writer: Writer) -> None:
    """A retry is acknowledged, but not stored or delivered."""
    [first] = await writer.add("m")
    await messages.delete("1", "2", [[("1", "m")]])
    assert await messages.add([writer.message("m", first.text), writer.message("m", "other")]) == [
        Added(first.time, new=False, same=True, unread=False),
        Added(first.time, new=False, same=False, unread=False),
    ]
    assert await writer.all() == []


# --- conversations


async def test_conversations_are_the_newest_first_with_last_message_and_unread(
    messages: MessageStore, writer: Writer
) -> None:
    await writer.add("a", "b", sender="2", receiver="1")
    [to_three] = await writer.add("c", sender="1", receiver="3")
    [from_four] = await writer.add("d", sender="4", receiver="1")
    [to_two] = await writer.add("e")
    await writer.add("f", sender="2", receiver="3")
    await messages.mark("2", "1", ["a"])
    expected = [Conversation("2", to_two, 1), Conversation("4", from_four, 1), Conversation("3", to_three, 0)]
    assert await messages.conversations("1", END, 10) == expected
    assert await messages.conversations("1", END, 2) == expected[:2]
    assert await following(messages, "1", "2", 10) == expected[1:]
    assert await following(messages, "1", "4", 1) == expected[2:]
    assert await following(messages, "1", "3", 10) == []
    assert [one.unread for one in await messages.conversations("3", END, 10)] == [1, 1]


async def test_a_page_of_conversations_begins_at_one_that_exists(messages: MessageStore, writer: Writer) -> None:
    await writer.add("m")
    for name in ("3", "1", "", "A", "22", "\0", "2\0", "%", "*", "$ne", "'", '"', "\\", "א", "😀", "x" * 5000):
        with pytest.raises(KeyError):
            await following(messages, "1", name, 10)


async def test_the_last_message_is_the_last_that_is_left(messages: MessageStore, writer: Writer) -> None:
    run = await writer.add("a", "b", "c")
    await messages.delete("1", "2", [[("1", "c")]])
    assert [one.last for one in await messages.conversations("2", END, 10)] == [run[1]]
    assert [one.unread for one in await messages.conversations("2", END, 10)] == [2]


async def test_a_conversation_of_tombstones_alone_is_left_out(messages: MessageStore, writer: Writer) -> None:
    await writer.add("a", sender="1", receiver="3")
    await writer.add("b")
    await messages.delete("1", "2", [[("1", "b")]])
    assert [one.peer for one in await messages.conversations("1", END, 10)] == ["3"]
    assert [one.peer for one in await messages.conversations("1", END, 1)] == ["3"]
    assert await messages.conversations("2", END, 10) == []
    await writer.add("c", sender="2", receiver="1")
    assert [one.peer for one in await messages.conversations("1", END, 10)] == ["2", "3"]


async def test_a_page_goes_on_after_a_conversation_that_was_emptied(messages: MessageStore, writer: Writer) -> None:
    for peer in ("4", "3", "2"):
        await writer.add("m", sender="1", receiver=peer)
    await messages.delete("1", "3", [[("1", "m")]])
    assert [one.peer for one in await following(messages, "1", "3", 10)] == ["4"]
    assert [one.peer for one in await messages.conversations("1", END, 10)] == ["2", "4"]


async def test_purge_hides_a_conversation_of_newer_tombstones(messages: MessageStore, writer: Writer) -> None:
    run = await writer.add("a", "b")
    await messages.delete("1", "2", [[("1", "b")]])
    assert await messages.purge(run[1].time, 100) == 1
    assert await messages.conversations("1", END, 10) == []
    assert await following(messages, "1", "2", 10) == []
    [again] = await writer.add("c")
    assert [one.last for one in await messages.conversations("2", END, 10)] == [again]
    assert await messages.purge(END, 100) == 2
    with pytest.raises(KeyError):
        await following(messages, "1", "2", 10)


async def test_unread_messages_are_counted_up_to_a_bound(messages: MessageStore, writer: Writer) -> None:
    await writer.add(*(f"m{number}" for number in range(MAX_UNREAD - 1)))
    assert [one.unread for one in await messages.conversations("2", END, 1)] == [MAX_UNREAD - 1]
    await writer.add("one more", "and more")
    assert [one.unread for one in await messages.conversations("2", END, 1)] == [MAX_UNREAD]
    assert [one.unread for one in await messages.conversations("1", END, 1)] == [0]


async def test_what_was_stored_already_does_not_bring_a_conversation_up(messages: MessageStore, writer: Writer) -> None:
    [first] = await writer.add("m")
    await writer.add("later", sender="1", receiver="3")
    await messages.add([writer.message("m", first.text)])
    assert [one.peer for one in await messages.conversations("1", END, 10)] == ["3", "2"]
    await messages.add([writer.message("m", first.text), writer.message("new", "", "1", "4")])
    assert [one.peer for one in await messages.conversations("1", END, 10)] == ["4", "3", "2"]


async def test_what_was_stored_already_does_not_bring_up_what_is_new_before_it(
    messages: MessageStore, writer: Writer
) -> None:
    [first] = await writer.add("m")
    new = writer.message("new")
    await writer.add("newer", sender="1", receiver="3")
    await messages.add([new, writer.message("m", first.text)])
    assert [one.peer for one in await messages.conversations("1", END, 10)] == ["3", "2"]


async def test_newest_peers_are_those_of_the_newest_conversations(messages: MessageStore, writer: Writer) -> None:
    for sender, receiver in (("1", "2"), ("3", "1"), ("1", "4"), ("2", "3"), ("2", "1")):
        await writer.add(f"{sender}-{receiver}", sender=sender, receiver=receiver)
    assert await messages.newest_peers("1", 10) == ["2", "4", "3"]
    assert await messages.newest_peers("1", 2) == ["2", "4"]
    assert await messages.newest_peers("3", 10) == ["2", "1"]
    assert await messages.newest_peers("nobody", 10) == []
    await messages.delete("1", "4", [[("1", "1-4")]])
    assert await messages.newest_peers("1", 10) == ["2", "3"]


# --- forgetting


async def test_purge_forgets_whole_what_is_older(messages: MessageStore, writer: Writer) -> None:
    run = await writer.add("a", "b", "c", "d")
    await messages.delete("1", "2", [[("1", "b")]])
    assert await messages.purge(run[2].time, 100) == 2
    assert ids(await writer.all()) == ["c", "d"]
    assert await messages.purge(run[2].time, 100) == 0
    for id in ("a", "b"):
        assert await messages.time_of("1", "2", "1", id) is None
    assert [one.new for one in await messages.add([writer.message("b"), writer.message("a", "other")])] == [True, True]
    assert ids(await messages.unread("1", "2", 0, 10)) == ["c", "d", "b", "a"]


async def test_purge_takes_a_little_at_a_time(messages: MessageStore, writer: Writer) -> None:
    await writer.add(*(f"m{number}" for number in range(7)))
    await writer.add(*(f"m{number}" for number in range(3)), sender="3", receiver="4")
    assert [await messages.purge(END, 4) for _ in range(4)] == [4, 4, 2, 0]


async def test_a_conversation_left_empty_is_gone(messages: MessageStore, writer: Writer) -> None:
    await writer.add("a")
    [later] = await writer.add("b", sender="3", receiver="1")
    await messages.purge(later.time, 100)
    assert [one.peer for one in await messages.conversations("1", END, 10)] == ["3"]
    assert await messages.conversations("2", END, 10) == []
    with pytest.raises(KeyError):
        await following(messages, "1", "2", 10)
    assert not await messages.has_written("1", "2")
    [again] = await writer.add("a", sender="2", receiver="1")
    assert [one.last for one in await messages.conversations("1", END, 1)] == [again]
    assert await writer.all() == [again]


# --- a user's conversations, and their end


async def test_a_user_s_peers_are_those_who_wrote_or_were_written_to(messages: MessageStore, writer: Writer) -> None:
    for one, other in PAIRS:
        await writer.add("m", sender=one, receiver=other)
    for user in {name for pair in PAIRS for name in pair}:
        expected = {other for pair in PAIRS for one, other in (pair, pair[::-1]) if one == user}
        found = [peer async for peer in messages.peers(user)]
        assert set(found) == expected
        assert len(found) == len(expected)
    assert [peer async for peer in messages.peers("nobody")] == []


async def test_a_conversation_of_deleted_messages_has_peers_too(messages: MessageStore, writer: Writer) -> None:
    await writer.add("a")
    await messages.delete("1", "2", [[("1", "a")]])
    assert [peer async for peer in messages.peers("2")] == ["1"]


async def test_a_conversation_is_erased_a_little_at_a_time_tombstones_too(
    messages: MessageStore, writer: Writer
) -> None:
    await writer.add("a", "b", "c")
    await writer.add("a", "b", sender="2", receiver="1")
    await messages.delete("1", "2", [[("1", "b")], [("2", "a")]])
    [other] = await writer.add("a", receiver="3")
    assert [await messages.erase("2", "1", 2) for _ in range(3)] == [2, 2, 1]
    assert await writer.all() == []
    assert await messages.recent("1", "2", 10) == []
    assert [peer async for peer in messages.peers("1")] == ["3"]
    assert [peer async for peer in messages.peers("2")] == []
    assert await writer.all("1", "3") == [other]
    assert await messages.erase("1", "2", 2) == 0


async def test_after_a_conversation_was_erased_it_begins_anew(messages: MessageStore, writer: Writer) -> None:
    """Also in a store that remembers what it was."""
    await writer.add("a", "b")
    assert await messages.erase("1", "2", 10) == 2
    assert not await messages.has_written("1", "2")
    again = await writer.add("a", "c", sender="2", receiver="1")
    assert await writer.all() == again
    assert [(one.peer, one.unread) for one in await messages.conversations("1", END, 10)] == [("2", 2)]
    assert ids(await messages.unread("2", "1", 0, 10)) == ["a", "c"]


# --- the store itself


async def test_it_answers(messages: MessageStore) -> None:
    await messages.ping()


message = Message("1", "2", "m", "text", 1)


@pytest.mark.parametrize(
    "ask",
    [
        lambda store: store.newest(),
        lambda store: store.add([message]),
        lambda store: store.stored([message]),
        lambda store: store.recent("1", "2", 1),
        lambda store: store.has_written("1", "2"),
        lambda store: store.time_of("1", "2", "1", "m"),
        lambda store: store.skip("1", "2", 0, 1),
        lambda store: store.before("1", "2", 1, 1),
        lambda store: store.after("1", "2", 1, 1),
        lambda store: store.unread("1", "2", 0, 1),
        lambda store: store.mark("1", "2", ["m"]),
        lambda store: store.mark_delivered([1]),
        lambda store: store.delete("1", "2", [[("1", "m")]]),
        lambda store: store.conversations("1", END, 1),
        lambda store: store.newest_peers("1", 1),
        lambda store: store.purge(1, 1),
        lambda store: anext(store.peers("1")),
        lambda store: store.erase("1", "2", 1),
        lambda store: store.ping(),
    ],
)
async def test_a_store_that_is_away_says_so(
    messages_away: MessageStore, ask: Callable[[MessageStore], Awaitable[Any]]
) -> None:
    with pytest.raises(StoreUnavailable):
        await ask(messages_away)
