"""Ops 4 and 5, and delivery confirmation by pongs (protocol section 2; section 3, promise 2)."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests import raw
from tests.harness import ChatClient, Frame, ServerHandle, serving, wait_until


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ServerHandle]:
    """A server with the users 1 to 3, without a contact limit, and without pings that confirm no delivery."""
    async with serving(tmp_path, users=("1", "2", "3"), StrangerLimit=0, HeartbeatSeconds=3600) as server:
        yield server


async def store_unread(server: ServerHandle, sender: str, receiver: str, *ids: str) -> None:
    """Store messages while the receiver is offline, so that all stay unread."""
    async with server.chat(sender, to=receiver) as chat:
        for id in ids:
            await chat.put(1, f"{id}\nfrom {sender}")
        for id in ids:
            assert (await chat.receive())["id"] == id


def summary(frame: Frame) -> tuple[int, str | None]:
    return frame["op_type"], frame.get("reason")


async def unread(chat: ChatClient, to: str = "") -> list[str]:
    """Return the ids of the unread messages from the peer."""
    frames = await chat.ask(3, to=to)
    return [frame["id"] for frame in frames if frame["type"] == 2]


async def stored(chat: ChatClient, to: str = "") -> list[tuple[str, str]]:
    """Return sender and id of all stored messages."""
    frames = await chat.ask(2, "-200", to=to)
    return [(frame["from"], frame["id"]) for frame in frames if frame["type"] == 2]


# --- op 4


async def test_a_message_to_me_is_marked_as_read(server: ServerHandle) -> None:
    await store_unread(server, "1", "2", "a", "b")
    async with server.chat("2", to="1") as two:
        answer = await two.answer(4, "a")
        assert (answer["op_type"], answer["from"], answer["to"]) == (40007, "System", "2")
        assert await unread(two) == ["b"]
        assert summary(await two.answer(4, "a")) == (40007, None)  # already read
    async with server.chat("1", to="2") as one:
        frames = (await one.ask(2, "-5"))[:-1]
        assert [(frame["id"], frame["read"]) for frame in frames] == [("a", True), ("b", False)]


async def test_op_4_marks_up_to_200_ids(server: ServerHandle) -> None:
    names = [f"m{number}" for number in range(202)]
    await store_unread(server, "1", "2", *names)
    async with server.chat("2", to="1") as two:
        assert summary(await two.answer(4, "\n".join(names[:201]))) == (40006, "too_long")
        assert await unread(two) == names
        assert summary(await two.answer(4, "\n".join(names[:200]))) == (40007, None)
        assert await unread(two) == names[200:]
        assert summary(await two.answer(4, "m200\nm201\n")) == (40007, None)
        assert await unread(two) == []


async def test_op_4_marks_known_ids_and_names_the_unknown_ones(server: ServerHandle) -> None:
    await store_unread(server, "1", "2", "a", "b", "c")
    async with server.chat("2", to="1") as two:
        refusal = await two.answer(4, "a\nnowhere\nc\n>b\nnot.there")
        assert summary(refusal) == (40006, "no_such_message")
        assert [name in refusal["content"] for name in ("nowhere", ">b", "not.there")] == [True] * 3
        assert await unread(two) == ["b"]
        refusal = await two.answer(4, "nowhere")
        assert summary(refusal) == (40006, "no_such_message")


async def test_a_star_marks_all_messages_from_the_peer(server: ServerHandle) -> None:
    await store_unread(server, "1", "2", *(f"m{number}" for number in range(450)))
    await store_unread(server, "3", "2", "other")
    await store_unread(server, "2", "1", "mine")
    async with server.chat("2", to="1") as two:
        assert summary(await two.answer(4, "*")) == (40007, None)
        assert await unread(two) == []
        assert await unread(two, to="3") == ["other"]
        assert summary(await two.answer(4, "*")) == (40007, None)
    async with server.chat("1", to="2") as one:
        assert await unread(one) == ["mine"]


async def test_only_messages_to_me_can_be_marked(server: ServerHandle) -> None:
    await store_unread(server, "1", "2", "theirs", "both")
    await store_unread(server, "2", "1", "mine", "both")
    async with server.chat("2", to="1") as two:
        for id in ("mine", ">mine", "<mine", ">both", ">theirs"):
            assert summary(await two.answer(4, id)) == (40006, "no_such_message")
        assert await unread(two) == ["theirs", "both"]
        assert summary(await two.answer(4, "both")) == (40007, None)
        assert summary(await two.answer(4, "<theirs")) == (40007, None)
        assert await unread(two) == []
    async with server.chat("1", to="2") as one:
        assert await unread(one) == ["mine", "both"]


async def test_a_message_of_another_conversation_cannot_be_marked(server: ServerHandle) -> None:
    await store_unread(server, "1", "2", "a")
    async with server.chat("2", to="3") as two, server.chat("3", to="2") as three:
        assert summary(await two.answer(4, "a")) == (40006, "no_such_message")
        assert summary(await three.answer(4, "a")) == (40006, "no_such_message")
        assert await unread(two, to="1") == ["a"]
        assert summary(await two.answer(4, "a", to="1")) == (40007, None)


async def test_a_deleted_message_cannot_be_marked(server: ServerHandle) -> None:
    await store_unread(server, "1", "2", "a")
    async with server.chat("2", to="1") as two:
        await two.answer(5, "a")
        assert summary(await two.answer(4, "a")) == (40006, "no_such_message")


@pytest.mark.parametrize(("op_type", "code"), [(4, 40006), (5, 40012)])
async def test_content_without_a_valid_id_is_refused(server: ServerHandle, op_type: int, code: int) -> None:
    await store_unread(server, "1", "2", "a")
    async with server.chat("2", to="1") as two:
        assert summary(await two.answer(op_type, "")) == (code, "empty")
        assert summary(await two.answer(op_type, "\n")) in ((code, "empty"), (code, "bad_id"))
        for id in ("a b", "a,b", "x" * 65, "é", "\0", ">", "<", ">>a", "**", "a*", "$ne", "%", "a\r", "'", "😀"):
            assert summary(await two.answer(op_type, id)) == (code, "bad_id")
        assert await unread(two) == ["a"]


# --- op 5


async def test_either_side_deletes_a_message_for_both(server: ServerHandle) -> None:
    await store_unread(server, "1", "2", "a", "b", "c")
    async with server.chat("1", to="2") as one, server.chat("2", to="1") as two:
        answer = await one.answer(5, "a")
        assert (answer["op_type"], answer["from"], answer["to"]) == (40013, "System", "1")
        assert summary(await two.answer(5, "b")) == (40013, None)
        for chat in (one, two):
            assert await stored(chat) == [("1", "c")]
            assert [frame["id"] for frame in (await chat.ask(7, "-5"))[:-1]] == ["c"]
        assert await unread(two) == ["c"]
        assert [frame["unread"] for frame in (await two.ask(7, "-5"))[:-1]] == [1]


async def test_op_5_deletes_up_to_200_ids(server: ServerHandle) -> None:
    names = [f"m{number}" for number in range(202)]
    await store_unread(server, "1", "2", *names)
    async with server.chat("2", to="1") as two:
        assert summary(await two.answer(5, "\n".join(names[:201]))) == (40012, "too_long")
        assert len(await unread(two)) == 202
        assert summary(await two.answer(5, "\n".join(names[:200]))) == (40013, None)
        assert await stored(two) == [("1", "m200"), ("1", "m201")]


async def test_op_5_deletes_known_ids_and_names_the_unknown_ones(server: ServerHandle) -> None:
    await store_unread(server, "1", "2", "a", "b", "c")
    async with server.chat("2", to="1") as two:
        refusal = await two.answer(5, "a\nnowhere\nc\n>b\nnot.there")
        assert summary(refusal) == (40012, "no_such_message")
        assert [name in refusal["content"] for name in ("nowhere", ">b", "not.there")] == [True] * 3
        assert await stored(two) == [("1", "b")]


async def test_deleting_an_unknown_or_deleted_message_is_refused(server: ServerHandle) -> None:
    await store_unread(server, "1", "2", "a")
    async with server.chat("1", to="2") as one, server.chat("3", to="1") as three:
        assert summary(await three.answer(5, "a")) == (40012, "no_such_message")
        assert summary(await three.answer(5, "a", to="2")) == (40012, "no_such_message")
        assert summary(await one.answer(5, "a", to="3")) == (40012, "no_such_message")
        assert summary(await one.answer(5, "a")) == (40013, None)
        assert summary(await one.answer(5, "a")) == (40012, "no_such_message")
        assert summary(await one.answer(5, "never")) == (40012, "no_such_message")


async def test_op_5_deletes_the_own_message_unless_a_side_is_given(server: ServerHandle) -> None:
    for sender, receiver in (("1", "2"), ("2", "1")):
        await store_unread(server, sender, receiver, "a", "b", "c")
    await store_unread(server, "2", "1", "theirs")
    async with server.chat("1", to="2") as one:
        assert summary(await one.answer(5, "a\ntheirs")) == (40013, None)
        assert summary(await one.answer(5, "<b")) == (40013, None)
        assert summary(await one.answer(5, ">c")) == (40013, None)
        assert await stored(one) == [("1", "b"), ("2", "a"), ("2", "c")]
        assert summary(await one.answer(5, ">theirs")) == (40012, "no_such_message")
        assert summary(await one.answer(5, ">b\n<c")) == (40013, None)
        assert await stored(one) == [("2", "a")]


# --- delivery confirmation


async def test_a_pong_marks_delivered_messages_as_read(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one, server.chat("2", to="1") as two:
        await one.send("m1\nhello")
        await two.receive()

        async def read() -> bool:
            return bool((await one.ask(2, "-1"))[0]["read"])

        await wait_until(read)
        assert await unread(two) == []


async def test_ops_2_3_and_7_see_earlier_confirmations(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one, raw.chat(server, "2", to="1") as two:
        for number, (op_type, content) in enumerate([(2, "-1"), (3, ""), (7, "-1")] * 10):
            await one.send(f"m{number}\nhello")
            assert (await two.receive())["id"] == f"m{number}"
            ping = await two.read()
            assert ping.opcode == raw.PING
            await two.write(raw.frame(ping.payload, raw.PONG) + raw.request(op_type, content))
            frame = await two.receive()
            if op_type == 3:
                assert frame["content"] == "0"
            else:
                assert (frame["id"], frame["read"], frame.get("unread", 0)) == (f"m{number}", True, 0)
                await two.receive()


async def test_messages_to_a_client_without_pongs_stay_unread(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one:
        async with raw.chat(server, "2", to="1") as mute:
            for id in ("a", "b", "c"):
                await one.send(f"{id}\nhello")
                assert (await mute.receive())["id"] == id
            answer = await mute.ask(3)
            assert answer["content"] == "3"
        await raw.wait_offline(one)
        async with server.chat("2", to="1") as two:
            assert (await unread(two))[:3] == ["a", "b", "c"]
        assert [frame["read"] for frame in (await one.ask(2, "0-3"))[:-1]] == [False] * 3


async def test_a_pong_confirms_only_messages_before_its_ping(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one, raw.chat(server, "2", to="1") as two:
        await one.send("a\nhello")
        assert (await two.receive())["id"] == "a"
        first = await two.read()
        assert first.opcode == raw.PING
        for id in ("b", "c"):
            await one.send(f"{id}\nhello")
            assert (await two.receive())["id"] == id
        assert (await two.ask(3))["content"] == "3"
        await two.write(raw.frame(first.payload, raw.PONG))
        second = await two.read()
        assert (second.opcode, second.payload == first.payload) == (raw.PING, False)
        assert (await two.ask(3))["content"] == "2"
        await two.write(raw.frame(second.payload, raw.PONG))
        assert (await two.ask(3))["content"] == "0"


async def test_an_unsolicited_pong_confirms_nothing(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one, raw.chat(server, "2", to="1") as two:
        await two.write(raw.frame(b"", raw.PONG))
        await one.send("a\nhello")
        await two.receive()
        ping = await two.read()
        for payload in (b"", b"x", ping.payload + b"\0", ping.payload[:-1], bytes(len(ping.payload))):
            await two.write(raw.frame(payload, raw.PONG))
            assert (await two.ask(3))["content"] == "1"
        await two.write(raw.frame(ping.payload, raw.PONG))
        assert (await two.ask(3))["content"] == "0"


async def test_a_pong_of_one_socket_of_the_receiver_suffices(server: ServerHandle) -> None:
    async with (
        server.chat("1", to="2") as one,
        raw.chat(server, "2", to="1") as mute,
        server.chat("2", to="1") as two,
    ):
        await one.send("a\nhello")
        assert (await mute.receive())["id"] == "a"
        assert (await two.receive())["id"] == "a"

        async def read() -> bool:
            return await unread(two) == []

        await wait_until(read)
        assert (await mute.ask(3))["content"] == "0"


async def test_a_message_deleted_before_its_pong_stays_deleted(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one, raw.chat(server, "2", to="1") as two:
        await one.send("a\nhello")
        await two.receive()
        ping = await two.read()
        assert summary(await one.answer(5, "a")) == (40013, None)
        await two.write(raw.frame(ping.payload, raw.PONG))
        assert (await two.ask(2, "-5"))["content"] == "0"
        assert summary(await one.send("a\nhello")) == (40018, None)


async def test_a_pong_does_not_mark_the_messages_of_a_page(server: ServerHandle) -> None:
    """Reading a page does not mark its messages."""
    await store_unread(server, "1", "2", "a", "b")
    async with server.chat("1", to="2") as one, server.chat("2", to="1") as two:
        assert await unread(two) == ["a", "b"]
        await two.ask(2, "-5")
        await one.send("c\nhello")
        await two.receive()

        async def is_confirmed() -> bool:
            return await unread(two) == ["a", "b"]

        await wait_until(is_confirmed)
