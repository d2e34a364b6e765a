"""The two example clients in docs/clients.md run as printed."""

import asyncio
import json
import re
import sys
from asyncio.subprocess import Process as Child
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.harness import CLEAN_ENVIRON, NODE, ROOT, ServerHandle, SubprocessServer, subprocess_server, wait_until
from tests.servers import free_port

MAX_LINES = 22
PROGRAMS = {"Python": "client.py", "JavaScript": "client.mjs"}
PASSWORDS = {"1": "secret-1", "2": "secret-2"}
GROUP = "#team"


def example(language: str) -> str:
    """Return the printed example: the first code block under its heading."""
    section = (ROOT / "docs" / "clients.md").read_text().split(f"## Example: {language}\n")[1]
    found = re.search(r"```\w+\n(.*?)```", section, re.DOTALL)
    assert found
    return found[1]


@asynccontextmanager
async def running_example(
    folder: Path, server: ServerHandle, language: str, command: Sequence[str], *arguments: str
) -> AsyncIterator[Path]:
    """Run the example with `command` and `arguments` against `server`; yield the file with its output."""
    program, printed = folder / PROGRAMS[language], folder / f"{language}.txt"
    program.write_text(example(language).replace("127.0.0.1:8081", f"{server.host}:{server.port}"))
    with printed.open("wb") as output:
        child: Child = await asyncio.create_subprocess_exec(
            *command, str(program), *arguments, stdout=output, env=CLEAN_ENVIRON
        )
    try:
        yield printed
        assert child.returncode is None
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


def install_ws(folder: Path) -> None:
    """Install the npm package ws for Node.js. Playwright contains a copy."""
    bundle = Path(NODE).with_name("package") / "lib" / "utilsBundle.js"
    package = folder / "node_modules" / "ws"
    package.mkdir(parents=True)
    (package / "index.js").write_text(f"exports.WebSocket = require({json.dumps(str(bundle))}).ws;\n")


@pytest.mark.parametrize("language", ["Python", "JavaScript"])
def test_an_example_is_short(language: str) -> None:
    assert len(example(language).splitlines()) <= MAX_LINES


@pytest.mark.parametrize("options", [[], ["--no-experimental-websocket"]], ids=["node 22", "node 20 with ws"])
async def test_both_examples_chat_and_survive_a_restart(tmp_path: Path, options: list[str]) -> None:
    if options:
        install_ws(tmp_path)
    data, node = tmp_path / "data", [NODE, *options]
    async with subprocess_server(data, HttpPort=free_port()) as server:
        await register_users(server)
        async with (
            running_example(tmp_path, server, "Python", [sys.executable]) as one,
            running_example(tmp_path, server, "JavaScript", node) as two,
        ):
            hellos = ["1 hello from Python", "2 hello from JavaScript"]
            await check_recovery(server, data, [one, two], hellos, to="1")


async def test_both_examples_chat_in_a_group(tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with subprocess_server(data, HttpPort=free_port(), StrangerLimit=0) as server:
        await register_users(server)
        token = await server.login("1", PASSWORDS["1"])
        body, headers = {"group": GROUP, "users": ["2"]}, {"Authorization": f"Bearer {token}"}
        assert (await server.post("/group/create", body, headers=headers)).status_code == 200
        async with (
            running_example(tmp_path, server, "Python", [sys.executable], GROUP) as one,
            running_example(tmp_path, server, "JavaScript", [NODE], GROUP) as two,
        ):
            hellos = ["1 hello from Python", "2 hello from JavaScript"]
            await check_recovery(server, data, [one, two], hellos, to=GROUP)


async def register_users(server: ServerHandle) -> None:
    for name, password in PASSWORDS.items():
        await server.post("/user/register", {"user_name": name, "password": password})


async def check_recovery(
    server: SubprocessServer, data: Path, outputs: Sequence[Path], hellos: Sequence[str], *, to: str
) -> None:
    """Wait for the hellos, kill the server, and wait for what user 2 sends `to` while the examples are disconnected."""
    await wait_until(lambda: all(sorted(lines(printed)) == hellos for printed in outputs))
    server.kill()
    await server.wait()
    await refuse_reconnects(server)
    async with subprocess_server(data) as elsewhere:  # on a port where the examples do not reconnect
        token = await elsewhere.login("2", PASSWORDS["2"])
        async with elsewhere.chat("2", to=to, token=token) as chat:
            await chat.send("later\nwhile disconnected")
            assert (await chat.answer(2, "-10"))["content"] == "3"
    async with subprocess_server(data, HttpPort=server.port):
        expected = sorted([*hellos, "2 while disconnected"])
        await wait_until(lambda: all(sorted(lines(printed)) == expected for printed in outputs))


async def refuse_reconnects(server: ServerHandle) -> None:
    """Listen on the server's port and close each connection after its upgrade request, until both users have tried."""
    users: set[bytes] = set()

    async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        writer.close()
        await writer.wait_closed()
        users.update(re.findall(rb"\?uid=(\w+)", head))

    async with await asyncio.start_server(close, server.host, server.port):
        await wait_until(lambda: users == {b"1", b"2"})


def lines(printed: Path) -> list[str]:
    return printed.read_text().splitlines()
