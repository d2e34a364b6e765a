"""Helpers of the fault tests: outages of databases, a proxy that cuts connections, and expected answers."""

import asyncio
import os
import re
import signal
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from tests.e2e.http_helpers import check_refusal, post, try_upgrade
from tests.harness import PASSWORD, TIMEOUT, ChatClient, Frame, ServerHandle, run_py, wait_until
from tests.servers import DatabaseServer

# Settings of the servers under test. A busy machine stops a client for seconds; it must not miss two heartbeats.
SHORT_HEARTBEAT: dict[str, Any] = {"HeartbeatSeconds": 1.5}
# Settings of the servers whose stores are away: tests wait for StoreTimeout many times.
SHORT_TIMEOUTS: dict[str, Any] = {"StoreTimeout": 1.2, **SHORT_HEARTBEAT}
# The longest wait for an answer, in seconds.
ANSWER_TIMEOUT = 25.0
OUTAGE_KINDS = ("killed", "frozen")


def unique_names(count: int) -> list[str]:
    """Return new names of users."""
    return [f"{letter}-{uuid.uuid4().hex[:12]}" for letter in "abcdefgh"[:count]]


@asynccontextmanager
async def unavailable(database: DatabaseServer, how: str) -> AsyncIterator[None]:
    """Kill or freeze the database, and bring it back at the end. `how` is one of OUTAGE_KINDS."""
    if how == "killed":
        database.kill()
    else:
        database.send(signal.SIGSTOP)
    try:
        yield
    finally:
        if how == "killed":
            await asyncio.to_thread(database.start)  # in a thread, so that pings are answered
        else:
            database.send(signal.SIGCONT)


async def expect_store_away(chat: ChatClient, op_type: int, status: int, content: str = "", **keys: Any) -> None:
    """Send a request; fail unless it gets `status` with `store_away` within ANSWER_TIMEOUT."""
    async with asyncio.timeout(ANSWER_TIMEOUT):
        answer = await chat.answer(op_type, content, **keys)
    assert (answer["op_type"], answer.get("reason")) == (status, "store_away"), answer


async def expect_http_store_away(server: ServerHandle, path: str, user: str, token: str | None = None) -> None:
    """POST user name and password; fail unless the answer is 503 with `store_away` within ANSWER_TIMEOUT."""
    body = {"user_name": user, "password": PASSWORD}
    async with asyncio.timeout(ANSWER_TIMEOUT):
        check_refusal(await post(server, path, token, **body), 503, 44444, "store_away")


async def expect_upgrade_store_away(server: ServerHandle, user: str, to: str = "") -> None:
    """Open a socket; fail unless it is refused with `store_away` within ANSWER_TIMEOUT."""
    headers = {"Authorization": f"Bearer {server.tokens[user]}"}
    async with asyncio.timeout(ANSWER_TIMEOUT):
        check_refusal(await try_upgrade(server, headers, uid=user, to_uid=to), 503, 44444, "store_away")


def is_acknowledged(frame: Frame) -> bool:
    """Return whether the frame acknowledges a message; fail if it is neither that nor `store_away`."""
    if frame["op_type"] in (40018, 40019):
        return True
    assert (frame["op_type"], frame["reason"]) == (40008, "store_away"), frame
    return False


async def send_until_acknowledged(chat: ChatClient, content: str, **keys: Any) -> Frame:
    """Send a message, always with the same id, until it is acknowledged; return the acknowledgement."""
    async with asyncio.timeout(ANSWER_TIMEOUT * 2):
        while not is_acknowledged(frame := await chat.send(content, **keys)):
            await asyncio.sleep(0.02)
    return frame


async def history(chat: ChatClient) -> list[str]:
    """Return the contents of all messages of the conversation."""
    found: list[str] = []
    while True:
        *frames, last = await chat.ask(2, f"{len(found)}-200")
        assert last["op_type"] == 40005, last
        page = [frame for frame in frames if frame["op_type"] == 40005]  # without deliveries in the meantime
        if not page:
            return found
        found += [frame["content"] for frame in page]


