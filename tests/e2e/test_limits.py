"""The limits on password guesses, registrations, the password queue and sockets (protocol section 1)."""

import asyncio
import json
import logging
import os
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets

from tests.e2e.http_helpers import (
    check_refusal,
    check_success,
    open_socket,
    post,
    send_request,
    sql,
    try_login,
    try_upgrade,
)
from tests.harness import PASSWORD, ManualClock, ServerHandle, serving, wait_until

LOCAL = "127.0.0.1"
WRONG = "wrong password"


async def guess(server: ServerHandle, name: str = "1", address: str = "192.0.2.1") -> int:
    """Log in with a wrong password; return 401 if the server checked it, 429 if it refused."""
    response = await try_login(server, name, WRONG, address)
    if response.status_code == 429:
        check_refusal(response, 429, 41002, "too_many")
    else:
        check_refusal(response, 401, 41010, "wrong_password")
    return response.status_code


async def register(server: ServerHandle, name: str, address: str = "192.0.2.1") -> httpx.Response:
    headers = {"X-Forwarded-For": address}
    return await send_request(
        server, "POST", "/user/register", json={"user_name": name, "password": PASSWORD}, headers=headers
    )


# --- password guesses


async def test_after_ten_failures_even_the_right_password_is_refused(server: ServerHandle) -> None:
    assert [await guess(server) for _ in range(11)] == [401] * 10 + [429]
    response = await try_login(server, "1")
    check_refusal(response, 429, 41002, "too_many")
    assert 0 < int(response.headers["Retry-After"]) <= 300
    check_success(await try_login(server, "2"), 41003)


async def test_failures_are_counted_per_name_and_address(tmp_path: Path) -> None:
    async with serving(tmp_path, users=("1", "2"), LoginFailures=2, TrustedProxies=LOCAL) as server:
        assert [await guess(server) for _ in range(3)] == [401, 401, 429]
        assert await guess(server, "2") == 401
        assert await guess(server, address="192.0.2.2") == 401
        check_success(await try_login(server, "1", PASSWORD, "192.0.2.2"), 41003)


async def test_failures_of_an_unknown_name_are_counted(tmp_path: Path) -> None:
    async with serving(tmp_path, LoginFailures=2) as server:
        assert [await guess(server, "unknown") for _ in range(3)] == [401, 401, 429]


async def test_all_spellings_of_a_name_share_one_count(tmp_path: Path) -> None:
    async with serving(tmp_path, LoginFailures=2) as server:
        assert [await guess(server, name) for name in ("\u00e9", "e\u0301", "\u00e9")] == [401, 401, 429]


async def test_a_name_has_a_limit_for_all_addresses_together(tmp_path: Path) -> None:
    """It is ten times the limit per name and address."""
    async with serving(tmp_path, users=("1", "2"), LoginFailures=2, TrustedProxies=LOCAL) as server:
        for address in range(10):
            assert [await guess(server, "1", f"192.0.2.{address}") for _ in range(2)] == [401, 401]
        assert await guess(server, "1", "198.51.100.1") == 429
        check_refusal(await try_login(server, "1", PASSWORD, "198.51.100.1"), 429, 41002, "too_many")
        assert await guess(server, "2", "198.51.100.1") == 401


async def test_an_address_has_a_limit_for_all_names_together(tmp_path: Path) -> None:
    limits: dict[str, Any] = {"LoginFailures": 2, "LoginFailuresPerAddress": 20}
    async with serving(tmp_path, users=("1",), TrustedProxies=LOCAL, **limits) as server:
        for name in range(10):
            assert [await guess(server, f"user{name}") for _ in range(2)] == [401, 401]
        assert await guess(server, "another") == 429
        check_refusal(await try_login(server, "1", PASSWORD, "192.0.2.1"), 429, 41002, "too_many")
        check_success(await try_login(server, "1", PASSWORD, "192.0.2.2"), 41003)


async def test_ipv6_addresses_are_counted_per_64_prefix(tmp_path: Path) -> None:
    async with serving(tmp_path, LoginFailures=2, TrustedProxies=LOCAL) as server:
        addresses = ("2001:db8::1", "2001:db8:0:0:ffff::", "2001:0DB8::2")
        assert [await guess(server, address=address) for address in addresses] == [401, 401, 429]
        assert await guess(server, address="2001:db8:0:1::1") == 401


async def test_an_ipv4_mapped_address_counts_as_ipv4(tmp_path: Path) -> None:
    async with serving(tmp_path, LoginFailures=2, TrustedProxies=LOCAL) as server:
        addresses = ("192.0.2.1", "::ffff:192.0.2.1", "::ffff:c000:201")
        assert [await guess(server, address=address) for address in addresses] == [401, 401, 429]
        assert await guess(server, address="::ffff:192.0.2.2") == 401


