"""Pushed presence (protocol section 2, Presence), through real sockets."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from chat_server.service.presence import GRACE_SECONDS, ROUND_SECONDS
from tests.harness import ChatClient, ManualClock, ServerHandle, run_py, serving, wait_until

LATE = GRACE_SECONDS + 1


class Place(NamedTuple):
    """A server with the users 1 to 4, and its clock. 1, 2 and 3 have conversations with each other, 4 with nobody."""

    server: ServerHandle
    clock: ManualClock


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    clock = ManualClock()
    async with serving(tmp_path, clock, StrangerLimit=0) as server:
        await server.add_users("1", "2", "3", "4")
        for one, other in (("1", "2"), ("1", "3"), ("2", "3")):
            await server.make_contacts(one, other)
        clock.shift += LATE
        await asyncio.sleep(3 * ROUND_SECONDS)  # everybody is offline
        yield Place(server, clock)


async def online(chat: ChatClient) -> dict[str, bool]:
    """What op 7 says of each peer."""
    *page, _ = await chat.ask(7, "-200")
    return {({frame["from"], frame["to"]} - {chat.user}).pop(): frame["online"] for frame in page}


async def gone(chat: ChatClient, peer: str) -> None:
    """Wait until the server knows that `peer` has no socket."""

    async def offline() -> bool:
        return bool((await chat.send("are you there?", to=peer))["op_type"] == 40019)

    await wait_until(offline)


async def test_a_peer_who_comes_online_is_announced_within_a_second(place: Place) -> None:
    async with place.server.chat("1", sync=True) as one:
        times = []
        for user in ("2", "3"):
            async with place.server.chat(user):
                opened = asyncio.get_running_loop().time()
                assert await one.receive_presence() == [f"+{user}"]
                times.append(asyncio.get_running_loop().time() - opened)
        assert min(times) < 1  # one of them may have met other work on this machine


async def test_a_peer_is_offline_five_seconds_after_the_last_socket(place: Place) -> None:
    async with place.server.chat("1", sync=True) as one:
        async with place.server.chat("2"):
            assert await one.receive_presence() == ["+2"]
        await gone(one, "2")
        assert await online(one) == {"2": True, "3": False}
        place.clock.shift += LATE
        assert await one.receive_presence() == ["-2"]
        assert await online(one) == {"2": False, "3": False}


async def test_a_peer_who_reconnects_within_five_seconds_is_not_announced(place: Place) -> None:
    async with place.server.chat("1", sync=True) as one:
        async with place.server.chat("2"):
            assert await one.receive_presence() == ["+2"]
        await gone(one, "2")
        async with place.server.chat("2"):
            place.clock.shift += LATE
            await asyncio.sleep(2 * ROUND_SECONDS)
            async with place.server.chat("3"):
                assert await one.receive_presence() == ["+3"]


async def test_only_sync_sockets_of_peers_hear_of_presence(place: Place) -> None:
    """Neither plain sockets nor users without a conversation."""
    server = place.server
    async with server.chat("1", sync=True) as one, server.chat("1") as plain, server.chat("4", sync=True) as four:
        async with server.chat("2"):
            assert await one.receive_presence() == ["+2"]
        await gone(one, "2")
        place.clock.shift += LATE
        assert await one.receive_presence() == ["-2"]
        await plain.expect_no_presence()
        await four.expect_no_presence()


async def test_changes_at_once_come_in_one_frame(place: Place) -> None:
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(place.server.chat("1", sync=True))
        two = await stack.enter_async_context(place.server.chat("2"))
        assert await one.receive_presence() == ["+2"]
        three = await stack.enter_async_context(place.server.chat("3"))
        assert await one.receive_presence() == ["+3"]
        await two.connection.close()
        await three.connection.close()
        for peer in ("2", "3"):
            await gone(one, peer)
        place.clock.shift += LATE
        assert await one.receive_presence() == ["-2", "-3"]


async def test_a_removed_user_goes_offline_for_their_peers(tmp_path: Path) -> None:
    """Another process removes the user; the next heartbeat closes their sockets."""
    clock = ManualClock()
    data = tmp_path / "data"
    async with serving(data, clock, StrangerLimit=0, HeartbeatSeconds=1) as server:
        await server.add_users("1", "2")
        await server.make_contacts("1", "2")
        async with server.chat("1", sync=True) as one, server.chat("2", sync=True) as two:
            assert (await online(one))["2"]
            environ = {"CHAT_SERVICE_DATADIR": str(data)}
            child = await run_py("user", "remove", "2", "--messages", "keep", environ=environ)
            assert await child.wait() == 0, await child.communicate()
            assert await two.wait_closed() == 4001
            clock.shift += LATE
            while (lines := await one.receive_presence()) != ["-2"]:
                assert lines == ["+2"]


async def test_a_socket_that_opens_learns_the_state_and_each_change(place: Place) -> None:
    """Op 7 at any moment around a change, then the frames: what is known in the end is true."""
    for delay in (0, 0.1, 0.3, 0.5, 0.7):
        async with AsyncExitStack() as stack:
            two = await stack.enter_async_context(place.server.chat("2"))
            await asyncio.sleep(delay)
            one = await stack.enter_async_context(place.server.chat("1", sync=True))
            assert (await online(one))["2"]
            await two.connection.close()
            place.clock.shift += LATE
            lines = await one.receive_presence()
            assert lines in (["+2"], ["-2"])
            if lines == ["+2"]:
                assert await one.receive_presence() == ["-2"]
            assert not (await online(one))["2"]
