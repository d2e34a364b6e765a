"""The stores that the settings name, opened together and closed together: the one place where backends are chosen."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from chat_server.cache.contacts import ContactStore, ExportableContacts
from chat_server.cache.rates import RateStore
from chat_server.cache.sessions import ExportableSessions, SessionStore
from chat_server.cache.sqlite import CACHE_SCHEMA, SWEEP, SqliteContacts, SqliteRates, SqliteSessions, sweep
from chat_server.conf import Settings
from chat_server.model.messages import ExportableMessages, MessageStore
from chat_server.model.sqlite import MESSAGES_SCHEMA, USERS_SCHEMA, SqliteMessages, SqliteUsers
from chat_server.model.users import ExportableUsers, UserStore
from chat_server.service.contact_limit import SameDatabase, SendStrategy, SeparateStores, Unlimited
from chat_server.utils.clock import MICROSECONDS, Clock
from chat_server.utils.errors import StartError, StoreMisconfigured, StoreUnavailable
from chat_server.utils.lease import LEASE_SECONDS, Lease
from chat_server.utils.metrics import NO_METRICS, Metrics
from chat_server.utils.sqlite import Database, examine

log = logging.getLogger(__name__)

T = TypeVar("T")

SCHEMAS = (USERS_SCHEMA, MESSAGES_SCHEMA, CACHE_SCHEMA)
DAY = 86400
# Between two tries to reach a database at start. In seconds.
RETRY = 0.5


class Stores(msgspec.Struct, frozen=True):
    """What the services need; `forget` deletes what expired."""

    users: UserStore
    messages: MessageStore
    sessions: SessionStore
    rates: RateStore
    sending: SendStrategy
    forget: Callable[[], Awaitable[None]]


class ExportableStores(msgspec.Struct, frozen=True):
    """What can be moved from one set of stores to another. Rates cannot: they are too young to be missed."""

    users: ExportableUsers
    messages: ExportableMessages
    sessions: ExportableSessions
    contacts: ExportableContacts


@asynccontextmanager
async def open_stores(
    settings: Settings, clock: Clock, lost: Callable[[str], None], metrics: Metrics = NO_METRICS
) -> AsyncIterator[Stores]:
    """The stores. Raises StartError, after at most StartTimeout for those that are away.

    `lost` is told, in a sentence, when another server took a store over: this one must end.
    """
    async with AsyncExitStack() as stack:
        opening = _Opening(settings, clock, lost, stack, metrics)
        database = await opening.database() if _embedded(settings) else None
        users = await opening.users(database)
        messages = await opening.messages(database)
        sessions, rates, contacts = await opening.cache(database, serving=True)

        async def forget() -> None:
            if database:
                await sweep(database, clock.now())
            keep = int(settings.stores.message_days * DAY * MICROSECONDS)
            while keep and await messages.purge(clock.now() - keep, SWEEP) == SWEEP:
                pass
            if database:
                await database.checkpoint()

        sending = _send_strategy(settings, database, messages, contacts)
        yield Stores(users, messages, sessions, rates, sending, forget)


@asynccontextmanager
async def open_exportable(
    sides: Sequence[Settings], clock: Clock, lost: Callable[[str], None]
) -> AsyncIterator[Sequence[ExportableStores]]:
    """Several sets of stores, which may share some; no server runs on any of them. Raises StartError."""
    async with AsyncExitStack() as stack:
        databases: dict[Path, Database] = {}
        opened: list[ExportableStores] = []
        for settings in sides:
            calm = _unhurried(settings)
            opening = _Opening(calm, clock, lost, stack, NO_METRICS, patience=calm.stores.store_timeout)
            database = databases.get(folder := settings.stores.data_dir.resolve())
            if not database and _embedded(settings):
                database = databases[folder] = await opening.database()
            users, messages = await opening.users(database), await opening.messages(database)
            sessions, _, contacts = await opening.cache(database)
            opened.append(ExportableStores(users, messages, sessions, contacts))
        yield opened


@asynccontextmanager
async def open_alongside(
    settings: Settings, clock: Clock, *, make: bool
) -> AsyncIterator[tuple[ExportableStores, bool]]:
    """The stores, for a command: also beside a running server, whose lock, leases and schemas are left alone.

    `make`: where there is no embedded database yet, make one. The second value says whether it is certain that no
    server runs. Raises StartError, as `open_stores`.
    """
    database_file = settings.stores.data_dir / "chat.db"
    if not make and _embedded(settings) and not database_file.exists():
        raise StartError(f"there is no {database_file}; check DataDir")
    async with AsyncExitStack() as stack:
        opening = _Opening(_unhurried(settings), clock, lambda why: None, stack, NO_METRICS, alongside=True)
        database = await opening.database() if _embedded(settings) else None
        users, messages = await opening.users(database), await opening.messages(database)
        sessions, _, contacts = await opening.cache(database)
        yield ExportableStores(users, messages, sessions, contacts), database is not None and database.owns_lock


def _unhurried(settings: Settings) -> Settings:
    """Where nobody waits for an answer a store may take its time; and nothing expires while it is moved."""
    timeout = max(settings.stores.store_timeout, settings.stores.start_timeout)
    stores = msgspec.structs.replace(settings.stores, store_timeout=timeout, message_days=0)
    return msgspec.structs.replace(settings, stores=stores)


def check(settings: Settings) -> list[str]:
    """Look at the stores, changing nothing. Returns a sentence for each; raises StartError."""
    found = []
    if _embedded(settings):
        found.append(f"embedded: {examine(settings.stores.data_dir, SCHEMAS)}")
    return found + asyncio.run(_check_servers(settings))


async def _check_servers(settings: Settings) -> list[str]:
    found = []
    timeout = settings.stores.store_timeout
    if settings.mysql.db == "mysql":
        from chat_server.model import mysql  # noqa: PLC0415

        found.append(await _probed("MySQL", mysql.probe(settings.mysql, timeout)))
    if settings.redis.redis_db == "redis":
        from chat_server.cache import redis  # noqa: PLC0415

        found.append(await _probed("Redis", redis.probe(settings.redis, timeout)))
    if settings.mongodb.mongodb == "mongodb":
        from chat_server.model import mongodb  # noqa: PLC0415

        found.append(await _probed("MongoDB", mongodb.probe(settings.mongodb, timeout)))
    return found


async def _probed(name: str, probe: Awaitable[str]) -> str:
    try:
        return f"{name}: {await probe}"
    except StoreUnavailable as error:
        raise StartError(str(error)) from error


class _Opening:
    """Opens one store after the other, each to be closed by `stack`. Drivers are imported where they are wanted.

    `alongside`: a server may run on them; no lease is taken, no schema changed that it uses. `patience`: a store that
    answers may have been slow for longer than a lease; so many seconds a write waits for the lease to be renewed.
    """

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        lost: Callable[[str], None],
        stack: AsyncExitStack,
        metrics: Metrics,
        *,
        alongside: bool = False,
        patience: float = 0.0,
    ) -> None:
        self._alongside = alongside
        self._patience = patience
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self._lost = lost
        self._stack = stack
        self._deadline = time.monotonic() + settings.stores.start_timeout

    async def database(self) -> Database:
        stores = self._settings.stores
        database = Database(stores.data_dir, timeout=stores.store_timeout, watch=self._metrics.watch("embedded"))
        self._stack.push_async_callback(database.close)
        await database.open(SCHEMAS, alongside=self._alongside)
        return database

    async def users(self, database: Database | None) -> ExportableUsers:
        config = self._settings.mysql
        if database and config.db == "embedded":
            return SqliteUsers(database)
        from chat_server.model import mysql  # noqa: PLC0415

        timeout, watch = self._settings.stores.store_timeout, self._metrics.watch("mysql")
        users = await self._with_retry(
            mysql.address(config), lambda: mysql.connect(config, timeout, watch, alongside=self._alongside)
        )
        self._stack.push_async_callback(users.close)
        return users

    async def messages(self, database: Database | None) -> ExportableMessages:
        config, stores = self._settings.mongodb, self._settings.stores
        if database and config.mongodb == "embedded":
            return SqliteMessages(database)
        from chat_server.model import mongodb  # noqa: PLC0415

        client = mongodb.client(config, stores.store_timeout)
        self._stack.callback(client.close)
        database_, timeout, name = client[config.name], stores.store_timeout, mongodb.address(config)
        await self._with_retry(name, lambda: mongodb.reach(config, client, timeout))
        if self._alongside:
            return mongodb.MongoMessages(database_, timeout, name=name)
        lease = Lease(mongodb.MongoLease(database_, timeout, name), "[MongoDB] MongoDBName", self._patience)
        await self._hold("mongodb", name, lease)
        days, watch = stores.message_days, self._metrics.watch("mongodb")
        return await self._with_retry(name, lambda: mongodb.connect(config, client, timeout, days, lease.held, watch))

    async def cache(
        self, database: Database | None, *, serving: bool = False
    ) -> tuple[ExportableSessions, RateStore, ExportableContacts]:
        settings = self._settings
        lifetime, window = settings.accounts.session_days * DAY, settings.chat.stranger_window * DAY
        limit, kept = settings.chat.stranger_limit, settings.stores.message_days * DAY or window
        if database and settings.redis.redis_db == "embedded":
            return (
                SqliteSessions(database, lifetime, self._clock),
                SqliteRates(database, self._clock),
                SqliteContacts(database, limit, window, kept),
            )
        from chat_server.cache import redis  # noqa: PLC0415

        timeout = settings.stores.store_timeout
        client = redis.client(settings.redis, timeout)
        bare = redis.Scripts(client, settings.redis.redis_prefix, timeout)
        self._stack.push_async_callback(bare.close)
        # A command beside a server may only read, which a store that is full or read-only does as well.
        await self._with_retry(bare.name, bare.reach if self._alongside else bare.ping)
        scripts = bare
        if not self._alongside:
            lease = Lease(redis.RedisLease(bare), "[redis] RedisAddr", self._patience)
            await self._hold("redis", bare.name, lease)
            watch = self._metrics.watch("redis")
            scripts = redis.Scripts(client, settings.redis.redis_prefix, timeout, lease.held, watch)
            self._stack.push_async_callback(scripts.flush)
        if serving and (volatile := await bare.volatile_settings()):
            why = "if it is killed, it may lose sessions, or restore ended sessions and old counts"
            log.warning("Redis not durable", extra={"settings": volatile, "why": why})
        return (
            redis.RedisSessions(scripts, lifetime, self._clock),
            redis.RedisRates(scripts, self._clock),
            redis.RedisContacts(scripts, limit, window, kept),
        )

    async def _hold(self, store: str, name: str, lease: Lease) -> None:
        """Take the lease, and renew it until the end."""
        self._deadline = max(self._deadline, time.monotonic() + LEASE_SECONDS + 2)  # it may have to run out first
        await self._with_retry(name, lease.take)
        self._stack.push_async_callback(lease.release)
        self._metrics.watch_lease(store, lease.left)
        keeping = asyncio.create_task(lease.keep(self._lost))

        async def stop() -> None:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)

        self._stack.push_async_callback(stop)

    async def _with_retry(self, name: str, connect: Callable[[], Awaitable[T]]) -> T:
        """What `connect` returns, tried until StartTimeout is over; what waiting does not help ends it at once."""
        why = ""
        while True:
            try:
                # A little longer than it has, so that a driver whose own time is the same can still say why.
                async with asyncio.timeout(RETRY + max(0.0, self._deadline - time.monotonic())):
                    return await connect()
            except StoreMisconfigured as error:
                raise StartError(str(error)) from error
            except (StoreUnavailable, TimeoutError) as error:
                first, why = not why, str(error) or why or f"{name}: no answer in time"
                if time.monotonic() >= self._deadline:
                    waited = f"{self._settings.stores.start_timeout:g} s (StartTimeout)"
                    raise StartError(f"{why}; gave up after {waited}") from error
                if first:
                    log.warning("store not ready", extra={"store": name, "error": why})
                await asyncio.sleep(RETRY)


def by_backend(settings: Settings) -> dict[str, list[str]]:
    """The backends in use, by the names that metrics have for them, and what each of them keeps."""
    kept = {"users": settings.mysql.db, "messages": settings.mongodb.mongodb, "cache": settings.redis.redis_db}
    return {backend: [name for name in kept if kept[name] == backend] for backend in kept.values()}


def _embedded(settings: Settings) -> bool:
    return "embedded" in (settings.mysql.db, settings.redis.redis_db, settings.mongodb.mongodb)


def _send_strategy(
    settings: Settings, database: Database | None, messages: MessageStore, contacts: ContactStore
) -> SendStrategy:
    limit = settings.chat.stranger_limit
    window = int(settings.chat.stranger_window * DAY * MICROSECONDS)
    if not limit:
        return Unlimited(messages)
    if database and isinstance(messages, SqliteMessages) and isinstance(contacts, SqliteContacts):
        return SameDatabase(database.write, messages, contacts, limit, window)
    return SeparateStores(messages, contacts, limit, window)
