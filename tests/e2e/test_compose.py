"""The database accounts of compose.yaml have exactly the rights that the server needs.

The scripts of compose.yaml create the accounts in real databases.
"""

import asyncio
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pymongo
import pymysql
import pytest
from pymongo.errors import OperationFailure
from redis import Redis
from redis.exceptions import NoPermissionError

from tests import needs, servers
from tests.harness import CLEAN_ENVIRON, NODE, ROOT, run_py, serving, subprocess_server
from tests.unit.test_compose import DOCKERFILE, SERVICES, make_secrets, server_environment

SCRIPTS = ROOT / "docs" / "compose"
# The parts of mongosh that the script uses and Node.js lacks. They print the calls of the script.
MONGOSH = """globalThis.db = { getSiblingDB: (name) => ({
  createUser: (user) => console.log(JSON.stringify([name, user])) }) };"""


class Composed(NamedTuple):
    """The three databases with their accounts and the folder with the passwords."""

    mysql: servers.DatabaseServer
    mongodb: servers.DatabaseServer
    redis: servers.DatabaseServer
    secrets: Path

    def password(self, name: str) -> str:
        """Return the password of an account."""
        return (self.secrets / name).read_text()

    @property
    def environment(self) -> dict[str, str]:
        """Return the server's settings in compose.yaml with the addresses of these databases."""
        local = {
            "CHAT_MYSQL_DBHOST": "127.0.0.1",
            "CHAT_MYSQL_DBPORT": str(self.mysql.port),
            "CHAT_MONGODB_MONGODBADDR": "127.0.0.1",
            "CHAT_MONGODB_MONGODBPORT": str(self.mongodb.port),
            "CHAT_REDIS_REDISADDR": f"redis://chat@127.0.0.1:{self.redis.port}/0",
        }
        stores = {key: value for key, value in server_environment(self.secrets).items() if "_SERVICE_" not in key}
        return stores | local


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composed]:
    """Start the databases as the images do with empty volumes."""
    folder = tmp_path_factory.mktemp("composed")
    secrets = make_secrets(folder)
    started: list[servers.DatabaseServer] = []
    try:
        for start in (start_mysql, start_mongodb, start_redis):
            started.append(start(folder, secrets))
        mysql, mongodb, redis = started
        yield Composed(mysql, mongodb, redis, secrets)
    finally:
        for server in started:
            server.stop()


def start_mysql(_folder: Path, secrets: Path) -> servers.DatabaseServer:
    """Start MariaDB, create the account as the MySQL image does, and run the script."""
    needs.program("mariadbd")
    server = servers.mysql()
    environment = SERVICES["mysql"]["environment"]
    database, user = environment["MYSQL_DATABASE"], environment["MYSQL_USER"]
    password = (secrets / "mysql").read_text()
    with pymysql.connect(unix_socket=f"{server.folder}/socket", user="root") as root, root.cursor() as cursor:
        script = (SCRIPTS / "mysql.sql").read_text().split(";")
        for statement in (
            "DROP USER 'chat'@'127.0.0.1'",  # the account that other tests use
            f"CREATE DATABASE {database}",
            f"CREATE USER '{user}'@'%' IDENTIFIED BY '{password}'",
            f"GRANT ALL ON {database}.* TO '{user}'@'%'",
            *filter(str.strip, script),
        ):
            cursor.execute(statement)
    return server


def start_mongodb(folder: Path, secrets: Path) -> servers.DatabaseServer:
    """Start secantusd, let the script create the account, and restart it with --auth."""
    script, shim, options = folder / "mongodb.js", folder / "mongosh.js", ["--sync-on-commit"]
    script.write_text((SCRIPTS / "mongodb.js").read_text().replace("/run/secrets", str(secrets)))
    shim.write_text(MONGOSH)
    [database, account] = json.loads(subprocess.check_output([NODE, "--require", str(shim), str(script)]))

    def command(server: servers.DatabaseServer) -> list[str]:
        program = str(Path(sys.executable).with_name("secantusd-py"))
        return [program, "--host=127.0.0.1", f"--port={server.port}", f"--storage-path={server.folder}/data", *options]

    server = servers.DatabaseServer("mongodb", folder / "mongodb", command)
    server.folder.mkdir()
    server.start()
    with pymongo.MongoClient[Any]("127.0.0.1", server.port) as root:
        root[database].command("createUser", account["user"], pwd=account["pwd"], roles=account["roles"])
        root["other"]["secrets"].insert_one({"_id": 1})
    server.kill()
    options.append("--auth")
    server.start()
    return server


