"""The HTTP edge: response headers, slow clients, request smuggling, and attacks from other origins."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import bcrypt
import httpx
import pytest
from aiohttp import web

from chat_server.api.headers import add_security_headers
from tests import raw
from tests.e2e.http_helpers import (
    ENDPOINTS,
    UPGRADE,
    check_refusal,
    check_success,
    is_valid_session,
    open_socket,
    post,
    send_bytes,
    send_request,
    try_login,
    try_upgrade,
)
from tests.harness import PASSWORD, TIMEOUT, ServerHandle, serving, wait_until
from tests.servers import free_port

HOST = b"Host: chat.example\r\n"
OTHER = {"Origin": "https://other.example"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


def check_security_headers(response: httpx.Response) -> None:
    """Fail unless the response has the security headers and does not name the server software."""
    headers = response.headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cache-Control"] == "no-store"
    assert headers.get_list("Server") == ["chat_server"]
    assert not any("python" in value.lower() or "aiohttp" in value.lower() for value in headers.values())


# --- headers


async def test_every_answer_has_the_security_headers(tmp_path: Path) -> None:
    async with serving(tmp_path, users=("1",), LoginFailures=1, AllowedOrigins="https://friend.example") as server:
        login = {"user_name": "1", "password": PASSWORD}
        friend = {"Origin": "https://friend.example"}
        answers = [
            await send_request(server, "GET", "/ping"),
            await send_request(server, "HEAD", "/ping"),
            await send_request(server, "GET", "/health"),
            await send_request(server, "GET", "/nothing"),
            await send_request(server, "DELETE", "/ping"),
            await send_request(server, "OPTIONS", "/user/login", headers=friend),
            await try_login(server, "1"),
            await post(server, "/user/login", user_name="1"),
            await send_request(server, "POST", "/user/login", content="x"),
            await send_request(server, "POST", "/user/login", json={"user_name": "x" * 100_000}),
            await send_request(server, "POST", "/user/login", json=login, headers=OTHER),
            await send_request(server, "POST", "/user/login", json=login, headers=friend),
            await post(server, "/user/logout", user_name="1"),
            await send_request(server, "GET", "/chat/test"),
            await try_upgrade(server, uid="1", token=server.tokens["1"], to_uid="unknown"),
            await try_upgrade(server, OTHER, uid="1", token=server.tokens["1"]),
            await post(server, "/user/register", **login),
            *[await try_login(server, "unknown") for _ in range(2)],
            await send_bytes(server, b"GARBAGE\r\n\r\n"),
            await send_bytes(server, b"POST /ping HTTP/1.1\r\n" + HOST + b"Expect: miracles\r\n\r\n"),
        ]
        async with open_socket(server, "1") as chat:
            assert chat.connection.response
            answers.append(httpx.Response(101, headers=list(chat.connection.response.headers.raw_items())))
    for answer in answers:
        check_security_headers(answer)
    codes = {answer.status_code for answer in answers}
    assert codes == {101, 200, 400, 401, 403, 404, 405, 409, 413, 415, 426, 429} | ({417} & codes)


async def test_every_metrics_answer_has_the_security_headers(tmp_path: Path) -> None:
    port = free_port()
    async with serving(tmp_path, MetricsPort=port), httpx.AsyncClient(trust_env=False, verify=False) as client:
        for path in ("metrics", "nothing"):
            check_security_headers(await client.get(f"http://127.0.0.1:{port}/{path}"))


def test_a_page_keeps_its_own_headers() -> None:
    own = {"Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'", "Cache-Control": "max-age=60"}
    response = web.Response(headers=own)
    add_security_headers(response)
    assert {name: response.headers[name] for name in own} == own
    assert response.headers["X-Content-Type-Options"] == "nosniff"


# --- slow clients


@pytest.fixture
async def impatient_server(tmp_path: Path) -> AsyncIterator[ServerHandle]:
    """A server with a RequestTimeout of half a second and a registered user."""
    async with serving(tmp_path, users=("1",)) as server:
        tokens = server.tokens
    async with serving(tmp_path, RequestTimeout=0.5) as server:
        server.tokens.update(tokens)
        yield server


async def send_slowly(server: ServerHandle, start: bytes, more: bytes) -> bytes:
    """Send `start`, then `more` repeatedly until the server ends the connection; return the received bytes."""
    reader, writer = await asyncio.open_connection(server.host, server.port)
    received = bytearray()

    async def read_all() -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                received.extend(data)

    reading = asyncio.create_task(read_all())
    try:
        async with asyncio.timeout(TIMEOUT):
            writer.write(start)
            while not reading.done():
                if more:
                    writer.write(more)
                await asyncio.wait([reading], timeout=0.05)
    finally:
        reading.cancel()
        writer.close()
    return bytes(received)


@pytest.mark.parametrize(
    ("start", "more"),
    [
        (b"", b""),
        (b"GET", b""),
        (b"GET /ping HTTP/1.1\r\n", b"X-Header: x\r\n"),
        (b"GET /ping HTTP/1.1\r\n" + HOST + b"X-Header: ", b"x"),
        (b"\r\n", b"\r\n"),
    ],
    ids=["nothing", "a word", "headers", "a header", "empty lines"],
)
async def test_a_connection_with_an_endless_head_is_closed(
    impatient_server: ServerHandle, start: bytes, more: bytes
) -> None:
    assert await send_slowly(impatient_server, start, more) == b""
    check_success(await send_request(impatient_server, "GET", "/ping"), 200)


async def test_a_connection_with_an_endless_second_head_is_closed(impatient_server: ServerHandle) -> None:
    answer = await send_slowly(
        impatient_server, b"GET /ping HTTP/1.1\r\n" + HOST + b"\r\nGET /ping HTTP/1.1\r\n", b"X-Header: x\r\n"
    )
    assert answer.count(b"HTTP/1.") == answer.count(b" 200 OK") == 1


@pytest.mark.parametrize("length", [b"Content-Length: 10000", b"Transfer-Encoding: chunked"])
async def test_a_connection_with_an_endless_body_is_closed(impatient_server: ServerHandle, length: bytes) -> None:
    start = b"POST /user/login HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n" + length + b"\r\n\r\n"
    answer = await send_slowly(impatient_server, start, b"1\r\n \r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["data"]["reason"] == "bad_request"


async def wait_disconnected(client: raw.RawSocket, data: bytes, max_bytes: int) -> None:
    """Send `data`, up to `max_bytes` at a time, until the server has disconnected the client, which reads nothing."""

    async def disconnected() -> bool:
        try:
            await client.flood(data, max_bytes)
        except ConnectionError:
            return True
        return False

    await wait_until(disconnected)


async def test_a_connection_with_unread_answers_is_closed(impatient_server: ServerHandle) -> None:
    sock = await raw.connect(impatient_server, buffer=4096)
    try:
        await wait_disconnected(raw.RawSocket(sock, ""), b"GET /ping HTTP/1.1\r\n" + HOST + b"\r\n", 1 << 24)
    finally:
        sock.close()


@pytest.mark.parametrize("last_head", [b"Connection: close\r\n", b""], ids=["close", "keep-alive"])
async def test_a_closed_connection_does_not_wait_for_its_reader(
    impatient_server: ServerHandle, last_head: bytes
) -> None:
    """Whether the answers that are left fill the kernel's buffers by much or by little."""
    request = b"GET /openapi.json HTTP/1.1\r\n" + HOST
    for answers in range(1, 8):
        sock = await raw.connect(impatient_server, buffer=4096)
        client = raw.RawSocket(sock, "")
        try:
            await client.write((request + b"\r\n") * (answers - 1) + request + last_head + b"\r\n")
            await wait_disconnected(client, b"GET", 1)
        finally:
            sock.close()


