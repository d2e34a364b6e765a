"""Ops 1 to 5, 7 and 8 in groups (docs/protocol.md section 2, Ops in groups)."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from chat_server.model.sqlite.messages import SqliteMessages
from tests import raw
from tests.e2e.group_helpers import add, create, remove
from tests.e2e.http_helpers import check_refusal, check_success, post, try_upgrade
from tests.harness import ChatClient, Frame, ManualClock, ServerHandle, serving

NAMES = ("1", "2", "3", "4")
TEAM = "#team"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ServerHandle]:
    """A server with the group #team of the users 1, 2 and 3; 1 is the owner."""
    async with serving(tmp_path, users=NAMES, StrangerLimit=0) as server:
        await create(server, "1", TEAM, "2", "3")
        yield server


async def history(chat: ChatClient, content: str = "0-200") -> list[str]:
    """The references of the messages of a page."""
    return references((await chat.ask(2, content))[:-1])


async def unread(chat: ChatClient, content: str = "") -> list[str]:
    """The references of the messages that op 3 returns."""
    return references((await chat.ask(3, content))[:-1])


def references(frames: Sequence[Frame]) -> list[str]:
    frames = [frame for frame in frames if frame["type"] == 2]  # without messages that arrived before
    for frame in frames:
        assert frame["to"] == TEAM
        assert frame["content"].partition("\n")[0] == frame["id"]
    return [f"{frame['id']}/{frame['from']}" for frame in frames]


async def listed(chat: ChatClient) -> dict[str, Frame]:
    """What op 7 reports, by the name of the group or the other user."""
    frames = (await chat.ask(7, "-200"))[:-1]
    return {frame["from"] if frame["to"] == chat.user else frame["to"]: frame for frame in frames}


# --- op 1


async def test_a_message_reaches_every_socket_of_every_other_member(server: ServerHandle) -> None:
    async with AsyncExitStack() as stack:
        one, other, two, three, four = [
            await stack.enter_async_context(server.chat(user)) for user in ("1", "1", "2", "3", "4")
        ]
        sync = await stack.enter_async_context(server.chat("2", sync=True))
        own_sync = await stack.enter_async_context(server.chat("1", sync=True))
        answer = await one.send("m1\nhello", to=TEAM)
        assert (answer["op_type"], answer["id"], answer["from"]) == (40018, "m1", "System")
        for chat in (two, three, sync, own_sync):
            frame = await chat.receive()
            assert (frame["from"], frame["to"], frame["type"], frame["op_type"]) == ("1", TEAM, 1, 40011)
            assert (frame["content"], frame["id"], frame["time"]) == ("m1\nhello", "m1", answer["time"])
        assert (await sync.receive())["op_type"] == 40007  # another socket of the user confirmed the delivery
        for chat in (one, other, two, three, four, sync, own_sync):
            await chat.expect_nothing()


async def test_offline_members_find_the_message_unread(server: ServerHandle) -> None:
    async with server.chat("1", to=TEAM) as one:
        assert (await one.send("m1\nhello"))["op_type"] == 40019
        assert await unread(one) == []
    async with server.chat("2", to=TEAM) as two:
        assert await unread(two) == ["m1/1"]


async def test_the_sender_alone_is_not_another_member(server: ServerHandle) -> None:
    async with server.chat("1", to=TEAM) as one, server.chat("1"), server.chat("4"):
        assert (await one.send("m1\nhello"))["op_type"] == 40019


async def test_a_member_who_blocks_the_sender_seems_offline(server: ServerHandle) -> None:
    async with server.chat("1", to=TEAM) as one, server.chat("2", to=TEAM) as two:
        assert (await one.send("m1\nhello"))["op_type"] == 40018
        check_success(await post(server, "/user/block", server.tokens["2"], user_name="1"), 43001)
        assert (await one.send("m2\nhello"))["op_type"] == 40019
        assert [(await two.receive())["id"] for _ in range(2)] == ["m1", "m2"]
        assert (await two.send("m3\nhello"))["op_type"] == 40018
        check_success(await post(server, "/user/unblock", server.tokens["2"], user_name="1"), 43003)
        await one.receive()
        assert (await one.send("m4\nhello"))["op_type"] == 40018