def start_redis(folder: Path, secrets: Path) -> servers.DatabaseServer:
    """Start Redis with its script and with the options in compose.yaml."""
    needs.program("redis-server")
    entrypoint = folder / "bin" / "docker-entrypoint.sh"
    entrypoint.parent.mkdir()
    entrypoint.write_text('#!/bin/sh\nexec "$@"\n')
    entrypoint.chmod(0o755)
    script = folder / "redis.sh"
    script.write_text((SCRIPTS / "redis.sh").read_text().replace("/run/secrets", str(secrets)))
    shell, _, *options = SERVICES["redis"]["command"]

    def command(server: servers.DatabaseServer) -> list[str]:
        path = f"PATH={entrypoint.parent}:{needs.PATH}"
        local = ["--port", str(server.port), "--bind", "127.0.0.1", "--dir", str(server.folder)]
        return ["env", path, shell, str(script), *options, *local]

    server = servers.DatabaseServer("redis", folder / "redis", command)
    server.folder.mkdir()
    server.start()
    return server


async def test_server_works_with_these_accounts_after_a_restart(composed: Composed, tmp_path: Path) -> None:
    for registered in (False, True):
        async with subprocess_server(tmp_path / "data", stores=composed.environment, MessageDays=7) as server:
            if not registered:
                await server.post("/user/register", {"user_name": "1", "password": "secret1"})
                await server.post("/user/register", {"user_name": "2", "password": "secret1"})
            server.tokens = {name: await server.login(name) for name in ("1", "2")}
            async with server.chat("1", "2") as one, server.chat("2", "1") as two:
                assert (await one.send("hello"))["op_type"] == 40018
                sent = await two.receive()
                assert (await two.send("hello yourself"))["op_type"] == 40018
                assert (await two.answer(3))["op_type"] == 40005
                assert (await two.answer(4, "*"))["op_type"] == 40007
                assert (await one.answer(7, "-10"))["op_type"] == 40023
                assert (await two.answer(5, sent["id"]))["op_type"] == 40013
            headers = {"Authorization": f"Bearer {server.tokens['2']}"}
            changed = {"user_name": "2", "old_password": "secret1", "new_password": "secret1"}
            assert (await server.post("/user/set_password", changed, headers=headers)).status_code == 200
            assert (await server.post("/user/logout", {"user_name": "2"}, headers=headers)).status_code == 200
            async with server.client() as client:
                assert (await client.get("/health")).status_code == 200
            server.send_signal(signal.SIGTERM)
            assert await server.wait() == 0


async def test_two_servers_work_with_these_accounts(composed: Composed, tmp_path: Path) -> None:
    stores, users = composed.environment, ("anna", "bert")
    async with (
        subprocess_server(tmp_path / "a", stores=stores, Processes="many") as first,
        subprocess_server(tmp_path / "b", stores=stores, Processes="many") as second,
    ):
        await first.add_users(*users)
        second.tokens = first.tokens
        async with first.chat("anna", "bert") as anna, second.chat("bert", "anna") as bert:
            assert (await anna.send("hello"))["op_type"] == 40018
            assert (await bert.receive())["op_type"] == 40011
        environment = stores | {"CHAT_SERVICE_PROCESSES": "many"}
        child = await run_py("user", "disable", "anna", environ=environment)
        assert await child.wait() == 0


async def test_commands_work_with_these_accounts(composed: Composed) -> None:
    soon = {"CHAT_SERVICE_HEARTBEATSECONDS": "0.1", "CHAT_SERVICE_STORETIMEOUT": "2"}  # `remove` waits for these
    for arguments, typed in (
        (["--check"], ""),
        (["user", "add", "three"], "secret1\n"),
        (["user", "list"], ""),
        (["user", "export", "three"], ""),
        (["user", "remove", "three", "--messages", "delete"], ""),
    ):
        child = await run_py(*arguments, environ=composed.environment | soon, stdin=asyncio.subprocess.PIPE)
        _, errors = await child.communicate(typed.encode())
        assert child.returncode == 0, (arguments, errors)


