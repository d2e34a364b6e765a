"""Other origins, and the order of the checks at the upgrade (protocol section 1)."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.answers import (
    ENDPOINTS,
    UPGRADE,
    ask,
    done,
    envelope,
    lives,
    opened,
    post,
    refused,
    try_login,
    try_upgrade,
)
from tests.harness import PASSWORD, ServerHandle, serving

OTHER = "https://other.example"
FRIEND = "https://friend.example:8443"


@pytest.fixture
async def friendly(tmp_path: Path) -> AsyncIterator[ServerHandle]:
    """A server that the pages of FRIEND may use."""
    async with serving(tmp_path, AllowedOrigins=f"https://a.example, {FRIEND} http://b.example") as server:
        await server.add_users("1", "2")
        yield server


def foreign_to(server: ServerHandle) -> list[str]:
    """Origins that are not the server's own."""
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


async def test_a_foreign_post_is_403_with_the_endpoints_failure(server: ServerHandle) -> None:
    for origin in foreign_to(server):
        for path, (fields, failed) in ENDPOINTS.items():
            headers = {"Origin": origin, "Authorization": f"Bearer {server.tokens['1']}"}
            response = await ask(server, "POST", path, json=dict.fromkeys(fields, "3" * 8), headers=headers)
            refused(response, 403, failed, "foreign_origin")
            assert not cors(response)
    assert await lives(server, server.tokens["1"])
    refused(await try_login(server, "3" * 8, "3" * 8), 401, 41010, "wrong_password")


async def test_a_foreign_post_is_refused_before_its_body_is_looked_at(server: ServerHandle) -> None:
    for content, kind in (("{", "application/json"), ("x", "text/plain"), ("x" * 100_000, "application/json")):
        headers = {"Origin": OTHER, "Content-Type": kind}
        response = await ask(server, "POST", "/user/login", content=content, headers=headers)
        refused(response, 403, 41002, "foreign_origin")


async def test_a_foreign_upgrade_is_403(server: ServerHandle) -> None:
    for origin in foreign_to(server):
        response = await try_upgrade(server, {"Origin": origin}, uid="1", token=server.tokens["1"])
        refused(response, 403, 40014, "foreign_origin")
        assert not cors(response)


async def test_a_foreign_preflight_is_told_nothing(server: ServerHandle) -> None:
    headers = {"Origin": OTHER, "Access-Control-Request-Method": "POST"}
    response = await ask(server, "OPTIONS", "/user/login", headers=headers)
    envelope(response)
    assert response.status_code in (403, 405)
    assert not cors(response)


async def test_reading_is_for_everybody(server: ServerHandle) -> None:
    for path in ("/ping", "/health"):
        done(await ask(server, "GET", path, headers={"Origin": OTHER}), 200)


# --- the server's own


async def test_the_servers_own_origin_is_its_host_and_port(server: ServerHandle) -> None:
    for host in (f"{server.host}:{server.port}", "chat.example", "Chat.Example:8443"):
        for origin in (f"http://{host}", f"http://{host}".lower()):
            headers = {"Origin": origin, "Host": host}
            body = {"user_name": "1", "password": PASSWORD}
            response = await ask(server, "POST", "/user/login", json=body, headers=headers)
            assert done(response, 41003)["token"] == response.cookies["chat_session"]
    headers = {"Origin": f"http://{server.host}:{server.port}", "Cookie": f"session={server.tokens['1']}"}
    refused(await try_upgrade(server, headers, uid="2"), 403, 40014, "not_yours", "uid")


async def test_behind_a_trusted_proxy_the_own_origin_is_the_one_it_was_asked_for(tmp_path: Path) -> None:
    headers = {"Origin": "https://chat.example", "X-Forwarded-Host": "chat.example", "X-Forwarded-Proto": "https"}
    body = {"user_name": "1", "password": PASSWORD}
    async with serving(tmp_path, TrustedProxies="127.0.0.0/8") as server:
        await server.add_users("1")
        response = await ask(server, "POST", "/user/login", json=body, headers=headers)
        assert done(response, 41003)["token"] == response.cookies["__Host-chat_session"]
        foreign = headers | {"Origin": f"http://{server.host}:{server.port}"}
        response = await ask(server, "POST", "/user/login", json=body, headers=foreign)
        refused(response, 403, 41002, "foreign_origin")
    async with serving(tmp_path) as server:
        response = await ask(server, "POST", "/user/login", json=body, headers=headers)
        refused(response, 403, 41002, "foreign_origin")


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
            response = await ask(server, "POST", "/user/login", json={}, headers=headers | {"Origin": origin})
            refused(response, 400, 41002, "bad_request", "user_name")
        for origin in foreign.split():
            response = await ask(server, "POST", "/user/login", json={}, headers=headers | {"Origin": origin})
            refused(response, 403, 41002, "foreign_origin")


