"""The envelope of every response, including errors (protocol section 1)."""

import gzip
import json
import sqlite3
import zlib
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest

from tests.e2e.http_helpers import (
    ENDPOINTS,
    check_refusal,
    check_success,
    envelope,
    post,
    send_bytes,
    send_request,
    sql,
    try_login,
    try_upgrade,
)
from tests.harness import PASSWORD, ServerHandle, serving, wait_until

WRONG: list[Any] = [None, 1, True, [], {}, ["1"]]
WRONG_USERS: list[Any] = [None, 1, True, {}, "1", [1], [None]]
JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


async def test_ping_answers_in_the_envelope(server: ServerHandle) -> None:
    response = await send_request(server, "GET", "/ping")
    assert response.json() == {"status": 200, "data": None, "msg": "ok", "error": ""}


async def test_msg_is_in_the_language_of_the_settings(tmp_path: Path) -> None:
    async with serving(tmp_path, Language="zh") as server:
        assert (await send_request(server, "GET", "/ping")).json()["msg"] == "成功"


async def test_health_reports_each_store_with_its_start_time(server: ServerHandle) -> None:
    data = check_success(await send_request(server, "GET", "/health"), 200)
    assert set(data) - {"cluster"} == {"users", "messages", "cache"}  # with several processes, a fourth part
    for store in data.values():
        assert set(store) == {"state", "since", "took_ms"}
        assert store["state"] == "up"
        assert 0 <= store["took_ms"] < 60_000  # a number of milliseconds, on a busy machine too
        assert store["since"] > 1_700_000_000_000


async def test_a_single_process_is_always_ready(server: ServerHandle) -> None:
    check_success(await send_request(server, "GET", "/ready"), 200)


async def test_head_answers_like_get_without_the_body(server: ServerHandle) -> None:
    for path in ("/ping", "/health", "/ready"):
        response = await send_request(server, "HEAD", path)
        assert (response.status_code, response.content) == (200, b"")
        assert response.headers["Content-Type"] == "application/json"


async def test_an_unknown_path_is_404(server: ServerHandle) -> None:
    for path in ("/nothing", "/user", "/user/login/", "/user/login/x", "/ping/", "/PING", "/%00", "/%ff"):
        for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
            check_refusal(await send_request(server, method, path), 404, 404, "not_found")
        response = await send_request(server, "HEAD", path)
        assert (response.status_code, response.content) == (404, b"")


async def test_a_wrong_method_is_405_with_allow(server: ServerHandle) -> None:
    reading, posting = {"GET", "HEAD"}, {"POST"}
    known = {
        "/": reading,
        "/ping": reading,
        "/health": reading,
        "/ready": reading,
        "/chat/test": {"GET"},
    } | dict.fromkeys(ENDPOINTS, posting)
    for path, right in known.items():
        for method in {"GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"} - right:
            response = await send_request(server, method, path)
            check_refusal(response, 405, 400, "method_not_allowed")
            assert set(response.headers["Allow"].replace(" ", "").split(",")) == right


async def test_a_too_large_body_is_413(server: ServerHandle) -> None:
    body = json.dumps({"user_name": "1", "password": "x" * 100_000})
    headers = JSON | {"Authorization": f"Bearer {server.tokens['1']}"}
    for path in ENDPOINTS:
        check_refusal(await send_request(server, "POST", path, content=body, headers=headers), 413, 400, "too_large")


async def test_a_too_large_chunked_body_is_413(server: ServerHandle) -> None:
    async def chunks() -> Any:
        for _ in range(100):
            yield b"x" * 1000

    response = await send_request(server, "POST", "/user/login", content=chunks(), headers=JSON)
    check_refusal(response, 413, 400, "too_large")


async def test_a_body_that_is_neither_json_nor_a_form_is_415(server: ServerHandle) -> None:
    for content_type in (None, "", "text/plain", "text/json", "multipart/form-data; boundary=x", "x"):
        headers = {} if content_type is None else {"Content-Type": content_type}
        body = b'{"user_name": "1", "password": "secret1"}'
        response = await send_request(server, "POST", "/user/login", content=body, headers=headers)
        check_refusal(response, 415, 400, "bad_content_type")


async def test_case_and_parameters_of_a_content_type_are_ignored(server: ServerHandle) -> None:
    body = b'{"user_name": "1", "password": "secret1"}'
    for content_type in ("Application/JSON", "application/json; charset=utf-8", "application/json ;x"):
        headers = {"Content-Type": content_type}
        check_success(await send_request(server, "POST", "/user/login", content=body, headers=headers), 41003)


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "deflate"])
async def test_a_compressed_body_is_415(server: ServerHandle, encoding: str) -> None:
    """The server does not decompress bodies, because no endpoint needs it."""
    body = json.dumps({"user_name": "1", "password": PASSWORD}).encode()
    packed = zlib.compress(body) if encoding == "deflate" else gzip.compress(body)
    headers = JSON | {"Content-Encoding": encoding}
    check_refusal(
        await send_request(server, "POST", "/user/login", content=packed, headers=headers), 415, 400, "bad_content_type"
    )
    headers = JSON | {"Content-Encoding": "identity"}
    check_success(await send_request(server, "POST", "/user/login", content=body, headers=headers), 41003)


