"""Outages and data loss of Redis: pairs without a limit chat on, no limit is exceeded, and the server recovers."""

import asyncio
import socket
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import uvloop
from redis import Redis

from chat_server.cache.redis import POOL, Scripts
from chat_server.cache.redis import client as redis_client
from chat_server.conf import RedisSettings
from chat_server.utils.errors import StoreUnavailable
from tests import servers
from tests.e2e.http_helpers import check_refusal, check_success, is_valid_session, post, send_request, try_login
from tests.faults.stores import (
    OUTAGE_KINDS,
    SHORT_HEARTBEAT,
    SHORT_TIMEOUTS,
    count_connections,
    expect_http_store_away,
    expect_open,
    expect_start_timeout,
    expect_store_away,
    expect_upgrade_store_away,
    history,
    send_until_acknowledged,
    start_error,
    started_later,
    tcp_proxy,
    unavailable,
    unique_names,
)
from tests.harness import ServerHandle, SubprocessServer, run_py, subprocess_server, wait_until
from tests.servers import DatabaseServer


@asynccontextmanager
async def serving(
    folder: Path, redis: DatabaseServer, port: int = 0, **settings: Any
) -> AsyncIterator[SubprocessServer]:
    """Run a server with its own keys; with `port`, through a proxy."""
    stores = servers.environ(redis=redis) | {"CHAT_REDIS_REDISPREFIX": unique_names(1)[0]}
    if port:
        stores["CHAT_REDIS_REDISADDR"] = f"127.0.0.1:{port}"
    async with subprocess_server(folder / "data", stores=stores, **{**SHORT_TIMEOUTS, **settings}) as server:
        yield server


def admin(redis: DatabaseServer) -> Any:
    """Return a client of this test."""
    return Redis(port=redis.port)


def pooled(redis: DatabaseServer) -> int:
    """Return the number of connections to Redis, without that of this function."""
    with admin(redis) as client:
        return len(client.client_list()) - 1


async def count_allowed(server: ServerHandle, user: str, to: str) -> int:
    """Send messages until the limit refuses one; return the number of accepted ones."""
    count = 0
    async with server.chat(user, to) as chat:
        while (answer := await chat.send(f"one more: {count}"))["op_type"] != 40020:
            assert answer["op_type"] in (40018, 40019), answer
            count += 1
    return count


async def log_in(server: ServerHandle, *users: str) -> None:
    for user in users:
        server.tokens[user] = await server.login(user)


@pytest.mark.parametrize("how", OUTAGE_KINDS)
async def test_pairs_without_a_limit_chat_on_while_redis_is_away(
    redis: DatabaseServer, tmp_path: Path, how: str
) -> None:
    one, two, three, four = unique_names(4)
    async with serving(tmp_path, redis) as server:
        await server.add_users(one, two, three, four)
        await server.make_contacts(one, two)
        async with (
            server.chat(one, two) as first,
            server.chat(two, one) as second,
            server.chat(three, one) as limited,
        ):
            await limited.send("counted\nhello")
            assert (await first.receive())["content"] == "counted\nhello"
            async with unavailable(redis, how):
                for number in range(10):
                    assert (await first.send(f"m{number}\nhello"))["op_type"] == 40018
                    assert (await second.receive())["content"] == f"m{number}\nhello"
                await asyncio.gather(
                    expect_store_away(limited, 1, 40008, "m0\nhello", type=1),
                    expect_store_away(first, 1, 40008, "m0\nhello", type=1, to=four),
                    expect_http_store_away(server, "/user/login", one),
                    # Redis may complete this logout later.
                    expect_http_store_away(server, "/user/logout", four, server.tokens[four]),
                    expect_upgrade_store_away(server, one, two),
                    expect_open(second),
                    expect_open(limited),
                )
                assert (await limited.answer(6, "to all"))["op_type"] == 40009
                assert (await limited.ask(2, "-10"))[-1]["op_type"] == 40005
                assert (await send_request(server, "GET", "/health")).status_code == 503

            async def is_back() -> bool:
                return (await try_login(server, one)).status_code == 200

            await wait_until(is_back)
            async with server.chat(three, two) as again:
                await send_until_acknowledged(again, "recovered\nhello")
                assert await history(again) == ["recovered\nhello"]
            assert await history(limited) == ["counted\nhello"]
            assert len(await history(first)) == 12
            await wait_until(lambda: pooled(redis) <= POOL)
            assert count_connections(server.process.pid, redis.port) <= POOL


