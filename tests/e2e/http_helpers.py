"""Helpers for the HTTP tests: checks of responses, and requests that ordinary clients do not send."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any

import httpx
import websockets

from tests.harness import PASSWORD, TIMEOUT, ChatClient, ServerHandle

# The closed list of reasons in section 4 of the protocol.
REASONS = {
    "bad_json",
    "bad_frame",
    "bad_request",
    "unknown_op",
    "wrong_from",
    "no_such_user",
    "to_yourself",
    "bad_id",
    "id_used",
    "no_such_message",
    "empty",
    "too_long",
    "bad_page",
    "refused_by_limit",
    "you_blocked",
    "too_many",
    "store_away",
    "bad_name",
    "bad_password",
    "user_exists",
    "group_exists",
    "no_such_group",
    "group_full",
    "wrong_password",
    "not_logged_in",
    "not_yours",
    "foreign_origin",
    "registration_closed",
    "no_upgrade",
    "not_found",
    "method_not_allowed",
    "too_large",
    "bad_content_type",
    "internal",
}
# The POST endpoints: their fields, and the status of a failure.
ENDPOINTS = {
    "/user/register": (("user_name", "password"), 41000),
    "/user/login": (("user_name", "password"), 41002),
    "/user/set_password": (("user_name", "old_password", "new_password"), 41004),
    "/user/logout": (("user_name",), 41014),
    "/user/block": (("user_name",), 43000),
    "/user/unblock": (("user_name",), 43002),
    "/group/create": (("group", "users"), 42000),
    "/group/add": (("group", "users"), 42002),
    "/group/remove": (("group", "user_name"), 42004),
    "/group/delete": (("group",), 42006),
}
UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
}


def envelope(response: httpx.Response) -> dict[str, Any]:
    """Return the body, which must be the envelope: a JSON object with four keys."""
    assert response.headers.get("Content-Type") == "application/json", response.text
    body: dict[str, Any] = response.json()
    assert {key: type(body[key]) for key in body if key != "data"} == {"status": int, "msg": str, "error": str}, body
    assert "data" in body
    assert body["msg"]
    return body


def check_success(response: httpx.Response, status: int) -> Any:
    """Fail unless the response is a success with this status; return its `data`."""
    body = envelope(response)
    assert (response.status_code, body["status"], body["error"]) == (200, status, ""), response.text
    return body["data"]


def check_refusal(response: httpx.Response, code: int, status: int, reason: str, field: str | None = None) -> None:
    """Fail unless the response is a refusal with these codes and with a text for people."""
    body = envelope(response)
    assert (response.status_code, body["status"]) == (code, status), response.text
    assert body["error"]
    assert body["data"] == {"reason": reason, "field": field}
    assert reason in REASONS
    if code == 429:
        assert int(response.headers["Retry-After"]) >= 1


async def send_request(server: ServerHandle, method: str, path: str, **options: Any) -> httpx.Response:
    """Send one request without cookies."""
    async with server.client(verify=False) as client:
        return await client.request(method, path, **options)


async def post(server: ServerHandle, path: str, token: str | None = None, /, **body: Any) -> httpx.Response:
    """POST JSON, with the session `token` if given."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return await send_request(server, "POST", path, json=body, headers=headers)


async def try_login(server: ServerHandle, name: str, password: str = PASSWORD, address: str = "") -> httpx.Response:
    """Log in. If `address` is given, a proxy header names it as the client's address."""
    headers = {"X-Forwarded-For": address} if address else {}
    return await send_request(
        server, "POST", "/user/login", json={"user_name": name, "password": password}, headers=headers
    )


async def try_upgrade(server: ServerHandle, headers: Mapping[str, str] | None = None, **query: str) -> httpx.Response:
    """Send an upgrade request that the server refuses; return the response."""
    return await send_request(server, "GET", "/chat/test", params=query, headers={**UPGRADE, **(headers or {})})


@asynccontextmanager
async def open_socket(
    server: ServerHandle, user: str, token: str | None = None, **headers: str
) -> AsyncIterator[ChatClient]:
    """Open a socket with the token in the URL, as browsers do. In the names of `headers`, `_` means `-`."""
    url = f"{server.socket_url(user)}&token={token or server.tokens[user]}"
    more = {name.replace("_", "-"): value for name, value in headers.items()}
    async with websockets.connect(url, additional_headers=more, proxy=None) as connection:
        chat = ChatClient(connection, user, "")
        assert (await chat.receive())["op_type"] == 40003
        yield chat


async def is_valid_session(server: ServerHandle, token: str) -> bool:
    """Return whether the token has a session, without ending it: a logout of another user is 403, not 401.

    The request renews the session.
    """
    response = await post(server, "/user/logout", token, user_name="another user")
    assert response.status_code in (401, 403), response.text
    return response.status_code == 403


async def send_bytes(server: ServerHandle, request: bytes) -> httpx.Response:
    """Send these bytes on a new connection; return the response."""
    reader, writer = await asyncio.open_connection(server.host, server.port)
    try:
        async with asyncio.timeout(TIMEOUT):
            writer.write(request)
            first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").strip().split("\r\n")
            headers = httpx.Headers([(name, value) for name, _, value in (line.partition(": ") for line in lines)])
            content = await reader.readexactly(int(headers["Content-Length"]))
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
    return httpx.Response(int(first.split()[1]), headers=headers, content=content)


def sql(folder: Path, statement: str, *values: Any) -> list[tuple[Any, ...]]:
    """Run a statement directly on the database of a running server."""
    with closing(sqlite3.connect(folder / "chat.db", isolation_level=None)) as database:
        return database.execute(statement, values).fetchall()