async def test_strangers_write_without_a_limit(tmp_path: Path) -> None:
    async with serving(tmp_path, users=NAMES, StrangerLimit=1) as server:
        async with server.chat("2", to="1") as two, server.chat("3", to="1") as three:
            await two.send("hello")
            await three.send("hello")
        await create(server, "1", TEAM, "2", "3")
        async with server.chat("2", to=TEAM) as two, server.chat("3", to=TEAM) as three:
            for number in range(5):
                assert (await two.send(f"m{number}\nhello"))["op_type"] == 40018
                assert (await three.receive())["id"] == f"m{number}"
        async with server.chat("2", to="3") as two:
            assert (await two.send("hello"))["op_type"] == 40019
            assert (await two.send("hello"))["op_type"] == 40020


async def test_a_retry_is_stored_and_delivered_once(server: ServerHandle) -> None:
    async with server.chat("1", to=TEAM) as one, server.chat("2", to=TEAM) as two:
        first = await one.send("m1\nhello")
        assert await one.send("m1\nhello") == first
        assert (await one.send("m1\nother"))["reason"] == "id_used"
        assert (await two.receive())["id"] == "m1"
        assert (await two.send("m1\nthe same id of another sender"))["op_type"] == 40018
        assert (await one.receive())["from"] == "2"
        for chat in (one, two):
            await chat.expect_nothing()
        assert await history(one) == ["m1/1", "m1/2"]


async def test_a_retry_after_a_restart_is_delivered_again(tmp_path: Path) -> None:
    async with serving(tmp_path, users=NAMES, StrangerLimit=0) as server:
        await create(server, "1", TEAM, "2")
        async with server.chat("1", to=TEAM) as one:
            first = await one.send("m1\nhello")
            gone = await one.send("m2\nhello")
            await one.answer(5, "m2")
    async with serving(tmp_path, StrangerLimit=0) as restarted:
        restarted.tokens = server.tokens
        async with restarted.chat("1", to=TEAM) as one, restarted.chat("2", to=TEAM) as two:
            assert (await one.send("m1\nhello"))["time"] == first["time"]
            assert (await one.send("m2\nhello"))["time"] == gone["time"]
            assert (await two.receive())["id"] == "m1"
            await two.expect_nothing()


async def test_ids_and_texts_are_checked_as_in_pairs(server: ServerHandle) -> None:
    async with server.chat("1", to=TEAM) as one:
        for content, reason in (("a b\nhello", "bad_id"), ("", "empty"), ("m\n", "empty"), ("x" * 16385, "too_long")):
            assert (await one.send(content))["reason"] == reason
        assert await history(one) == []


async def test_one_socket_writes_to_users_and_groups_together(server: ServerHandle) -> None:
    """Requests to several receivers, good and bad, that arrive together are answered in order."""
    await server.make_contacts("1", "2")
    async with raw.chat(server, "1") as client:
        sends = [("2", "a"), (TEAM, "b"), ("#none", "c"), (TEAM, "d"), ("4", "e"), ("2", "f"), ("unknown", "g")]
        await client.write(b"".join(raw.request(1, f"{id}\nx", to=to) for to, id in sends))
        answers = [await client.answer() for _ in sends]
        assert [(one["id"], one["op_type"]) for one in answers] == [
            *(("a", 40019), ("b", 40019), ("c", 40008), ("d", 40019), ("e", 40019), ("f", 40019), ("g", 40008))
        ]


