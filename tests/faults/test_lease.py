"""Two servers on the same stores: the second is refused, and a frozen and replaced server acknowledges nothing more."""

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
from tests.faults.stores import ANSWER_TIMEOUT, SHORT_HEARTBEAT, send_until_acknowledged, start_error, unique_names
from tests.faults.tools import WallClock
from tests.harness import ChatClient, SubprocessServer, run_py, short_lease, subprocess_server
from tests.servers import DatabaseServer

SHORT_LEASE = 1.5  # seconds


class LeaseStores:
    """The stores with the leases of a test: mongodb, redis or both."""

    def __init__(self, name: str, mongodb: DatabaseServer, redis: DatabaseServer) -> None:
        self.own = unique_names(1)[0]
        self.name = name
        self._mongodb, self._redis = mongodb, redis

    def stores(self) -> dict[str, str]:
        """Return the environment of a server that holds the leases."""
        chosen = {"mongodb": self._mongodb, "redis": self._redis}
        both = servers.environ(**{name: server for name, server in chosen.items() if self.name in (name, "both")})
        return both | {"CHAT_MONGODB_MONGODBNAME": self.own, "CHAT_REDIS_REDISPREFIX": self.own}

    def give_to_another_host(self) -> None:
        """Take the expired leases, as a server on another host does."""
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
def leases(request: pytest.FixtureRequest, mongodb: DatabaseServer, redis: DatabaseServer) -> LeaseStores:
    return LeaseStores(request.param, mongodb, redis)


@asynccontextmanager
async def serving(folder: Path, leases: LeaseStores, **options: Any) -> AsyncIterator[SubprocessServer]:
    async with subprocess_server(folder / "data", stores=leases.stores(), **SHORT_HEARTBEAT, **options) as server:
        yield server


async def test_a_second_server_is_refused(leases: LeaseStores, tmp_path: Path) -> None:
    one, two = unique_names(2)
    async with serving(tmp_path, leases) as server:
        await server.add_users(one, two)
        async with server.chat(one, two) as chat:
            line, _ = await start_error(tmp_path / "other", leases.stores())
            assert "another chat_server" in line
            assert f"process {server.process.pid}" in line
            assert ("RedisAddr" if leases.name == "redis" else "MongoDBName") in line
            assert (await chat.send("m1\nhello"))["op_type"] == 40019


async def test_a_second_server_with_a_clock_ahead_is_refused(
    mongodb: DatabaseServer, redis: DatabaseServer, tmp_path: Path
) -> None:
    """The clock of the store decides when a lease expires."""
    leases = LeaseStores("mongodb", mongodb, redis)
    clock = WallClock(tmp_path)
    clock.move("+1h")
    async with serving(tmp_path, leases) as server:
        environ = leases.stores() | {"CHAT_SERVICE_DATADIR": str(tmp_path / "other"), "CHAT_SERVICE_HTTPPORT": "0"}
        child = await run_py(prefix=clock.prefix, environ=environ)
        async with asyncio.timeout(ANSWER_TIMEOUT):
            _, err = await child.communicate()
        assert f"another chat_server (host {socket.gethostname()}, process {server.process.pid})" in err.decode()


async def test_a_killed_server_restarts_without_waiting_for_its_lease(leases: LeaseStores, tmp_path: Path) -> None:
    async with serving(tmp_path, leases) as server:
        server.kill()
        await server.wait()
    async with serving(tmp_path, leases) as server:
        assert "lease held elsewhere" not in server.log.read_text()
        await server.add_users(*unique_names(1))


async def test_a_stopped_server_leaves_no_lease(leases: LeaseStores, tmp_path: Path) -> None:
    async with serving(tmp_path, leases) as server:
        server.process.send_signal(signal.SIGTERM)
        assert await server.wait() == 0
    async with serving(tmp_path, leases) as server:
        assert "lease" not in server.log.read_text()


async def test_a_frozen_and_replaced_server_acknowledges_nothing(leases: LeaseStores, tmp_path: Path) -> None:
    one, two, three = unique_names(3)
    async with serving(tmp_path, leases, prefix=short_lease(tmp_path, SHORT_LEASE)) as server:
        await server.add_users(one, two, three)
        await server.make_contacts(one, three)
        async with server.chat(one, two) as chat, server.chat(one, three) as other:
            await chat.send("m1\nhello")
            server.process.send_signal(signal.SIGSTOP)
            await chat.put(1, "m2\nhello", type=1)
            await other.put(1, "m2\nhello", type=1)
            await asyncio.sleep(SHORT_LEASE * 1.2)  # until the lease has expired
            leases.give_to_another_host()
            server.process.send_signal(signal.SIGCONT)
            limited, free = await op_types(chat), await op_types(other)
            assert 40019 not in limited
            # The lease in Redis protects only data in Redis. A message without a contact limit does not need it.
            assert leases.name == "redis" or 40019 not in free
        assert await server.wait() == 1
        *_, line = server.log.read_text().splitlines()
        assert line.startswith("chat-server: ")
        assert "took this one's place" in line
        assert "elsewhere" in line


async def test_a_frozen_server_that_was_not_replaced_continues(leases: LeaseStores, tmp_path: Path) -> None:
    one, two = unique_names(2)
    async with serving(tmp_path, leases, prefix=short_lease(tmp_path, SHORT_LEASE)) as server:
        await server.add_users(one, two)
        async with server.chat(one, two) as chat:
            server.process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(SHORT_LEASE * 1.2)
            server.process.send_signal(signal.SIGCONT)
            await send_until_acknowledged(chat, "m1\nhello")


async def op_types(chat: ChatClient) -> list[int]:
    """Return the `op_type` of each frame until the server closes the socket."""
    found = []
    async with asyncio.timeout(ANSWER_TIMEOUT):
        async for frame in chat.connection:
            found.append(json.loads(frame)["op_type"])
    return found
