"""Sockets opened with sync=1: the same state on every device (protocol section 2, Sync)."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests import raw
from tests.harness import ChatClient, Frame, ServerHandle, serving, wait_until


class Devices(NamedTuple):
    """Sockets of the users 1 and 2, each the other's peer, and of 3: with sync, and without."""

    one: ChatClient
    one_plain: ChatClient
    one_sync: ChatClient
    two_plain: ChatClient
    two_sync: ChatClient
    three_sync: ChatClient

    async def silent(self, *but: ChatClient) -> None:
        """Fail if any has heard something."""
        for device in self:
            if device not in but:
                await device.expect_nothing()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ServerHandle]:
    """A server with the users 1 to 3, and no limit between them."""
    async with serving(tmp_path, StrangerLimit=0) as server:
        await server.add_users("1", "2", "3")
        yield server


@asynccontextmanager
async def devices(server: ServerHandle, *, asking_sync: bool = False) -> AsyncIterator[Devices]:
    """All devices; `one` is the one that asks."""
    async with AsyncExitStack() as stack:
        wanted = [("1", asking_sync), ("1", False), ("1", True), ("2", False), ("2", True), ("3", True)]
        yield Devices(
            *[
                await stack.enter_async_context(server.chat(user, to="1" if user == "2" else "2", sync=sync))
                for user, sync in wanted
            ]
        )


async def store(server: ServerHandle, sender: str, receiver: str, *ids: str) -> None:
    """Store messages while nobody is there to hear."""
    async with server.chat(sender, to=receiver) as chat:
        for id in ids:
            await chat.send(f"{id}\nhello")


def notice(sender: str, to: str, op_type: int, content: str) -> Frame:
    msg = {40007: "marked as read", 40013: "deleted"}[op_type]
    return {"from": sender, "to": to, "type": 2, "op_type": op_type, "content": content, "msg": msg}


async def asked(chat: ChatClient, op_type: int, content: str, **keys: str) -> Frame:
    """The answer to a request, before which nothing else was heard."""
    [answer] = await chat.ask(op_type, content, **keys)
    return answer


async def unread(chat: ChatClient) -> list[str]:
    """The ids of what is unread from the peer; live frames are passed over."""
    frames = await chat.ask(3)
    return [frame["id"] for frame in frames if frame["op_type"] == 40005 and frame["from"] != "System"]


@pytest.mark.parametrize("asking_sync", [False, True])
async def test_a_message_is_heard_on_the_sender_s_other_sync_sockets(server: ServerHandle, asking_sync: bool) -> None:
    async with devices(server, asking_sync=asking_sync) as sockets:
        ack = await asked(sockets.one, 1, "m1\nhello\nthere")
        expected = {
            "from": "1",
            "to": "2",
            "type": 1,
            "op_type": 40011,
            "content": "m1\nhello\nthere",
            "msg": "message received",
            "id": "m1",
            "time": ack["time"],
        }
        assert await sockets.one_sync.receive() == expected
        assert await sockets.two_plain.receive() == expected
        assert await sockets.two_sync.receive() == expected
        assert await sockets.one_sync.receive() == await sockets.two_sync.receive() == notice("2", "1", 40007, "m1")
        if asking_sync:
            assert await sockets.one.receive() == notice("2", "1", 40007, "m1")
        await sockets.silent()