async def test_a_client_cannot_choose_the_counted_address(tmp_path: Path) -> None:
    """The last address in X-Forwarded-For that is not a trusted proxy counts. Earlier entries are unverified."""
    async with serving(tmp_path, LoginFailures=2, TrustedProxies="127.0.0.1 10.0.0.0/8") as server:
        forwarded = ("192.0.2.1", "198.51.100.7, 192.0.2.1", "198.51.100.8,192.0.2.1 , 10.1.2.3")
        assert [await guess(server, address=value) for value in forwarded] == [401, 401, 429]
        assert await guess(server, address="192.0.2.1, 198.51.100.9") == 401


async def test_a_proxy_may_add_a_second_forwarded_header(tmp_path: Path) -> None:
    """Several X-Forwarded-For headers are one list (RFC 9110 section 5.3). HAProxy, for example, adds a header."""
    async with serving(tmp_path, LoginFailures=2, TrustedProxies=LOCAL) as server:
        answers = []
        for number in range(3):
            forwarded = [("X-Forwarded-For", f"198.51.100.{number}"), ("X-Forwarded-For", "192.0.2.1")]
            body = {"user_name": "1", "password": WRONG}
            answers.append(await send_request(server, "POST", "/user/login", json=body, headers=forwarded))
        assert [answer.status_code for answer in answers] == [401, 401, 429]


async def test_headers_of_an_untrusted_proxy_are_ignored(tmp_path: Path) -> None:
    async with serving(tmp_path, LoginFailures=2, TrustedProxies="192.0.2.99") as server:
        addresses = ("192.0.2.1", "192.0.2.2", "192.0.2.3")
        assert [await guess(server, address=address) for address in addresses] == [401, 401, 429]


async def test_an_invalid_forwarded_address_counts_as_the_proxy(tmp_path: Path) -> None:
    """A client cannot choose a new address for each guess."""
    async with serving(tmp_path, LoginFailures=2, TrustedProxies=f"{LOCAL} 10.0.0.0/8") as server:
        for number, forwarded in enumerate(
            ("unknown", "_hidden", "", ",", "1.2.3", "[", "::1::", "192.0.2.1, x", "x" * 8000)
        ):
            statuses = [
                await guess(server, str(number), address) for address in (forwarded, f"{forwarded},x", "unknown")
            ]
            assert statuses == [401, 401, 429], forwarded
        last = [
            "10.0.0.1",
            "10.0.0.2",
            "10.0.0.1",
        ]  # the last entry that the server checks in a list of too many proxies
        chains = [", ".join([f"192.0.2.{number}", *last[number:], *(["10.0.0.9"] * 16)]) for number in range(3)]
        assert [await guess(server, "chain", chain) for chain in chains] == [401, 401, 429]


async def test_a_trusted_proxy_may_be_an_ipv4_mapped_address(tmp_path: Path) -> None:
    async with serving(tmp_path, LoginFailures=1, TrustedProxies=f"{LOCAL} 10.0.0.0/8") as server:
        chains = [f"192.0.2.{number}, ::ffff:10.0.0.1" for number in range(3)]
        assert [await guess(server, address=chain) for chain in chains] == [401] * 3


async def test_the_log_names_each_untrusted_proxy_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(tmp_path, TrustedProxies="192.0.2.99") as server:
        await send_request(server, "GET", "/ping")
        assert not [record for record in caplog.records if record.message == "proxy not trusted"]
        for _ in range(3):
            await try_login(server, "1", WRONG, "192.0.2.1")
            await send_request(server, "GET", "/ping", headers={"Origin": "http://x", "X-Forwarded-Proto": "https"})
    [warning] = [record for record in caplog.records if record.message == "proxy not trusted"]
    assert (warning.levelname, vars(warning)["address"]) == ("WARNING", LOCAL)


