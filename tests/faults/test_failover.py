"""A failover behind one name: the server leaves the demoted database and finds the new primary.

The name is a proxy that redirects new connections, as a changed DNS record does; open connections stay.
"""

import asyncio
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pymysql
import pytest
from redis import Redis

from tests import servers
from tests.e2e.http_helpers import post, send_request, try_login
from tests.faults.stores import ANSWER_TIMEOUT, SHORT_HEARTBEAT, send_until_acknowledged, tcp_proxy, unique_names
from tests.harness import PASSWORD, subprocess_server, wait_until
from tests.servers import DatabaseServer


@pytest.fixture
def promoted(request: pytest.FixtureRequest) -> Iterator[DatabaseServer]:
    """Return the database server that becomes the primary."""
    server = {"mysql": servers.mysql, "redis": servers.redis}[request.param]()
    yield server
    server.stop()


@pytest.mark.parametrize("promoted", ["redis"], indirect=True)
async def test_the_server_leaves_a_demoted_redis(
    redis: DatabaseServer, promoted: DatabaseServer, tmp_path: Path
) -> None:
    one, two = unique_names(2)
    with Redis(port=redis.port) as old, Redis(port=promoted.port) as new:
        new.replicaof("127.0.0.1", redis.port)
        async with tcp_proxy(redis) as proxy:
            stores = servers.environ(redis=redis) | {"CHAT_REDIS_REDISADDR": f"127.0.0.1:{proxy.port}"}
            async with subprocess_server(tmp_path / "data", stores=stores, **SHORT_HEARTBEAT) as server:
                await server.add_users(one, two)
                async with server.chat(one, two) as chat:
                    await send_until_acknowledged(chat, "m0\nhello")
                    await wait_until(lambda: new.info("replication")["master_link_status"] == "up")
                    await wait_until(lambda: new.dbsize() == old.dbsize())
                    new.replicaof("NO", "ONE")
                    old.replicaof("127.0.0.1", promoted.port)
                    proxy.redirect_to(promoted)
                    await send_until_acknowledged(chat, "m1\nhello")
                assert (await try_login(server, one)).status_code == 200
                assert (await send_request(server, "GET", "/health")).status_code == 200
            old.replicaof("NO", "ONE")


def connections_of_chat(mysql: DatabaseServer) -> int:
    with (
        closing(pymysql.connect(host="127.0.0.1", port=mysql.port, user="root")) as connection,
        connection.cursor() as cursor,
    ):
        return cursor.execute("SELECT 1 FROM information_schema.processlist WHERE user = 'chat'")


def set_read_only(mysql: DatabaseServer, value: int) -> None:
    with (
        closing(pymysql.connect(host="127.0.0.1", port=mysql.port, user="root")) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute(f"SET GLOBAL read_only = {value}")


@pytest.mark.parametrize("promoted", ["mysql"], indirect=True)
async def test_the_server_leaves_a_demoted_mysql(
    mysql: DatabaseServer, promoted: DatabaseServer, tmp_path: Path
) -> None:
    """It closes all connections, because reading ones would continue to read old data."""
    one, new = unique_names(2)
    async with subprocess_server(
        tmp_path / "data", stores=servers.environ(mysql=promoted), **SHORT_HEARTBEAT
    ) as server:
        await server.add_users(one)  # without replication, the user must be in both
    async with tcp_proxy(mysql) as proxy:
        stores = servers.environ(mysql=mysql) | {"CHAT_MYSQL_DBPORT": str(proxy.port)}
        async with subprocess_server(tmp_path / "data", stores=stores, **SHORT_HEARTBEAT) as server:
            await server.add_users(one)
            await asyncio.gather(*(try_login(server, one) for _ in range(8)))
            assert connections_of_chat(mysql) > 1
            set_read_only(mysql, 1)
            try:
                proxy.redirect_to(promoted)

                async def registered() -> bool:
                    answer = await post(server, "/user/register", user_name=new, password=PASSWORD)
                    return answer.status_code == 200

                async with asyncio.timeout(ANSWER_TIMEOUT):
                    await wait_until(registered)
                await wait_until(lambda: connections_of_chat(mysql) == 0)
                assert (await try_login(server, new)).status_code == 200
            finally:
                set_read_only(mysql, 0)