async def test_a_silent_socket_stays_open_after_request_timeout(impatient_server: ServerHandle) -> None:
    async with raw.chat(impatient_server, "1") as one:
        await asyncio.sleep(1.2)  # more than twice RequestTimeout
        assert (await one.ask(7, "-1"))["op_type"] == 40023


# --- request smuggling

LOGIN = b"POST /user/login HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n"
HIDDEN = b"GET /nothing HTTP/1.1\r\n" + HOST + b"\r\n"


@pytest.mark.parametrize(
    "framing",
    [
        b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n0\r\n\r\n",
        b"Content-Length: 0\r\nContent-Length: 44\r\n\r\n",
        b"Content-Length: 0, 44\r\n\r\n",
        b"Content-Length: +0\r\n\r\n",
        b"Content-Length: -1\r\n\r\n",
        b"Content-Length: 0x0\r\n\r\n",
        b"Content-Length: 0 0\r\n\r\n",
        b"Content-Length : 0\r\n\r\n",
        b"Content-Length:\r\n 0\r\n\r\n",
        b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: identity, chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n0x0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n+0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n0\n\n",
        b"X: x\rContent-Length: 0\r\n\r\n",
        b"X: x\0\r\nContent-Length: 0\r\n\r\n",
        b"Host: other.example\r\nContent-Length: 0\r\n\r\n",
    ],
)
async def test_an_ambiguous_request_length_is_400_and_closes(server: ServerHandle, framing: bytes) -> None:
    """If proxy and server disagree about the end of a request, the rest becomes a request of another client."""
    reader, writer = await asyncio.open_connection(server.host, server.port)
    writer.write(LOGIN + framing + HIDDEN)
    async with asyncio.timeout(TIMEOUT):
        answer = await reader.read()
    writer.close()
    assert answer.split(b" ")[1] == b"400", answer
    assert answer.count(b"HTTP/1.") == 1, answer