async def test_the_log_names_the_user_of_a_wrong_password(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An invalid user name is not logged: it may be long, hostile or a password in the wrong field."""
    caplog.set_level(logging.INFO)
    async with serving(tmp_path, users=("1",)) as server:
        for name in ("1", "unknown", "e\u0301", "a\u2028b", "\u202e1", "my secret!", "x" * 10000, "a\nb", "\x9b1m"):
            check_refusal(await try_login(server, name, WRONG), 401, 41010, "wrong_password")
    users = [vars(record)["user"] for record in caplog.records if record.message == "password rejected"]
    assert users == ["1", "unknown", "\u00e9", *[""] * 6]


async def test_a_success_resets_the_count_of_name_and_address(tmp_path: Path) -> None:
    async with serving(tmp_path, users=("1",), LoginFailures=3) as server:
        for _ in range(3):
            assert [await guess(server), await guess(server)] == [401, 401]
            check_success(await try_login(server, "1"), 41003)


async def test_a_success_does_not_reset_the_count_of_the_name(tmp_path: Path) -> None:
    async with serving(tmp_path, users=("1", "2"), LoginFailures=1, TrustedProxies=LOCAL) as server:
        for number in range(10):
            check_success(await try_login(server, "1", PASSWORD, f"198.51.100.{number}"), 41003)
            assert await guess(server, "1", f"192.0.2.{number}") == 401
        assert await guess(server, "1", "192.0.2.10") == 429


async def test_a_success_does_not_reset_the_count_of_the_address(tmp_path: Path) -> None:
    async with serving(tmp_path, users=("2",), LoginFailuresPerAddress=10, TrustedProxies=LOCAL) as server:
        for number in range(10):
            check_success(await try_login(server, "2", PASSWORD, "192.0.2.1"), 41003)
            assert await guess(server, f"user{number}", "192.0.2.1") == 401
        check_refusal(await try_login(server, "2", PASSWORD, "192.0.2.1"), 429, 41002, "too_many")


async def test_guesses_from_other_addresses_do_not_lock_a_user_out(tmp_path: Path) -> None:
    """The limit per name does not apply to an address from which the user logged in, even after a restart."""
    home, clock = "203.0.113.1", ManualClock()
    async with serving(tmp_path, clock, users=("1", "2"), LoginFailures=1, TrustedProxies=LOCAL) as server:
        check_success(await try_login(server, "1", PASSWORD, home), 41003)
    async with serving(tmp_path, clock, LoginFailures=1, TrustedProxies=LOCAL) as server:
        for _ in range(3):
            clock.shift += 200 * 86400
            for number in range(10):
                assert await guess(server, "1", f"192.0.2.{number}") == 401
            assert await guess(server, "1", "192.0.2.99") == 429
            check_success(await try_login(server, "1", PASSWORD, home), 41003)
            check_refusal(await try_login(server, "1", PASSWORD, "203.0.113.2"), 429, 41002, "too_many")


async def test_guesses_from_a_known_address_are_limited(tmp_path: Path) -> None:
    async with serving(tmp_path, users=("1",), LoginFailures=2, TrustedProxies=LOCAL) as server:
        check_success(await try_login(server, "1", PASSWORD, "192.0.2.1"), 41003)
        assert [await guess(server) for _ in range(3)] == [401, 401, 429]


async def test_an_address_is_known_only_for_the_user_who_logged_in(tmp_path: Path) -> None:
    async with serving(tmp_path, users=("1", "2"), LoginFailures=1, TrustedProxies=LOCAL) as server:
        check_success(await try_login(server, "2", PASSWORD, "203.0.113.1"), 41003)
        for number in range(10):
            assert await guess(server, "1", f"192.0.2.{number}") == 401
        check_refusal(await try_login(server, "1", PASSWORD, "203.0.113.1"), 429, 41002, "too_many")


async def test_successful_logins_are_not_counted(tmp_path: Path) -> None:
    async with serving(tmp_path, users=("1",), LoginFailures=1) as server:
        for _ in range(15):
            check_success(await try_login(server, "1"), 41003)


async def test_a_wrong_old_password_counts_against_its_session(tmp_path: Path) -> None:
    async with serving(tmp_path, users=("1",), LoginFailures=2) as server:
        change = {"user_name": "1", "old_password": WRONG, "new_password": "another1"}
        other = await server.login("1")
        for _ in range(2):
            response = await post(server, "/user/set_password", server.tokens["1"], **change)
            check_refusal(response, 401, 41010, "wrong_password")
        right = change | {"old_password": PASSWORD}
        check_refusal(await post(server, "/user/set_password", server.tokens["1"], **right), 429, 41004, "too_many")
        check_success(await try_login(server, "1"), 41003)
        check_success(await post(server, "/user/set_password", other, **right), 41005)


async def test_guesses_do_not_prevent_a_password_change(tmp_path: Path) -> None:
    async with serving(tmp_path, users=("1",), LoginFailures=1, LoginFailuresPerAddress=2) as server:
        assert [await guess(server), await guess(server, "2"), await guess(server, "3")] == [401, 401, 429]
        change = {"user_name": "1", "old_password": PASSWORD, "new_password": "another1"}
        check_success(await post(server, "/user/set_password", server.tokens["1"], **change), 41005)


async def test_a_flood_of_logins_does_not_delay_other_addresses(tmp_path: Path) -> None:
    """Addresses take turns: a login from another address waits for a few hashes, not for all hashes of the flood."""
    accounts, each = [f"flood{number}" for number in range(10)], 4
    async with (
        serving(tmp_path, PasswordCost=10, PasswordWait=600, TrustedProxies=LOCAL) as server,
        server.client() as client,
    ):
        await server.add_users("1", *accounts)
        finished = 0

        async def log_in(name: str, address: str) -> None:
            nonlocal finished
            body = {"user_name": name, "password": PASSWORD}
            check_success(await client.post("/user/login", json=body, headers={"X-Forwarded-For": address}), 41003)
            finished += 1

        async def flood(name: str) -> None:
            while True:
                await log_in(name, "192.0.2.1")

        async with asyncio.TaskGroup() as group:
            floods = [group.create_task(flood(name)) for name in accounts * each]
            await wait_until(lambda: finished > len(floods))
            for number in range(5):
                before = finished
                await log_in("1", f"198.51.100.{number}")
                assert finished - before < len(floods) / 2
            for task in floods:
                task.cancel()


async def test_parallel_guesses_do_not_exceed_the_limit(server: ServerHandle) -> None:
    """Guesses are counted before hashing."""
    body = {"user_name": "1", "password": WRONG}
    async with server.client(verify=False) as client:
        answers = await asyncio.gather(*(client.post("/user/login", json=body) for _ in range(30)))
    assert sorted(answer.status_code for answer in answers) == [401] * 10 + [429] * 20


async def test_guesses_are_allowed_again_after_the_window(tmp_path: Path) -> None:
    clock = ManualClock()
    async with serving(tmp_path, clock, LoginFailures=2, LoginWindow=5) as server:
        assert [await guess(server), await guess(server), await guess(server)] == [401, 401, 429]
        clock.shift += 200
        response = await try_login(server, "1", WRONG)
        check_refusal(response, 429, 41002, "too_many")
        assert int(response.headers["Retry-After"]) <= 100
        clock.shift += 100
        assert [await guess(server), await guess(server), await guess(server)] == [401, 401, 429]


async def test_a_clock_set_back_does_not_extend_a_lockout(tmp_path: Path) -> None:
    clock = ManualClock()
    clock.shift = 365 * 86400
    async with serving(tmp_path, clock, LoginFailures=2) as server:
        assert [await guess(server), await guess(server), await guess(server)] == [401, 401, 429]
        clock.shift = 0
        assert await guess(server) == 401


async def test_failure_counts_survive_a_restart(tmp_path: Path) -> None:
    async with serving(tmp_path, LoginFailures=2) as server:
        assert [await guess(server), await guess(server)] == [401, 401]
    async with serving(tmp_path, LoginFailures=2) as server:
        assert await guess(server) == 429


# --- registrations


async def test_registrations_per_address_and_hour_are_limited(tmp_path: Path) -> None:
    clock = ManualClock()
    async with serving(tmp_path, clock, RegistrationsPerHour=2, TrustedProxies=LOCAL) as server:
        check_success(await register(server, "1"), 41001)
        check_success(await register(server, "2"), 41001)
        response = await register(server, "3")
        check_refusal(response, 429, 41000, "too_many")
        assert 0 < int(response.headers["Retry-After"]) <= 3600
        check_success(await register(server, "3", "192.0.2.2"), 41001)
        clock.shift += 3601
        check_success(await register(server, "4"), 41001)


async def test_parallel_registrations_do_not_exceed_the_limit(tmp_path: Path) -> None:
    async with serving(tmp_path, RegistrationsPerHour=3) as server:
        answers = await asyncio.gather(*(register(server, f"user{number}") for number in range(10)))
    assert sorted(answer.status_code for answer in answers) == [200] * 3 + [429] * 7


# --- the password queue


async def parallel_logins(server: ServerHandle, count: int, password: str = PASSWORD) -> list[httpx.Response]:
    body = {"user_name": "1", "password": password}
    async with server.client(verify=False) as client:
        return await asyncio.gather(*(client.post("/user/login", json=body) for _ in range(count)))


def check_some_were_refused(answers: list[httpx.Response], done_status: int, failed: int) -> None:
    refused = [answer for answer in answers if answer.status_code != 200]
    assert 0 < len(refused) < len(answers)
    for answer in answers:
        if answer in refused:
            check_refusal(answer, 429, failed, "too_many")
        else:
            check_success(answer, done_status)


async def test_a_login_that_would_wait_too_long_is_429(tmp_path: Path) -> None:
    async with serving(tmp_path, users=("1",), PasswordCost=11, PasswordWait=0.001) as server:
        check_some_were_refused(await parallel_logins(server, 16), 41003, 41002)
        check_success(await try_login(server, "1"), 41003)  # the queue is empty again


async def test_the_first_logins_that_would_wait_too_long_are_429(tmp_path: Path) -> None:
    """A wait of more than `PasswordWait` is 429 even before the first hash was measured."""
    async with serving(tmp_path, PasswordCost=11, PasswordWait=0.001) as server:
        answers = await asyncio.gather(*(register(server, f"user{number}") for number in range(16)))
        check_some_were_refused(answers, 41001, 41000)


async def test_a_login_refused_for_the_queue_is_not_a_failure(tmp_path: Path) -> None:
    async with serving(tmp_path, users=("1",), PasswordCost=11, PasswordWait=0.001, LoginFailures=16) as server:
        answers = await parallel_logins(server, 16, WRONG)
        failures = [answer for answer in answers if answer.status_code == 401]
        assert 0 < len(failures) < 16
        for _ in range(16 - len(failures)):
            assert await guess(server) == 401
        assert await guess(server) == 429


async def test_a_disconnected_client_leaves_the_queue(tmp_path: Path) -> None:
    async with serving(tmp_path, users=("1",)):
        pass
    async with serving(tmp_path, PasswordCost=14, PasswordWait=1000, LoginFailures=1000) as server:
        body = json.dumps({"user_name": "unknown", "password": PASSWORD})
        request = (
            "POST /user/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}"
        ).encode()
        waiting = 128 * min(4, os.cpu_count() or 1)
        writers = []
        for _ in range(waiting):
            _, writer = await asyncio.open_connection(server.host, server.port)
            writer.write(request)
            writers.append(writer)
        # Logins are counted before they wait. Hashing all of them would exceed TIMEOUT.
        await wait_until(lambda: sql(tmp_path, "SELECT max(count) FROM rates") == [(waiting,)])
        for writer in writers:
            writer.close()
        check_success(await try_login(server, "1"), 41003)  # the hash of user 1 is still cheap to check


# --- sockets


async def test_sockets_per_user_are_limited(tmp_path: Path) -> None:
    async with serving(tmp_path, users=("1", "2"), SocketsPerUser=2) as server:
        token = server.tokens["1"]
        async with server.chat("1"), server.chat("2"):
            async with server.chat("1", token=await server.login("1")):
                for _ in range(3):
                    check_refusal(await try_upgrade(server, uid="1", token=token), 429, 40014, "too_many")
            await wait_until(partial(can_open, server, "1"))  # wait until the server knows that it was closed


async def test_sockets_per_address_are_limited(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, users=("1", "2", "3"), SocketsPerAddress=2, TrustedProxies=LOCAL) as server,
        open_socket(server, "1", X_Forwarded_For="2001:db8::1"),
    ):
        async with open_socket(server, "2", X_Forwarded_For="2001:db8::2"):
            for _ in range(3):
                response = await try_upgrade(
                    server, {"X-Forwarded-For": "2001:db8::3"}, uid="3", token=server.tokens["3"]
                )
                check_refusal(response, 429, 40014, "too_many")
            async with open_socket(server, "3", X_Forwarded_For="2001:db8:0:1::1"):
                pass
        await wait_until(partial(can_open, server, "3", X_Forwarded_For="2001:db8::3"))


async def test_a_refused_upgrade_does_not_count_as_a_socket(tmp_path: Path) -> None:
    async with serving(tmp_path, users=("1",), SocketsPerUser=1, SocketsPerAddress=1) as server:
        token = server.tokens["1"]
        check_refusal(await try_upgrade(server, uid="1", token="wrong"), 401, 41012, "not_logged_in")
        check_refusal(await try_upgrade(server, uid="2", token=token), 403, 40014, "not_yours", "uid")
        check_refusal(await try_upgrade(server, uid="1", to_uid="2", token=token), 404, 41006, "no_such_user", "to_uid")
        async with server.chat("1"):
            pass


async def can_open(server: ServerHandle, user: str, **headers: str) -> bool:
    """Return whether a socket opens. False means 429: too many sockets."""
    try:
        async with open_socket(server, user, **headers):
            return True
    except websockets.InvalidStatus as refusal:
        if refusal.response.status_code != 429:
            raise
        return False