async def test_app_shells_and_default_ports_can_be_allowed(tmp_path: Path) -> None:
    allowed = "capacitor://localhost tauri://localhost https://a.example:443 http://b.example"
    async with serving(tmp_path, AllowedOrigins=allowed) as server:
        await server.add_users("1")
        for origin in ("capacitor://localhost", "tauri://localhost", "https://a.example", "http://b.example:80"):
            response = await ask(server, "POST", "/user/login", json={}, headers={"Origin": origin})
            refused(response, 400, 41002, "bad_request", "user_name")
            assert response.headers["Access-Control-Allow-Origin"] == origin
            async with opened(server, "1", Origin=origin):
                pass
        for origin in ("capacitor://localhost:1", "capacitor://other", "http://a.example", "https://b.example:80"):
            response = await ask(server, "POST", "/user/login", json={}, headers={"Origin": origin})
            refused(response, 403, 41002, "foreign_origin")


# --- allowed origins


async def test_an_allowed_origin_gets_cors_answers_on_success_and_on_failure(friendly: ServerHandle) -> None:
    headers = {"Origin": FRIEND}
    right, wrong = ({"user_name": "1", "password": password} for password in (PASSWORD, "wrong password"))
    answers = [
        await ask(friendly, "POST", "/user/login", json=right, headers=headers),
        await ask(friendly, "POST", "/user/login", json=wrong, headers=headers),
        await ask(friendly, "POST", "/user/login", json={}, headers=headers),
        await ask(friendly, "POST", "/user/login", content="{", headers=headers | {"Content-Type": "application/json"}),
        await ask(friendly, "POST", "/user/login", content="{", headers=headers),
        await ask(friendly, "POST", "/user/login", json={"user_name": "x" * 100_000}, headers=headers),
        await ask(friendly, "POST", "/user/register", json=right, headers=headers),
        await ask(friendly, "POST", "/user/logout", json=right, headers=headers),
        await ask(friendly, "PUT", "/user/logout", headers=headers),
    ]
    assert [answer.status_code for answer in answers] == [200, 401, 400, 400, 415, 413, 409, 401, 405]
    for answer in answers:
        envelope(answer)
        assert answer.headers["Access-Control-Allow-Origin"] == FRIEND
        assert "Origin" in answer.headers["Vary"]
        assert "Access-Control-Allow-Credentials" not in answer.headers


async def test_a_page_may_read_when_to_try_again(tmp_path: Path) -> None:
    async with serving(tmp_path, AllowedOrigins=FRIEND, LoginFailures=1) as server:
        for _ in range(2):
            body = {"user_name": "1", "password": PASSWORD}
            response = await ask(server, "POST", "/user/login", json=body, headers={"Origin": FRIEND})
        refused(response, 429, 41002, "too_many")
        assert "retry-after" in response.headers["Access-Control-Expose-Headers"].lower()


async def test_a_preflight_allows_what_a_client_with_a_bearer_token_needs(friendly: ServerHandle) -> None:
    for path in ENDPOINTS:
        headers = {
            "Origin": FRIEND,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type",
        }
        response = await ask(friendly, "OPTIONS", path, headers=headers)
        done(response, 200)
        assert response.headers["Access-Control-Allow-Origin"] == FRIEND
        assert "POST" in response.headers["Access-Control-Allow-Methods"]
        allowed = response.headers["Access-Control-Allow-Headers"].lower()
        assert "authorization" in allowed
        assert "content-type" in allowed
        assert "Access-Control-Allow-Credentials" not in response.headers


async def test_an_allowed_origin_works_with_bearer_and_token(friendly: ServerHandle) -> None:
    token = friendly.tokens["1"]
    async with opened(friendly, "1", token, Origin=FRIEND) as chat:
        assert (await chat.send("hello", to="2"))["op_type"] == 40019
    headers = {"Origin": FRIEND, "Authorization": f"Bearer {token}"}
    done(await ask(friendly, "POST", "/user/logout", json={"user_name": "1"}, headers=headers), 41015)


async def test_the_other_origins_are_as_foreign_as_before(friendly: ServerHandle) -> None:
    for origin in (*foreign_to(friendly), "https://friend.example", "http://friend.example:8443", f"{FRIEND}0"):
        body = {"user_name": "1", "password": PASSWORD}
        response = await ask(friendly, "POST", "/user/login", json=body, headers={"Origin": origin})
        refused(response, 403, 41002, "foreign_origin")
        assert not cors(response)


