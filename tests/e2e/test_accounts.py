"""Users and their sessions: register, login, set_password, logout (protocol section 1)."""

import base64
import hashlib
import unicodedata
from collections.abc import AsyncIterator
from http.cookies import Morsel, SimpleCookie
from pathlib import Path

import bcrypt
import httpx
import pytest

from tests.e2e.http_helpers import (
    UPGRADE,
    check_refusal,
    check_success,
    is_valid_session,
    post,
    send_bytes,
    send_request,
    sql,
    try_login,
    try_upgrade,
)
from tests.harness import PASSWORD, ManualClock, ServerHandle, serving, wait_until

DAY = 86400


@pytest.fixture
async def quiet_server(tmp_path: Path) -> AsyncIterator[ServerHandle]:
    """A server without heartbeats during the test. A heartbeat would notice an ended session, too."""
    async with serving(tmp_path, users=("1", "2"), HeartbeatSeconds=3600) as server:
        yield server


def cookie(response: httpx.Response, name: str = "chat_session") -> Morsel[str]:
    """Return the session cookie, which must be the only cookie that the response sets."""
    [header] = response.headers.get_list("Set-Cookie")
    return SimpleCookie(header)[name]


async def register(server: ServerHandle, name: str, password: str = PASSWORD) -> httpx.Response:
    return await post(server, "/user/register", user_name=name, password=password)


async def set_password(server: ServerHandle, token: str, name: str, old: str, new: str) -> httpx.Response:
    return await post(server, "/user/set_password", token, user_name=name, old_password=old, new_password=new)


# --- names


async def test_names_are_letters_marks_and_digits_of_any_script(server: ServerHandle) -> None:
    names = ["Ünïcödé", "李小龍", "Ольга", "محمد", "हिन्दी", "ประเทศไทย", "日本語テスト", "한국어", "Ⅷ²٣", "𐍈𝔘", "_-.@1"]
    await server.add_users(*names)
    for name in names:
        async with server.chat(name, to="1") as chat:
            assert (await chat.send("hello"))["to"] == name


async def test_a_name_has_1_to_64_characters(server: ServerHandle) -> None:
    check_refusal(await register(server, ""), 400, 41000, "bad_name", "user_name")
    for name in ("a" * 64, "名" * 64, "𐍈" * 64, "é" * 64):
        check_success(await register(server, name), 41001)
        check_success(await try_login(server, name), 41003)
        check_refusal(await register(server, name + "a"), 400, 41000, "bad_name", "user_name")


async def test_other_characters_in_a_name_are_refused(server: ServerHandle) -> None:
    """Only letters, marks, digits and `_-.@` are allowed."""
    for char in " \0\n\t/\\:,;#$%&+=?!*~^|<>()[]{}'\"`·—€😀\u200b\u200d\u202e\ufeff\ue000":
        check_refusal(await register(server, f"a{char}b"), 400, 41000, "bad_name", "user_name")


async def test_a_name_needs_a_letter_or_digit(server: ServerHandle) -> None:
    for name in ("_", "-.@", "\u0301", "_\u0301", "..."):
        check_refusal(await register(server, name), 400, 41000, "bad_name", "user_name")


async def test_invisible_characters_in_a_name_are_refused(server: ServerHandle) -> None:
    """These letters and marks are displayed as nothing, so the name would look like another one."""
    for char in "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180f\u3164\ufe00\ufe0f\uffa0\U000e0100\U000e01ef":
        for name in (char, f"a{char}", f"{char}1", f"Sys{char}tem"):
            check_refusal(await register(server, name), 400, 41000, "bad_name", "user_name")


async def test_existing_users_keep_names_that_are_now_refused(server: ServerHandle, tmp_path: Path) -> None:
    for name in ("_-.@", "a\u034fb"):
        sql(tmp_path, "INSERT INTO users (name, password) SELECT ?, password FROM users WHERE name = '1'", name)
        server.tokens[name] = await server.login(name)
        async with server.chat(name, to="1") as chat, server.chat("1", to=name) as other:
            assert (await chat.send("hello"))["op_type"] == 40018
            assert (await other.receive())["from"] == name
            assert (await other.send("hello"))["op_type"] == 40018


