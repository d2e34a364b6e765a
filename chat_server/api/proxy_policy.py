"""The client's address, origin, scheme and session tokens, as a request states them and as far as proxies are trusted.

All headers are hostile input. No function here takes more than linear time.
"""

import logging
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from aiohttp import web

from chat_server.api.session_cookies import session_cookies
from chat_server.conf.origins import canonical, without_default_port

log = logging.getLogger(__name__)

# Tokens of one request that are looked up.
MAX_TOKENS = 4
# Entries of X-Forwarded-For that are followed.
MAX_HOPS = 16
# Untrusted senders of X-Forwarded-* headers that are logged, until the next start.
MAX_WARNINGS = 8
_FORWARDED = ("X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host")
_WITHOUT_TLS = ("http", "ws")

Address = IPv4Address | IPv6Address


class ProxyPolicy:
    """Determines where requests come from. X-Forwarded-* headers count only if their sender is in `trusted_proxies`."""

    def __init__(self, trusted_proxies: Sequence[str], allowed_origins: Sequence[str]) -> None:
        self._trusted = [ip_network(network) for network in trusted_proxies]
        self._allowed = frozenset(allowed_origins)
        self._warned: set[str] = set()

    def client_address(self, request: web.Request) -> str:
        """The client's address, for limits; for IPv6 its /64 network, because one client usually has a whole /64."""
        address = _address(request.remote or "")
        if self._from_proxy(request):
            # The last untrusted address is the client; the client may have forged the entries before it.
            for hop in _hops(request.headers.getall("X-Forwarded-For", ())):
                parsed = _address(_without_port(hop))
                if parsed is None:
                    break  # not an address: the proxy that sent it counts as the client
                address = parsed
                if not self._is_trusted(address):
                    break
        if address is None or address.version == 4:
            return str(address or "")
        return str(ip_network((int(address) >> 64 << 64, 64)))

    def uses_tls(self, request: web.Request) -> bool:
        """Whether the client uses TLS, as far as is known. An X-Forwarded-Proto other than http or ws means TLS."""
        proto = self._forwarded(request, "X-Forwarded-Proto")
        return request.secure or (proto is not None and proto not in _WITHOUT_TLS)

    def foreign_origin(self, request: web.Request) -> str | None:
        """The Origin of a request from a page of another site; None for all other requests."""
        if "Origin" not in request.headers:
            return None
        origin = ", ".join(request.headers.getall("Origin", ()))  # two headers never match the server's own origin
        scheme, _, netloc = origin.partition("://")
        host = self._forwarded(request, "X-Forwarded-Host")
        if host is None:
            host = request.headers.get("Host", "")
        # Without X-Forwarded-Proto, a proxy may or may not use TLS: accept both schemes as the server's own.
        schemes = ("https",) if self.uses_tls(request) else ("http", "https")
        own = scheme.lower() in schemes and without_default_port(netloc) == without_default_port(host) != ""
        return None if own else origin

    def is_allowed(self, origin: str) -> bool:
        """Whether `origin` is in AllowedOrigins."""
        return canonical(origin) in self._allowed

    def session_tokens(self, request: web.Request, *, socket: bool = False) -> list[str]:
        """The tokens to try: Bearer, else `token` in the query (sockets only), else cookies (own pages only)."""
        scheme, _, credentials = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return [credentials.strip()]
        if socket and (token := request.query.get("token")):
            return [token]
        return session_cookies(request)[:MAX_TOKENS] if self.foreign_origin(request) is None else []

    def _forwarded(self, request: web.Request, header: str) -> str | None:
        """The first entry of a header sent by a trusted proxy, in lower case; None if there is none."""
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


def _address(text: str) -> Address | None:
    """Parse an address; None if `text` is not one. An IPv4-mapped IPv6 address becomes an IPv4 address."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address


def _hops(lines: Sequence[str]) -> Iterator[str]:
    """The entries of X-Forwarded-For, the last one first. Several headers form one list."""
    last = ",".join(lines).rsplit(",", MAX_HOPS)[-MAX_HOPS:]
    return filter(None, map(str.strip, reversed(last)))


def _without_port(hop: str) -> str:
    """Remove the port that some proxies add: 192.0.2.1:1234, [2001:db8::1]:1234."""
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    return hop.partition(":")[0] if hop.count(":") == 1 else hop