async def test_messages_of_many_members_keep_their_order(server: ServerHandle) -> None:
    """Each member receives the messages of the others in the order in which they are stored."""
    async with AsyncExitStack() as stack:
        chats = [await stack.enter_async_context(server.chat(user, to=TEAM)) for user in ("1", "2", "3")]
        for number in range(50):
            for chat in chats:
                await chat.put(1, f"m{number}\nhello", type=1)
        received: dict[str, list[str]] = {chat.user: [] for chat in chats}
        for chat in chats:
            for _ in range(100 + 50):  # with the answers to its own
                frame = await chat.receive()
                if frame["op_type"] == 40011:
                    received[chat.user].append(f"{frame['id']}/{frame['from']}")
        stored = await history(chats[0])
        for user, ids in received.items():
            assert ids == [reference for reference in stored if not reference.endswith(f"/{user}")]


# --- who is no member


async def test_all_ops_refuse_a_user_who_is_no_member(server: ServerHandle) -> None:
    """A group of others is refused like a name without a group."""
    async with server.chat("1", to=TEAM) as one:
        await one.send("m1\nhello")
    async with server.chat("4") as four:
        for op, content, failed in (
            *((1, "m1\nhello", 40008), (2, "0-9", 40004), (2, "-9@m1/1", 40004), (3, "", 40004)),
            *((4, "m1/1", 40006), (4, "*", 40006), (5, "m1/1", 40012), (8, "1", 40024)),
        ):
            refused = await four.answer(op, content, to=TEAM)
            assert (refused["op_type"], refused["reason"]) == (failed, "no_such_group")
            assert await four.answer(op, content, to="#none") == refused
        refused = await four.answer(7, f"-9@{TEAM}")
        assert (refused["op_type"], refused["reason"]) == (40022, "no_such_group")
        assert await four.answer(7, "-9@#none") == refused
        assert await listed(four) == {}


async def test_a_socket_is_opened_for_a_group_of_the_user_only(server: ServerHandle) -> None:
    async with server.chat("1", to=TEAM) as one, server.chat("2", to=TEAM) as two:
        assert (await one.send("m1\nhello"))["op_type"] == 40018
        assert (await two.receive())["to"] == TEAM
    headers = {"Authorization": f"Bearer {server.tokens['4']}"}
    refused = await try_upgrade(server, headers, uid="4", to_uid=TEAM)
    check_refusal(refused, 404, 41006, "no_such_group", "to_uid")
    assert (await try_upgrade(server, headers, uid="4", to_uid="#none")).content == refused.content


# --- op 2


async def test_pages_begin_with_the_time_of_joining(server: ServerHandle) -> None:
    async with server.chat("1", to=TEAM) as one, server.chat("2", to=TEAM) as two:
        for number in range(3):
            await one.send(f"m{number}\nhello")
        await add(server, "1", TEAM, "4")
        async with server.chat("4", to=TEAM, sync=True) as four:
            assert await history(four) == []
            for number in range(3, 6):
                await one.send(f"m{number}\nhello")
            later = ["m3/1", "m4/1", "m5/1"]
            for page in ("0-200", "-200", "-9@m5/1"):
                assert await history(four, page) == (later if "@" not in page else later[:2])
            assert await history(four, "1-1") == ["m4/1"]
            for marker in ("-9@m1/1", "+9@m1/1", "+9@m1"):
                assert (await four.answer(2, marker))["reason"] == "no_such_message"
            assert (await four.answer(4, "m1/1"))["reason"] == "no_such_message"
            assert (await four.answer(5, "m1/1"))["reason"] == "no_such_message"
            assert await unread(four) == later
        assert len(await history(two)) == 6


async def test_after_joining_again_earlier_messages_stay_hidden(server: ServerHandle) -> None:
    async with server.chat("1", to=TEAM) as one:
        await one.send("m1\nhello")
        await remove(server, "1", TEAM, "2")
        await one.send("m2\nhello")
        await add(server, "1", TEAM, "2")
        await one.send("m3\nhello")
    async with server.chat("2", to=TEAM) as two:
        assert await history(two) == await unread(two) == ["m3/1"]
        assert (await two.send("m4\nhello"))["op_type"] == 40019
        assert await history(two) == ["m3/1", "m4/2"]


