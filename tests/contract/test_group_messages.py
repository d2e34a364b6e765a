"""The messages of groups in a MessageStore, on every backend."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, cast

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from chat_server.model.messages import (
    MAX_UNREAD,
    Added,
    Confirmed,
    Conversation,
    ExportableMessages,
    GroupKey,
    GroupView,
    Message,
    MessageStore,
    Pair,
    Record,
)
from chat_server.model.read_positions import PAGE
from chat_server.utils.clock import Timeline
from chat_server.utils.digest import digest
from chat_server.utils.errors import Duplicate, StoreUnavailable
from tests.harness import SEARCH

END = 2**62
GROUP, OTHER = GroupKey(1_700_000_000_000_000, "#group"), GroupKey(1_700_000_000_000_001, "#other")


class GroupWriter:
    """Writes messages to a group, each with the next time."""

    def __init__(self, store: MessageStore, timeline: Timeline) -> None:
        self.store = store
        self.timeline = timeline

    def message(self, id: str, sender: str = "a", group: GroupKey = GROUP, text: str = "") -> Message:
        return Message(sender, group.name, id, text or f"text of {id}", self.timeline.next(), group=group.number)

    async def add(self, *ids: str, sender: str = "a", group: GroupKey = GROUP) -> list[Message]:
        """Store messages with these ids and return them."""
        run = [self.message(id, sender, group) for id in ids]
        assert await self.store.add(run) == [Added(message.time) for message in run]
        return run

    async def talk(self, senders: str) -> list[Message]:
        """Store one message of each sender, in this order, with the ids m0, m1, ..."""
        return [message for n, sender in enumerate(senders) for message in await self.add(f"m{n}", sender=sender)]

    async def all(self, group: GroupKey = GROUP) -> list[Message]:
        return await self.store.after(group, 0, 10_000)


@pytest.fixture
def writer(messages: MessageStore, timeline: Timeline) -> GroupWriter:
    return GroupWriter(messages, timeline)


def ids(page: Sequence[Message]) -> list[str]:
    return [message.id for message in page]


async def advance(
    store: MessageStore, user: str, confirmed: Sequence[Message], since: int = 0, group: GroupKey = GROUP
) -> int | None:
    """Confirm messages for one user. Return the time of the last one that the position passed, or None."""
    passed = await store.advance(group.number, {user: Confirmed(since, [message.time for message in confirmed])})
    assert set(passed) <= {user}
    return passed.get(user)


async def unread(store: MessageStore, user: str, since: int = 0, group: GroupKey = GROUP) -> int:
    [conversation] = await store.group_conversations(user, [GroupView(group, since)])
    return conversation.unread


# --- adding and pages


async def test_added_messages_are_in_every_page_in_order(messages: MessageStore, writer: GroupWriter) -> None:
    run = [
        writer.message(f"m{n}", "abc"[n % 3], text=text)
        for n, text in enumerate(["x", "\0", "名字", "'\"", "y" * 9999])
    ]
    assert await messages.add(run) == [Added(message.time) for message in run]
    assert await messages.after(GROUP, 0, 100) == run
    assert await messages.before(GROUP, END, 100) == run
    assert await messages.skip(GROUP, 0, 100) == run
    assert await messages.newest() == run[-1].time
    assert not any(message.read for message in await writer.all())


async def test_an_unknown_group_has_no_messages(messages: MessageStore, writer: GroupWriter) -> None:
    await writer.add("m")
    await messages.add([Message("a", "b", "m", "text", writer.timeline.next())])
    for page in (messages.after(OTHER, 0, 9), messages.before(OTHER, END, 9), messages.skip(OTHER, 0, 9)):
        assert await page == []
    assert await messages.time_of(OTHER, "a", "m") is None
    assert await messages.newest_with_id(OTHER, "m") is None
    assert await messages.delete(OTHER, [[("a", "m")]]) == [None]
    assert await messages.erase(OTHER, 9) == 0
    assert await messages.positions([OTHER.number]) == {OTHER.number: {}}
    assert await messages.group_conversations("a", [GroupView(OTHER, 5)]) == [
        Conversation(OTHER.name, None, 0, 5, OTHER.number)
    ]
    assert await advance(messages, "a", [], group=OTHER) is None
    assert ids(await writer.all()) == ["m"]


async def test_pages_begin_after_the_time_of_joining(messages: MessageStore, writer: GroupWriter) -> None:
    run = await writer.talk("abcabc")
    since = run[2].time
    assert await messages.skip(GROUP, 0, 2, since) == run[3:5]
    assert await messages.skip(GROUP, 1, 9, since) == run[4:]
    assert await messages.before(GROUP, END, 9, since) == run[3:]
    assert await messages.before(GROUP, END, 1, since) == run[5:]
    assert await messages.before(GROUP, run[4].time, 9, since) == run[3:4]
    assert await messages.before(GROUP, run[1].time, 9, since) == []


async def test_a_retry_is_stored_once_and_stays_unread(messages: MessageStore, writer: GroupWriter) -> None:
    [first] = await writer.add("m")
    assert await messages.add([writer.message("m")]) == [Added(first.time, new=False)]
    assert await messages.add([writer.message("m", text="other")]) == [Added(first.time, new=False, same=False)]
    await messages.move_position(GROUP.number, "b", first.time)
    assert await messages.add([writer.message("m")]) == [Added(first.time, new=False)]
    await messages.delete(GROUP, [[("a", "m")]])
    assert await messages.add([writer.message("m")]) == [Added(first.time, new=False, unread=False)]
    assert await messages.add([writer.message("m", text="other")]) == [
        Added(first.time, new=False, same=False, unread=False)
    ]
    assert await writer.all() == []


async def test_an_id_is_unique_per_sender_and_group(messages: MessageStore, writer: GroupWriter) -> None:
    pair = Message("a", "b", "m", "to b", writer.timeline.next())
    run = [
        writer.message("m"),
        writer.message("m", "b"),
        pair,
        writer.message("m", group=OTHER),
        writer.message("m", "c"),
    ]
    assert await messages.add(run) == [Added(message.time) for message in run]
    assert await writer.all() == [run[0], run[1], run[4]]
    assert await writer.all(OTHER) == [run[3]]
    assert await messages.after(Pair("a", "b"), 0, 9) == [pair]
    assert [await messages.time_of(GROUP, sender, "m") for sender in "abcd"] == [
        *(run[n].time for n in (0, 1, 4)),
        None,
    ]


async def test_a_batch_may_contain_retries_and_new_senders(messages: MessageStore, writer: GroupWriter) -> None:
    [first] = await writer.add("m")
    run = [writer.message("m"), writer.message("m", "b"), writer.message("m", "b"), writer.message("n", "c")]
    assert await messages.add(run) == [
        Added(first.time, new=False),
        Added(run[1].time),
        Added(run[1].time, new=False),
        Added(run[3].time),
    ]
    assert await writer.all() == [first, run[1], run[3]]


async def test_concurrent_senders_keep_their_names_and_order(messages: MessageStore, writer: GroupWriter) -> None:
    runs = [[writer.message(f"m{n}", f"user{k}") for n in range(3)] for k in range(30)]
    await asyncio.gather(*map(messages.add, runs))
    assert await writer.all() == [message for run in runs for message in run]
    runs = [[writer.message(f"n{n}", f"user{k}", OTHER) for n in range(3)] for k in range(30)]
    await asyncio.gather(*map(messages.add, runs))
    assert await writer.all(OTHER) == [message for run in runs for message in run]


async def test_concurrent_retries_are_stored_once(messages: MessageStore, writer: GroupWriter) -> None:
    run = [writer.message("m", text="text") for _ in range(20)]
    added = [one for [one] in await asyncio.gather(*(messages.add([message]) for message in run))]
    [stored] = await writer.all()
    assert [one.new for one in added].count(True) == 1
    assert {one.time for one in added} == {stored.time}


async def test_messages_of_groups_appear_in_no_list_of_pairs(messages: MessageStore, writer: GroupWriter) -> None:
    [message] = await writer.add("m")
    for user in ("a", "b", GROUP.name):
        assert await messages.conversations(user, END, 9) == []
        assert await messages.newest_peers(user, 9) == []
        assert [peer async for peer in messages.peers(user)] == []
    pair = Pair("a", GROUP.name)
    assert await messages.after(pair, 0, 9) == []
    assert await messages.recent(pair, 9) == []
    assert await messages.unread("a", GROUP.name, 0, 9) == []
    assert await messages.have_written(["a"], GROUP.name) == set()
    assert await messages.mark("a", GROUP.name, ["m"]) == (set(), [])
    assert await messages.mark_delivered([message.time]) == set()
    assert await messages.stored([Message("a", GROUP.name, "m", message.text, END)]) == [None]
    assert [pair async for pair in cast("ExportableMessages", messages).pairs()] == []


# --- references and deletions


async def test_newest_with_id_searches_every_sender(messages: MessageStore, writer: GroupWriter) -> None:
    await writer.add("m", "other")
    [second] = await writer.add("m", sender="b")
    await writer.add("m", sender="c", group=OTHER)
    await messages.add([Message("c", "a", "m", "text", writer.timeline.next())])
    assert await messages.newest_with_id(GROUP, "m") == ("b", second.time)
    assert await messages.newest_with_id(GROUP, "M") is None
    await messages.delete(GROUP, [[("b", "m")]])
    assert await messages.newest_with_id(GROUP, "m") == ("b", second.time)
    [third] = await writer.add("m", sender="c")
    assert await messages.newest_with_id(GROUP, "m") == ("c", third.time)


async def test_delete_leaves_a_tombstone_of_one_message(messages: MessageStore, writer: GroupWriter) -> None:
    run = await writer.talk("abab")
    same = await writer.add("m1", sender="c")
    assert await messages.delete(
        GROUP, [[("a", "m1"), ("b", "m1"), ("c", "m1")], [("z", "m1")], [("b", "m1")], [("a", "m2")]]
    ) == [("b", "m1"), None, None, ("a", "m2")]
    assert await writer.all() == [run[0], run[3], *same]
    assert await messages.delete(GROUP, [[("b", "m1"), ("c", "m1")]]) == [None]
    assert await messages.time_of(GROUP, "b", "m1") == run[1].time
    assert await messages.after(GROUP, run[1].time, 1) == [run[3]]
    deleted = await asyncio.gather(*(messages.delete(GROUP, [[("a", "m0")]]) for _ in range(5)))
    assert sorted(deleted, key=str) == [[("a", "m0")], *[[None]] * 4]


# --- conversations


async def test_group_conversations_have_last_and_unread(messages: MessageStore, writer: GroupWriter) -> None:
    run = await writer.talk("abacb")
    [other] = await writer.add("m", sender="b", group=OTHER)
    await messages.move_position(GROUP.number, "a", run[1].time)
    views = [GroupView(GROUP, 0), GroupView(OTHER, 0)]
    found = await messages.group_conversations("a", views)
    assert sorted(found, key=lambda one: one.time) == [
        Conversation("#group", run[4], 2, run[4].time, GROUP.number),
        Conversation("#other", other, 1, other.time, OTHER.number),
    ]
    counts = {user: await unread(messages, user) for user in "abcd"}
    assert counts == {"a": 2, "b": 3, "c": 4, "d": 5}
    assert await messages.group_conversations("a", []) == []


async def test_a_new_member_sees_only_later_messages(messages: MessageStore, writer: GroupWriter) -> None:
    run = await writer.talk("aab")
    since = run[2].time
    [conversation] = await messages.group_conversations("new", [GroupView(GROUP, since)])
    assert conversation == Conversation("#group", None, 0, since, GROUP.number)
    [later] = await writer.add("later")
    [conversation] = await messages.group_conversations("new", [GroupView(GROUP, since)])
    assert conversation == Conversation("#group", later, 1, later.time, GROUP.number)
    await messages.move_position(GROUP.number, "back", run[0].time)  # the position of an earlier membership
    assert await unread(messages, "back", since) == 1


async def test_tombstones_are_neither_last_nor_unread(messages: MessageStore, writer: GroupWriter) -> None:
    run = await writer.talk("aaa")
    await messages.delete(GROUP, [[("a", "m1")], [("a", "m2")]])
    [conversation] = await messages.group_conversations("b", [GroupView(GROUP, 0)])
    assert (conversation.last, conversation.unread) == (run[0], 1)
    await messages.delete(GROUP, [[("a", "m0")]])
    [conversation] = await messages.group_conversations("b", [GroupView(GROUP, 7)])
    assert (conversation.last, conversation.unread, conversation.time) == (None, 0, 7)


async def test_unread_counts_within_the_next_messages(messages: MessageStore, writer: GroupWriter) -> None:
    await writer.add("first")
    await writer.add(*(f"own{n}" for n in range(MAX_UNREAD - 3)), sender="b")
    assert await unread(messages, "b") == 1
    await writer.add("x", "y", "z")
    assert await unread(messages, "b") == 3
    assert await unread(messages, "c") == MAX_UNREAD


# --- read positions


async def test_a_position_moves_only_forward(messages: MessageStore, writer: GroupWriter) -> None:
    assert await messages.move_position(GROUP.number, "a", 5)
    assert not await messages.move_position(GROUP.number, "a", 5)
    assert not await messages.move_position(GROUP.number, "a", 4)
    assert await messages.move_position(GROUP.number, "a", 6)
    await messages.move_position(GROUP.number, "名字", 1)
    await messages.move_position(OTHER.number, "a", 9)
    assert await messages.positions([GROUP.number, OTHER.number, 5]) == {
        GROUP.number: {"a": 6, "名字": 1},
        OTHER.number: {"a": 9},
        5: {},
    }
    assert await messages.positions([]) == {}


async def test_concurrent_moves_end_at_the_latest_position(messages: MessageStore) -> None:
    times = [7, 3, 9, 1, 8, 2, 9]
    moved = await asyncio.gather(*(messages.move_position(GROUP.number, "a", time) for time in times))
    assert await messages.positions([GROUP.number]) == {GROUP.number: {"a": 9}}
    assert moved.count(True) >= 1
    assert [one for one, time in zip(moved, times, strict=True) if time == 9].count(True) == 1


async def test_many_members_have_positions(messages: MessageStore, writer: GroupWriter) -> None:
    [message] = await writer.add("m")
    users = [f"user{n:04}" for n in range(1500)]
    confirmed = {user: Confirmed(0, [message.time]) for user in users}
    assert await messages.advance(GROUP.number, confirmed) == dict.fromkeys(users, message.time)
    assert await messages.positions([GROUP.number]) == {GROUP.number: dict.fromkeys(users, message.time)}


async def test_confirmed_messages_move_the_position(messages: MessageStore, writer: GroupWriter) -> None:
    run = await writer.talk("aaaa")
    assert await advance(messages, "b", run[:2]) == run[1].time
    assert await unread(messages, "b") == 2
    assert await advance(messages, "b", run[:2]) is None
    assert await advance(messages, "b", run[1:3]) == run[2].time
    assert await unread(messages, "b") == 1


async def test_a_position_passes_no_unconfirmed_message(messages: MessageStore, writer: GroupWriter) -> None:
    run = await writer.talk("aaaaa")
    assert await advance(messages, "b", [run[1], run[2]]) is None
    assert await unread(messages, "b") == 5
    assert await advance(messages, "b", [run[0], run[1], run[3]]) == run[1].time
    assert await unread(messages, "b") == 3
    await messages.move_position(GROUP.number, "b", run[2].time)
    assert await advance(messages, "b", [run[3], run[4]]) == run[4].time


async def test_own_messages_and_tombstones_count_as_read(messages: MessageStore, writer: GroupWriter) -> None:
    run = await writer.talk("baabba")
    await messages.delete(GROUP, [[("a", "m2")]])
    assert await advance(messages, "b", [run[1]]) == run[1].time
    assert await advance(messages, "b", [run[5]]) == run[5].time
    assert await advance(messages, "c", run[:2]) == run[1].time
    assert await advance(messages, "c", run[3:5]) == run[4].time
    await messages.delete(GROUP, [[("a", "m5")]])  # deleted between delivery and confirmation
    assert await advance(messages, "c", [run[5]]) == run[5].time


async def test_a_long_run_of_own_messages_is_passed_at_once(messages: MessageStore, writer: GroupWriter) -> None:
    """The confirmation after it must not get lost."""
    await writer.add(*(f"own{n}" for n in range(PAGE + 50)), sender="b")
    [last] = await writer.add("last")
    assert await advance(messages, "b", [last]) == last.time
    assert await messages.positions([GROUP.number]) == {GROUP.number: {"b": last.time}}


async def test_a_position_begins_at_the_time_of_joining(messages: MessageStore, writer: GroupWriter) -> None:
    run = await writer.talk("aaa")
    assert await advance(messages, "new", [run[2]], run[1].time) == run[2].time
    assert await advance(messages, "old", [run[2]]) is None
    await messages.move_position(GROUP.number, "back", run[0].time)
    assert await advance(messages, "back", [run[2]], run[1].time) == run[2].time


async def test_members_advance_independently_in_one_call(messages: MessageStore, writer: GroupWriter) -> None:
    run = await writer.talk("aabab")
    times = [message.time for message in run]
    await messages.move_position(GROUP.number, "stuck", times[0])
    assert await messages.advance(
        GROUP.number,
        {
            "a": Confirmed(0, [times[2], times[4]]),
            "b": Confirmed(0, times[:2]),
            "c": Confirmed(0, times),
            "stuck": Confirmed(0, times[2:]),
            "new": Confirmed(times[3], times[4:]),
            "idle": Confirmed(0, []),
        },
    ) == {"a": times[4], "b": times[1], "c": times[4], "new": times[4]}
    positions = (await messages.positions([GROUP.number]))[GROUP.number]
    assert positions["stuck"] == times[0]
    assert times[1] <= positions["b"] <= times[2]
    assert "idle" not in positions


async def test_concurrent_confirmations_report_a_message_once(messages: MessageStore, writer: GroupWriter) -> None:
    run = await writer.talk("aaa")
    found = await asyncio.gather(*(advance(messages, "b", run) for _ in range(8)))
    assert sorted(found, key=str) == [run[2].time, *[None] * 7]


steps: st.SearchStrategy[list[tuple[str, Any, list[int]]]] = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.sampled_from("abc"), st.just([])),
        st.tuples(st.just("delete"), st.integers(0, 15), st.just([])),
        st.tuples(st.just("mark"), st.sampled_from("abc"), st.lists(st.integers(0, 15), min_size=1, max_size=1)),
        st.tuples(st.just("confirm"), st.sampled_from("abc"), st.lists(st.integers(0, 15), min_size=1, max_size=6)),
    ),
    max_size=25,
)
groups = (GroupKey(1_800_000_000_000_000 + number, "#model") for number in range(10**9))


@given(steps, st.dictionaries(st.sampled_from("abc"), st.integers(0, 5)))
@example([("send", "a", []), ("send", "b", []), ("send", "a", []), ("delete", 0, []), ("confirm", "a", [0, 2])], {})
@settings(max_examples=60 * SEARCH, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_positions_match_a_set_of_read_messages(
    messages: MessageStore, writer: GroupWriter, steps: list[tuple[str, Any, list[int]]], joined: Mapping[str, int]
) -> None:
    """No position skips a message that was neither confirmed nor marked, and none moves back."""
    group, run, deleted, order = next(groups), list[Message](), set[str](), 0
    start = writer.timeline.next()
    read = dict.fromkeys("abc", start)  # each user has read all messages up to this time
    since = dict.fromkeys("abc", start)
    for kind, subject, numbers in steps:
        chosen = sorted({run[n].time for n in numbers if n < len(run)})
        if kind == "send":
            run += await writer.add(f"m{order}", sender=subject, group=group)
            order += 1
            for user, count in joined.items():
                if count == len(run):
                    since[user] = run[-1].time
                    read[user] = max(read[user], since[user])
        elif kind == "delete" and subject < len(run):
            await messages.delete(group, [[(run[subject].sender, run[subject].id)]])
            deleted.add(run[subject].id)
        elif kind == "mark" and chosen:
            assert await messages.move_position(group.number, subject, chosen[0]) or chosen[0] <= read[subject]
            read[subject] = max(read[subject], chosen[0])
        elif kind == "confirm":
            passed = await messages.advance(group.number, {subject: Confirmed(since[subject], chosen)})
            before, until = read[subject], max(chosen, default=0)
            for message in run:
                if before < message.time <= until and message.id not in deleted:
                    if message.sender != subject and message.time not in chosen:
                        break
                    read[subject] = message.time
            else:  # only deleted messages are left
                read[subject] = max(before, until)
            expected = [time for time in chosen if before < time <= read[subject]]
            assert passed == ({subject: expected[-1]} if expected else {})
    for user in "abc":
        left = [m for m in run if m.time > read[user] and m.sender != user and m.id not in deleted]
        assert await unread(messages, user, since[user], group) == len(left)


# --- erasing and purging


async def test_erase_removes_a_group_in_chunks(messages: MessageStore, writer: GroupWriter) -> None:
    run = await writer.talk("abcab")
    kept = await writer.add("m", group=OTHER)
    await messages.delete(GROUP, [[("a", "m0")]])
    await messages.move_position(GROUP.number, "a", run[1].time)
    await messages.move_position(OTHER.number, "a", kept[0].time)
    assert await messages.erase(GROUP, 2) == 2
    assert await messages.positions([GROUP.number]) == {GROUP.number: {"a": run[1].time}}
    assert [await messages.erase(GROUP, 2) for _ in range(3)] == [2, 1, 0]
    assert await writer.all() == []
    assert await messages.newest_with_id(GROUP, "m0") is None
    assert await messages.positions([GROUP.number, OTHER.number]) == {
        GROUP.number: {},
        OTHER.number: {"a": kept[0].time},
    }
    assert await writer.all(OTHER) == kept


async def test_an_erased_group_has_no_senders_left(messages: MessageStore, writer: GroupWriter) -> None:
    """A late message must get the name of its sender, although the numbers were removed."""
    await writer.talk("abc")
    await writer.add("cached", sender="c")
    assert await messages.erase(GROUP, 100) == 4
    late = [*await writer.add("late", sender="c"), *await writer.add("late", sender="z")]
    assert await writer.all() == late


async def test_erase_sent_removes_the_messages_of_one_sender(messages: MessageStore, writer: GroupWriter) -> None:
    """In chunks, with tombstones, in one group; then the position. The sender can write again."""
    run = await writer.talk("ababa")
    elsewhere = await writer.add("m", group=OTHER)
    await messages.delete(GROUP, [[("a", "m0")]])
    for user in "ab":
        await messages.move_position(GROUP.number, user, run[1].time)
        await messages.move_position(OTHER.number, user, elsewhere[0].time)
    assert await messages.erase_sent(GROUP.number, "a", 2) == 2
    assert await messages.positions([GROUP.number]) == {GROUP.number: dict.fromkeys("ab", run[1].time)}
    assert [await messages.erase_sent(GROUP.number, "a", 2) for _ in range(2)] == [1, 0]
    assert await messages.erase_sent(GROUP.number, "unknown", 2) == 0
    assert await writer.all() == run[1::2]
    assert await writer.all(OTHER) == elsewhere
    assert await messages.newest_with_id(GROUP, "m0") is None
    assert await messages.positions([GROUP.number, OTHER.number]) == {
        GROUP.number: {"b": run[1].time},
        OTHER.number: dict.fromkeys("ab", elsewhere[0].time),
    }
    again = await writer.add("m0", sender="a")
    assert await writer.all() == [*run[1::2], *again]


async def test_erase_sent_removes_a_position_without_messages(messages: MessageStore, writer: GroupWriter) -> None:
    [message] = await writer.add("m")
    await messages.move_position(GROUP.number, "b", message.time)
    assert await messages.erase_sent(GROUP.number, "b", 2) == 0
    assert await messages.positions([GROUP.number]) == {GROUP.number: {}}
    assert await writer.all() == [message]


async def test_purge_removes_old_messages_of_groups(messages: MessageStore, writer: GroupWriter) -> None:
    run = await writer.talk("abab")
    await messages.move_position(GROUP.number, "b", run[2].time)
    assert await messages.purge(run[2].time, 100) == 2
    assert await writer.all() == run[2:]
    assert await messages.newest_with_id(GROUP, "m0") is None
    assert await messages.purge(END, 1) == 1
    assert await messages.purge(END, 100) == 1
    [conversation] = await messages.group_conversations("b", [GroupView(GROUP, 3)])
    assert (conversation.last, conversation.time) == (None, 3)
    again = await writer.add("m0", sender="b")
    assert await writer.all() == again
    assert await messages.positions([GROUP.number]) == {GROUP.number: {"b": run[2].time}}


# --- migration


def record(sender: str, time: int, text: str | bytes = "text", group: GroupKey = GROUP) -> Record:
    return Record(sender, group.name, f"m{time}", text, GROUP.number + time, read=False, group=group.number)


async def test_put_and_records_preserve_messages_of_groups(messages: MessageStore, writer: GroupWriter) -> None:
    store = cast("ExportableMessages", messages)
    there = [record("a", 1, "\0 ' 🙂"), record("b", 2, digest("deleted")), record("a", 3), record("名字", 5)]
    await store.put(there[:2])
    await store.put(there[1:])
    await store.put([record("b", 4, group=OTHER)])
    assert await store.records(GROUP, 0, END, 10) == there
    assert await store.records(GROUP, 0, END, 2) == there[:2]
    assert await store.records(GROUP, there[0].time, there[2].time, 10) == there[1:3]
    assert await store.count() == 5
    assert [pair async for pair in store.pairs()] == []
    assert [(m.sender, m.text, m.read) for m in await writer.all()] == [
        ("a", "\0 ' 🙂", False),
        ("a", "text", False),
        ("名字", "text", False),
    ]
    assert await unread(messages, "a") == 1
    assert await messages.time_of(GROUP, "b", "m2") == there[1].time
    await store.put([msgspec.structs.replace(there[2], text=digest("text"))])
    assert ids(await writer.all()) == ["m1", "m5"]
    new = await writer.add("new", sender="b")
    assert (await writer.all())[-1:] == new


@pytest.mark.parametrize(
    "other",
    [record("b", 1), record("a", 1, group=OTHER), msgspec.structs.replace(record("a", 1), time=GROUP.number + 9)],
    ids=["its time, by another", "its time, elsewhere", "its id"],
)
async def test_put_refuses_to_replace_another_message(messages: MessageStore, other: Record) -> None:
    store = cast("ExportableMessages", messages)
    await store.put([record("a", 1)])
    with pytest.raises(Duplicate):
        await store.put([other])
    assert await store.records(GROUP, 0, END, 10) == [record("a", 1)]


async def test_put_positions_stores_them_as_they_are(messages: MessageStore) -> None:
    store = cast("ExportableMessages", messages)
    await store.put_positions(GROUP.number, {"a": 5, "名字": 7})
    await store.put_positions(GROUP.number, {"a": 3})
    await store.put_positions(OTHER.number, {})
    assert await store.positions([GROUP.number, OTHER.number]) == {GROUP.number: {"a": 3, "名字": 7}, OTHER.number: {}}


# --- unavailable


@pytest.mark.parametrize(
    "ask",
    [
        lambda store: store.add([Message("a", "#group", "m", "text", 1, group=GROUP.number)]),
        lambda store: store.after(GROUP, 0, 1),
        lambda store: store.newest_with_id(GROUP, "m"),
        lambda store: store.group_conversations("a", [GroupView(GROUP, 0)]),
        lambda store: store.positions([GROUP.number]),
        lambda store: store.move_position(GROUP.number, "a", 1),
        lambda store: store.advance(GROUP.number, {"a": Confirmed(0, [1])}),
        lambda store: store.erase(GROUP, 1),
        lambda store: store.erase_sent(GROUP.number, "a", 1),
        lambda store: store.put_positions(GROUP.number, {"a": 1}),
    ],
)
async def test_an_unavailable_store_raises_store_unavailable(
    messages_away: MessageStore, ask: Callable[[MessageStore], Awaitable[Any]]
) -> None:
    with pytest.raises(StoreUnavailable):
        await ask(messages_away)
