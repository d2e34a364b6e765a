"""Sockets with sync=1: the same state on every device (protocol section 2, Sync)."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests import raw
from tests.harness import ChatClient, Frame, ServerHandle, serving, wait_until


class Devices(NamedTuple):
    """Plain and sync sockets of the users 1 and 2, who are peers, and of user 3."""

    one: ChatClient
    one_plain: ChatClient
    one_sync: ChatClient
    two_plain: ChatClient
    two_sync: ChatClient
    three_sync: ChatClient

    async def expect_on_sync_sockets(self, expected: Frame) -> None:
        """Fail unless `expected` is the next frame of both other sync sockets."""
        for socket in (self.one_sync, self.two_sync):
            assert await socket.receive() == expected

    async def expect_nothing(self, *but: ChatClient) -> None:
        """Fail if a socket except `but` has an unread frame."""
        for device in self:
            if device not in but:
                await device.expect_nothing()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ServerHandle]:
    """A server with the users 1 to 3 and without a contact limit."""
    async with serving(tmp_path, users=("1", "2", "3"), StrangerLimit=0) as server:
        yield server


@asynccontextmanager
async def devices(server: ServerHandle, *, asking_sync: bool = False) -> AsyncIterator[Devices]:
    """Open all devices. `one` sends the requests."""
    async with AsyncExitStack() as stack:
        wanted = [("1", asking_sync), ("1", False), ("1", True), ("2", False), ("2", True), ("3", True)]
        yield Devices(
            *[
                await stack.enter_async_context(server.chat(user, to="1" if user == "2" else "2", sync=sync))
                for user, sync in wanted
            ]
        )


async def store_offline(server: ServerHandle, sender: str, receiver: str, *ids: str) -> None:
    """Store messages while no socket is open."""
    async with server.chat(sender, to=receiver) as chat:
        for id in ids:
            await chat.send(f"{id}\nhello")


def notice(sender: str, to: str, op_type: int, content: str) -> Frame:
    msg = {40007: "marked as read", 40013: "deleted"}[op_type]
    return {"from": sender, "to": to, "type": 2, "op_type": op_type, "content": content, "msg": msg}


async def sole_answer(chat: ChatClient, op_type: int, content: str, **keys: str) -> Frame:
    """Send a request; return the answer, which must be the next frame."""
    [answer] = await chat.ask(op_type, content, **keys)
    return answer


async def unread(chat: ChatClient) -> list[str]:
    """Return the ids of the unread messages from the peer without live frames."""
    frames = await chat.ask(3)
    return [frame["id"] for frame in frames if frame["op_type"] == 40005 and frame["from"] != "System"]


@pytest.mark.parametrize("asking_sync", [False, True])
async def test_a_message_reaches_the_sender_s_other_sync_sockets(server: ServerHandle, asking_sync: bool) -> None:
    async with devices(server, asking_sync=asking_sync) as sockets:
        ack = await sole_answer(sockets.one, 1, "m1\nhello\nthere")
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
        await sockets.expect_nothing()


async def test_a_message_to_an_offline_user_reaches_sync_sockets(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one, server.chat("1", sync=True) as other:
        await one.send("m1\nhello")
        frame = await other.receive()
        assert (frame["from"], frame["to"], frame["content"]) == ("1", "2", "m1\nhello")
        await one.send("m2\nhello", to="3")
        assert (await other.receive())["to"] == "3"


async def test_refused_requests_reach_no_sync_socket(server: ServerHandle) -> None:
    async with devices(server) as sockets:
        for content in ("", "a b\nhello", "m1\n"):
            assert (await sole_answer(sockets.one, 1, content))["op_type"] == 40008
        assert (await sole_answer(sockets.one, 1, "m1\nhello", to="unknown"))["op_type"] == 40008
        assert (await sole_answer(sockets.one, 4, "nowhere"))["op_type"] == 40006
        assert (await sole_answer(sockets.one, 5, "nowhere"))["op_type"] == 40012
        await sockets.expect_nothing()


@pytest.mark.parametrize("asking_sync", [False, True])
async def test_both_users_hear_of_op_4(server: ServerHandle, asking_sync: bool) -> None:
    await store_offline(server, "2", "1", "a", "b", "c")
    async with devices(server, asking_sync=asking_sync) as sockets:
        assert (await sole_answer(sockets.one, 4, "a"))["op_type"] == 40007
        await sockets.expect_on_sync_sockets(notice("1", "2", 40007, "a"))
        assert (await sole_answer(sockets.one, 4, "b\nc"))["op_type"] == 40007
        await sockets.expect_on_sync_sockets(notice("1", "2", 40007, "b\nc"))
        await sockets.expect_nothing()


async def test_a_notice_lists_only_the_marked_ids(server: ServerHandle) -> None:
    await store_offline(server, "2", "1", "a", "b")
    async with devices(server) as sockets:
        assert (await sole_answer(sockets.one, 4, "a\nnowhere\nb"))["op_type"] == 40006
        await sockets.expect_on_sync_sockets(notice("1", "2", 40007, "a\nb"))
        await sockets.expect_nothing()


async def test_notices_list_all_ids_that_a_star_marked(server: ServerHandle) -> None:
    names = [f"m{number}" for number in range(250)]
    await store_offline(server, "2", "1", *names)
    async with devices(server) as sockets:
        assert (await sole_answer(sockets.one, 4, "*"))["op_type"] == 40007
        for listener in (sockets.one_sync, sockets.two_sync):
            marked: list[str] = []
            while len(marked) < len(names):
                frame = await listener.receive()
                assert frame == notice("1", "2", 40007, frame["content"])
                marked += frame["content"].split("\n")
            assert marked == names
        await sockets.expect_nothing()


async def test_both_users_hear_of_a_confirmation_by_pong(server: ServerHandle) -> None:
    async with (
        server.chat("1", to="2") as one,
        server.chat("1", sync=True) as one_sync,
        server.chat("2", sync=True) as two_sync,
        raw.chat(server, "2", to="1") as two,
    ):
        await one.send("m1\nhello")
        await two.receive()
        for listener in (one_sync, two_sync):
            assert (await listener.receive())["content"] == "m1\nhello"
            await listener.expect_nothing()
        await two.write(raw.frame((await two.read()).payload, raw.PONG))
        for listener in (one_sync, two_sync):
            assert await listener.receive() == notice("2", "1", 40007, "m1")
            await listener.expect_nothing()
        assert (await two.ask(2, "-1"))["content"] == "1"
        await one.expect_nothing()


async def test_the_pong_of_a_sync_socket_marks_nothing(server: ServerHandle) -> None:
    """The client of a sync socket marks messages with op 4 when its user has seen them."""
    async with server.chat("1", to="2", sync=True) as one, server.chat("2", to="1", sync=True) as two:
        for id in ("a", "b"):
            await one.send(f"{id}\nhello")
            assert (await two.receive())["id"] == id
            await two.expect_nothing()  # this exchanges a ping and a pong
        assert await unread(two) == ["a", "b"]
        await one.expect_nothing()
        assert (await sole_answer(two, 4, "a"))["op_type"] == 40007
        assert await one.receive() == notice("2", "1", 40007, "a")
        assert await unread(two) == ["b"]


async def test_the_pong_of_a_plain_socket_marks_despite_a_sync_one(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one, server.chat("2", to="1", sync=True) as sync, server.chat("2"):
        await one.send("m1\nhello")

        async def read() -> bool:
            return await unread(sync) == []

        await wait_until(read)


@pytest.mark.parametrize("asking_sync", [False, True])
async def test_the_notice_of_a_deletion_names_the_side(server: ServerHandle, asking_sync: bool) -> None:
    """The notice has `>ID` for a message of `from` and `<ID` for a message of `to`."""
    await store_offline(server, "1", "2", "mine", "both")
    await store_offline(server, "2", "1", "theirs", "both")
    async with devices(server, asking_sync=asking_sync) as sockets:
        assert (await sole_answer(sockets.one, 5, "theirs\nmine\nboth"))["op_type"] == 40013
        await sockets.expect_on_sync_sockets(notice("1", "2", 40013, "<theirs\n>mine\n>both"))
        assert (await sole_answer(sockets.one, 5, "nowhere\n<both"))["op_type"] == 40012
        await sockets.expect_on_sync_sockets(notice("1", "2", 40013, "<both"))
        await sockets.expect_nothing()


async def test_a_deletion_by_the_peer_is_named_from_its_side(server: ServerHandle) -> None:
    await store_offline(server, "1", "2", "a")
    await store_offline(server, "2", "1", "b")
    async with devices(server) as sockets:
        assert (await sole_answer(sockets.two_plain, 5, "a\nb"))["op_type"] == 40013
        await sockets.expect_on_sync_sockets(notice("2", "1", 40013, "<a\n>b"))
        await sockets.expect_nothing()


async def test_only_sync_1_opens_a_sync_socket(server: ServerHandle) -> None:
    class CustomQuery(ServerHandle):
        query = ""

        def socket_url(self, user: str, to: str = "", *, sync: bool = False) -> str:
            return f"{super().socket_url(user, to)}&{self.query}"

    custom = CustomQuery(server.host, server.port)
    custom.tokens = server.tokens
    for number, custom.query in enumerate(("sync=0", "sync=", "Sync=1", "sync")):
        async with server.chat("1", to="2") as one, custom.chat("1", to="2") as other:
            await one.send(f"m{number}\nhello")
            await other.expect_nothing()
