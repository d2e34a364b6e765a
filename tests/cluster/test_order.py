"""Two processes write to one conversation at the same moment, and MongoDB delays one of them.

The delayed message has the earlier time but is stored later. It may be seen late, but no cursor (`+N@ID`, op 3, `*`, a
read position, `-N@USER`) passes it.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from tests.cluster.harness import Databases, ProcessGroup, cluster, receive_ids
from tests.e2e import group_helpers
from tests.harness import ChatClient, Frame, wait_until

GROUP = "#g"
WALK_PAGE = 7


@pytest.fixture
async def three(databases: Databases, tmp_path: Path) -> AsyncIterator[ProcessGroup]:
    """Three processes with a group of the users 1, 2 and 3, and time for held requests."""
    users = ("1", "2", "3")
    async with cluster(tmp_path, databases, 3, users=users, StrangerLimit=0, StoreTimeout=20) as processes:
        await group_helpers.create(processes, "1", GROUP, "2", "3")
        yield processes


@asynccontextmanager
async def late_message(three: ProcessGroup, one: ChatClient, two: ChatClient, to: str) -> AsyncIterator[None]:
    """Let `one` send "late", which process 0 has given a time but MongoDB has not, and then `two` send "early".

    At the end, MongoDB stores "late", and both messages are acknowledged.
    """
    async with three[0].mongodb.holding(b"held back") as held:
        await one.put(1, "late\nheld back", to=to)
        await held.wait()
        await two.put(1, "early\nhello", to="1" if to == "2" else to)
        await asyncio.sleep(0.5)  # "early" may be stored and acknowledged, or wait for "late"
        yield
    for chat, id in ((one, "late"), (two, "early")):
        while (answer := await chat.receive())["from"] != "System":
            pass
        assert (answer["op_type"] in (40018, 40019), answer["id"]) == (True, id)


async def page(chat: ChatClient, op_type: int, content: str, to: str) -> list[Frame]:
    """Return the messages of a page, without live messages."""
    *frames, last = await chat.ask(op_type, content, to=to)
    assert last["op_type"] == 40005, last
    return [frame for frame in frames if frame["type"] == 2]


def reference(frame: Frame, to: str) -> str:
    """Return the reference of a message in ops 2 and 4."""
    return f"{frame['id']}/{frame['from']}" if to == GROUP else f"{'>' if frame['from'] == '2' else '<'}{frame['id']}"


@pytest.mark.parametrize("to", ["2", GROUP])
async def test_a_walk_finds_a_message_stored_late(three: ProcessGroup, to: str) -> None:
    """A reader pages with `+N@ID` from the newest message it has seen."""
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(three[0].chat("1"))
        two = await stack.enter_async_context(three[1].chat("2"))
        reader = await stack.enter_async_context(three[2].chat("2"))
        peer = "1" if to == "2" else to
        await one.send("first\nhello", to=to)
        seen = await page(reader, 2, "-10", peer)
        async with late_message(three, one, two, to):
            for _ in range(3):
                seen += await page(reader, 2, f"+10@{reference(seen[-1], to)}", peer)
        while more := await page(reader, 2, f"+10@{reference(seen[-1], to)}", peer):
            seen += more
        stored = await page(reader, 2, "0-100", peer)
        assert [frame["id"] for frame in seen] == [frame["id"] for frame in stored]
        assert {frame["id"] for frame in seen} == {"first", "early", "late"}
        assert [frame["time"] for frame in stored] == sorted(frame["time"] for frame in stored)


@pytest.mark.parametrize("to", ["2", GROUP])
async def test_op_3_and_a_star_skip_no_message_stored_late(three: ProcessGroup, to: str) -> None:
    """A sync socket reads what is unread, marks everything with `*`, and then finds the late message as unread."""
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(three[0].chat("1"))
        peer = "1" if to == "2" else to
        user = "2" if to == "2" else "3"
        # In the private conversation, only messages of 1 are unread for 2, so both are from 1.
        sender = await stack.enter_async_context(three[1].chat("1" if to == "2" else "2"))
        async with three[0].mongodb.holding(b"held back") as held:
            await one.put(1, "late\nheld back", to=to)
            await held.wait()
            await sender.put(1, "early\nhello", to=to)
            await asyncio.sleep(0.5)
            async with three[2].chat(user, sync=True) as reader:
                found = await page(reader, 3, "", peer)
                assert (await reader.answer(4, "*", to=peer))["op_type"] == 40007
        async with asyncio.timeout(20):
            for chat, id in ((one, "late"), (sender, "early")):
                while (answer := await chat.receive()).get("id") != id or answer["from"] != "System":
                    pass
        async with three[1].chat(user, sync=True) as reader:
            found += await page(reader, 3, "", peer)
        # "late" was marked by no `*`: it was not stored when that was answered. "early" may have been marked unseen.
        assert "late" in [frame["id"] for frame in found]


async def test_a_pong_moves_no_position_past_a_late_message(three: ProcessGroup) -> None:
    """The member confirms "early" on a plain socket; "late" stays unread until it is delivered and confirmed."""
    async with (
        three[0].chat("1") as one,
        three[1].chat("2") as two,
        three[2].chat("3", GROUP) as third,
    ):
        async with late_message(three, one, two, GROUP):
            await asyncio.sleep(0.5)
        assert set(await receive_ids(third, 2)) == {"early", "late"}

        async def read() -> bool:
            return not await page(third, 3, "", GROUP)

        await wait_until(read, "both messages are read")
    async with three[0].chat("1") as one, three[1].chat("2") as two:
        async with late_message_unseen(three, one, two), three[2].chat("3", GROUP) as third:
            await third.expect_nothing()
        async with three[2].chat("3", GROUP, sync=True) as third:
            assert "late2" in [frame["id"] for frame in await page(third, 3, "", GROUP)]


async def test_pongs_in_another_order_move_a_position(three: ProcessGroup) -> None:
    """A message is delivered, and its delivery confirmed, after that of a later message of another process."""
    async with (
        three[0].chat("1") as one,
        three[1].chat("2") as two,
        three[2].chat("3", GROUP) as third,
    ):
        async with three[0].redis.holding(b"held back") as held:
            await one.put(1, "first\nheld back", to=GROUP)
            await held.wait()
            await two.put(1, "second\nhello", to=GROUP)
            assert await receive_ids(third, 1) == ["second"]
            assert [frame["id"] for frame in await page(third, 3, "", GROUP)] == ["first", "second"]
        assert await receive_ids(third, 1) == ["first"]

        async def read() -> bool:
            return not await page(third, 3, "", GROUP)

        await wait_until(read, "both messages are read")


@asynccontextmanager
async def late_message_unseen(three: ProcessGroup, one: ChatClient, two: ChatClient) -> AsyncIterator[None]:
    """As `late_message`, with no socket of the third member open when "late2" is stored."""
    async with three[0].mongodb.holding(b"held again") as held:
        await one.put(1, "late2\nheld again", to=GROUP)
        await held.wait()
        await two.put(1, "early2\nhello", to=GROUP)
        await receive_answer(two, "early2")  # it is stored, so a socket opened from now on does not get it live
        yield
    await receive_answer(one, "late2")


async def receive_answer(chat: ChatClient, id: str) -> None:
    """Read frames up to the server's answer to the message with this id."""
    while (answer := await chat.receive())["from"] != "System" or answer["id"] != id:
        pass


