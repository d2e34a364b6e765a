"""Pushed presence on real sockets (protocol section 2, Presence)."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from chat_server.service.presence import GRACE_SECONDS, ROUND_SECONDS
from tests.harness import ChatClient, ManualClock, ServerHandle, run_command, serving, wait_until

# Longer than the time after which a user without sockets counts as offline.
LATE = GRACE_SECONDS + 1


class ClockedServer(NamedTuple):
    """A server and its clock. The users 1, 2 and 3 have conversations with each other, user 4 has none."""

    server: ServerHandle
    clock: ManualClock


@pytest.fixture
async def clocked(tmp_path: Path) -> AsyncIterator[ClockedServer]:
    clock = ManualClock()
    async with serving(tmp_path, clock, users=("1", "2", "3", "4"), StrangerLimit=0) as server:
        for one, other in (("1", "2"), ("1", "3"), ("2", "3")):
            await server.make_contacts(one, other)
        clock.shift += LATE
        await asyncio.sleep(3 * ROUND_SECONDS)  # now all users are offline
        yield ClockedServer(server, clock)


async def online(chat: ChatClient) -> dict[str, bool]:
    """Return for each peer whether op 7 reports it as online."""
    *page, _ = await chat.ask(7, "-200")
    return {({frame["from"], frame["to"]} - {chat.user}).pop(): frame["online"] for frame in page}


async def wait_offline(chat: ChatClient, peer: str) -> None:
    """Wait until the server acknowledges messages to `peer` as offline (40019)."""

    async def offline() -> bool:
        return bool((await chat.send("are you there?", to=peer))["op_type"] == 40019)

    await wait_until(offline)


async def test_a_new_online_peer_is_announced_within_a_second(clocked: ClockedServer) -> None:
    async with clocked.server.chat("1", sync=True) as one:
        times = []
        for user in ("2", "3"):
            async with clocked.server.chat(user):
                opened = asyncio.get_running_loop().time()
                assert await one.receive_presence() == [f"+{user}"]
                times.append(asyncio.get_running_loop().time() - opened)
        assert min(times) < 1  # the minimum: other work on this machine may delay one of them


async def test_a_peer_is_offline_five_seconds_after_the_last_socket(clocked: ClockedServer) -> None:
    async with clocked.server.chat("1", sync=True) as one:
        async with clocked.server.chat("2"):
            assert await one.receive_presence() == ["+2"]
        await wait_offline(one, "2")
        assert await online(one) == {"2": True, "3": False}
        clocked.clock.shift += LATE
        assert await one.receive_presence() == ["-2"]
        assert await online(one) == {"2": False, "3": False}


async def test_a_reconnect_within_five_seconds_is_not_announced(clocked: ClockedServer) -> None:
    async with clocked.server.chat("1", sync=True) as one:
        async with clocked.server.chat("2"):
            assert await one.receive_presence() == ["+2"]
        await wait_offline(one, "2")
        async with clocked.server.chat("2"):
            clocked.clock.shift += LATE
            await asyncio.sleep(2 * ROUND_SECONDS)
            async with clocked.server.chat("3"):
                assert await one.receive_presence() == ["+3"]


async def test_only_sync_sockets_of_peers_hear_of_presence(clocked: ClockedServer) -> None:
    """Plain sockets and users without a conversation hear nothing."""
    server = clocked.server
    async with server.chat("1", sync=True) as one, server.chat("1") as plain, server.chat("4", sync=True) as four:
        async with server.chat("2"):
            assert await one.receive_presence() == ["+2"]
        await wait_offline(one, "2")
        clocked.clock.shift += LATE
        assert await one.receive_presence() == ["-2"]
        await plain.expect_no_presence()
        await four.expect_no_presence()


async def test_simultaneous_changes_come_in_one_frame(clocked: ClockedServer) -> None:
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(clocked.server.chat("1", sync=True))
        two = await stack.enter_async_context(clocked.server.chat("2"))
        assert await one.receive_presence() == ["+2"]
        three = await stack.enter_async_context(clocked.server.chat("3"))
        assert await one.receive_presence() == ["+3"]
        await two.connection.close()
        await three.connection.close()
        for peer in ("2", "3"):
            await wait_offline(one, peer)
        clocked.clock.shift += LATE
        assert await one.receive_presence() == ["-2", "-3"]


async def test_a_removed_user_goes_offline_for_their_peers(tmp_path: Path) -> None:
    """Another process removes the user, and the next heartbeat closes the sockets."""
    clock = ManualClock()
    data = tmp_path / "data"
    async with serving(data, clock, users=("1", "2"), StrangerLimit=0, HeartbeatSeconds=1) as server:
        await server.make_contacts("1", "2")
        async with server.chat("1", sync=True) as one, server.chat("2", sync=True) as two:
            assert (await online(one))["2"]
            environ = {"CHAT_SERVICE_DATADIR": str(data)}
            result = await run_command("user", "remove", "2", "--messages", "keep", environ=environ)
            assert result.code == 0, result
            assert await two.wait_closed() == 4001
            clock.shift += LATE
            while (lines := await one.receive_presence()) != ["-2"]:
                assert lines == ["+2"]


async def test_a_socket_that_opens_learns_the_state_and_each_change(clocked: ClockedServer) -> None:
    """Op 7 at any moment around a change, followed by the frames, leads to the correct state."""
    for delay in (0, 0.1, 0.3, 0.5, 0.7):
        async with AsyncExitStack() as stack:
            two = await stack.enter_async_context(clocked.server.chat("2"))
            await asyncio.sleep(delay)
            one = await stack.enter_async_context(clocked.server.chat("1", sync=True))
            assert (await online(one))["2"]
            await two.connection.close()
            clocked.clock.shift += LATE
            lines = await one.receive_presence()
            assert lines in (["+2"], ["-2"])
            if lines == ["+2"]:
                assert await one.receive_presence() == ["-2"]
            assert not (await online(one))["2"]
