"""Groups and blocks across processes: everything arrives once, and nothing passes after the answer to a change."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest

from tests.cluster.harness import (
    FREEZE_SECONDS,
    Databases,
    ProcessGroup,
    at_most,
    cluster,
    receive_ids,
    within,
)
from tests.e2e import group_helpers
from tests.e2e.http_helpers import check_refusal, check_success, post
from tests.harness import ChatClient, ServerHandle, wait_until

GROUP = "#g"
USERS = ("1", "2", "3", "4")


@pytest.fixture
async def three(databases: Databases, tmp_path: Path) -> AsyncIterator[ProcessGroup]:
    """Three processes with a group of the users 1 (the owner), 2 and 3."""
    async with cluster(tmp_path, databases, 3, users=USERS, StrangerLimit=0) as processes:
        await group_helpers.create(processes, "1", GROUP, "2", "3")
        yield processes


async def block(server: ServerHandle, user: str, other: str) -> None:
    check_success(await post(server, "/user/block", server.tokens[user], user_name=other), 43001)


async def unblock(server: ServerHandle, user: str, other: str) -> None:
    check_success(await post(server, "/user/unblock", server.tokens[user], user_name=other), 43003)


async def test_a_group_message_reaches_each_socket_once(three: ProcessGroup) -> None:
    async with AsyncExitStack() as stack:
        others = [await stack.enter_async_context(process.chat(user)) for process in three for user in "23"]
        outsider = await stack.enter_async_context(three[1].chat("4"))
        for number, process in enumerate(three):
            one = await stack.enter_async_context(process.chat("1", GROUP))
            assert (await one.send(f"m{number}\nhello"))["op_type"] == 40018
            for chat in others:
                frame = await chat.receive()
                assert (frame["from"], frame["to"], frame["id"]) == ("1", GROUP, f"m{number}")
        for chat in (*others, outsider):
            await chat.expect_nothing()


async def test_changes_of_members_reach_all_processes_once(three: ProcessGroup) -> None:
    """A change on one process is in effect on the others when it is answered."""
    async with (
        three[0].chat("1", sync=True) as one,
        three[1].chat("2", sync=True) as two,
        three[2].chat("4", sync=True) as four,
    ):
        await group_helpers.add(three[0], "1", GROUP, "4")
        for chat in (one, two, four):
            assert await chat.receive_change() == (GROUP, ["+4"])
        assert (await four.send("m1\nhello", to=GROUP))["op_type"] == 40018
        for chat in (one, two):
            assert await receive_ids(chat, 1) == ["m1"]
        await group_helpers.remove(three[1], "1", GROUP, "4")
        for chat in (one, two, four):
            assert await chat.receive_change() == (GROUP, ["-4"])
        assert (await four.send("m2\nhello", to=GROUP))["reason"] == "no_such_group"
        await group_helpers.remove(three[2], "1", GROUP, "1")
        assert await one.receive_change() == (GROUP, ["-1"])
        assert await two.receive_change() == (GROUP, ["-1", "!2"])
        for chat in (one, two, four):
            await chat.expect_no_change()
            await chat.expect_nothing()


async def test_a_removed_user_leaves_groups_on_all_processes(databases: Databases, tmp_path: Path) -> None:
    """`user remove` returns when they do, long before a heartbeat."""
    async with cluster(tmp_path, databases, 3, users=USERS, StrangerLimit=0, HeartbeatSeconds=600) as three:
        await group_helpers.create(three, "1", GROUP, "2", "3")
        async with three[1].chat("2", sync=True) as two, three[2].chat("3", sync=True) as other:
            for chat in (two, other):
                await chat.answer(7, "-10")  # its process loads the group
            await three.command("user", "remove", "1", "--messages", "keep")
            async with at_most(1):
                for chat in (two, other):
                    assert await chat.receive_change() == (GROUP, ["-1", "!2"])
            for process in three:
                members = await group_helpers.members(process, "3", GROUP)
                assert {name: member["owner"] for name, member in members.items()} == {"2": True, "3": False}
            assert (await two.send("hello", to="1"))["reason"] == "no_such_user"
            for chat in (two, other):
                await chat.expect_no_change()


async def test_a_process_that_was_frozen_knows_a_removal(databases: Databases, tmp_path: Path) -> None:
    """It had the name and the group in its caches, and finds the change when it joins again."""
    async with cluster(tmp_path, databases, 3, users=USERS, StrangerLimit=0, HeartbeatSeconds=600) as three:
        await group_helpers.create(three, "1", GROUP, "2", "3")
        async with three[2].chat("2", "1") as two:
            assert (await two.send("m1\nhello"))["op_type"] == 40019
            assert (await two.send("m1\nhello", to=GROUP))["op_type"] == 40019
            async with three[2].frozen():
                await three.command("user", "remove", "1", "--messages", "keep")

            async def recovered() -> bool:
                return (await two.answer(2, "-1")).get("reason") != "store_away"

            await within(FREEZE_SECONDS, "lease of the process", recovered)
            assert (await two.send("m2\nhello"))["reason"] == "no_such_user"
            members = await group_helpers.members(three[2], "2", GROUP)
            assert set(members) == {"2", "3"}


async def test_the_first_message_of_a_new_member_passes_at_once(three: ProcessGroup) -> None:
    """Each process may hold an older list of members when the change is made elsewhere."""
    async with AsyncExitStack() as stack:
        fours = [await stack.enter_async_context(process.chat("4")) for process in three]
        for number in range(10):
            changed, sends, asks = three[number % 3], fours[(number + 1) % 3], fours[(number + 2) % 3]
            await group_helpers.add(changed, "1", GROUP, "4")
            assert (await sends.send(f"m{number}\nhello", to=GROUP))["op_type"] == 40019
            assert (await asks.answer(2, "-1", to=GROUP))["op_type"] == 40005
            await group_helpers.remove(changed, "1", GROUP, "4")
            assert (await sends.send("late\nhello", to=GROUP))["reason"] == "no_such_group"
            assert (await asks.answer(2, "-1", to=GROUP))["reason"] == "no_such_group"


class Flood:
    """A socket that sends to a conversation until `stop`; the ids that were acknowledged."""

    def __init__(self, chat: ChatClient, to: str) -> None:
        self.acknowledged: list[str] = []
        self.refused: set[str] = set()
        self._chat, self._to = chat, to
        self._stopping = False

    @asynccontextmanager
    async def running(self, prefix: str) -> AsyncIterator[None]:
        """Send until the end."""

        async def run() -> None:
            number = 0
            while not self._stopping:
                await self._chat.put(1, f"{prefix}{number}\nhello", to=self._to)
                while (answer := await self._chat.receive())["from"] != "System":
                    pass
                number += 1
                if answer["op_type"] in (40018, 40019):
                    self.acknowledged.append(answer["id"])
                else:
                    self.refused.add(answer["reason"])

        task = asyncio.create_task(run())
        try:
            yield
        finally:
            self._stopping = True
            await task


async def ids_in(server: ServerHandle, user: str, to: str, sender: str) -> list[str]:
    """Return the ids of a sender's messages in a conversation."""
    found: list[str] = []
    async with server.chat(user) as chat:
        total = 0
        while page := [one for one in (await chat.ask(2, f"{total}-200", to=to))[:-1] if one["type"] == 2]:
            total += len(page)
            found += [frame["id"] for frame in page if frame["from"] == sender]
    return found


