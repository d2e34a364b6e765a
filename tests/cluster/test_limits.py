"""Limits per user and per address hold across processes. FramesPerSecond and SocketsPerAddress are per process."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import websockets

from tests.cluster.harness import (
    FREEZE_SECONDS,
    KILL_SECONDS,
    Databases,
    cluster,
    within,
)
from tests.e2e.http_helpers import check_refusal, post, try_login, try_upgrade
from tests.harness import ChatClient, Frame, ServerHandle

SOCKETS, LIMIT = 32, 5


async def try_open(stack: AsyncExitStack, server: ServerHandle) -> bool:
    """Open a socket of user 1 until the stack ends; return False if it is refused with 429."""
    try:
        await stack.enter_async_context(server.chat("1"))
    except websockets.InvalidStatus as error:
        if error.response.status_code != 429:
            raise
        return False
    return True


@pytest.mark.parametrize("same", [False, True])
async def test_32_sockets_send_exactly_stranger_limit(databases: Databases, tmp_path: Path, same: bool) -> None:
    """`same`: all sockets also send the same ids, which are retries of each other."""
    async with (
        cluster(tmp_path, databases, 4, users=("1", "2"), StrangerLimit=LIMIT, SocketsPerUser=SOCKETS) as four,
        AsyncExitStack() as stack,
    ):
        sockets = [await stack.enter_async_context(four[n % 4].chat("1", "2")) for n in range(SOCKETS)]

        async def send(number: int, chat: ChatClient) -> list[Frame]:
            return [await chat.send(f"m{n if same else f'{number}-{n}'}\nhello") for n in range(LIMIT * 2)]

        all_answers = await asyncio.gather(*(send(n, chat) for n, chat in enumerate(sockets)))
        answers = [answer for of_one in all_answers for answer in of_one]
        accepted = {answer["id"] for answer in answers if answer["op_type"] in (40018, 40019)}
        assert len(accepted) == LIMIT
        assert {answer["op_type"] for answer in answers} == {40019, 40020}
        async with four.chat("2", "1", sync=True) as two:
            assert {frame["id"] for frame in (await two.ask(3))[:-1]} == accepted


async def test_sockets_per_user_holds_across_processes(databases: Databases, tmp_path: Path) -> None:
    """A closed socket frees its place for every process."""
    async with cluster(tmp_path, databases, 3, users=("1",), SocketsPerUser=6) as three, AsyncExitStack() as stack:
        sockets = [await stack.enter_async_context(three[n % 3].chat("1")) for n in range(6)]
        headers = {"Authorization": f"Bearer {three.tokens['1']}"}
        for process in three:
            check_refusal(await try_upgrade(process, headers, uid="1"), 429, 40014, "too_many")
        await sockets[0].connection.close()

        async def free() -> bool:
            try:
                await stack.enter_async_context(three[2].chat("1"))
            except Exception as error:
                assert "429" in str(error)  # noqa: PT017
                return False
            return True

        await within(KILL_SECONDS, "the place of the closed socket is free", free)
        check_refusal(await try_upgrade(three[1], headers, uid="1"), 429, 40014, "too_many")


async def test_simultaneous_upgrades_do_not_exceed_the_limit(databases: Databases, tmp_path: Path) -> None:
    async with cluster(tmp_path, databases, 4, users=("1",), SocketsPerUser=6) as four, AsyncExitStack() as stack:
        opened = await asyncio.gather(*(try_open(stack, four[n % 4]) for n in range(24)))
        assert sum(opened) == 6


@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_a_dead_process_frees_the_places_of_its_sockets(databases: Databases, tmp_path: Path, how: str) -> None:
    async with cluster(tmp_path, databases, 3, users=("1",), SocketsPerUser=3) as three, AsyncExitStack() as stack:
        for _ in range(3):
            await stack.enter_async_context(three[2].chat("1"))
        headers = {"Authorization": f"Bearer {three.tokens['1']}"}
        check_refusal(await try_upgrade(three[0], headers, uid="1"), 429, 40014, "too_many")
        if how == "killed":
            await three[2].kill()
        else:
            await stack.enter_async_context(three[2].frozen())

        async def free() -> bool:
            try:
                async with three[0].chat("1"):
                    return True
            except Exception as error:
                assert "429" in str(error)  # noqa: PT017
                return False

        await within(KILL_SECONDS if how == "killed" else FREEZE_SECONDS, "the places are free", free)


async def test_broadcasts_per_minute_holds_across_processes(databases: Databases, tmp_path: Path) -> None:
    async with cluster(tmp_path, databases, 3, users=("1",), BroadcastsPerMinute=6) as three, AsyncExitStack() as stack:
        chats = [await stack.enter_async_context(process.chat("1")) for process in three]
        answers = [await chats[n % 3].answer(6, "to all") for n in range(9)]
        assert [answer["op_type"] for answer in answers] == [40009] * 6 + [40008] * 3
        assert {answer["reason"] for answer in answers[6:]} == {"too_many"}


async def test_failed_logins_count_across_processes(databases: Databases, tmp_path: Path) -> None:
    async with cluster(tmp_path, databases, 3, users=("1",), LoginFailures=4) as three:
        answers = [await try_login(three[n % 3], "1", "wrong password") for n in range(6)]
        assert [answer.status_code for answer in answers] == [401] * 4 + [429] * 2


async def test_registrations_count_across_processes(databases: Databases, tmp_path: Path) -> None:
    async with cluster(tmp_path, databases, 3, RegistrationsPerHour=4) as three:
        bodies = [{"user_name": f"new{n}", "password": "secret1"} for n in range(6)]
        answers = [await post(three[n % 3], "/user/register", **body) for n, body in enumerate(bodies)]
        assert [answer.status_code for answer in answers] == [200] * 4 + [429] * 2


async def test_one_name_is_registered_once_on_all_processes(databases: Databases, tmp_path: Path) -> None:
    async with cluster(tmp_path, databases, 4) as four:
        body = {"user_name": "new", "password": "secret1"}
        answers = await asyncio.gather(*(post(four[n % 4], "/user/register", **body) for n in range(8)))
        assert sorted(answer.status_code for answer in answers) == [200] + [409] * 7


async def test_typing_is_limited_on_each_socket(databases: Databases, tmp_path: Path) -> None:
    """Two sockets on two processes each pass one `1` in two seconds, as on one process."""
    async with (
        cluster(tmp_path, databases, 3, users=("1", "2"), StrangerLimit=0) as three,
        three[0].chat("1", "2") as one,
        three[1].chat("1", "2") as other,
        three[2].chat("2", sync=True) as two,
    ):
        for _ in range(5):
            for chat in (one, other):
                await chat.put(8, "1")
        assert [(await two.receive())["op_type"] for _ in range(2)] == [40025, 40025]
        await two.expect_nothing()
