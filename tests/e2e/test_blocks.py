"""Blocking (docs/protocol.md section 3, promise 6)."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import raw
from tests.e2e.commands import Deployment
from tests.e2e.http_helpers import check_refusal, check_success, post, send_request, sql
from tests.harness import TIMEOUT, ChatClient, Frame, ServerHandle, serving, wait_until

LIMIT = 3


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ServerHandle]:
    """A server with the users 1 to 3. 1 and 2 are contacts; 3 is a stranger to both."""
    async with serving(tmp_path, users=("1", "2", "3"), StrangerLimit=LIMIT) as server:
        await server.make_contacts("1", "2")
        yield server


async def block(server: ServerHandle, user: str, other: str) -> None:
    check_success(await post(server, "/user/block", server.tokens[user], user_name=other), 43001)


async def unblock(server: ServerHandle, user: str, other: str) -> None:
    check_success(await post(server, "/user/unblock", server.tokens[user], user_name=other), 43003)


async def blocked(server: ServerHandle, user: str) -> Any:
    headers = {"Authorization": f"Bearer {server.tokens[user]}"}
    return check_success(await send_request(server, "GET", "/user/blocked", headers=headers), 43005)


async def history(chat: ChatClient) -> list[str]:
    """The ids of the stored messages."""
    return [frame["id"] for frame in (await chat.ask(2, "0-200"))[:-1]]


async def online(chat: ChatClient) -> dict[str, bool]:
    """What op 7 reports about the peers."""
    frames = (await chat.ask(7, "-200"))[:-1]
    return {frame["from"] if frame["to"] == chat.user else frame["to"]: frame["online"] for frame in frames}


async def raw_answer(chat: ChatClient, content: str) -> bytes:
    """The bytes of the answer to a message."""
    await chat.put(1, content, type=1)
    async with asyncio.timeout(TIMEOUT):
        return await chat.connection.recv(decode=False)


# --- the list


async def test_a_user_blocks_and_unblocks_others(server: ServerHandle) -> None:
    assert await blocked(server, "1") == []
    for _ in range(2):
        await block(server, "1", "3")
        await block(server, "1", "2")
        assert await blocked(server, "1") == ["2", "3"]
    assert await blocked(server, "2") == []
    for _ in range(2):
        await unblock(server, "1", "2")
        assert await blocked(server, "1") == ["3"]
    await unblock(server, "1", "unknown")
    await unblock(server, "1", "a b")


async def test_names_are_compared_in_their_normal_form(server: ServerHandle) -> None:
    await server.add_users("\u00e9")
    await block(server, "1", "e\u0301")
    assert await blocked(server, "1") == ["\u00e9"]
    await unblock(server, "1", "e\u0301")
    assert await blocked(server, "1") == []


async def test_only_existing_other_users_are_blocked(server: ServerHandle) -> None:
    token = server.tokens["1"]
    for name in ("unknown", "", "a b", "System", "x" * 5000):
        response = await post(server, "/user/block", token, user_name=name)
        check_refusal(response, 404, 41006, "no_such_user", "user_name")
    check_refusal(await post(server, "/user/block", token, user_name="1"), 400, 43000, "to_yourself", "user_name")


async def test_blocking_needs_a_session(server: ServerHandle) -> None:
    for path in ("/user/block", "/user/unblock"):
        check_refusal(await post(server, path, user_name="2"), 401, 41012, "not_logged_in")
    check_refusal(await send_request(server, "GET", "/user/blocked"), 401, 41012, "not_logged_in")


async def test_a_user_blocks_at_most_a_thousand_others(server: ServerHandle, tmp_path: Path) -> None:
    for number in range(1000):
        sql(tmp_path, "INSERT INTO blocks (user, blocked) VALUES ('1', ?)", f"user{number}")
    check_refusal(await post(server, "/user/block", server.tokens["1"], user_name="2"), 429, 43000, "too_many")
    await unblock(server, "1", "user7")
    await block(server, "1", "2")
    assert len(await blocked(server, "1")) == 1000


async def test_a_block_survives_a_restart(tmp_path: Path) -> None:
    async with serving(tmp_path, users=("1", "2")) as server:
        await server.make_contacts("1", "2")
        await block(server, "1", "2")
    async with serving(tmp_path) as restarted:
        restarted.tokens = server.tokens
        async with restarted.chat("2", to="1") as two:
            assert (await two.send("hello"))["op_type"] == 40020


# --- messages


async def test_a_blocked_user_is_refused_as_by_the_contact_limit(server: ServerHandle) -> None:
    """The bytes of the answer are the same."""
    async with server.chat("3", to="1") as three:
        for number in range(LIMIT):
            await three.send(f"m{number}\nhello")
        at_the_limit = [await raw_answer(three, content) for content in ("more\nhello", "hello")]
        await block(server, "1", "3")
        assert [await raw_answer(three, content) for content in ("more\nhello", "hello")] == at_the_limit
    assert json.loads(at_the_limit[0])["reason"] == "refused_by_limit"


async def test_invalid_messages_are_refused_as_before(server: ServerHandle) -> None:
    contents = ["m\n", "m\n" + "x" * 16385, "a b\nhello"]
    async with server.chat("2", to="1") as two:
        before = [await raw_answer(two, content) for content in contents]
        await block(server, "1", "2")
        assert [await raw_answer(two, content) for content in contents] == before


async def test_a_refused_message_is_not_stored_delivered_or_counted(server: ServerHandle) -> None:
    async with server.chat("1", to="3") as one, server.chat("3", to="1", sync=True) as three:
        await block(server, "1", "3")
        for number in range(3 * LIMIT):
            assert (await three.send(f"m{number}\nhello"))["op_type"] == 40020
        await one.expect_nothing()
        assert await history(one) == await history(three) == []
        await unblock(server, "1", "3")
        assert [(await three.send("hello"))["op_type"] for _ in range(LIMIT + 1)] == [40018] * LIMIT + [40020]


async def test_a_retry_of_an_earlier_message_is_answered_as_offline(server: ServerHandle) -> None:
    async with server.chat("2", to="1") as two:
        sent = await two.send("m1\nhello")
        assert sent["op_type"] == 40019
        await block(server, "1", "2")
        async with server.chat("1", to="2") as one:
            assert await two.send("m1\nhello") == sent
            assert (await two.send("m1\nanother text"))["reason"] == "id_used"
            assert (await two.send("m2\nhello"))["op_type"] == 40020
            await one.expect_nothing()
            assert [frame["id"] for frame in (await one.ask(3))[:-1]] == ["hello-2-1", "m1"]


async def test_the_blocker_cannot_write_to_the_blocked_user(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one, server.chat("2", to="1") as two:
        await one.send("m1\nhello")
        await two.receive()
        await block(server, "1", "2")
        for content in ("m1\nhello", "m2\nhello"):
            answer = await one.send(content)
            assert (answer["op_type"], answer["reason"], answer["id"]) == (40008, "you_blocked", content[:2])
        await two.expect_nothing()
        await block(server, "2", "1")  # that the other blocks, too, is not revealed
        assert (await one.send("m3\nhello"))["reason"] == "you_blocked"
        await unblock(server, "1", "2")
        assert (await one.send("m3\nhello"))["reason"] == "refused_by_limit"


async def test_one_batch_may_mix_blocked_and_other_receivers(server: ServerHandle) -> None:
    """Each request gets its own answer, in order."""
    await server.make_contacts("2", "3")
    async with server.chat("2") as two, server.chat("1") as one, server.chat("3") as three:
        await two.send("old\nhello", to="1")
        await one.receive()
        await block(server, "1", "2")
        requests = [("1", "old"), ("3", "a"), ("1", "b"), ("3", "c"), ("1", "old"), ("unknown", "d"), ("3", "e")]
        for to, id in requests:
            await two.put(1, f"{id}\nhello", to=to)
        answers = [await two.receive() for _ in requests]
        assert [(answer["id"], answer["op_type"]) for answer in answers] == [
            *(("old", 40019), ("a", 40018), ("b", 40020), ("c", 40018), ("old", 40019), ("d", 40008), ("e", 40018)),
        ]
        assert [(await three.receive())["id"] for _ in range(3)] == ["a", "c", "e"]
        await one.expect_nothing()


async def test_history_stays_and_broadcasts_pass(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one, server.chat("2", to="1") as two:
        await block(server, "1", "2")
        assert await history(one) == await history(two) == ["hello-1-2", "hello-2-1"]
        assert (await two.answer(6, "to all"))["content"] == "1"
        assert (await one.receive())["content"] == "to all"
        assert (await one.answer(6, "to all"))["content"] == "1"
        assert (await two.receive())["content"] == "to all"
        assert (await two.answer(5, "<hello-1-2"))["op_type"] == 40013
        assert await history(one) == ["hello-2-1"]


# --- what the blocked user sees


async def test_the_blocker_is_offline_for_the_blocked_user_only(server: ServerHandle) -> None:
    await server.make_contacts("1", "3")
    async with server.chat("1") as one, server.chat("2") as two, server.chat("3") as three:
        assert await online(two) == {"1": True}
        await block(server, "1", "2")
        assert await online(two) == {"1": False}
        assert await online(three) == {"1": True}
        assert await online(one) == {"2": True, "3": True}
        await unblock(server, "1", "2")
        assert await online(two) == {"1": True}


async def test_presence_shows_the_blocker_go_offline_and_return(server: ServerHandle) -> None:
    async with server.chat("2", sync=True) as two, server.chat("1"):
        assert await online(two) == {"1": True}
        await block(server, "1", "2")
        assert await two.receive_presence() == ["-1"]
        await unblock(server, "1", "2")
        assert await two.receive_presence() == ["+1"]


async def test_the_blocked_user_does_not_learn_what_was_read_by_op_4(server: ServerHandle) -> None:
    """The blocker's other devices do."""
    async with AsyncExitStack() as stack:
        two = await stack.enter_async_context(server.chat("2", to="1", sync=True))
        for id in ("m1", "m2", "m3"):
            await two.send(f"{id}\nhello")
        await block(server, "1", "2")
        device, one = [await stack.enter_async_context(server.chat("1", to="2", sync=True)) for _ in range(2)]
        assert (await one.answer(4, "m1\nm2"))["op_type"] == 40007
        assert (await one.answer(4, "*"))["content"] == "2"
        assert [frame["content"] for frame in await frames(device, 40007, 2)] == ["m1\nm2", "hello-2-1\nm3"]
        await two.expect_nothing()
        await unblock(server, "1", "2")
        await two.send("m4\nhello")
        await one.answer(4, "m4")
        assert [frame["content"] for frame in await frames(two, 40007, 1)] == ["m4"]