async def test_cookies_are_never_used_from_an_allowed_origin(friendly: ServerHandle) -> None:
    headers = {"Origin": FRIEND, "Cookie": f"session={friendly.tokens['1']}"}
    change = {"user_name": "1", "old_password": PASSWORD, "new_password": "another1"}
    for path, body in (("/user/logout", {"user_name": "1"}), ("/user/set_password", change)):
        refused(await ask(friendly, "POST", path, json=body, headers=headers), 401, 41012, "not_logged_in")
    refused(await try_upgrade(friendly, headers, uid="1"), 401, 41012, "not_logged_in")
    assert await lives(friendly, friendly.tokens["1"])


async def test_cookies_are_never_set_for_an_allowed_origin(friendly: ServerHandle) -> None:
    body = {"user_name": "1", "password": PASSWORD}
    response = await ask(friendly, "POST", "/user/login", json=body, headers={"Origin": FRIEND})
    done(response, 41003)
    assert "Set-Cookie" not in response.headers


async def test_cookies_are_never_deleted_for_an_allowed_origin(friendly: ServerHandle) -> None:
    """CORS answers for Bearer tokens, never for cookies: the one of our own page belongs to another session."""
    headers = {"Origin": FRIEND, "Authorization": f"Bearer {friendly.tokens['1']}"}
    response = await ask(friendly, "POST", "/user/logout", json={"user_name": "1"}, headers=headers)
    done(response, 41015)
    assert "Set-Cookie" not in response.headers


# --- the order at the upgrade


async def test_the_upgrade_is_checked_in_the_order_of_the_protocol(tmp_path: Path) -> None:
    async with serving(tmp_path, SocketsPerUser=1) as server:
        await server.add_users("1", "2")
        async with server.chat("1"):
            query = {"uid": "2", "to_uid": "nobody", "token": "wrong"}
            headers = {"Origin": OTHER}
            response = await ask(server, "GET", "/chat/test", params=query, headers=headers)
            refused(response, 426, 40014, "no_upgrade")
            refused(await try_upgrade(server, headers, **query), 403, 40014, "foreign_origin")
            headers = {}
            refused(await try_upgrade(server, headers, **query), 401, 41012, "not_logged_in")
            query["token"] = server.tokens["1"]
            refused(await try_upgrade(server, headers, **query), 403, 40014, "not_yours", "uid")
            query["uid"] = "1"
            refused(await try_upgrade(server, headers, **query), 404, 41006, "no_such_user", "to_uid")
            query["to_uid"] = "2"
            refused(await try_upgrade(server, headers, **query), 429, 40014, "too_many")


async def test_a_handshake_that_is_none_of_rfc_6455_is_426_and_says_which_version(server: ServerHandle) -> None:
    for wrong in ({"Sec-WebSocket-Version": "12"}, {"Sec-WebSocket-Key": "short"}, {"Upgrade": "h2c"}):
        response = await try_upgrade(server, wrong, uid="1", token=server.tokens["1"])
        refused(response, 426, 40014, "no_upgrade")
        assert response.headers["Sec-WebSocket-Version"] == "13"
    for missing in set(UPGRADE) - {"Connection"}:
        headers = {name: value for name, value in UPGRADE.items() if name != missing}
        response = await ask(server, "GET", f"/chat/test?uid=1&token={server.tokens['1']}", headers=headers)
        refused(response, 426, 40014, "no_upgrade")


async def test_uid_is_the_user_who_is_logged_in_and_nobody_else(server: ServerHandle) -> None:
    headers = {"Authorization": f"Bearer {server.tokens['1']}"}
    for uid in ("2", "", "nobody", "1 ", "System", "\u0661"):
        refused(await try_upgrade(server, headers, uid=uid), 403, 40014, "not_yours", "uid")
    refused(await try_upgrade(server, headers), 403, 40014, "not_yours", "uid")


async def test_to_uid_is_a_user_or_left_out(server: ServerHandle) -> None:
    headers = {"Authorization": f"Bearer {server.tokens['1']}"}
    for to_uid in (
        "nobody",
        "System",
        "ALL",
        "x" * 1000,
        "\x80",
    ):
        refused(await try_upgrade(server, headers, uid="1", to_uid=to_uid), 404, 41006, "no_such_user", "to_uid")
    for to in ("", "2"):
        async with server.chat("1", to=to) as chat:
            assert (await chat.send("hello", to="2"))["op_type"] == 40019
    done(await post(server, "/user/logout", server.tokens["1"], user_name="1"), 41015)
