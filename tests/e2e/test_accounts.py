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

from tests.e2e.answers import UPGRADE, ask, done, lives, post, refused, speak, sql, try_login, try_upgrade
from tests.harness import PASSWORD, ManualClock, ServerHandle, serving, wait_until

DAY = 86400


@pytest.fixture
async def patient(tmp_path: Path) -> AsyncIterator[ServerHandle]:
    """A server whose heartbeats, which would notice an ended session too, do not come in time."""
    async with serving(tmp_path, HeartbeatSeconds=3600) as server:
        await server.add_users("1", "2")
        yield server


def cookie(response: httpx.Response, name: str = "chat_session") -> Morsel[str]:
    """The session's cookie that an answer sets, and no other."""
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
    refused(await register(server, ""), 400, 41000, "bad_name", "user_name")
    for name in ("a" * 64, "名" * 64, "𐍈" * 64, "é" * 64):
        done(await register(server, name), 41001)
        done(await try_login(server, name), 41003)
        refused(await register(server, name + "a"), 400, 41000, "bad_name", "user_name")


async def test_what_is_neither_letter_mark_nor_digit_is_refused(server: ServerHandle) -> None:
    for char in " \0\n\t/\\:,;#$%&+=?!*~^|<>()[]{}'\"`·—€😀\u200b\u200d\u202e\ufeff\ue000":
        refused(await register(server, f"a{char}b"), 400, 41000, "bad_name", "user_name")


async def test_a_name_has_a_letter_or_digit(server: ServerHandle) -> None:
    for name in ("_", "-.@", "\u0301", "_\u0301", "..."):
        refused(await register(server, name), 400, 41000, "bad_name", "user_name")


async def test_invisible_characters_in_a_name_are_refused(server: ServerHandle) -> None:
    """These are letters and marks, but displayed as nothing: the name would look like another one."""
    for char in "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180f\u3164\ufe00\ufe0f\uffa0\U000e0100\U000e01ef":
        for name in (char, f"a{char}", f"{char}1", f"Sys{char}tem"):
            refused(await register(server, name), 400, 41000, "bad_name", "user_name")


async def test_existing_users_keep_names_that_are_no_longer_available(server: ServerHandle, tmp_path: Path) -> None:
    for name in ("_-.@", "a\u034fb"):
        sql(tmp_path, "INSERT INTO users (name, password) SELECT ?, password FROM users WHERE name = '1'", name)
        server.tokens[name] = await server.login(name)
        async with server.chat(name, to="1") as chat, server.chat("1", to=name) as other:
            assert (await chat.send("hello"))["op_type"] == 40018
            assert (await other.receive())["from"] == name
            assert (await other.send("hello"))["op_type"] == 40018


async def test_input_longer_than_any_name_is_no_name(server: ServerHandle) -> None:
    """Normalising it would take quadratic time; cut to 64 characters it could be a name."""
    done(await register(server, "\u1f82" * 64), 41001)
    longest = "\u03b1\u0313\u0300\u0345" * 64  # 256 code points that NFC combines to 64
    assert unicodedata.normalize("NFC", longest) == "\u1f82" * 64
    done(await try_login(server, longest), 41003)
    for name in (longest + "a", "1" + "\u0301" * 8000, "\u0315\u0300" * 4000, "a" * 16000):
        refused(await register(server, name), 400, 41000, "bad_name", "user_name")
        refused(await try_login(server, name), 401, 41010, "wrong_password")
        refused(
            await post(server, "/user/logout", server.tokens["1"], user_name=name), 403, 41014, "not_yours", "user_name"
        )


async def test_system_and_all_are_refused_however_they_are_written(server: ServerHandle) -> None:
    """Compared after NFKC and case folding."""
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
        refused(await register(server, name), 400, 41000, "bad_name", "user_name")
    for name in ("System1", "Systems", "ALLE", "a.l.l", "Syst\u00e9m"):
        done(await register(server, name), 41001)


