"""The cookies that hold a session token."""

import re

from aiohttp import web

# The names of the cookies, in the order in which they are tried. Browsers accept the first one only over TLS and only
# from this host. The last one was set by servers of an earlier version.
HOST_COOKIE, COOKIE, OLD_COOKIE = "__Host-chat_session", "chat_session", "session"
COOKIES = (HOST_COOKIE, COOKIE, OLD_COOKIE)
# Characters of a request's cookies that are searched for tokens.
MAX_COOKIES = 16384
_COOKIE = re.compile(rf"(?:^|;)[ \t]*({'|'.join(COOKIES)})[ \t]*=([^;]*)")


def session_cookies(request: web.Request) -> list[str]:
    """The values of the session cookies, in the order of COOKIES."""
    # HTTP/2 lets clients split cookies into several headers.
    cookies = "; ".join(request.headers.getall("Cookie", ()))[:MAX_COOKIES]
    found: dict[str, list[str]] = {name: [] for name in COOKIES}
    for name, value in _COOKIE.findall(cookies):
        if value := value.strip(' \t"'):
            found[name].append(value)
    return [value for values in found.values() for value in values]


def set_cookie(response: web.Response, token: str, lifetime: int, *, secure: bool) -> None:
    """Store `token` in the browser for `lifetime` seconds. `secure`: the client uses TLS."""
    name = HOST_COOKIE if secure else COOKIE
    response.set_cookie(name, token, max_age=lifetime, httponly=True, samesite="Lax", secure=secure)


def delete_cookies(response: web.Response, *, secure: bool) -> None:
    """Delete all session cookies in the browser. `secure`: the client uses TLS."""
    for name in COOKIES:
        if secure or name != HOST_COOKIE:
            response.del_cookie(name, httponly=True, samesite="Lax", secure=secure)
