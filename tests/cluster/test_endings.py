"""The end of sessions on all processes: after the answer, nothing is stored or delivered, wherever the socket is."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import httpx
import pytest
import websockets

from tests import raw
from tests.cluster.harness import (
    BUSY_SECONDS,
    FREEZE_SECONDS,
    Databases,
    ProcessGroup,
    at_most,
    cluster,
    within,
)
from tests.cluster.relay import FaultyNetwork
from tests.e2e.http_helpers import check_success, post, try_upgrade
from tests.harness import PASSWORD, TIMEOUT, Frame, ServerHandle, run_command, run_py

CLOSE_SECONDS = 1.0
# The user whose sessions end, and a peer who stays.
LEAVING, STAYING = "1", "2"


async def log_out(three: ProcessGroup) -> None:
    check_success(await post(three, "/user/logout", three.tokens[LEAVING], user_name=LEAVING), 41015)


async def change_password(three: ProcessGroup) -> None:
    """From another session, which stays."""
    token = await three.login(LEAVING)
    body = {"user_name": LEAVING, "old_password": PASSWORD, "new_password": "another secret"}
    check_success(await post(three, "/user/set_password", token, **body), 41005)


async def disable(three: ProcessGroup) -> None:
    await three.command("user", "disable", LEAVING)


async def remove(three: ProcessGroup) -> None:
    await three.command("user", "remove", LEAVING, "--messages", "keep")


End = Callable[[ProcessGroup], Awaitable[None]]
ENDINGS = pytest.mark.parametrize("end", [log_out, change_password, disable, remove])
# The answer of these comes from a process of the cluster, which knows the others.
OVER_HTTP = pytest.mark.parametrize("end", [log_out, change_password])


@asynccontextmanager
async def serving(databases: Databases, folder: Path) -> AsyncIterator[ProcessGroup]:
    users = (LEAVING, STAYING)
    async with cluster(folder, databases, 3, users=users, StrangerLimit=0, FramesPerSecond=0) as three:
        yield three


class Sender:
    """A socket that sends as fast as it can until the server closes it; its frames and their arrival, in order."""

    def __init__(self, server: ServerHandle, user: str, to: str, prefix: str) -> None:
        self.code: int | None = None
        self.closed_at = 0.0
        self.acknowledged: list[tuple[str, float]] = []
        self.delivered: list[tuple[str, float]] = []
        self.opened = asyncio.Event()
        self._server, self._user, self._to, self._prefix = server, user, to, prefix

    async def run(self) -> None:
        """Send and receive until the socket ends."""
        loop = asyncio.get_running_loop()
        async with raw.chat(self._server, self._user, self._to) as chat:
            self.opened.set()
            sending = asyncio.create_task(self._send(chat))
            try:
                while (read := await chat.read()).opcode != raw.CLOSE:
                    if read.opcode == raw.TEXT:
                        self._note(chat.json(read), loop.time())
                    elif read.opcode == raw.PING:
                        await chat.write(raw.frame(read.payload, raw.PONG))
                self.code = int.from_bytes(read.payload[:2], "big")
            except (raw.ConnectionCut, ConnectionError):
                pass
            finally:
                self.closed_at = loop.time()
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)

    async def _send(self, chat: raw.RawSocket) -> None:
        number = 0
        with suppress(ConnectionError):
            while True:
                await chat.put(1, f"{self._prefix}{number}\nhello")
                number += 1
                await asyncio.sleep(0.005)

    def _note(self, frame: Frame, now: float) -> None:
        if frame["op_type"] in (40018, 40019):
            self.acknowledged.append((frame["id"], now))
        elif frame["op_type"] == 40011:
            self.delivered.append((frame["id"], now))


async def stored_ids(server: ServerHandle) -> list[str]:
    """Return the ids of the messages of LEAVING."""
    ids: list[str] = []
    async with server.chat(STAYING, LEAVING) as chat:
        total = 0
        while page := [one for one in (await chat.ask(2, f"{total}-200"))[:-1] if one["op_type"] == 40005]:
            total += len(page)
            ids += [frame["id"] for frame in page if frame["from"] == LEAVING]
    return ids


@ENDINGS
async def test_an_ending_under_load_closes_all_sockets(databases: Databases, tmp_path: Path, end: End) -> None:
    """4001 within a second on every process. Nothing is stored after the answer."""
    async with serving(databases, tmp_path) as three:
        leaving = [Sender(process, LEAVING, STAYING, f"l{number}-") for number, process in enumerate(three)]
        staying = Sender(three[0], STAYING, LEAVING, "s-")
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(sender.run()) for sender in leaving]
            other = group.create_task(staying.run())
            for sender in (*leaving, staying):
                await sender.opened.wait()
            await asyncio.sleep(0.5)
            await end(three)
            answered = asyncio.get_running_loop().time()
            at_answer = await stored_ids(three[1])
            await asyncio.wait_for(asyncio.gather(*tasks), TIMEOUT)
            other.cancel()
        assert [sender.code for sender in leaving] == [4001] * 3
        assert max(sender.closed_at for sender in leaving) - answered < CLOSE_SECONDS + BUSY_SECONDS
        await asyncio.sleep(0.5)
        assert await stored_ids(three[2]) == at_answer
        acknowledged = {id for sender in leaving for id, _ in sender.acknowledged}
        assert acknowledged
        assert acknowledged <= set(at_answer)


@OVER_HTTP
async def test_nothing_is_delivered_after_the_answer(databases: Databases, tmp_path: Path, end: End) -> None:
    """A frame that arrived before the answer may wait in a buffer; a message sent after it never arrives."""
    async with serving(databases, tmp_path) as three, AsyncExitStack() as stack:
        leaving = [await stack.enter_async_context(process.chat(LEAVING)) for process in three]
        await end(three)
        async with three[1].chat(STAYING, LEAVING) as two:
            assert (await two.send("late\nhello"))["op_type"] == 40019
        for chat in leaving:
            frames: list[object] = []
            with suppress(websockets.ConnectionClosed):
                while True:
                    frames.append(await chat.connection.recv())
            assert (frames, chat.connection.close_code) == ([], 4001)


@ENDINGS
async def test_upgrades_in_progress_get_no_lasting_socket(databases: Databases, tmp_path: Path, end: End) -> None:
    """Upgrades start on all processes before, during and after the end: each is refused, or closed with 4001."""
    async with serving(databases, tmp_path) as three:
        token = three.tokens[LEAVING]
        codes: list[int] = []
        statuses: set[int] = set()
        ended = asyncio.Event()

        async def open_repeatedly(server: ServerHandle) -> None:
            while not ended.is_set():
                try:
                    async with server.chat(LEAVING, token=token) as chat:
                        codes.append(await chat.wait_closed())
                except websockets.InvalidStatus as error:
                    statuses.add(error.response.status_code)
                    await asyncio.sleep(0.01)

        async with asyncio.TaskGroup() as group:
            for process in three:
                for _ in range(4):
                    group.create_task(open_repeatedly(process))
            await asyncio.sleep(0.3)
            async with asyncio.timeout(TIMEOUT):
                await end(three)
            await asyncio.sleep(CLOSE_SECONDS)
            ended.set()  # a socket that stays open keeps its task, and the test fails by its timeout
        assert codes
        assert set(codes) == {4001}
        assert statuses <= {401, 429}
        for process in three:
            headers = {"Authorization": f"Bearer {token}"}
            assert (await try_upgrade(process, headers, uid=LEAVING)).status_code == 401


@ENDINGS
async def test_an_ending_waits_for_a_frozen_process(databases: Databases, tmp_path: Path, end: End) -> None:
    """The answer comes within 11 s. After SIGCONT, the frozen process processes none of its buffered frames."""
    async with serving(databases, tmp_path) as three, AsyncExitStack() as stack:
        frozen = three[2]
        three.balancer.ports.remove(frozen.port)
        leaving = await stack.enter_async_context(raw.chat(frozen, LEAVING, STAYING))
        two = await stack.enter_async_context(three[0].chat(STAYING, LEAVING))
        async with frozen.frozen():
            for number in range(200):
                await leaving.put(1, f"buffered{number}\nhello")
            async with at_most(FREEZE_SECONDS):
                await end(three)
            await two.send("after\nthe answer")
        frames = await leaving.read_to_end()
        assert [frame for frame in frames if frame["op_type"] != 40008] == []
        assert {frame["reason"] for frame in frames} <= {"store_away"}
        await two.expect_nothing()
        assert await stored_ids(three[1]) == []


async def test_a_command_fails_if_its_subscription_is_half_open(databases: Databases, tmp_path: Path) -> None:
    """It waits for a frozen process, and must not wait for a confirmation that cannot arrive."""
    async with serving(databases, tmp_path) as three, FaultyNetwork(lambda: databases.redis.port).running() as network:
        environ = {**three.environ, "CHAT_REDIS_REDISADDR": f"127.0.0.1:{network.port}"}

        async def subscribed() -> bool:
            return bool(network.subscriptions())

        async with three[2].frozen():
            disabling = asyncio.create_task(run_command("user", "disable", LEAVING, environ=environ))
            await within(TIMEOUT, "subscription of the command", subscribed)
            async with network.half_open(network.subscriptions()), at_most(FREEZE_SECONDS):
                code, _, err = await disabling
        assert code == 1
        assert "run the same command again" in err
        await disable(three)


async def test_messages_are_erased_when_no_process_continues_them(databases: Databases, tmp_path: Path) -> None:
    """tests/contract/test_chain.py shows that the writers then agree; here, only how long the command waits."""
    async with serving(databases, tmp_path) as three:
        command = await run_py("user", "remove", LEAVING, "--messages", "delete", environ=three.environ)
        try:
            assert command.stderr
            async with asyncio.timeout(TIMEOUT):
                assert b"waiting 80 s" in await command.stderr.readline()
        finally:
            command.kill()
            await command.communicate()


async def test_a_frozen_process_delays_only_its_own_endings(databases: Databases, tmp_path: Path) -> None:
    """While one process is frozen, messages between users of the others are stored and delivered at once."""
    async with (
        serving(databases, tmp_path) as three,
        three[2].frozen(),
        three[0].chat(LEAVING, STAYING) as one,
        three[1].chat(STAYING, LEAVING) as two,
    ):
        for number in range(20):
            async with at_most(2):
                assert (await one.send(f"m{number}\nhello"))["op_type"] == 40018
                assert (await two.receive())["id"] == f"m{number}"
            await asyncio.sleep(0.5)


async def test_a_session_ends_on_all_processes_over_http(databases: Databases, tmp_path: Path) -> None:
    async with serving(databases, tmp_path) as three:
        token = three.tokens[LEAVING]
        await log_out(three)

        async def status(server: ServerHandle) -> httpx.Response:
            return await post(server, "/user/logout", token, user_name=LEAVING)

        assert [(await status(process)).status_code for process in three] == [401] * 3
