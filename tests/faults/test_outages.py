"""A store that is away for several leases: what docs/operations.md says goes on does, the rest is refused, it heals."""

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
    unavailable,
    unique_names,
)
from tests.harness import ChatClient, SubprocessServer, short_lease, subprocess_server, wait_until
from tests.servers import DatabaseServer

LEASE = 1.5  # seconds
OUTAGE = 3.3 * LEASE


@dataclass
class Scene:
    """A server whose store is away: two friends with a socket each, a stranger, and a user nobody has asked for."""

    server: SubprocessServer
    one: ChatClient
    two: ChatClient
    stranger: ChatClient
    unseen: str
    limited: bool  # messages to everybody are counted


@asynccontextmanager
async def scene(folder: Path, stores: Mapping[str, str], *, limited: bool = False) -> AsyncIterator[Scene]:
    one, two, three, unseen = unique_names(4)
    options: dict[str, Any] = {**SHORT_TIMEOUTS, "prefix": short_lease(folder, LEASE), "LoginFailures": 1000}
    options["BroadcastsPerMinute"] = 100 if limited else 0
    async with subprocess_server(folder / "data", stores=stores, **options) as server, AsyncExitStack() as stack:
        await server.add_users(one, two, three, unseen)
        await server.make_contacts(one, two)
        async with server.chat(three, one) as chat:
            await chat.send("counted\nhello")
        chats = [await stack.enter_async_context(server.chat(*pair)) for pair in ((one, two), (two, one), (three, one))]
        yield Scene(server, chats[0], chats[1], chats[2], unseen, limited)


async def talk(scene: Scene) -> str:
    """Fail unless each of the friends sends the other a message, stored and delivered; returns the id of both."""
    [id] = unique_names(1)
    for sender, receiver in ((scene.one, scene.two), (scene.two, scene.one)):
        async with asyncio.timeout(ANSWER_TIMEOUT):
            assert (await sender.send(f"{id}\nhello"))["op_type"] == 40018
            assert (await receiver.receive())["content"] == f"{id}\nhello"
    return id


async def talk_and_read(scene: Scene) -> None:
    """Fail unless the friends can send messages, page, mark, list and delete them."""
    id = await talk(scene)
    for op, content, status in ((2, "-10", 40005), (3, "", 40005), (4, "*", 40007), (7, "-9", 40023), (5, id, 40013)):
        async with asyncio.timeout(ANSWER_TIMEOUT):
            assert (await scene.one.answer(op, content))["op_type"] == status


async def broadcast(scene: Scene) -> None:
    """Fail unless a message to everybody arrives."""
    async with asyncio.timeout(ANSWER_TIMEOUT):
        assert (await scene.two.answer(6, "to all"))["op_type"] == 40009
        assert (await scene.one.receive())["content"] == "to all"


async def without_users(scene: Scene) -> None:
    await talk_and_read(scene)
    await broadcast(scene)
    async with scene.server.chat(scene.two.user, scene.one.user):
        pass
    await expect_http_store_away(scene.server, "/user/login", scene.one.user)
    await expect_http_store_away(scene.server, "/user/register", unique_names(1)[0])
    await expect_store_away(scene.one, 1, 40008, "m0\nhello", type=1, to=scene.unseen)


async def without_messages(scene: Scene) -> None:
    assert (await try_login(scene.server, scene.one.user)).status_code == 200
    await scene.server.add_users(unique_names(1)[0])
    async with scene.server.chat(scene.two.user, scene.one.user):
        pass
    await broadcast(scene)
    for op, failed, content in (
        (2, 40004, "-10"),
        (3, 40004, ""),
        (4, 40006, "m1"),
        (5, 40012, "m1"),
        (7, 40022, "-9"),
    ):
        await expect_store_away(scene.one, op, failed, content)
    await expect_store_away(scene.one, 1, 40008, "m0\nhello", type=1)


async def without_cache(scene: Scene) -> None:
    await talk_and_read(scene)
    await expect_store_away(scene.stranger, 1, 40008, "m0\nhello", type=1)
    await expect_store_away(scene.one, 1, 40008, "m0\nhello", type=1, to=scene.unseen)
    if scene.limited:
        await expect_store_away(scene.one, 6, 40008, "to all")
    else:
        await broadcast(scene)
    await expect_http_store_away(scene.server, "/user/login", scene.one.user)
    await expect_http_store_away(scene.server, "/user/logout", scene.unseen, scene.server.tokens[scene.unseen])
    await expect_upgrade_store_away(scene.server, scene.one.user, scene.two.user)


CLAIMS = {"mysql": without_users, "mongodb": without_messages, "redis": without_cache}


class Outage(NamedTuple):
    """A store goes away; `others`: the other stores are servers as well and stay up, if not they are embedded."""

    store: str
    how: str
    others: bool


# Each entry is one test. Its outages run at the same time: none needs a store that another one takes away.
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
            group.create_task(holds(outage, databases, folder))


async def holds(outage: Outage, databases: dict[str, DatabaseServer], folder: Path) -> None:
    """Fail unless the server keeps its claims during the outage, and heals after it."""
    store, how, others = outage
    chosen = databases if others else {store: databases[store]}
    own = unique_names(1)[0]
    stores = servers.environ(**chosen) | {"CHAT_MONGODB_MONGODBNAME": own, "CHAT_REDIS_REDISPREFIX": own}
    async with scene(folder, stores, limited=store == "redis" and others) as there:
        async with unavailable(databases[store], how):
            over = asyncio.get_running_loop().time() + OUTAGE
            await CLAIMS[store](there)
            await asyncio.sleep(over - asyncio.get_running_loop().time())  # the leases run out: only time does that
            await CLAIMS[store](there)
            for chat in (there.one, there.two, there.stranger):  # several heartbeats later
                async with asyncio.timeout(ANSWER_TIMEOUT):
                    await (await chat.connection.ping())

        async def is_back() -> bool:
            return (await try_login(there.server, there.one.user)).status_code == 200

        await wait_until(is_back)
        await send_until_acknowledged(there.one, "healed\nhello", to=there.unseen)
        await send_until_acknowledged(there.stranger, "healed\nhello")


async def test_an_outage_of_redis_admits_no_second_server(
    mongodb: DatabaseServer, redis: DatabaseServer, tmp_path: Path
) -> None:
    """One with the same MongoDB and a Redis of its own is refused, however long the first's Redis is away."""
    own = {"CHAT_MONGODB_MONGODBNAME": unique_names(1)[0], "CHAT_REDIS_REDISPREFIX": unique_names(1)[0]}
    another = servers.redis()
    try:
        first = scene(tmp_path, servers.environ(mongodb=mongodb, redis=redis) | own)
        async with first as there, unavailable(redis, "killed"):
            await asyncio.sleep(OUTAGE)
            stores = servers.environ(mongodb=mongodb, redis=another) | own
            line, _ = await start_error(tmp_path / "other", stores)
            assert "MongoDBName: another chat_server" in line
            await talk(there)
    finally:
        another.stop()
