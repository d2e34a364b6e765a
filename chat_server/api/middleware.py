"""The middlewares: one checks the origin of requests, one turns every exception into an answer."""

import logging
from collections.abc import Mapping

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from chat_server.api.envelope import Envelope
from chat_server.api.proxy_policy import ProxyPolicy
from chat_server.status import Reason, Refused, Status
from chat_server.utils.errors import StoreUnavailable

log = logging.getLogger(__name__)

_REFUSALS = {
    404: (Status.NOT_FOUND, Reason.NOT_FOUND, "this path does not exist"),
    405: (
        Status.BAD_REQUEST,
        Reason.METHOD_NOT_ALLOWED,
        "this path does not support this method; see the Allow header",
    ),
    413: (Status.BAD_REQUEST, Reason.TOO_LARGE, "the body is too large"),
}


def error_middleware(envelope: Envelope) -> Middleware:
    """The middleware that turns exceptions into answers."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except Refused as refused:
            return envelope.refusal(refused)
        except StoreUnavailable as error:
            log.warning("store unavailable", extra={"path": request.path, "error": str(error)})
            why = "a store is unavailable; try again"
            return envelope.refusal(Refused(Status.UNKNOWN, Reason.STORE_AWAY, why, retry_after=1))
        except web.HTTPException as error:
            return http_error_response(error, envelope)
        except ConnectionError:
            raise  # the client has disconnected; aiohttp handles it
        except Exception:
            log.exception("request failed", extra={"path": request.path})
            why = "an error in the server; its log has the details"
            return envelope.refusal(Refused(Status.UNKNOWN, Reason.INTERNAL, why))

    return middleware


def origin_middleware(proxy_policy: ProxyPolicy, envelope: Envelope, failures: Mapping[str, Status]) -> Middleware:
    """The middleware that refuses POST requests from pages of other sites, and adds CORS headers for AllowedOrigins.

    `failures` has the failure status of each endpoint; another path gets BAD_REQUEST. WebSocket upgrades check the
    origin themselves, in the order of docs/protocol.md section 2.
    """

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        origin = proxy_policy.foreign_origin(request)
        if origin is None:
            return await handler(request)
        if not proxy_policy.is_allowed(origin):
            if request.method in ("GET", "HEAD"):
                return await handler(request)
            return envelope.refusal(foreign_origin_refusal(failures.get(request.path, Status.BAD_REQUEST)))
        preflight = request.method == "OPTIONS"
        response = envelope.success(Status.OK) if preflight else await handler(request)
        if not response.prepared:  # the answer to an upgrade is already sent
            response.headers.update(
                {
                    "Access-Control-Allow-Origin": origin,
                    "Access-Control-Allow-Methods": "GET, POST",
                    "Access-Control-Allow-Headers": "Authorization, Content-Type",
                    "Access-Control-Expose-Headers": "Retry-After",
                    "Access-Control-Max-Age": "600",
                    "Vary": "Origin",
                }
            )
        return response

    return middleware


def http_error_response(error: web.HTTPException, envelope: Envelope) -> web.Response:
    """The answer, in the common shape, to an error that aiohttp raised."""
    error.__traceback__ = None  # it keeps the request and its body alive in a reference cycle
    default = (Status.BAD_REQUEST, Reason.BAD_REQUEST, error.reason)
    response = envelope.refusal(Refused(*_REFUSALS.get(error.status, default)))
    if "Allow" in error.headers:
        response.headers["Allow"] = error.headers["Allow"]
    return response


def foreign_origin_refusal(failed: Status) -> Refused:
    """The refusal of a request from a page of another site. `failed` is the failure status of the endpoint."""
    return Refused(failed, Reason.FOREIGN_ORIGIN, "the origin of this page is not allowed; add it to AllowedOrigins")
