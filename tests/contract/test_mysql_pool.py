"""The connections to MySQL."""

import asyncio

import msgspec

from chat_server.model import mysql
from tests import servers
from tests.cluster.relay import FaultyNetwork
from tests.contract.conftest import _server
from tests.harness import wait_until


async def test_closing_waits_for_no_connection_that_is_being_opened() -> None:
    config = servers.mysql_config(_server("mysql"))
    async with FaultyNetwork(lambda: _server("mysql").port).running() as network:
        users = await mysql.connect(msgspec.structs.replace(config, db_port=network.port), 60)
        await users._pool.clear()
        await wait_until(lambda: not network.links)
        network.delay = 3600
        getting = asyncio.create_task(users.get("1"))
        await wait_until(lambda: bool(network.links))
        async with asyncio.timeout(10):
            await users.close()
        getting.cancel()
        await asyncio.wait((getting,))
