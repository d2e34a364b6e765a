"""Op 6: broadcasts to all online users (protocol section 2)."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.harness import ChatClient, Frame, ManualClock, ServerHandle, serving, wait_until


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ServerHandle]:
    """A server with the users 1 to 4 and without a contact limit."""
    async with serving(tmp_path, users=("1", "2", "3", "4"), StrangerLimit=0) as server:
        yield server


def summary(frame: Frame) -> tuple[int, str, str | None]:
    return frame["op_type"], frame["content"], frame.get("reason")


async def refusal_reason(chat: ChatClient, content: str) -> str:
    """Return the reason why the server refuses this broadcast."""
    frame = await chat.answer(6, content)
    assert (frame["op_type"], frame["from"]) == (40008, "System")
    reason: str = frame["reason"]
    return reason


async def test_a_broadcast_reaches_all_sockets_of_all_other_users(server: ServerHandle) -> None:
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(server.chat("1", to="2"))
        others = [await stack.enter_async_context(server.chat(user)) for user in ("2", "2", "3")]
        others.append(await stack.enter_async_context(server.chat("2", sync=True)))
        assert summary(await one.answer(6, "hello")) == (40009, "2", None)
        for other in others:
            frame = await other.receive()
            assert {key: frame[key] for key in frame if key != "time"} == {
                "from": "1",
                "to": "ALL",
                "type": 1,
                "op_type": 40011,
                "content": "hello",
                "msg": "message received",
            }
            await other.expect_nothing()


async def test_the_answer_says_how_many_users_it_reached(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one:
        assert summary(await one.answer(6, "hello")) == (40009, "0", None)
        async with server.chat("2"), server.chat("3"), server.chat("3"), server.chat("1"):
            assert summary(await one.answer(6, "hello")) == (40009, "2", None)

        async def nobody_else_is_online() -> bool:
            return summary(await one.answer(6, "hello")) == (40009, "0", None)

        await wait_until(nobody_else_is_online)


async def test_a_broadcast_reaches_the_sender_s_other_sync_sockets(server: ServerHandle) -> None:
    """The sender's plain sockets and the sending socket do not receive it."""
    async with (
        server.chat("1", to="2", sync=True) as one,
        server.chat("1", to="2", sync=True) as sync,
        server.chat("1", to="2") as plain,
    ):
        assert summary(await one.answer(6, "hello")) == (40009, "0", None)
        frame = await sync.receive()
        assert (frame["from"], frame["to"], frame["op_type"], frame["content"]) == ("1", "ALL", 40011, "hello")
        for chat in (one, sync, plain):
            await chat.expect_nothing()
        assert summary(await plain.answer(6, "again")) == (40009, "0", None)
        for chat in (one, sync):
            assert (await chat.receive())["content"] == "again"
        await plain.expect_nothing()


async def test_a_broadcast_is_not_stored(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one, server.chat("2", to="1") as two:
        await one.answer(6, "hello")
        await two.receive()
        for chat in (one, two):
            for op_type, content in ((2, "0-10"), (3, ""), (7, "-10")):
                assert [frame["content"] for frame in await chat.ask(op_type, content)] == ["0"]
        async with server.chat("4", to="1") as late:
            await late.expect_nothing()


async def test_the_whole_content_of_a_broadcast_is_its_text(server: ServerHandle) -> None:
    async with server.chat("1") as one, server.chat("2") as two:
        for content in ("a\nb", "no id!\nhello", "\nhello", "\n", "\0", "אבג", "😀", "名" * 5461 + "a"):
            assert summary(await one.answer(6, content)) == (40009, "1", None)
            frame = await two.receive()
            assert frame["content"] == content
            assert "id" not in frame


async def test_an_empty_or_too_long_broadcast_is_refused(server: ServerHandle) -> None:
    async with server.chat("1") as one, server.chat("2") as two:
        assert await refusal_reason(one, "") == "empty"
        assert await refusal_reason(one, "名" * 5461 + "ab") == "too_long"
        await two.expect_nothing()


async def test_a_broadcast_ignores_to(server: ServerHandle) -> None:
    async with server.chat("1", to="3") as one, server.chat("2") as two:
        frame = await one.answer(6, "hello", to="2")
        assert summary(frame) == (40009, "1", None)
        assert (await two.receive())["to"] == "ALL"


async def test_broadcasts_per_minute_counts_all_sockets_of_a_user(tmp_path: Path) -> None:
    clock = ManualClock()
    async with (
        serving(tmp_path, clock, users=("1", "2"), BroadcastsPerMinute=3) as server,
        server.chat("1") as one,
        server.chat("1") as again,
        server.chat("2") as two,
    ):
        assert await refusal_reason(one, "") == "empty"
        for chat in (one, again, one):
            assert (await chat.answer(6, "hello"))["op_type"] == 40009
            await two.receive()
        for chat in (one, again):
            assert await refusal_reason(chat, "one more") == "too_many"
        await two.expect_nothing()
        assert (await two.answer(6, "mine"))["op_type"] == 40009
        for chat in (one, again):
            assert (await chat.receive())["content"] == "mine"
        clock.shift += 61
        assert (await again.answer(6, "hello"))["op_type"] == 40009


async def test_a_broadcast_does_not_affect_the_contact_limit(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, users=("1", "2"), StrangerLimit=1) as server,
        server.chat("1", to="2") as one,
        server.chat("2", to="1") as two,
    ):
        for _ in range(3):
            assert (await one.answer(6, "hello"))["op_type"] == 40009
        assert (await one.send("first"))["op_type"] == 40018
        assert (await two.answer(6, "no answer"))["op_type"] == 40009
        assert (await one.send("second"))["op_type"] == 40020