async def test_overlong_input_is_never_a_name(server: ServerHandle) -> None:
    """Normalising it would take quadratic time. Cut to 64 characters, it could be a name."""
    check_success(await register(server, "\u1f82" * 64), 41001)
    longest = "\u03b1\u0313\u0300\u0345" * 64  # 256 code points that NFC combines to 64
    assert unicodedata.normalize("NFC", longest) == "\u1f82" * 64
    check_success(await try_login(server, longest), 41003)
    for name in (longest + "a", "1" + "\u0301" * 8000, "\u0315\u0300" * 4000, "a" * 16000):
        check_refusal(await register(server, name), 400, 41000, "bad_name", "user_name")
        check_refusal(await try_login(server, name), 401, 41010, "wrong_password")
        check_refusal(
            await post(server, "/user/logout", server.tokens["1"], user_name=name), 403, 41014, "not_yours", "user_name"
        )


async def test_all_spellings_of_system_and_all_are_refused(server: ServerHandle) -> None:
    """Names are compared after NFKC and case folding."""
    for name in (
        "System",
        "system",
        "SYSTEM",
        "ＳＹＳＴＥＭ",
        "ſystem",
        "𝐒𝐲𝐬𝐭𝐞𝐦",
        "ⓈⓎⓈⓉⒺⓂ",
        "ALL",
        "all",
        "aLL",
        "ａｌｌ",
        "𝔸𝕃𝕃",
    ):
        check_refusal(await register(server, name), 400, 41000, "bad_name", "user_name")
    for name in ("System1", "Systems", "ALLE", "a.l.l", "Syst\u00e9m"):
        check_success(await register(server, name), 41001)


async def test_every_given_user_name_is_nfc_normalised(server: ServerHandle) -> None:
    composed, taken_apart = (unicodedata.normalize(form, "Ångström") for form in ("NFC", "NFD"))
    assert composed != taken_apart
    check_success(await register(server, taken_apart), 41001)
    check_refusal(await register(server, composed), 409, 41007, "user_exists", "user_name")
    login = check_success(await try_login(server, taken_apart), 41003)
    assert login["user_name"] == composed
    assert check_success(await try_login(server, composed), 41003)["user_name"] == composed
    token = login["token"]
    async with (
        server.chat(taken_apart, to="1", token=token) as one,
        server.chat("1", to=taken_apart) as other,
    ):
        assert (await one.send("m\nhello", **{"from": taken_apart}))["to"] == composed
        assert (await other.receive())["from"] == composed
        assert (await other.send("n\nhello", to=taken_apart))["op_type"] == 40018
    check_success(await set_password(server, token, taken_apart, PASSWORD, "another1"), 41005)
    check_success(await post(server, "/user/logout", token, user_name=taken_apart), 41015)


async def test_the_length_limit_applies_to_the_normalised_name(server: ServerHandle) -> None:
    check_success(await register(server, "e\u0301" * 64), 41001)
    check_refusal(await register(server, "e\u0301" * 65), 400, 41000, "bad_name", "user_name")


async def test_names_are_case_sensitive(server: ServerHandle) -> None:
    names = ("Anna", "anna", "ANNA", "straße", "strasse", "e", "é")
    for name in names:
        check_success(await register(server, name, f"password of {name}"), 41001)
    for name in names:
        assert check_success(await try_login(server, name, f"password of {name}"), 41003)["user_name"] == name
    check_refusal(await try_login(server, "aNNA", "password of Anna"), 401, 41010, "wrong_password")


async def test_registering_an_existing_user_is_409_and_changes_nothing(server: ServerHandle) -> None:
    check_refusal(await register(server, "1", "another1"), 409, 41007, "user_exists", "user_name")
    check_success(await try_login(server, "1"), 41003)


# --- passwords


@pytest.mark.parametrize("password", ["123456", "日本", "x" * 72, "日" * 24, " leading and trailing ", '"\\%41+&'])
async def test_a_password_of_6_to_72_bytes_is_accepted_unchanged(server: ServerHandle, password: str) -> None:
    check_success(await register(server, "3", password), 41001)
    check_success(await try_login(server, "3", password), 41003)
    for other in (password[:-1], password + "x", password.strip() + "!", password.swapcase() + "."):
        check_refusal(await try_login(server, "3", other), 401, 41010, "wrong_password")