async def test_a_name_is_nfc_normalised_wherever_it_is_given(server: ServerHandle) -> None:
    composed, taken_apart = (unicodedata.normalize(form, "Ångström") for form in ("NFC", "NFD"))
    assert composed != taken_apart
    done(await register(server, taken_apart), 41001)
    refused(await register(server, composed), 409, 41007, "user_exists", "user_name")
    login = done(await try_login(server, taken_apart), 41003)
    assert login["user_name"] == composed
    assert done(await try_login(server, composed), 41003)["user_name"] == composed
    token = login["token"]
    async with (
        server.chat(taken_apart, to="1", token=token) as one,
        server.chat("1", to=taken_apart) as other,
    ):
        assert (await one.send("m\nhello", **{"from": taken_apart}))["to"] == composed
        assert (await other.receive())["from"] == composed
        assert (await other.send("n\nhello", to=taken_apart))["op_type"] == 40018
    done(await set_password(server, token, taken_apart, PASSWORD, "another1"), 41005)
    done(await post(server, "/user/logout", token, user_name=taken_apart), 41015)


async def test_the_length_of_a_name_is_that_of_its_normal_form(server: ServerHandle) -> None:
    done(await register(server, "e\u0301" * 64), 41001)
    refused(await register(server, "e\u0301" * 65), 400, 41000, "bad_name", "user_name")


async def test_names_are_case_sensitive(server: ServerHandle) -> None:
    names = ("Anna", "anna", "ANNA", "straße", "strasse", "e", "é")
    for name in names:
        done(await register(server, name, f"password of {name}"), 41001)
    for name in names:
        assert done(await try_login(server, name, f"password of {name}"), 41003)["user_name"] == name
    refused(await try_login(server, "aNNA", "password of Anna"), 401, 41010, "wrong_password")


async def test_a_user_that_exists_is_409_and_stays_as_it_is(server: ServerHandle) -> None:
    refused(await register(server, "1", "another1"), 409, 41007, "user_exists", "user_name")
    done(await try_login(server, "1"), 41003)


# --- passwords


@pytest.mark.parametrize("password", ["123456", "日本", "x" * 72, "日" * 24, " leading and trailing ", '"\\%41+&'])
async def test_a_password_of_6_to_72_bytes_is_taken_as_it_is(server: ServerHandle, password: str) -> None:
    done(await register(server, "3", password), 41001)
    done(await try_login(server, "3", password), 41003)
    for other in (password[:-1], password + "x", password.strip() + "!", password.swapcase() + "."):
        refused(await try_login(server, "3", other), 401, 41010, "wrong_password")


async def test_a_password_that_is_shorter_or_longer_or_has_a_nul_is_refused(server: ServerHandle) -> None:
    token = server.tokens["1"]
    for password in ("", "12345", "日", "x" * 73, "日" * 24 + "x", "x" * 5000, "123456\0", "\0" * 6):
        refused(await register(server, "3", password), 400, 41000, "bad_password", "password")
        refused(await set_password(server, token, "1", PASSWORD, password), 400, 41004, "bad_password", "new_password")
    assert await lives(server, token)
    done(await try_login(server, "1"), 41003)


async def test_the_shortest_password_is_configurable(tmp_path: Path) -> None:
    async with serving(tmp_path, MinPasswordLength=10) as server:
        refused(await register(server, "1", "x" * 9), 400, 41000, "bad_password", "password")
        done(await register(server, "1", "x" * 10), 41001)


async def test_passwords_are_compared_after_preparation(server: ServerHandle) -> None:
    """The profile OpaqueString of RFC 8265: the same password however a keyboard writes it."""
    done(await register(server, "3", "a\u030angstro\u0308m\u3000\u00a01"), 41001)
    for same in ("\u00e5ngstr\u00f6m  1", "\u00e5ngstro\u0308m\u2003 1"):
        done(await try_login(server, "3", same), 41003)
    for other in ("\u00c5ngstr\u00f6m  1", "\u00e5ngstr\u00f6m 1", "angstrom  1"):
        refused(await try_login(server, "3", other), 401, 41010, "wrong_password")
    token = await server.login("3", "\u00e5ngstr\u00f6m  1")
    done(await set_password(server, token, "3", "a\u030angstro\u0308m  1", "\u3000" * 6), 41005)
    done(await try_login(server, "3", " " * 6), 41003)