async def test_a_too_large_head_is_400_and_closes(server: ServerHandle) -> None:
    for headers in (b"X: " + b"x" * 100_000, b"X: x\r\n" * 10_000, b"X: x\r\n" * 200 + b"X" * 9000):
        reader, writer = await asyncio.open_connection(server.host, server.port)
        writer.write(b"GET /ping HTTP/1.1\r\n" + HOST + headers + b"\r\n\r\n" + HIDDEN)
        async with asyncio.timeout(TIMEOUT):
            try:
                answer = await reader.read()
            except ConnectionResetError:
                answer = b""  # the client was still sending when the connection ended
        writer.close()
        assert b" 200 " not in answer
        assert answer.count(b"HTTP/1.") <= 1


# --- pages of other origins


async def test_a_form_posted_from_another_site_is_refused(server: ServerHandle) -> None:
    """With and without a cookie."""
    for cookie in ({}, {"Cookie": f"session={server.tokens['1']}"}):
        for path, (fields, failed) in ENDPOINTS.items():
            form = dict.fromkeys(fields, PASSWORD) | {"user_name": "1"}
            response = await send_request(server, "POST", path, data=form, headers=OTHER | FORM | cookie)
            check_refusal(response, 403, failed, "foreign_origin")
            assert "Set-Cookie" not in response.headers
    assert await is_valid_session(server, server.tokens["1"])
    check_success(await try_login(server, "1"), 41003)


async def test_a_socket_opened_from_another_site_is_refused(server: ServerHandle) -> None:
    """With and without a cookie."""
    for origin in (OTHER, {"Origin": "null"}):
        for cookie in ({}, {"Cookie": f"session={server.tokens['1']}"}):
            check_refusal(await try_upgrade(server, origin | cookie, uid="1"), 403, 40014, "foreign_origin")


async def test_behind_tls_a_page_without_tls_is_a_foreign_origin(tmp_path: Path) -> None:
    """An attacker on the network can write such a page."""
    async with serving(tmp_path, users=("1",), TrustedProxies="127.0.0.1") as server:
        body = {"user_name": "1", "password": PASSWORD}
        for proto, origin, own in (
            ("https", "https://chat.example", True),
            ("https", "http://chat.example", False),
            ("http", "http://chat.example", True),
            ("", "https://chat.example", True),
        ):
            headers = {"Host": "chat.example", "X-Forwarded-Proto": proto, "Origin": origin}
            response = await send_request(server, "POST", "/user/login", json=body, headers=headers)
            if own:
                check_success(response, 41003)
            else:
                check_refusal(response, 403, 41002, "foreign_origin")


async def test_two_host_headers_are_refused(server: ServerHandle) -> None:
    body = json.dumps({"user_name": "1", "password": PASSWORD}).encode()
    for first, second in ((b"chat.example", b"other.example"), (b"other.example", b"chat.example")):
        request = (
            b"POST /user/login HTTP/1.1\r\nHost: %s\r\nHost: %s\r\nOrigin: http://other.example\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (first, second, len(body), body)
        )
        assert (await send_bytes(server, request)).status_code in (400, 403)


async def test_two_origin_headers_are_refused(server: ServerHandle) -> None:
    for origins in (("http://x", "https://other.example"), ("https://other.example", "http://x")):
        headers = [("Host", "x"), *(("Origin", origin) for origin in origins)]
        response = await send_request(
            server, "POST", "/user/login", json={"user_name": "1", "password": PASSWORD}, headers=headers
        )
        check_refusal(response, 403, 41002, "foreign_origin")


