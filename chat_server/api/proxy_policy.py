"""What a request says about itself: its address, its origin, its session tokens and its body.

All of it is hostile input. No function here takes more than linear time.
"""

import asyncio
import logging
import re
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import msgspec
from aiohttp import web

from chat_server.conf.origins import canonical, without_default_port
from chat_server.status import Reason, Refused, Status

log = logging.getLogger(__name__)

# The cookies that hold a session's token, in the order in which they are tried. A browser accepts the first one over
# TLS only, and from this host only. Servers before this name was chosen set the last one.
HOST_COOKIE, COOKIE, OLD_COOKIE = "__Host-chat_session", "chat_session", "session"
COOKIES = (HOST_COOKIE, COOKIE, OLD_COOKIE)
_COOKIE = re.compile(rf"(?:^|;)[ \t]*({'|'.join(COOKIES)})[ \t]*=([^;]*)")
# Tokens of one request that are looked up, and the characters of its cookies that are searched for them.
MAX_TOKENS = 4
MAX_COOKIES = 16384
# Proxies in a row whose X-Forwarded-For is followed.
MAX_HOPS = 16
# Untrusted senders of X-Forwarded-* headers that are logged.
MAX_WARNINGS = 8
_FORWARDED = ("X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host")
_WITHOUT_TLS = ("http", "ws")

Address = IPv4Address | IPv6Address
Body = TypeVar("Body", bound=msgspec.Struct)


class ProxyPolicy:
    """Where requests come from. The headers of proxies count only if the proxy is in `trusted_proxies`."""

    def __init__(self, trusted_proxies: Sequence[str], allowed_origins: Sequence[str]) -> None:
        self._trusted = [ip_network(network) for network in trusted_proxies]
        self._allowed = frozenset(allowed_origins)
        self._warned: set[str] = set()

    def address(self, request: web.Request) -> str:
        """The client's address, for limits. An IPv6 client has a /64 for itself, so that is its address."""
        address = _address(request.remote or "")
        if self._from_proxy(request):
            # The last address that is no trusted proxy counts: the client may have written what stands before it.
            for hop in _hops(request.headers.getall("X-Forwarded-For", ())):
                parsed = _address(_without_port(hop))
                if parsed is None:
                    break  # not an address: the proxy that sent it counts
                address = parsed
                if not self._is_trusted(address):
                    break
        if address is None or address.version == 4:
            return str(address or "")
        return str(ip_network((int(address) >> 64 << 64, 64)))

    def secure(self, request: web.Request) -> bool:
        """Whether the client uses TLS, as far as is known. An unrecognised X-Forwarded-Proto means that it does."""
        proto = self._forwarded(request, "X-Forwarded-Proto")
        return request.secure or (proto is not None and proto not in _WITHOUT_TLS)

    def foreign(self, request: web.Request) -> str | None:
        """The Origin of a request from another site's page; None for other requests."""
        if "Origin" not in request.headers:
            return None
        origin = _whole(request, "Origin")  # two origins are nobody's
        scheme, _, netloc = origin.partition("://")
        host = self._forwarded(request, "X-Forwarded-Host")
        if host is None:
            host = request.headers.get("Host", "")
        # Without X-Forwarded-Proto a proxy in front may use TLS or not: then both schemes are the server's own.
        schemes = ("https",) if self.secure(request) else ("http", "https")
        own = scheme.lower() in schemes and without_default_port(netloc) == without_default_port(host) != ""
        return None if own else origin

    def allowed(self, origin: str) -> bool:
        """Whether pages of that origin may use this server."""
        return canonical(origin) in self._allowed

    def tokens(self, request: web.Request, *, socket: bool = False) -> list[str]:
        """The tokens to try: Bearer, else `token` (sockets only), else the cookies (the server's own pages only)."""
        scheme, _, credentials = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return [credentials.strip()]
        if socket and (token := request.query.get("token")):
            return [token]
        return _cookies(request)[:MAX_TOKENS] if self.foreign(request) is None else []

    def _forwarded(self, request: web.Request, header: str) -> str | None:
        """The first entry of a trusted proxy's header, in lower case; None without such a header."""
        if header not in request.headers or not self._from_proxy(request):
            return None
        first, *_ = request.headers.getall(header)
        return first.partition(",")[0].strip().lower()

    def _from_proxy(self, request: web.Request) -> bool:
        trusted = self._is_trusted(_address(request.remote or ""))
        if not trusted and any(header in request.headers for header in _FORWARDED):
            self._warn(request.remote or "")
        return trusted

    def _warn(self, address: str) -> None:
        if address not in self._warned and len(self._warned) < MAX_WARNINGS:
            self._warned.add(address)
            hint = "its X-Forwarded-* headers are ignored; if it is your proxy, add it to TrustedProxies"
            log.warning("proxy not trusted", extra={"address": address, "hint": hint})

    def _is_trusted(self, address: Address | None) -> bool:
        return address is not None and any(address in network for network in self._trusted)