async def test_a_clock_that_is_set_back_hides_no_message(tmp_path: Path) -> None:
    """Messages after a restart are later than the time of joining, whatever the clock says."""
    clock = ManualClock()
    clock.shift = 3600
    async with serving(tmp_path, clock, users=NAMES, StrangerLimit=0) as server:
        await create(server, "1", TEAM, "2")
    clock.shift = 0
    async with serving(tmp_path, clock, StrangerLimit=0) as restarted:
        restarted.tokens = server.tokens
        async with restarted.chat("1", to=TEAM) as one, restarted.chat("2", to=TEAM) as two:
            assert (await one.send("m1\nhello"))["op_type"] == 40018
            assert (await two.receive())["id"] == "m1"
            assert await history(two) == ["m1/1"]


async def test_pages_find_references_to_messages_of_members(server: ServerHandle) -> None:
    async with server.chat("1", to=TEAM) as one, server.chat("2", to=TEAM) as two, server.chat("3", to=TEAM) as three:
        await one.send("same\nfirst")
        await two.send("same\nsecond")
        await three.send("other\nthird")
        assert await history(one, "+9@same/1") == ["same/2", "other/3"]
        assert await history(one, "+9@same/2") == ["other/3"]
        assert await history(one, "+9@same") == ["same/2", "other/3"]  # the own one
        assert await history(three, "+9@same") == ["other/3"]  # the newest one
        assert await history(two, "-9@other") == ["same/1", "same/2"]
        for marker, reason in (("-9@same/4", "no_such_message"), ("-9@>same", "bad_id"), ("-9@a b/1", "bad_id")):
            assert (await one.answer(2, marker))["reason"] == reason


# --- read positions


async def test_a_pong_moves_the_position_past_delivered_messages(server: ServerHandle) -> None:
    async with server.chat("1", to=TEAM) as one, server.chat("2", to=TEAM) as two:
        for number in range(3):
            await one.send(f"m{number}\nhello")
            await two.receive()
        await two.expect_nothing()
        assert await unread(two) == []
        [*_, last] = (await one.ask(2, "-1"))[:-1]
        assert last["read"] is False  # 3 has not read it
    async with server.chat("3", to=TEAM) as three:
        assert await unread(three) == ["m0/1", "m1/1", "m2/1"]
        await three.answer(4, "m2/1")
        assert await unread(three) == []
    async with server.chat("1", to=TEAM) as one:
        assert [frame["read"] for frame in (await one.ask(2, "-3"))[:-1]] == [True, True, True]


async def test_a_pong_skips_no_message_that_was_missed(server: ServerHandle) -> None:
    async with server.chat("1", to=TEAM) as one:
        await one.send("missed\nhello")
        async with server.chat("2", to=TEAM) as two:
            await one.send("m1\nhello")
            assert (await two.receive())["id"] == "m1"
            await two.expect_nothing()
            assert await unread(two) == ["missed/1", "m1/1"]
            await two.answer(4, "missed/1")
            assert await unread(two) == ["m1/1"]  # its confirmation came before
            await one.send("m2\nhello")
            await two.receive()
            await two.expect_nothing()
            assert await unread(two) == ["m1/1", "m2/1"]
            await two.answer(4, "m1/1")
            await one.send("m3\nhello")
            await two.receive()
            await two.expect_nothing()
            assert await unread(two) == ["m2/1", "m3/1"]


async def test_own_messages_do_not_stop_the_position(server: ServerHandle) -> None:
    async with server.chat("1", to=TEAM) as one, server.chat("2", to=TEAM) as two:
        for number in range(5):
            await two.send(f"own{number}\nhello")
            await one.send(f"m{number}\nhello")
            await two.receive()
        await two.expect_nothing()
        assert await unread(two) == []
        assert (await listed(two))[TEAM]["unread"] == 0


async def test_a_sync_socket_confirms_nothing(server: ServerHandle) -> None:
    async with server.chat("1", to=TEAM) as one, server.chat("2", to=TEAM, sync=True) as two:
        await one.send("m1\nhello")
        await two.receive()
        await two.expect_nothing()
        assert await unread(two) == ["m1/1"]


