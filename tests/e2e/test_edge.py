"""The edge: headers on every answer, slow peers, smuggled requests, and what a page elsewhere could try."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import bcrypt
import httpx
import pytest
from aiohttp import web

from chat_server.api.headers import secure
from tests import raw
from tests.e2e.answers import ENDPOINTS, UPGRADE, ask, done, lives, opened, post, refused, speak, try_login, try_upgrade
from tests.harness import PASSWORD, TIMEOUT, ServerHandle, serving, wait_until
from tests.servers import free_port

HOST = b"Host: chat.example\r\n"
OTHER = {"Origin": "https://other.example"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


def careful(response: httpx.Response) -> None:
    """Fail unless a browser is told what not to do with this answer, and nobody which software it is from."""
    headers = response.headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cache-Control"] == "no-store"
    assert headers.get_list("Server") == ["chat_server"]
    assert not any("python" in value.lower() or "aiohttp" in value.lower() for value in headers.values())


# --- headers


async def test_no_answer_is_without_its_headers(tmp_path: Path) -> None:
    async with serving(tmp_path, LoginFailures=1, AllowedOrigins="https://friend.example") as server:
        await server.add_users("1")
        login = {"user_name": "1", "password": PASSWORD}
        friend = {"Origin": "https://friend.example"}
        answers = [
            await ask(server, "GET", "/ping"),
            await ask(server, "HEAD", "/ping"),
            await ask(server, "GET", "/health"),
            await ask(server, "GET", "/nothing"),
            await ask(server, "DELETE", "/ping"),
            await ask(server, "OPTIONS", "/user/login", headers=friend),
            await try_login(server, "1"),
            await post(server, "/user/login", user_name="1"),
            await ask(server, "POST", "/user/login", content="x"),
            await ask(server, "POST", "/user/login", json={"user_name": "x" * 100_000}),
            await ask(server, "POST", "/user/login", json=login, headers=OTHER),
            await ask(server, "POST", "/user/login", json=login, headers=friend),
            await post(server, "/user/logout", user_name="1"),
            await ask(server, "GET", "/chat/test"),
            await try_upgrade(server, uid="1", token=server.tokens["1"], to_uid="nobody"),
            await try_upgrade(server, OTHER, uid="1", token=server.tokens["1"]),
            await post(server, "/user/register", **login),
            *[await try_login(server, "nobody") for _ in range(2)],
            await speak(server, b"GARBAGE\r\n\r\n"),
            await speak(server, b"POST /ping HTTP/1.1\r\n" + HOST + b"Expect: miracles\r\n\r\n"),
        ]
        async with opened(server, "1") as chat:
            assert chat.connection.response
            answers.append(httpx.Response(101, headers=list(chat.connection.response.headers.raw_items())))
    for answer in answers:
        careful(answer)
    codes = {answer.status_code for answer in answers}
    assert codes == {101, 200, 400, 401, 403, 404, 405, 409, 413, 415, 426, 429} | ({417} & codes)


async def test_no_answer_to_prometheus_is_without_its_headers(tmp_path: Path) -> None:
    port = free_port()
    async with serving(tmp_path, MetricsPort=port), httpx.AsyncClient(trust_env=False, verify=False) as client:
        for path in ("metrics", "nothing"):
            careful(await client.get(f"http://127.0.0.1:{port}/{path}"))


def test_a_page_keeps_the_headers_that_it_brings() -> None:
    own = {"Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'", "Cache-Control": "max-age=60"}
    response = web.Response(headers=own)
    secure(response)
    assert {name: response.headers[name] for name in own} == own
    assert response.headers["X-Content-Type-Options"] == "nosniff"


# --- peers that take for ever


@pytest.fixture
async def hasty(tmp_path: Path) -> AsyncIterator[ServerHandle]:
    """A server that waits half a second for a request, and a user who has registered in time."""
    async with serving(tmp_path) as server:
        await server.add_users("1")
        tokens = server.tokens
    async with serving(tmp_path, RequestTimeout=0.5) as server:
        server.tokens.update(tokens)
        yield server


async def drip(server: ServerHandle, start: bytes, more: bytes) -> bytes:
    """Send the beginning of a request, then a little more again and again; what came until the server cut it."""
    reader, writer = await asyncio.open_connection(server.host, server.port)
    came = bytearray()

    async def hear() -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                came.extend(data)

    hearing = asyncio.create_task(hear())
    try:
        async with asyncio.timeout(TIMEOUT):
            writer.write(start)
            while not hearing.done():
                if more:
                    writer.write(more)
                await asyncio.wait([hearing], timeout=0.05)
    finally:
        hearing.cancel()
        writer.close()
    return bytes(came)


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
async def test_a_head_that_never_ends_does_not_hold_a_connection(
    hasty: ServerHandle, start: bytes, more: bytes
) -> None:
    assert await drip(hasty, start, more) == b""
    done(await ask(hasty, "GET", "/ping"), 200)


async def test_a_second_head_that_never_ends_does_not_hold_a_connection(hasty: ServerHandle) -> None:
    answer = await drip(hasty, b"GET /ping HTTP/1.1\r\n" + HOST + b"\r\nGET /ping HTTP/1.1\r\n", b"X-Header: x\r\n")
    assert answer.count(b"HTTP/1.") == answer.count(b" 200 OK") == 1


@pytest.mark.parametrize("length", [b"Content-Length: 10000", b"Transfer-Encoding: chunked"])
async def test_a_body_that_never_ends_does_not_hold_a_connection(hasty: ServerHandle, length: bytes) -> None:
    start = b"POST /user/login HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n" + length + b"\r\n\r\n"
    answer = await drip(hasty, start, b"1\r\n \r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["data"]["reason"] == "bad_request"


async def test_who_never_takes_his_answers_does_not_hold_a_connection(hasty: ServerHandle) -> None:
    sock = await raw.connect(hasty, buffer=4096)
    client = raw.RawSocket(sock, "")

    async def cut() -> bool:
        try:
            await client.flood(b"GET /ping HTTP/1.1\r\n" + HOST + b"\r\n", 1 << 24)
        except ConnectionError:
            return True
        return False

    try:
        await wait_until(cut)
    finally:
        sock.close()


async def test_an_open_socket_is_not_cut_for_being_silent(hasty: ServerHandle) -> None:
    async with raw.chat(hasty, "1") as one:
        await asyncio.sleep(1.2)  # more than two RequestTimeout
        assert (await one.ask(7, "-1"))["op_type"] == 40023


# --- requests within requests

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
async def test_what_a_proxy_might_frame_otherwise_is_400_and_the_end(server: ServerHandle, framing: bytes) -> None:
    """Where two readers could disagree where a request ends, the second one would be somebody else's."""
    reader, writer = await asyncio.open_connection(server.host, server.port)
    writer.write(LOGIN + framing + HIDDEN)
    async with asyncio.timeout(TIMEOUT):
        answer = await reader.read()
    writer.close()
    assert answer.split(b" ")[1] == b"400", answer
    assert answer.count(b"HTTP/1.") == 1, answer


