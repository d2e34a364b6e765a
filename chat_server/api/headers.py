"""The security headers of every answer, errors included."""

from aiohttp import web

# api/page.py sets its own Content-Security-Policy and Cache-Control: its answers are pages, all others are data.
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",  # a URL may contain a token
    "Cache-Control": "no-store",
}


def add_security_headers(response: web.StreamResponse) -> None:
    """Add the headers that `response` lacks, and hide the name and version of the HTTP library."""
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers["Server"] = "chat_server"


async def on_response_prepare(_: web.Request, response: web.StreamResponse) -> None:
    """The aiohttp signal of this name: add the security headers."""
    add_security_headers(response)