async def test_op_4_moves_the_position_forward_only(server: ServerHandle) -> None:
    async with server.chat("1", to=TEAM) as one:
        for number in range(4):
            await one.send(f"m{number}\nhello")
    async with server.chat("2", to=TEAM) as two:
        assert (await two.answer(4, "m1/1"))["op_type"] == 40007
        assert await unread(two) == ["m2/1", "m3/1"]
        assert (await two.answer(4, "m0/1"))["op_type"] == 40007
        assert await unread(two) == ["m2/1", "m3/1"]
        refused = await two.answer(4, "m2/1\nnone/1\nm2/3")
        assert (refused["op_type"], refused["reason"]) == (40006, "no_such_message")
        assert await unread(two) == ["m3/1"]
        assert (await two.answer(4, "*"))["content"] == "1"
        assert (await two.answer(4, "*"))["content"] == "0"
        assert await unread(two) == []


async def test_op_3_passes_many_messages_of_the_user_itself(server: ServerHandle) -> None:
    async with server.chat("2", to=TEAM) as two:
        for number in range(450):
            await two.put(1, f"own{number}\nhello", type=1)
        for _ in range(450):
            await two.receive()
    async with server.chat("1", to=TEAM) as one:
        await one.send("m1\nhello")
    async with server.chat("2", to=TEAM) as two:
        assert await unread(two) == await unread(two, "1") == ["m1/1"]
        assert (await listed(two))[TEAM]["unread"] == 1


async def test_op_3_streams_every_message_without_a_limit(server: ServerHandle) -> None:
    async with server.chat("1", to=TEAM) as one, server.chat("3", to=TEAM) as three:
        for number in range(250):
            await one.put(1, f"m{number}\nhello", type=1)
            await three.put(1, f"m{number}\nhello", type=1)
        for chat in (one, three):
            await receive_acknowledgements(chat, 250)
    async with server.chat("2", to=TEAM) as two:
        found = await unread(two)
        assert len(found) == len(set(found)) == 500
        assert len(await unread(two, "200")) == 200


async def test_op_3_continues_after_messages_of_the_user_itself(server: ServerHandle) -> None:
    async with server.chat("1", to=TEAM) as one, server.chat("2", to=TEAM, sync=True) as two:
        await one.send("m0\nhello")
        for number in range(250):
            await two.put(1, f"own{number}\nhello", type=1)
        await receive_acknowledgements(two, 250)
        for number in range(1, 50):
            await one.put(1, f"m{number}\nhello", type=1)
        await receive_acknowledgements(one, 49)
    async with server.chat("2", to=TEAM, sync=True) as two:
        assert await unread(two) == [f"m{number}/1" for number in range(50)]


async def receive_acknowledgements(chat: ChatClient, count: int) -> None:
    """Receive frames until `count` messages of this socket are acknowledged."""
    while count:
        count -= (await chat.receive())["from"] == "System"


# --- op 5


async def test_senders_delete_their_messages_and_the_owner_all(server: ServerHandle) -> None:
    async with server.chat("1", to=TEAM) as one, server.chat("2", to=TEAM) as two, server.chat("3", to=TEAM) as three:
        await two.send("m2\nhello")
        await three.send("m3\nhello")
        await two.send("m4\nhello")
        refused = await two.answer(5, "m2\nm3/3")
        assert (refused["op_type"], refused["reason"]) == (40012, "not_yours")
        assert await history(three) == ["m3/3", "m4/2"]
        assert (await one.answer(5, "m3/3\nm4"))["op_type"] == 40013
        assert await history(two) == []
        assert (await one.answer(5, "m3/3"))["reason"] == "no_such_message"
        assert (await two.send("m2\nhello"))["op_type"] in (40018, 40019)
        assert await history(two) == []


