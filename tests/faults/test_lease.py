"""Two servers on one set of stores: the second is refused, a frozen one that was replaced acknowledges nothing more."""

import asyncio
import json
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pymongo
import pytest
from redis import Redis

from tests import servers
from tests.faults.stores import HANGS, SOON, fails, names, sent
from tests.faults.test_machine import WallClock
from tests.harness import ChatClient, SubprocessServer, run_py, short_lease, subprocess_server
from tests.servers import DatabaseServer

SECONDS = 1.5  # of the short lease


class Held:
    """Where a lease is kept."""

    def __init__(self, name: str, mongodb: DatabaseServer, redis: DatabaseServer) -> None:
        self.own = names(1)[0]
        self.name = name
        self._mongodb, self._redis = mongodb, redis

    def stores(self) -> dict[str, str]:
        """The environment of a server that holds it."""
        chosen = {"mongodb": self._mongodb, "redis": self._redis}
        both = servers.environ(**{name: server for name, server in chosen.items() if self.name in (name, "both")})
        return both | {"CHAT_MONGODB_MONGODBNAME": self.own, "CHAT_REDIS_REDISPREFIX": self.own}

    def give_to_another_host(self) -> None:
        """What a server elsewhere did once the lease was over."""
        holder = b'{"host":"elsewhere","boot":"other","pid":1,"started":"1"}'
        with ExitStack() as stack:
            if self.name != "redis":
                client = stack.enter_context(pymongo.MongoClient[dict[str, Any]]("127.0.0.1", self._mongodb.port))
                taken = {"_id": "server", "holder": holder, "until": 2.0**40}
                assert client[self.own].chat_leases.replace_one({"_id": "server"}, taken, upsert=True).acknowledged
            if self.name != "mongodb":
                redis = stack.enter_context(Redis(port=self._redis.port))
                redis.set(f"{self.own}lease", holder, px=1_000_000)


@pytest.fixture(params=["mongodb", "redis", "both"])
def held(request: pytest.FixtureRequest, mongodb: DatabaseServer, redis: DatabaseServer) -> Held:
    return Held(request.param, mongodb, redis)


@asynccontextmanager
async def serving(folder: Path, held: Held, **options: Any) -> AsyncIterator[SubprocessServer]:
    async with subprocess_server(folder / "data", stores=held.stores(), **SOON, **options) as server:
        yield server


async def test_a_second_server_is_refused_and_the_first_goes_on(held: Held, tmp_path: Path) -> None:
    one, two = names(2)
    async with serving(tmp_path, held) as server:
        await server.add_users(one, two)
        async with server.chat(one, two) as chat:
            line, _ = await fails(tmp_path / "other", held.stores())
            assert "another chat_server" in line
            assert f"process {server.process.pid}" in line
            assert ("RedisAddr" if held.name == "redis" else "MongoDBName") in line
            assert (await chat.send("m1\nhello"))["op_type"] == 40019


async def test_a_server_whose_clock_is_ahead_is_refused_as_well(
    mongodb: DatabaseServer, redis: DatabaseServer, tmp_path: Path
) -> None:
    """A lease runs out by the clock of the store."""
    held = Held("mongodb", mongodb, redis)
    clock = WallClock(tmp_path)
    clock.move("+1h")
    async with serving(tmp_path, held) as server:
        environ = held.stores() | {"CHAT_SERVICE_DATADIR": str(tmp_path / "other"), "CHAT_SERVICE_HTTPPORT": "0"}
        child = await run_py(prefix=clock.prefix, environ=environ)
        async with asyncio.timeout(HANGS):
            _, err = await child.communicate()
        assert f"another chat_server (host {socket.gethostname()}, process {server.process.pid})" in err.decode()


async def test_killed_and_started_again_it_is_up_without_waiting(held: Held, tmp_path: Path) -> None:
    async with serving(tmp_path, held) as server:
        server.kill()
        await server.wait()
    async with serving(tmp_path, held) as server:
        assert "lease held elsewhere" not in server.log.read_text()
        await server.add_users(*names(1))


async def test_ended_it_leaves_no_lease(held: Held, tmp_path: Path) -> None:
    async with serving(tmp_path, held) as server:
        server.process.send_signal(signal.SIGTERM)
        assert await server.wait() == 0
    async with serving(tmp_path, held) as server:
        assert "lease" not in server.log.read_text()


async def test_frozen_and_replaced_it_acknowledges_nothing_more_and_ends(held: Held, tmp_path: Path) -> None:
    one, two, three = names(3)
    async with serving(tmp_path, held, prefix=short_lease(tmp_path, SECONDS)) as server:
        await server.add_users(one, two, three)
        await server.make_contacts(one, three)
        async with server.chat(one, two) as chat, server.chat(one, three) as other:
            await chat.send("m1\nhello")
            server.process.send_signal(signal.SIGSTOP)
            await chat.put(1, "m2\nhello", type=1)
            await other.put(1, "m2\nhello", type=1)
            await asyncio.sleep(SECONDS * 1.2)  # the lease runs out: only time does that
            held.give_to_another_host()
            server.process.send_signal(signal.SIGCONT)
            told, friend_told = await answers(chat), await answers(other)
            assert 40019 not in told
            # Redis's lease protects what is in Redis: what friends say is stored without it, and so acknowledged.
            assert held.name == "redis" or 40019 not in friend_told
        assert await server.wait() == 1
        *_, line = server.log.read_text().splitlines()
        assert line.startswith("chat-server: ")
        assert "took this one's place" in line
        assert "elsewhere" in line


async def test_frozen_and_not_replaced_it_goes_on(held: Held, tmp_path: Path) -> None:
    one, two = names(2)
    async with serving(tmp_path, held, prefix=short_lease(tmp_path, SECONDS)) as server:
        await server.add_users(one, two)
        async with server.chat(one, two) as chat:
            server.process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(SECONDS * 1.2)
            server.process.send_signal(signal.SIGCONT)
            await sent(chat, "m1\nhello")


async def answers(chat: ChatClient) -> list[int]:
    """The statuses of what still comes until the server closes the socket."""
    found = []
    async with asyncio.timeout(HANGS):
        async for frame in chat.connection:
            found.append(json.loads(frame)["op_type"])
    return found
