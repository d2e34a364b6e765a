"""A network that fails: cut cables, clients that crawl, connections reset within a frame. Other clients chat on."""

import asyncio
import os
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import AsyncExitStack
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from tests import needs, raw
from tests.faults.disk import send_acknowledged
from tests.harness import ServerHandle, serving, subprocess_server, wait_until
from tests.servers import claim


class Cable:
    """A cable (veth pair) from the network of this machine to that of the server (a network namespace)."""

    def __init__(self, namespace: str) -> None:
        number = claim()  # other test runs on this machine use other addresses
        network = ip_address("169.254.1.0") + 4 * number
        self.host = str(network + 2)  # the address of the server on this cable
        self._name, far = f"chat{number}", f"far{number}"
        ip("link", "add", self._name, "type", "veth", "peer", "name", far, "netns", namespace)
        ip("addr", "add", f"{network + 1}/30", "dev", self._name)
        ip("-n", namespace, "addr", "add", f"{self.host}/30", "dev", far)
        ip("-n", namespace, "link", "set", far, "up")
        self.plug()

    def plug(self) -> None:
        """Restore the connection."""
        ip("link", "set", self._name, "up")

    def cut(self) -> None:
        """Drop all packets; neither end is notified."""
        ip("link", "set", self._name, "down")


def ip(*arguments: str) -> None:
    """Run a command of iproute2."""
    subprocess.run([needs.program("ip"), *arguments], check=True, capture_output=True)


@pytest.fixture
def namespace() -> Iterator[str]:
    """Create a network namespace for the server."""
    program, name = needs.program("ip"), f"chat-{secrets.token_hex(4)}"

    def is_created() -> bool:
        adding = [program, "netns", "add", name]
        return not os.geteuid() and not subprocess.run(adding, capture_output=True, check=False).returncode

    needs.right("netns", is_created)
    try:
        yield name
    finally:
        ip("netns", "del", name)  # this deletes the cables too


def reached_through(cable: Cable, server: ServerHandle) -> ServerHandle:
    """Return a handle of the server that uses this cable."""
    found = ServerHandle(cable.host, server.port)
    found.tokens = server.tokens
    return found


async def test_a_cut_cable_loses_no_message_and_affects_no_other(namespace: str, tmp_path: Path) -> None:
    mine, theirs = Cable(namespace), Cable(namespace)
    inside = (needs.program("ip"), "netns", "exec", namespace)
    settings: dict[str, Any] = {"StrangerLimit": 0, "HeartbeatSeconds": 2, "HttpHost": "0.0.0.0"}
    async with subprocess_server(tmp_path / "data", prefix=inside, **settings) as server:
        here, there = reached_through(mine, server), reached_through(theirs, server)
        await here.add_users("a", "z")
        there.tokens = here.tokens
        async with here.chat("a", "z") as a:
            async with raw.chat(there, "z", "a") as z:
                theirs.cut()
                await send_acknowledged(a, range(20), 40018)  # the server cannot know yet
                await raw.wait_offline(a)
                await send_acknowledged(a, range(20, 40), 40019)
                theirs.plug()
                assert await z.wait_closed() is None  # the server resets the unknown connection
            async with there.chat("z", "a") as again:
                unread = [frame["id"] for frame in (await again.ask(3))[:-1]]
                assert [id for id in unread if id.startswith("m")] == [f"m{n}" for n in range(40)]


async def test_a_briefly_cut_cable_closes_no_socket(namespace: str, tmp_path: Path) -> None:
    cable = Cable(namespace)
    inside = (needs.program("ip"), "netns", "exec", namespace)
    settings: dict[str, Any] = {"StrangerLimit": 0, "HeartbeatSeconds": 30, "HttpHost": "0.0.0.0"}
    async with subprocess_server(tmp_path / "data", prefix=inside, **settings) as server:
        here = reached_through(cable, server)
        await here.add_users("a", "z")
        async with here.chat("a", "z") as a, here.chat("z", "a") as z:
            for turn in range(3):
                cable.cut()
                sending = asyncio.create_task(send_acknowledged(a, range(turn * 10, turn * 10 + 10), 40018))
                await asyncio.sleep(0.3)
                cable.plug()
                await sending
            assert [(await z.receive())["id"] for _ in range(30)] == [f"m{n}" for n in range(30)]


