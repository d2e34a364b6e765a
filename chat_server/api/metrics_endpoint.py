"""GET /metrics for Prometheus, on a separate port, because it is not for the users of the chat."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from chat_server.api.envelope import Envelope
from chat_server.api.middleware import error_middleware
from chat_server.api.runner import listening
from chat_server.utils.prometheus import PrometheusMetrics


@asynccontextmanager
async def serve_metrics(
    metrics: PrometheusMetrics, envelope: Envelope, host: str, port: int, timeout: float
) -> AsyncIterator[None]:
    """Serve GET /metrics while the context is open. Raises StartError if the server cannot listen on host and port."""

    async def get_metrics(request: web.Request) -> web.Response:
        body, content_type = metrics.exposition(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})

    application = web.Application(middlewares=[error_middleware(envelope)])
    application.add_routes([web.get("/metrics", get_metrics)])
    async with listening(application, envelope, host, port, timeout, keys="PrometheusMetrics"):
        yield