@pytest.mark.parametrize("change", ["remove", "block"])
async def test_nothing_passes_after_the_answer_to_a_change(three: ProcessGroup, change: str) -> None:
    """User 2 floods on every process. What is stored and delivered at the answer is all that ever is."""
    to = GROUP if change == "remove" else "1"
    async with AsyncExitStack() as stack:
        chats = [await stack.enter_async_context(process.chat("2")) for process in three]
        floods = [Flood(chat, to) for chat in chats]
        for number, flood in enumerate(floods):
            await stack.enter_async_context(flood.running(f"f{number}-"))
        await wait_until(lambda: all(flood.acknowledged for flood in floods), "every socket floods")
        if change == "remove":
            await group_helpers.remove(three[0], "1", GROUP, "2")
        else:
            await block(three[0], "1", "2")
        peer = GROUP if change == "remove" else "2"
        at_answer = await ids_in(three[1], "1", peer, "2")
        # A socket opened after the answer gets nothing live either.
        one = await stack.enter_async_context(three[2].chat("1"))
        await asyncio.sleep(0.5)
        await one.expect_nothing()
        assert await ids_in(three[2], "1", peer, "2") == at_answer
    reason = "no_such_group" if change == "remove" else "refused_by_limit"
    for flood in floods:
        assert flood.acknowledged
        assert set(flood.acknowledged) <= set(at_answer)
        assert flood.refused == {reason}


async def test_the_own_removal_is_the_last_frame_of_a_group(three: ProcessGroup) -> None:
    """Also if another process tells later what the user's other device and another member did before."""
    async with (
        three[0].chat("2") as writing,
        three[0].chat("3", GROUP) as typing,
        three[1].chat("2", sync=True) as listening,
    ):
        flood = Flood(writing, GROUP)
        async with flood.running("f"):
            assert await listening.receive()
            three[0].redis.delay = 0.5
            await typing.put(8, "1")
            await group_helpers.remove(three[2], "1", GROUP, "2")
            three[0].redis.delay = 0
        codes = []
        with suppress(TimeoutError):
            while True:
                text = await asyncio.wait_for(listening.connection.recv(), 1)
                codes.append(json.loads(text)["op_type"])
    assert flood.refused == {"no_such_group"}
    assert codes.index(42011) == len(codes) - 1


