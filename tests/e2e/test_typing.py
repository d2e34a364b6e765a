"""Typing, op 8 (docs/protocol.md section 2)."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest

from chat_server.service.typing_indicator import INTERVAL, TRACKED
from tests.e2e.http_helpers import post, sql
from tests.harness import ChatClient, Frame, ManualClock, ServerHandle, serving

DAY = 86400


class Setup(NamedTuple):
    """A server with the users 1 to 3, and its clock. 1 and 2 are contacts; 3 is a stranger to both."""

    server: ServerHandle
    clock: ManualClock


@pytest.fixture
async def setup(tmp_path: Path) -> AsyncIterator[Setup]:
    clock = ManualClock()
    async with serving(tmp_path, clock, users=("1", "2", "3")) as server:
        await server.make_contacts("1", "2")
        yield Setup(server, clock)


async def typed(chat: ChatClient, *contents: str, **keys: str) -> None:
    """Send op 8 with each content, and wait until the server has processed all: an answer to op 2 is next."""
    for content in contents:
        await chat.put(8, content, **keys)
    assert (await chat.answer(2, "-1", to="1" if chat.user == "2" else "2"))["op_type"] == 40005


async def test_a_contact_s_sync_sockets_learn_of_typing(setup: Setup) -> None:
    server = setup.server
    async with (
        server.chat("1", to="2") as one,
        server.chat("1", sync=True) as device,
        server.chat("2", sync=True) as two,
        server.chat("2", to="1") as plain,
    ):
        await typed(one, "1", "0")
        frames = [await two.receive() for _ in range(2)]
        expected: Frame = {"from": "1", "to": "2", "type": 1, "op_type": 40025, "content": "1", "msg": "typing"}
        assert frames == [expected, expected | {"content": "0"}]
        for chat in (one, device, plain, two):
            await chat.expect_nothing()
        await typed(plain, "1")
        assert (await device.receive())["from"] == "2"
        await one.expect_nothing()


async def test_one_start_passes_in_two_seconds(setup: Setup) -> None:
    server, clock = setup
    async with server.chat("1", to="2") as one, server.chat("1", to="2") as other, server.chat("2", sync=True) as two:
        await typed(one, "1", "1", "0", "0", "1", "0")
        await typed(other, "1")
        assert [(await two.receive())["content"] for _ in range(3)] == ["1", "0", "1"]
        await two.expect_nothing()
        clock.shift += INTERVAL
        await typed(one, "1")
        assert (await two.receive())["content"] == "1"


async def test_a_socket_is_tracked_in_sixteen_conversations(tmp_path: Path) -> None:
    names = [f"u{number}" for number in range(TRACKED + 1)]
    async with serving(tmp_path, users=("1", *names), StrangerLimit=0) as server, server.chat("1") as one:
        for name in names:
            await one.put(8, "1", to=name)
        assert (await one.answer(2, "-1", to="u0"))["op_type"] == 40005
        async with server.chat(names[-1], sync=True) as last, server.chat(names[0], sync=True) as first:
            await one.put(8, "0", to=names[-1])
            await one.put(8, "0", to=names[0])
            assert (await first.receive())["content"] == "0"
            await last.expect_nothing()


async def test_typing_to_strangers_is_dropped_silently(setup: Setup) -> None:
    """In both directions, until one has answered; also after the window of their last message."""
    server, clock = setup
    async with server.chat("3", to="1", sync=True) as three, server.chat("1", to="3", sync=True) as one:
        await typed(three, "1", to="1")
        await three.send("hello")
        await one.receive()
        clock.shift += INTERVAL
        await typed(three, "1", to="1")
        await typed(one, "1", to="3")
        await one.expect_nothing()
        await three.expect_nothing()
        await one.send("hello back")
        await three.receive()
        clock.shift += INTERVAL
        await typed(three, "1", to="1")
        assert (await one.receive())["op_type"] == 40025
        clock.shift += 4 * DAY  # longer than StrangerWindow, and typing does not renew it
        await typed(three, "1", to="1")
        await one.expect_nothing()


async def test_contacts_are_known_after_a_restart(tmp_path: Path) -> None:
    """From the counter; if it is lost, from the next message on."""
    async with serving(tmp_path, users=("1", "2")) as server:
        await server.make_contacts("1", "2")
    clock = ManualClock()
    async with serving(tmp_path, clock) as restarted:
        restarted.tokens = server.tokens
        async with restarted.chat("1", to="2") as one, restarted.chat("2", sync=True) as two:
            await typed(one, "1")
            assert (await two.receive())["op_type"] == 40025
            sql(tmp_path, "DELETE FROM strangers")
            clock.shift += INTERVAL
            await typed(one, "1")
            await two.expect_nothing()
            await one.send("hello")
            await two.receive()
            clock.shift += INTERVAL
            await typed(one, "1")
            assert (await two.receive())["op_type"] == 40025


async def test_typing_across_a_block_is_dropped_silently(setup: Setup) -> None:
    server, clock = setup
    async with server.chat("1", to="2", sync=True) as one, server.chat("2", to="1", sync=True) as two:
        await typed(one, "1")
        assert (await two.receive())["content"] == "1"
        await post(server, "/user/block", server.tokens["1"], user_name="2")
        await typed(one, "0")
        clock.shift += INTERVAL
        await typed(one, "1")
        await typed(two, "1", "0")
        await one.expect_nothing()
        await two.expect_nothing()
        await post(server, "/user/unblock", server.tokens["1"], user_name="2")
        clock.shift += INTERVAL
        await typed(two, "1")
        assert (await one.receive())["op_type"] == 40025


@pytest.mark.parametrize(
    ("keys", "code", "reason"),
    [
        ({"content": ""}, 40024, "bad_frame"),
        ({"content": "2"}, 40024, "bad_frame"),
        ({"content": "1\n"}, 40024, "bad_frame"),
        ({"content": "1", "to": "unknown"}, 40024, "no_such_user"),
        ({"content": "1", "to": "1"}, 40024, "to_yourself"),
        ({"content": "1", "from": "2"}, 40008, "wrong_from"),
    ],
)
async def test_a_wrong_request_is_refused(setup: Setup, keys: dict[str, str], code: int, reason: str) -> None:
    async with setup.server.chat("1", to="2") as one, setup.server.chat("2", sync=True) as two:
        answer = await one.answer(8, **keys)
        assert (answer["op_type"], answer["reason"]) == (code, reason)
        await two.expect_nothing()


async def test_typing_is_not_stored(setup: Setup, tmp_path: Path) -> None:
    async with setup.server.chat("1", to="2") as one:
        await typed(one, "1")
        assert [frame["content"] for frame in (await one.ask(7, "-10"))[:-1]] == ["hello-2-1\nhello"]
        assert sql(tmp_path, "SELECT count(*) FROM messages") == [(2,)]