@pytest.mark.parametrize("how", OUTAGE_KINDS)
async def test_an_outage_of_redis_allows_no_additional_message(redis: DatabaseServer, tmp_path: Path, how: str) -> None:
    one, two = unique_names(2)
    async with serving(tmp_path, redis, StrangerLimit=4) as server:
        await server.add_users(one, two)
        async with server.chat(one, two) as limited:
            await limited.send("m0\nhello")
            async with unavailable(redis, how):
                await expect_store_away(limited, 1, 40008, "m1\nhello", type=1)
                await expect_store_away(limited, 1, 40008, "m1\nhello", type=1)
            await send_until_acknowledged(limited, "m1\nhello")
            while (await limited.send("more"))["op_type"] != 40020:
                pass
            assert 2 <= len(await history(limited)) <= 4


async def test_the_server_recovers_from_a_reply_of_redis_cut_short(redis: DatabaseServer, tmp_path: Path) -> None:
    one, *others = unique_names(7)
    async with tcp_proxy(redis) as proxy, serving(tmp_path, redis, proxy.port) as server:
        await server.add_users(one, *others)
        async with server.chat(one) as chat:
            for other, budget in zip(others, (0, 1, 5, 10, 15, 20), strict=True):
                proxy.budget = budget
                await send_until_acknowledged(chat, "m1\nhello", to=other)
                async with server.chat(other, one) as receiver:
                    assert await history(receiver) == ["m1\nhello"]
            assert proxy.cuts == len(others)
        await wait_until(lambda: pooled(redis) <= POOL)
        assert count_connections(server.process.pid, proxy.port) <= POOL


async def test_a_reset_in_any_phase_of_a_call_is_an_outage() -> None:
    """The event loop is delayed so that a reset comes between connecting and the first write, too."""

    async def call_often(port: int) -> set[object]:
        client = redis_client(RedisSettings(redis_addr=f"127.0.0.1:{port}"), 1.0)
        scripts, errors = Scripts(client, "", 1.0), set[object]()
        for number in range(120):
            call = asyncio.create_task(scripts.ping())
            for _ in range(number % 6):
                await asyncio.sleep(0)
            time.sleep(0.003)
            [error] = await asyncio.gather(call, return_exceptions=True)
            errors.add(type(error))
        return errors

    with socket.create_server(("127.0.0.1", 0)) as listener:
        Thread(target=reset_all, args=(listener,), daemon=True).start()
        errors = await asyncio.to_thread(uvloop.run, call_often(listener.getsockname()[1]))
    assert errors == {StoreUnavailable}


def reset_all(listener: socket.socket) -> None:
    """Reset each connection to `listener`, until it is closed."""
    with suppress(OSError):
        while True:
            connection, _ = listener.accept()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()


async def test_counters_lost_by_redis_are_rebuilt_from_messages(redis: DatabaseServer, tmp_path: Path) -> None:
    one, two, three, four = unique_names(4)
    async with serving(tmp_path, redis) as server:
        await server.add_users(one, two, three, four)
        await server.make_contacts(one, two)
        async with server.chat(three, four) as limited, server.chat(two, one) as second:
            for number in range(3):
                await limited.send(f"m{number}\nhello")
            with admin(redis) as client:
                client.flushall()
            assert [await second.wait_closed(), await limited.wait_closed()] == [4001, 4001]
        assert not await is_valid_session(server, server.tokens[one])
        await log_in(server, one, two, three, four)
        assert await count_allowed(server, three, four) == 2
        async with server.chat(one, two) as first:
            for number in range(10):
                assert (await first.send(f"m{number}\nhello"))["op_type"] == 40019
        tokens = server.tokens
    # Again, with a new server process, which has cached nothing.
    with admin(redis) as client:
        client.flushall()
    async with serving(tmp_path, redis) as server:
        server.tokens = tokens
        await log_in(server, one, two, three, four)
        assert await count_allowed(server, three, four) == 0
        async with server.chat(one, two) as first:
            for number in range(10):
                assert (await first.send(f"again-{number}\nhello"))["op_type"] == 40019


async def test_a_durable_redis_keeps_sessions_and_counts_after_a_kill(redis: DatabaseServer, tmp_path: Path) -> None:
    one, two, three = unique_names(3)
    async with serving(tmp_path, redis) as server:
        await server.add_users(one, two, three)
        ended = server.tokens[two]
        async with server.chat(one, three) as limited:
            for number in range(3):
                await send_until_acknowledged(limited, f"m{number}\nhello")
        check_success(await post(server, "/user/logout", ended, user_name=two), 41015)
        redis.kill()
        await asyncio.to_thread(redis.start)

        async def is_back() -> bool:
            return (await send_request(server, "GET", "/health")).status_code == 200

        await wait_until(is_back)
        assert not await is_valid_session(server, ended)
        assert await is_valid_session(server, server.tokens[one])
        assert await count_allowed(server, one, three) == 2


