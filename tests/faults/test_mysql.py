"""Outages of MySQL: known users chat on, no user counts as unknown, and the server recovers."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path

import pymysql
import pytest

from chat_server.model.groups import Group, GroupLimits
from chat_server.model.mysql import POOL, connect
from chat_server.model.users import User
from chat_server.utils.errors import StoreUnavailable
from tests import servers
from tests.e2e.http_helpers import post, send_request, try_login
from tests.faults.stores import (
    ANSWER_TIMEOUT,
    OUTAGE_KINDS,
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
from tests.harness import PASSWORD, SubprocessServer, subprocess_server, wait_until
from tests.servers import DatabaseServer


@asynccontextmanager
async def serving(folder: Path, mysql: DatabaseServer, port: int = 0) -> AsyncIterator[SubprocessServer]:
    stores = servers.environ(mysql=mysql)
    if port:
        stores["CHAT_MYSQL_DBPORT"] = str(port)
    async with subprocess_server(
        folder / "data", stores=stores, LoginFailures=1000, LoginFailuresPerAddress=1000, **SHORT_TIMEOUTS
    ) as server:
        yield server


def pooled(mysql: DatabaseServer) -> int:
    """Return the number of connections to MySQL, without that of this function."""
    with (
        closing(pymysql.connect(host="127.0.0.1", port=mysql.port, user="chat", password="secret")) as connection,
        connection.cursor() as cursor,
    ):
        return cursor.execute("SHOW PROCESSLIST") - 1


@pytest.mark.parametrize("how", OUTAGE_KINDS)
async def test_known_users_chat_on_while_mysql_is_away(mysql: DatabaseServer, tmp_path: Path, how: str) -> None:
    one, two, new = unique_names(3)
    async with serving(tmp_path, mysql) as server:
        await server.add_users(one, two)
        await server.make_contacts(one, two)
        async with server.chat(one, two) as first, server.chat(two, one) as second, server.chat(two) as asking:
            async with unavailable(mysql, how):
                # More simultaneous requests than the pool has connections.
                requests = asyncio.gather(
                    *(expect_http_store_away(server, "/user/login", one) for _ in range(2 * POOL)),
                    expect_http_store_away(server, "/user/register", new),
                    expect_upgrade_store_away(server, one, new),
                    expect_store_away(asking, 1, 40008, "m0\nhello", type=1, to=new),
                    expect_open(first),
                )
                for number in range(10):
                    assert (await first.send(f"m{number}\nhello"))["op_type"] == 40018
                await requests
                for number in range(10):
                    assert (await second.receive())["content"] == f"m{number}\nhello"
                async with server.chat(one, two) as third:
                    assert len(await history(third)) == 12
                    for op, content, status in ((3, "", 40005), (4, "*", 40007), (6, "all", 40009), (7, "-9", 40023)):
                        assert (await third.answer(op, content))["op_type"] == status
                assert (await send_request(server, "GET", "/health")).status_code == 503

            async def is_back() -> bool:
                return (await try_login(server, one)).status_code == 200

            await wait_until(is_back)
            await wait_until(lambda: pooled(mysql) <= POOL)
            assert count_connections(server.process.pid, mysql.port) <= POOL

            async def is_registered() -> bool:  # perhaps already by the request during the outage
                body = {"user_name": new, "password": PASSWORD}
                return (await post(server, "/user/register", **body)).status_code == 409

            await wait_until(is_registered)
            await send_until_acknowledged(first, "m1\nhello", to=new)


async def test_outages_leak_no_mysql_connections(mysql: DatabaseServer, tmp_path: Path) -> None:
    [one] = unique_names(1)
    async with serving(tmp_path, mysql) as server:
        await server.add_users(one)
        for how in OUTAGE_KINDS * 3:
            async with unavailable(mysql, how):
                await asyncio.gather(*(expect_http_store_away(server, "/user/login", one) for _ in range(2 * POOL)))

            async def all_log_in() -> bool:
                answers = await asyncio.gather(*(try_login(server, one) for _ in range(2 * POOL)))
                return {answer.status_code for answer in answers} == {200}

            await wait_until(all_log_in)
            await wait_until(lambda: pooled(mysql) <= POOL)
            assert count_connections(server.process.pid, mysql.port) <= POOL


async def test_a_reply_of_mysql_cut_short_makes_no_user_unknown(mysql: DatabaseServer, tmp_path: Path) -> None:
    [one] = unique_names(1)
    async with tcp_proxy(mysql) as proxy, serving(tmp_path, mysql, proxy.port) as server:
        await server.add_users(one)
        budgets = (0, 1, 4, 5, 20, 60, 100, 150, 200)
        for budget in budgets:
            proxy.budget = budget
            async with asyncio.timeout(ANSWER_TIMEOUT):
                while (answer := await try_login(server, one)).status_code != 200:
                    assert (answer.status_code, answer.json()["data"]["reason"]) == (503, "store_away")
        assert proxy.cuts >= len(budgets) - 1
        await wait_until(lambda: pooled(mysql) <= POOL)
        assert count_connections(server.process.pid, proxy.port) <= POOL


async def test_a_start_waits_for_mysql_until_start_timeout(tmp_path: Path) -> None:
    stores = {"CHAT_MYSQL_DB": "mysql", "CHAT_MYSQL_DBPORT": str(servers.free_port())}
    await expect_start_timeout(tmp_path, stores, "MySQL")


async def test_a_server_starts_when_mysql_becomes_available(mysql: DatabaseServer, tmp_path: Path) -> None:
    async with started_later(mysql, tmp_path), serving(tmp_path, mysql) as server:
        await server.add_users(*unique_names(1))


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"CHAT_MYSQL_DBPASSWORD": "hunter2"}, "DbUser or DbPassWord is wrong"),
        ({"CHAT_MYSQL_DBNAME": "mysql"}, "DbUser may not use DbName"),
    ],
)
async def test_a_permanent_error_of_mysql_is_reported_immediately(
    mysql: DatabaseServer, tmp_path: Path, wrong: dict[str, str], expected: str
) -> None:
    stores = servers.environ(mysql=mysql) | wrong
    line, before = await start_error(tmp_path / "data", stores, StartTimeout=600, StoreTimeout=5)
    assert expected in line
    assert "hunter2" not in line
    assert before == []


async def test_a_path_as_db_host_is_a_unix_socket(mysql: DatabaseServer, tmp_path: Path) -> None:
    path = f"{mysql.folder}/socket"
    with closing(pymysql.connect(unix_socket=path, user="root")) as root, root.cursor() as cursor:
        cursor.execute("CREATE USER IF NOT EXISTS 'chat'@'localhost' IDENTIFIED BY 'secret'")
        cursor.execute("GRANT ALL ON chat_demo.* TO 'chat'@'localhost'")
    stores = servers.environ(mysql=mysql) | {"CHAT_MYSQL_DBHOST": path, "CHAT_MYSQL_DBPORT": "1"}
    async with subprocess_server(tmp_path / "data", stores=stores) as server:
        await server.add_users("on-a-socket")
    line, _ = await start_error(tmp_path / "data", stores | {"CHAT_MYSQL_DBPASSWORD": "wrong"})
    assert f"MySQL at {path}: DbUser or DbPassWord is wrong" in line


async def test_every_lookup_in_a_frozen_mysql_times_out(mysql: DatabaseServer) -> None:
    """Each lookup begins at another time, so that some timeouts coincide with a connection that was just opened."""
    users = await connect(servers.mysql_config(mysql), 0.3)

    async def look_up(delay: float) -> None:
        await asyncio.sleep(delay)
        with suppress(StoreUnavailable):
            await users.get("unknown")

    try:
        for _ in range(8):
            async with unavailable(mysql, "frozen"):
                async with asyncio.timeout(ANSWER_TIMEOUT):
                    await asyncio.gather(*(look_up(number * 0.0007) for number in range(3 * POOL)))
            await look_up(0)
    finally:
        await users.close()


async def test_a_change_that_a_deadlock_ends_runs_again(mysql: DatabaseServer) -> None:
    """Another program locks a group, then a user; the store locks them in the opposite order."""
    users = await connect(servers.mysql_config(mysql), 20)
    owner, *new = unique_names(4)
    number, limits = time.time_ns(), GroupLimits(100, 100)
    try:
        for name in (owner, *new):
            await users.add(User(name, "hash"))
        assert isinstance(await users.groups.create(number, f"#{owner}", owner, [], limits), Group)
        connection = pymysql.connect(
            host="127.0.0.1", port=mysql.port, user="chat", password="secret", database="chat_demo"
        )
        with closing(connection), connection.cursor() as cursor:
            # Of two transactions, MySQL ends the one that has changed fewer rows.
            cursor.executemany("INSERT INTO chat_blocks VALUES (%s, %s)", [(f"/{n}", owner) for n in range(100)])
            cursor.execute("SELECT 1 FROM chat_groups WHERE number = %s FOR UPDATE", (number,))
            adding = asyncio.create_task(users.groups.add(number, owner, new, number + 1, limits))
            await asyncio.sleep(0.5)
            lock = "SELECT 1 FROM chat_users WHERE name = %s FOR UPDATE"
            assert await asyncio.to_thread(cursor.execute, lock, (new[0],)) == 1
            assert not adding.done()
            connection.rollback()
        added = await adding
        assert added == Group(number, f"#{owner}", owner, {owner: number} | dict.fromkeys(new, number + 1))
    finally:
        await users.close()