async def test_a_message_to_somebody_offline_is_heard_too(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one, server.chat("1", sync=True) as other:
        await one.send("m1\nhello")
        frame = await other.receive()
        assert (frame["from"], frame["to"], frame["content"]) == ("1", "2", "m1\nhello")
        await one.send("m2\nhello", to="3")
        assert (await other.receive())["to"] == "3"


async def test_what_was_refused_is_heard_nowhere(server: ServerHandle) -> None:
    async with devices(server) as sockets:
        for content in ("", "a b\nhello", "m1\n"):
            assert (await asked(sockets.one, 1, content))["op_type"] == 40008
        assert (await asked(sockets.one, 1, "m1\nhello", to="nobody"))["op_type"] == 40008
        assert (await asked(sockets.one, 4, "nowhere"))["op_type"] == 40006
        assert (await asked(sockets.one, 5, "nowhere"))["op_type"] == 40012
        await sockets.silent()


@pytest.mark.parametrize("asking_sync", [False, True])
async def test_what_op_4_marked_is_heard_by_both_users_but_not_by_who_asked(
    server: ServerHandle, asking_sync: bool
) -> None:
    await store(server, "2", "1", "a", "b", "c")
    async with devices(server, asking_sync=asking_sync) as sockets:
        assert (await asked(sockets.one, 4, "a"))["op_type"] == 40007
        for hearer in (sockets.one_sync, sockets.two_sync):
            assert await hearer.receive() == notice("1", "2", 40007, "a")
        assert (await asked(sockets.one, 4, "b\nc"))["op_type"] == 40007
        for hearer in (sockets.one_sync, sockets.two_sync):
            assert await hearer.receive() == notice("1", "2", 40007, "b\nc")
        await sockets.silent()


async def test_of_several_those_that_were_marked_are_heard_and_no_others(server: ServerHandle) -> None:
    await store(server, "2", "1", "a", "b")
    async with devices(server) as sockets:
        assert (await asked(sockets.one, 4, "a\nnowhere\nb"))["op_type"] == 40006
        for hearer in (sockets.one_sync, sockets.two_sync):
            assert await hearer.receive() == notice("1", "2", 40007, "a\nb")
        await sockets.silent()


async def test_all_that_a_star_marked_are_heard(server: ServerHandle) -> None:
    names = [f"m{number}" for number in range(250)]
    await store(server, "2", "1", *names)
    async with devices(server) as sockets:
        assert (await asked(sockets.one, 4, "*"))["op_type"] == 40007
        for hearer in (sockets.one_sync, sockets.two_sync):
            heard: list[str] = []
            while len(heard) < len(names):
                frame = await hearer.receive()
                assert frame == notice("1", "2", 40007, frame["content"])
                heard += frame["content"].split("\n")
            assert heard == names
        await sockets.silent()


async def test_what_a_pong_proved_is_heard_by_both_users(server: ServerHandle) -> None:
    async with (
        server.chat("1", to="2") as one,
        server.chat("1", sync=True) as one_sync,
        server.chat("2", sync=True) as two_sync,
        raw.chat(server, "2", to="1") as two,
    ):
        await one.send("m1\nhello")
        await two.receive()
        for hearer in (one_sync, two_sync):
            assert (await hearer.receive())["content"] == "m1\nhello"
            await hearer.expect_nothing()
        await two.write(raw.frame((await two.read()).payload, raw.PONG))
        for hearer in (one_sync, two_sync):
            assert await hearer.receive() == notice("2", "1", 40007, "m1")
            await hearer.expect_nothing()
        assert (await two.ask(2, "-1"))["content"] == "1"
        await one.expect_nothing()


async def test_the_pong_of_a_sync_socket_marks_nothing(server: ServerHandle) -> None:
    """It marks what its person has seen with op 4."""
    async with server.chat("1", to="2", sync=True) as one, server.chat("2", to="1", sync=True) as two:
        for id in ("a", "b"):
            await one.send(f"{id}\nhello")
            assert (await two.receive())["id"] == id
            await two.expect_nothing()  # a ping and its pong went by
        assert await unread(two) == ["a", "b"]
        await one.expect_nothing()
        assert (await asked(two, 4, "a"))["op_type"] == 40007
        assert await one.receive() == notice("2", "1", 40007, "a")
        assert await unread(two) == ["b"]


async def test_a_plain_socket_beside_a_sync_one_proves_as_ever(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one, server.chat("2", to="1", sync=True) as sync, server.chat("2"):
        await one.send("m1\nhello")

        async def read() -> bool:
            return await unread(sync) == []

        await wait_until(read)


@pytest.mark.parametrize("asking_sync", [False, True])
async def test_what_was_deleted_is_heard_with_whose_it_was(server: ServerHandle, asking_sync: bool) -> None:
    """`>ID` for a message that `from` wrote, `<ID` for one that `to` wrote."""
    await store(server, "1", "2", "mine", "both")
    await store(server, "2", "1", "theirs", "both")
    async with devices(server, asking_sync=asking_sync) as sockets:
        assert (await asked(sockets.one, 5, "theirs\nmine\nboth"))["op_type"] == 40013
        for hearer in (sockets.one_sync, sockets.two_sync):
            assert await hearer.receive() == notice("1", "2", 40013, "<theirs\n>mine\n>both")
        assert (await asked(sockets.one, 5, "nowhere\n<both"))["op_type"] == 40012
        for hearer in (sockets.one_sync, sockets.two_sync):
            assert await hearer.receive() == notice("1", "2", 40013, "<both")
        await sockets.silent()


async def test_what_the_other_user_deleted_is_heard_from_his_side(server: ServerHandle) -> None:
    await store(server, "1", "2", "a")
    await store(server, "2", "1", "b")
    async with devices(server) as sockets:
        assert (await asked(sockets.two_plain, 5, "a\nb"))["op_type"] == 40013
        for hearer in (sockets.one_sync, sockets.two_sync):
            assert await hearer.receive() == notice("2", "1", 40013, "<a\n>b")
        await sockets.silent()


async def test_only_sync_1_asks_for_it(server: ServerHandle) -> None:
    class Odd(ServerHandle):
        query = ""

        def socket_url(self, user: str, to: str = "", *, sync: bool = False) -> str:
            return f"{super().socket_url(user, to)}&{self.query}"

    odd = Odd(server.host, server.port)
    odd.tokens = server.tokens
    for number, odd.query in enumerate(("sync=0", "sync=", "Sync=1", "sync")):
        async with server.chat("1", to="2") as one, odd.chat("1", to="2") as other:
            await one.send(f"m{number}\nhello")
            await other.expect_nothing()
