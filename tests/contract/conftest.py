"""The backends of each store interface, by name, on which the contract suites run.

A new backend needs one context manager here and one line in the table of its interface. The context manager yields an
empty store; with `away`, a store whose database does not answer.
"""

import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec
import pymongo
import pytest

from chat_server import conf
from chat_server.backends import SCHEMAS
from chat_server.cache import redis
from chat_server.cache.contacts import ContactStore
from chat_server.cache.rates import RateStore
from chat_server.cache.sessions import SessionStore
from chat_server.cache.sqlite import SqliteContacts, SqliteRates, SqliteSessions
from chat_server.model import mongodb, mysql
from chat_server.model.messages import MessageStore
from chat_server.model.sqlite import SqliteMessages, SqliteUsers
from chat_server.model.users import UserStore
from chat_server.utils.clock import Clock, Timeline
from chat_server.utils.lease import always
from chat_server.utils.sqlite import Database
from tests import servers
from tests.harness import ManualClock

LIFETIME = 1000.0  # of a session, in seconds
LIMIT, WINDOW, KEPT = 3, 100.0, 40.0  # of the contact limit; in seconds
# The lease of a node in seconds, in tests that last as long as it. A busy machine may stop a process for seconds.
SHORT_LEASE = pytest.mark.parametrize("lease", [4.0])

Store = TypeVar("Store")
Store_co = TypeVar("Store_co", covariant=True)


class Opened(Protocol[Store_co]):
    """A function that opens a store."""

    def __call__(self, folder: Path, clock: Clock, *, away: bool = False) -> AbstractAsyncContextManager[Store_co]: ...


def on_sqlite(make: Callable[[Database, Clock], Store]) -> Opened[Store]:
    """Return a function that opens a store on the embedded database."""

    @asynccontextmanager
    async def opened(folder: Path, clock: Clock, *, away: bool = False) -> AsyncIterator[Store]:
        database = Database(folder, timeout=20)
        await database.open(SCHEMAS)
        try:
            if away:
                await database.close()
            yield make(database, clock)
        finally:
            await database.close()

    return opened


_SERVERS: dict[str, servers.DatabaseServer] = {}


def _server(name: str) -> servers.DatabaseServer:
    """Return the database server with this name. It starts once for all tests."""
    if name not in _SERVERS:
        _SERVERS[name] = {"mysql": servers.mysql, "mongodb": servers.mongodb, "redis": servers.redis}[name]()
    return _SERVERS[name]


@pytest.fixture(scope="session", autouse=True)
def stopping() -> Iterator[None]:
    """Stop the servers that were started."""
    yield
    for server in _SERVERS.values():
        server.stop()


@asynccontextmanager
async def on_mysql(folder: Path, clock: Clock, *, away: bool = False) -> AsyncIterator[UserStore]:
    config = servers.mysql_config(_server("mysql"))
    users = await mysql.connect(config, 20)
    try:
        for table in ("chat_users", "chat_blocks", "chat_groups", "chat_members"):
            await users._execute(f"DELETE FROM {table}")
        if away:
            users._timeout = 0.0
        yield users
    finally:
        await users.close()


def on_mongodb(make_client: Callable[..., Any], timeline: Timeline | None = None) -> Opened[MessageStore]:
    @asynccontextmanager
    async def opened(folder: Path, clock: Clock, *, away: bool = False) -> AsyncIterator[MessageStore]:
        server = None if "CHAT_TEST_MONGODB" in os.environ else _server("mongodb")
        config = servers.mongodb_config(server, f"t{uuid.uuid4().hex}")
        if away:
            config = msgspec.structs.replace(config, addr="127.0.0.1", port=1)
        timeout = 0.1 if away else 20
        client = make_client(config, timeout)
        try:
            if away:
                yield mongodb.MongoMessages(client[config.name], timeout)
            else:
                yield await mongodb.connect(config, client, timeout, 0, always, timeline=timeline)
                await client.drop_database(config.name)
        finally:
            if (closing := client.close()) is not None:  # pymongo returns a coroutine, motor does not
                await closing

    return opened


def successor(config: conf.MongoDBSettings, timeout: float) -> Any:
    """Create a client of motor's successor in pymongo."""
    address, options = mongodb.client_options(config, timeout)
    return pymongo.AsyncMongoClient(address, **options)


