"""After `remove` or `delete` is answered, no earlier membership allows anything (protocol section 3, promise 5)."""

import asyncio
import inspect
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import pytest

from chat_server.model.sqlite.groups import SqliteGroups
from chat_server.model.sqlite.messages import SqliteMessages
from tests import raw
from tests.e2e.group_helpers import add, create, delete, members, remove
from tests.e2e.http_helpers import sql
from tests.harness import Frame, ServerHandle, serving, wait_until

TEAM = "#team"
IN_FLIGHT = 3  # rounds of requests that one member has sent and that are not answered yet
MORE_ROUNDS = 4  # after the answer to the change
MAX_DELAY = 0.02  # seconds before and after each call of a slow store
UNKNOWN_OP = 9  # its refusal, 40000, ends a round
BIG = "x" * 16000

End = Callable[[ServerHandle], Awaitable[None]]


async def remove_two(server: ServerHandle) -> None:
    await remove(server, "1", TEAM, "2")


async def leave(server: ServerHandle) -> None:
    await remove(server, "2", TEAM, "2")


async def delete_team(server: ServerHandle) -> None:
    await delete(server, "1", TEAM)


@pytest.fixture
def slow_stores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each call of the stores of messages and groups wait before and after its work."""
    rng = random.Random(1)

    def slow(method: Callable[..., Awaitable[Any]], *, before: bool) -> Callable[..., Awaitable[Any]]:
        @wraps(method)
        async def call(*arguments: Any, **options: Any) -> Any:
            if before:
                await asyncio.sleep(rng.uniform(0, MAX_DELAY))
            result = await method(*arguments, **options)
            await asyncio.sleep(rng.uniform(0, MAX_DELAY))
            return result

        return call

    for store in (SqliteMessages, SqliteGroups):
        for name, method in inspect.getmembers(store, inspect.iscoroutinefunction):
            if not name.startswith("_"):
                # Messages reach the store in the order of their times: nothing may wait before.
                in_order = (store, name) == (SqliteMessages, "add")
                monkeypatch.setattr(store, name, slow(method, before=not in_order))


class Gate:
    """Holds the calls of a method of the store of messages until `opened` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.begun, self.opened = asyncio.Event(), asyncio.Event()
        method = getattr(SqliteMessages, name)

        async def held(*arguments: Any) -> Any:
            self.begun.set()
            await self.opened.wait()
            return await method(*arguments)

        monkeypatch.setattr(SqliteMessages, name, held)


class FormerMember:
    """A socket that sends rounds of requests about the group without a pause, and answers pings.

    `late` has the frames that the server has certainly sent after `mark`.
    """

    def __init__(self, socket: raw.RawSocket, prefix: str) -> None:
        self.socket = socket
        self.late: list[Frame] = []
        self.frames: list[Frame] = []
        self.rounds = 0  # answered after `mark`
        self._prefix = prefix
        self._marked = False
        self._window = asyncio.Semaphore(IN_FLIGHT)

    async def mark(self) -> None:
        """Frames that arrive after the pong are late."""
        await self.socket.write(raw.frame(b"mark", raw.PING))

    async def write(self) -> None:
        """Send rounds until cancelled: every op, and messages of both sizes. Each message has its own id."""
        number = 0
        while True:
            await self._window.acquire()
            number += 1
            ids = [f"{self._prefix}-{number}-{part}" for part in range(4)]
            sends = [
                raw.request(1, f"{id}\n{text}", to=TEAM) for id, text in zip(ids, ("hi", "hi", BIG, "hi"), strict=True)
            ]
            ops = [(2, "-9"), (3, "5"), (4, ids[0]), (4, "*"), (5, ids[1]), (7, "-9"), (8, str(number % 2))]
            requests = [raw.request(op, content, to=TEAM) for op, content in ops]
            end = raw.request(UNKNOWN_OP)
            await self.socket.write(b"".join((*sends[:2], *requests, *sends[2:], end)))

    async def read(self) -> None:
        """Read until cancelled."""
        while True:
            read = await self.socket.read()
            if read.opcode == raw.PING:
                await self.socket.write(raw.frame(read.payload, raw.PONG))
            elif read.opcode == raw.PONG:
                self._marked = True
            else:
                assert read.opcode == raw.TEXT, read
                self._keep(self.socket.json(read))

    def _keep(self, frame: Frame) -> None:
        if frame["op_type"] == 40000:
            self._window.release()
            self.rounds += self._marked
            return
        self.frames.append(frame)
        if self._marked:
            self.late.append(frame)


