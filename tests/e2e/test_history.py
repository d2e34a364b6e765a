"""Ops 2, 3 and 7: stored messages, unread messages and conversations (protocol section 2)."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.harness import ChatClient, Frame, ServerHandle, serving, wait_until


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ServerHandle]:
    """A server with the users 1 to 3 and without a contact limit."""
    async with serving(tmp_path, users=("1", "2", "3"), StrangerLimit=0) as server:
        yield server


async def page(chat: ChatClient, content: str, op_type: int = 2, to: str = "") -> list[Frame]:
    """Return the frames of a page without live frames and without the answer, which contains their number."""
    *frames, answer = await chat.ask(op_type, content, to=to)
    stored = [frame for frame in frames if frame["type"] == 2]
    assert {frame["op_type"] for frame in (*stored, answer)} == {40023 if op_type == 7 else 40005}
    assert answer["content"] == str(len(stored))
    return stored


async def ids(chat: ChatClient, content: str, op_type: int = 2, to: str = "") -> list[str]:
    return [frame["id"] for frame in await page(chat, content, op_type, to)]


async def reason(chat: ChatClient, op_type: int, content: str, to: str = "") -> str:
    """Return the reason of a refusal, which must have the code of the op."""
    [refusal] = await chat.ask(op_type, content, to=to)
    assert refusal["op_type"] == {2: 40004, 3: 40004, 7: 40022}[op_type]
    assert refusal["content"]
    reason: str = refusal["reason"]
    return reason


# --- op 2


async def test_a_page_contains_the_messages_of_both_users(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one:
        sent = await one.send("m1\nhello\nthere")
        async with server.chat("2", to="1") as two:
            await two.answer(4, "m1")
            again = await two.send("m2\nhello")
        bare = {"type": 2, "op_type": 40005, "msg": "history"}
        expected = [
            {"from": "1", "to": "2", "content": "m1\nhello\nthere", "id": "m1", "time": sent["time"], "read": True},
            {"from": "2", "to": "1", "content": "m2\nhello", "id": "m2", "time": again["time"]},
        ]
        frames = await page(one, "0-10")
        assert frames[0] == bare | expected[0]
        assert {key: value for key, value in frames[1].items() if key != "read"} == bare | expected[1]
        answer = await one.answer(2, "0-10")
        assert {key: answer[key] for key in ("from", "to", "op_type", "content")} == {
            "from": "System",
            "to": "1",
            "op_type": 40005,
            "content": "2",
        }


async def test_s_n_returns_n_messages_after_the_s_oldest(server: ServerHandle) -> None:
    names = [f"m{number}" for number in range(10)]
    async with server.chat("1", to="2") as one:
        await one.send_all(*(f"{name}\nhello" for name in names))
        assert await ids(one, "0-3") == names[:3]
        assert await ids(one, "2-3") == names[2:5]
        assert await ids(one, "8-5") == names[8:]
        assert await ids(one, "0-200") == names
        assert await ids(one, "00-1") == names[:1]


async def test_a_page_beyond_the_end_is_empty(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one:
        await one.send("m1\nhello")
        for skip in ("1", "2", "999999999999999", "9223372036854775807", "9" * 30, "9" * 1000):
            assert await ids(one, f"{skip}-5") == []
        assert await ids(one, "-1@m1") == []
        assert await ids(one, "+1@m1") == []
        assert await ids(one, "0-5", to="3") == []
        assert await ids(one, "-5", to="3") == []


async def test_minus_n_returns_the_newest_n_in_order(server: ServerHandle) -> None:
    names = [f"m{number}" for number in range(10)]
    async with server.chat("1", to="2") as one:
        await one.send_all(*(f"{name}\nhello" for name in names))
        assert await ids(one, "-3") == names[-3:]
        assert await ids(one, "-1") == names[-1:]
        assert await ids(one, "-200") == names


async def test_a_page_at_a_message_returns_its_neighbours(server: ServerHandle) -> None:
    """`-N@ID` returns the N messages just before it, and `+N@ID` the N messages just after it."""
    names = [f"m{number}" for number in range(10)]
    async with server.chat("1", to="2") as one:
        await one.send_all(*(f"{name}\nhello" for name in names))
        assert await ids(one, "-3@m5") == names[2:5]
        assert await ids(one, "+3@m5") == names[6:9]
        assert await ids(one, "-200@m5") == names[:5]
        assert await ids(one, "+200@m5") == names[6:]


async def test_paging_from_either_end_returns_each_message_once(server: ServerHandle) -> None:
    names = [f"m{number}" for number in range(450)]
    async with server.chat("1", to="2") as one:
        await one.send_all(*(f"{name}\nhello" for name in names))
        upwards = await ids(one, "-200")
        while older := await ids(one, f"-200@{upwards[0]}"):
            upwards = older + upwards
        downwards = await ids(one, "0-1")
        while newer := await ids(one, f"+170@{downwards[-1]}"):
            downwards += newer
        assert upwards == downwards == names


async def test_an_id_means_the_own_message_before_the_peer_s(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one, server.chat("2", to="1") as two:
        await one.send_all("a\nhello", "both\nmine", "b\nhello")
        await two.send_all("c\nhello", "both\nthe other's", "theirs\nhello", "d\nhello")
        assert await ids(one, "-1@both") == ["a"]
        assert await ids(one, "-1@>both") == ["a"]
        assert await ids(one, "-1@<both") == ["c"]
        assert await ids(one, "+1@theirs") == ["d"]
        assert await ids(two, "-1@both") == ["c"]
        assert await ids(two, "-1@<both") == ["a"]
        assert await reason(one, 2, "-1@<a") == "no_such_message"
        assert await reason(one, 2, "-1@>c") == "no_such_message"


async def test_a_deleted_message_is_hidden_but_stays_a_page_marker(server: ServerHandle) -> None:
    names = [f"m{number}" for number in range(6)]
    async with server.chat("1", to="2") as one:
        await one.send_all(*(f"{name}\nhello" for name in names))
        assert (await one.answer(5, "m1\nm3"))["op_type"] == 40013
        assert await ids(one, "0-200") == ["m0", "m2", "m4", "m5"]
        assert await ids(one, "1-2") == ["m2", "m4"]
        assert await ids(one, "-3") == ["m2", "m4", "m5"]
        assert await ids(one, "-200@m3") == ["m0", "m2"]
        assert await ids(one, "+1@m3") == ["m4"]
        assert await ids(one, "+1@>m1") == ["m2"]


async def test_an_unknown_page_marker_is_refused(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one:
        await one.send_all("m1\nhello")
        await one.send_all("m3\nhello", to="3")
        for id in ("m2", "m3", "M1", ">m2", "<m1", "m1.", "x" * 64):
            assert await reason(one, 2, f"-5@{id}") == "no_such_message"
            assert await reason(one, 2, f"+5@{id}") == "no_such_message"
        assert await ids(one, "-5@m3", to="3") == []
        for odd in ("m 1", "m1\n", "x" * 65, ">", "<>m1", "\0", "é", "$ne", "%", "*", "'", "א", "😀", "@m1", " m1"):
            assert await reason(one, 2, f"-5@{odd}") == "bad_id"
            assert await reason(one, 2, f"+5@{odd}") == "bad_id"


async def test_only_pages_of_1_to_200_messages_are_accepted(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one:
        await one.send_all("m1\nhello")
        for content in ("0-{}", "-{}", "-{}@m1", "+{}@m1"):
            for count in ("0", "201", "1000", "00", "", "-1", "1.0", "1e1", " 1", "1 ", "１", "٣", "x", "\n", "9" * 99):
                assert await reason(one, 2, content.format(count)) == "bad_page"
        for content in ("", "5", "-", "+", "+5", "1-2-3", "a-5", "-5@", "+5@", "5-5@m1", "--5", "0–5", "0 - 5", "*"):
            assert await reason(one, 2, content) == "bad_page"


async def test_each_conversation_has_its_own_history(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one:
        await one.send_all("m1\nhello")
        await one.send_all("m2\nhello", to="3")
        assert await ids(one, "-5") == await ids(one, "0-5") == ["m1"]
        assert await ids(one, "-5", to="3") == await ids(one, "0-5", to="3") == ["m2"]


# --- op 3


async def test_op_3_returns_all_unread_messages_from_the_peer(server: ServerHandle) -> None:
    """The oldest message comes first."""
    async with server.chat("1", to="2") as one, server.chat("3", to="2") as three:
        await one.send_all("m1\nhello", "m2\nhello", "m3\nhello", "m4\nhello")
        await three.send_all("m5\nhello")
    async with server.chat("2", to="1") as two:
        await two.send_all("mine\nhello")
        await two.answer(4, "m2")
        await two.answer(5, "m3")
        frames = await page(two, "", 3)
        assert [(frame["content"], frame["read"]) for frame in frames] == [("m1\nhello", False), ("m4\nhello", False)]
        assert {(frame["from"], frame["to"], frame["type"], frame["op_type"]) for frame in frames} == {
            ("1", "2", 2, 40005)
        }
        assert await ids(two, "", 3, to="3") == ["m5"]


async def test_op_3_with_n_returns_the_n_oldest_unread_messages(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one:
        await one.send_all(*(f"m{number}\nhello" for number in range(5)))
    async with server.chat("2", to="1") as two:
        assert await ids(two, "1", 3) == ["m0"]
        assert await ids(two, "3", 3) == ["m0", "m1", "m2"]
        assert await ids(two, "200", 3) == ["m0", "m1", "m2", "m3", "m4"]
        for content in ("0", "201", "1000", "-1", "*", "m0", " ", "1 ", "\n", "٣", "0-5", "-5", "9" * 99):
            assert await reason(two, 3, content) == "bad_page"


async def test_op_3_returns_any_number_of_messages_and_marks_none(server: ServerHandle) -> None:
    names = [f"m{number}" for number in range(350)]
    async with server.chat("1", to="2") as one:
        await one.send_all(*(f"{name}\nhello" for name in names))
    async with server.chat("2", to="1") as two:
        for _ in range(2):
            assert await ids(two, "", 3) == names
        assert await ids(two, "150", 3) == names[:150]
        assert await ids(two, "100", 3) == names[:100]
        assert {frame["read"] for frame in await page(two, "-200")} == {False}


async def test_op_3_without_unread_messages_returns_an_empty_page(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one:
        assert await ids(one, "", 3) == []
        await one.send_all("mine\nhello")
        assert await ids(one, "", 3) == []
        assert await ids(one, "5", 3, to="3") == []


# --- op 7


async def test_op_7_lists_the_newest_conversations_first(server: ServerHandle) -> None:
    """Each conversation has its last message."""
    async with server.chat("1", to="2") as one:
        await one.send_all("a\nhello", "b\nto two")
        async with server.chat("3", to="1") as three:
            sent = await three.send("c\nfrom three")
        offline = await page(one, "-10", 7)
        assert [frame["content"] for frame in offline] == ["c\nfrom three", "b\nto two"]
        assert {key: value for key, value in offline[0].items() if key not in ("read", "unread", "online")} == {
            "from": "3",
            "to": "1",
            "type": 2,
            "op_type": 40023,
            "content": "c\nfrom three",
            "msg": "conversations",
            "id": "c",
            "time": sent["time"],
        }
        await one.send_all("d\nhello")
        assert await ids(one, "-10", 7) == ["d", "c"]


async def test_a_conversation_has_its_number_of_unread_messages(server: ServerHandle) -> None:
    async with server.chat("2", to="1") as two, server.chat("3", to="1") as three:
        await two.send_all("a\nhello", "b\nhello", "c\nhello")
        await three.send_all("d\nhello")
    async with server.chat("1", to="2") as one:
        await one.send_all("mine\nhello")
        await one.answer(4, "b")
        await one.answer(4, "d", to="3")
        frames = await page(one, "-10", 7)
        assert [(frame["id"], frame["unread"]) for frame in frames] == [("mine", 2), ("d", 0)]
        assert [frame["read"] for frame in frames] == [False, True]


async def test_a_conversation_says_whether_the_peer_is_online(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one:
        await one.send_all("a\nhello")
        await one.send_all("b\nhello", to="3")

        async def are_online(*expected: bool) -> bool:
            return [frame["online"] for frame in await page(one, "-10", 7)] == [*expected]

        async with server.chat("2"):
            await wait_until(lambda: are_online(False, True))
        await wait_until(lambda: are_online(False, False))


async def test_the_unread_count_of_a_conversation_ends_at_1000(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one:
        await one.send_all(*["hello"] * 999)
        async with server.chat("2", sync=True) as two:
            assert [frame["unread"] for frame in await page(two, "-1", 7)] == [999]
            await one.send_all("hello", "hello")
            for _ in range(2):
                await two.receive()
            assert [frame["unread"] for frame in await page(two, "-1", 7)] == [1000]


async def test_paging_returns_each_conversation_once(server: ServerHandle) -> None:
    others = [f"user{number}" for number in range(7)]
    await server.add_users(*others)
    async with server.chat("1") as one:
        for name in others:
            await one.send_all(f"to-{name}\nhello", to=name)
        newest_first = [f"to-{name}" for name in reversed(others)]
        assert await ids(one, "-200", 7) == newest_first
        assert await ids(one, "-3", 7) == newest_first[:3]
        assert await ids(one, "-3@user4", 7) == newest_first[3:6]
        assert await ids(one, "-3@user1", 7) == newest_first[6:]
        assert await ids(one, "-3@user0", 7) == []


async def test_an_invalid_page_of_conversations_is_refused(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one:
        await one.send_all("m1\nhello")
        for content in ("", "5", "0-5", "+5", "-0", "-201", "-5@", "*", "-", "-x", "- 5", "-5\n", "-٣", "-" + "9" * 99):
            assert await reason(one, 7, content) == "bad_page"
        for user in ("3", "unknown", "1", ">2", "2 ", "\0", "$ne", "%", "*", "'", "א", "😀", "m1", "x" * 5000, "\n"):
            assert await reason(one, 7, f"-5@{user}") == "no_such_user"


async def test_the_user_in_a_page_of_conversations_is_normalised(server: ServerHandle) -> None:
    await server.add_users("é")
    async with server.chat("1") as one:
        await one.send_all("m1\nhello", to="2")
        await one.send_all("m2\nhello", to="é")
        assert await ids(one, "-5@e\u0301", 7) == ["m1"]


async def test_a_deleted_message_is_never_the_last_message(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one:
        await one.send_all("m1\nhello", "m2\nhello")
        await one.send_all("m3\nhello", to="3")
        await one.answer(5, "m2")
        assert await ids(one, "-5", 7) == ["m3", "m1"]
        await one.answer(5, "m1")
        assert await ids(one, "-5", 7) == ["m3"]
        assert await ids(one, "-1", 7) == ["m3"]
        async with server.chat("2") as two:
            assert await ids(two, "-5", 7) == []


async def test_deleting_a_last_message_keeps_the_list_sorted(server: ServerHandle) -> None:
    async with server.chat("1") as one:
        await one.send_all("m1\nhello", to="2")
        await one.send_all("m2\nhello", to="3")
        await one.send_all("m3\nhello", to="2")
        await one.answer(5, "m3", to="2")
        assert await ids(one, "-5", 7) == ["m2", "m1"]


async def test_a_retry_does_not_move_its_conversation_up(server: ServerHandle) -> None:
    async with server.chat("1") as one:
        await one.send_all("m1\nhello", to="2")
        await one.send_all("m2\nhello", to="3")
        await one.send_all("m1\nhello", to="2")
        assert await ids(one, "-5", 7) == ["m2", "m1"]


async def test_a_new_user_has_no_conversations(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one:
        await one.send_all("m1\nhello")
    async with server.chat("3") as three:
        assert await ids(three, "-5", 7) == []