async def test_a_password_of_wrong_length_or_with_nul_is_refused(server: ServerHandle) -> None:
    token = server.tokens["1"]
    for password in ("", "12345", "日", "x" * 73, "日" * 24 + "x", "x" * 5000, "123456\0", "\0" * 6):
        check_refusal(await register(server, "3", password), 400, 41000, "bad_password", "password")
        check_refusal(
            await set_password(server, token, "1", PASSWORD, password), 400, 41004, "bad_password", "new_password"
        )
    assert await is_valid_session(server, token)
    check_success(await try_login(server, "1"), 41003)


async def test_the_minimum_password_length_is_configurable(tmp_path: Path) -> None:
    async with serving(tmp_path, MinPasswordLength=10) as server:
        check_refusal(await register(server, "1", "x" * 9), 400, 41000, "bad_password", "password")
        check_success(await register(server, "1", "x" * 10), 41001)


async def test_passwords_are_compared_after_preparation(server: ServerHandle) -> None:
    """The profile OpaqueString of RFC 8265 makes different keyboard encodings of a password equal."""
    check_success(await register(server, "3", "a\u030angstro\u0308m\u3000\u00a01"), 41001)
    for same in ("\u00e5ngstr\u00f6m  1", "\u00e5ngstro\u0308m\u2003 1"):
        check_success(await try_login(server, "3", same), 41003)
    for other in ("\u00c5ngstr\u00f6m  1", "\u00e5ngstr\u00f6m 1", "angstrom  1"):
        check_refusal(await try_login(server, "3", other), 401, 41010, "wrong_password")
    token = await server.login("3", "\u00e5ngstr\u00f6m  1")
    check_success(await set_password(server, token, "3", "a\u030angstro\u0308m  1", "\u3000" * 6), 41005)
    check_success(await try_login(server, "3", " " * 6), 41003)


async def test_the_length_limit_applies_to_the_prepared_password(server: ServerHandle) -> None:
    check_success(await register(server, "3", "e\u0301" * 36), 41001)  # 108 bytes, 72 prepared
    check_refusal(await register(server, "4", "e\u0301" * 37), 400, 41000, "bad_password", "password")
    check_refusal(
        await register(server, "4", "\u3000" * 5), 400, 41000, "bad_password", "password"
    )  # 15 bytes, 5 prepared
    check_refusal(
        await register(server, "4", "\u0958" * 13), 400, 41000, "bad_password", "password"
    )  # 39 bytes, 78 prepared


async def test_non_text_characters_in_a_password_are_refused(server: ServerHandle) -> None:
    """Control, private-use and unassigned characters are refused; joiners and variation selectors are not."""
    for char in "\0\t\n\x7f\x85\ue000\ufdd0\U000fffff":
        check_refusal(await register(server, "3", f"secret{char}"), 400, 41000, "bad_password", "password")
    for number, password in enumerate(("❤\ufe0f❤\ufe0f", "👩\u200d👧", "секрет", "비밀번호")):
        check_success(await register(server, f"user{number}", password), 41001)
        check_success(await try_login(server, f"user{number}", password), 41003)


async def test_hashes_of_unprepared_passwords_verify(server: ServerHandle, tmp_path: Path) -> None:
    """Early versions and the Go server hashed the bytes unchanged."""
    for password in ("a\u030angstro\u0308m", "\u3000secret", "tab\tand\nline"):
        made = bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()
        sql(tmp_path, "UPDATE users SET password = ? WHERE name = '1'", made)
        check_success(await try_login(server, "1", password), 41003)
        check_refusal(await try_login(server, "1", password + "x"), 401, 41010, "wrong_password")


async def test_a_password_is_never_truncated(server: ServerHandle) -> None:
    check_success(await register(server, "3", "x" * 72), 41001)
    check_refusal(await try_login(server, "3", "x" * 73), 401, 41010, "wrong_password")


async def test_a_password_with_a_nul_is_always_wrong(server: ServerHandle) -> None:
    """bcrypt alone would accept this one: its key is the password and a NUL, repeated."""
    check_refusal(await try_login(server, "1", f"{PASSWORD}\0{PASSWORD}"), 401, 41010, "wrong_password")