async def test_the_length_of_a_password_is_that_of_its_prepared_bytes(server: ServerHandle) -> None:
    done(await register(server, "3", "e\u0301" * 36), 41001)  # 108 bytes, 72 prepared
    refused(await register(server, "4", "e\u0301" * 37), 400, 41000, "bad_password", "password")
    refused(await register(server, "4", "\u3000" * 5), 400, 41000, "bad_password", "password")  # 15 bytes, 5 prepared
    refused(await register(server, "4", "\u0958" * 13), 400, 41000, "bad_password", "password")  # 39 bytes, 78 prepared


async def test_what_is_no_text_is_no_password(server: ServerHandle) -> None:
    for char in "\0\t\n\x7f\x85\ue000\ufdd0\U000fffff":
        refused(await register(server, "3", f"secret{char}"), 400, 41000, "bad_password", "password")
    for number, password in enumerate(("❤\ufe0f❤\ufe0f", "👩\u200d👧", "секрет", "비밀번호")):
        done(await register(server, f"user{number}", password), 41001)
        done(await try_login(server, f"user{number}", password), 41003)


async def test_hashes_of_unprepared_passwords_verify(server: ServerHandle, tmp_path: Path) -> None:
    """Early versions and the Go server hashed the bytes as they came."""
    for password in ("a\u030angstro\u0308m", "\u3000secret", "tab\tand\nline"):
        made = bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()
        sql(tmp_path, "UPDATE users SET password = ? WHERE name = '1'", made)
        done(await try_login(server, "1", password), 41003)
        refused(await try_login(server, "1", password + "x"), 401, 41010, "wrong_password")


async def test_a_password_is_never_cut(server: ServerHandle) -> None:
    done(await register(server, "3", "x" * 72), 41001)
    refused(await try_login(server, "3", "x" * 73), 401, 41010, "wrong_password")


async def test_a_password_with_a_nul_is_nobodys(server: ServerHandle) -> None:
    """Passwords: no NUL. To bcrypt this one is the right one: its key is the password and a NUL, over and over."""
    refused(await try_login(server, "1", f"{PASSWORD}\0{PASSWORD}"), 401, 41010, "wrong_password")


async def test_a_hash_made_by_the_go_server_verifies(server: ServerHandle, tmp_path: Path) -> None:
    made = bcrypt.hashpw(b"from go", bcrypt.gensalt(4)).replace(b"$2b$", b"$2a$", 1).decode()
    sql(tmp_path, "UPDATE users SET password = ? WHERE name = '1'", made)
    done(await try_login(server, "1", "from go"), 41003)
    refused(await try_login(server, "1"), 401, 41010, "wrong_password")


# --- login


async def test_a_wrong_name_and_a_wrong_password_get_the_same_answer(server: ServerHandle) -> None:
    tries = [
        ("1", "wrong password"),
        ("nobody", PASSWORD),
        ("", ""),
        ("System", PASSWORD),
        ("1", "x" * 100),
        ("1", "\0"),
    ]
    answers = [await try_login(server, name, password) for name, password in tries]
    for answer in answers:
        refused(answer, 401, 41010, "wrong_password")
        assert answer.content == answers[0].content
        assert "Set-Cookie" not in answer.headers


async def test_login_sets_a_cookie_that_no_script_reads(server: ServerHandle) -> None:
    response = await try_login(server, "1")
    data = done(response, 41003)
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
    async with serving(tmp_path, SessionDays=0.5) as server:
        await server.add_users("1")
        response = await try_login(server, "1")
        assert done(response, 41003)["expires_in"] == int(cookie(response)["max-age"]) == DAY // 2


@pytest.mark.parametrize(
    ("proxies", "proto", "secure"),
    [
        *(("127.0.0.1", proto, True) for proto in ("https", "HTTPS , http", "wss", "", "quic", "http2")),
        *(("127.0.0.1", proto, False) for proto in ("http", "Http , https", "ws")),
        ("", "https", False),
        ("192.0.2.1", "https", False),
    ],
)
async def test_the_cookie_is_secure_where_a_trusted_proxy_speaks_tls(
    tmp_path: Path, proxies: str, proto: str, secure: bool
) -> None:
    async with serving(tmp_path, TrustedProxies=proxies) as server:
        await server.add_users("1")
        body = {"user_name": "1", "password": PASSWORD}
        response = await ask(server, "POST", "/user/login", json=body, headers={"X-Forwarded-Proto": proto})
        assert bool(cookie(response, "__Host-chat_session" if secure else "chat_session")["secure"]) is secure


