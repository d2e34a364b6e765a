"""The headers of every answer, errors included, that tell a browser what not to do with it."""

from aiohttp import web

# A page, which is more than data, brings its own Content-Security-Policy and Cache-Control.
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",  # an address may hold a token
    "Cache-Control": "no-store",
}


def secure(response: web.StreamResponse) -> None:
    """Add the headers that it does not have yet; which software answers, and in which version, is nobody's business."""
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers["Server"] = "chat_server"


async def secured(_: web.Request, response: web.StreamResponse) -> None:
    """The same, as a signal of aiohttp: on_response_prepare."""
    secure(response)