@asynccontextmanager
async def member(server: ServerHandle, user: str, name: str, *, sync: bool) -> AsyncIterator[FormerMember]:
    """Open the socket of a member."""
    one = raw.RawSocket(await raw.connect(server), user)
    try:
        await one.write(raw.upgrade(server, user, TEAM, sync=sync))
        assert await one.status() == 101
        yield FormerMember(one, f"{user}-{name}")
    finally:
        one.vanish()


def stored(folder: Path, prefix: str) -> int:
    """The number of stored messages with ids that begin with `prefix`, tombstones included."""
    [(found,)] = sql(folder, "SELECT count(*) FROM messages WHERE id LIKE ?", f"{prefix}%")
    return int(found)


async def flood(server: ServerHandle, folder: Path, end: End, former: str) -> dict[str, list[FormerMember]]:
    """Let 2 and 3 use the group on six sockets while `end` runs. Users in `former` then store nothing more."""
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        members: dict[str, list[FormerMember]] = {"2": [], "3": []}
        for user in ("2", "3"):
            for name, sync in (("a", False), ("b", False), ("s", True)):
                members[user].append(await stack.enter_async_context(member(server, user, name, sync=sync)))
        everyone = [one for some in members.values() for one in some]
        tasks = [group.create_task(work) for one in everyone for work in (one.read(), one.write())]
        await wait_until(lambda: all(any(frame["op_type"] == 40023 for frame in one.frames) for one in everyone))
        await end(server)
        before = [stored(folder, f"{user}-") for user in former]
        for one in everyone:
            await one.mark()
        await wait_until(lambda: all(one.rounds >= MORE_ROUNDS for one in everyone))
        after = [stored(folder, f"{user}-") for user in former]
        for task in tasks:
            task.cancel()
    assert before == after
    assert all(before)
    return members


def check_former(members: list[FormerMember]) -> None:
    """All late answers are refusals, except op 7 without the group, and no late frame is about the group."""
    for one in members:
        for frame in one.late:
            assert frame["to"] == one.socket.user, frame  # not the group, in answers, events and pages
            assert frame.get("reason") == "no_such_group" or frame["op_type"] in (40023, 40027), frame
        reached = [n for n, frame in enumerate(one.frames) if (frame["to"], frame["op_type"]) == (TEAM, 42011)]
        for frame in one.frames[reached[-1] + 1 :] if reached else ():
            assert frame["to"] != TEAM, frame  # its own end is the last frame of the group


# --- frames in progress


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ServerHandle]:
    """A server with the group #team of the users 1, 2 and 3; 1 is the owner."""
    async with serving(tmp_path, users=("1", "2", "3"), StrangerLimit=0) as server:
        await create(server, "1", TEAM, "2", "3")
        yield server


async def check_barrier(server: ServerHandle, folder: Path, end: End) -> None:
    """Users without membership after `end` reach nothing; the others go on, but not with them."""
    former = "23" if end is delete_team else "2"
    members = await flood(server, folder, end, former)
    for user in former:
        check_former(members[user])
    for one in members["3"] if former == "2" else ():
        assert any(frame["op_type"] in (40018, 40019) for frame in one.late)
        for frame in one.late:
            if frame["type"] == 1:
                assert frame["from"] != "2", frame
            if (frame["op_type"], one.socket.user) == (40013, "3"):
                assert frame["from"] != "2", frame


@pytest.mark.parametrize("end", [remove_two, leave, delete_team])
async def test_no_former_member_passes_after_the_answer(server: ServerHandle, tmp_path: Path, end: End) -> None:
    """Six sockets write, read, mark, delete and list without a pause while the membership ends."""
    await check_barrier(server, tmp_path, end)


@pytest.mark.parametrize("end", [remove_two, leave, delete_team])
@pytest.mark.usefixtures("slow_stores")
async def test_no_former_member_passes_slow_stores(server: ServerHandle, tmp_path: Path, end: End) -> None:
    """Each request waits for its store many times before, while and after the membership ends."""
    await check_barrier(server, tmp_path, end)


