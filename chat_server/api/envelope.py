"""The common shape of all JSON answers over HTTP (docs/protocol.md section 1)."""

from collections.abc import Mapping
from math import ceil
from typing import Any

import msgspec
from aiohttp import web

from chat_server.status import Reason, Refused, Status, text

# The HTTP status code of each reason; any other reason is 400.
HTTP_CODES = {
    Reason.WRONG_PASSWORD: 401,
    Reason.NOT_LOGGED_IN: 401,
    Reason.NOT_YOURS: 403,
    Reason.REFUSED_BY_LIMIT: 403,
    Reason.FOREIGN_ORIGIN: 403,
    Reason.REGISTRATION_CLOSED: 403,
    Reason.NOT_FOUND: 404,
    Reason.NO_SUCH_USER: 404,
    Reason.NO_SUCH_GROUP: 404,
    Reason.METHOD_NOT_ALLOWED: 405,
    Reason.USER_EXISTS: 409,
    Reason.GROUP_EXISTS: 409,
    Reason.GROUP_FULL: 409,
    Reason.TOO_LARGE: 413,
    Reason.BAD_CONTENT_TYPE: 415,
    Reason.NO_UPGRADE: 426,
    Reason.TOO_MANY: 429,
    Reason.INTERNAL: 500,
    Reason.STORE_AWAY: 503,
}


class Envelope:
    """Creates the answers, with `msg` texts in `language`."""

    def __init__(self, language: str) -> None:
        self._language = language

    def success(self, status: Status, data: Any = None) -> web.Response:
        """The answer to a request that succeeded: HTTP 200."""
        return self._response(200, status, data, "", {})

    def refusal(self, refused: Refused, *, close: bool = False) -> web.Response:
        """The answer to a refused request. With `close`, the connection closes after it."""
        headers = {}
        if refused.retry_after is not None:
            headers["Retry-After"] = str(max(1, ceil(refused.retry_after)))
        if refused.reason is Reason.NO_UPGRADE:
            headers |= {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
        code = HTTP_CODES.get(refused.reason, 400)
        data = {"reason": refused.reason, "field": refused.field}
        response = self._response(code, refused.status, data, refused.why, headers)
        if close:
            response.force_close()
        return response

    def unhealthy(self, data: Mapping[str, Any]) -> web.Response:
        """The answer of GET /health while a store is unavailable: HTTP 503. `data` has the state of each store."""
        data = {**data, "reason": Reason.STORE_AWAY, "field": None}
        return self._response(503, Status.UNKNOWN, data, "a store is unavailable; try again later", {})

    def _response(self, code: int, status: Status, data: Any, error: str, headers: Mapping[str, str]) -> web.Response:
        body = {"status": status, "data": data, "msg": text(status, self._language), "error": error}
        return web.Response(
            status=code, body=msgspec.json.encode(body), content_type="application/json", headers=headers
        )
