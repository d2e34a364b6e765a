"""Stores that answer but refuse to write: GET /health is 503 while a login, a registration or a message would fail."""

import asyncio
import re
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pymongo
import pymysql
import pytest
from redis import Redis

from chat_server.model.mysql import connect
from tests import servers
from tests.e2e.http_helpers import post, send_request
from tests.faults.stores import SHORT_HEARTBEAT, SHORT_TIMEOUTS, start_error, unique_names
from tests.faults.tools import small_disk
from tests.harness import PASSWORD, ROOT, ServerHandle, SubprocessServer, run_py, subprocess_server, wait_until
from tests.servers import DatabaseServer

Refusing = Callable[[DatabaseServer], Any]  # a context in which the database refuses


# --- kinds of refusals


@contextmanager
def replica(redis: DatabaseServer) -> Iterator[None]:
    with Redis(port=redis.port) as admin:
        admin.replicaof("127.0.0.1", 1)
        yield
        admin.replicaof("NO", "ONE")


def configured(name: str, value: int, usual: int) -> Refusing:
    @contextmanager
    def refusing(redis: DatabaseServer) -> Iterator[None]:
        with Redis(port=redis.port) as admin:
            admin.config_set(name, value)
            yield
            admin.config_set(name, usual)

    return refusing


def denied(rule: str, usual: str) -> Refusing:
    @contextmanager
    def refusing(redis: DatabaseServer) -> Iterator[None]:
        with Redis(port=redis.port) as admin:
            admin.execute_command("ACL", "SETUSER", "default", rule)
            yield
            admin.execute_command("ACL", "SETUSER", "default", usual)

    return refusing


def executed(allow: str, *refuse: str) -> Refusing:
    @contextmanager
    def refusing(mysql: DatabaseServer) -> Iterator[None]:
        execute(mysql, *refuse)
        yield
        execute(mysql, allow)

    return refusing


def execute(mysql: DatabaseServer, *statements: str) -> None:
    with (
        closing(pymysql.connect(host="127.0.0.1", port=mysql.port, user="root", autocommit=True)) as connection,
        connection.cursor() as cursor,
    ):
        for statement in statements:
            cursor.execute(statement)


ACCOUNT = "chat_demo.* TO 'chat'@'127.0.0.1'"


# --- health


@asynccontextmanager
async def serving(folder: Path, **stores: DatabaseServer) -> AsyncIterator[SubprocessServer]:
    environ = servers.environ(**stores) | {"CHAT_REDIS_REDISPREFIX": unique_names(1)[0]}
    async with subprocess_server(folder / "data", stores=environ, **SHORT_HEARTBEAT) as server:
        yield server


async def health(server: ServerHandle) -> dict[str, str]:
    """Return the state of each store; fail if the HTTP code disagrees."""
    answer = await send_request(server, "GET", "/health")
    states = {name: answer.json()["data"][name]["state"] for name in ("users", "messages", "cache")}
    assert (answer.status_code == 200) == (set(states.values()) == {"up"})
    return states


REFUSALS = {
    "redis is a replica": ("cache", "redis", replica),
    "redis is full": ("cache", "redis", configured("maxmemory", 1, 0)),
    "redis lacks replicas": ("cache", "redis", configured("min-replicas-to-write", 1, 0)),
    "redis denies a command": ("cache", "redis", denied("-hset", "+@all")),
    "redis denies scripts": ("cache", "redis", denied("-evalsha", "+@all")),
    "mysql is read-only": ("users", "mysql", executed("SET GLOBAL read_only = 0", "SET GLOBAL read_only = 1")),
    "mysql lacks a table": (
        "users",
        "mysql",
        executed(
            "RENAME TABLE chat_demo.away TO chat_demo.chat_users", "RENAME TABLE chat_demo.chat_users TO chat_demo.away"
        ),
    ),
    "mysql denies writing": (
        "users",
        "mysql",
        executed(f"GRANT ALL ON {ACCOUNT}", f"REVOKE ALL ON {ACCOUNT.replace('TO', 'FROM')}", "KILL USER 'chat'"),
    ),
}


@pytest.mark.parametrize("kind", REFUSALS)
async def test_health_is_503_while_a_store_refuses(
    mysql: DatabaseServer, redis: DatabaseServer, tmp_path: Path, kind: str
) -> None:
    store, name, refusing = REFUSALS[kind]
    database = {"mysql": mysql, "redis": redis}[name]
    async with serving(tmp_path, **{name: database}) as server:
        assert set((await health(server)).values()) == {"up"}

        async def state_is(state: str) -> bool:
            return (await health(server))[store] == state

        with refusing(database):
            await wait_until(lambda: state_is("away"))
            path = {"users": "/user/register", "cache": "/user/login"}[store]
            answer = await post(server, path, user_name=unique_names(1)[0], password=PASSWORD)
            assert answer.status_code == 503
        await wait_until(lambda: state_is("up"))
        await server.add_users(unique_names(1)[0])