@pytest.mark.parametrize("op", [4, 5])
async def test_references_of_one_user_are_looked_up_one_by_one(
    server: ServerHandle, monkeypatch: pytest.MonkeyPatch, op: int
) -> None:
    """However many sockets ask."""
    time_of = SqliteMessages.time_of
    running = most = 0

    async def slow(*arguments: Any) -> int | None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        return await time_of(*arguments)

    monkeypatch.setattr(SqliteMessages, "time_of", slow)
    async with AsyncExitStack() as stack:
        chats = [await stack.enter_async_context(server.chat("1", to=TEAM)) for _ in range(5)]
        await asyncio.gather(*(chat.answer(op, "a\nb\nc") for chat in chats))
    assert most == 1


# --- op 7


async def test_groups_are_listed_with_private_conversations(server: ServerHandle) -> None:
    await server.make_contacts("2", "4")
    await create(server, "1", "#empty", "2")
    async with server.chat("3", to=TEAM) as three, server.chat("2", sync=True) as two:
        await three.send("m1\nhello")
        await two.receive()
        frames = (await two.ask(7, "-200"))[:-1]
        names = [frame["to"] if frame["to"] != "2" else frame["from"] for frame in frames]
        assert names == [TEAM, "#empty", "4"]
        team, empty, _ = frames
        assert (team["from"], team["content"], team["id"], team["type"]) == ("3", "m1\nhello", "m1", 2)
        assert (team["unread"], team["online"], team["read"]) == (1, True, False)
        assert (empty["content"], empty["unread"], empty["online"]) == ("", 0, False)
        assert "id" not in empty
        assert empty["time"] > 1_700_000_000_000
        for marker, names in ((TEAM, ["#empty", "4"]), ("#empty", ["4"]), ("4", [])):
            assert len((await two.ask(7, f"-9@{marker}"))[:-1]) == len(names)
        assert [frame["to"] for frame in (await two.ask(7, "-1"))[:-1]] == [TEAM]
        assert (await two.answer(7, "-9@#none"))["reason"] == "no_such_group"


async def test_a_long_list_mixes_groups_and_users_in_order(tmp_path: Path) -> None:
    async with serving(tmp_path, users=("1", "2"), StrangerLimit=0) as server:
        expected = []
        peers = [f"p{number}" for number in range(6)]
        await server.add_users(*peers)
        for number, peer in enumerate(peers):
            await create(server, "1", f"#g{number}", "2")
            async with server.chat("1") as one:
                await one.send("m\n" + "x" * 16000, to=f"#g{number}")
                await one.send("m\n" + "x" * 16000, to=peer)
            expected += [f"#g{number}", peer]
        async with server.chat("1") as one:
            assert list(await listed(one)) == expected[::-1]
            found, marker = [], ""
            while page := (await one.ask(7, f"-5{marker}"))[:-1]:
                found += [frame["to"] for frame in page]
                marker = f"@{found[-1]}"
            assert found == expected[::-1]


# --- op 8


async def test_typing_reaches_sync_sockets_of_members(server: ServerHandle) -> None:
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(server.chat("1", to=TEAM))
        plain, two, three, four, own = [
            await stack.enter_async_context(server.chat(user, sync=sync))
            for user, sync in (("2", False), ("2", True), ("3", True), ("4", True), ("1", True))
        ]
        await one.put(8, "1")
        for chat in (two, three):
            frame = await chat.receive()
            assert (frame["from"], frame["to"], frame["op_type"], frame["content"]) == ("1", TEAM, 40025, "1")
        await one.put(8, "0")
        for chat in (two, three):
            assert (await chat.receive())["content"] == "0"
        for chat in (plain, two, three, four, own, one):
            await chat.expect_nothing()


