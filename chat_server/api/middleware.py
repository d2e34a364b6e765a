"""Around every handler: other origins, and one place where whatever goes wrong becomes an answer."""

import logging
from collections.abc import Mapping

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from chat_server.api.envelope import Envelope
from chat_server.api.proxy_policy import ProxyPolicy
from chat_server.status import Reason, Refused, Status
from chat_server.utils.errors import StoreUnavailable

log = logging.getLogger(__name__)

_OF_HTTP_CODE = {
    404: (Status.NOT_FOUND, Reason.NOT_FOUND, "there is nothing at this address"),
    405: (Status.BAD_REQUEST, Reason.METHOD_NOT_ALLOWED, "this address does not know this method"),
    413: (Status.BAD_REQUEST, Reason.TOO_LARGE, "the body is too large"),
}


def error_middleware(
    envelope: Envelope,
) -> Middleware:
    """The middleware that turns exceptions into the envelope."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except Refused as refused:
            return envelope.refusal(refused)
        except StoreUnavailable as error:
            log.warning("store unavailable", extra={"path": request.path, "error": str(error)})
            why = "a store is away, try again"
            return envelope.refusal(Refused(Status.UNKNOWN, Reason.STORE_AWAY, why, retry_after=1))
        except web.HTTPException as error:
            return answer_to(error, envelope)
        except ConnectionError:
            raise  # the client is gone, and aiohttp knows
        except Exception:
            log.exception("request failed", extra={"path": request.path})
            why = "something went wrong here, it is in the server's log"
            return envelope.refusal(Refused(Status.UNKNOWN, Reason.INTERNAL, why))

    return middleware


def origin_middleware(proxy_policy: ProxyPolicy, envelope: Envelope, failures: Mapping[str, Status]) -> Middleware:
    """The middleware that refuses POSTs from other sites' pages, and answers CORS for those allowed.

    `failures`: path -> the failure code of its endpoint. Upgrades are checked where they are made, in their order.
    """

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        origin = proxy_policy.foreign(request)
        if origin is None:
            return await handler(request)
        if not proxy_policy.allowed(origin):
            failed = failures.get(request.path)
            return envelope.refusal(foreign(failed)) if failed and request.method != "GET" else await handler(request)
        preflight = request.method == "OPTIONS"
        response = envelope.success(Status.OK) if preflight else await handler(request)
        if not response.prepared:  # that of a socket is out by now
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


def answer_to(error: web.HTTPException, envelope: Envelope) -> web.Response:
    """Our answer where aiohttp has one of its own."""
    error.__traceback__ = None  # it holds the request and what came of its body, in a cycle
    known = (Status.BAD_REQUEST, Reason.BAD_REQUEST, error.reason)
    response = envelope.refusal(Refused(*_OF_HTTP_CODE.get(error.status, known)))
    if "Allow" in error.headers:
        response.headers["Allow"] = error.headers["Allow"]
    return response


def foreign(failed: Status) -> Refused:
    """The refusal of a request from another site's page."""
    return Refused(failed, Reason.FOREIGN_ORIGIN, "this page's origin may not use this server: see AllowedOrigins")