def fill(disk: Path) -> Path:
    """Fill the disk with a file, and return the file."""
    filling = disk / "filling"
    with filling.open("wb", 0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    return filling


async def test_health_is_503_while_the_mysql_binary_log_is_full(tmp_path: Path) -> None:
    """Statements succeed, but commits wait, so a probe that rolls back would not notice."""
    (tmp_path / "log").mkdir()
    with small_disk(tmp_path / "log"):
        mysql = servers.mysql(f"--log-bin={tmp_path}/log/bin", "--server-id=1")
        try:
            async with subprocess_server(
                tmp_path / "data", stores=servers.environ(mysql=mysql), **SHORT_TIMEOUTS
            ) as server:
                fill(tmp_path / "log")

                async def is_away() -> bool:
                    return (await health(server))["users"] == "away"

                await wait_until(is_away)
                answer = await post(server, "/user/register", user_name=unique_names(1)[0], password=PASSWORD)
                assert answer.status_code == 503
        finally:
            mysql.stop()


async def test_health_is_503_on_a_full_disk(tmp_path: Path) -> None:
    """This needs no failed write: the test sends no message."""
    (tmp_path / "data").mkdir()
    with small_disk(tmp_path / "data"):
        async with subprocess_server(tmp_path / "data", **SHORT_HEARTBEAT) as server:

            async def states_are(state: str) -> bool:
                return set((await health(server)).values()) == {state}

            assert await states_are("up")
            filling = fill(tmp_path / "data")
            await wait_until(lambda: states_are("away"))
            filling.unlink()
            await wait_until(lambda: states_are("up"))
            await server.add_users(*unique_names(1))


async def test_the_health_probe_leaves_no_data(
    mysql: DatabaseServer, mongodb: DatabaseServer, redis: DatabaseServer, tmp_path: Path
) -> None:
    own = unique_names(1)[0]
    stores = servers.environ(mysql=mysql, mongodb=mongodb, redis=redis)
    stores |= {"CHAT_MONGODB_MONGODBNAME": own, "CHAT_REDIS_REDISPREFIX": own}
    execute(mysql, "CREATE TABLE IF NOT EXISTS chat_demo.chat_users (name INT)", "DROP TABLE chat_demo.chat_users")
    execute(mysql, "DROP TABLE IF EXISTS chat_demo.chat_schema")
    async with subprocess_server(tmp_path / "data", stores=stores, **SHORT_HEARTBEAT) as server:
        for _ in range(3):
            assert (await send_request(server, "GET", "/health")).status_code == 200
            await asyncio.sleep(1)
        with pymongo.MongoClient[dict[str, Any]]("127.0.0.1", mongodb.port) as client, Redis(port=redis.port) as admin:
            assert client[own].chat_messages.count_documents({}) == 0
            assert client[own].chat_conversations.count_documents({}) == 0
            assert list(admin.scan_iter(f"{own}*")) == [f"{own}lease".encode()]
        with (
            closing(pymysql.connect(host="127.0.0.1", port=mysql.port, user="root", db="chat_demo")) as connection,
            connection.cursor() as cursor,
        ):
            assert cursor.execute("SELECT name FROM chat_users") == 0


async def test_users_can_be_listed_while_stores_refuse_writes(
    mysql: DatabaseServer, redis: DatabaseServer, tmp_path: Path
) -> None:
    [one] = unique_names(1)
    async with serving(tmp_path, mysql=mysql, redis=redis) as server:
        await server.add_users(one)
        stores = servers.environ(mysql=mysql, redis=redis) | {"CHAT_SERVICE_DATADIR": str(tmp_path / "data")}
        with REFUSALS["redis is full"][2](redis), REFUSALS["mysql is read-only"][2](mysql):
            child = await run_py("user", "list", environ=stores)
            out, err = await child.communicate()
            assert (child.returncode, err) == (0, b"")
            assert f"{one}\tenabled" in out.decode()


# --- accounts that lack a right


@pytest.fixture
def account(mysql: DatabaseServer) -> str:
    """Return the name of a user without rights, and of an empty database."""
    name = f"u{uuid.uuid4().hex[:8]}"
    execute(mysql, f"CREATE DATABASE {name}", f"CREATE USER '{name}'@'127.0.0.1' IDENTIFIED BY 'secret'")
    return name


async def check_error(environ: dict[str, str]) -> str:
    """Return the one line with which --check fails."""
    child = await run_py("--check", environ=environ)
    out, err = await child.communicate()
    assert (child.returncode, out) == (1, b""), (out, err)
    [line] = err.decode().splitlines()
    return line


async def check_and_start_error(folder: Path, environ: dict[str, str]) -> str:
    """Return the error of --check; fail unless a start fails immediately with the same error."""
    line = await check_error(environ | {"CHAT_SERVICE_DATADIR": str(folder)})
    error, before = await start_error(folder, environ, StartTimeout=600, StoreTimeout=5)
    assert (error, before) == (line, [])
    return line


@pytest.mark.parametrize("tables_exist", [True, False], ids=["its tables exist", "empty"])
@pytest.mark.parametrize(
    ("granted", "lacks"),
    [
        ("SELECT", "CREATE"),
        ("SELECT, INSERT, UPDATE, DELETE, CREATE", "ALTER"),
        ("SELECT, INSERT, UPDATE, CREATE, ALTER", "DELETE"),
        ("SELECT, UPDATE, DELETE, CREATE, ALTER", "INSERT"),
        ("SELECT, INSERT, DELETE, CREATE, ALTER", "UPDATE"),
    ],
)
async def test_a_missing_mysql_right_is_named(
    mysql: DatabaseServer, account: str, tmp_path: Path, granted: str, lacks: str, tables_exist: bool
) -> None:
    config = msgspec.structs.replace(servers.mysql_config(mysql), db_user=account, db_name=account)
    if tables_exist:
        execute(mysql, f"GRANT ALL ON {account}.* TO '{account}'@'127.0.0.1'")
        await (await connect(config, 20)).close()
        execute(mysql, f"REVOKE ALL ON {account}.* FROM '{account}'@'127.0.0.1'")
        lacks = {"CREATE": "INSERT", "ALTER": ""}.get(lacks, lacks)
    execute(mysql, f"GRANT {granted} ON {account}.* TO '{account}'@'127.0.0.1'")
    stores = servers.environ(mysql=mysql) | {"CHAT_MYSQL_DBUSER": account, "CHAT_MYSQL_DBNAME": account}
    if not lacks:  # existing tables are not altered
        async with subprocess_server(tmp_path / "data", stores=stores):
            return
    line = await check_error(stores | {"CHAT_SERVICE_DATADIR": str(tmp_path / "data")})
    assert f"MySQL at 127.0.0.1:{mysql.port}: DbUser lacks the right {lacks} on DbName" in line
    error, before = await start_error(tmp_path / "data", stores, StartTimeout=600, StoreTimeout=5)
    assert "DbUser lacks the right" in error
    assert before == []


async def test_check_leaves_no_data_in_mysql(mysql: DatabaseServer, account: str, tmp_path: Path) -> None:
    execute(mysql, f"GRANT ALL ON {account}.* TO '{account}'@'127.0.0.1'")
    stores = servers.environ(mysql=mysql) | {"CHAT_MYSQL_DBUSER": account, "CHAT_MYSQL_DBNAME": account}
    child = await run_py("--check", environ=stores | {"CHAT_SERVICE_DATADIR": str(tmp_path)})
    out, _ = await child.communicate()
    assert b"MySQL: answers, empty yet" in out
    with (
        closing(pymysql.connect(host="127.0.0.1", port=mysql.port, user="root", db=account)) as connection,
        connection.cursor() as cursor,
    ):
        assert cursor.execute("SHOW TABLES") == 0


async def test_check_leaves_no_data_in_mongodb(mongodb: DatabaseServer, tmp_path: Path) -> None:
    own = unique_names(1)[0]
    stores = servers.environ(mongodb=mongodb) | {"CHAT_MONGODB_MONGODBNAME": own}
    with pymongo.MongoClient[dict[str, Any]]("127.0.0.1", mongodb.port) as client:
        for expected in (b"empty yet, the first start makes it", b"holds our messages"):
            child = await run_py("--check", environ=stores | {"CHAT_SERVICE_DATADIR": str(tmp_path / "data")})
            out, _ = await child.communicate()
            assert b"MongoDB: answers, " + expected in out
            assert (
                client[own].chat_messages.count_documents({}) == client[own].chat_conversations.count_documents({}) == 0
            )
            if b"empty" in expected:
                assert client[own].list_collection_names() == []
                async with subprocess_server(tmp_path / "data", stores=stores):
                    pass


@pytest.mark.parametrize(
    ("right", "expected"),
    [
        ("resetchannels", "channels that begin with RedisPrefix"),
        ("-publish", "the command publish"),
        ("-subscribe", "the command subscribe"),
        ("-pubsub", "the command pubsub"),
        ("-zcard", "the command zcard"),
    ],
)
async def test_a_missing_right_of_several_processes_is_named(
    mysql: DatabaseServer, mongodb: DatabaseServer, redis: DatabaseServer, tmp_path: Path, right: str, expected: str
) -> None:
    """A single process on the same account does not need it."""
    with Redis(port=redis.port) as admin:
        admin.execute_command("ACL", "SETUSER", "chat", "reset", "on", ">secret", "~ours:*", "&ours:*", "+@all", right)
    stores = servers.environ(mysql=mysql, mongodb=mongodb, redis=redis) | {
        "CHAT_REDIS_REDISADDR": f"redis://chat@127.0.0.1:{redis.port}",
        "CHAT_REDIS_REDISPW": "secret",
        "CHAT_REDIS_REDISPREFIX": "ours:",
    }
    line = await check_and_start_error(tmp_path, stores | {"CHAT_SERVICE_PROCESSES": "many"})
    assert line.endswith(f"Redis at 127.0.0.1:{redis.port}: its user lacks the right to {expected}")
    child = await run_py("--check", environ=stores)
    assert await child.wait() == 0


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (["~ours:*", "+@all", "-evalsha"], "its user lacks the right to the command evalsha"),
        (["~ours:*", "+@all", "-script"], "its user lacks the right to the command script|load"),
        (["~ours:*", "+@all", "-zadd"], "its user lacks the right to the command zadd"),
        (["~other:*", "+@all"], "its user lacks the right to keys that begin with RedisPrefix"),
        (["~ours:*", "+@read", "+eval", "+evalsha", "+script"], "its user lacks the right to the command"),
    ],
)
async def test_a_missing_redis_right_is_named(
    redis: DatabaseServer, tmp_path: Path, rules: list[str], expected: str
) -> None:
    with Redis(port=redis.port) as admin:
        admin.script_flush()
        admin.execute_command("ACL", "SETUSER", "chat", "reset", "on", ">secret", *rules)
        stores = servers.environ(redis=redis) | {
            "CHAT_REDIS_REDISADDR": f"redis://chat@127.0.0.1:{redis.port}",
            "CHAT_REDIS_REDISPW": "secret",
            "CHAT_REDIS_REDISPREFIX": "ours:",
        }
        assert f"Redis at 127.0.0.1:{redis.port}: {expected}" in await check_and_start_error(tmp_path, stores)
        assert list(admin.scan_iter("ours:*")) == []