def test_mysql_account_cannot_change_other_databases(composed: Composed) -> None:
    """It cannot drop anything either."""
    address: dict[str, Any] = {"host": "127.0.0.1", "port": composed.mysql.port, "user": "chat"}
    with pymysql.connect(**address, password=composed.password("mysql")) as connection, connection.cursor() as cursor:
        cursor.execute("SHOW DATABASES")
        assert "mysql" not in {name for (name,) in cursor.fetchall()}
        for refused in (
            "DROP DATABASE chat",
            "CREATE DATABASE other",
            "CREATE USER another",
            "SELECT * FROM mysql.user",
            "CREATE TABLE chat_demo.t (i INT)",
            "SELECT 1 INTO OUTFILE '/tmp/chat-never'",
        ):
            with pytest.raises(pymysql.err.MySQLError, match="denied"):
                cursor.execute(refused)


def test_mongodb_account_uses_only_its_own_database(composed: Composed) -> None:
    with pymongo.MongoClient[Any](
        "127.0.0.1", composed.mongodb.port, username="chat", password=composed.password("mongodb")
    ) as client:
        client["chat"]["probe"].insert_one({"_id": 1})
        client["chat"].drop_collection("probe")
        for refused in (
            client["other"]["secrets"].find_one,
            lambda: client["other"]["secrets"].insert_one({"_id": 2}),
            lambda: client["chat"].command("createUser", "another", pwd="x", roles=[]),
            lambda: client["admin"].command("getCmdLineOpts"),
        ):
            with pytest.raises(OperationFailure, match="not authorized"):
                refused()


def test_redis_account_uses_only_its_own_keys_and_channels(composed: Composed) -> None:
    """It has no administrative commands."""
    redis = Redis(port=composed.redis.port, username="chat", password=composed.password("redis"))
    with redis:
        redis.set("chat_server:probe", 1, ex=1)
        for refused in (
            "SET other 1",
            "PUBLISH other 1",
            "FLUSHALL",
            "CONFIG GET *",
            "ACL LIST",
            "SHUTDOWN",
            "SCRIPT FLUSH",
        ):
            with pytest.raises(NoPermissionError):
                redis.execute_command(*refused.split())  # type: ignore[no-untyped-call]
    with Redis(port=composed.redis.port) as stranger, pytest.raises(Exception, match=r"(?i)authenticat"):
        stranger.ping()


@pytest.mark.parametrize("name", ["mysql", "redis"])
def test_health_checks_pass_and_fail(composed: Composed, name: str) -> None:
    """The commands of the health checks run with the port and the folder of this test."""
    [_, printed] = SERVICES[name]["healthcheck"]["test"]
    port = {"mysql": composed.mysql, "redis": composed.redis}[name].port

    def exit_code(port: int) -> int:
        command = printed.replace("$$", "$").replace("/run/secrets", str(composed.secrets))
        command = command.replace("--host=127.0.0.1", f"--host=127.0.0.1 --port={port}")
        command = command.replace("redis-cli", f"redis-cli -p {port}")
        return subprocess.run(["/bin/sh", "-c", command], capture_output=True, check=False).returncode

    assert exit_code(port) == 0
    assert exit_code(servers.free_port()) != 0


async def test_image_health_check_passes_and_fails(tmp_path: Path) -> None:
    found = re.search(r'CMD (\["python".*\])$', DOCKERFILE, re.MULTILINE)
    assert found
    _, *arguments = json.loads(found[1])

    async def exit_code(port: int) -> int:
        environ = {**CLEAN_ENVIRON, "CHAT_SERVICE_HTTPPORT": str(port)}
        error = asyncio.subprocess.DEVNULL
        child = await asyncio.create_subprocess_exec(sys.executable, *arguments, env=environ, stderr=error)
        return await child.wait()

    async with serving(tmp_path) as server:
        assert await exit_code(server.port) == 0
    assert await exit_code(servers.free_port()) != 0