def _whole(request: web.Request, header: str) -> str:
    """The value of a header. Several lines are one list."""
    return ", ".join(request.headers.getall(header, ()))


def _address(text: str) -> Address | None:
    """The address in a text; None if there is none. An IPv4 address in IPv6 is an IPv4 address."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address


def _hops(lines: Sequence[str]) -> Iterator[str]:
    """The entries of X-Forwarded-For, the last one first. Several lines are one list."""
    last = ",".join(lines).rsplit(",", MAX_HOPS)[-MAX_HOPS:]
    return filter(None, map(str.strip, reversed(last)))


def _without_port(hop: str) -> str:
    """An address as some proxies write it: 192.0.2.1:1234, [2001:db8::1]:1234."""
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    return hop.partition(":")[0] if hop.count(":") == 1 else hop


def _cookies(request: web.Request) -> list[str]:
    """The values of the session cookies, the name that counts most first."""
    # HTTP/2 lets clients split cookies into several lines.
    cookies = "; ".join(request.headers.getall("Cookie", ()))[:MAX_COOKIES]
    found: dict[str, list[str]] = {name: [] for name in COOKIES}
    for name, value in _COOKIE.findall(cookies):
        if value := value.strip(' \t"'):
            found[name].append(value)
    return [value for values in found.values() for value in values]


def set_cookie(response: web.Response, token: str, lifetime: int, *, secure: bool) -> None:
    """Let the browser keep a token."""
    name = HOST_COOKIE if secure else COOKIE
    response.set_cookie(name, token, max_age=lifetime, httponly=True, samesite="Lax", secure=secure)


def delete_cookies(response: web.Response, *, secure: bool) -> None:
    """Let the browser forget every token."""
    for name in COOKIES:
        if secure or name != HOST_COOKIE:
            response.del_cookie(name, httponly=True, samesite="Lax", secure=secure)


async def body(request: web.Request, kind: type[Body], failed: Status, patience: float) -> Body:
    """The body as a record, from JSON or a form. Raises Refused: 400, 413 or 415.

    One that has not come after `patience` seconds is 400; aiohttp then ends the connection.
    """
    # Not request.content_type, which takes quadratic time.
    content_type = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if content_type not in ("application/json", "application/x-www-form-urlencoded"):
        why = "Content-Type is application/json or application/x-www-form-urlencoded"
        raise Refused(Status.BAD_REQUEST, Reason.BAD_CONTENT_TYPE, why)
    if _whole(request, "Content-Encoding").strip().lower() not in ("", "identity"):
        why = "Content-Encoding is not supported: send the body as it is"
        raise Refused(Status.BAD_REQUEST, Reason.BAD_CONTENT_TYPE, why)
    fields: Any
    try:
        async with asyncio.timeout(patience):
            data = await request.read()
        if content_type == "application/json":
            fields = msgspec.json.decode(data)
        else:
            pairs = parse_qsl(data.decode(), keep_blank_values=True, max_num_fields=32, errors="strict")
            fields = dict(pairs)
    except TimeoutError:
        why = f"the body did not come within {patience:g} s"
        raise Refused(Status.BAD_REQUEST, Reason.BAD_REQUEST, why) from None
    except (ValueError, RecursionError, web.RequestPayloadError):
        why = f"the body is no valid {content_type}"
        raise Refused(Status.BAD_REQUEST, Reason.BAD_JSON, why) from None
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        # "Object missing required field `password`", "Expected `str`, got `int` - at `$.password`"
        field = next(
            (field for field in kind.__struct_fields__ if f"`{field}`" in str(error) or f".{field}`" in str(error)),
            None,
        )
        raise Refused(failed, Reason.BAD_REQUEST, str(error), field=field) from None
