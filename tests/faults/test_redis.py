"""Redis away, frozen, killed, cut off, emptied: friends talk on, strangers are not waved through, and it heals."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from chat_server.cache.redis import POOL
from tests import servers
from tests.e2e.http_helpers import check_refusal, check_success, is_valid_session, post, send_request, try_login
from tests.faults.stores import (
    HOWS,
    SOON,
    alive,
    away,
    connections,
    fails,
    history,
    http_away,
    names,
    sent,
    store_away,
    upgrade_away,
    wire,
)
from tests.harness import ServerHandle, SubprocessServer, run_py, subprocess_server, wait_until
from tests.servers import DatabaseServer


@asynccontextmanager
async def serving(
    folder: Path, redis: DatabaseServer, port: int = 0, **settings: Any
) -> AsyncIterator[SubprocessServer]:
    """A server with keys of its own."""
    stores = servers.environ(redis=redis) | {"CHAT_REDIS_REDISPREFIX": names(1)[0]}
    if port:
        stores["CHAT_REDIS_REDISADDR"] = f"127.0.0.1:{port}"
    async with subprocess_server(folder / "data", stores=stores, **{**SOON, **settings}) as server:
        yield server


def admin(redis: DatabaseServer) -> Any:
    """A client of ours."""
    return Redis(port=redis.port)


def pooled(redis: DatabaseServer) -> int:
    """How many connections Redis has, but ours."""
    with admin(redis) as client:
        return len(client.client_list()) - 1


async def allowed(server: ServerHandle, user: str, to: str) -> int:
    """How many messages a stranger may send now."""
    count = 0
    async with server.chat(user, to) as chat:
        while (answer := await chat.send(f"one more: {count}"))["op_type"] != 40020:
            assert answer["op_type"] in (40018, 40019), answer
            count += 1
    return count


async def log_in(server: ServerHandle, *users: str) -> None:
    for user in users:
        server.tokens[user] = await server.login(user)


@pytest.mark.parametrize("how", HOWS)
async def test_while_it_is_away_friends_talk_on_all_others_are_refused_and_it_heals(
    redis: DatabaseServer, tmp_path: Path, how: str
) -> None:
    one, two, three, four = names(4)
    async with serving(tmp_path, redis) as server:
        await server.add_users(one, two, three, four)
        await server.make_contacts(one, two)
        async with (
            server.chat(one, two) as first,
            server.chat(two, one) as second,
            server.chat(three, one) as stranger,
        ):
            await stranger.send("counted\nhello")
            assert (await first.receive())["content"] == "counted\nhello"
            async with away(redis, how):
                for number in range(10):
                    assert (await first.send(f"m{number}\nhello"))["op_type"] == 40018
                    assert (await second.receive())["content"] == f"m{number}\nhello"
                await asyncio.gather(
                    store_away(stranger, 1, 40008, "m0\nhello", type=1),
                    store_away(first, 1, 40008, "m0\nhello", type=1, to=four),
                    http_away(server, "/user/login", one),
                    http_away(server, "/user/logout", four, server.tokens[four]),  # it may happen later
                    upgrade_away(server, one, two),
                )
                assert (await stranger.answer(6, "to all"))["op_type"] == 40009
                assert (await stranger.ask(2, "-10"))[-1]["op_type"] == 40005
                assert (await send_request(server, "GET", "/health")).status_code == 503
                await asyncio.gather(alive(second), alive(stranger))

            async def is_back() -> bool:
                return (await try_login(server, one)).status_code == 200

            await wait_until(is_back)
            async with server.chat(three, two) as again:
                await sent(again, "healed\nhello")
                assert await history(again) == ["healed\nhello"]
            assert await history(stranger) == ["counted\nhello"]
            assert len(await history(first)) == 12
            await wait_until(lambda: pooled(redis) <= POOL)
            assert connections(server.process.pid, redis.port) <= POOL


@pytest.mark.parametrize("how", HOWS)
async def test_no_stranger_gains_a_message_by_its_absence(redis: DatabaseServer, tmp_path: Path, how: str) -> None:
    one, two = names(2)
    async with serving(tmp_path, redis, StrangerLimit=4) as server:
        await server.add_users(one, two)
        async with server.chat(one, two) as stranger:
            await stranger.send("m0\nhello")
            async with away(redis, how):
                await store_away(stranger, 1, 40008, "m1\nhello", type=1)
                await store_away(stranger, 1, 40008, "m1\nhello", type=1)
            await sent(stranger, "m1\nhello")
            while (await stranger.send("more"))["op_type"] != 40020:
                pass
            assert 2 <= len(await history(stranger)) <= 4


async def test_a_connection_cut_in_the_middle_of_a_reply_heals(redis: DatabaseServer, tmp_path: Path) -> None:
    one, *others = names(7)
    async with wire(redis) as between, serving(tmp_path, redis, between.port) as server:
        await server.add_users(one, *others)
        async with server.chat(one) as chat:
            for other, budget in zip(others, (0, 1, 5, 10, 15, 20), strict=True):
                between.budget = budget
                await sent(chat, "m1\nhello", to=other)
                async with server.chat(other, one) as receiver:
                    assert await history(receiver) == ["m1\nhello"]
            assert between.cuts == len(others)
        await wait_until(lambda: pooled(redis) <= POOL)
        assert connections(server.process.pid, between.port) <= POOL


async def test_emptied_it_has_no_sessions_but_the_counters_follow_from_the_messages(
    redis: DatabaseServer, tmp_path: Path
) -> None:
    one, two, three, four = names(4)
    async with serving(tmp_path, redis) as server:
        await server.add_users(one, two, three, four)
        await server.make_contacts(one, two)
        async with server.chat(three, four) as stranger, server.chat(two, one) as second:
            for number in range(3):
                await stranger.send(f"m{number}\nhello")
            with admin(redis) as client:
                client.flushall()
            assert [await second.wait_closed(), await stranger.wait_closed()] == [4001, 4001]
        assert not await is_valid_session(server, server.tokens[one])
        await log_in(server, one, two, three, four)
        assert await allowed(server, three, four) == 2
        async with server.chat(one, two) as first:
            for number in range(10):
                assert (await first.send(f"m{number}\nhello"))["op_type"] == 40019
        tokens = server.tokens
    # Again, with a server that remembers nothing.
    with admin(redis) as client:
        client.flushall()
    async with serving(tmp_path, redis) as server:
        server.tokens = tokens
        await log_in(server, one, two, three, four)
        assert await allowed(server, three, four) == 0
        async with server.chat(one, two) as first:
            for number in range(10):
                assert (await first.send(f"again-{number}\nhello"))["op_type"] == 40019


async def test_killed_it_brings_no_session_back_and_no_count_if_it_is_set_to_keep_them(
    redis: DatabaseServer, tmp_path: Path
) -> None:
    one, two, three = names(3)
    async with serving(tmp_path, redis) as server:
        await server.add_users(one, two, three)
        ended = server.tokens[two]
        async with server.chat(one, three) as stranger:
            for number in range(3):
                await sent(stranger, f"m{number}\nhello")
        check_success(await post(server, "/user/logout", ended, user_name=two), 41015)
        redis.kill()
        await asyncio.to_thread(redis.start)

        async def is_back() -> bool:
            return (await send_request(server, "GET", "/health")).status_code == 200

        await wait_until(is_back)
        assert not await is_valid_session(server, ended)
        assert await is_valid_session(server, server.tokens[one])
        assert await allowed(server, one, three) == 2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ((), "appendonly no, appendfsync everysec"),
        (("--appendonly", "yes"), "appendfsync everysec"),
        (("--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "allkeys-lru"), "allkeys-lru"),
        (("--appendonly", "yes", "--appendfsync", "always"), ""),
        (("--rename-command", "CONFIG", ""), ""),
    ],
    ids=["nothing", "a second", "evicts", "all", "does not tell"],
)
async def test_one_that_may_go_back_on_what_it_said_is_told_of(
    tmp_path: Path, options: tuple[str, ...], told: str
) -> None:
    database = servers.redis(*options)
    try:
        async with serving(tmp_path, database) as server:
            await wait_until(lambda: ("Redis not durable" in server.log.read_text()) == bool(told))
        child = await run_py("--check", environ=servers.environ(redis=database))
        out, _ = await child.communicate()
        assert child.returncode == 0
        assert b"Redis: answers" in out
        assert (b"may lose" in out) == bool(told)
        assert told.encode() in out
    finally:
        database.stop()


async def test_it_may_forget_the_scripts(redis: DatabaseServer, tmp_path: Path) -> None:
    one, two = names(2)
    async with serving(tmp_path, redis) as server:
        await server.add_users(one, two)
        with admin(redis) as client:
            client.script_flush()
            assert await allowed(server, one, two) == 5
            client.script_flush()
            assert (await try_login(server, one)).status_code == 200


async def test_every_key_has_the_prefix_and_an_end(redis: DatabaseServer, tmp_path: Path) -> None:
    one, two, three = names(3)
    with admin(redis) as client:
        client.flushall()
        settings: dict[str, Any] = {"RegistrationsPerHour": 100, "BroadcastsPerMinute": 100}
        stores = servers.environ(redis=redis) | {"CHAT_REDIS_REDISPREFIX": "ours:"}
        async with subprocess_server(tmp_path / "data", stores=stores, **SOON, **settings) as server:
            await server.add_users(one, two, three)
            check_refusal(await try_login(server, one, "wrong password"), 401, 41010, "wrong_password")
            await server.make_contacts(one, two)
            await allowed(server, three, one)
            async with server.chat(three) as chat:
                assert (await chat.answer(6, "to all"))["op_type"] == 40009
            check_success(await post(server, "/user/logout", server.tokens[two], user_name=two), 41015)
            kinds = set()
            for key in client.scan_iter(count=1000):
                assert client.pttl(key) > 0, key
                assert key.startswith(b"ours:"), key
                kinds.add(key.split(b":")[1])
            assert kinds == {b"session", b"sessions", b"rate", b"stranger", b"lease"}


async def test_one_that_is_full_refuses_and_is_not_waited_for(redis: DatabaseServer, tmp_path: Path) -> None:
    one, two = names(2)
    async with serving(tmp_path, redis) as server:
        await server.add_users(one, two)
        with admin(redis) as client:
            async with server.chat(one, two) as stranger:
                client.config_set("maxmemory", 1)
                try:
                    await store_away(stranger, 1, 40008, "m1\nhello", type=1)
                    await http_away(server, "/user/login", one)
                    await alive(stranger)
                finally:
                    client.config_set("maxmemory", 0)
                await sent(stranger, "m1\nhello")
                assert await history(stranger) == ["m1\nhello"]


async def test_it_is_named_and_waited_for_and_the_wait_has_an_end(tmp_path: Path) -> None:
    stores = {"CHAT_REDIS_REDISDB": "redis", "CHAT_REDIS_REDISADDR": f"127.0.0.1:{servers.free_port()}"}
    line, before = await fails(tmp_path / "data", stores, StartTimeout=5, StoreTimeout=0.5)
    assert "Redis at " in line
    assert "connection refused" in line
    assert "gave up after 5 s (StartTimeout)" in line
    assert len(before) == 1
    assert "store not ready" in before[0]
    assert "Redis" in before[0]


async def test_a_server_that_was_started_first_comes_up_with_it(redis: DatabaseServer, tmp_path: Path) -> None:
    redis.kill()
    log = tmp_path / "server.log"

    async def come() -> None:
        await wait_until(lambda: log.exists() and "store not ready" in log.read_text())
        await asyncio.to_thread(redis.start)

    coming = asyncio.create_task(come())
    async with serving(tmp_path, redis) as server:
        await coming
        await server.add_users(*names(1))


async def test_a_wrong_password_is_told_at_once(redis: DatabaseServer, tmp_path: Path) -> None:
    guarded = servers.redis("--requirepass", "secret")
    try:
        stores = servers.environ(redis=guarded)
        for wrong in ({}, {"CHAT_REDIS_REDISPW": "hunter2"}):
            line, before = await fails(tmp_path / "data", stores | wrong, StartTimeout=600, StoreTimeout=5)
            assert "RedisPw is wrong" in line
            assert "hunter2" not in line
            assert before == []
        async with subprocess_server(tmp_path / "data", stores=stores | {"CHAT_REDIS_REDISPW": "secret"}):
            pass
    finally:
        guarded.stop()
