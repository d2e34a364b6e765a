"""Requests of several sockets that are stored together: an error in one of them affects no other."""

from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AsyncExitStack
from typing import Any

import pytest

from chat_server.api.dispatcher import Dispatcher
from chat_server.model.messages import Added, Message
from chat_server.model.sqlite.messages import SqliteMessages
from chat_server.service.frames import Frames
from tests import raw
from tests.harness import Frame, ServerHandle

POISON = "poison"
# What users 1 and 3 send to user 2 at the same moment.
ONE = ["m1\nhello", "no id", POISON, f"m2\n{POISON}", "m3\nhello"]
THREE = ["no id", "no id", "m1\nhello"]


@pytest.fixture
async def sockets(server: ServerHandle) -> AsyncIterator[list[raw.RawSocket]]:
    """Sockets of users 1 and 3, who may write to user 2 without a limit."""
    await server.add_users("3")
    async with AsyncExitStack() as stack:
        for user in ("1", "3"):
            await server.make_contacts(user, "2")
        yield [await stack.enter_async_context(raw.chat(server, user, "2")) for user in ("1", "3")]


async def send_together(sockets: Sequence[raw.RawSocket], *contents: Sequence[str]) -> list[list[Frame]]:
    """Send at the same moment from each socket; return the answers of each."""
    for one, texts in zip(sockets, contents, strict=True):
        one.sock.send(b"".join(raw.request(1, text) for text in texts))  # the server runs in this event loop
    return [[await one.answer() for _ in texts] for one, texts in zip(sockets, contents, strict=True)]


async def stored(server: ServerHandle, sender: str) -> list[str]:
    """Return the texts that user 2 has got from `sender` after the first one."""
    async with raw.chat(server, "2", sender) as two:
        await two.put(2, "-200")
        frames = [await two.receive()]
        while frames[-1]["from"] != "System":
            frames.append(await two.receive())
    return [frame["content"].partition("\n")[2] for frame in frames[:-1] if frame["from"] == sender][1:]


@pytest.mark.parametrize("committed", [False, True])
async def test_a_store_error_affects_and_repeats_no_other_message(
    server: ServerHandle, sockets: list[raw.RawSocket], monkeypatch: pytest.MonkeyPatch, committed: bool
) -> None:
    add, calls = SqliteMessages.add, []

    async def failing_add(self: SqliteMessages, batch: Sequence[Message]) -> list[Added]:
        calls.append(len(batch))
        added = await add(self, batch) if committed else []
        if any(message.text == POISON for message in batch):
            raise ZeroDivisionError
        return added or await add(self, batch)

    monkeypatch.setattr(SqliteMessages, "add", failing_add)
    ones, threes = await send_together(sockets, ONE, THREE)
    assert calls == [8, 5, 3]  # together, then each alone
    assert {answer["reason"] for answer in ones} == {"internal"}
    assert {answer["op_type"] for answer in threes} == {40019}
    assert len({answer["id"] for answer in threes}) == 3
    assert await stored(server, "3") == ["no id", "no id", "hello"]
    assert await stored(server, "1") == (["hello", "no id", POISON, POISON, "hello"] if committed else [])


async def test_an_error_while_answering_affects_one_request(
    server: ServerHandle, sockets: list[raw.RawSocket], monkeypatch: pytest.MonkeyPatch
) -> None:
    live = Frames.live

    def failing_live(self: Frames, message: Message, time: int) -> bytes:
        if message.text == POISON:
            raise ZeroDivisionError
        return live(self, message, time)

    monkeypatch.setattr(Frames, "live", failing_live)
    ones, threes = await send_together(sockets, ONE, THREE)
    assert [answer["op_type"] for answer in ones] == [40019, 40019, 40008, 40008, 40019]
    assert [answer["op_type"] for answer in threes] == [40019] * 3
    monkeypatch.undo()
    [again, _] = await send_together(sockets, [f"m2\n{POISON}"], [])
    assert [answer["op_type"] for answer in again] == [40019]


async def test_a_failed_start_of_a_task_stops_no_other_request(
    server: ServerHandle, sockets: list[raw.RawSocket], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(self: Dispatcher, work: Coroutine[Any, Any, None]) -> None:
        work.close()
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Dispatcher, "_begin", no_memory)
        await sockets[0].put(1, "m1\nhello")
        assert await sockets[0].wait_closed() == 1011
    assert (await sockets[1].ask(1, "m1\nhello"))["op_type"] == 40019
    await server.post("/user/logout", {"user_name": "1"}, headers={"Authorization": f"Bearer {server.tokens['1']}"})