async def test_every_login_is_a_session_of_its_own(server: ServerHandle) -> None:
    tokens = {await server.login("1") for _ in range(5)}
    assert len(tokens) == 5
    done(await post(server, "/user/logout", tokens.pop(), user_name="1"), 41015)
    for token in tokens:
        assert await lives(server, token)


# --- whose session it is


async def test_a_session_is_presented_as_cookie_or_bearer(server: ServerHandle) -> None:
    async with server.client(verify=False) as browser:
        done(await browser.post("/user/login", json={"user_name": "1", "password": PASSWORD}), 41003)
        done(await browser.post("/user/logout", json={"user_name": "1"}), 41015)
        refused(await browser.post("/user/logout", json={"user_name": "1"}), 401, 41012, "not_logged_in")
    for scheme in ("Bearer", "bearer"):
        headers = {"Authorization": f"{scheme} {await server.login('1')}"}
        done(await ask(server, "POST", "/user/logout", json={"user_name": "1"}, headers=headers), 41015)


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
        response = await ask(server, "POST", "/user/logout", json={"user_name": "2"}, headers=headers)
        refused(response, 403, 41014, "not_yours", "user_name")
        response = await ask(server, "GET", "/chat/test?uid=2", headers=[*UPGRADE.items(), *headers])
        refused(response, 403, 40014, "not_yours", "uid")


async def test_of_one_cookie_four_values_are_tried(server: ServerHandle) -> None:
    values = [*(f"chat_session=wrong{number}" for number in range(4)), f"chat_session={server.tokens['1']}"]
    response = await ask(server, "POST", "/user/logout", json={"user_name": "1"}, headers={"Cookie": "; ".join(values)})
    refused(response, 401, 41012, "not_logged_in")


async def test_the_first_valid_session_of_the_cookies_counts(server: ServerHandle) -> None:
    await server.add_users("3")
    host, plain, old = (server.tokens[name] for name in "123")
    cookies = [f"session={old}", f"chat_session=wrong; chat_session={plain}", f"__Host-chat_session={host}"]
    for user in "123":
        response = await ask(
            server, "POST", "/user/logout", json={"user_name": user}, headers=[("Cookie", line) for line in cookies]
        )
        done(response, 41015)


async def test_a_token_in_the_url_is_for_sockets_only(server: ServerHandle) -> None:
    token = server.tokens["1"]
    response = await ask(server, "POST", f"/user/logout?token={token}", json={"user_name": "1"})
    refused(response, 401, 41012, "not_logged_in")
    refused(await try_upgrade(server, token=token, uid="2"), 403, 40014, "not_yours", "uid")


async def test_bearer_counts_before_token_and_token_before_the_cookie(server: ServerHandle) -> None:
    await server.add_users("3")
    one, two, three = (server.tokens[name] for name in "123")
    bearer, session = {"Authorization": f"Bearer {one}"}, {"Cookie": f"session={three}"}
    for headers, query, user in (
        (bearer | session, {"token": two}, "1"),
        (session, {"token": two}, "2"),
        (bearer | session, {}, "1"),
        (session, {}, "3"),
    ):
        for uid in "123":  # nobody is called "nobody": that is looked at only after whose session it is
            response = await try_upgrade(server, headers, uid=uid, to_uid="nobody", **query)
            if uid == user:
                refused(response, 404, 41006, "no_such_user", "to_uid")
            else:
                refused(response, 403, 40014, "not_yours", "uid")


async def test_a_wrong_one_that_counts_before_is_not_made_up_for(server: ServerHandle) -> None:
    token = server.tokens["1"]
    wrong = {"Authorization": "Bearer wrong", "Cookie": f"session={token}"}
    response = await ask(server, "POST", "/user/logout", json={"user_name": "1"}, headers=wrong)
    refused(response, 401, 41012, "not_logged_in")
    refused(await try_upgrade(server, wrong, uid="1", token=token), 401, 41012, "not_logged_in")
    response = await try_upgrade(server, {"Cookie": f"session={token}"}, uid="1", token="wrong")
    refused(response, 401, 41012, "not_logged_in")
    assert await lives(server, token)


