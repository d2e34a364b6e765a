"""Messages and events reach sockets on every process exactly once; codes, flags and counts cover all processes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from chat_server.service.presence import GRACE_SECONDS
from tests.cluster.harness import (
    FREEZE_SECONDS,
    KILL_SECONDS,
    Databases,
    ProcessGroup,
    at_most,
    cluster,
    is_online,
    within,
)
from tests.cluster.traffic import LIVE_SECONDS
from tests.e2e.http_helpers import check_success, post


@pytest.fixture
async def three(databases: Databases, tmp_path: Path) -> AsyncIterator[ProcessGroup]:
    """Three processes; the users 1, 2 and 3 may write to each other."""
    async with cluster(tmp_path, databases, 3, users=("1", "2", "3"), StrangerLimit=0) as processes:
        yield processes


async def test_a_message_reaches_sockets_on_every_process(three: ProcessGroup) -> None:
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(three[0].chat("1", "2"))
        sockets = [await stack.enter_async_context(process.chat("2", "1")) for process in three]
        for number, process in enumerate(three):
            sender = await stack.enter_async_context(process.chat("1", "2"))
            assert (await sender.send(f"m{number}\nhello"))["op_type"] == 40018
            for chat in sockets:
                assert (await chat.receive())["id"] == f"m{number}"
        for chat in (*sockets, one):
            await chat.expect_nothing()


async def test_the_balancer_spreads_sockets_over_all_processes(three: ProcessGroup) -> None:
    async with AsyncExitStack() as stack:
        chats = [await stack.enter_async_context(three.chat("1")) for _ in range(6)]
        assert {three.process_of(chat) for chat in chats} == set(three)


async def test_40018_needs_a_socket_on_any_process(three: ProcessGroup) -> None:
    async with three[0].chat("1", "2") as one:
        assert (await one.send("m1\nhello"))["op_type"] == 40019
        for number, process in enumerate(three):
            async with process.chat("2", "1"):
                assert (await one.send(f"online{number}\nhello"))["op_type"] == 40018

            async def offline() -> bool:
                return bool((await one.send("again"))["op_type"] == 40019)

            await within(KILL_SECONDS, "40019 after the last socket closed", offline)


async def test_a_retry_on_another_process_is_not_delivered_again(three: ProcessGroup) -> None:
    """Unread or confirmed, the receiver's process knows what it has delivered."""
    async with three[0].chat("1", "2") as one, three[1].chat("1", "2") as again, three[2].chat("2", "1") as two:
        first = await one.send("m1\nhello")
        assert (await two.receive())["id"] == "m1"
        retry = await again.send("m1\nhello")
        assert (retry["op_type"], retry["time"]) == (first["op_type"], first["time"])
        await two.expect_nothing()
        assert (await again.send("m1\nanother text"))["reason"] == "id_used"


async def test_a_broadcast_counts_and_reaches_each_user_once(three: ProcessGroup) -> None:
    """A user with sockets on two processes counts once, and each of its sockets gets the message once."""
    async with (
        three[0].chat("1") as one,
        three[1].chat("2") as two,
        three[2].chat("2") as other_two,
        three[2].chat("3") as third,
    ):
        answer = await one.answer(6, "to all")
        assert (answer["op_type"], answer["content"]) == (40009, "2")
        for chat in (two, other_two, third):
            assert (await chat.receive())["to"] == "ALL"
            await chat.expect_nothing()


async def test_sync_notices_reach_other_processes_once(three: ProcessGroup) -> None:
    """The copy of a sent message, 40007 after op 4 and after a pong, and 40013."""
    async with (
        three[0].chat("1", "2") as one,
        three[1].chat("1", sync=True) as one_elsewhere,
        three[2].chat("2", "1", sync=True) as two,
        three[1].chat("2", "1", sync=True) as two_elsewhere,
    ):
        await one.send("m1\nhello")
        assert (await one_elsewhere.receive())["id"] == "m1"
        for chat in (two, two_elsewhere):
            assert (await chat.receive())["id"] == "m1"
        assert (await two.answer(4, "m1"))["op_type"] == 40007
        for chat in (one_elsewhere, two_elsewhere):
            read = await chat.receive()
            assert (read["from"], read["op_type"], read["content"]) == ("2", 40007, "m1")
        assert (await two.answer(5, "m1"))["op_type"] == 40013
        for chat in (one_elsewhere, two_elsewhere):
            deleted = await chat.receive()
            assert (deleted["from"], deleted["op_type"], deleted["content"]) == ("2", 40013, "<m1")
        for chat in (one, one_elsewhere, two, two_elsewhere):
            await chat.expect_nothing()


async def test_a_pong_on_one_process_is_told_on_another(three: ProcessGroup) -> None:
    async with three[0].chat("1", "2", sync=True) as one, three[1].chat("2", "1") as two:
        await one.send("m1\nhello")
        assert (await two.receive())["id"] == "m1"
        read = await one.receive()
        assert (read["op_type"], read["content"]) == (40007, "m1")
        async with three[2].chat("2", "1") as again:
            assert [frame["from"] for frame in await again.ask(3)] == ["System"]
        await one.expect_nothing()


