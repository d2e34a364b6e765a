"""Foreign and allowed origins, and the order of the checks of an upgrade (protocol section 1)."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.http_helpers import (
    ENDPOINTS,
    UPGRADE,
    check_refusal,
    check_success,
    envelope,
    is_valid_session,
    open_socket,
    post,
    send_request,
    try_login,
    try_upgrade,
)
from tests.harness import PASSWORD, ServerHandle, serving

OTHER = "https://other.example"
ALLOWED = "https://friend.example:8443"


@pytest.fixture
async def allowing_server(tmp_path: Path) -> AsyncIterator[ServerHandle]:
    """A server with ALLOWED in AllowedOrigins."""
    async with serving(
        tmp_path, users=("1", "2"), AllowedOrigins=f"https://a.example, {ALLOWED} http://b.example"
    ) as server:
        yield server


def foreign_to(server: ServerHandle) -> list[str]:
    """Return origins that differ from the server's own origin."""
    return [
        OTHER,
        "null",
        "",
        f"http://{server.host}",
        f"http://{server.host}:{server.port + 1}",
        f"http://{server.host}:{server.port}.example",
        f"http://x@{server.host}:{server.port}",
        f"{server.host}:{server.port}",
        "http://[",
    ]


def cors(response: httpx.Response) -> dict[str, str]:
    return {
        name.lower(): value for name, value in response.headers.items() if name.lower().startswith("access-control")
    }


# --- origins that are neither the server's own nor allowed


async def test_a_foreign_post_is_403_with_the_code_of_the_endpoint(server: ServerHandle) -> None:
    for origin in foreign_to(server):
        for path, (fields, failed) in ENDPOINTS.items():
            headers = {"Origin": origin, "Authorization": f"Bearer {server.tokens['1']}"}
            response = await send_request(server, "POST", path, json=dict.fromkeys(fields, "3" * 8), headers=headers)
            check_refusal(response, 403, failed, "foreign_origin")
            assert not cors(response)
    assert await is_valid_session(server, server.tokens["1"])
    check_refusal(await try_login(server, "3" * 8, "3" * 8), 401, 41010, "wrong_password")


async def test_a_foreign_post_is_refused_before_its_body_is_parsed(server: ServerHandle) -> None:
    for content, kind in (("{", "application/json"), ("x", "text/plain"), ("x" * 100_000, "application/json")):
        headers = {"Origin": OTHER, "Content-Type": kind}
        response = await send_request(server, "POST", "/user/login", content=content, headers=headers)
        check_refusal(response, 403, 41002, "foreign_origin")


async def test_a_foreign_post_to_any_path_is_refused(server: ServerHandle) -> None:
    """So a new endpoint is protected, too."""
    for path in ("/", "/new", "/group/members"):
        response = await send_request(server, "POST", path, json={}, headers={"Origin": OTHER})
        check_refusal(response, 403, 400, "foreign_origin")


async def test_a_foreign_upgrade_is_403(server: ServerHandle) -> None:
    for origin in foreign_to(server):
        response = await try_upgrade(server, {"Origin": origin}, uid="1", token=server.tokens["1"])
        check_refusal(response, 403, 40014, "foreign_origin")
        assert not cors(response)


async def test_a_foreign_preflight_gets_no_cors_headers(server: ServerHandle) -> None:
    headers = {"Origin": OTHER, "Access-Control-Request-Method": "POST"}
    response = await send_request(server, "OPTIONS", "/user/login", headers=headers)
    envelope(response)
    assert response.status_code in (403, 405)
    assert not cors(response)


async def test_get_requests_are_open_to_every_origin(server: ServerHandle) -> None:
    for path in ("/ping", "/health"):
        check_success(await send_request(server, "GET", path, headers={"Origin": OTHER}), 200)


# --- the server's own origin


async def test_the_servers_own_origin_is_its_host_and_port(server: ServerHandle) -> None:
    for host in (f"{server.host}:{server.port}", "chat.example", "Chat.Example:8443"):
        for origin in (f"http://{host}", f"http://{host}".lower()):
            headers = {"Origin": origin, "Host": host}
            body = {"user_name": "1", "password": PASSWORD}
            response = await send_request(server, "POST", "/user/login", json=body, headers=headers)
            assert check_success(response, 41003)["token"] == response.cookies["chat_session"]
    headers = {"Origin": f"http://{server.host}:{server.port}", "Cookie": f"session={server.tokens['1']}"}
    check_refusal(await try_upgrade(server, headers, uid="2"), 403, 40014, "not_yours", "uid")