async def test_a_head_that_is_too_large_is_400_and_the_end(server: ServerHandle) -> None:
    for headers in (b"X: " + b"x" * 100_000, b"X: x\r\n" * 10_000, b"X: x\r\n" * 200 + b"X" * 9000):
        reader, writer = await asyncio.open_connection(server.host, server.port)
        writer.write(b"GET /ping HTTP/1.1\r\n" + HOST + headers + b"\r\n\r\n" + HIDDEN)
        async with asyncio.timeout(TIMEOUT):
            try:
                answer = await reader.read()
            except ConnectionResetError:
                answer = b""  # it went on sending into a connection that had ended
        writer.close()
        assert b" 200 " not in answer
        assert answer.count(b"HTTP/1.") <= 1


# --- a page elsewhere


async def test_a_form_posted_from_another_site_does_nothing_with_or_without_a_cookie(server: ServerHandle) -> None:
    for cookie in ({}, {"Cookie": f"session={server.tokens['1']}"}):
        for path, (fields, failed) in ENDPOINTS.items():
            form = dict.fromkeys(fields, PASSWORD) | {"user_name": "1"}
            response = await ask(server, "POST", path, data=form, headers=OTHER | FORM | cookie)
            refused(response, 403, failed, "foreign_origin")
            assert "Set-Cookie" not in response.headers
    assert await lives(server, server.tokens["1"])
    done(await try_login(server, "1"), 41003)


async def test_a_socket_opened_from_another_site_does_not_open_with_or_without_a_cookie(server: ServerHandle) -> None:
    for origin in (OTHER, {"Origin": "null"}):
        for cookie in ({}, {"Cookie": f"session={server.tokens['1']}"}):
            refused(await try_upgrade(server, origin | cookie, uid="1"), 403, 40014, "foreign_origin")


async def test_behind_tls_a_page_that_came_without_it_is_foreign(tmp_path: Path) -> None:
    """Whoever sits in between can write such a page."""
    async with serving(tmp_path, TrustedProxies="127.0.0.1") as server:
        await server.add_users("1")
        body = {"user_name": "1", "password": PASSWORD}
        for proto, origin, own in (
            ("https", "https://chat.example", True),
            ("https", "http://chat.example", False),
            ("http", "http://chat.example", True),
            ("", "https://chat.example", True),
        ):
            headers = {"Host": "chat.example", "X-Forwarded-Proto": proto, "Origin": origin}
            response = await ask(server, "POST", "/user/login", json=body, headers=headers)
            if own:
                done(response, 41003)
            else:
                refused(response, 403, 41002, "foreign_origin")