async def test_typing_reaches_sync_sockets_of_other_processes_once(three: ProcessGroup) -> None:
    async with (
        three[0].chat("1", "2") as one,
        three[1].chat("2", sync=True) as two,
        three[2].chat("2", sync=True) as two_elsewhere,
        three[2].chat("2") as plain,
    ):
        for content in "10":
            await one.put(8, content)
            for chat in (two, two_elsewhere):
                frame = await chat.receive()
                assert (frame["op_type"], frame["content"]) == (40025, content)
        for chat in (two, two_elsewhere, plain):
            await chat.expect_nothing()


async def make_offline_contacts(three: ProcessGroup) -> None:
    """Let 1 and 2 write to each other. Return when process 0 knows 2 as offline."""
    await three.make_contacts("1", "2")
    async with three[0].chat("1", "2") as one:

        async def offline() -> bool:
            return not await is_online(one, "2")

        await within(GRACE_SECONDS + 1, "op 7 reports the user as offline", offline)


async def test_presence_covers_all_processes(three: ProcessGroup) -> None:
    """Moving to another process within five seconds is not announced; leaving the last one is, once."""
    await make_offline_contacts(three)
    async with three[0].chat("1", sync=True) as one:
        async with three[1].chat("2"):
            assert await one.receive_presence() == ["+2"]
            assert await is_online(one, "2")
        async with three[2].chat("2"):
            await asyncio.sleep(GRACE_SECONDS + 1)
            await one.expect_no_presence()
            assert await is_online(one, "2")
        assert await one.receive_presence() == ["-2"]
        assert not await is_online(one, "2")
        await one.expect_no_presence()


async def test_40021_reaches_all_sockets_of_the_refused_sender(databases: Databases, tmp_path: Path) -> None:
    async with cluster(tmp_path, databases, 3, users=("1", "2"), StrangerLimit=1) as three, AsyncExitStack() as stack:
        ones = [await stack.enter_async_context(process.chat("1", "2")) for process in three]
        assert (await ones[0].send("m1\nhello"))["op_type"] == 40019
        assert (await ones[1].send("m2\nhello"))["op_type"] == 40020
        async with three[2].chat("2", "1") as two:
            await two.send("a1\nanswer")
        for one in ones:
            assert sorted([(await one.receive())["op_type"] for _ in range(2)]) == [40011, 40021]
            await one.expect_nothing()
        assert (await ones[0].send("m3\nhello"))["op_type"] == 40019


async def test_the_members_of_a_group_are_online_on_any_process(three: ProcessGroup) -> None:
    body = {"group": "#g", "users": ["2"]}
    async with three[1].chat("2", "1") as two:
        await two.send("h1\nhello")
        check_success(await post(three[2], "/group/create", three.tokens["1"], **body), 42001)
        async with three[0].client() as client:
            headers = {"Authorization": f"Bearer {three.tokens['1']}"}
            found = await client.get("/group/members", params={"group": "#g"}, headers=headers)
        members = {member["user_name"]: member["online"] for member in check_success(found, 42009)}
        assert members == {"1": False, "2": True}


async def test_users_of_a_killed_process_are_offline_within_a_second(three: ProcessGroup) -> None:
    """40019, the count of op 6, and after the usual five seconds op 7 and presence."""
    await make_offline_contacts(three)
    async with three[0].chat("1", "2", sync=True) as one, three[1].chat("2", "1"):
        assert await one.receive_presence() == ["+2"]
        await three[1].kill()

        async def offline() -> bool:
            return bool((await one.send("hello"))["op_type"] == 40019)

        async def uncounted() -> bool:
            return bool((await one.answer(6, "to all"))["content"] == "0")

        await within(KILL_SECONDS, "40019", offline)
        await within(KILL_SECONDS, "op 6 counts no user", uncounted)
        async with at_most(GRACE_SECONDS + KILL_SECONDS):
            assert await one.receive_presence() == ["-2"]
        assert not await is_online(one, "2")


async def test_users_of_a_frozen_process_are_offline_in_11_seconds(three: ProcessGroup) -> None:
    """After SIGCONT, they are online again."""
    await three.make_contacts("1", "2")
    async with three[0].chat("1", "2") as one, three[1].chat("2", "1"):

        async def offline() -> bool:
            return bool((await one.send("hello"))["op_type"] == 40019)

        async def flag_is_off() -> bool:
            return not await is_online(one, "2")

        async def flag_is_on() -> bool:
            return await is_online(one, "2")

        async with three[1].frozen():
            await within(FREEZE_SECONDS, "40019", offline)
            await within(GRACE_SECONDS + 1, "op 7 reports the user as offline", flag_is_off)
        await within(LIVE_SECONDS, "op 7 reports the user as online", flag_is_on)


async def test_a_lifted_limit_is_told_after_a_kill(databases: Databases, tmp_path: Path) -> None:
    """40021 comes from the process that stored the answer; the death of a third process does not delay it."""
    async with (
        cluster(tmp_path, databases, 3, users=("1", "2"), StrangerLimit=1) as three,
        three[0].chat("1", "2") as one,
        three[1].chat("2", "1") as two,
    ):
        await one.send("m1\nhello")
        assert (await one.send("m2\nhello"))["op_type"] == 40020
        await three[2].kill()
        async with at_most(KILL_SECONDS):
            await two.put(1, "a1\nanswer")
            assert sorted([(await one.receive())["op_type"] for _ in range(2)]) == [40011, 40021]