async def expect_open(chat: ChatClient) -> None:
    """Fail unless the socket still answers after two heartbeats."""
    await asyncio.sleep(SHORT_TIMEOUTS["HeartbeatSeconds"] * 2)
    async with asyncio.timeout(ANSWER_TIMEOUT):
        await (await chat.connection.ping())


async def start_error(folder: Path, stores: Mapping[str, str], **settings: Any) -> tuple[str, list[str]]:
    """Start a server that cannot start; return its error, which is one line, and the lines before it."""
    values = {"DataDir": folder, "HttpPort": 0, "StoreTimeout": 1, **settings}
    environ = {f"CHAT_SERVICE_{key.upper()}": str(value) for key, value in values.items()}
    child = await run_py(environ=environ | dict(stores))
    try:
        async with asyncio.timeout(TIMEOUT):
            out, err = await child.communicate()
    finally:
        with suppress(ProcessLookupError):
            child.kill()
        await child.wait()
    assert (child.returncode, out) == (1, b""), (child.returncode, out, err)
    *before, line = err.decode().splitlines()
    assert line.startswith("chat-server: "), err
    return line, before


async def expect_start_timeout(folder: Path, stores: Mapping[str, str], name: str) -> None:
    """Fail unless a start names the unreachable store, waits for it, and ends after StartTimeout."""
    line, before = await start_error(folder / "data", stores, StartTimeout=5, StoreTimeout=4)
    for text in (f"{name} at ", "connection refused", "gave up after 5 s (StartTimeout)"):
        assert text in line
    [waiting] = before
    assert "store not ready" in waiting
    assert name in waiting


async def wait_until_waiting(folder: Path) -> None:
    """Wait until the starting server with its data in `folder`/data waits for a store."""
    log = folder / "server.log"
    await wait_until(lambda: log.exists() and "store not ready" in log.read_text())


@asynccontextmanager
async def started_later(database: DatabaseServer, folder: Path) -> AsyncIterator[None]:
    """Kill the database, and start it again as soon as the server with its data in `folder`/data waits for it."""

    async def start() -> None:
        await wait_until_waiting(folder)
        await asyncio.to_thread(database.start)

    database.kill()
    async with asyncio.TaskGroup() as group:
        group.create_task(start())
        yield


def count_connections(pid: int, port: int) -> int:
    """Return the number of connections of a process to a port of this host."""
    inodes = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            if match := re.fullmatch(r"socket:\[(\d+)\]", os.readlink(fd)):
                inodes.add(match[1])
    rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return sum(row[2].endswith(f":{port:04X}") and row[9] in inodes for row in rows)


class TcpProxy:
    """A TCP proxy in front of a database.

    It cuts all connections once after `budget` bytes of replies, and before each request that contains `forbidden`.
    """

    def __init__(self, port: int) -> None:
        self.budget: int | None = None
        self.forbidden: bytes | None = None
        self.cuts = 0
        self.port = 0
        self._target = port
        self._open: set[asyncio.StreamWriter] = set()

    def redirect_to(self, database: DatabaseServer) -> None:
        """Forward new connections to that database; open ones stay."""
        self._target = database.port

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward one connection in both directions."""
        try:
            back_reader, back_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.close()
            return
        both = {writer, back_writer}
        self._open |= both
        try:
            await asyncio.gather(self._send(reader, back_writer), self._receive(back_reader, writer))
        except OSError:
            pass
        finally:
            self._open -= both
            for end in both:
                end.close()

    async def _send(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if self.forbidden and self.forbidden in data:
                self.cut()
                return
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError

    async def _receive(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if self.budget is not None and len(data) > self.budget:
                writer.write(data[: self.budget])
                await writer.drain()
                self.cut()
                return
            if self.budget is not None:
                self.budget -= len(data)
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError

    def cut(self) -> None:
        """Close all connections; new ones are not limited."""
        self.budget = None
        self.cuts += 1
        for writer in self._open:
            writer.close()


@asynccontextmanager
async def tcp_proxy(database: DatabaseServer) -> AsyncIterator[TcpProxy]:
    """Run a TcpProxy in front of the database."""
    proxy = TcpProxy(database.port)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        proxy.cut()