async def test_a_hash_made_by_the_go_server_verifies(server: ServerHandle, tmp_path: Path) -> None:
    made = bcrypt.hashpw(b"from go", bcrypt.gensalt(4)).replace(b"$2b$", b"$2a$", 1).decode()
    sql(tmp_path, "UPDATE users SET password = ? WHERE name = '1'", made)
    check_success(await try_login(server, "1", "from go"), 41003)
    check_refusal(await try_login(server, "1"), 401, 41010, "wrong_password")


# --- login


async def test_a_wrong_name_and_a_wrong_password_get_the_same_answer(server: ServerHandle) -> None:
    tries = [
        ("1", "wrong password"),
        ("unknown", PASSWORD),
        ("", ""),
        ("System", PASSWORD),
        ("1", "x" * 100),
        ("1", "\0"),
    ]
    answers = [await try_login(server, name, password) for name, password in tries]
    for answer in answers:
        check_refusal(answer, 401, 41010, "wrong_password")
        assert answer.content == answers[0].content
        assert "Set-Cookie" not in answer.headers


async def test_login_sets_an_http_only_cookie(server: ServerHandle) -> None:
    response = await try_login(server, "1")
    data = check_success(response, 41003)
    assert set(data) == {"user_name", "token", "expires_in"}
    session = cookie(response)
    assert session.value == data["token"]
    assert session["httponly"] is True
    assert session["samesite"] == "Lax"
    assert session["path"] == "/"
    assert session["secure"] == ""
    assert session["domain"] == ""
    assert int(session["max-age"]) == data["expires_in"] == 30 * DAY


async def test_expires_in_follows_the_settings(tmp_path: Path) -> None:
    async with serving(tmp_path, users=("1",), SessionDays=0.5) as server:
        response = await try_login(server, "1")
        assert check_success(response, 41003)["expires_in"] == int(cookie(response)["max-age"]) == DAY // 2


@pytest.mark.parametrize(
    ("proxies", "proto", "secure"),
    [
        *(("127.0.0.1", proto, True) for proto in ("https", "HTTPS , http", "wss", "", "quic", "http2")),
        *(("127.0.0.1", proto, False) for proto in ("http", "Http , https", "ws")),
        ("", "https", False),
        ("192.0.2.1", "https", False),
    ],
)
async def test_the_cookie_is_secure_if_a_trusted_proxy_uses_tls(
    tmp_path: Path, proxies: str, proto: str, secure: bool
) -> None:
    async with serving(tmp_path, users=("1",), TrustedProxies=proxies) as server:
        body = {"user_name": "1", "password": PASSWORD}
        response = await send_request(server, "POST", "/user/login", json=body, headers={"X-Forwarded-Proto": proto})
        assert bool(cookie(response, "__Host-chat_session" if secure else "chat_session")["secure"]) is secure


async def test_every_login_creates_a_new_session(server: ServerHandle) -> None:
    tokens = {await server.login("1") for _ in range(5)}
    assert len(tokens) == 5
    check_success(await post(server, "/user/logout", tokens.pop(), user_name="1"), 41015)
    for token in tokens:
        assert await is_valid_session(server, token)


# --- how a session is presented


async def test_a_session_is_presented_as_cookie_or_bearer(server: ServerHandle) -> None:
    async with server.client(verify=False) as browser:
        check_success(await browser.post("/user/login", json={"user_name": "1", "password": PASSWORD}), 41003)
        check_success(await browser.post("/user/logout", json={"user_name": "1"}), 41015)
        check_refusal(await browser.post("/user/logout", json={"user_name": "1"}), 401, 41012, "not_logged_in")
    for scheme in ("Bearer", "bearer"):
        headers = {"Authorization": f"{scheme} {await server.login('1')}"}
        check_success(
            await send_request(server, "POST", "/user/logout", json={"user_name": "1"}, headers=headers), 41015
        )