async def test_the_blocked_user_does_not_learn_of_a_later_pong(server: ServerHandle) -> None:
    async with AsyncExitStack() as stack:
        two = await stack.enter_async_context(server.chat("2", to="1", sync=True))
        device = await stack.enter_async_context(server.chat("1", to="2", sync=True))
        one = await stack.enter_async_context(raw.chat(server, "1", "2"))
        await two.put(1, "m1\nhello")
        while (read := await one.read()).opcode != raw.PING:  # it confirms the message before it
            pass
        await block(server, "1", "2")
        await one.write(raw.frame(read.payload, raw.PONG))
        assert [frame["content"] for frame in await frames(device, 40007, 1)] == ["m1"]
        assert (await two.receive())["op_type"] == 40018
        await two.expect_nothing()


async def frames(chat: ChatClient, op_type: int, count: int) -> list[Frame]:
    """The next frames of this type."""
    found: list[Frame] = []
    while len(found) < count:
        frame = await chat.receive()
        if frame["op_type"] == op_type:
            found.append(frame)
    return found


# --- frames in progress


@pytest.mark.parametrize("size", [10, 9000], ids=["short", "large"])
@pytest.mark.parametrize("limit", [0, LIMIT])
async def test_nothing_passes_after_the_answer(tmp_path: Path, limit: int, size: int) -> None:
    """Three sockets of the blocked user send without a pause while the block is made."""
    async with serving(tmp_path, users=("1", "2"), StrangerLimit=limit) as server:
        await server.make_contacts("1", "2")
        for turn in range(5):
            async with AsyncExitStack() as stack:
                one = await stack.enter_async_context(server.chat("1", to="2"))
                sockets = [await stack.enter_async_context(server.chat("2", to="1")) for _ in range(3)]
                floods = [asyncio.create_task(flood(chat, f"t{turn}s{n}", size)) for n, chat in enumerate(sockets)]
                await one.receive()
                await block(server, "1", "2")
                stored = count(tmp_path)
                async with asyncio.timeout(TIMEOUT):
                    await (await one.connection.ping())
                delivered = await drain(one)
                assert all(await asyncio.gather(*floods))
                assert count(tmp_path) == stored
                await one.expect_nothing()
                assert delivered
            await unblock(server, "1", "2")