@pytest.mark.parametrize("proxies", ["", "127.0.0.1"])
async def test_a_non_text_byte_never_causes_a_server_error(
    tmp_path: Path, proxies: str, caplog: pytest.LogCaptureFixture
) -> None:
    """In a header, the query or the path: the answer is 4xx, or the header is ignored."""
    names = (
        "Host Origin Cookie Authorization Content-Type Content-Encoding Content-Length Accept Accept-Encoding Expect"
    )
    names += " X-Forwarded-For X-Forwarded-Proto X-Forwarded-Host Transfer-Encoding Connection Upgrade If-None-Match"
    names += " Sec-WebSocket-Key Sec-WebSocket-Version Sec-WebSocket-Protocol Sec-WebSocket-Extensions User-Agent"
    body = json.dumps({"user_name": "unknown", "password": PASSWORD}).encode()
    async with serving(tmp_path, users=("1",), TrustedProxies=proxies) as server:
        token = server.tokens["1"].encode()
        login = {b"Host": b"x", b"Content-Type": b"application/json", b"Content-Length": b"%d" % len(body)}
        upgrade = {b"Host": b"x", **{name.encode(): value.encode() for name, value in UPGRADE.items()}}
        upgrade[b"Authorization"] = b"Bearer " + token
        requests = [
            *((b"POST /user/login", login | {name.encode(): b"\xff\xfe"}, body) for name in names.split()),
            *((b"GET /chat/test?uid=2", upgrade | {name.encode(): b"\xff\xfe"}, b"") for name in names.split()),
            *((b"GET /" + path, {b"Host": b"x"}, b"") for path in (b"\xff", b"%ff", b"web/\xff/x", b"%ED%A0%80")),
            *(
                (b"GET /chat/test?" + query + value, upgrade, b"")
                for query in (b"uid=", b"uid=1&to_uid=", b"uid=2&token=", b"uid=2&")
                for value in (b"\xff", b"%ff", b"%ED%A0%80", b"%00")
            ),
        ]
        for target, headers, content in requests:
            lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers.items())
            response = await send_bytes(server, target + b" HTTP/1.1\r\n" + lines + b"\r\n" + content)
            assert 400 <= response.status_code < 500, (target, headers, response.text)
    assert not [record.message for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]


# --- sessions


async def test_a_client_cannot_choose_its_session_token(server: ServerHandle) -> None:
    """Session fixation: a token that an attacker plants in a browser must never become a session."""
    planted = "planted-" + "x" * 35
    headers = {"Cookie": f"session={planted}; chat_session={planted}"}
    body = {"user_name": "1", "password": PASSWORD, "token": planted, "session": planted}
    response = await send_request(
        server, "POST", f"/user/login?token={planted}&session={planted}", json=body, headers=headers
    )
    token = check_success(response, 41003)["token"]
    assert token != planted
    assert response.cookies["chat_session"] == token
    assert not await is_valid_session(server, planted)
    check_refusal(await try_upgrade(server, uid="1", token=planted), 401, 41012, "not_logged_in")


async def test_every_login_returns_a_new_token(server: ServerHandle) -> None:
    headers = {"Cookie": f"session={server.tokens['2']}"}
    body = {"user_name": "1", "password": PASSWORD}
    response = await send_request(server, "POST", "/user/login", json=body, headers=headers)
    assert check_success(response, 41003)["token"] not in server.tokens.values()


async def test_all_failed_logins_cost_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every failed login runs one bcrypt of the same cost, so its duration does not depend on the error."""
    checked: list[bytes] = []
    check = bcrypt.checkpw

    def counting(password: bytes, hashed: bytes) -> bool:
        checked.append(hashed[4:6])
        return check(password, hashed)

    monkeypatch.setattr(bcrypt, "checkpw", counting)
    async with serving(tmp_path, users=("1",), PasswordCost=5, LoginFailures=100) as server:
        checked.clear()
        tries = [("1", "wrong one"), ("unknown", PASSWORD), ("", ""), ("a b", PASSWORD), ("x" * 5000, PASSWORD)]
        tries += [
            ("System", PASSWORD),
            ("1", ""),
            ("1", "x" * 100),
            ("unknown", "x" * 100),
            ("1", "\0"),
            ("1", "short"),
        ]
        for name, password in tries:
            check_refusal(await try_login(server, name, password), 401, 41010, "wrong_password")
        assert checked == [b"05"] * len(tries)


# --- failed upgrades


async def test_frames_after_a_refused_upgrade_are_malformed_http(server: ServerHandle) -> None:
    """The connection still speaks HTTP, so a frame is malformed: the answer is 400, and the connection ends."""
    lines = [f"{name}: {value}" for name, value in UPGRADE.items()]
    head = "\r\n".join(["GET /chat/test?uid=1 HTTP/1.1", "Host: x", *lines, "", ""]).encode()
    reader, writer = await asyncio.open_connection(server.host, server.port)
    writer.write(head + raw.request(1, "m1\nhello"))
    async with asyncio.timeout(TIMEOUT):
        answers = await reader.read()
    writer.close()
    assert answers.startswith(b"HTTP/1.1 401 ")
    assert answers.count(b"HTTP/1.") == 2
    assert b"HTTP/1.0 400 " in answers