async def test_the_own_origin_is_the_one_that_the_proxy_reports(tmp_path: Path) -> None:
    """Only a trusted proxy can report it."""
    headers = {"Origin": "https://chat.example", "X-Forwarded-Host": "chat.example", "X-Forwarded-Proto": "https"}
    body = {"user_name": "1", "password": PASSWORD}
    async with serving(tmp_path, users=("1",), TrustedProxies="127.0.0.0/8") as server:
        response = await send_request(server, "POST", "/user/login", json=body, headers=headers)
        assert check_success(response, 41003)["token"] == response.cookies["__Host-chat_session"]
        foreign = headers | {"Origin": f"http://{server.host}:{server.port}"}
        response = await send_request(server, "POST", "/user/login", json=body, headers=foreign)
        check_refusal(response, 403, 41002, "foreign_origin")
    async with serving(tmp_path) as server:
        response = await send_request(server, "POST", "/user/login", json=body, headers=headers)
        check_refusal(response, 403, 41002, "foreign_origin")


@pytest.mark.parametrize(
    ("headers", "own", "foreign"),
    [
        (
            {"Host": "a.example"},
            "http://a.example https://a.example http://A.example:80 https://a.example:443",
            "http://a.example:81",
        ),
        ({"Host": "a.example:80"}, "http://a.example", "http://a.example:8080"),
        ({"Host": "A.example:443"}, "https://a.example", "https://a.example.org"),
        ({"Host": "a.example"}, "http://a.example", "capacitor://a.example ws://a.example //a.example a.example"),
        ({"X-Forwarded-Host": "A.Example , b.example"}, "https://a.example", "https://b.example http://x"),
        ({"X-Forwarded-Host": "a.example:443"}, "https://a.example", "https://x"),
        ({"X-Forwarded-Host": ""}, "", "https://a.example http://x"),
        ({"X-Forwarded-Host": "a.example", "X-Forwarded-Proto": "HTTPS,http"}, "https://a.example", "http://a.example"),
        ({"X-Forwarded-Host": "a.example", "X-Forwarded-Proto": " wss"}, "https://a.example", "http://a.example"),
        ({"X-Forwarded-Host": "a.example", "X-Forwarded-Proto": "ws"}, "http://a.example", "http://b.example"),
        ({"X-Forwarded-Host": "a.example", "X-Forwarded-Proto": "quic"}, "https://a.example", "http://a.example"),
    ],
)
async def test_own_origins_are_compared_without_default_ports(
    tmp_path: Path, headers: dict[str, str], own: str, foreign: str
) -> None:
    headers = {"Host": "x", **{name: value.strip() for name, value in headers.items()}}
    async with serving(tmp_path, TrustedProxies="127.0.0.1") as server:
        for origin in own.split():
            response = await send_request(server, "POST", "/user/login", json={}, headers=headers | {"Origin": origin})
            check_refusal(response, 400, 41002, "bad_request", "user_name")
        for origin in foreign.split():
            response = await send_request(server, "POST", "/user/login", json={}, headers=headers | {"Origin": origin})
            check_refusal(response, 403, 41002, "foreign_origin")


async def test_app_shells_and_default_ports_can_be_allowed(tmp_path: Path) -> None:
    allowed = "capacitor://localhost tauri://localhost https://a.example:443 http://b.example"
    async with serving(tmp_path, users=("1",), AllowedOrigins=allowed) as server:
        for origin in ("capacitor://localhost", "tauri://localhost", "https://a.example", "http://b.example:80"):
            response = await send_request(server, "POST", "/user/login", json={}, headers={"Origin": origin})
            check_refusal(response, 400, 41002, "bad_request", "user_name")
            assert response.headers["Access-Control-Allow-Origin"] == origin
            async with open_socket(server, "1", Origin=origin):
                pass
        for origin in ("capacitor://localhost:1", "capacitor://other", "http://a.example", "https://b.example:80"):
            response = await send_request(server, "POST", "/user/login", json={}, headers={"Origin": origin})
            check_refusal(response, 403, 41002, "foreign_origin")