async def test_what_is_no_token_is_401(server: ServerHandle) -> None:
    for token in ("x", "x" * 4000, server.tokens["1"][:-1], server.tokens["1"] + "x", server.tokens["1"].swapcase()):
        refused(await post(server, "/user/logout", token, user_name="1"), 401, 41012, "not_logged_in")


@pytest.mark.parametrize("header", [b"Authorization: Bearer \xff\xfe", b"Cookie: session=\xff\xfe"])
async def test_a_token_that_is_no_text_is_401(server: ServerHandle, header: bytes) -> None:
    """401 not logged in."""
    start = b"POST /user/logout HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n"
    refused(await speak(server, start + header + b"\r\n\r\n{}"), 401, 41012, "not_logged_in")


async def test_without_a_session_nothing_is_looked_at(server: ServerHandle) -> None:
    for path in ("/user/set_password", "/user/logout"):
        refused(await post(server, path), 401, 41012, "not_logged_in")


# --- how long a session lives


async def test_each_use_renews_a_session(tmp_path: Path) -> None:
    clock = ManualClock()
    async with serving(tmp_path, clock, SessionDays=1) as server:
        await server.add_users("1")
        unused = await server.login("1")
        for _ in range(3):
            clock.shift += 0.9 * DAY
            assert await lives(server, server.tokens["1"])
        assert not await lives(server, unused)
        clock.shift += 1.01 * DAY
        refused(await post(server, "/user/logout", server.tokens["1"], user_name="1"), 401, 41012, "not_logged_in")
        refused(await try_upgrade(server, uid="1", token=server.tokens["1"]), 401, 41012, "not_logged_in")


async def test_an_open_socket_is_use(tmp_path: Path) -> None:
    clock = ManualClock()
    async with serving(tmp_path, clock, SessionDays=1, HeartbeatSeconds=0.1) as server:
        await server.add_users("1")
        async with server.chat("1"):
            for _ in range(3):
                before = sql(tmp_path, "SELECT expires FROM sessions")
                clock.shift += 0.9 * DAY
                await wait_until(lambda before=before: sql(tmp_path, "SELECT expires FROM sessions") != before)
        assert await lives(server, server.tokens["1"])


async def test_a_session_that_expired_under_an_open_socket_closes_it(tmp_path: Path) -> None:
    clock = ManualClock()
    async with serving(tmp_path, clock, SessionDays=1, HeartbeatSeconds=0.1) as server:
        await server.add_users("1")
        async with server.chat("1") as chat:
            clock.shift += 1.01 * DAY
            assert await chat.wait_closed() == 4001