async def test_the_documented_redis_rights_are_sufficient(redis: DatabaseServer, tmp_path: Path) -> None:
    documented = (ROOT / "docs" / "operations.md").read_text()
    rules, _ = re.findall(r"^ACL SETUSER chat (.*)$", documented, re.MULTILINE)
    with Redis(port=redis.port) as admin:
        admin.execute_command("ACL", "SETUSER", "chat", "reset", *rules.replace(">PASSWORD", ">secret").split())
        stores = servers.environ(redis=redis) | {
            "CHAT_REDIS_REDISADDR": f"redis://chat@127.0.0.1:{redis.port}",
            "CHAT_REDIS_REDISPW": "secret",
        }
        async with subprocess_server(
            tmp_path / "data", stores=stores, RegistrationsPerHour=9, **SHORT_HEARTBEAT
        ) as server:
            one, two = unique_names(2)
            await server.add_users(one, two)
            await server.make_contacts(one, two)
            assert (await post(server, "/user/logout", server.tokens[one], user_name=one)).status_code == 200


async def test_a_missing_redis_database_is_reported_immediately(redis: DatabaseServer, tmp_path: Path) -> None:
    line = await check_and_start_error(tmp_path, servers.environ(redis=redis) | {"CHAT_REDIS_REDISDBNAME": "99"})
    assert "it has no database of the number RedisDbName" in line


def test_the_probes_run_every_command_of_the_scripts() -> None:
    folder = ROOT / "chat_server" / "cache" / "lua"
    scripts = {path.name: path.read_text() for path in folder.glob("*.lua")}
    probe = scripts.pop("probe.lua") + scripts.pop("cluster_probe.lua")
    used = {command for text in scripts.values() for command in re.findall(r"redis\.call\('([A-Z]+)'", text)}
    used.add("PING")  # a command sends it on its subscription, while a process does not confirm a change
    assert used == set(re.findall(r"\{'([A-Z]+)'", probe))