async def flood(chat: ChatClient, prefix: str, size: int) -> bool:
    """Send until messages have been refused for a while; return whether acknowledgements came first, then refusals."""
    codes: list[int] = []
    for number in range(3000):
        await chat.put(1, f"{prefix}-{number}\n{'x' * size}")
        if number >= 20:
            codes.append((await chat.receive())["op_type"])
        if codes.count(40020) == 50:
            break
    return codes == sorted(codes) and set(codes) == {40018, 40020}


def count(folder: Path) -> int:
    [(found,)] = sql(folder, "SELECT count(*) FROM messages")
    return int(found)


async def drain(chat: ChatClient) -> int:
    """Discard the frames that have arrived; return how many."""
    found = 0
    while True:
        try:
            async with asyncio.timeout(0.01):
                await chat.connection.recv()
                found += 1
        except TimeoutError:
            return found


async def test_blocking_waits_for_no_slow_reader(server: ServerHandle) -> None:
    """A page in progress to a socket that does not read delays no block."""
    async with server.chat("2", to="1", max_queue=1) as two:
        for number in range(100):
            await two.send(f"m{number}\n{'x' * 16000}")
        for _ in range(20):
            await two.put(2, "-200")
        async with asyncio.timeout(TIMEOUT / 2):
            await block(server, "1", "2")


