"""The one place that knows all rooms: opens the stores, wires the services, adds the routes, and ends it all."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from aiohttp import web

from chat_server.api.envelope import Envelope
from chat_server.api.http import Http
from chat_server.api.middleware import errors_become_answers, other_origins
from chat_server.api.request import Edge
from chat_server.api.socket import SLOTS, Sockets
from chat_server.cache.sqlite import CACHE_SCHEMA, SWEEP, SqliteRates, SqliteSessions, SqliteStrangers, sweep
from chat_server.conf import Settings
from chat_server.model.sqlite import MESSAGES_SCHEMA, USERS_SCHEMA, SqliteMessages, SqliteUsers
from chat_server.service.accounts import DAY, Accounts
from chat_server.service.chat import REMEMBERED, Chat
from chat_server.service.frames import Frames
from chat_server.service.memory import Friends
from chat_server.service.registry import Registry
from chat_server.service.sending import OneTransaction, Sending, Unguarded
from chat_server.status import Status
from chat_server.utils.clock import MICROSECONDS, Clock, Timeline
from chat_server.utils.errors import StartError, StoreUnavailable
from chat_server.utils.passwords import Passwords
from chat_server.utils.sqlite import Database, examine

log = logging.getLogger(__name__)

SCHEMAS = (USERS_SCHEMA, MESSAGES_SCHEMA, CACHE_SCHEMA)
# The largest HTTP body: a name and two passwords, with room. In bytes.
LARGEST_BODY = 16384
SWEEP_SECONDS = 60
# Frames in work, batches, close frames: each part of the end has so long. All of it stays under 10 seconds.
ENDING_SECONDS = 6
# A stored time so far ahead of the clock, in microseconds, is worth a line in the log.
AHEAD = 60 * MICROSECONDS


def check_backends(settings: Settings) -> None:
    """Raises StartError for a backend that is not there yet."""
    for chosen, key in (
        (settings.mysql.db, "[mysql] Db"),
        (settings.redis.redis_db, "[redis] RedisDb"),
        (settings.mongodb.mongodb, "[MongoDB] MongoDb"),
    ):
        if chosen != "embedded":
            raise StartError(
                f"{settings.source}: {key} = {chosen} is not supported by this release; write {key} = embedded"
            )


def check(settings: Settings) -> str:
    """Look at the stores, changing nothing. Returns what was found; raises StartError."""
    check_backends(settings)
    return examine(settings.stores.data_dir, SCHEMAS)


@asynccontextmanager
async def serving(settings: Settings, clock: Clock | None = None) -> AsyncIterator[tuple[str, int]]:
    """Serve while the context lasts. Yields host and port. Raises StartError.

    The end, in this order: accept no more; finish the frames in work; mark what was proven; close the sockets with
    1001; close the stores; end the threads.
    """
    check_backends(settings)
    clock = clock or Clock()
    database = Database(settings.stores.data_dir, timeout=settings.stores.store_timeout)
    passwords = Passwords(settings.accounts.password_cost, settings.accounts.password_wait)
    try:
        await database.open(SCHEMAS)
        try:
            timeline = Timeline(clock, await SqliteMessages(database).newest())
        except StoreUnavailable as error:
            raise StartError(f"{database.path}: {error}; restore it from a backup") from error
        if (ahead := timeline.ahead()) > AHEAD:
            log.warning("the newest message is from the future", extra={"ahead_seconds": ahead // MICROSECONDS})
        async with _application(settings, database, passwords, clock, timeline) as application:
            # A client that is gone cancels its handler: a password nobody waits for leaves the queue.
            runner = web.AppRunner(
                application,
                handler_cancellation=True,
                access_log=None,
                shutdown_timeout=1,
                handle_signals=False,
            )
            await runner.setup()
            try:
                yield await _listen(runner, settings)
            finally:
                await runner.cleanup()
    finally:
        passwords.close()
        await database.close()


async def _listen(runner: web.AppRunner, settings: Settings) -> tuple[str, int]:
    host, port = settings.server.http_host, settings.server.http_port
    site = web.TCPSite(runner, host, port, backlog=1024)
    try:
        await site.start()
    except OSError as error:
        raise StartError(
            f"HttpHost {host}, HttpPort {port}: cannot listen there ({error.strerror or error}); "
            "stop what uses it, or choose another"
        ) from error
    bound_host, bound_port, *_ = runner.addresses[0]
    return bound_host, bound_port


@asynccontextmanager
async def _application(
    settings: Settings, database: Database, passwords: Passwords, clock: Clock, timeline: Timeline
) -> AsyncIterator[web.Application]:
    """The rooms, wired, with the work that goes on behind the requests."""
    users, messages = SqliteUsers(database), SqliteMessages(database)
    sessions = SqliteSessions(database, settings.accounts.session_days * DAY, clock)
    rates = SqliteRates(database, clock)
    registry = Registry()
    frames = Frames(settings.server.language)
    accounts = Accounts(settings.accounts, users, sessions, rates, passwords, registry)
    window = int(settings.chat.stranger_window * DAY * MICROSECONDS)
    chat = Chat(
        settings.chat,
        accounts,
        messages,
        _sending(settings, database, messages),
        rates,
        registry,
        frames,
        timeline,
        Friends(window, REMEMBERED),
    )
    edge = Edge(settings.server.trusted_proxies, settings.server.allowed_origins)
    envelope = Envelope(settings.server.language)
    sockets = Sockets(settings.sockets, accounts, chat, sessions, registry, frames, edge)
    http = Http(accounts, envelope, edge, {"users": users.ping, "messages": messages.ping, "cache": sessions.ping})

    failures = {
        "/user/register": Status.REGISTER_FAILED,
        "/user/login": Status.LOGIN_FAILED,
        "/user/set_password": Status.SET_PASSWORD_FAILED,
        "/user/logout": Status.LOGOUT_FAILED,
    }
    application = web.Application(
        middlewares=[other_origins(edge, envelope, failures), errors_become_answers(envelope)],
        client_max_size=LARGEST_BODY,
    )
    application.add_routes(
        [
            web.get("/ping", http.ping),
            web.get("/health", http.health),
            web.post("/user/register", http.register),
            web.post("/user/login", http.login),
            web.post("/user/set_password", http.set_password),
            web.post("/user/logout", http.logout),
            web.get("/chat/test", sockets.upgrade, allow_head=False),
        ]
    )

    async def end(_: web.Application) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(ENDING_SECONDS):
                await sockets.end()
                await accounts.close()

    application.on_shutdown.append(end)
    keep = int(settings.stores.message_days * DAY * MICROSECONDS)

    async def forget() -> None:
        """What expired: sessions, counters and, under MessageDays, messages; a little at a time."""
        await sweep(database, clock.now())
        while keep and await messages.purge(clock.now() - keep, SWEEP) == SWEEP:
            pass

    behind = [
        asyncio.create_task(_for_ever(sockets.beat, settings.sockets.heartbeat_seconds / SLOTS)),
        asyncio.create_task(_for_ever(forget, SWEEP_SECONDS)),
    ]
    try:
        yield application
    finally:
        for task in behind:
            task.cancel()
        await asyncio.gather(*behind, return_exceptions=True)


def _sending(settings: Settings, database: Database, messages: SqliteMessages) -> Sending:
    limit = settings.chat.stranger_limit
    if not limit:
        return Unguarded(messages)
    window = settings.chat.stranger_window * DAY
    strangers = SqliteStrangers(database, limit, window)
    return OneTransaction(database.write, messages, strangers, limit, int(window * MICROSECONDS))


async def _for_ever(work: Callable[[], Awaitable[None]], seconds: float) -> None:
    """Do `work` every so many seconds, whatever happens to it."""
    while True:
        await asyncio.sleep(seconds)
        try:
            await work()
        except StoreUnavailable as error:
            log.warning("a store is away", extra={"why": str(error)})
        except Exception:
            log.exception("failed behind the requests")