@pytest.mark.parametrize("name", ["__Host-chat_session", "chat_session", "session"])
async def test_a_cookie_is_found_among_others(server: ServerHandle, name: str) -> None:
    token = server.tokens["1"]
    for lines in (
        [f"{name}={token}"],
        [f'a=b; {name}="{token}"; c=d'],
        [f"a=b;{name} = {token} ;c"],
        ["a=b", f"{name}={token}", "c=d"],
        [f"x{name}=x; {name}x=x; {name}; {name}=; ={name}; a={name}=x", f"{name}={token}"],
        ["; " * 4000 + "a=b", f"{name}={token}"],
        *([f"{name}=wrong{number}" for number in range(count)] + [f"{name}={token}"] for count in (1, 3)),
        ["; ".join([*(f"{name}=wrong{number}" for number in range(3)), f"{name}={token}"])],
    ):
        headers = [("Cookie", line) for line in lines]
        response = await send_request(server, "POST", "/user/logout", json={"user_name": "2"}, headers=headers)
        check_refusal(response, 403, 41014, "not_yours", "user_name")
        response = await send_request(server, "GET", "/chat/test?uid=2", headers=[*UPGRADE.items(), *headers])
        check_refusal(response, 403, 40014, "not_yours", "uid")


async def test_four_values_of_a_cookie_are_tried(server: ServerHandle) -> None:
    values = [*(f"chat_session=wrong{number}" for number in range(4)), f"chat_session={server.tokens['1']}"]
    response = await send_request(
        server, "POST", "/user/logout", json={"user_name": "1"}, headers={"Cookie": "; ".join(values)}
    )
    check_refusal(response, 401, 41012, "not_logged_in")


async def test_the_first_cookie_with_a_valid_session_counts(server: ServerHandle) -> None:
    await server.add_users("3")
    host, plain, old = (server.tokens[name] for name in "123")
    cookies = [f"session={old}", f"chat_session=wrong; chat_session={plain}", f"__Host-chat_session={host}"]
    for user in "123":
        response = await send_request(
            server, "POST", "/user/logout", json={"user_name": user}, headers=[("Cookie", line) for line in cookies]
        )
        check_success(response, 41015)


async def test_a_token_in_the_url_is_for_sockets_only(server: ServerHandle) -> None:
    token = server.tokens["1"]
    response = await send_request(server, "POST", f"/user/logout?token={token}", json={"user_name": "1"})
    check_refusal(response, 401, 41012, "not_logged_in")
    check_refusal(await try_upgrade(server, token=token, uid="2"), 403, 40014, "not_yours", "uid")


async def test_bearer_precedes_token_and_token_precedes_cookie(server: ServerHandle) -> None:
    await server.add_users("3")
    one, two, three = (server.tokens[name] for name in "123")
    bearer, session = {"Authorization": f"Bearer {one}"}, {"Cookie": f"session={three}"}
    for headers, query, user in (
        (bearer | session, {"token": two}, "1"),
        (session, {"token": two}, "2"),
        (bearer | session, {}, "1"),
        (session, {}, "3"),
    ):
        for uid in "123":  # the session is checked before to_uid, so the user "unknown" need not exist
            response = await try_upgrade(server, headers, uid=uid, to_uid="unknown", **query)
            if uid == user:
                check_refusal(response, 404, 41006, "no_such_user", "to_uid")
            else:
                check_refusal(response, 403, 40014, "not_yours", "uid")


async def test_a_wrong_token_is_not_replaced_by_one_of_lower_rank(server: ServerHandle) -> None:
    token = server.tokens["1"]
    wrong = {"Authorization": "Bearer wrong", "Cookie": f"session={token}"}
    response = await send_request(server, "POST", "/user/logout", json={"user_name": "1"}, headers=wrong)
    check_refusal(response, 401, 41012, "not_logged_in")
    check_refusal(await try_upgrade(server, wrong, uid="1", token=token), 401, 41012, "not_logged_in")
    response = await try_upgrade(server, {"Cookie": f"session={token}"}, uid="1", token="wrong")
    check_refusal(response, 401, 41012, "not_logged_in")
    assert await is_valid_session(server, token)


async def test_an_invalid_token_is_401(server: ServerHandle) -> None:
    for token in ("x", "x" * 4000, server.tokens["1"][:-1], server.tokens["1"] + "x", server.tokens["1"].swapcase()):
        check_refusal(await post(server, "/user/logout", token, user_name="1"), 401, 41012, "not_logged_in")


@pytest.mark.parametrize("header", [b"Authorization: Bearer \xff\xfe", b"Cookie: session=\xff\xfe"])
async def test_a_token_that_is_not_text_is_401(server: ServerHandle, header: bytes) -> None:
    """The answer is 401 not logged in."""
    start = b"POST /user/logout HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n"
    check_refusal(await send_bytes(server, start + header + b"\r\n\r\n{}"), 401, 41012, "not_logged_in")