async def test_of_a_token_only_the_digest_is_stored_and_of_a_password_only_the_hash(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        await server.add_users("1", "2")
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


async def test_a_new_password_ends_every_other_session_and_closes_its_sockets(patient: ServerHandle) -> None:
    mine, other = patient.tokens["1"], await patient.login("1")
    async with (
        patient.chat("1", to="2") as goes_on,
        patient.chat("1", to="2", token=other) as first,
        patient.chat("1", to="2", token=other, sync=True) as second,
        patient.chat("2", to="1") as friend,
    ):
        done(await set_password(patient, mine, "1", PASSWORD, "another1"), 41005)
        assert await first.wait_closed() == 4001
        assert await second.wait_closed() == 4001
        assert (await goes_on.send("still here"))["op_type"] == 40018
        assert (await friend.receive())["op_type"] == 40011
    assert await lives(patient, mine)
    assert not await lives(patient, other)
    assert await lives(patient, patient.tokens["2"])
    refused(await try_upgrade(patient, uid="1", token=other), 401, 41012, "not_logged_in")
    refused(await try_login(patient, "1"), 401, 41010, "wrong_password")
    done(await try_login(patient, "1", "another1"), 41003)


async def test_a_password_that_is_refused_changes_nothing(server: ServerHandle) -> None:
    mine, other = server.tokens["1"], await server.login("1")
    async with server.chat("1", token=other) as chat:
        refused(await set_password(server, mine, "1", "wrong one", "another1"), 401, 41010, "wrong_password")
        refused(await set_password(server, mine, "2", PASSWORD, "another1"), 403, 41004, "not_yours", "user_name")
        refused(await set_password(server, mine, "nobody", PASSWORD, "another1"), 403, 41004, "not_yours", "user_name")
        refused(await set_password(server, mine, "1", PASSWORD, "short"), 400, 41004, "bad_password", "new_password")
        refused(await set_password(server, "wrong", "1", PASSWORD, "another1"), 401, 41012, "not_logged_in")
        await chat.expect_nothing()
    assert await lives(server, mine)
    assert await lives(server, other)
    for name in "12":
        done(await try_login(server, name), 41003)


async def test_the_cookie_of_the_session_that_changed_the_password_stays_valid(server: ServerHandle) -> None:
    async with server.client(verify=False) as browser:
        done(await browser.post("/user/login", json={"user_name": "1", "password": PASSWORD}), 41003)
        change = {"user_name": "1", "old_password": PASSWORD, "new_password": "another1"}
        done(await browser.post("/user/set_password", json=change), 41005)
        done(await browser.post("/user/logout", json={"user_name": "1"}), 41015)


# --- logout


async def test_logout_ends_that_session_and_closes_its_sockets_alone(patient: ServerHandle) -> None:
    mine, other = patient.tokens["1"], await patient.login("1")
    async with (
        patient.chat("1", to="2") as first,
        patient.chat("1", to="2", sync=True) as second,
        patient.chat("1", to="2", token=other) as stays,
        patient.chat("2", to="1") as friend,
    ):
        done(await post(patient, "/user/logout", mine, user_name="1"), 41015)
        assert await first.wait_closed() == 4001
        assert await second.wait_closed() == 4001
        assert (await stays.send("still here"))["op_type"] == 40018
        assert (await friend.receive())["op_type"] == 40011
    assert not await lives(patient, mine)
    assert await lives(patient, other)
    refused(await try_upgrade(patient, uid="1", token=mine), 401, 41012, "not_logged_in")


async def test_nobody_logs_out_another(server: ServerHandle) -> None:
    async with server.chat("2") as chat:
        response = await post(server, "/user/logout", server.tokens["1"], user_name="2")
        refused(response, 403, 41014, "not_yours", "user_name")
        await chat.expect_nothing()
    for name in "12":
        assert await lives(server, server.tokens[name])


async def test_logout_takes_the_cookie_back(server: ServerHandle) -> None:
    async with server.client(verify=False) as browser:
        await browser.post("/user/login", json={"user_name": "1", "password": PASSWORD})
        response = await browser.post("/user/logout", json={"user_name": "1"})
        deleted = SimpleCookie("; ".join(response.headers.get_list("Set-Cookie")))
        assert {name: one.value for name, one in deleted.items()} == {"chat_session": "", "session": ""}
        assert not browser.cookies


# --- the settings, and a restart


async def test_where_registration_is_closed_who_has_a_name_logs_in(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        await server.add_users("1")
    async with serving(tmp_path, Registration="closed") as server:
        for name in ("1", "2", "not a name"):
            refused(await register(server, name), 403, 41000, "registration_closed")
        done(await try_login(server, "1"), 41003)
        refused(await try_login(server, "2"), 401, 41010, "wrong_password")


async def test_users_and_sessions_outlive_a_restart(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        await server.add_users("1", "2")
        tokens = dict(server.tokens)
        ended = await server.login("1")
        done(await post(server, "/user/logout", ended, user_name="1"), 41015)
        done(await set_password(server, tokens["2"], "2", PASSWORD, "another1"), 41005)
    async with serving(tmp_path) as server:
        for name, token in tokens.items():
            assert await lives(server, token)
            async with server.chat(name, token=token):
                pass
        assert not await lives(server, ended)
        done(await try_login(server, "1"), 41003)
        done(await try_login(server, "2", "another1"), 41003)
        refused(await register(server, "1"), 409, 41007, "user_exists", "user_name")
