"""The stores that the contract suites run on: per interface, each backend by name.

A new backend is one context manager here and one line in the table of its interface. It yields an empty store;
with `away` one whose database does not answer.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Protocol, TypeVar

import pytest

from chat_server.backends import SCHEMAS
from chat_server.cache.limits import RateStore, StrangerStore
from chat_server.cache.sessions import SessionStore
from chat_server.cache.sqlite import SqliteRates, SqliteSessions, SqliteStrangers
from chat_server.model.messages import MessageStore
from chat_server.model.sqlite import SqliteMessages, SqliteUsers
from chat_server.model.users import UserStore
from chat_server.utils.clock import Clock, Timeline
from chat_server.utils.sqlite import Database
from tests.harness import HandClock

LIFETIME = 1000.0  # of a session, in seconds
LIMIT, WINDOW = 3, 100.0  # for strangers; in seconds

Store = TypeVar("Store")
Store_co = TypeVar("Store_co", covariant=True)


class Opened(Protocol[Store_co]):
    """Opens a store."""

    def __call__(self, folder: Path, clock: Clock, *, away: bool = False) -> AbstractAsyncContextManager[Store_co]: ...


def on_sqlite(make: Callable[[Database, Clock], Store]) -> Opened[Store]:
    """A store on the embedded database."""

    @asynccontextmanager
    async def opened(folder: Path, clock: Clock, *, away: bool = False) -> AsyncIterator[Store]:
        database = Database(folder, timeout=0 if away else 20)
        await database.open(SCHEMAS)
        try:
            yield make(database, clock)
        finally:
            await database.close()

    return opened


USERS: dict[str, Opened[UserStore]] = {
    "sqlite": on_sqlite(lambda database, _: SqliteUsers(database)),
}
MESSAGES: dict[str, Opened[MessageStore]] = {
    "sqlite": on_sqlite(lambda database, _: SqliteMessages(database)),
}
SESSIONS: dict[str, Opened[SessionStore]] = {
    "sqlite": on_sqlite(lambda database, clock: SqliteSessions(database, LIFETIME, clock)),
}
RATES: dict[str, Opened[RateStore]] = {
    "sqlite": on_sqlite(SqliteRates),
}
STRANGERS: dict[str, Opened[StrangerStore]] = {
    "sqlite": on_sqlite(lambda database, _: SqliteStrangers(database, LIMIT, WINDOW)),
}


@pytest.fixture
def clock() -> HandClock:
    """The clock of the stores."""
    return HandClock()


@pytest.fixture
def timeline(clock: HandClock) -> Timeline:
    """The times of messages."""
    return Timeline(clock)


@pytest.fixture(params=USERS)
async def users(request: pytest.FixtureRequest, tmp_path: Path, clock: HandClock) -> AsyncIterator[UserStore]:
    async with USERS[request.param](tmp_path, clock) as store:
        yield store


@pytest.fixture(params=MESSAGES)
async def messages(request: pytest.FixtureRequest, tmp_path: Path, clock: HandClock) -> AsyncIterator[MessageStore]:
    async with MESSAGES[request.param](tmp_path, clock) as store:
        yield store


@pytest.fixture(params=SESSIONS)
async def sessions(request: pytest.FixtureRequest, tmp_path: Path, clock: HandClock) -> AsyncIterator[SessionStore]:
    async with SESSIONS[request.param](tmp_path, clock) as store:
        yield store


@pytest.fixture(params=RATES)
async def rates(request: pytest.FixtureRequest, tmp_path: Path, clock: HandClock) -> AsyncIterator[RateStore]:
    async with RATES[request.param](tmp_path, clock) as store:
        yield store


@pytest.fixture(params=STRANGERS)
async def strangers(request: pytest.FixtureRequest, tmp_path: Path, clock: HandClock) -> AsyncIterator[StrangerStore]:
    async with STRANGERS[request.param](tmp_path, clock) as store:
        yield store


@pytest.fixture(params=USERS)
async def users_away(request: pytest.FixtureRequest, tmp_path: Path, clock: HandClock) -> AsyncIterator[UserStore]:
    async with USERS[request.param](tmp_path, clock, away=True) as store:
        yield store


@pytest.fixture(params=MESSAGES)
async def messages_away(
    request: pytest.FixtureRequest, tmp_path: Path, clock: HandClock
) -> AsyncIterator[MessageStore]:
    async with MESSAGES[request.param](tmp_path, clock, away=True) as store:
        yield store


@pytest.fixture(params=SESSIONS)
async def sessions_away(
    request: pytest.FixtureRequest, tmp_path: Path, clock: HandClock
) -> AsyncIterator[SessionStore]:
    async with SESSIONS[request.param](tmp_path, clock, away=True) as store:
        yield store


@pytest.fixture(params=RATES)
async def rates_away(request: pytest.FixtureRequest, tmp_path: Path, clock: HandClock) -> AsyncIterator[RateStore]:
    async with RATES[request.param](tmp_path, clock, away=True) as store:
        yield store


@pytest.fixture(params=STRANGERS)
async def strangers_away(
    request: pytest.FixtureRequest, tmp_path: Path, clock: HandClock
) -> AsyncIterator[StrangerStore]:
    async with STRANGERS[request.param](tmp_path, clock, away=True) as store:
        yield store