async def test_a_reset_drops_only_the_incomplete_frame(tmp_path: Path) -> None:
    async with serving(tmp_path, StrangerLimit=0) as server:
        await server.add_users("a", "b", "z")
        message = raw.request(1, "half\nhalf of a message")
        async with server.chat("z", "a") as z, server.chat("b", "z") as b:
            for cut in range(1, len(message)):
                async with raw.chat(server, "a", "z") as a:
                    await a.write(raw.request(1, f"m{cut}\nhello") + message[:cut])
                    assert (await a.answer())["id"] == f"m{cut}"
                    a.reset()
                assert (await z.receive())["id"] == f"m{cut}"
            await send_acknowledged(b, range(50), 40018)
            assert [(await z.receive())["id"] for _ in range(50)] == [f"m{n}" for n in range(50)]
            assert "half" not in [frame["id"] for frame in (await z.ask(2, "-200"))[:-1]]


async def test_clients_that_crawl_lose_nothing_and_delay_no_other(tmp_path: Path) -> None:
    async with serving(tmp_path, StrangerLimit=0, HeartbeatSeconds=1) as server, AsyncExitStack() as stack:
        await server.add_users("a", "b", "y", "z")
        crawlers = [await stack.enter_async_context(raw.chat(server, "z", "a", buffer=4096)) for _ in range(5)]

        async def crawl(one: raw.RawSocket) -> None:
            """Read and write one byte at a time."""
            for byte in raw.request(2, "-1"):
                await one.write(bytes([byte]))
                await one.read_bytes(1)
                await asyncio.sleep(0.05)

        async with server.chat("a", "z") as a, server.chat("b", "y") as b, server.chat("y", "b") as y:
            await send_acknowledged(a, range(40), 40018)
            crawling = asyncio.gather(*map(crawl, crawlers))
            await send_acknowledged(b, range(500), 40018)
            assert [(await y.receive())["id"] for _ in range(500)] == [f"m{n}" for n in range(500)]
            assert not crawling.done()
            await crawling
        for one in crawlers:
            assert [(await one.receive())["id"] for _ in range(40)] == [f"m{n}" for n in range(40)]
            assert (await one.answer())["op_type"] == 40005


async def test_a_thousand_reconnecting_clients_all_get_in(tmp_path: Path) -> None:
    users = [f"u{n}" for n in range(32)]
    async with subprocess_server(tmp_path / "data", StrangerLimit=0) as server:
        await server.add_users("a", "b", *users)

        async def open_all() -> list[raw.RawSocket]:
            """Open about a thousand sockets at the same time: 31 of each user."""
            socks = await asyncio.gather(*(raw.connect(server) for _ in range(31 * len(users))))
            ones = [raw.RawSocket(sock, users[n % len(users)]) for n, sock in enumerate(socks)]
            await asyncio.gather(*(one.write(raw.upgrade(server, one.user)) for one in ones))
            assert [await one.status() for one in ones] == [101] * len(ones)
            return ones

        async with server.chat("a", "b") as a, server.chat("b", "a") as b:
            ones = await open_all()
            for turn in range(2):
                for one in ones:
                    one.reset()
                returning = asyncio.create_task(open_all())
                await send_acknowledged(a, range(turn * 50, turn * 50 + 50), 40018)
                ones = await returning
            assert [(await b.receive())["id"] for _ in range(100)] == [f"m{n}" for n in range(100)]
            await a.put(6, "to all")
            assert (await a.receive())["content"] == str(len(users) + 1)
        for one in ones:
            one.reset()
        await wait_until(lambda: server.log.read_text().count("socket closed") == 3 * len(ones) + 2)