async def test_the_path_of_the_socket_without_an_upgrade_is_426(server: ServerHandle) -> None:
    for accept in ("application/json", "*/*"):
        response = await send_request(server, "GET", "/chat/test?uid=1&to_uid=2", headers={"Accept": accept})
        check_refusal(response, 426, 40014, "no_upgrade")
        assert response.headers["Upgrade"] == "websocket"


# --- bodies


@pytest.mark.parametrize("form", [False, True], ids=["json", "form"])
async def test_every_endpoint_accepts_json_and_forms(server: ServerHandle, form: bool) -> None:
    async def send(path: str, token: str = "", **fields: str) -> httpx.Response:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        body: Any = {"data": fields} if form else {"json": fields}
        return await send_request(server, "POST", path, headers=headers, **body)

    name, password, changed = "Zoë@home", "pass & wörd=%+", "other+pass %41"
    check_success(await send("/user/register", user_name=name, password=password), 41001)
    login = check_success(await send("/user/login", user_name=name, password=password), 41003)
    assert login["user_name"] == name
    assert login["expires_in"] == 30 * 86400
    token = login["token"]
    change = await send("/user/set_password", token, user_name=name, old_password=password, new_password=changed)
    check_success(change, 41005)
    check_success(await send("/user/login", user_name=name, password=changed), 41003)
    check_success(await send("/user/logout", token, user_name=name), 41015)


async def test_a_content_type_may_have_a_charset(server: ServerHandle) -> None:
    fields = {"user_name": "1", "password": PASSWORD}
    for headers, body in ((JSON, json.dumps(fields)), (FORM, urlencode(fields))):
        content_type = {"Content-Type": f"{headers['Content-Type']}; charset=UTF-8"}
        check_success(await send_request(server, "POST", "/user/login", content=body, headers=content_type), 41003)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"user_name=1",
        b'{"user_name": "\xff"}',
        b'{"user_name": "\\ud800", "password": "secret1"}',
        b'{"user_name": "1"} {}',
        b"[" * 10_000,
    ],
    ids=["empty", "open", "form", "not utf-8", "surrogate", "two", "deep"],
)
async def test_invalid_json_is_400_with_status_400(server: ServerHandle, body: bytes) -> None:
    """The reason is `bad_json`, not `bad_request`, which means a missing key or a wrong type."""
    headers = JSON | {"Authorization": f"Bearer {server.tokens['1']}"}
    for path in ENDPOINTS:
        check_refusal(await send_request(server, "POST", path, content=body, headers=headers), 400, 400, "bad_json")


async def test_an_invalid_form_is_400_with_status_400(server: ServerHandle) -> None:
    for body in (b"user_name=%ff&password=secret1", b"user_name=\xff&password=secret1", b"a&" * 5000):
        response = await send_request(server, "POST", "/user/login", content=body, headers=FORM)
        assert (response.status_code, envelope(response)["status"]) == (400, 400)
        assert response.json()["data"]["reason"] in ("bad_json", "bad_request")


async def test_json_that_is_not_an_object_is_a_failure_of_the_endpoint(server: ServerHandle) -> None:
    """The answer is 400 with the failure code of the endpoint."""
    headers = JSON | {"Authorization": f"Bearer {server.tokens['1']}"}
    for path, (_, failed) in ENDPOINTS.items():
        for body in ("[]", '"user_name"', "1", "null", "true"):
            response = await send_request(server, "POST", path, content=body, headers=headers)
            check_refusal(response, 400, failed, "bad_request")


async def test_the_error_names_a_missing_or_wrong_field(server: ServerHandle) -> None:
    for path, (fields, failed) in ENDPOINTS.items():
        right: dict[str, Any] = {field: [PASSWORD] if field == "users" else PASSWORD for field in fields}
        for field in fields:
            bodies = [right | {field: wrong} for wrong in (WRONG_USERS if field == "users" else WRONG)]
            if field != "users":  # which may be missing
                bodies.append({other: right[other] for other in fields if other != field})
            for body in bodies:
                response = await post(server, path, server.tokens["1"], **body)
                check_refusal(response, 400, failed, "bad_request", field)
                assert field in response.json()["error"]


async def test_the_error_names_a_missing_field_of_a_form(server: ServerHandle) -> None:
    response = await send_request(server, "POST", "/user/login", data={"user_name": "1"})
    check_refusal(response, 400, 41002, "bad_request", "password")
    assert "password" in response.json()["error"]


# --- malformed HTTP

HOST = b"Host: chat.example\r\n"
LOGIN = b"POST /user/login HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n"


