"""Many who come or go in the same moment: a few in each turn of the loop, and all of them in the end."""

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import pytest

from chat_server.api import connection_manager
from tests import raw
from tests.harness import ServerHandle, serving, wait_until

MANY = 200
FEW = 16  # in one turn of the loop


class Turns(logging.Handler):
    """How often each line was logged in each turn of the loop, which the server shares with the test."""

    def __init__(self) -> None:
        super().__init__()
        self.logged: dict[str, Counter[int]] = {}
        self._turn = 0
        self._next()

    def emit(self, record: logging.LogRecord) -> None:
        """Count it."""
        self.logged.setdefault(record.getMessage(), Counter())[self._turn] += 1

    def _next(self) -> None:
        self._turn += 1
        self._handle = asyncio.get_running_loop().call_soon(self._next)

    def close(self) -> None:
        """Count no more turns."""
        self._handle.cancel()
        super().close()


@contextmanager
def turns() -> Iterator[Turns]:
    """Count while the block lasts."""
    logger, counting = logging.getLogger("chat_server.api.connection_manager"), Turns()
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(counting)
    try:
        yield counting
    finally:
        logger.removeHandler(counting)
        logger.setLevel(level)
        counting.close()


async def knock(server: ServerHandle, count: int = MANY) -> list[raw.RawSocket]:
    """Connect, and ask for so many sockets of user a in one moment."""
    ones = [raw.RawSocket(sock, "a") for sock in await asyncio.gather(*(raw.connect(server) for _ in range(count)))]
    for one in ones:
        assert one.sock.send(upgrade := raw.upgrade(server, "a")) == len(upgrade)
    return ones


async def test_of_many_that_come_at_once_few_are_opened_in_a_turn_of_the_loop_and_all_in_the_end(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path, SocketsPerUser=MANY) as server:
        await server.add_users("a")
        with turns() as counted:
            ones = await knock(server)
            assert [await one.status() for one in ones] == [101] * MANY
            assert [(await one.answer())["op_type"] for one in ones] == [40003] * MANY
        opened = counted.logged["socket opened"]
        assert opened.total() == MANY
        assert max(opened.values()) <= FEW
        for one in ones:
            one.reset()


async def test_of_many_that_vanish_at_once_few_are_cleared_away_in_a_turn_of_the_loop_and_all_in_the_end(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path, SocketsPerUser=MANY) as server:
        await server.add_users("a")
        ones = await knock(server)
        for one in ones:
            assert await one.status() == 101
            await one.answer()
        with turns() as counted:
            for one in ones:
                one.reset()
            await wait_until(lambda: counted.logged.get("socket closed", Counter()).total() == MANY)
        assert max(counted.logged["socket closed"].values()) <= FEW


async def test_no_socket_opens_whose_session_ended_while_it_waited_for_its_turn(tmp_path: Path) -> None:
    async with serving(tmp_path, SocketsPerUser=MANY) as server:
        await server.add_users("a", "b")
        body = json.dumps({"user_name": "a"}).encode()
        head = (
            f"POST /user/logout HTTP/1.1\r\nHost: {server.host}:{server.port}\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {server.tokens['a']}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        leaving = raw.RawSocket(await raw.connect(server), "a")
        await leaving.write(head.encode())
        async with server.chat("b") as b:
            await b.answer(7, "-1")  # by now the head has had its turn: its body waits for nobody
            ones = await knock(server)
            await leaving.write(body)
            assert await leaving.status() == 200
            for one in ones:
                if await one.status() == 101:
                    assert await one.wait_closed() == 4001
                else:
                    assert one.response.startswith(b"HTTP/1.1 401 ")
            assert (await b.answer(6, "anybody?"))["content"] == "0"
        for one in (*ones, leaving):
            one.reset()


async def test_a_server_ends_though_many_wait_for_their_turn(tmp_path: Path) -> None:
    async with serving(tmp_path, SocketsPerUser=MANY) as server:
        await server.add_users("a")
        ones = await knock(server)
    for one in ones:
        try:
            status = await one.status()
        except raw.ConnectionCut:
            continue
        assert status in (101, 429), one.response
        assert status == 429 or await one.wait_closed() in (1001, None)
    assert {await one.wait_closed() for one in ones} == {None}, "no connection is left open"
    for one in ones:
        one.sock.close()


async def test_when_most_are_gone_what_python_keeps_of_them_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(connection_manager, "MANY", 20)
    monkeypatch.setattr(connection_manager, "clear_free_lists", lambda: calls.append(1))
    async with serving(tmp_path, HeartbeatSeconds=0.5) as server:
        await server.add_users("a")
        async with server.chat("a"):
            async with AsyncExitStack() as stack:
                for _ in range(20):
                    await stack.enter_async_context(raw.chat(server, "a"))
                await asyncio.sleep(1)
                assert not calls
            await wait_until(lambda: bool(calls))
            await asyncio.sleep(1)
            assert calls == [1]