@pytest.mark.usefixtures("slow_stores")
async def test_an_old_membership_ends_although_a_new_begins(server: ServerHandle, tmp_path: Path) -> None:
    """Requests in progress while 2 is removed and added again show no message before the time of joining."""

    async def join_again(server: ServerHandle) -> None:
        await remove(server, "1", TEAM, "2")
        await add(server, "1", TEAM, "2")

    sockets = await flood(server, tmp_path, join_again, "")
    since = (await members(server, "2", TEAM))["2"]["since"]
    for one in sockets["2"]:
        assert any(frame["op_type"] in (40018, 40019) for frame in one.late)
        for frame in one.late:
            assert frame.get("time", since) >= since, frame


# --- pages in progress


@pytest.mark.parametrize("end", [remove_two, leave, delete_team])
@pytest.mark.parametrize(("op", "content"), [(2, "-200"), (2, "0-200"), (3, "")])
async def test_a_page_to_a_slow_reader_ends(server: ServerHandle, end: End, op: int, content: str) -> None:
    """What the server has given to the connection arrives; then the answer is a refusal."""
    await raw.store_messages(server, "1", TEAM, 250)
    async with raw.chat(server, "2", TEAM, buffer=4096) as two:
        await two.put(op, content)
        await two.wait_stalled()
        await end(server)
        frames = [await two.receive()]
        while frames[-1]["from"] != "System":
            frames.append(await two.receive())
        assert (frames[-1]["op_type"], frames[-1]["reason"]) == (40004, "no_such_group")
        assert 1 < len(frames) < 150


@pytest.mark.parametrize("again", [False, True], ids=["removed", "joins again"])
async def test_a_list_in_progress_leaves_the_group_out(
    server: ServerHandle, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    """Op 7 has read its page, but not sent it, when the membership ends."""
    await raw.store_messages(server, "1", TEAM, 1)
    await create(server, "3", "#other", "2")
    gate = Gate(monkeypatch, "positions")
    async with server.chat("2") as two:
        await two.put(7, "-9")
        await gate.begun.wait()
        await remove_two(server)
        if again:
            await add(server, "1", TEAM, "2")
        gate.opened.set()
        assert [(await two.receive())["to"] for _ in range(2)] == ["#other", "2"]
        assert len(await two.ask(7, "-9")) == 2 + again


# --- read positions in progress


@pytest.mark.parametrize("content", ["m0/1", "*"])
async def test_op_4_in_progress_is_refused(server: ServerHandle, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    """The position is being moved when the membership ends; no other device learns of it."""
    await raw.store_messages(server, "1", TEAM, 1)
    gate = Gate(monkeypatch, "move_position")
    async with server.chat("2", to=TEAM) as two, server.chat("2", sync=True) as device:
        await two.put(4, content)
        await gate.begun.wait()
        await remove_two(server)
        gate.opened.set()
        answer = await two.receive()
        assert (answer["op_type"], answer["reason"]) == (40006, "no_such_group")
        await device.expect_nothing()


async def test_op_4_waits_in_line_while_its_user_leaves(server: ServerHandle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second request of the user begins after the membership has ended."""
    await raw.store_messages(server, "1", TEAM, 1)
    gate = Gate(monkeypatch, "move_position")
    async with server.chat("2", to=TEAM) as two, server.chat("2", to=TEAM) as other:
        await two.put(4, "*")
        await gate.begun.wait()
        await other.put(4, "*")
        await (await other.connection.ping())
        await remove_two(server)
        gate.opened.set()
        for chat in (two, other):
            answer = await chat.receive()
            assert (answer["op_type"], answer["reason"]) == (40006, "no_such_group")


async def test_a_confirmation_in_progress_tells_no_device(
    server: ServerHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pong is being stored when the membership ends."""
    gate = Gate(monkeypatch, "advance")
    async with (
        server.chat("1", to=TEAM) as one,
        server.chat("2") as two,
        server.chat("2", sync=True) as device,
    ):
        await one.send("m1\nhello")
        assert [(await chat.receive())["id"] for chat in (two, device)] == ["m1", "m1"]
        await gate.begun.wait()
        await remove_two(server)
        gate.opened.set()
        assert (await two.answer(3, to=TEAM))["reason"] == "no_such_group"
        await device.expect_nothing()