@pytest.mark.parametrize("to", ["2", GROUP])
async def test_a_walk_beside_two_busy_writers_skips_nothing(three: ProcessGroup, to: str) -> None:
    """One of them has a slow connection to MongoDB. A walk with `+N@ID` during the writing is the whole history."""
    three[0].mongodb.delay = 0.03
    peer = "1" if to == "2" else to
    count = 60
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(three[0].chat("1"))
        two = await stack.enter_async_context(three[1].chat("2"))
        reader = await stack.enter_async_context(three[2].chat("2"))
        await one.send("first\nhello", to=to)
        seen = await page(reader, 2, "-10", peer)

        async def write(chat: ChatClient, receiver: str) -> None:
            for number in range(count):
                assert (await chat.send(f"m{number}\nhello", to=receiver))["op_type"] in (40018, 40019)

        writing = asyncio.gather(write(one, to), write(two, peer))
        while not writing.done():
            seen += await page(reader, 2, f"+{WALK_PAGE}@{reference(seen[-1], to)}", peer)
        await writing
        while more := await page(reader, 2, f"+{WALK_PAGE}@{reference(seen[-1], to)}", peer):
            seen += more
        stored = await page(reader, 2, "0-200", peer)
        assert len(stored) == 2 * count + 1
        assert [(frame["from"], frame["id"]) for frame in seen] == [(frame["from"], frame["id"]) for frame in stored]


async def test_times_are_unique_across_processes(three: ProcessGroup) -> None:
    """Three processes write to one group as fast as they can: no message is refused, and all are stored."""
    async with AsyncExitStack() as stack:
        chats = [
            await stack.enter_async_context(process.chat(user)) for process, user in zip(three, "123", strict=True)
        ]

        async def write(chat: ChatClient) -> None:
            for number in range(100):
                await chat.put(1, f"m{number}\nhello", to=GROUP)
            answers = 0
            while answers < 100:
                frame = await chat.receive()
                if frame["from"] == "System":
                    assert frame["op_type"] == 40018, frame
                    answers += 1

        await asyncio.gather(*map(write, chats))
        stored = await page(chats[0], 2, "0-200", GROUP) + await page(chats[0], 2, "200-200", GROUP)
        for user in "123":
            assert [frame["id"] for frame in stored if frame["from"] == user] == [f"m{n}" for n in range(100)]


async def test_the_list_of_conversations_skips_no_late_one(three: ProcessGroup) -> None:
    """Op 7 shows the conversation with the late message, with its unread count, as soon as it is stored."""
    async with three[0].chat("1") as one, three[1].chat("3") as third, three[2].chat("2", sync=True) as reader:
        async with three[0].mongodb.holding(b"held back") as held:
            await one.put(1, "late\nheld back", to="2")
            await held.wait()
            await third.put(1, "early\nhello", to="2")
            await asyncio.sleep(0.5)
            await reader.ask(7, "-10")
        await one.receive()
        while (frame := await third.receive())["from"] != "System":
            pass
        assert frame["id"] == "early"
        frames = await reader.ask(7, "-10")
        listed = {
            frame["from"]: frame["unread"] for frame in frames if frame["op_type"] == 40023 and frame["type"] == 2
        }
        assert (listed["1"], listed["3"]) == (1, 1)
