"""The bodies of HTTP requests, as typed records. A body is hostile input."""

import asyncio
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import msgspec
from aiohttp import web

from chat_server.status import Reason, Refused, Status

Body = TypeVar("Body", bound=msgspec.Struct)


async def read_body(request: web.Request, kind: type[Body], failed: Status, timeout: float) -> Body:
    """Read a JSON or form body into a record of type `kind`.

    Raises Refused (400, 413 or 415); missing or wrong fields have the status `failed`. A body that takes longer than
    `timeout` seconds gets 400, and aiohttp closes the connection.
    """
    # Not request.content_type, which takes quadratic time.
    content_type = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if content_type not in ("application/json", "application/x-www-form-urlencoded"):
        why = "Content-Type must be application/json or application/x-www-form-urlencoded"
        raise Refused(Status.BAD_REQUEST, Reason.BAD_CONTENT_TYPE, why)
    encoding = ", ".join(request.headers.getall("Content-Encoding", ()))
    if encoding.strip().lower() not in ("", "identity"):
        why = "Content-Encoding is not supported; send the body uncompressed"
        raise Refused(Status.BAD_REQUEST, Reason.BAD_CONTENT_TYPE, why)
    fields: Any
    try:
        async with asyncio.timeout(timeout):
            data = await request.read()
        if content_type == "application/json":
            fields = msgspec.json.decode(data)
        else:
            pairs = parse_qsl(data.decode(), keep_blank_values=True, max_num_fields=32, errors="strict")
            fields = dict(pairs)
    except TimeoutError:
        why = f"the body did not arrive within {timeout:g} s"
        raise Refused(Status.BAD_REQUEST, Reason.BAD_REQUEST, why) from None
    except (ValueError, RecursionError, web.RequestPayloadError):
        why = f"the body is not valid {content_type}"
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
