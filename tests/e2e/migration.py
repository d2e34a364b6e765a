"""Helpers for the tests of `migrate`: configuration files, the command, and the complete contents of the stores."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pymongo
import pymysql
import pytest

from chat_server.backends import ExportableStores, open_exportable
from chat_server.conf import Settings, load
from chat_server.migrate.record_pages import MAX_TIME
from chat_server.model.messages import ConversationKey, GroupKey, Record
from chat_server.utils.clock import Clock
from tests import servers
from tests.harness import CommandResult, run_command

# The longest migration of a test, in seconds. The largest one copies a few thousand messages.
MIGRATION_TIMEOUT = 120.0


async def migrate(*arguments: str | Path, environ: Mapping[str, str] | None = None) -> CommandResult:
    """Run `python run.py migrate` to its end."""
    return await run_command("migrate", *arguments, environ=environ, timeout=MIGRATION_TIMEOUT)


async def migrate_successfully(source: Path, target: Path) -> str:
    """Migrate from `source` to `target`, which must succeed; return the output."""
    result = await migrate("--from", source, "--config", target)
    assert result.code == 0, result
    return result.out


async def refused_migration(*arguments: str | Path) -> str:
    """Run a migration that must fail; return its single error line."""
    result = await migrate(*arguments)
    assert result.code == 1, result
    [line] = result.err.splitlines()
    assert line.startswith("chat-server: "), line
    return line


class ConfigFiles:
    """Configuration files in `folder`, for embedded stores and for the three database servers."""

    def __init__(
        self,
        folder: Path,
        mysql: servers.DatabaseServer,
        mongodb: servers.DatabaseServer | None,
        redis: servers.DatabaseServer,
    ) -> None:
        self.folder = folder
        self._mysql, self.mongodb_server, self._redis = mysql, mongodb, redis

    def write_ini(self, name: str, servers: str = "", data: str = "", **service: Any) -> Path:
        """Write the file `name`.ini. `servers` lists which of mysql, mongodb and redis replace the embedded store."""
        values = {"DataDir": data or f"{name}-data", "HttpPort": 0, "PasswordCost": 4, "StartTimeout": 30, **service}
        lines = ["[service]", *(f"{key} = {value}" for key, value in values.items())]
        if "mysql" in servers:
            lines += ["[mysql]", "Db = mysql", f"DbPort = {self._mysql.port}", "DbUser = chat", "DbPassWord = secret"]
        if "mongodb" in servers:
            lines += ["[MongoDB]", "MongoDb = mongodb", f"MongoDBName = {self.database}"]
            lines += [f"MongoDBAddr = {self._mongodb_uri()}"]
        if "redis" in servers:
            lines += ["[redis]", "RedisDb = redis", f"RedisAddr = 127.0.0.1:{self._redis.port}"]
            lines += [f"RedisPrefix = {self.database}*[x]?:"]
        path = self.folder / f"{name}.ini"
        path.write_text("\n".join(lines))
        return path

    @property
    def database(self) -> str:
        """The name of the MongoDB database of this test."""
        return f"test_{abs(hash(self.folder))}"

    @property
    def mongodb_port(self) -> int:
        """The port of MongoDB, which is on this host."""
        [(_, port)] = pymongo.uri_parser.parse_uri(self._mongodb_uri())["nodelist"]
        return int(port)

    @contextmanager
    def mysql(self) -> Iterator["pymysql.cursors.Cursor"]:
        """Open a cursor on the MySQL database."""
        connection = pymysql.connect(
            host="127.0.0.1", port=self._mysql.port, user="chat", password="secret", database="chat_demo",
            charset="utf8mb4", autocommit=True,
        )  # fmt: skip
        with connection, connection.cursor() as cursor:
            yield cursor

    @contextmanager
    def mongodb(self) -> Iterator[Any]:
        """Open the MongoDB database."""
        with pymongo.MongoClient[dict[str, Any]](self._mongodb_uri()) as client:
            yield client[self.database]

    def clear(self) -> None:
        """Drop the tables and databases of this test: the servers outlive it, and other tests use the same names."""
        with self.mysql() as cursor:
            cursor.execute(
                "DROP TABLE IF EXISTS chat_users, chat_blocks, chat_groups, chat_members, chat_schema, chat_demo_user"
            )
        if self.mongodb_server is None:
            with self.mongodb() as database:
                database.client.drop_database(database.name)

    def _mongodb_uri(self) -> str:
        server = self.mongodb_server
        return f"mongodb://127.0.0.1:{server.port}" if server else os.environ["CHAT_TEST_MONGODB"]


@pytest.fixture(scope="module")
def databases() -> Iterator[tuple[servers.DatabaseServer, servers.DatabaseServer | None, servers.DatabaseServer]]:
    """Run MySQL, MongoDB and Redis for all tests of a module."""
    started: list[servers.DatabaseServer] = []
    try:
        for start in (servers.mysql, servers.redis):
            started.append(start())
        mongodb = None if "CHAT_TEST_MONGODB" in os.environ else servers.mongodb()
        started += [mongodb] if mongodb else []
        yield started[0], mongodb, started[1]
    finally:
        for server in started:
            server.stop()


@pytest.fixture
def configs(
    tmp_path: Path,
    databases: tuple[servers.DatabaseServer, servers.DatabaseServer | None, servers.DatabaseServer],
) -> Iterator[ConfigFiles]:
    """Configuration files for empty database servers."""
    configs = ConfigFiles(tmp_path, *databases)
    configs.clear()
    yield configs
    configs.clear()


def load_settings(path: Path) -> Settings:
    """Return the settings in a file."""
    return load(path, {})


async def stored_data(path: Path, count: int = 3) -> dict[str, Any]:
    """Return the complete contents of the stores of a file, independent of the backend.

    Messages are read in pages of `count`.
    """
    async with open_exportable([load_settings(path)], Clock(), _lost) as [stores]:
        return {
            "users": sorted([user for page in [p async for p in stores.users.pages(2)] for user in page], key=str),
            "blocks": [block for page in [p async for p in stores.users.blocks.pages(2)] for block in page],
            "groups": [group for page in [p async for p in stores.users.groups.pages(2)] for group in page],
            "group messages": {
                group.number: (
                    await all_records(stores, GroupKey(group.number, group.name), count),
                    await stores.messages.positions([group.number]),
                )
                async for page in stores.users.groups.pages(2)
                for group in page
            },
            "messages": {
                pair: records
                async for pair in stores.messages.pairs()
                if (records := await all_records(stores, pair, count))
            },
            "order": {
                user: [(c.peer, c.last, c.unread) for c in await stores.messages.conversations(user, 2**62, 200)]
                for user in sorted({name async for pair in stores.messages.pairs() for name in pair})
            },
            "sessions": {
                session.digest: (session.user, session.expires // 1000)
                async for page in stores.sessions.pages(2)
                for session in page
            },
            "strangers": {
                (record.one, record.other): record.state async for page in stores.contacts.pages(2) for record in page
            },
        }


async def all_records(stores: ExportableStores, key: ConversationKey, count: int) -> list[Record]:
    """Return all stored records of a conversation, read in pages of `count`."""
    records: list[Record] = []
    while page := await stores.messages.records(key, records[-1].time if records else 0, MAX_TIME, count):
        records += page
    return records


def _lost(why: str) -> None:
    raise AssertionError(why)
