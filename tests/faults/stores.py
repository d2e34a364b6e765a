"""What the tests of faults share: databases that go and come back, a wire that can be cut, what is expected then."""

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
from tests.harness import PASSWORD, ChatClient, Frame, ServerHandle, run_py
from tests.servers import DatabaseServer

# StoreTimeout and HeartbeatSeconds of the servers under test.
SOON: dict[str, Any] = {"StoreTimeout": 0.7, "HeartbeatSeconds": 0.8}
# An answer that takes longer than this, in seconds, hangs.
HANGS = 25.0
HOWS = ("killed", "frozen")


def names(count: int) -> list[str]:
    """Users nobody has heard of."""
    return [f"{letter}-{uuid.uuid4().hex[:12]}" for letter in "abcdefgh"[:count]]


@asynccontextmanager
async def away(database: DatabaseServer, how: str) -> AsyncIterator[None]:
    """The database is killed, or frozen, and comes back at the end."""
    if how == "killed":
        database.kill()
    else:
        database.send(signal.SIGSTOP)
    try:
        yield
    finally:
        if how == "killed":
            await asyncio.to_thread(database.start)  # meanwhile pings are answered
        else:
            database.send(signal.SIGCONT)


async def store_away(chat: ChatClient, op_type: int, status: int, content: str = "", **keys: Any) -> None:
    """Fail unless the answer to this is, soon, that a store is away."""
    async with asyncio.timeout(HANGS):
        answer = await chat.answer(op_type, content, **keys)
    assert (answer["op_type"], answer.get("reason")) == (status, "store_away"), answer


async def http_away(server: ServerHandle, path: str, user: str, token: str | None = None) -> None:
    """Fail unless the answer to this POST is, soon, that a store is away."""
    body = {"user_name": user, "password": PASSWORD}
    async with asyncio.timeout(HANGS):
        check_refusal(await post(server, path, token, **body), 503, 44444, "store_away")


async def upgrade_away(server: ServerHandle, user: str, to: str = "") -> None:
    """Fail unless a socket is refused, soon, because a store is away."""
    headers = {"Authorization": f"Bearer {server.tokens[user]}"}
    async with asyncio.timeout(HANGS):
        check_refusal(await try_upgrade(server, headers, uid=user, to_uid=to), 503, 44444, "store_away")


def acked(frame: Frame) -> bool:
    """Whether this acknowledges a message; if not, it must say that a store is away."""
    if frame["op_type"] in (40018, 40019):
        return True
    assert (frame["op_type"], frame["reason"]) == (40008, "store_away"), frame
    return False


async def sent(chat: ChatClient, content: str, **keys: Any) -> Frame:
    """Send a message until it is acknowledged, always with the same id."""
    async with asyncio.timeout(HANGS * 2):
        while not acked(frame := await chat.send(content, **keys)):
            await asyncio.sleep(0.02)
    return frame


async def history(chat: ChatClient) -> list[str]:
    """What was said between the two."""
    found: list[str] = []
    while True:
        *came, last = await chat.ask(2, f"{len(found)}-200")
        assert last["op_type"] == 40005, last
        page = [frame for frame in came if frame["op_type"] == 40005]  # and not what was delivered meanwhile
        if not page:
            return found
        found += [frame["content"] for frame in page]


async def alive(chat: ChatClient) -> None:
    """Fail unless the socket is open: more than the time of several heartbeats later it still answers."""
    await asyncio.sleep(SOON["HeartbeatSeconds"] * 3)
    async with asyncio.timeout(HANGS):
        await (await chat.connection.ping())


async def fails(folder: Path, stores: Mapping[str, str], **settings: Any) -> tuple[str, list[str]]:
    """Start a server that cannot start: the one line that says why, and those before it."""
    values = {"DataDir": folder, "HttpPort": 0, "StoreTimeout": 1, **settings}
    environ = {f"CHAT_SERVICE_{key.upper()}": str(value) for key, value in values.items()}
    child = await run_py(environ=environ | dict(stores))
    try:
        async with asyncio.timeout(HANGS):
            out, err = await child.communicate()
    finally:
        with suppress(ProcessLookupError):
            child.kill()
        await child.wait()
    assert (child.returncode, out) == (1, b""), (child.returncode, out, err)
    *before, line = err.decode().splitlines()
    assert line.startswith("chat-server: "), err
    return line, before


def connections(pid: int, port: int) -> int:
    """How many connections that process has to a port of this host."""
    inodes = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            if match := re.fullmatch(r"socket:\[(\d+)\]", os.readlink(fd)):
                inodes.add(match[1])
    rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return sum(row[2].endswith(f":{port:04X}") and row[9] in inodes for row in rows)


class Wire:
    """A TCP proxy in front of a database; `budget`: after so many bytes of replies every connection is cut, once."""

    def __init__(self, port: int) -> None:
        self.budget: int | None = None
        self.cuts = 0
        self.port = 0
        self._behind = port
        self._open: set[asyncio.StreamWriter] = set()

    def lead_to(self, database: DatabaseServer) -> None:
        """Lead new connections to that database; those that are open stay."""
        self._behind = database.port

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection."""
        try:
            back_reader, back_writer = await asyncio.open_connection("127.0.0.1", self._behind)
        except OSError:
            writer.close()
            return
        both = {writer, back_writer}
        self._open |= both
        try:
            await asyncio.gather(self._there(reader, back_writer), self._back(back_reader, writer))
        except OSError:
            pass
        finally:
            self._open -= both
            for end in both:
                end.close()

    async def _there(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError

    async def _back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
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
        """End every connection; new ones are whole again."""
        self.budget = None
        self.cuts += 1
        for writer in self._open:
            writer.close()


@asynccontextmanager
async def wire(database: DatabaseServer) -> AsyncIterator[Wire]:
    """A wire to the database."""
    carried = Wire(database.port)
    server = await asyncio.start_server(carried.serve, "127.0.0.1", 0)
    carried.port = server.sockets[0].getsockname()[1]
    try:
        yield carried
    finally:
        server.close()
        carried.cut()
