"""The bodies of HTTP requests, as typed records. A body is hostile input."""

import asyncio
import re
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import msgspec
from aiohttp import web

from chat_server.status import Reason, Refused, Status

Body = TypeVar("Body", bound=msgspec.Struct)

# Fields of a form. A form repeats the key of a list.
MAX_FIELDS = 1024


async def read_body(request: web.Request, kind: type[Body], failed: Status, timeout: float) -> Body:
    """Read a JSON or form body into a record of type `kind`, whose fields are strings and lists of strings.

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
            pairs = parse_qsl(data.decode(), keep_blank_values=True, max_num_fields=MAX_FIELDS, errors="strict")
            lists = {field.name for field in msgspec.structs.fields(kind) if field.type == list[str]}
            fields = {name: [value for key, value in pairs if key == name] for name in lists}
            fields |= {name: value for name, value in pairs if name not in lists}
    except TimeoutError:
        why = f"the body did not arrive within {timeout:g} s"
        raise Refused(Status.BAD_REQUEST, Reason.BAD_REQUEST, why) from None
    except (ValueError, RecursionError, web.RequestPayloadError):
        why = f"the body is not valid {content_type}"
        raise Refused(Status.BAD_REQUEST, Reason.BAD_JSON, why) from None
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        # "Object missing required field `password`", "Expected `str`, got `int` - at `$.password`" or `$.users[...]`
        why = str(error)
        field = next((name for name in kind.__struct_fields__ if re.search(rf"(`|\$\.){name}[`\[]", why)), None)
        raise Refused(failed, Reason.BAD_REQUEST, why, field=field) from None
