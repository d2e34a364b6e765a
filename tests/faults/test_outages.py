"""A store is away for several leases: features that do not need it work, as docs/operations.md states."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests import servers
from tests.e2e.http_helpers import try_login
from tests.faults.stores import (
    ANSWER_TIMEOUT,
    SHORT_TIMEOUTS,
    expect_http_store_away,
    expect_store_away,
    expect_upgrade_store_away,
    send_until_acknowledged,
    start_error,
    tcp_proxy,
    unavailable,
    unique_names,
    wait_until_waiting,
)
from tests.harness import ChatClient, SubprocessServer, short_lease, subprocess_server, wait_until
from tests.servers import DatabaseServer

SHORT_LEASE = 1.5  # seconds
OUTAGE_SECONDS = 3.3 * SHORT_LEASE
LONGER_LEASE = 4.5  # seconds: it must not expire while a busy machine stops its holder


@dataclass
class OutageSetup:
    """A server with a store that goes away, and the sockets of its users.

    No contact limit applies between `one` and `two`. It applies to `limited`, and the server has not cached `unseen`.
    """

    server: SubprocessServer
    one: ChatClient
    two: ChatClient
    limited: ChatClient
    unseen: str
    broadcasts_limited: bool


@asynccontextmanager
async def set_up(
    folder: Path, stores: Mapping[str, str], *, broadcasts_limited: bool = False, lease: float = SHORT_LEASE
) -> AsyncIterator[OutageSetup]:
    one, two, three, unseen = unique_names(4)
    options: dict[str, Any] = {**SHORT_TIMEOUTS, "prefix": short_lease(folder, lease), "LoginFailures": 1000}
    options["BroadcastsPerMinute"] = 100 if broadcasts_limited else 0
    async with subprocess_server(folder / "data", stores=stores, **options) as server, AsyncExitStack() as stack:
        await server.add_users(one, two, three, unseen)
        await server.make_contacts(one, two)
        async with server.chat(three, one) as chat:
            await chat.send("counted\nhello")
        chats = [await stack.enter_async_context(server.chat(*pair)) for pair in ((one, two), (two, one), (three, one))]
        yield OutageSetup(server, chats[0], chats[1], chats[2], unseen, broadcasts_limited)


async def exchange(setup: OutageSetup) -> str:
    """Fail unless `one` and `two` can send each other a message; return the id of both messages."""
    [id] = unique_names(1)
    for sender, receiver in ((setup.one, setup.two), (setup.two, setup.one)):
        async with asyncio.timeout(ANSWER_TIMEOUT):
            assert (await sender.send(f"{id}\nhello"))["op_type"] == 40018
            assert (await receiver.receive())["content"] == f"{id}\nhello"
    return id


async def exchange_and_read(setup: OutageSetup) -> None:
    """Fail unless they can send messages, page, mark, list and delete them."""
    id = await exchange(setup)
    for op, content, status in ((2, "-10", 40005), (3, "", 40005), (4, "*", 40007), (7, "-9", 40023), (5, id, 40013)):
        async with asyncio.timeout(ANSWER_TIMEOUT):
            assert (await setup.one.answer(op, content))["op_type"] == status


async def broadcast(setup: OutageSetup) -> None:
    """Fail unless a broadcast arrives."""
    async with asyncio.timeout(ANSWER_TIMEOUT):
        assert (await setup.two.answer(6, "to all"))["op_type"] == 40009
        assert (await setup.one.receive())["content"] == "to all"


async def without_users(setup: OutageSetup) -> None:
    await exchange_and_read(setup)
    await broadcast(setup)
    async with setup.server.chat(setup.two.user, setup.one.user):
        pass
    await asyncio.gather(
        expect_http_store_away(setup.server, "/user/login", setup.one.user),
        expect_http_store_away(setup.server, "/user/register", unique_names(1)[0]),
        expect_store_away(setup.one, 1, 40008, "m0\nhello", type=1, to=setup.unseen),
    )


async def refused_on_new_socket(setup: OutageSetup, op_type: int, status: int, content: str, **keys: Any) -> None:
    async with setup.server.chat(setup.one.user, setup.two.user) as chat:
        await expect_store_away(chat, op_type, status, content, **keys)


async def without_messages(setup: OutageSetup) -> None:
    assert (await try_login(setup.server, setup.one.user)).status_code == 200
    await setup.server.add_users(unique_names(1)[0])
    async with setup.server.chat(setup.two.user, setup.one.user):
        pass
    await broadcast(setup)
    await asyncio.gather(
        refused_on_new_socket(setup, 2, 40004, "-10"),
        refused_on_new_socket(setup, 3, 40004, ""),
        refused_on_new_socket(setup, 4, 40006, "m1"),
        refused_on_new_socket(setup, 5, 40012, "m1"),
        refused_on_new_socket(setup, 7, 40022, "-9"),
        expect_store_away(setup.one, 1, 40008, "m0\nhello", type=1),
    )


async def without_cache(setup: OutageSetup) -> None:
    await exchange_and_read(setup)
    await asyncio.gather(
        expect_store_away(setup.limited, 1, 40008, "m0\nhello", type=1),
        expect_store_away(setup.one, 1, 40008, "m0\nhello", type=1, to=setup.unseen),
        expect_http_store_away(setup.server, "/user/login", setup.one.user),
        expect_http_store_away(setup.server, "/user/logout", setup.unseen, setup.server.tokens[setup.unseen]),
        expect_upgrade_store_away(setup.server, setup.one.user, setup.two.user),
    )
    if setup.broadcasts_limited:
        await expect_store_away(setup.one, 6, 40008, "to all")
    else:
        await broadcast(setup)


CHECKS = {"mysql": without_users, "mongodb": without_messages, "redis": without_cache}


class Outage(NamedTuple):
    """A store goes away. With `others`, the other stores are database servers that stay up, otherwise embedded."""

    store: str
    how: str
    others: bool


# Each entry is one test. Its outages run in parallel: no outage needs a store of another one.
OUTAGES = {
    "users": [Outage("mysql", "killed", True)],
    "messages": [Outage("mongodb", "frozen", True)],
    "cache": [Outage("redis", "killed", True), Outage("redis", "frozen", True), Outage("redis", "killed", False)],
    "one server": [Outage("mysql", "frozen", False), Outage("mongodb", "killed", False)],
}


@pytest.mark.parametrize("outages", OUTAGES.values(), ids=OUTAGES)
async def test_an_outage_of_three_leases_affects_only_its_features(
    mysql: DatabaseServer, mongodb: DatabaseServer, tmp_path: Path, outages: list[Outage]
) -> None:
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        for number, outage in enumerate(outages):
            folder = tmp_path / str(number)
            folder.mkdir()
            redis = servers.redis("--appendonly", "yes", "--appendfsync", "always")
            stack.callback(redis.stop)
            databases = {"mysql": mysql, "mongodb": mongodb, "redis": redis}
            group.create_task(check_outage(outage, databases, folder))


async def check_outage(outage: Outage, databases: dict[str, DatabaseServer], folder: Path) -> None:
    """Fail unless the server does what operations.md states during the outage, and recovers after it."""
    store, how, others = outage
    chosen = databases if others else {store: databases[store]}
    own = unique_names(1)[0]
    stores = servers.environ(**chosen) | {"CHAT_MONGODB_MONGODBNAME": own, "CHAT_REDIS_REDISPREFIX": own}
    async with set_up(folder, stores, broadcasts_limited=store == "redis" and others) as setup:
        async with unavailable(databases[store], how):
            end = asyncio.get_running_loop().time() + OUTAGE_SECONDS
            await CHECKS[store](setup)
            await asyncio.sleep(end - asyncio.get_running_loop().time())  # until the leases have expired
            await CHECKS[store](setup)
            for chat in (setup.one, setup.two, setup.limited):  # several heartbeats later
                async with asyncio.timeout(ANSWER_TIMEOUT):
                    await (await chat.connection.ping())

        async def is_back() -> bool:
            return (await try_login(setup.server, setup.one.user)).status_code == 200

        await wait_until(is_back)
        await send_until_acknowledged(setup.one, "recovered\nhello", to=setup.unseen)
        await send_until_acknowledged(setup.limited, "recovered\nhello")


async def test_an_outage_of_redis_admits_no_second_server(
    mongodb: DatabaseServer, redis: DatabaseServer, tmp_path: Path
) -> None:
    """A server with the same MongoDB and another Redis is refused, however long the first Redis is away."""
    own = {"CHAT_MONGODB_MONGODBNAME": unique_names(1)[0], "CHAT_REDIS_REDISPREFIX": unique_names(1)[0]}
    another = servers.redis()
    try:
        first = set_up(tmp_path, servers.environ(mongodb=mongodb, redis=redis) | own, lease=LONGER_LEASE)
        async with first as setup, unavailable(redis, "killed"):
            await asyncio.sleep(1.5 * LONGER_LEASE)
            stores = servers.environ(mongodb=mongodb, redis=another) | own
            line, _ = await start_error(tmp_path / "other", stores)
            assert "MongoDBName: another chat_server" in line
            await exchange(setup)
    finally:
        another.stop()


@pytest.mark.parametrize(
    ("store", "setting", "request_part"),
    [("mysql", "CHAT_MYSQL_DBPORT", b"max(since)"), ("mongodb", "CHAT_MONGODB_MONGODBADDR", b"sort")],
)
async def test_a_start_repeats_the_search_for_the_newest_time(
    request: pytest.FixtureRequest, tmp_path: Path, store: str, setting: str, request_part: bytes
) -> None:
    """It is the last request of a start. Connections that are lost during it are no reason to restore a backup."""
    database: DatabaseServer = request.getfixturevalue(store)
    async with tcp_proxy(database) as proxy, asyncio.TaskGroup() as group:
        port = str(proxy.port)
        address = f"mongodb://127.0.0.1:{port}/?directConnection=true" if store == "mongodb" else port
        stores = servers.environ(**{store: database}) | {setting: address}
        proxy.forbidden = request_part

        async def allow_later() -> None:
            await wait_until_waiting(tmp_path)
            proxy.forbidden = None

        group.create_task(allow_later())
        async with subprocess_server(tmp_path / "data", stores=stores, **SHORT_TIMEOUTS) as server:
            await server.add_users(*unique_names(2))
        assert proxy.cuts