async def test_concurrent_changes_end_in_one_state(server: ServerHandle) -> None:
    """Whatever the order, the rule that applies is the one that is listed."""
    async with server.chat("2", to="1") as two, server.client() as client:
        headers = {"Authorization": f"Bearer {server.tokens['1']}"}

        async def change(path: str) -> httpx.Response:
            return await client.post(path, json={"user_name": "2"}, headers=headers)

        for turn in range(10):
            paths = ["/user/block", "/user/unblock"] * 3
            sending = asyncio.create_task(two.send(f"m{turn}\nhello"))
            assert {answer.status_code for answer in await asyncio.gather(*map(change, paths))} == {200}
            await sending
            expected = 40020 if await blocked(server, "1") else 40019
            assert (await two.send(f"n{turn}\nhello"))["op_type"] == expected


# --- commands alongside the server


async def test_a_new_user_of_a_removed_name_is_not_blocked(tmp_path: Path) -> None:
    """The server notices within HeartbeatSeconds that a command has deleted the blocks."""
    commands = Deployment(tmp_path / "data")
    async with commands.serving() as server:
        await server.add_users("1", "2")
        await server.make_contacts("1", "2")
        await block(server, "1", "2")
        await block(server, "2", "1")
        await commands.run("user", "remove", "2", "--messages", "keep")
        assert await blocked(server, "1") == ["2"]
        await commands.run("user", "remove", "2", "--messages", "delete")
        assert await blocked(server, "1") == []
        await server.add_users("2")
        async with server.chat("2", to="1") as two:

            async def passes() -> bool:
                return bool((await two.send("hello"))["op_type"] == 40019)

            await wait_until(passes)