@pytest.mark.parametrize("change", ["remove", "block"])
async def test_a_change_waits_for_a_frozen_process(three: ProcessGroup, change: str) -> None:
    """The answer comes within 11 s, and no frame in a buffer of the frozen process is stored afterwards."""
    to = GROUP if change == "remove" else "1"
    three.balancer.ports.remove(three[2].port)
    async with three[2].chat("2") as two:
        await two.send("m0\nhello", to=to)  # the process now has the group, or the pair, in memory
        async with three[2].frozen():
            for number in range(50):
                await two.put(1, f"buffered{number}\nhello", to=to)
            async with at_most(FREEZE_SECONDS):
                if change == "remove":
                    await group_helpers.remove(three[0], "1", GROUP, "2")
                else:
                    await block(three[0], "1", "2")
        answers = [await two.receive() for _ in range(50)]
        assert [answer for answer in answers if answer["op_type"] in (40018, 40019)] == []
    assert await ids_in(three[1], "1", GROUP if change == "remove" else "2", "2") == ["m0"]


async def test_a_block_applies_on_every_process(three: ProcessGroup) -> None:
    """In both directions, for typing and for the online flags; an unblock too."""
    async with AsyncExitStack() as stack:
        ones = [await stack.enter_async_context(process.chat("1", "2", sync=True)) for process in three]
        twos = [await stack.enter_async_context(process.chat("2", "1", sync=True)) for process in three]
        for number in range(3):
            await block(three[number], "1", "2")
            for chat in twos:
                assert (await chat.answer(1, "hello"))["reason"] == "refused_by_limit"
                await chat.put(8, "1")
            for chat in ones:
                assert (await chat.answer(1, "hello"))["reason"] == "you_blocked"
            for chat in (*ones, *twos):
                await chat.expect_nothing()
            await unblock(three[number], "1", "2")
            assert (await twos[(number + 1) % 3].answer(1, f"m{number}\nhello"))["op_type"] == 40018
            for chat in ones:
                assert await receive_ids(chat, 1) == [f"m{number}"]
            for position, chat in enumerate(twos):
                if position != (number + 1) % 3:
                    assert await receive_ids(chat, 1) == [f"m{number}"]


async def test_a_deleted_group_is_gone_on_every_process(three: ProcessGroup) -> None:
    """A new group with the old name shows no old message on any process."""
    async with AsyncExitStack() as stack:
        twos = [await stack.enter_async_context(process.chat("2", sync=True)) for process in three]
        await twos[0].send("old\nhello", to=GROUP)
        await group_helpers.delete(three[0], "1", GROUP)
        for number, chat in enumerate(twos):
            assert (await chat.receive_change())[1][-1] == "-2"
            assert (await chat.answer(1, f"late{number}\nhello", to=GROUP))["reason"] == "no_such_group"
        await group_helpers.create(three[1], "2", GROUP, "3")
        for process in three:
            async with process.chat("3") as third:
                assert len(await third.ask(2, "-10", to=GROUP)) == 1
    check_refusal(await group_helpers.ask_members(three[2], "1", GROUP), 404, 42008, "no_such_group", "group")


async def test_read_positions_are_told_to_other_processes(three: ProcessGroup) -> None:
    """Op 4 and 40013 on one process reach the sync sockets on the others once."""
    async with (
        three[0].chat("1") as one,
        three[1].chat("2", sync=True) as two,
        three[2].chat("2", sync=True) as two_elsewhere,
    ):
        await one.send("m1\nhello", to=GROUP)
        for chat in (two, two_elsewhere):
            assert await receive_ids(chat, 1) == ["m1"]
        assert (await two.answer(4, "m1/1", to=GROUP))["op_type"] == 40007
        read = await two_elsewhere.receive()
        assert (read["op_type"], read["to"], read["content"]) == (40007, GROUP, "m1/1")
        assert (await one.answer(5, "m1", to=GROUP))["op_type"] == 40013
        for chat in (two, two_elsewhere):
            deleted = await chat.receive()
            assert (deleted["op_type"], deleted["content"]) == (40013, "m1/1")
            await chat.expect_nothing()


async def test_a_group_has_one_owner_and_one_name_on_all(three: ProcessGroup) -> None:
    """Simultaneous creations of one name on all processes: exactly one succeeds."""
    answers = await asyncio.gather(
        *(
            post(process, "/group/create", three.tokens[user], group="#new", users=[])
            for process in three
            for user in "12"
        )
    )
    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 5