@pytest.mark.parametrize(
    "request_",
    [
        b"GARBAGE\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
        b"FETCH /ping HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /ping HTTP/9.9\r\n" + HOST + b"\r\n",
        b"GET /\xff HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /" + b"x" * 10_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /ping HTTP/1.1\r\n" + HOST + b"X-Long: " + b"x" * 10_000 + b"\r\n\r\n",
        b"GET /ping HTTP/1.1\r\n" + HOST + b"no header\r\n\r\n",
        LOGIN + b"Content-Length: many\r\n\r\n",
        LOGIN + b"Transfer-Encoding: chunked\r\n\r\nmany\r\n",
        LOGIN + b"Transfer-Encoding: gzip, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        LOGIN.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    ],
    ids=[
        "no request line",
        "TLS",
        "method",
        "version",
        "not ASCII",
        "long line",
        "long header",
        "header",
        "length",
        "chunk",
        "coding",
        "chunks in HTTP/1.0",
    ],
)
async def test_malformed_http_is_400_in_the_envelope(server: ServerHandle, request_: bytes) -> None:
    """Every response is a JSON object with the same four keys."""
    check_refusal(await send_bytes(server, request_), 400, 400, "bad_request")


async def test_an_unknown_expect_header_is_answered_in_the_envelope(server: ServerHandle) -> None:
    response = await send_bytes(server, LOGIN + b"Expect: miracles\r\nContent-Length: 2\r\n\r\n{}")
    check_refusal(response, response.status_code, 400, "bad_request")
    assert response.status_code in (400, 417)


async def test_a_connection_stays_usable_after_a_refusal(server: ServerHandle) -> None:
    async with server.client(verify=False) as client:
        for _ in range(2):
            check_refusal(
                await client.post("/user/login", content="{}", headers=JSON), 400, 41002, "bad_request", "user_name"
            )
            check_refusal(await client.get("/nothing"), 404, 404, "not_found")
            check_success(await client.get("/ping"), 200)


# --- server errors


async def test_an_error_in_the_server_is_500(server: ServerHandle, tmp_path: Path) -> None:
    sql(tmp_path, "UPDATE users SET password = 'no hash' WHERE name = '1'")
    check_refusal(await try_login(server, "1"), 500, 44444, "internal")
    check_success(await try_login(server, "2"), 41003)


async def test_an_unresponsive_database_is_503_until_it_recovers(tmp_path: Path) -> None:
    async with serving(tmp_path, users=("1",)) as server:
        tokens = server.tokens
    async with serving(tmp_path, StoreTimeout=0.2) as server:
        server.tokens.update(tokens)
        with closing(sqlite3.connect(tmp_path / "chat.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            for response in (
                await try_login(server, "1"),
                await post(server, "/user/register", user_name="2", password=PASSWORD),
                await post(server, "/user/logout", server.tokens["1"], user_name="1"),
            ):
                check_refusal(response, 503, 44444, "store_away")

        async def recovered() -> bool:
            return (await try_login(server, "1")).status_code == 200

        await wait_until(recovered)


async def test_health_reports_an_unresponsive_database(tmp_path: Path) -> None:
    """The answer lists each store as `up` or `away` with a start time, and is 503/44444 while one is `away`."""
    async with serving(tmp_path, StoreTimeout=0.2) as server:
        with closing(sqlite3.connect(tmp_path / "chat.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            check_refusal(
                await post(server, "/user/register", user_name="1", password=PASSWORD), 503, 44444, "store_away"
            )
            response = await send_request(server, "GET", "/health")
        assert (response.status_code, envelope(response)["status"]) == (503, 44444)

        async def up() -> bool:
            return (await send_request(server, "GET", "/health")).status_code == 200

        await wait_until(up)


def damage(folder: Path) -> None:
    """Make the database of a running server unreadable, and make the server read it again."""
    sql(folder, "CREATE TABLE something (new)")
    for path in (folder / "chat.db", folder / "chat.db-wal"):
        with path.open("r+b") as file:
            file.write(b"\xaa" * path.stat().st_size)


async def test_an_unreadable_database_is_unavailable(server: ServerHandle, tmp_path: Path) -> None:
    before = check_success(await send_request(server, "GET", "/health"), 200)
    damage(tmp_path)

    async def noticed() -> bool:
        return (await send_request(server, "GET", "/health")).status_code == 503

    await wait_until(noticed)
    response = await send_request(server, "GET", "/health")
    body = envelope(response)
    assert (response.status_code, body["status"], body["data"]["reason"]) == (503, 44444, "store_away")
    assert body["error"]
    for store in ("users", "messages"):
        assert body["data"][store]["state"] == "away"
        assert body["data"][store]["since"] >= before[store]["since"]
    token = {"Authorization": f"Bearer {server.tokens['1']}"}
    check_refusal(await try_upgrade(server, token, uid="1"), 503, 44444, "store_away")
    check_refusal(await post(server, "/user/register", user_name="3", password=PASSWORD), 503, 44444, "store_away")


async def test_a_database_too_damaged_to_write_is_unavailable(server: ServerHandle, tmp_path: Path) -> None:
    """500 and 503 have status 44444. An unavailable database is 503, and a retry makes sense."""
    damage(tmp_path)
    check_refusal(await try_login(server, "1"), 503, 44444, "store_away")
