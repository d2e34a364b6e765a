"""MySQL away, frozen, killed, cut off: who is known chats on, nobody is taken for unknown, and it heals."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path

import pymysql
import pytest

from chat_server.model.mysql import POOL, connect
from chat_server.utils.errors import StoreUnavailable
from tests import servers
from tests.e2e.http_helpers import post, send_request, try_login
from tests.faults.stores import (
    HANGS,
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
from tests.harness import PASSWORD, SubprocessServer, subprocess_server, wait_until
from tests.servers import DatabaseServer


@asynccontextmanager
async def serving(folder: Path, mysql: DatabaseServer, port: int = 0) -> AsyncIterator[SubprocessServer]:
    stores = servers.environ(mysql=mysql)
    if port:
        stores["CHAT_MYSQL_DBPORT"] = str(port)
    async with subprocess_server(
        folder / "data", stores=stores, LoginFailures=1000, LoginFailuresPerAddress=1000, **SOON
    ) as server:
        yield server


def pooled(mysql: DatabaseServer) -> int:
    """How many connections MySQL has, but ours."""
    with (
        closing(pymysql.connect(host="127.0.0.1", port=mysql.port, user="chat", password="secret")) as connection,
        connection.cursor() as cursor,
    ):
        return cursor.execute("SHOW PROCESSLIST") - 1


@pytest.mark.parametrize("how", HOWS)
async def test_while_it_is_away_who_is_known_chats_on_and_it_heals(
    mysql: DatabaseServer, tmp_path: Path, how: str
) -> None:
    one, two, new = names(3)
    async with serving(tmp_path, mysql) as server:
        await server.add_users(one, two)
        await server.make_contacts(one, two)
        async with server.chat(one, two) as first, server.chat(two, one) as second, server.chat(two) as asking:
            async with away(mysql, how):
                # More than the pool has connections, at once.
                asked = asyncio.gather(
                    *(http_away(server, "/user/login", one) for _ in range(2 * POOL)),
                    http_away(server, "/user/register", new),
                    upgrade_away(server, one, new),
                    store_away(asking, 1, 40008, "m0\nhello", type=1, to=new),
                )
                for number in range(10):
                    assert (await first.send(f"m{number}\nhello"))["op_type"] == 40018
                await asked
                for number in range(10):
                    assert (await second.receive())["content"] == f"m{number}\nhello"
                async with server.chat(one, two) as third:
                    assert len(await history(third)) == 12
                    for op, content, status in ((3, "", 40005), (4, "*", 40007), (6, "all", 40009), (7, "-9", 40023)):
                        assert (await third.answer(op, content))["op_type"] == status
                assert (await send_request(server, "GET", "/health")).status_code == 503
                await alive(first)

            async def is_back() -> bool:
                return (await try_login(server, one)).status_code == 200

            await wait_until(is_back)
            await wait_until(lambda: pooled(mysql) <= POOL)
            assert connections(server.process.pid, mysql.port) <= POOL

            async def is_there() -> bool:  # it may have been registered while it was away
                body = {"user_name": new, "password": PASSWORD}
                return (await post(server, "/user/register", **body)).status_code == 409

            await wait_until(is_there)
            await sent(first, "m1\nhello", to=new)


async def test_connections_do_not_leak(mysql: DatabaseServer, tmp_path: Path) -> None:
    [one] = names(1)
    async with serving(tmp_path, mysql) as server:
        await server.add_users(one)
        for how in HOWS * 3:
            async with away(mysql, how):
                await asyncio.gather(*(http_away(server, "/user/login", one) for _ in range(2 * POOL)))

            async def all_log_in() -> bool:
                answers = await asyncio.gather(*(try_login(server, one) for _ in range(2 * POOL)))
                return {answer.status_code for answer in answers} == {200}

            await wait_until(all_log_in)
            await wait_until(lambda: pooled(mysql) <= POOL)
            assert connections(server.process.pid, mysql.port) <= POOL


async def test_a_connection_cut_in_the_middle_of_a_reply_heals_and_makes_no_user_unknown(
    mysql: DatabaseServer, tmp_path: Path
) -> None:
    [one] = names(1)
    async with wire(mysql) as between, serving(tmp_path, mysql, between.port) as server:
        await server.add_users(one)
        budgets = (0, 1, 4, 5, 20, 60, 100, 150, 200)
        for budget in budgets:
            between.budget = budget
            async with asyncio.timeout(HANGS):
                while (answer := await try_login(server, one)).status_code != 200:
                    assert (answer.status_code, answer.json()["data"]["reason"]) == (503, "store_away")
        assert between.cuts >= len(budgets) - 1
        await wait_until(lambda: pooled(mysql) <= POOL)
        assert connections(server.process.pid, between.port) <= POOL


async def test_it_is_named_and_waited_for_and_the_wait_has_an_end(tmp_path: Path) -> None:
    stores = {"CHAT_MYSQL_DB": "mysql", "CHAT_MYSQL_DBPORT": str(servers.free_port())}
    line, before = await fails(tmp_path / "data", stores, StartTimeout=5, StoreTimeout=0.5)
    assert "MySQL at " in line
    assert "connection refused" in line
    assert "gave up after 5 s (StartTimeout)" in line
    assert len(before) == 1
    assert "store not ready" in before[0]
    assert "MySQL" in before[0]


async def test_a_server_that_was_started_first_comes_up_with_it(mysql: DatabaseServer, tmp_path: Path) -> None:
    mysql.kill()
    log = tmp_path / "server.log"

    async def come() -> None:
        await wait_until(lambda: log.exists() and "store not ready" in log.read_text())
        await asyncio.to_thread(mysql.start)

    coming = asyncio.create_task(come())
    async with serving(tmp_path, mysql) as server:
        await coming
        await server.add_users(*names(1))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"CHAT_MYSQL_DBPASSWORD": "hunter2"}, "DbUser or DbPassWord is wrong"),
        ({"CHAT_MYSQL_DBNAME": "mysql"}, "DbUser may not use DbName"),
    ],
)
async def test_what_it_will_refuse_again_is_told_at_once(
    mysql: DatabaseServer, tmp_path: Path, wrong: dict[str, str], says: str
) -> None:
    stores = servers.environ(mysql=mysql) | wrong
    line, before = await fails(tmp_path / "data", stores, StartTimeout=600, StoreTimeout=5)
    assert says in line
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
    line, _ = await fails(tmp_path / "data", stores | {"CHAT_MYSQL_DBPASSWORD": "wrong"})
    assert f"MySQL at {path}: DbUser or DbPassWord is wrong" in line


async def test_no_look_up_outlives_its_time_whenever_it_begins(mysql: DatabaseServer) -> None:
    """A cancellation must not be lost where it meets a connection that was just made."""
    users = await connect(servers.mysql_config(mysql), 0.3)

    async def look(delay: float) -> None:
        await asyncio.sleep(delay)
        with suppress(StoreUnavailable):
            await users.get("nobody")

    try:
        for _ in range(8):
            async with away(mysql, "frozen"):
                async with asyncio.timeout(HANGS):
                    await asyncio.gather(*(look(number * 0.0007) for number in range(3 * POOL)))
            await look(0)
    finally:
        await users.close()
