"""Chooses, opens and closes the stores that the settings name. No other module chooses backends."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from enum import Enum, auto
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import msgspec

from chat_server.cache.backplane import Backplane
from chat_server.cache.contacts import ContactStore, ExportableContacts
from chat_server.cache.rates import RateStore
from chat_server.cache.sessions import ExportableSessions
from chat_server.cache.sqlite import CACHE_SCHEMA, SWEEP, SqliteContacts, SqliteRates, SqliteSessions, sweep
from chat_server.conf import Settings
from chat_server.model.messages import ExportableMessages, MessageLog, MessageStore
from chat_server.model.sqlite import MESSAGES_SCHEMA, USERS_SCHEMA, SqliteMessages, SqliteUsers
from chat_server.model.users import ExportableUsers
from chat_server.service.contact_limit import SameDatabase, SendStrategy, SeparateStores, Unlimited
from chat_server.service.stores import ClusterStores, Stores
from chat_server.utils.clock import MICROSECONDS, Clock, Timeline
from chat_server.utils.errors import StartError, StoreMisconfigured, StoreUnavailable
from chat_server.utils.lease import LEASE_SECONDS, Held, Lease, LeaseStore, both
from chat_server.utils.metrics import NO_METRICS, NO_STORE_METRICS, Metrics, StoreMetrics
from chat_server.utils.sqlite import Database, examine
from chat_server.utils.tasks import cancel

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from chat_server.cache.redis import Scripts
    from chat_server.cache.redis_nodes import RedisNode

log = logging.getLogger(__name__)

T = TypeVar("T")

SCHEMAS = (USERS_SCHEMA, MESSAGES_SCHEMA, CACHE_SCHEMA)
DAY = 86400
# Seconds between two attempts to reach a store at startup.
RETRY_SECONDS = 0.5


class ExportableStores(msgspec.Struct, frozen=True):
    """The stores that can be copied to other stores. Rates are not among them, because they expire soon."""

    users: ExportableUsers
    messages: ExportableMessages
    sessions: ExportableSessions
    contacts: ExportableContacts


class AlongsideStores(NamedTuple):
    """Stores for a command. `no_server`: certainly no server runs on them.

    `confirm` returns when every process of a cluster has applied a change, or raises StoreUnavailable.
    """

    stores: ExportableStores
    no_server: bool
    confirm: Callable[[bytes], Awaitable[None]]


class Purpose(Enum):
    """The purpose for which stores are opened."""

    SERVE = auto()  # take the leases, and fail calls while a lease is not certain
    MIGRATE = auto()  # take the leases, and wait while a lease is not certain
    ADMINISTER = auto()  # take no lease and change no schema in use: a server may be running on the stores


@asynccontextmanager
async def open_stores(
    settings: Settings,
    clock: Clock,
    timeline: Timeline,
    on_takeover: Callable[[str], None],
    metrics: Metrics = NO_METRICS,
) -> AsyncIterator[Stores]:
    """Open the stores of a server. Raises StartError, for an unavailable store after StartTimeout.

    `timeline` gives the times of messages: it starts after the newest time in the stores, and gets the slot of this
    process if there are several. `on_takeover` receives a sentence when another server takes over a store; this server
    must then stop.
    """
    async with AsyncExitStack() as stack:
        opener = _StoreOpener(settings, clock, stack, Purpose.SERVE, on_takeover, metrics, timeline)
        database = await opener.open_database() if _uses_embedded(settings) else None
        stores, rates = await opener.open_all(database)

        async def delete_expired() -> None:
            if database:
                await sweep(database, clock.now())
            keep = int(settings.stores.message_days * DAY * MICROSECONDS)
            while keep and await stores.messages.purge(clock.now() - keep, SWEEP) == SWEEP:
                pass
            if database:
                await database.checkpoint()

        sending = _send_strategy(settings, database, stores.messages, stores.contacts)
        timeline.advance(await opener.newest(stores))
        yield Stores(
            stores.users,
            stores.messages,
            stores.sessions,
            rates,
            sending,
            delete_expired,
            opener.shared(),
        )


@asynccontextmanager
async def open_exportable(
    sides: Sequence[Settings], clock: Clock, on_takeover: Callable[[str], None]
) -> AsyncIterator[Sequence[ExportableStores]]:
    """Open several sets of stores, which may share some, while no server runs on any of them. Raises StartError."""
    async with AsyncExitStack() as stack:
        databases: dict[Path, Database] = {}
        opened: list[ExportableStores] = []
        for settings in sides:
            opener = _StoreOpener(_without_deadlines(settings), clock, stack, Purpose.MIGRATE, on_takeover)
            database = databases.get(folder := settings.stores.data_dir.resolve())
            if not database and _uses_embedded(settings):
                database = databases[folder] = await opener.open_database()
            stores, _ = await opener.open_all(database)
            opened.append(stores)
        yield opened


@asynccontextmanager
async def open_alongside(settings: Settings, clock: Clock, *, create: bool) -> AsyncIterator[AlongsideStores]:
    """Open the stores for a command, even while a server runs: its lock, leases and schemas stay untouched.

    `create`: create the embedded database if it does not exist. Raises StartError like `open_stores`.
    """
    database_file = settings.stores.data_dir / "chat.db"
    if not create and _uses_embedded(settings) and not database_file.exists():
        raise StartError(f"there is no {database_file}; check DataDir")
    async with AsyncExitStack() as stack:
        opener = _StoreOpener(_without_deadlines(settings), clock, stack, Purpose.ADMINISTER)
        database = await opener.open_database() if _uses_embedded(settings) else None
        stores, _ = await opener.open_all(database)
        yield AlongsideStores(stores, database is not None and database.owns_lock, opener.confirm)


def _without_deadlines(settings: Settings) -> Settings:
    """Settings for commands: no client waits, so stores may take longer, and no message expires during the work."""
    timeout = max(settings.stores.store_timeout, settings.stores.start_timeout)
    stores = msgspec.structs.replace(settings.stores, store_timeout=timeout, message_days=0)
    return msgspec.structs.replace(settings, stores=stores)


def check_stores(settings: Settings) -> list[str]:
    """Probe the stores without changing them. Returns a sentence for each. Raises StartError."""
    found = []
    if _uses_embedded(settings):
        found.append(f"embedded: {examine(settings.stores.data_dir, SCHEMAS)}")
    return found + asyncio.run(_probe_servers(settings))


async def _probe_servers(settings: Settings) -> list[str]:
    found = []
    timeout = settings.stores.store_timeout
    try:
        if settings.mysql.db == "mysql":
            from chat_server.model import mysql  # noqa: PLC0415

            found.append(f"MySQL: {await mysql.probe(settings.mysql, timeout)}")
        if settings.redis.redis_db == "redis":
            from chat_server.cache import redis  # noqa: PLC0415

            found.append(f"Redis: {await redis.probe(settings.redis, timeout)}")
        if settings.stores.processes == "many":
            from chat_server.cache import redis_changes  # noqa: PLC0415

            await redis_changes.probe(settings.redis, timeout)
        if settings.mongodb.mongodb == "mongodb":
            from chat_server.model import mongodb  # noqa: PLC0415

            found.append(f"MongoDB: {await mongodb.probe(settings.mongodb, timeout)}")
    except StoreUnavailable as error:
        raise StartError(str(error)) from error
    return found


class _StoreOpener:
    """Opens the stores of one Settings; `stack` closes them. Drivers are imported only if a store needs them."""

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        stack: AsyncExitStack,
        purpose: Purpose,
        on_takeover: Callable[[str], None] = lambda why: None,
        metrics: Metrics = NO_METRICS,
        timeline: Timeline | None = None,
    ) -> None:
        self._settings = settings
        self._timeline = timeline
        self._clock = clock
        self._stack = stack
        self._purpose = purpose
        self._alongside = purpose is Purpose.ADMINISTER
        self._on_takeover = on_takeover
        self._metrics = metrics
        self._timeout = settings.stores.store_timeout
        self._node: RedisNode | None = None
        self._log: MessageLog | None = None
        self._backplane: Backplane | None = None
        self._deadline = time.monotonic() + settings.stores.start_timeout
        self.confirm: Callable[[bytes], Awaitable[None]] = _nothing  # see AlongsideStores

    async def open_database(self) -> Database:
        """Open the embedded database."""
        watch = self._metrics.for_store("embedded")
        database = Database(self._settings.stores.data_dir, timeout=self._timeout, watch=watch)
        self._stack.push_async_callback(database.close)
        await database.open(SCHEMAS, alongside=self._alongside)
        return database

    async def open_all(self, database: Database | None) -> tuple[ExportableStores, RateStore]:
        """Open all stores. `database` is None if no store is embedded."""
        users = await self._open_users(database)
        messages = await self._open_messages(database)
        sessions, rates, contacts = await self._open_cache(database)
        return ExportableStores(users, messages, sessions, contacts), rates

    async def newest(self, stores: ExportableStores) -> int:
        """Return the latest time in the stores: of a message or of joining a group, which decides what is read."""
        messages = await self._with_retry("messages", stores.messages.newest)
        return max(messages, await self._with_retry("users", stores.users.groups.newest))

    async def _open_users(self, database: Database | None) -> ExportableUsers:
        config = self._settings.mysql
        if database and config.db == "embedded":
            return SqliteUsers(database)
        from chat_server.model import mysql  # noqa: PLC0415

        watch = self._metrics.for_store("mysql")
        users = await self._with_retry(
            mysql.address(config), lambda: mysql.connect(config, self._timeout, watch, alongside=self._alongside)
        )
        self._stack.push_async_callback(users.close)
        return users

    async def _open_messages(self, database: Database | None) -> ExportableMessages:
        config, days = self._settings.mongodb, self._settings.stores.message_days
        if database and config.mongodb == "embedded":
            return SqliteMessages(database)
        from chat_server.model import mongodb  # noqa: PLC0415

        client, name = mongodb.client(config, self._timeout), mongodb.address(config)
        self._stack.push_async_callback(mongodb.close, client)
        await self._with_retry(name, lambda: mongodb.reach(config, client, self._timeout))
        if self._alongside:
            return mongodb.MongoMessages(client[config.name], self._timeout, name=name)
        lease_store = mongodb.MongoLease(client[config.name], self._timeout, name)
        if self._settings.stores.processes == "many" and self._purpose is Purpose.SERVE:
            self._node = await self._find_cluster(await self._with_retry(name, lease_store.number))
        lease = await self._hold_lease("mongodb", name, lease_store, "[MongoDB] MongoDBName")
        held = both(lease.held, await self._join_cluster(self._node)) if self._node else lease.held
        watch = self._metrics.for_store("mongodb")
        timeline = self._timeline if self._node else None
        messages = await self._with_retry(
            name, lambda: mongodb.connect(config, client, self._timeout, days, held, watch, timeline)
        )
        if isinstance(messages, mongodb.ChainedMessages):
            self._log = messages
            meaning = "Inserts repeated because another process wrote to the conversation."
            self._metrics.add_counter("chat_cluster_insert_conflicts", meaning, lambda: messages.conflicts)
        return messages

    async def _open_cache(self, database: Database | None) -> tuple[ExportableSessions, RateStore, ExportableContacts]:
        """Open the stores of sessions, rates and contacts, which are always in the same backend."""
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

        client, without_lease = self._connect_redis(self._timeout)
        scripts = without_lease
        # A command that only reads also works with a Redis that is full or read-only.
        await self._with_retry(scripts.name, scripts.reach if self._alongside else scripts.ping)
        if self._alongside and settings.stores.processes == "many":
            from chat_server.cache.redis_changes import confirm_as_command  # noqa: PLC0415

            self.confirm = partial(confirm_as_command, client, scripts)
        if not self._alongside:
            if self._node:
                held = self._node.held
            else:
                lease_store = redis.RedisLease(without_lease)
                held = (await self._hold_lease("redis", scripts.name, lease_store, "[redis] RedisAddr")).held
            watch = self._metrics.for_store("redis")
            scripts = redis.Scripts(client, settings.redis.redis_prefix, self._timeout, held, watch)
            self._stack.push_async_callback(scripts.flush)
        if self._purpose is Purpose.SERVE and (volatile := await without_lease.volatile_settings()):
            why = "after a crash, ended sessions may be valid again, and sessions and counts may be lost"
            log.warning("Redis not durable", extra={"settings": volatile, "why": why})
        return (
            redis.RedisSessions(scripts, lifetime, self._clock),
            redis.RedisRates(scripts, self._clock),
            redis.RedisContacts(scripts, limit, window, kept),
        )

    def shared(self) -> ClusterStores | None:
        """What this process shares with others; None if it is the only one."""
        return ClusterStores(self._backplane, self._log) if self._backplane and self._log else None

    def _connect_redis(self, timeout: float, watch: StoreMetrics = NO_STORE_METRICS) -> "tuple[Redis, Scripts]":
        """Create a client of Redis, and scripts that need no lease."""
        from chat_server.cache import redis  # noqa: PLC0415

        client = redis.client(self._settings.redis, timeout)
        scripts = redis.Scripts(client, self._settings.redis.redis_prefix, timeout, watch=watch)
        self._stack.push_async_callback(scripts.close)
        return client, scripts

    async def _find_cluster(self, database: str) -> "RedisNode":
        """Create the node of this process for this `database` of MongoDB. It joins after MongoDB's lease is taken."""
        from chat_server.cache import redis_changes, redis_nodes  # noqa: PLC0415

        # A call that hangs must leave time for another within the lease.
        timeout = min(self._timeout, redis_nodes.LEASE_SECONDS / 3)
        client, scripts = self._connect_redis(timeout, self._metrics.for_store("redis"))
        await self._with_retry(scripts.name, lambda: redis_changes.probe_rights(client, scripts))
        name = await self._with_retry(scripts.name, lambda: redis_nodes.cluster_name(scripts))
        self._connection = client, scripts
        return redis_nodes.RedisNode(scripts, name, database, self._clock, self._timeline or Timeline(self._clock))

    async def _join_cluster(self, node: "RedisNode") -> Held:
        """Take a lease for this node and renew it until the stack closes."""
        from chat_server.cache.redis_backplane import RedisBackplane  # noqa: PLC0415

        self._deadline = max(self._deadline, time.monotonic() + LEASE_SECONDS + 2)
        await self._with_retry("Redis", node.join)
        self._stack.push_async_callback(node.leave)
        self._metrics.add_lease("redis", node.left)
        self._backplane = backplane = RedisBackplane(*self._connection, node, self._clock, self._timeout)
        backplane.add_metrics(self._metrics)
        self._stack.push_async_callback(backplane.close)
        await self._with_retry("Redis", backplane.open)
        self._renew_with(node.keep(self._on_takeover))  # ends before the backplane, which it may subscribe again
        return node.held

    async def _hold_lease(self, store: str, name: str, lease_store: LeaseStore, setting: str) -> Lease:
        """Take a lease and renew it until the stack closes. Calls wait for its renewal only for Purpose.MIGRATE."""
        timeout = self._timeout if self._purpose is Purpose.MIGRATE else 0.0
        lease = Lease(lease_store, setting, timeout, self._node.holder if self._node else None)
        # The lease of a killed server may have to expire first.
        self._deadline = max(self._deadline, time.monotonic() + LEASE_SECONDS + 2)
        await self._with_retry(name, lease.take)
        self._stack.push_async_callback(lease.release)
        self._metrics.add_lease(store, lease.left)
        self._renew_with(lease.keep(self._on_takeover))
        return lease

    def _renew_with(self, renewals: Coroutine[None, None, None]) -> None:
        """Run the renewals of a lease until the stack closes."""
        self._stack.push_async_callback(cancel, asyncio.create_task(renewals))

    async def _with_retry(self, name: str, connect: Callable[[], Awaitable[T]]) -> T:
        """Return the result of `connect`. Retry until StartTimeout unless the store is misconfigured."""
        why = ""
        while True:
            try:
                # A little more than the time left, so that a driver with the same timeout can report the cause.
                async with asyncio.timeout(RETRY_SECONDS + max(0.0, self._deadline - time.monotonic())):
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
                await asyncio.sleep(RETRY_SECONDS)


async def _nothing(_: bytes) -> None:
    pass


def by_backend(settings: Settings) -> dict[str, list[str]]:
    """The backends in use, by their metric labels, and the names of the stores that each of them holds."""
    kept = {"users": settings.mysql.db, "messages": settings.mongodb.mongodb, "cache": settings.redis.redis_db}
    return {backend: [name for name in kept if kept[name] == backend] for backend in kept.values()}


def _uses_embedded(settings: Settings) -> bool:
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