# --- allowed origins


async def test_an_allowed_origin_gets_cors_headers(allowing_server: ServerHandle) -> None:
    """On success and on failure."""
    headers = {"Origin": ALLOWED}
    right, wrong = ({"user_name": "1", "password": password} for password in (PASSWORD, "wrong password"))
    answers = [
        await send_request(allowing_server, "POST", "/user/login", json=right, headers=headers),
        await send_request(allowing_server, "POST", "/user/login", json=wrong, headers=headers),
        await send_request(allowing_server, "POST", "/user/login", json={}, headers=headers),
        await send_request(
            allowing_server, "POST", "/user/login", content="{", headers=headers | {"Content-Type": "application/json"}
        ),
        await send_request(allowing_server, "POST", "/user/login", content="{", headers=headers),
        await send_request(allowing_server, "POST", "/user/login", json={"user_name": "x" * 100_000}, headers=headers),
        await send_request(allowing_server, "POST", "/user/register", json=right, headers=headers),
        await send_request(allowing_server, "POST", "/user/logout", json=right, headers=headers),
        await send_request(allowing_server, "PUT", "/user/logout", headers=headers),
    ]
    assert [answer.status_code for answer in answers] == [200, 401, 400, 400, 415, 413, 409, 401, 405]
    for answer in answers:
        envelope(answer)
        assert answer.headers["Access-Control-Allow-Origin"] == ALLOWED
        assert "Origin" in answer.headers["Vary"]
        assert "Access-Control-Allow-Credentials" not in answer.headers


async def test_an_allowed_origin_may_read_retry_after(tmp_path: Path) -> None:
    async with serving(tmp_path, AllowedOrigins=ALLOWED, LoginFailures=1) as server:
        for _ in range(2):
            body = {"user_name": "1", "password": PASSWORD}
            response = await send_request(server, "POST", "/user/login", json=body, headers={"Origin": ALLOWED})
        check_refusal(response, 429, 41002, "too_many")
        assert "retry-after" in response.headers["Access-Control-Expose-Headers"].lower()


async def test_a_preflight_allows_requests_with_a_bearer_token(allowing_server: ServerHandle) -> None:
    for path in ENDPOINTS:
        headers = {
            "Origin": ALLOWED,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type",
        }
        response = await send_request(allowing_server, "OPTIONS", path, headers=headers)
        check_success(response, 200)
        assert response.headers["Access-Control-Allow-Origin"] == ALLOWED
        assert "POST" in response.headers["Access-Control-Allow-Methods"]
        allowed = response.headers["Access-Control-Allow-Headers"].lower()
        assert "authorization" in allowed
        assert "content-type" in allowed
        assert "Access-Control-Allow-Credentials" not in response.headers


async def test_an_allowed_origin_works_with_bearer_and_token(allowing_server: ServerHandle) -> None:
    token = allowing_server.tokens["1"]
    async with open_socket(allowing_server, "1", token, Origin=ALLOWED) as chat:
        assert (await chat.send("hello", to="2"))["op_type"] == 40019
    headers = {"Origin": ALLOWED, "Authorization": f"Bearer {token}"}
    check_success(
        await send_request(allowing_server, "POST", "/user/logout", json={"user_name": "1"}, headers=headers), 41015
    )


async def test_origins_that_are_not_allowed_stay_foreign(allowing_server: ServerHandle) -> None:
    for origin in (*foreign_to(allowing_server), "https://friend.example", "http://friend.example:8443", f"{ALLOWED}0"):
        body = {"user_name": "1", "password": PASSWORD}
        response = await send_request(allowing_server, "POST", "/user/login", json=body, headers={"Origin": origin})
        check_refusal(response, 403, 41002, "foreign_origin")
        assert not cors(response)


async def test_cookies_are_never_used_from_an_allowed_origin(allowing_server: ServerHandle) -> None:
    headers = {"Origin": ALLOWED, "Cookie": f"session={allowing_server.tokens['1']}"}
    change = {"user_name": "1", "old_password": PASSWORD, "new_password": "another1"}
    for path, body in (("/user/logout", {"user_name": "1"}), ("/user/set_password", change)):
        check_refusal(
            await send_request(allowing_server, "POST", path, json=body, headers=headers), 401, 41012, "not_logged_in"
        )
    check_refusal(await try_upgrade(allowing_server, headers, uid="1"), 401, 41012, "not_logged_in")
    assert await is_valid_session(allowing_server, allowing_server.tokens["1"])


