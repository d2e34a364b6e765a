"""Op 1: sending to one user (protocol section 2)."""

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from chat_server.api.limits import BATCH_REQUESTS
from tests import raw
from tests.e2e.http_helpers import sql
from tests.harness import ChatClient, Frame, ServerHandle, serving, wait_until


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ServerHandle]:
    """A server with the users 1, 2 and 3 and without a contact limit."""
    async with serving(tmp_path, users=("1", "2", "3"), StrangerLimit=0) as server:
        yield server


def summary(frame: Frame) -> tuple[Any, ...]:
    """Return the code, the reason and the message id of an answer."""
    return frame["op_type"], frame.get("reason"), frame.get("id")


async def stored(chat: ChatClient) -> list[str]:
    """Return the contents of all stored messages of the conversation."""
    return [frame["content"] for frame in (await chat.ask(2, "0-200"))[:-1]]


async def burst(chat: ChatClient, *contents: str) -> list[Frame]:
    """Send many messages at once; return the answers."""
    for content in contents:
        await chat.put(1, content)
    answers: list[Frame] = []
    while len(answers) < len(contents):
        if (frame := await chat.receive())["from"] == "System":
            answers.append(frame)
    return answers


async def test_a_message_reaches_the_receiver_and_is_acknowledged(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one, server.chat("2", to="1") as two:
        ack = await one.send("m1\nhello")
        assert (ack["op_type"], ack["from"], ack["to"], ack["id"]) == (40018, "System", "1", "m1")
        frame = await two.receive()
        assert frame == {
            "from": "1",
            "to": "2",
            "type": 1,
            "op_type": 40011,
            "content": "m1\nhello",
            "msg": "message received",
            "id": "m1",
            "time": ack["time"],
        }


# --- ID\nTEXT


async def test_a_message_without_an_id_gets_one_from_the_server(server: ServerHandle) -> None:
    """No newline at all, or an empty first line."""
    contents = {"hello": "hello", "\nhello": "hello", "\na\nb\n\n": "a\nb\n\n", " ": " ", "\n\n": "\n", "m1": "m1"}
    async with server.chat("1", to="2") as one, server.chat("2", to="1") as two:
        acks = [await one.send(content) for content in contents]
        for ack, text in zip(acks, contents.values(), strict=True):
            frame = await two.receive()
            assert frame["id"] == ack["id"]
            assert frame["content"] == f"{ack['id']}\n{text}"
        assert len({ack["id"] for ack in acks}) == len(acks)
        assert (await one.send(f"{acks[0]['id']}\nhello"))["time"] == acks[0][
            "time"
        ]  # the server's id works like any other id


async def test_the_first_line_is_the_id_and_the_rest_is_the_text(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one, server.chat("2", to="1") as two:
        contents = [f"m{n}\n{text}" for n, text in enumerate(["a\nb", "a\n", "\na", "m1\nm1\nm1", "a\r\nb"])]
        for number, content in enumerate(contents):
            assert (await one.send(content))["id"] == f"m{number}"
            assert (await two.receive())["content"] == content
        assert await stored(one) == contents


async def test_an_id_has_1_to_64_allowed_characters(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one:
        for id in ("a", "0", "A-Z_a.z:0-9", ":", "x" * 64):
            assert summary(await one.send(f"{id}\nhello")) == (40019, None, id)


async def test_an_invalid_id_is_refused(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one:
        for id in ("a b", "é", "x" * 65, "m1\r", "a/b", " ", "m1 ", ">m1", "*", "\0", "m,n", "m1\u2028"):
            refusal = await one.send(f"{id}\nhello")
            assert summary(refusal) == (40008, "bad_id", None)
            assert "id" in refusal["content"]
        assert await stored(one) == []


async def test_a_text_is_delivered_and_stored_unchanged(server: ServerHandle) -> None:
    texts = [
        *("\0", "a\0b", "'\"\\`", "$ne", "a.b", "%_*?", "null", "1", "1e400"),
        *("אבג", "\u202eabc", "😀👩‍👩‍👧", "名字", "e\u0301", "\u2028", "\ufeff", "\uffff", "\U0010ffff"),
    ]
    contents = [f"m{number}\n{text}" for number, text in enumerate(texts)]
    async with server.chat("1", to="2") as one, server.chat("2", to="1") as two:
        for content in contents:
            await one.send(content)
            assert (await two.receive())["content"] == content
        assert await stored(two) == contents


# --- from, to, type, other keys


async def test_from_may_be_missing_empty_or_the_own_name(server: ServerHandle) -> None:
    keys: list[dict[str, str]] = [{}, {"from": ""}, {"from": "1"}]
    async with server.chat("1", to="2") as one, server.chat("2") as two:
        for sender in keys:
            assert (await one.send("hello", **sender))["op_type"] == 40018
            assert (await two.receive())["from"] == "1"


@pytest.mark.parametrize(
    ("op_type", "content"),
    [(1, "m1\nhello"), (2, "-5"), (3, ""), (4, "m0"), (5, "m0"), (6, "hello"), (7, "-5")],
)
async def test_a_foreign_from_is_refused_with_40008_for_every_op(
    server: ServerHandle, op_type: int, content: str
) -> None:
    async with server.chat("2", to="1") as two:
        await two.send("m0\nfirst")
    async with server.chat("1", to="2") as one, server.chat("2") as two:
        for claimed in ("2", "3", "unknown", "System", " 1"):
            refusal, *_ = await one.ask(op_type, content, **{"from": claimed})
            assert summary(refusal) == (40008, "wrong_from", "m1" if op_type == 1 else None)
        [page, _] = await one.ask(2, "0-200")
        assert (page["content"], page["read"]) == ("m0\nfirst", False)
        await two.expect_nothing()


@pytest.mark.parametrize(
    ("op_type", "content", "code"),
    [(1, "m1\nhello", 40008), (2, "-5", 40004), (3, "", 40004), (4, "m0", 40006), (5, "m0", 40012)],
)
async def test_an_invalid_to_is_refused_with_the_code_of_the_op(
    server: ServerHandle, op_type: int, content: str, code: int
) -> None:
    """An unknown user, or the sender itself."""
    id = "m1" if op_type == 1 else None
    async with server.chat("1", to="2") as one, server.chat("1") as without:
        for unknown in ("4", "unknown", "System", "ALL", "a b", "\0", "x" * 1000, "2 ", "２"):
            assert summary(await one.answer(op_type, content, to=unknown)) == (code, "no_such_user", id)
        assert summary(await one.answer(op_type, content, to="1")) == (code, "to_yourself", id)
        assert summary(await without.answer(op_type, content)) == (code, "no_such_user", id)
        assert await stored(one) == []


async def test_to_uid_is_the_default_of_to(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one, server.chat("2") as two, server.chat("3") as three:
        await one.send("m1\nhello")
        await one.send("m2\nhello", to="")
        await one.send("m3\nhello", to="3")
        await one.send("m4\nhello", to="2")
        assert [(await two.receive())["id"] for _ in range(3)] == ["m1", "m2", "m4"]
        assert (await three.receive())["id"] == "m3"
        await two.expect_nothing()
        await three.expect_nothing()


async def test_user_names_in_frames_are_normalised(server: ServerHandle) -> None:
    await server.add_users("é")
    async with server.chat("1", to="e\u0301") as one, server.chat("é", to="1") as two:
        assert (await one.send("m1\nhello"))["op_type"] == 40018
        assert (await one.send("m2\nhello", to="e\u0301"))["op_type"] == 40018
        assert [(await two.receive())["to"] for _ in range(2)] == ["é", "é"]
        assert (await two.send("m3\nhello", **{"from": "e\u0301"}))["op_type"] == 40018
        assert (await one.receive())["from"] == "é"
        assert summary(await two.send("m4\nhello", to="e\u0301")) == (40008, "to_yourself", "m4")


async def test_type_is_1_or_missing(server: ServerHandle) -> None:
    types: list[Any] = [0, 2, -1, "1", True, None, 1.5, [1]]
    async with server.chat("1", to="2") as one:
        assert summary(await one.answer(1, "hello"))[0] == 40019
        for odd in types:
            refusal = await one.answer(1, "hello", type=odd)
            assert (refusal["op_type"], refusal["reason"]) == (40000, "bad_frame")
        assert len(await stored(one)) == 1


async def test_unknown_keys_are_ignored(server: ServerHandle) -> None:
    more = {"id": "other", "time": 1, "read": True, "reason": None, "x": {"op_type": 2, "from": ["3"]}, "": 0}
    async with server.chat("1", to="2") as one, server.chat("2") as two:
        assert summary(await one.send("m1\nhello", **more)) == (40018, None, "m1")
        assert set(await two.receive()) == {"from", "to", "type", "op_type", "content", "msg", "id", "time"}


# --- the text


async def test_an_empty_text_is_refused(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one:
        assert summary(await one.send("")) == (40008, "empty", None)
        assert summary(await one.send("\n")) == (40008, "empty", None)
        assert summary(await one.send("m1\n")) == (40008, "empty", "m1")
        assert summary(await one.answer(1, to="2"))[:2] == (40008, "empty")
        assert await stored(one) == []


async def test_a_text_has_at_most_max_text_bytes_in_utf8(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, users=("1", "2"), MaxTextBytes=24, StrangerLimit=0) as server,
        server.chat("1", to="2") as one,
    ):
        for size, letter in enumerate(("a", "é", "名", "😀"), 1):
            longest = letter * (24 // size)
            assert summary(await one.send(f"m{size}\n{longest}")) == (40019, None, f"m{size}")
            assert summary(await one.send(longest))[0] == 40019
            assert summary(await one.send(f"n{size}\n{longest}a")) == (40008, "too_long", f"n{size}")
            assert summary(await one.send(f"{longest}{letter}")) == (40008, "too_long", None)
        assert len(await stored(one)) == 8


async def test_max_text_bytes_is_16_kib_by_default(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one:
        assert summary(await one.send("m1\n" + "名" * 5461 + "a")) == (40019, None, "m1")
        assert summary(await one.send("m2\n" + "名" * 5461 + "ab")) == (40008, "too_long", "m2")


# --- the answer


async def test_the_ack_says_whether_the_receiver_is_online(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one:
        assert (await one.send("hello"))["op_type"] == 40019
        async with server.chat("2"):
            assert (await one.send("hello"))["op_type"] == 40018

        async def offline() -> bool:
            return bool((await one.send("hello"))["op_type"] == 40019)

        await wait_until(offline)


async def test_answers_come_in_the_order_of_the_requests(server: ServerHandle) -> None:
    """This holds for all ops, and for refused requests."""
    async with server.chat("1", to="2") as one:
        for _ in range(5):
            await one.put(1, "hello")
            await one.put(1, "m/1\nhello")
            await one.put(1, "hello", to="unknown")
            await one.put(7, "-1")
            await one.send_text("no json")
            await one.put(2, "no page")
            await one.put(6, "hello")
            await one.put(1, "hello", to="3")
            await one.put(4, "nothing")
        codes: list[int] = []
        while len(codes) < 45:
            if (frame := await one.receive())["from"] == "System":
                codes.append(frame["op_type"])
        assert codes == [40019, 40008, 40008, 40023, 40000, 40004, 40009, 40019, 40006] * 5


async def test_messages_keep_the_order_of_sending(server: ServerHandle) -> None:
    """Acknowledgements, deliveries and pages have the same order."""
    ids = [f"m{number}" for number in range(200)]
    async with server.chat("1", to="2") as one, server.chat("2", to="1") as two:
        acks = await burst(one, *(f"{id}\nhello" for id in ids))
        assert [ack["id"] for ack in acks] == ids
        assert [ack["time"] for ack in acks] == sorted(ack["time"] for ack in acks)
        assert [(await two.receive())["id"] for _ in ids] == ids
        assert await stored(two) == [f"{id}\nhello" for id in ids]


async def test_a_batch_with_refused_messages_keeps_its_order(server: ServerHandle) -> None:
    contents = ["a\n1", "b b\n2", "c\n", "d\n4", "a\n1", "a\n6", "e\n7"]
    async with server.chat("1", to="2") as one, server.chat("2") as two:
        answers = [summary(answer) for answer in await burst(one, *contents)]
        assert answers == [
            (40018, None, "a"),
            (40008, "bad_id", None),
            (40008, "empty", "c"),
            (40018, None, "d"),
            (40018, None, "a"),
            (40008, "id_used", "a"),
            (40018, None, "e"),
        ]
        assert [(await two.receive())["content"] for _ in range(3)] == ["a\n1", "d\n4", "e\n7"]
        await two.expect_nothing()


async def test_answers_of_overlapping_batches_keep_their_order(server: ServerHandle) -> None:
    """A batch is answered while the store works on the next one."""
    async with raw.chat(server, "1", "2") as one:
        stored = [
            raw.request(1, f"m{n}\nhello") for n in range(BATCH_REQUESTS)
        ]  # one batch; the next requests are another
        refused = [raw.request(1, f"r{n}\n") for n in range(8)]
        again = raw.request(1, "m0\nhello")
        for _ in range(5):
            await one.write(b"".join([*stored, *refused, raw.frame(b"no json"), again, raw.request(2, "no page")]))
            answers = [await one.answer() for _ in range(BATCH_REQUESTS + 11)]
            assert [answer.get("id") for answer in answers] == [
                *(f"m{n}" for n in range(BATCH_REQUESTS)),
                *(f"r{n}" for n in range(8)),
                *(None, "m0", None),
            ]
            assert [answer["op_type"] for answer in answers[-3:]] == [40000, 40019, 40004]


# --- several sockets of a user, and other users


async def test_every_socket_of_a_user_receives_every_message(server: ServerHandle) -> None:
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(server.chat("1", to="2"))
        devices = [await stack.enter_async_context(server.chat("2", to=to)) for to in ("1", "3", "", "1")]
        three = await stack.enter_async_context(server.chat("3"))
        await one.send("m1\nhello")
        for device in devices:
            assert (await device.receive())["content"] == "m1\nhello"
        await devices[0].connection.close()
        await one.send("m2\nhello")
        for device in devices[1:]:
            assert (await device.receive())["content"] == "m2\nhello"
            await device.expect_nothing()
        await one.expect_nothing()
        await three.expect_nothing()


async def test_a_socket_accesses_only_its_user_s_conversations(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one, server.chat("2", to="1") as two, server.chat("3", to="1") as three:
        await one.send("m1\nsecret")
        await two.receive()
        for to in ("1", "2"):
            for id in ("m1", ">m1", "<m1"):
                assert summary(await three.answer(4, id, to=to))[:2] == (40006, "no_such_message")
                assert summary(await three.answer(5, id, to=to))[:2] == (40012, "no_such_message")
                assert summary(await three.answer(2, f"-5@{id}", to=to))[:2] == (40004, "no_such_message")
            assert [frame["content"] for frame in await three.ask(2, "-5", to=to)] == ["0"]
            assert [frame["content"] for frame in await three.ask(3, to=to)] == ["0"]
        assert [frame["content"] for frame in await three.ask(7, "-5")] == ["0"]
        assert await stored(one) == ["m1\nsecret"]


# --- retries and used ids


async def test_a_retry_is_stored_once_and_has_the_same_time(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one, server.chat("1") as other:
        acks = [await one.send("m1\nhello"), await other.send("m1\nhello", to="2")]
        acks += await burst(one, *["m1\nhello"] * 3)
        assert {(ack["op_type"], ack["id"], ack["time"]) for ack in acks} == {(40019, "m1", acks[0]["time"])}
        assert await stored(one) == ["m1\nhello"]


async def test_a_retry_of_a_delivered_message_is_not_delivered(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one, server.chat("2") as two:
        first = await one.send("m1\nhello")
        await two.receive()
        again = await one.send("m1\nhello")
        assert summary(again) == (40018, None, "m1")
        assert again["time"] == first["time"]
        await two.expect_nothing()
        async with server.chat("2") as later:
            await one.send("m1\nhello")
            await later.expect_nothing()


async def test_a_retry_of_an_undelivered_message_is_delivered(server: ServerHandle) -> None:
    """It has the time of the first attempt."""
    async with server.chat("1", to="2") as one:
        first = await one.send("m1\nhello")
        async with server.chat("2") as two:
            again = await one.send("m1\nhello")
            assert (again["op_type"], again["time"]) == (40018, first["time"])
            frame = await two.receive()
            assert (frame["content"], frame["id"], frame["time"]) == ("m1\nhello", "m1", first["time"])
            await one.send("m1\nhello")
            await two.expect_nothing()


async def test_a_retry_of_a_read_message_is_not_delivered(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one:
        await one.send("m1\nhello")
        async with server.chat("2", to="1") as two:
            assert (await two.answer(4, "m1"))["op_type"] == 40007
            assert (await one.send("m1\nhello"))["op_type"] == 40018
            await two.expect_nothing()


async def test_after_a_restart_a_retry_delivers_only_unread_messages(tmp_path: Path) -> None:
    async with serving(tmp_path, users=("1", "2")) as server:
        async with server.chat("1", to="2") as one:
            times = [(await one.send(content))["time"] for content in ("m1\nhello", "m2\nhello")]
        async with server.chat("2", to="1") as two:
            await two.answer(4, "m1")
    async with serving(tmp_path) as later:
        later.tokens = server.tokens
        async with later.chat("1", to="2") as one, later.chat("2") as two:
            assert [(await one.send(content))["time"] for content in ("m1\nhello", "m2\nhello")] == times
            frame = await two.receive()
            assert (frame["id"], frame["time"]) == ("m2", times[1])
            await two.expect_nothing()


async def test_a_used_id_with_another_text_is_refused(server: ServerHandle) -> None:
    """Nothing is stored or delivered."""
    async with server.chat("1", to="2") as one, server.chat("2") as two:
        await one.send("m1\nhello")
        await two.receive()
        for text in ("Hello", "hello ", "hello\n"):
            assert summary(await one.send(f"m1\n{text}")) == (40008, "id_used", "m1")
        await two.expect_nothing()
        assert await stored(one) == ["m1\nhello"]


async def test_an_id_is_unique_per_direction_of_a_conversation(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one, server.chat("2", to="1") as two, server.chat("3") as three:
        assert summary(await one.send("m1\nfrom one")) == (40018, None, "m1")
        assert (await two.receive())["content"] == "m1\nfrom one"
        assert summary(await two.send("m1\nfrom two")) == (40018, None, "m1")
        assert (await one.receive())["content"] == "m1\nfrom two"
        assert summary(await one.send("m1\nto three", to="3")) == (40018, None, "m1")
        assert (await three.receive())["content"] == "m1\nto three"
        assert summary(await one.send("M1\ngreater")) == (40018, None, "M1")


async def test_the_id_of_a_deleted_message_stays_used(server: ServerHandle) -> None:
    """A retry is acknowledged, but not stored or delivered."""
    async with server.chat("1", to="2") as one:
        first = await one.send("m1\nhello")
        assert (await one.answer(5, "m1"))["op_type"] == 40013
        async with server.chat("2", to="1") as two:
            again = await one.send("m1\nhello")
            assert summary(again) == (40018, None, "m1")
            assert again["time"] == first["time"]
            assert summary(await one.send("m1\nother")) == (40008, "id_used", "m1")
            await two.expect_nothing()
            assert await stored(two) == []
            assert [frame["content"] for frame in await two.ask(3)] == ["0"]


async def test_the_same_message_on_many_sockets_is_stored_once(server: ServerHandle) -> None:
    async with AsyncExitStack() as stack:
        devices = [await stack.enter_async_context(server.chat("1", to="2")) for _ in range(10)]
        two = await stack.enter_async_context(server.chat("2", to="1"))
        answers = await asyncio.gather(*(device.send("m1\nhello") for device in devices))
        assert {summary(answer) for answer in answers} == {(40018, None, "m1")}
        assert len({answer["time"] for answer in answers}) == 1
        assert (await two.receive())["time"] == answers[0]["time"]
        await two.expect_nothing()
        assert await stored(two) == ["m1\nhello"]


async def test_one_of_many_texts_with_the_same_id_is_stored(
    server: ServerHandle,
) -> None:
    """The texts arrive at the same moment; the others are refused."""
    async with AsyncExitStack() as stack:
        devices = [await stack.enter_async_context(server.chat("1", to="2")) for _ in range(10)]
        two = await stack.enter_async_context(server.chat("2", to="1"))
        answers = await asyncio.gather(*(device.send(f"m1\n{number}") for number, device in enumerate(devices)))
        codes = [answer["op_type"] for answer in answers]
        assert sorted(codes) == [40008] * 9 + [40018]
        assert (await two.receive())["content"] == f"m1\n{codes.index(40018)}"
        await two.expect_nothing()


async def test_a_retry_after_a_store_failure_delivers_once(tmp_path: Path) -> None:
    """The message may have been stored although the first attempt was answered with 40008."""
    async with (
        serving(tmp_path, users=("1", "2"), StoreTimeout=3, StrangerLimit=0) as server,
        server.chat("1", to="2") as one,
        server.chat("2", to="1") as two,
    ):
        await one.send("m0\nhello")
        await two.receive()
        with closing(sqlite3.connect(tmp_path / "chat.db", isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")  # blocks all other writers
            refusal = await one.send("m1\nhello")
            assert summary(refusal) == (40008, "store_away", "m1")
            await two.expect_nothing()
            database.execute("ROLLBACK")
        acks: list[Frame] = []

        async def acknowledged() -> bool:
            acks.append(await one.send("m1\nhello"))
            assert acks[-1].get("reason") in (None, "store_away")
            return bool(acks[-1]["op_type"] == 40018)

        await wait_until(acknowledged)
        frame = await two.receive()
        assert (frame["content"], frame["time"]) == ("m1\nhello", acks[-1]["time"])
        assert await stored(one) == ["m0\nhello", "m1\nhello"]
        await two.expect_nothing()


async def test_known_users_chat_while_the_user_store_is_unavailable(server: ServerHandle, tmp_path: Path) -> None:
    async with server.chat("1", to="2") as one:
        sql(tmp_path, "ALTER TABLE users RENAME TO away")
        assert summary(await one.send("m1\nhello")) == (40019, None, "m1")
        assert summary(await one.send("m1\nhello", to="3")) == (40008, "store_away", "m1")
        sql(tmp_path, "ALTER TABLE away RENAME TO users")
        assert summary(await one.send("m1\nhello", to="3")) == (40019, None, "m1")


async def test_every_frame_is_a_json_object_in_utf_8(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one, server.chat("2") as two:
        await one.put(1, "m1\n名😀")
        for chat in (one, two):
            text = await chat.connection.recv()
            assert isinstance(text, str)
            assert isinstance(json.loads(text), dict)
