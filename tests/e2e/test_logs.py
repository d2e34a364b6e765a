"""Logs: one line per event, as text or JSON, without secrets."""

import asyncio
import json
import logging
import re
import signal
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import websockets

from chat_server.utils.logs import JsonFormatter, ReadableFormatter
from tests.e2e.http_helpers import check_refusal, open_socket, post, send_bytes, send_request, sql, try_login
from tests.harness import ServerHandle, SubprocessServer, serving, subprocess_server, wait_until

# Texts that must not appear in a log.
SECRETS = (
    "correct-horse-7f3a",
    "wrong-horse-9b1c",
    "new-horse-5d2e",
    "attack at dawn 4711",
    "half a frame 815",
    "in the url 6174",
)
RIGHT, WRONG, NEW, TEXT, FRAME, URL = SECRETS
READABLE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} (DEBUG|INFO|WARNING|ERROR|CRITICAL) \S.*")
# Libraries of the test clients, which share the process with the server.
CLIENTS = ("websockets", "httpx", "httpcore")


async def cause_all_events(server: ServerHandle, folder: Path) -> set[str]:
    """Cause normal events, client errors and server errors; return the used tokens."""
    for name in ("1", "2", "broken"):
        await post(server, "/user/register", user_name=name, password=RIGHT)
    tokens = {name: (await try_login(server, name, RIGHT)).json()["data"]["token"] for name in ("1", "2", "broken")}
    server.tokens.update(tokens)
    await _cause_normal_events(server)
    await _cause_client_errors(server)
    await _cause_server_errors(server, folder)
    return set(tokens.values())


async def _cause_normal_events(server: ServerHandle) -> None:
    check_refusal(await try_login(server, "1", WRONG), 401, 41010, "wrong_password")
    check_refusal(await try_login(server, "1", "x" + RIGHT * 5), 401, 41010, "wrong_password")
    change = {"user_name": "1", "old_password": WRONG, "new_password": NEW}
    check_refusal(await post(server, "/user/set_password", server.tokens["1"], **change), 401, 41010, "wrong_password")
    await post(server, "/user/set_password", server.tokens["1"], **(change | {"old_password": RIGHT}))
    async with open_socket(server, "1") as one, server.chat("2", to="1") as two:
        await one.send(f"m1\n{TEXT}", to="2")
        await two.receive()
        await two.send(f"m2\n{TEXT}")
        for op, content in (
            (2, "-10"),
            (3, ""),
            (7, "-10"),
            (6, TEXT),
            (5, "m1"),
            (4, TEXT),
            (2, TEXT),
            (5, f"m3\n{TEXT}"),
        ):
            await one.ask(op, content, to="2")
        for keys in ({"to": TEXT}, {"from": TEXT}, {"to": "1"}):
            await one.answer(1, f"{TEXT}\n{TEXT}", **keys)


async def _cause_client_errors(server: ServerHandle) -> None:
    async with open_socket(server, "1") as one:
        for frame in (
            f'{{"content": "{FRAME}"',
            f'["{FRAME}"]',
            f'{{"op_type": "{FRAME}"}}',
            f'"\\ud800{FRAME}"',
            "null",
        ):
            await one.send_text(frame)
            assert (await one.receive())["op_type"] == 40000
    async with open_socket(server, "1") as one:
        await one.connection.send(FRAME.encode())
        assert await one.wait_closed() == 1003
    async with open_socket(server, "1") as one:
        assert (await one.send(f"{FRAME} " * 1_200, to="2"))["reason"] == "too_long"
    headers = {"Content-Type": "application/json"}
    for body in (
        f'{{"password": "{RIGHT}"',
        f'["{RIGHT}"]',
        f'{{"user_name": ["{RIGHT}"], "password": "{RIGHT}"}}',
        RIGHT,
    ):
        await send_request(server, "POST", "/user/login", content=body, headers=headers)
        await send_request(server, "POST", "/user/login", content=body, headers=headers | {"Content-Encoding": "gzip"})
    token = server.tokens["1"].encode()
    for request in (
        b"%s\r\n\r\n" % RIGHT.encode(),
        b"GET /chat/test?token=%s\xff HTTP/1.1\r\nHost: x\r\n\r\n" % token,
        b"POST /user/logout HTTP/1.1\r\nAuthorization: Bearer %s\r\nno header %s\r\n\r\n" % (token, token),
        b"POST /user/logout HTTP/1.1\r\nAuthorization: Bearer %s\xff\r\nContent-Length: 0\r\n\r\n" % token,
        b"GET /ping HTTP/1.1\r\nHost: x\r\nX-Long: %s\r\n\r\n" % (token * 500),
        b"POST /user/login HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n%s\r\n" % RIGHT.encode(),
    ):
        await send_bytes(server, request)
    for query in (f"uid=1&token={URL.replace(' ', '-')}", f"uid=2&token={server.tokens['1']}"):
        with pytest.raises(websockets.InvalidStatus):
            await websockets.connect(f"ws://{server.host}:{server.port}/chat/test?{query}", proxy=None)


