"""Many sockets open or close at the same moment: the server handles a few in each loop iteration."""

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
MAX_PER_ITERATION = 16  # of the event loop


class IterationCounter(logging.Handler):
    """Count each log message per loop iteration. The server and the test share the loop."""

    def __init__(self) -> None:
        super().__init__()
        self.logged: dict[str, Counter[int]] = {}
        self._iteration = 0
        self._next()

    def emit(self, record: logging.LogRecord) -> None:
        """Count the message in the current iteration."""
        self.logged.setdefault(record.getMessage(), Counter())[self._iteration] += 1

    def _next(self) -> None:
        self._iteration += 1
        self._handle = asyncio.get_running_loop().call_soon(self._next)

    def close(self) -> None:
        """Stop counting iterations."""
        self._handle.cancel()
        super().close()


@contextmanager
def count_iterations() -> Iterator[IterationCounter]:
    """Count the log messages of the connection manager inside the block."""
    logger, counting = logging.getLogger("chat_server.api.connection_manager"), IterationCounter()
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(counting)
    try:
        yield counting
    finally:
        logger.removeHandler(counting)
        logger.setLevel(level)
        counting.close()


async def send_upgrades(server: ServerHandle, count: int = MANY) -> list[raw.RawSocket]:
    """Open `count` connections, then send the upgrade of user a on all of them at the same moment."""
    ones = [raw.RawSocket(sock, "a") for sock in await asyncio.gather(*(raw.connect(server) for _ in range(count)))]
    for one in ones:
        assert one.sock.send(upgrade := raw.upgrade(server, "a")) == len(upgrade)
    return ones


async def test_many_sockets_open_over_several_iterations(
    tmp_path: Path,
) -> None:
    """At most MAX_PER_ITERATION open in one loop iteration, and all of them open."""
    async with serving(tmp_path, users=("a",), SocketsPerUser=MANY) as server:
        with count_iterations() as counted:
            ones = await send_upgrades(server)
            assert [await one.status() for one in ones] == [101] * MANY
            assert [(await one.answer())["op_type"] for one in ones] == [40003] * MANY
        opened = counted.logged["socket opened"]
        assert opened.total() == MANY
        assert max(opened.values()) <= MAX_PER_ITERATION
        for one in ones:
            one.reset()


async def test_many_lost_sockets_close_over_several_iterations(
    tmp_path: Path,
) -> None:
    """At most MAX_PER_ITERATION are removed in one loop iteration, and all of them are removed."""
    async with serving(tmp_path, users=("a",), SocketsPerUser=MANY) as server:
        ones = await send_upgrades(server)
        for one in ones:
            assert await one.status() == 101
            await one.answer()
        with count_iterations() as counted:
            for one in ones:
                one.reset()
            await wait_until(lambda: counted.logged.get("socket closed", Counter()).total() == MANY)
        assert max(counted.logged["socket closed"].values()) <= MAX_PER_ITERATION


async def test_a_waiting_upgrade_fails_if_its_session_ends(tmp_path: Path) -> None:
    """The upgrade waits for its turn; then it is refused, or its socket is closed with 4001."""
    async with serving(tmp_path, users=("a", "b"), SocketsPerUser=MANY) as server:
        body = json.dumps({"user_name": "a"}).encode()
        head = (
            f"POST /user/logout HTTP/1.1\r\nHost: {server.host}:{server.port}\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {server.tokens['a']}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        leaving = raw.RawSocket(await raw.connect(server), "a")
        await leaving.write(head.encode())
        async with server.chat("b") as b:
            await b.answer(7, "-1")  # now the server has read the head, so the body is handled at once
            ones = await send_upgrades(server)
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


async def test_a_server_ends_while_many_upgrades_wait(tmp_path: Path) -> None:
    async with serving(tmp_path, users=("a",), SocketsPerUser=MANY) as server:
        ones = await send_upgrades(server)
    for one in ones:
        try:
            status = await one.status()
        except raw.ConnectionCut:
            continue
        assert status in (101, 429), one.response
        assert status == 429 or await one.wait_closed() in (1001, None)
    assert {await one.wait_closed() for one in ones} == {None}, "a connection is still open"
    for one in ones:
        one.sock.close()


async def test_free_lists_are_cleared_after_most_sockets_close(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The free lists are Python's."""
    calls = []
    monkeypatch.setattr(connection_manager, "MANY", 20)
    monkeypatch.setattr(connection_manager, "clear_free_lists", lambda: calls.append(1))
    async with serving(tmp_path, users=("a",), HeartbeatSeconds=1) as server, server.chat("a"):
        async with AsyncExitStack() as stack:
            for _ in range(20):
                await stack.enter_async_context(raw.chat(server, "a"))
            await asyncio.sleep(1.5)  # more than a heartbeat; two would close the sockets, which answer no ping
            assert not calls
        await wait_until(lambda: bool(calls))
        await asyncio.sleep(1.5)
        assert calls == [1]
