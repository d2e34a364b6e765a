"""Full, closed or broken standard streams, and signals, neither stop nor block a server."""

import asyncio
import fcntl
import json
import os
import re
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import httpx
import pytest

from tests import needs
from tests.e2e.commands import Deployment
from tests.e2e.http_helpers import try_login
from tests.harness import (
    CLEAN_ENVIRON,
    DEFAULTS,
    PASSWORD,
    ROOT,
    TIMEOUT,
    ServerHandle,
    SubprocessServer,
    serving,
    shell,
    subprocess_server,
    wait_until,
)
from tests.servers import free_port

# The maximum duration of a shutdown in seconds.
MAX_SHUTDOWN_SECONDS = 10


@asynccontextmanager
async def server_with_output_to(
    folder: Path, stream: int | None, *, prefix: tuple[str, ...] = (), **settings: object
) -> AsyncIterator[SubprocessServer]:
    """Run a server with stdout and stderr on `stream`. It is ready when its port answers."""
    values = {**DEFAULTS, "DataDir": folder, "HttpPort": free_port(), **settings}
    environ = {f"CHAT_SERVICE_{key.upper()}": str(value) for key, value in values.items()}
    command = (*prefix, sys.executable, str(ROOT / "run.py"))
    child = await asyncio.create_subprocess_exec(
        *command, stdout=stream, stderr=stream, env={**CLEAN_ENVIRON, **environ}
    )
    server = SubprocessServer("127.0.0.1", int(str(values["HttpPort"])), child, folder / "no.log")

    async def ready() -> bool:
        try:
            async with server.client() as client:
                return (await client.get("/ping")).status_code == 200
        except httpx.TransportError:
            assert child.returncode is None
            return False

    try:
        await wait_until(ready)
        yield server
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


async def check_chat(server: ServerHandle) -> None:
    """Fail unless two users can log in and chat."""
    await server.add_users("1", "2")
    async with server.chat("1", to="2") as one, server.chat("2", to="1") as two:
        assert (await one.send("m1\nhello"))["op_type"] == 40018
        assert (await two.receive())["id"] == "m1"


async def check_end(server: SubprocessServer) -> None:
    server.send_signal(signal.SIGTERM)
    async with asyncio.timeout(MAX_SHUTDOWN_SECONDS):
        assert await server.wait() == 0