async def test_without_a_session_the_body_is_not_checked(server: ServerHandle) -> None:
    for path in ("/user/set_password", "/user/logout"):
        check_refusal(await post(server, path), 401, 41012, "not_logged_in")


# --- the lifetime of a session


async def test_each_use_renews_a_session(tmp_path: Path) -> None:
    clock = ManualClock()
    async with serving(tmp_path, clock, users=("1",), SessionDays=1) as server:
        unused = await server.login("1")
        for _ in range(3):
            clock.shift += 0.9 * DAY
            assert await is_valid_session(server, server.tokens["1"])
        assert not await is_valid_session(server, unused)
        clock.shift += 1.01 * DAY
        check_refusal(
            await post(server, "/user/logout", server.tokens["1"], user_name="1"), 401, 41012, "not_logged_in"
        )
        check_refusal(await try_upgrade(server, uid="1", token=server.tokens["1"]), 401, 41012, "not_logged_in")


async def test_an_open_socket_renews_its_session(tmp_path: Path) -> None:
    clock = ManualClock()
    async with serving(tmp_path, clock, users=("1",), SessionDays=1, HeartbeatSeconds=0.1) as server:
        async with server.chat("1"):
            for _ in range(3):
                before = sql(tmp_path, "SELECT expires FROM sessions")
                clock.shift += 0.9 * DAY
                await wait_until(lambda before=before: sql(tmp_path, "SELECT expires FROM sessions") != before)
        assert await is_valid_session(server, server.tokens["1"])


async def test_an_open_socket_closes_when_its_session_expires(tmp_path: Path) -> None:
    clock = ManualClock()
    async with (
        serving(tmp_path, clock, users=("1",), SessionDays=1, HeartbeatSeconds=0.1) as server,
        server.chat("1") as chat,
    ):
        clock.shift += 1.01 * DAY
        assert await chat.wait_closed() == 4001


async def test_only_token_digests_and_password_hashes_are_stored(tmp_path: Path) -> None:
    async with serving(tmp_path, users=("1", "2")) as server:
        token = server.tokens["1"]
        async with server.chat("1", to="2") as chat:
            await chat.send("hello")
        stored = sql(tmp_path, "SELECT digest FROM sessions WHERE user = '1'")
        assert stored == [(hashlib.sha256(token.encode()).digest(),)]
        secrets = (token.encode(), base64.urlsafe_b64decode(token + "="), PASSWORD.encode())
        while_running = [path.read_bytes() for path in tmp_path.iterdir()]
    for content in (*while_running, *(path.read_bytes() for path in tmp_path.iterdir())):
        for secret in secrets:
            assert secret not in content


# --- set_password


async def test_a_new_password_ends_all_other_sessions(quiet_server: ServerHandle) -> None:
    """Their sockets are closed."""
    mine, other = quiet_server.tokens["1"], await quiet_server.login("1")
    async with (
        quiet_server.chat("1", to="2") as goes_on,
        quiet_server.chat("1", to="2", token=other) as first,
        quiet_server.chat("1", to="2", token=other, sync=True) as second,
        quiet_server.chat("2", to="1") as friend,
    ):
        check_success(await set_password(quiet_server, mine, "1", PASSWORD, "another1"), 41005)
        assert await first.wait_closed() == 4001
        assert await second.wait_closed() == 4001
        assert (await goes_on.send("still here"))["op_type"] == 40018
        assert (await friend.receive())["op_type"] == 40011
    assert await is_valid_session(quiet_server, mine)
    assert not await is_valid_session(quiet_server, other)
    assert await is_valid_session(quiet_server, quiet_server.tokens["2"])
    check_refusal(await try_upgrade(quiet_server, uid="1", token=other), 401, 41012, "not_logged_in")
    check_refusal(await try_login(quiet_server, "1"), 401, 41010, "wrong_password")
    check_success(await try_login(quiet_server, "1", "another1"), 41003)