async def test_a_host_that_is_said_twice_is_not_chosen_from(server: ServerHandle) -> None:
    body = json.dumps({"user_name": "1", "password": PASSWORD}).encode()
    for first, second in ((b"chat.example", b"other.example"), (b"other.example", b"chat.example")):
        request = (
            b"POST /user/login HTTP/1.1\r\nHost: %s\r\nHost: %s\r\nOrigin: http://other.example\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (first, second, len(body), body)
        )
        assert (await speak(server, request)).status_code in (400, 403)


async def test_an_origin_that_is_said_twice_is_not_chosen_from(server: ServerHandle) -> None:
    for origins in (("http://x", "https://other.example"), ("https://other.example", "http://x")):
        headers = [("Host", "x"), *(("Origin", origin) for origin in origins)]
        response = await ask(
            server, "POST", "/user/login", json={"user_name": "1", "password": PASSWORD}, headers=headers
        )
        refused(response, 403, 41002, "foreign_origin")


@pytest.mark.parametrize("proxies", ["", "127.0.0.1"])
async def test_a_byte_that_is_no_text_is_never_an_error_of_the_server(
    tmp_path: Path, proxies: str, caplog: pytest.LogCaptureFixture
) -> None:
    """In any header, in the query and in the path: 4xx, or as if the header were not there."""
    names = (
        "Host Origin Cookie Authorization Content-Type Content-Encoding Content-Length Accept Accept-Encoding Expect"
    )
    names += " X-Forwarded-For X-Forwarded-Proto X-Forwarded-Host Transfer-Encoding Connection Upgrade If-None-Match"
    names += " Sec-WebSocket-Key Sec-WebSocket-Version Sec-WebSocket-Protocol Sec-WebSocket-Extensions User-Agent"
    body = json.dumps({"user_name": "nobody", "password": PASSWORD}).encode()
    async with serving(tmp_path, TrustedProxies=proxies) as server:
        await server.add_users("1")
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
            response = await speak(server, target + b" HTTP/1.1\r\n" + lines + b"\r\n" + content)
            assert 400 <= response.status_code < 500, (target, headers, response.text)
    assert not [record.message for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]


# --- sessions


async def test_no_session_is_one_that_the_client_chose(server: ServerHandle) -> None:
    """Session fixation: who plants a token in somebody's browser must not be logged in with them."""
    planted = "planted-" + "x" * 35
    headers = {"Cookie": f"session={planted}; chat_session={planted}"}
    body = {"user_name": "1", "password": PASSWORD, "token": planted, "session": planted}
    response = await ask(server, "POST", f"/user/login?token={planted}&session={planted}", json=body, headers=headers)
    token = done(response, 41003)["token"]
    assert token != planted
    assert response.cookies["chat_session"] == token
    assert not await lives(server, planted)
    refused(await try_upgrade(server, uid="1", token=planted), 401, 41012, "not_logged_in")


async def test_logging_in_anew_makes_a_token_anew(server: ServerHandle) -> None:
    headers = {"Cookie": f"session={server.tokens['2']}"}
    body = {"user_name": "1", "password": PASSWORD}
    response = await ask(server, "POST", "/user/login", json=body, headers=headers)
    assert done(response, 41003)["token"] not in server.tokens.values()


async def test_no_failed_login_costs_less_than_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same time, shown by the work: one bcrypt of the same cost, whatever is wrong with name or password."""
    checked: list[bytes] = []
    check = bcrypt.checkpw

    def counting(password: bytes, hashed: bytes) -> bool:
        checked.append(hashed[4:6])
        return check(password, hashed)

    monkeypatch.setattr(bcrypt, "checkpw", counting)
    async with serving(tmp_path, PasswordCost=5, LoginFailures=100) as server:
        await server.add_users("1")
        checked.clear()
        tries = [("1", "wrong one"), ("nobody", PASSWORD), ("", ""), ("a b", PASSWORD), ("x" * 5000, PASSWORD)]
        tries += [("System", PASSWORD), ("1", ""), ("1", "x" * 100), ("nobody", "x" * 100), ("1", "\0"), ("1", "short")]
        for name, password in tries:
            refused(await try_login(server, name, password), 401, 41010, "wrong_password")
        assert checked == [b"05"] * len(tries)


# --- upgrades that are none


async def test_frames_behind_an_upgrade_that_was_refused_are_no_requests(server: ServerHandle) -> None:
    """The connection speaks HTTP as before, and a frame is no HTTP: 400 and the end."""
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