async def test_cookies_are_never_set_for_an_allowed_origin(allowing_server: ServerHandle) -> None:
    body = {"user_name": "1", "password": PASSWORD}
    response = await send_request(allowing_server, "POST", "/user/login", json=body, headers={"Origin": ALLOWED})
    check_success(response, 41003)
    assert "Set-Cookie" not in response.headers


async def test_cookies_are_never_deleted_for_an_allowed_origin(allowing_server: ServerHandle) -> None:
    """CORS is for Bearer tokens, never for cookies. The cookie of the server's own page belongs to another session."""
    headers = {"Origin": ALLOWED, "Authorization": f"Bearer {allowing_server.tokens['1']}"}
    response = await send_request(allowing_server, "POST", "/user/logout", json={"user_name": "1"}, headers=headers)
    check_success(response, 41015)
    assert "Set-Cookie" not in response.headers


# --- the order of the checks of an upgrade


async def test_the_upgrade_is_checked_in_the_order_of_the_protocol(tmp_path: Path) -> None:
    async with serving(tmp_path, users=("1", "2"), SocketsPerUser=1) as server, server.chat("1"):
        query = {"uid": "2", "to_uid": "unknown", "token": "wrong"}
        headers = {"Origin": OTHER}
        response = await send_request(server, "GET", "/chat/test", params=query, headers=headers)
        check_refusal(response, 426, 40014, "no_upgrade")
        check_refusal(await try_upgrade(server, headers, **query), 403, 40014, "foreign_origin")
        headers = {}
        check_refusal(await try_upgrade(server, headers, **query), 401, 41012, "not_logged_in")
        query["token"] = server.tokens["1"]
        check_refusal(await try_upgrade(server, headers, **query), 403, 40014, "not_yours", "uid")
        query["uid"] = "1"
        check_refusal(await try_upgrade(server, headers, **query), 404, 41006, "no_such_user", "to_uid")
        query["to_uid"] = "2"
        check_refusal(await try_upgrade(server, headers, **query), 429, 40014, "too_many")


async def test_an_invalid_handshake_is_426_with_the_version(server: ServerHandle) -> None:
    for wrong in ({"Sec-WebSocket-Version": "12"}, {"Sec-WebSocket-Key": "short"}, {"Upgrade": "h2c"}):
        response = await try_upgrade(server, wrong, uid="1", token=server.tokens["1"])
        check_refusal(response, 426, 40014, "no_upgrade")
        assert response.headers["Sec-WebSocket-Version"] == "13"
    for missing in set(UPGRADE) - {"Connection"}:
        headers = {name: value for name, value in UPGRADE.items() if name != missing}
        response = await send_request(server, "GET", f"/chat/test?uid=1&token={server.tokens['1']}", headers=headers)
        check_refusal(response, 426, 40014, "no_upgrade")


async def test_uid_must_be_the_logged_in_user(server: ServerHandle) -> None:
    headers = {"Authorization": f"Bearer {server.tokens['1']}"}
    for uid in ("2", "", "unknown", "1 ", "System", "\u0661"):
        check_refusal(await try_upgrade(server, headers, uid=uid), 403, 40014, "not_yours", "uid")
    check_refusal(await try_upgrade(server, headers), 403, 40014, "not_yours", "uid")


async def test_to_uid_must_be_a_user_or_missing(server: ServerHandle) -> None:
    headers = {"Authorization": f"Bearer {server.tokens['1']}"}
    for to_uid in (
        "unknown",
        "System",
        "ALL",
        "x" * 1000,
        "\x80",
    ):
        check_refusal(await try_upgrade(server, headers, uid="1", to_uid=to_uid), 404, 41006, "no_such_user", "to_uid")
    for to in ("", "2"):
        async with server.chat("1", to=to) as chat:
            assert (await chat.send("hello", to="2"))["op_type"] == 40019
    check_success(await post(server, "/user/logout", server.tokens["1"], user_name="1"), 41015)