async def test_a_refused_new_password_changes_nothing(server: ServerHandle) -> None:
    mine, other = server.tokens["1"], await server.login("1")
    async with server.chat("1", token=other) as chat:
        check_refusal(await set_password(server, mine, "1", "wrong one", "another1"), 401, 41010, "wrong_password")
        check_refusal(await set_password(server, mine, "2", PASSWORD, "another1"), 403, 41004, "not_yours", "user_name")
        check_refusal(
            await set_password(server, mine, "unknown", PASSWORD, "another1"), 403, 41004, "not_yours", "user_name"
        )
        check_refusal(
            await set_password(server, mine, "1", PASSWORD, "short"), 400, 41004, "bad_password", "new_password"
        )
        check_refusal(await set_password(server, "wrong", "1", PASSWORD, "another1"), 401, 41012, "not_logged_in")
        await chat.expect_nothing()
    assert await is_valid_session(server, mine)
    assert await is_valid_session(server, other)
    for name in "12":
        check_success(await try_login(server, name), 41003)


async def test_the_cookie_that_changed_the_password_stays_valid(server: ServerHandle) -> None:
    async with server.client(verify=False) as browser:
        check_success(await browser.post("/user/login", json={"user_name": "1", "password": PASSWORD}), 41003)
        change = {"user_name": "1", "old_password": PASSWORD, "new_password": "another1"}
        check_success(await browser.post("/user/set_password", json=change), 41005)
        check_success(await browser.post("/user/logout", json={"user_name": "1"}), 41015)


# --- logout


async def test_logout_ends_only_its_session_and_its_sockets(quiet_server: ServerHandle) -> None:
    mine, other = quiet_server.tokens["1"], await quiet_server.login("1")
    async with (
        quiet_server.chat("1", to="2") as first,
        quiet_server.chat("1", to="2", sync=True) as second,
        quiet_server.chat("1", to="2", token=other) as stays,
        quiet_server.chat("2", to="1") as friend,
    ):
        check_success(await post(quiet_server, "/user/logout", mine, user_name="1"), 41015)
        assert await first.wait_closed() == 4001
        assert await second.wait_closed() == 4001
        assert (await stays.send("still here"))["op_type"] == 40018
        assert (await friend.receive())["op_type"] == 40011
    assert not await is_valid_session(quiet_server, mine)
    assert await is_valid_session(quiet_server, other)
    check_refusal(await try_upgrade(quiet_server, uid="1", token=mine), 401, 41012, "not_logged_in")


async def test_a_user_cannot_log_out_another_user(server: ServerHandle) -> None:
    async with server.chat("2") as chat:
        response = await post(server, "/user/logout", server.tokens["1"], user_name="2")
        check_refusal(response, 403, 41014, "not_yours", "user_name")
        await chat.expect_nothing()
    for name in "12":
        assert await is_valid_session(server, server.tokens[name])


async def test_logout_deletes_the_cookie(server: ServerHandle) -> None:
    async with server.client(verify=False) as browser:
        await browser.post("/user/login", json={"user_name": "1", "password": PASSWORD})
        response = await browser.post("/user/logout", json={"user_name": "1"})
        deleted = SimpleCookie("; ".join(response.headers.get_list("Set-Cookie")))
        assert {name: one.value for name, one in deleted.items()} == {"chat_session": "", "session": ""}
        assert not browser.cookies


# --- closed registration, and a restart


async def test_closed_registration_still_lets_users_log_in(tmp_path: Path) -> None:
    async with serving(tmp_path, users=("1",)):
        pass
    async with serving(tmp_path, Registration="closed") as server:
        for name in ("1", "2", "not a name"):
            check_refusal(await register(server, name), 403, 41000, "registration_closed")
        check_success(await try_login(server, "1"), 41003)
        check_refusal(await try_login(server, "2"), 401, 41010, "wrong_password")


async def test_users_and_sessions_survive_a_restart(tmp_path: Path) -> None:
    async with serving(tmp_path, users=("1", "2")) as server:
        tokens = dict(server.tokens)
        ended = await server.login("1")
        check_success(await post(server, "/user/logout", ended, user_name="1"), 41015)
        check_success(await set_password(server, tokens["2"], "2", PASSWORD, "another1"), 41005)
    async with serving(tmp_path) as server:
        for name, token in tokens.items():
            assert await is_valid_session(server, token)
            async with server.chat(name, token=token):
                pass
        assert not await is_valid_session(server, ended)
        check_success(await try_login(server, "1"), 41003)
        check_success(await try_login(server, "2", "another1"), 41003)
        check_refusal(await register(server, "1"), 409, 41007, "user_exists", "user_name")
