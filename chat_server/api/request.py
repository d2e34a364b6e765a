"""What a request says of itself: whence it comes, who is asking, what is in its body."""

import asyncio
from collections.abc import Sequence
from ipaddress import ip_address, ip_network
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

import msgspec
from aiohttp import web

from chat_server.status import Reason, Refused, Status

COOKIE = "session"
Body = TypeVar("Body", bound=msgspec.Struct)


class Edge:
    """Where requests come from: proxies are believed only if they are among `trusted`."""

    def __init__(self, trusted_proxies: Sequence[str], allowed_origins: Sequence[str]) -> None:
        self._trusted = [ip_network(network) for network in trusted_proxies]
        self._allowed = frozenset(allowed_origins)

    def address(self, request: web.Request) -> str:
        """The client's address, for counting: of IPv6 its /64, since a client has that many for itself."""
        address = request.remote or ""
        if self._from_proxy(request):
            # A proxy may add a line of its own after the client's: all of them count, the last says most.
            hops = ",".join(request.headers.getall("X-Forwarded-For", ())).replace(" ", "").split(",")
            for hop in reversed([hop for hop in hops if hop]):
                address = _without_port(hop)
                if not self._is_trusted(address):
                    break
        try:
            parsed = ip_address(address)
        except ValueError:
            return address[:64]
        if parsed.version == 4:
            return str(parsed)
        return str(parsed.ipv4_mapped or ip_network((int(parsed) >> 64 << 64, 64)))

    def secure(self, request: web.Request) -> bool:
        """Whether the client speaks TLS, with a proxy in front if not with us."""
        proto = request.headers.getall("X-Forwarded-Proto", ("",))[-1]
        return request.secure or (self._from_proxy(request) and proto == "https")

    def foreign(self, request: web.Request) -> str | None:
        """The Origin of a request from another site's page, None if there is none."""
        origin = ", ".join(request.headers.getall("Origin", ()))  # two are none that anybody knows
        if not origin and "Origin" not in request.headers:
            return None
        host = request.headers.get("Host", "")
        if self._from_proxy(request):
            host = request.headers.getall("X-Forwarded-Host", (host,))[-1]
        # Behind a proxy that speaks TLS we may not know of it: then either scheme is the own one.
        unsafe = self.secure(request) and not origin.lower().startswith("https:")
        return None if _netloc(origin) == host.lower() != "" and not unsafe else origin

    def allowed(self, origin: str) -> bool:
        """Whether pages of that origin may use this server."""
        return origin.lower() in self._allowed

    def token(self, request: web.Request, *, socket: bool = False) -> str | None:
        """The token presented: Bearer, else `token` (sockets only), else the cookie (our own pages only)."""
        scheme, _, credentials = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return credentials.strip()
        if socket and (token := request.query.get("token")):
            return token
        return request.cookies.get(COOKIE) if self.foreign(request) is None else None

    def _from_proxy(self, request: web.Request) -> bool:
        return self._is_trusted(request.remote or "")

    def _is_trusted(self, address: str) -> bool:
        if not self._trusted:
            return False
        try:
            parsed = ip_address(address)
        except ValueError:
            return False
        return any(parsed in network for network in self._trusted)


def _without_port(hop: str) -> str:
    """An address as some proxies write it: 192.0.2.1:1234, [2001:db8::1]:1234."""
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    return hop.partition(":")[0] if hop.count(":") == 1 else hop


def _netloc(origin: str) -> str:
    """Host and port of an origin, in lower case; empty for `null` and for what is no origin."""
    try:
        return urlsplit(origin.lower()).netloc
    except ValueError:
        return ""


async def body(request: web.Request, kind: type[Body], failed: Status, patience: float) -> Body:
    """The body as a record, from JSON or a form. Raises Refused: 400, 413 or 415.

    One that has not come after `patience` seconds is 400; aiohttp then ends the connection.
    """
    content_type = request.content_type if "Content-Type" in request.headers else ""
    fields: Any
    try:
        async with asyncio.timeout(patience):
            data = await request.read()
        if content_type == "application/json":
            fields = msgspec.json.decode(data)
        elif content_type == "application/x-www-form-urlencoded":
            pairs = parse_qsl(data.decode(), keep_blank_values=True, max_num_fields=32, errors="strict")
            fields = dict(pairs)
        else:
            why = "Content-Type is application/json or application/x-www-form-urlencoded"
            raise Refused(Status.BAD_REQUEST, Reason.BAD_CONTENT_TYPE, why)
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