def on_redis(make: Callable[[redis.Scripts, Clock], Store]) -> Opened[Store]:
    @asynccontextmanager
    async def opened(folder: Path, clock: Clock, *, away: bool = False) -> AsyncIterator[Store]:
        config = servers.redis_config(_server("redis"), f"{uuid.uuid4().hex}:")
        scripts = redis.Scripts(redis.client(config, 20), config.redis_prefix, 0 if away else 20)
        try:
            yield make(scripts, clock)
        finally:
            await scripts.close()

    return opened


USERS: dict[str, Opened[UserStore]] = {
    "sqlite": on_sqlite(lambda database, _: SqliteUsers(database)),
    "mysql": on_mysql,
}
MESSAGES: dict[str, Opened[MessageStore]] = {
    "sqlite": on_sqlite(lambda database, _: SqliteMessages(database)),
    "motor": on_mongodb(mongodb.client),
    "pymongo": on_mongodb(successor),
    "several processes": on_mongodb(mongodb.client, Timeline(Clock())),
}
SESSIONS: dict[str, Opened[SessionStore]] = {
    "sqlite": on_sqlite(lambda database, clock: SqliteSessions(database, LIFETIME, clock)),
    "redis": on_redis(lambda scripts, clock: redis.RedisSessions(scripts, LIFETIME, clock)),
}
RATES: dict[str, Opened[RateStore]] = {
    "sqlite": on_sqlite(SqliteRates),
    "redis": on_redis(redis.RedisRates),
}
STRANGERS: dict[str, Opened[ContactStore]] = {
    "sqlite": on_sqlite(lambda database, _: SqliteContacts(database, LIMIT, WINDOW, KEPT)),
    "redis": on_redis(lambda scripts, _: redis.RedisContacts(scripts, LIMIT, WINDOW, KEPT)),
}


@pytest.fixture
def clock() -> ManualClock:
    """The clock of the stores."""
    return ManualClock()


Later = Callable[[float], Awaitable[None]]


@pytest.fixture
def later(clock: ManualClock) -> Later:
    """Let seconds pass for the stores. A backend with a clock of its own must be changed here as well."""

    async def let_pass(seconds: float) -> None:
        clock.shift += seconds

    return let_pass


@pytest.fixture
def lease() -> float:
    """The lease of a node in seconds: longer than a busy machine delays this process."""
    return 20.0


@pytest.fixture
def timeline(clock: ManualClock) -> Timeline:
    """The times of messages."""
    return Timeline(clock)


@pytest.fixture(params=USERS)
async def users(request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock) -> AsyncIterator[UserStore]:
    async with USERS[request.param](tmp_path, clock) as store:
        yield store


@pytest.fixture(params=MESSAGES)
async def messages(request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock) -> AsyncIterator[MessageStore]:
    async with MESSAGES[request.param](tmp_path, clock) as store:
        yield store


@pytest.fixture(params=SESSIONS)
async def sessions(request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock) -> AsyncIterator[SessionStore]:
    async with SESSIONS[request.param](tmp_path, clock) as store:
        yield store


@pytest.fixture(params=RATES)
async def rates(request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock) -> AsyncIterator[RateStore]:
    async with RATES[request.param](tmp_path, clock) as store:
        yield store


@pytest.fixture(params=STRANGERS)
async def strangers(request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock) -> AsyncIterator[ContactStore]:
    async with STRANGERS[request.param](tmp_path, clock) as store:
        yield store


@pytest.fixture(params=USERS)
async def users_away(request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock) -> AsyncIterator[UserStore]:
    async with USERS[request.param](tmp_path, clock, away=True) as store:
        yield store


@pytest.fixture(params=MESSAGES)
async def messages_away(
    request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock
) -> AsyncIterator[MessageStore]:
    async with MESSAGES[request.param](tmp_path, clock, away=True) as store:
        yield store


@pytest.fixture(params=SESSIONS)
async def sessions_away(
    request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock
) -> AsyncIterator[SessionStore]:
    async with SESSIONS[request.param](tmp_path, clock, away=True) as store:
        yield store


@pytest.fixture(params=RATES)
async def rates_away(request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock) -> AsyncIterator[RateStore]:
    async with RATES[request.param](tmp_path, clock, away=True) as store:
        yield store


@pytest.fixture(params=STRANGERS)
async def strangers_away(
    request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock
) -> AsyncIterator[ContactStore]:
    async with STRANGERS[request.param](tmp_path, clock, away=True) as store:
        yield store