async def _cause_server_errors(server: ServerHandle, folder: Path) -> None:
    # An error in an endpoint and an error in an op: the database contains invalid data.
    sql(folder, "UPDATE users SET password = ? WHERE name = 'broken'", f"no hash of {RIGHT}")
    check_refusal(await try_login(server, "broken", RIGHT), 500, 44444, "internal")
    change = {"user_name": "broken", "old_password": RIGHT, "new_password": NEW}
    path = f"/user/set_password?token={server.tokens['broken']}"
    check_refusal(await post(server, path, server.tokens["broken"], **change), 500, 44444, "internal")
    async with server.chat("broken", to="2") as broken:
        await broken.send(TEXT)
        sql(folder, "UPDATE strangers SET state = ?", TEXT.encode())
        refusal = await broken.send(f"m4\n{TEXT}")
        assert (refusal["op_type"], refusal["reason"]) == (40008, "internal")
        # An unresponsive database.
        with closing(sqlite3.connect(folder / "chat.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            refused, refusal = await asyncio.gather(
                post(server, path, server.tokens["broken"], **change), broken.send(f"m5\n{TEXT}", to="1")
            )
            check_refusal(refused, 503, 44444, "store_away")
            assert (refusal["op_type"], refusal["reason"]) == (40008, "store_away")

    async def again() -> bool:
        return (await try_login(server, "1", NEW)).status_code == 200

    await wait_until(again)


def check_no_secret(lines: Iterable[str], tokens: set[str]) -> None:
    """Fail if a line contains a secret, plain or escaped."""
    for line in lines:
        for secret in (*SECRETS, *tokens):
            for written in {secret, secret.replace(" ", "-"), secret.replace(" ", "%20"), secret.encode().hex()}:
                assert written not in line


async def stop(server: SubprocessServer) -> list[str]:
    """Stop the server; return its log lines."""
    server.send_signal(signal.SIGTERM)
    assert await server.wait() == 0
    return server.log.read_text("utf-8").splitlines()


async def test_debug_lines_are_readable_and_contain_no_secret(tmp_path: Path) -> None:
    async with subprocess_server(tmp_path / "data", AppMode="debug", StoreTimeout=3) as server:
        tokens = await cause_all_events(server, tmp_path / "data")
        lines = await stop(server)
    check_no_secret(lines, tokens)
    for line in lines:
        assert READABLE.fullmatch(line)
    # Each expected event was logged once.
    assert len([line for line in lines if " INFO user registered " in line]) == 3
    assert len([line for line in lines if " INFO password changed " in line]) == 1
    assert len([line for line in lines if " INFO socket opened " in line]) == 6
    assert len([line for line in lines if " INFO socket closed " in line]) == 6
    assert len([line for line in lines if " ERROR request failed " in line and "ValueError" in line]) >= 1
    assert [line for line in lines if " WARNING store unavailable " in line]
    assert 'user="1" address="127.0.0.1"' in next(line for line in lines if " INFO user logged in " in line)


async def test_release_lines_are_json_and_contain_no_secret(tmp_path: Path) -> None:
    async with subprocess_server(tmp_path / "data", AppMode="release", StoreTimeout=3) as server:
        tokens = await cause_all_events(server, tmp_path / "data")
        lines = await stop(server)
    check_no_secret(lines, tokens)
    events: list[dict[str, Any]] = [json.loads(line) for line in lines]
    for event in events:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event["time"])
        assert event["level"] in ("INFO", "WARNING", "ERROR")
        assert event["event"]
    [changed] = [event for event in events if event["event"] == "password changed"]
    assert changed["user"] == "1"
    failed = [event for event in events if event["event"] == "request failed"]
    assert {event["exception"] for event in failed} >= {"ValueError"}
    assert all(isinstance(event["at"], list) and event["at"] for event in failed)


async def test_debug_level_lines_contain_no_secret(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """This includes the lines of aiohttp and asyncio."""
    caplog.set_level(logging.DEBUG)
    asyncio.get_running_loop().set_debug(True)
    async with serving(tmp_path, StoreTimeout=3) as server:
        tokens = await cause_all_events(server, tmp_path)
    records = [record for record in caplog.records if not record.name.startswith(CLIENTS)]
    assert {record.name.partition(".")[0] for record in records} >= {"chat_server", "asyncio"}
    assert logging.DEBUG in {record.levelno for record in records}
    for formatter in (ReadableFormatter(), JsonFormatter()):
        lines = [formatter.format(record) for record in records]
        check_no_secret(lines, tokens)
        assert all(len(line.splitlines()) == 1 for line in lines)


# --- the formats


def record(message: str = "an event", error: BaseException | None = None, **extra: object) -> logging.LogRecord:
    exc_info = (type(error), error, error.__traceback__) if error else None
    log_record = logging.LogRecord("chat_server.test", logging.INFO, __file__, 1, message, (), exc_info)
    vars(log_record).update(extra)
    return log_record


@pytest.mark.parametrize("formatter", [ReadableFormatter(), JsonFormatter()])
def test_every_log_record_is_one_line(formatter: logging.Formatter) -> None:
    for text in ("a\nb", "a\r\nb", "a\x0b\x0c\x1c\x1db"):
        for log_record in (record(text), record(value=text), record(value=[text, {text: text}])):
            assert not re.search("[\r\n\x0b\x0c\x1c\x1d]", formatter.format(log_record))


def test_every_json_log_line_is_valid_json() -> None:
    for value in ("日本", '"\\', None, 1, 1.5, {"a": [1]}, Path("/x"), b"\xff", object()):
        event = json.loads(JsonFormatter().format(record(value=value)))
        assert (event["event"], event["level"]) == ("an event", "INFO")
        assert "value" in event


@pytest.mark.parametrize("formatter", [ReadableFormatter(), JsonFormatter()])
def test_an_error_is_logged_by_type_and_place_without_its_text(formatter: logging.Formatter) -> None:
    def fail() -> None:
        try:
            raise KeyError(TEXT)
        except KeyError as first:
            raise ValueError(f"{first} {TEXT}") from first

    try:
        fail()
    except ValueError as error:
        line = formatter.format(record(error=error))
    assert TEXT not in line
    assert "ValueError" in line
    assert "test_logs.py" in line
    assert "fail" in line
