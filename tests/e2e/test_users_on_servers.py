"""python run.py user with users, messages or sessions in database servers."""

import os
from pathlib import Path

import bcrypt
import pymysql
import pytest

from chat_server.model.mysql_schema import STEPS
from tests import servers
from tests.e2e.commands import Deployment, check_wrong_password, message_texts
from tests.e2e.http_helpers import try_login
from tests.e2e.migration import databases
from tests.harness import PASSWORD

__all__ = ["databases"]


def stores(
    databases: tuple[servers.DatabaseServer, servers.DatabaseServer | None, servers.DatabaseServer], words: str
) -> dict[str, str]:
    """Return the environment that selects the servers in `words`; the other stores are embedded."""
    started = dict(zip(("mysql", "mongodb", "redis"), databases, strict=True))
    environ = servers.environ(**{word: started[word] for word in words.split()})
    if "mongodb" in words and started["mongodb"] is None:
        environ |= {"CHAT_MONGODB_MONGODB": "mongodb", "CHAT_MONGODB_MONGODBADDR": os.environ["CHAT_TEST_MONGODB"]}
    name = f"users_{words.replace(' ', '_')}"
    return environ | {"CHAT_MONGODB_MONGODBNAME": name, "CHAT_REDIS_REDISPREFIX": f"{name}*:"}


@pytest.mark.parametrize("words", ["mongodb", "mysql mongodb redis"])
async def test_commands_work_with_and_without_a_running_server(
    tmp_path: Path,
    databases: tuple[servers.DatabaseServer, servers.DatabaseServer | None, servers.DatabaseServer],
    words: str,
) -> None:
    """The running server keeps its leases and continues to work."""
    deployment = Deployment(tmp_path / "data", stores(databases, words))
    one, two, three = (f"{name}-{words.replace(' ', '-')}" for name in ("anna", "ben", "carl"))
    assert await deployment.run("user", "add", one, typed=PASSWORD) == f"added {one}\n"
    async with deployment.serving(users=(two, three), StrangerLimit=1) as server:
        server.tokens[one] = await server.login(one)
        await server.make_contacts(one, two)
        async with server.chat(one, to=two) as first, server.chat(two, to=one) as second:
            lines = await deployment.export_user(one)
            assert [line["kind"] for line in lines] == ["user", "session", "message", "message", "counter"]
            await deployment.run("user", "disable", one)
            assert await first.wait_closed() == 4001
            check_wrong_password(await try_login(server, one, PASSWORD))
            await deployment.run("user", "enable", one)
            await deployment.run("user", "reset-password", two, typed="another1")
            assert await second.wait_closed() == 4001
            server.tokens[two] = await server.login(two, "another1")
        async with server.chat(two, to=one) as second, server.chat(three, to=two) as third:
            out = await deployment.run("user", "remove", one, "--messages", "delete")
            assert "deleted 2 messages in 1 conversations and 1 contact limits" in out
            assert (await second.send("hello"))["reason"] == "no_such_user"
            assert (await third.send("hello"))["op_type"] == 40018
        await server.add_users(one)
        async with server.chat(one, to=two) as first:
            assert await message_texts(first) == []
            assert [(await first.send("hello"))["op_type"] for _ in range(2)] == [40019, 40020]
        assert f"{one}\tenabled\n" in await deployment.run("user", "list")
    assert "kept 1 messages in 1 conversations" in await deployment.run("user", "remove", one, "--messages", "keep")


async def test_only_a_server_upgrades_the_first_mysql_schema(
    tmp_path: Path, databases: tuple[servers.DatabaseServer, servers.DatabaseServer | None, servers.DatabaseServer]
) -> None:
    """A command may run next to a server of an earlier version, so it must not change the tables."""
    deployment = Deployment(tmp_path / "data", stores(databases, "mysql"))
    connection = pymysql.connect(
        host="127.0.0.1", port=databases[0].port, user="chat", password="secret", database="chat_demo", autocommit=True
    )
    with connection, connection.cursor() as cursor:
        cursor.execute("DROP TABLE IF EXISTS chat_users, chat_blocks, chat_groups, chat_members, chat_schema")
        cursor.execute(STEPS[0])
        cursor.execute("CREATE TABLE chat_schema (step INT NOT NULL PRIMARY KEY)")
        cursor.execute("INSERT INTO chat_schema (step) VALUES (1)")
        hashed = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4))
        cursor.execute("INSERT INTO chat_users (name, password) VALUES ('anna', %s)", (hashed.decode(),))
        assert "an earlier chat_server" in await deployment.run_failing("user", "add", "ben", typed=PASSWORD)
        cursor.execute("SELECT max(step) FROM chat_schema")
        assert cursor.fetchone() == (1,)
    async with deployment.serving() as server:
        await server.login("anna")
        await deployment.run("user", "disable", "anna")
        check_wrong_password(await try_login(server, "anna"))
