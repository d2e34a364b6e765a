"""What the tests of moving share: files of settings, the command, and all that a set of stores holds."""

import asyncio
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pymongo
import pymysql
import pytest

from chat_server.backends import ExportableStores, open_exportable
from chat_server.conf import Settings, load
from chat_server.migrate.checksum import LATEST
from chat_server.model.messages import Record
from chat_server.utils.clock import Clock
from tests import servers
from tests.harness import run_py

# A move of some thousand messages takes no longer, in seconds.
MOVING = 120.0


class Ran(NamedTuple):
    """What the command said, and its exit code."""

    code: int | None
    out: str
    err: str


async def migrate(*arguments: str | Path, environ: Mapping[str, str] | None = None) -> Ran:
    """python run.py migrate, to its end."""
    child = await run_py("migrate", *map(str, arguments), environ=environ)
    try:
        async with asyncio.timeout(MOVING):
            out, err = await child.communicate()
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    return Ran(child.returncode, out.decode(), err.decode())


async def moved(source: Path, target: Path) -> str:
    """Move from one to the other, which must succeed; what was said."""
    ran = await migrate("--from", source, "--config", target)
    assert ran.code == 0, ran
    return ran.out


async def refused(*arguments: str | Path) -> str:
    """The one line with which the command fails."""
    ran = await migrate(*arguments)
    assert ran.code == 1, ran
    [line] = ran.err.splitlines()
    assert line.startswith("chat-server: "), line
    return line


class Places:
    """Files of settings in `folder`, for embedded stores and for those on the three servers."""

    def __init__(
        self,
        folder: Path,
        mysql: servers.DatabaseServer,
        mongodb: servers.DatabaseServer | None,
        redis: servers.DatabaseServer,
    ) -> None:
        self.folder = folder
        self._mysql, self.mongodb_server, self._redis = mysql, mongodb, redis

    def ini(self, name: str, servers: str = "", data: str = "", **service: Any) -> Path:
        """A file of that name; `servers` lists which of mysql, mongodb and redis are not embedded."""
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
        """The name of this test's MongoDB database."""
        return f"test_{abs(hash(self.folder))}"

    @contextmanager
    def mysql(self) -> Iterator["pymysql.cursors.Cursor"]:
        """A cursor on the MySQL database."""
        connection = pymysql.connect(
            host="127.0.0.1", port=self._mysql.port, user="chat", password="secret", database="chat_demo",
            charset="utf8mb4", autocommit=True,
        )  # fmt: skip
        with connection, connection.cursor() as cursor:
            yield cursor

    @contextmanager
    def mongodb(self) -> Iterator[Any]:
        """The MongoDB database."""
        with pymongo.MongoClient[dict[str, Any]](self._mongodb_uri()) as client:
            yield client[self.database]

    def clear(self) -> None:
        """Drop what the test made on servers that outlive it, and whose names others use."""
        with self.mysql() as cursor:
            cursor.execute("DROP TABLE IF EXISTS chat_users, chat_schema, chat_demo_user")
        if self.mongodb_server is None:
            with self.mongodb() as database:
                database.client.drop_database(database.name)

    def _mongodb_uri(self) -> str:
        server = self.mongodb_server
        return f"mongodb://127.0.0.1:{server.port}" if server else os.environ["CHAT_TEST_MONGODB"]


@pytest.fixture(scope="module")
def databases() -> Iterator[tuple[servers.DatabaseServer, servers.DatabaseServer | None, servers.DatabaseServer]]:
    """MySQL, MongoDB and Redis, for all tests of a module."""
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
def places(
    tmp_path: Path,
    databases: tuple[servers.DatabaseServer, servers.DatabaseServer | None, servers.DatabaseServer],
) -> Iterator[Places]:
    """Files of settings; the servers are empty."""
    places = Places(tmp_path, *databases)
    places.clear()
    yield places
    places.clear()


def settings(path: Path) -> Settings:
    """What a file says."""
    return load(path, {})


async def held(path: Path, count: int = 3) -> dict[str, Any]:
    """All that the stores of a file hold, in terms that no backend has of its own; messages in pages of `count`."""
    async with open_exportable([settings(path)], Clock(), _lost) as [stores]:
        return {
            "users": sorted([user for page in [p async for p in stores.users.pages(2)] for user in page], key=str),
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


async def all_records(stores: ExportableStores, pair: tuple[str, str], count: int) -> list[Record]:
    """A conversation as it is kept, read in pages of `count`."""
    records: list[Record] = []
    while page := await stores.messages.records(*pair, records[-1].time if records else 0, LATEST, count):
        records += page
    return records


def _lost(why: str) -> None:
    raise AssertionError(why)