@pytest.mark.parametrize(
    ("options", "reported"),
    [
        ((), "appendonly no, appendfsync everysec"),
        (("--appendonly", "yes"), "appendfsync everysec"),
        (("--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "allkeys-lru"), "allkeys-lru"),
        (("--appendonly", "yes", "--appendfsync", "always"), ""),
        (("--rename-command", "CONFIG", ""), ""),
    ],
    ids=["not durable", "every second", "evicts", "durable", "no CONFIG"],
)
async def test_a_redis_that_may_lose_data_is_reported(tmp_path: Path, options: tuple[str, ...], reported: str) -> None:
    database = servers.redis(*options)
    try:
        async with serving(tmp_path, database) as server:
            await wait_until(lambda: ("Redis not durable" in server.log.read_text()) == bool(reported))
        child = await run_py("--check", environ=servers.environ(redis=database))
        out, _ = await child.communicate()
        assert child.returncode == 0
        assert b"Redis: answers" in out
        assert (b"may lose" in out) == bool(reported)
        assert reported.encode() in out
    finally:
        database.stop()


async def test_redis_may_forget_the_scripts(redis: DatabaseServer, tmp_path: Path) -> None:
    one, two = unique_names(2)
    async with serving(tmp_path, redis) as server:
        await server.add_users(one, two)
        with admin(redis) as client:
            client.script_flush()
            assert await count_allowed(server, one, two) == 5
            client.script_flush()
            assert (await try_login(server, one)).status_code == 200


async def test_every_redis_key_has_the_prefix_and_expires(redis: DatabaseServer, tmp_path: Path) -> None:
    one, two, three = unique_names(3)
    with admin(redis) as client:
        client.flushall()
        settings: dict[str, Any] = {"RegistrationsPerHour": 100, "BroadcastsPerMinute": 100}
        stores = servers.environ(redis=redis) | {"CHAT_REDIS_REDISPREFIX": "ours:"}
        async with subprocess_server(tmp_path / "data", stores=stores, **SHORT_HEARTBEAT, **settings) as server:
            await server.add_users(one, two, three)
            check_refusal(await try_login(server, one, "wrong password"), 401, 41010, "wrong_password")
            await server.make_contacts(one, two)
            await count_allowed(server, three, one)
            async with server.chat(three) as chat:
                assert (await chat.answer(6, "to all"))["op_type"] == 40009
            check_success(await post(server, "/user/logout", server.tokens[two], user_name=two), 41015)
            kinds = set()
            for key in client.scan_iter(count=1000):
                assert client.pttl(key) > 0, key
                assert key.startswith(b"ours:"), key
                kinds.add(key.split(b":")[1])
            assert kinds == {b"session", b"sessions", b"rate", b"stranger", b"lease"}


async def test_a_full_redis_refuses_immediately(redis: DatabaseServer, tmp_path: Path) -> None:
    one, two = unique_names(2)
    async with serving(tmp_path, redis) as server:
        await server.add_users(one, two)
        with admin(redis) as client:
            async with server.chat(one, two) as limited:
                client.config_set("maxmemory", 1)
                try:
                    await expect_store_away(limited, 1, 40008, "m1\nhello", type=1)
                    await expect_http_store_away(server, "/user/login", one)
                    await expect_open(limited)
                finally:
                    client.config_set("maxmemory", 0)
                await send_until_acknowledged(limited, "m1\nhello")
                assert await history(limited) == ["m1\nhello"]


async def test_a_start_waits_for_redis_until_start_timeout(tmp_path: Path) -> None:
    stores = {"CHAT_REDIS_REDISDB": "redis", "CHAT_REDIS_REDISADDR": f"127.0.0.1:{servers.free_port()}"}
    await expect_start_timeout(tmp_path, stores, "Redis")


async def test_a_server_starts_when_redis_becomes_available(redis: DatabaseServer, tmp_path: Path) -> None:
    async with started_later(redis, tmp_path), serving(tmp_path, redis) as server:
        await server.add_users(*unique_names(1))


async def test_a_wrong_redis_password_is_reported_immediately(redis: DatabaseServer, tmp_path: Path) -> None:
    guarded = servers.redis("--requirepass", "secret")
    try:
        stores = servers.environ(redis=guarded)
        for wrong in ({}, {"CHAT_REDIS_REDISPW": "hunter2"}):
            line, before = await start_error(tmp_path / "data", stores | wrong, StartTimeout=600, StoreTimeout=5)
            assert "RedisPw is wrong" in line
            assert "hunter2" not in line
            assert before == []
        async with subprocess_server(tmp_path / "data", stores=stores | {"CHAT_REDIS_REDISPW": "secret"}):
            pass
    finally:
        guarded.stop()