@pytest.fixture
def full_pipe() -> Iterator[tuple[int, int]]:
    """Both ends of a full pipe without a reader."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(writing, False)
    os.write(writing, b"x" * 4096)
    os.set_blocking(writing, True)
    yield reading, writing
    os.close(writing)
    os.close(reading)


async def test_an_unread_log_blocks_nothing(tmp_path: Path, full_pipe: tuple[int, int]) -> None:
    """Neither the chat nor the shutdown blocks. The pipe is full for the lines `ready` and `ending`, too."""
    async with server_with_output_to(tmp_path / "data", full_pipe[1]) as server:
        await check_chat(server)
        await check_end(server)


async def test_a_log_that_is_read_again_is_complete(tmp_path: Path, full_pipe: tuple[int, int]) -> None:
    reading, writing = full_pipe
    async with server_with_output_to(tmp_path / "data", writing) as server:
        await check_chat(server)
        text = b""
        while b"socket opened" not in text:
            text += await asyncio.to_thread(os.read, reading, 4096)
        assert b"is ready on http://" in text
        assert text.count(b"registered") == 2
        await check_end(server)


async def test_a_log_without_a_reader_stops_nothing(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        async with server_with_output_to(tmp_path / "data", writing) as server:
            await check_chat(server)
            await check_end(server)
    finally:
        os.close(writing)


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
async def test_closed_standard_streams_stop_nothing(tmp_path: Path, closed: str) -> None:
    """Otherwise a socket could get the number of a standard stream, and libuv aborts when it closes that number."""
    prefix = shell(f'exec "$@" {closed}')
    async with server_with_output_to(tmp_path / "data", None, prefix=prefix) as server:
        await check_chat(server)
        await check_end(server)


async def test_sighup_is_ignored(tmp_path: Path) -> None:
    async with subprocess_server(tmp_path / "data") as server:
        server.send_signal(signal.SIGHUP)
        await wait_until(lambda: "signal ignored" in server.log.read_text())
        await check_chat(server)
        await check_end(server)


async def test_in_release_mode_every_line_is_json(tmp_path: Path) -> None:
    async with subprocess_server(tmp_path / "data", AppMode="release") as server:
        await check_end(server)
        assert json.loads(await server.next_output())["event"] == "server ending"
        assert await server.next_output() == ""


async def test_in_release_mode_a_failed_start_is_json(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    deployment = Deployment(tmp_path / "file", AppMode="release")
    code, out, err = await deployment.command()
    assert (code, out) == (1, "")
    line = json.loads(err)
    assert (line["level"], line["event"]) == ("CRITICAL", "server failed")
    assert "another DataDir" in line["why"]


async def test_repeated_errors_are_counted(tmp_path: Path) -> None:
    """The log has one line at once and one line with the count."""
    async with serving(tmp_path / "data", users=("1",)):
        pass
    async with subprocess_server(tmp_path / "data", StoreTimeout=0.2, LoginFailures=1000) as server:
        with closing(sqlite3.connect(tmp_path / "data" / "chat.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            for _ in range(10):
                assert (await try_login(server, "1", PASSWORD)).status_code == 503
        await check_end(server)
    lines = [line for line in server.log.read_text().splitlines() if "store unavailable" in line]
    causes = {re.search(r'error="([^"]*)"', line)[1] for line in lines}  # type: ignore[index]
    counts = [int(match[1]) for line in lines if (match := re.search(r"repeated=(\d+)", line))]
    assert len(lines) == len(causes) + len(counts)
    assert len(causes) + sum(counts) == 10
    assert len(causes) < 5


# --- commands


async def piped(deployment: Deployment, pipeline: str, **environ: str) -> tuple[int | None, str, str]:
    """Run a shell pipeline with run.py as $RUN; return the exit code of run.py, the output and the errors."""
    child = await asyncio.create_subprocess_exec(
        *(needs.program("bash"), "-c", f"{pipeline}; exit ${{PIPESTATUS[0]}}"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**CLEAN_ENVIRON, **deployment.environ, **environ, "RUN": f"{sys.executable} {ROOT / 'run.py'}"},
    )
    async with asyncio.timeout(TIMEOUT):
        out, err = await child.communicate()
    return child.returncode, out.decode(), err.decode()


async def test_a_closed_output_pipe_ends_a_command_quietly(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path / "data")
    await deployment.run("user", "add", "anna", typed=PASSWORD)
    for command in ("user list", "user export anna", "--help", "--check"):
        _, out, err = await piped(deployment, f"$RUN {command} | true")
        assert (out, err) == ("", "")
    assert (await piped(deployment, "$RUN user disable ghost 2>&1 | true"))[2] == ""


async def test_unwritable_output_is_one_error_line(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path / "data")
    await deployment.run("user", "add", "anna", typed=PASSWORD)
    for command in ("list", "export anna"):
        code, _, err = await piped(deployment, f"$RUN user {command} > /dev/full")
        assert code == 1
        assert err.startswith("chat-server: ")
        assert err.count("\n") == 1
        assert "No space left" in err


async def test_unencodable_output_is_escaped(tmp_path: Path) -> None:
    """The command has done its work at that time, so it must not fail."""
    deployment = Deployment(tmp_path / "data")
    await deployment.run("user", "add", "名字", typed=PASSWORD)
    code, out, err = await piped(deployment, "$RUN user list", PYTHONIOENCODING="ascii")
    assert (code, out, err) == (0, "\\u540d\\u5b57\tenabled\n", "")
    code, _, err = await piped(deployment, "$RUN user disable unknown-名字", PYTHONIOENCODING="ascii")
    assert (code, err) == (1, "chat-server: there is no user unknown-\\u540d\\u5b57; `user list` shows all users\n")
    odd = tmp_path / "odd-\udcff.db"
    code, out, err = await piped(deployment, f'$RUN backup "$(printf "{tmp_path}/odd-\\xff.db")"')
    assert (code, err) == (0, "")
    assert "\\udcff" in out
    assert odd.exists()


async def test_a_command_works_with_closed_streams(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path / "data")
    assert (await piped(deployment, f"echo {PASSWORD} | $RUN user add anna 1>&- 2>&-"))[2] == ""
    assert await deployment.run("user", "list") == "anna\tenabled\n"
    code, _, err = await piped(deployment, "$RUN user add ben 0<&-")
    assert code == 1
    assert err.startswith("chat-server: the password must be")