@pytest.mark.parametrize("blocker", ["1", "2"])
async def test_typing_does_not_cross_a_block(server: ServerHandle, blocker: str) -> None:
    blocked = {"1": "2", "2": "1"}[blocker]
    async with (
        server.chat("1", sync=True) as one,
        server.chat("2", sync=True) as two,
        server.chat("3", sync=True) as three,
    ):
        check_success(await post(server, "/user/block", server.tokens[blocker], user_name=blocked), 43001)
        await one.put(8, "1", to=TEAM)
        await two.put(8, "1", to=TEAM)
        assert {(await three.receive())["from"] for _ in range(2)} == {"1", "2"}
        await one.expect_nothing()
        await two.expect_nothing()


# --- sync


async def test_members_learn_of_changes(server: ServerHandle) -> None:
    async with AsyncExitStack() as stack:
        one, two, four = [await stack.enter_async_context(server.chat(user, sync=True)) for user in ("1", "2", "4")]
        plain = await stack.enter_async_context(server.chat("2"))
        await add(server, "2", TEAM, "4")
        for chat in (one, two, four):
            assert await chat.receive_change() == (TEAM, ["+4"])
        await add(server, "2", TEAM, "4")
        await remove(server, "1", TEAM, "2")
        assert await one.receive_change() == (TEAM, ["-2"])
        assert await two.receive_change() == (TEAM, ["-2"])
        await remove(server, "1", TEAM, "1")
        assert await one.receive_change() == (TEAM, ["-1"])
        assert await four.receive_change() == (TEAM, ["-2"])
        assert await four.receive_change() == (TEAM, ["-1", "!3"])
        await create(server, "1", "#new", "2", "4")
        for chat in (one, two, four):
            assert await chat.receive_change() == ("#new", ["+1", "+2", "+4", "!1"])
        await check_deleted(server, one, two, four)
        for chat in (one, two, four, plain):
            await chat.expect_no_change()


async def check_deleted(server: ServerHandle, *chats: ChatClient) -> None:
    """Delete #new; each former member learns only of its own end."""
    check_success(await post(server, "/group/delete", server.tokens["1"], group="#new"), 42007)
    for chat in chats:
        assert await chat.receive_change() == ("#new", [f"-{chat.user}"])


async def test_only_the_readers_other_devices_learn_of_the_position(server: ServerHandle) -> None:
    async with AsyncExitStack() as stack:
        one, two, other, three = [
            await stack.enter_async_context(server.chat(user, to=TEAM, sync=True)) for user in ("1", "2", "2", "3")
        ]
        await one.send("m1\nhello")
        await one.send("m2\nhello")
        for chat in (two, other, three):
            await chat.receive()
            await chat.receive()
        assert (await two.answer(4, "m2/1\nm1/1"))["op_type"] == 40007
        frame = await other.receive()
        assert (frame["from"], frame["to"], frame["type"], frame["op_type"]) == ("2", TEAM, 2, 40007)
        assert frame["content"] == "m2/1"
        await two.answer(4, "m1/1")
        for chat in (one, two, other, three):
            await chat.expect_nothing()


async def test_other_devices_learn_of_a_position_moved_by_a_pong(server: ServerHandle) -> None:
    async with server.chat("2", to=TEAM) as two, server.chat("2", sync=True) as other, server.chat("1") as one:
        await one.send("m1\nhello", to=TEAM)
        await two.receive()
        assert (await other.receive())["op_type"] == 40011
        frame = await other.receive()
        assert (frame["op_type"], frame["from"], frame["to"], frame["content"]) == (40007, "2", TEAM, "m1/1")


async def test_members_learn_of_deletions_of_visible_messages(server: ServerHandle) -> None:
    async with server.chat("1", to=TEAM) as one:
        await one.send("early\nhello")
        await add(server, "1", TEAM, "4")
        await one.send("late\nhello")
        async with server.chat("2", sync=True) as two, server.chat("4", sync=True) as four:
            await one.answer(5, "early\nlate")
            frame = await two.receive()
            assert (frame["from"], frame["to"], frame["type"], frame["op_type"]) == ("1", TEAM, 2, 40013)
            assert frame["content"] == "early/1\nlate/1"
            assert (await four.receive())["content"] == "late/1"
            await one.expect_nothing()
