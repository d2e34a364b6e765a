"""Startup and shutdown in one place: open the stores, connect the services to them, add the routes, stop everything."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from functools import partial

from aiohttp import web

from chat_server.api.connection import Events
from chat_server.api.connection_manager import ConnectionManager
from chat_server.api.dispatcher import Dispatcher
from chat_server.api.endpoints import HttpEndpoints
from chat_server.api.envelope import Envelope
from chat_server.api.group_endpoints import GroupEndpoints
from chat_server.api.health import Health
from chat_server.api.limits import SLOTS
from chat_server.api.middleware import error_middleware, origin_middleware
from chat_server.api.page import Page
from chat_server.api.proxy_policy import ProxyPolicy
from chat_server.api.runner import listening
from chat_server.backends import by_backend, open_stores
from chat_server.conf import ServerSettings, Settings
from chat_server.service.presence import ROUND_SECONDS
from chat_server.service.services import Services
from chat_server.service.stores import Stores
from chat_server.status import Status
from chat_server.utils.clock import MICROSECONDS, Clock, Timeline
from chat_server.utils.errors import StoreUnavailable
from chat_server.utils.metrics import NO_METRICS, Metrics
from chat_server.utils.passwords import Passwords
from chat_server.utils.tasks import cancel

log = logging.getLogger(__name__)

# The largest HTTP body, in bytes: a name and two passwords need far less.
MAX_BODY = 16384
# The status of a failure of each POST endpoint.
FAILURES = {
    "/user/register": Status.REGISTER_FAILED,
    "/user/login": Status.LOGIN_FAILED,
    "/user/set_password": Status.SET_PASSWORD_FAILED,
    "/user/logout": Status.LOGOUT_FAILED,
    "/user/block": Status.BLOCK_FAILED,
    "/user/unblock": Status.UNBLOCK_FAILED,
    "/group/create": Status.GROUP_CREATE_FAILED,
    "/group/add": Status.GROUP_ADD_FAILED,
    "/group/remove": Status.GROUP_REMOVE_FAILED,
    "/group/delete": Status.GROUP_DELETE_FAILED,
}
# Seconds between two deletions of expired data. Deleted texts must leave the disk within a minute.
SWEEP_SECONDS = 30
# Seconds between two probes of the stores while metrics are on.
HEALTH_SECONDS = 5
# Seconds for answering the last frames, flushing the outboxes and closing the sockets. The shutdown takes at most 10.
SHUTDOWN_SECONDS = 6
# A newest message that is further ahead of the clock is worth a warning. In microseconds.
MAX_AHEAD = 60 * MICROSECONDS


@asynccontextmanager
async def serving(
    settings: Settings, clock: Clock | None = None, on_takeover: Callable[[str], None] = lambda why: None
) -> AsyncIterator[tuple[str, int]]:
    """Serve while the context is open. Yields host and port. Raises StartError.

    `on_takeover` receives a sentence when another server takes over a store; the caller must then leave the context.
    Shutdown order: stop accepting connections; finish the frames in progress and close the sockets with 1001; mark
    confirmed messages as read; close the stores; stop the threads.
    """
    clock = clock or Clock()
    envelope = Envelope(settings.server.language)
    metrics, metrics_server = _metrics(settings.server, envelope)
    passwords = Passwords(settings.accounts.password_cost, settings.accounts.password_wait)
    try:
        timeline = Timeline(clock)
        async with open_stores(settings, clock, timeline, on_takeover, metrics) as stores:
            if (ahead := timeline.ahead()) > MAX_AHEAD:
                log.warning("clock behind", extra={"seconds": ahead // MICROSECONDS})
            host, port = settings.server.http_host, settings.server.http_port
            async with (
                _application(settings, stores, passwords, clock, timeline, envelope, metrics) as application,
                metrics_server,
                listening(application, envelope, host, port, settings.server.request_timeout) as address,
            ):
                yield address
    finally:
        passwords.close()


def _metrics(config: ServerSettings, envelope: Envelope) -> tuple[Metrics, AbstractAsyncContextManager[None]]:
    """The metrics, and the context in which GET /metrics is served."""
    if not config.metrics_port:
        return NO_METRICS, nullcontext()
    from chat_server.api.metrics_endpoint import serve_metrics  # noqa: PLC0415 - slow to import
    from chat_server.utils.prometheus import PrometheusMetrics  # noqa: PLC0415

    metrics = PrometheusMetrics()
    return metrics, serve_metrics(metrics, envelope, config.metrics_host, config.metrics_port, config.request_timeout)


@asynccontextmanager
async def _application(
    settings: Settings,
    stores: Stores,
    passwords: Passwords,
    clock: Clock,
    timeline: Timeline,
    envelope: Envelope,
    metrics: Metrics,
) -> AsyncIterator[web.Application]:
    """Create the services, the routes and the periodic tasks; stop them when the context closes."""
    services = Services(settings, stores, passwords, clock, timeline, metrics)
    accounts, registry, presence = services.accounts, services.registry, services.presence
    dispatcher = Dispatcher(services)
    proxy_policy = ProxyPolicy(settings.server.trusted_proxies, settings.server.allowed_origins)
    pings = {"users": stores.users.ping, "messages": stores.messages.ping, "cache": stores.sessions.ping}
    if stores.shared:
        pings["cluster"] = stores.shared.backplane.ping
    health = Health(pings)
    for store, names in by_backend(settings).items():
        metrics.add_health(store, partial(health.is_up, names))
    timeout = settings.server.request_timeout
    endpoints = HttpEndpoints(
        accounts,
        services.blocking,
        services.completion,
        envelope,
        proxy_policy,
        health,
        pings.get("cluster", _nothing),
        timeout,
    )
    group_endpoints = GroupEndpoints(services.groups, services.completion, endpoints.session, envelope, timeout)
    page = Page(
        {
            "max-text": settings.chat.max_text_bytes,
            "max-frame": settings.sockets.max_frame_bytes,
            "min-password": settings.accounts.min_password_length,
            "registration": settings.accounts.registration,
        }
    )
    sockets = ConnectionManager(
        settings.sockets,
        accounts,
        services.peers,
        stores.sessions,
        registry,
        services.frames,
        proxy_policy,
        Events(dispatcher.add, services.confirmations.confirm, registry.leave, metrics.add_slow_reader),
        page.fallback_page,
    )
    if services.cluster and services.receiver:
        sockets.cluster = services.cluster
        services.receiver.check_sessions = sockets.check_sessions
        services.receiver.close_slowly = sockets.close_slowly
        services.cluster.start(services.receiver)
    metrics.add_gauge("chat_sockets", "Open sockets.", sockets.open)
    metrics.add_gauge("chat_users_online", "Users with an open socket.", registry.users)
    metrics.add_gauge(
        "chat_presence_waiting", "Users who came online or went offline and are not announced yet.", presence.waiting
    )
    metrics.add_gauge("chat_outbox_bytes", "Bytes waiting to be read by clients.", sockets.waiting)
    metrics.add_gauge("chat_passwords_waiting", "Passwords waiting to be hashed.", lambda: passwords.waiting)

    application = web.Application(
        middlewares=[origin_middleware(proxy_policy, envelope, FAILURES), error_middleware(envelope)],
        client_max_size=MAX_BODY,
    )
    application.add_routes(_routes(endpoints, group_endpoints, sockets, page))

    async def close_sockets() -> None:
        await sockets.end()
        await dispatcher.finish()
        await services.confirmations.flush()

    loop, deadline = asyncio.get_running_loop(), 0.0

    async def shut_down(_: web.Application) -> None:
        nonlocal deadline
        deadline = deadline or loop.time() + SHUTDOWN_SECONDS  # aiohttp calls it twice
        with suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                await asyncio.gather(close_sockets(), services.completion.close())

    application.on_shutdown.append(shut_down)
    periodic = [
        asyncio.create_task(_repeat(sockets.heartbeat, settings.sockets.heartbeat_seconds / SLOTS)),
        asyncio.create_task(_repeat(services.refresh, settings.sockets.heartbeat_seconds)),
        asyncio.create_task(_repeat(presence.push, ROUND_SECONDS)),
        asyncio.create_task(_repeat(stores.delete_expired, SWEEP_SECONDS)),
        asyncio.create_task(_repeat(services.deleted_groups.erase, SWEEP_SECONDS)),
        asyncio.create_task(metrics.measure_loop_lag()),
    ]
    if settings.server.metrics_port:  # a scrape reads the latest result and never waits for a store
        periodic.append(asyncio.create_task(_repeat(health.probe, HEALTH_SECONDS)))
    try:
        yield application
    finally:
        await cancel(*periodic)
        await health.close()


def _routes(
    endpoints: HttpEndpoints, group_endpoints: GroupEndpoints, sockets: ConnectionManager, page: Page
) -> list[web.RouteDef]:
    return [
        web.get("/ping", endpoints.ping),
        web.get("/health", endpoints.health),
        web.get("/ready", endpoints.ready),
        web.get("/openapi.json", endpoints.openapi),
        web.post("/user/register", endpoints.register),
        web.post("/user/login", endpoints.login),
        web.post("/user/set_password", endpoints.set_password),
        web.post("/user/logout", endpoints.logout),
        web.post("/user/block", endpoints.block),
        web.post("/user/unblock", endpoints.unblock),
        web.get("/user/blocked", endpoints.blocked),
        web.post("/group/create", group_endpoints.create),
        web.post("/group/add", group_endpoints.add),
        web.post("/group/remove", group_endpoints.remove),
        web.post("/group/delete", group_endpoints.delete),
        web.get("/group/members", group_endpoints.members),
        web.get("/chat/test", sockets.upgrade, allow_head=False),
        web.get("/", page.get_page),
        web.get("/sw.js", page.get_worker),
        web.get("/web/{version}/{name}", page.get_file),
    ]


async def _nothing() -> None:
    pass


async def _repeat(work: Callable[[], Awaitable[object]], seconds: float) -> None:
    """Run `work` again and again, `seconds` after its previous end. Errors are logged and do not stop it."""
    while True:
        await asyncio.sleep(seconds)
        try:
            await work()
        except StoreUnavailable as error:
            log.warning("store unavailable", extra={"error": str(error)})
        except Exception:
            log.exception("background task failed")
