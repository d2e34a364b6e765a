"""GET /metrics, for Prometheus, on a port of its own: it is not for whom the chat is for."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from chat_server.api.envelope import Envelope
from chat_server.api.middleware import error_middleware
from chat_server.api.runner import listening
from chat_server.utils.prometheus import PrometheusMetrics


@asynccontextmanager
async def exposing(
    metrics: PrometheusMetrics, envelope: Envelope, host: str, port: int, patience: float
) -> AsyncIterator[None]:
    """Serve it while the context lasts, as `listening` does. Raises StartError if it cannot listen there."""

    async def expose(request: web.Request) -> web.Response:
        body, content_type = metrics.exposition(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})

    application = web.Application(middlewares=[error_middleware(envelope)])
    application.add_routes([web.get("/metrics", expose)])
    async with listening(application, envelope, host, port, patience, keys="PrometheusMetrics"):
        yield
