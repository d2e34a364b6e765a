"""Faults of the Go server on the socket, measured before this project began, do not occur in this server."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import websockets

from chat_server.model.sqlite import MESSAGES_SCHEMA
from tests import raw
from tests.e2e.http_helpers import sql
from tests.harness import ChatClient, ServerHandle, serving


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ServerHandle]:
    """A server with the users 1 to 3 and without a contact limit."""
    async with serving(tmp_path, users=("1", "2", "3"), StrangerLimit=0) as server:
        yield server


def hide_messages(folder: Path) -> None:
    """Rename the table of messages, so that the store fails; `restore_messages` renames it back."""
    sql(folder, "DROP VIEW batches")
    sql(folder, "ALTER TABLE messages RENAME TO away")


def restore_messages(folder: Path) -> None:
    for statement in (
        "ALTER TABLE away RENAME TO messages",
        *(step for step in MESSAGES_SCHEMA.steps if "batches" in step),
    ):
        sql(folder, statement)


async def ids(chat: ChatClient, op_type: int, content: str, to: str = "") -> list[str]:
    """Return the ids in a page."""
    return [frame["id"] for frame in await chat.ask(op_type, content, to=to) if frame["type"] == 2]


# --- faults that ended the whole process


async def test_the_frame_null_is_harmless(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one, server.chat("2") as two:
        await one.send_text("null")
        frame = await one.receive()
        assert (frame["op_type"], frame["reason"]) == (40000, "bad_frame")
        assert (await one.send("still here"))["op_type"] == 40018
        await two.receive()


async def test_a_page_beyond_the_history_is_empty(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one:
        for _ in range(2):
            assert [frame["content"] for frame in await one.ask(2, "3-5")] == ["0"]
            await one.send("hello")


async def test_a_user_still_receives_after_many_reconnects(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one:
        for number in range(8):
            async with server.chat("2"), server.chat("2") as two:
                assert (await one.send(f"m{number}\nhello"))["op_type"] == 40018
                assert (await two.receive())["id"] == f"m{number}"
            async with raw.chat(server, "2") as rude:
                rude.reset()


async def test_history_recovers_with_the_store(server: ServerHandle, tmp_path: Path) -> None:
    async with server.chat("1", to="2") as one, server.chat("2", to="1") as two:
        await one.send("m1\nhello")
        await two.receive()
        hide_messages(tmp_path)
        for op_type, content, code in ((2, "0-5", 40004), (2, "-5", 40004), (3, "", 40004), (7, "-5", 40022)):
            frame = await one.answer(op_type, content)
            assert (frame["op_type"], frame["reason"]) == (code, "store_away")
        restore_messages(tmp_path)
        assert await ids(one, 2, "0-5") == ["m1"]


# --- faults that stalled all users or lost messages


async def test_nothing_is_acknowledged_while_the_store_is_unavailable(server: ServerHandle, tmp_path: Path) -> None:
    async with server.chat("1", to="2") as one, server.chat("2", to="1") as two:
        hide_messages(tmp_path)
        for id in ("m1", "m2"):
            frame = await one.send(f"{id}\nhello")
            assert (frame["op_type"], frame["reason"], frame["id"]) == (40008, "store_away", id)
        assert (await one.answer(6, "what needs no store goes on"))["op_type"] == 40009
        assert (await two.receive())["to"] == "ALL"
        await two.expect_nothing()
        restore_messages(tmp_path)
        assert (await one.send("m1\nhello"))["op_type"] == 40018
        assert (await two.receive())["id"] == "m1"


async def test_a_client_that_does_not_read_delays_nobody(server: ServerHandle) -> None:
    await raw.store_messages(server, "3", "1", raw.MAX_KERNEL_BYTES // 16000 + 100)
    async with raw.chat(server, "1", to="3", buffer=4096) as slow:
        await slow.put(3)
        await slow.wait_stalled()
        async with server.chat("2", to="3") as two, server.chat("3", to="2") as three:
            for number in range(20):
                assert (await two.send(f"m{number}\nhello", to="1"))["op_type"] == 40018
                assert (await two.send(f"m{number}\nhello"))["op_type"] == 40018
                assert (await three.receive())["id"] == f"m{number}"


async def test_no_message_to_an_online_user_is_lost(server: ServerHandle) -> None:
    """No acknowledgement reports an online receiver as offline."""
    async with server.chat("1", to="2", max_queue=None) as one, server.chat("2", to="1", max_queue=None) as two:
        for number in range(300):
            for chat in (one, two):
                await chat.put(1, f"m{number}\nhello")
        for chat in (one, two):
            frames = [await chat.receive() for _ in range(600)]
            assert [frame["op_type"] for frame in frames if frame["from"] == "System"] == [40018] * 300
            received = [frame["id"] for frame in frames if frame["from"] != "System"]
            assert received == [f"m{number}" for number in range(300)]


# --- other faults


async def test_a_second_tab_receives_all_messages(server: ServerHandle) -> None:
    """Closing it does not affect the first tab."""
    async with server.chat("1", to="2") as one, server.chat("2", to="1") as first:
        async with server.chat("2", to="1") as second:
            await one.send("m1\nhello")
            for tab in (first, second):
                assert (await tab.receive())["id"] == "m1"
        async with AsyncExitStack() as stack:
            third = await stack.enter_async_context(server.chat("2", to="1"))
            await one.send("m2\nhello")
            assert [(await tab.receive())["id"] for tab in (first, third)] == ["m2", "m2"]
        assert (await one.send("m3\nhello"))["op_type"] == 40018
        assert (await first.receive())["id"] == "m3"


async def test_messages_of_one_second_keep_their_order(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one, server.chat("2", to="1") as two:
        sent = []
        for number in range(60):
            chat = two if number % 3 else one
            await chat.put(1, f"m{number}\nhello")
            while (await chat.receive())["from"] != "System":
                pass
            sent.append(f"m{number}")
        for _ in range(2):
            assert await ids(one, 2, "0-200") == await ids(two, 2, "-200") == sent


async def test_marking_an_unknown_id_creates_no_message(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one, server.chat("2", to="1") as two:
        await one.send("m1\nhello")
        await two.receive()
        for chat in (one, two):
            frame = await chat.answer(4, "ghost")
            assert (frame["op_type"], frame["reason"]) == (40006, "no_such_message")
        for chat in (one, two):
            assert await ids(chat, 2, "-200") == ["m1"]
            assert await ids(chat, 7, "-200") == ["m1"]


async def test_deleting_an_unknown_id_is_refused(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one:
        frame = await one.answer(5, "unknown")
        assert (frame["op_type"], frame["reason"]) == (40012, "no_such_message")


async def test_own_messages_are_not_unread(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one:
        await one.send("mine\nhello")
        assert await ids(one, 3, "") == []
    async with server.chat("2", to="1") as two:
        await two.send("answer\nhello")
        assert await ids(two, 3, "") == ["mine"]


@pytest.mark.parametrize("limit", [5, 10])
async def test_stranger_limit_is_compared_as_a_number(tmp_path: Path, limit: int) -> None:
    """So 10 is more than 5."""
    async with serving(tmp_path, users=("1", "2"), StrangerLimit=limit) as server, server.chat("1", to="2") as one:
        codes = [(await one.send("hello"))["op_type"] for _ in range(25)]
        assert codes == [40019] * limit + [40020] * (25 - limit)


async def test_a_socket_needs_a_session_of_its_user(server: ServerHandle) -> None:
    for headers, code in ({}, 401), ({"Authorization": f"Bearer {server.tokens['2']}"}, 403):
        with pytest.raises(websockets.InvalidStatus) as refused:
            await websockets.connect(server.socket_url("1", "2"), additional_headers=headers, proxy=None)
        assert refused.value.response.status_code == code


async def test_a_forged_from_is_refused(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one, server.chat("2", to="3") as two, server.chat("3", to="2") as three:
        frame = await one.send("m1\nI am 3", **{"from": "3"})
        assert (frame["op_type"], frame["reason"]) == (40008, "wrong_from")
        await two.expect_nothing()
        for chat in (two, three):
            assert await ids(chat, 2, "-5") == []


async def test_names_with_the_separator_keep_conversations_apart(server: ServerHandle) -> None:
    pairs = [("1", "2SEP3"), ("1SEP2", "3"), ("1", "2-3"), ("1-2", "3"), ("1", "2_3"), ("1_2", "3")]
    await server.add_users(*{name for pair in pairs for name in pair} - {"1", "3"})
    async with AsyncExitStack() as stack:
        chats = [await stack.enter_async_context(server.chat(sender, to=to)) for sender, to in pairs]
        for number, chat in enumerate(chats):
            assert (await chat.send(f"m{number}\nhello"))["op_type"] in (40018, 40019)
        for number, (sender, to) in enumerate(pairs):
            for user, peer in ((sender, to), (to, sender)):
                async with server.chat(user, to=peer) as chat:
                    assert await ids(chat, 2, "-5") == [f"m{number}"]
                    assert await ids(chat, 2, "0-5") == [f"m{number}"]
