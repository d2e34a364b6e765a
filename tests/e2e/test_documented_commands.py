"""The commands in the documents work as printed, in a folder like a fresh clone and on a free port."""

import asyncio
import json
import re
import shutil
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import needs
from tests.harness import CLEAN_ENVIRON, ROOT, TIMEOUT

PAGES = [
    *(ROOT / name for name in ("README.md", "README.zh-CN.md", "SECURITY.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
# These need a person, the network, root rights or Docker. The systemd units have their own tests.
NOT_RUN = re.compile(
    r"git (clone|tag|push)|docker compose|useradd|install -D|python3 -m venv|pip install|cp docs|systemctl|runuser"
    r"|rm -rf build dist|-m build|/tmp/bare|wait"
)
README = (ROOT / "README.md").read_text("utf-8")
PORT = "8081"


def blocks(page: str, language: str = "sh") -> list[str]:
    """Return the code blocks of a page."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)


def block(page: str, start: str) -> str:
    """Return the only block of commands that begins with `start`."""
    [found] = [text for text in blocks(page) if text.startswith(start)]
    return found


def commands(page: str) -> list[str]:
    """Return every command in the code blocks of a page, without comments and with continuation lines joined."""
    joined = [re.sub(r"(?:\\|\|)\n\s*", "| ", text) for text in blocks(page)]
    return [re.sub(r"\s+#.*", "", line) for text in joined for line in text.splitlines() if line]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """Create a folder like a clone after `make run`."""
    folder = tmp_path / "chat_server"
    folder.mkdir()
    for name in ("chat_server", "bench", "docs", "compose.yaml"):
        (folder / name).symlink_to(ROOT / name)
    for name in ("run.py", "config.ini", "Makefile"):
        shutil.copy(ROOT / name, folder)
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    # No symbolic link: Python searches its packages next to the path of the call.
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return folder


async def shell(command: str, folder: Path, **environ: str) -> Process:
    """Start bash with these lines."""
    return await asyncio.create_subprocess_exec(
        *(needs.program("bash"), "-ec", command),
        cwd=folder,
        env={**CLEAN_ENVIRON, **environ},
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
    )


async def run_lines(command: str, folder: Path, typed: str = "", **environ: str) -> str:
    """Run the lines, which must succeed; return their output."""
    child = await shell(command, folder, **environ)
    async with asyncio.timeout(TIMEOUT):
        out, errors = await child.communicate(typed.encode())
    assert child.returncode == 0, (command, out, errors)
    return out.decode()


@asynccontextmanager
async def running_server(folder: Path) -> AsyncIterator[str]:
    """Run the command of `make run`; yield its port."""
    child = await shell(
        "exec .venv/bin/python run.py", folder, CHAT_SERVICE_HTTPPORT="0", CHAT_SERVICE_PASSWORDCOST="4"
    )
    assert child.stdout
    try:
        async with asyncio.timeout(TIMEOUT):
            ready = (await child.stdout.readline()).decode()
        [port] = re.findall(r"http://127\.0\.0\.1:(\d+)", ready)
        yield port
    finally:
        child.terminate()
        await child.communicate()


class Terminal:
    """A terminal in the first conversation of README.md."""

    def __init__(self, child: Process) -> None:
        assert child.stdin
        assert child.stdout
        self._child, self._in, self._out = child, child.stdin, child.stdout

    def type(self, line: str) -> None:
        """Type one line."""
        self._in.write(f"{line}\n".encode())

    async def read(self, expected: dict[str, Any]) -> None:
        """Wait for a frame with these keys. In a value, … stands for any text."""
        async with asyncio.timeout(TIMEOUT):
            while True:
                line = (await self._out.readline()).decode()
                assert line, (expected, await self._child.communicate())
                if (found := re.search(r"< (\{.*\})", line)) and matches(json.loads(found[1]), expected):
                    return

    async def close(self) -> None:
        """Press Ctrl-D."""
        self._in.close()
        async with asyncio.timeout(TIMEOUT):
            await self._child.communicate()


def matches(frame: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Return whether the frame matches the printed one."""

    def same(key: str, value: Any) -> bool:
        if isinstance(value, str) and "…" in value:
            return re.fullmatch(".*".join(map(re.escape, value.split("…"))), str(frame.get(key)), re.DOTALL) is not None
        return bool(frame.get(key) == value)

    return all(same(key, value) for key, value in expected.items())


def session_lines(text: str) -> Iterator[tuple[str, str]]:
    """Yield the lines of a printed session as (`>` or `<`, text)."""
    for line in text.splitlines():
        yield line[0], line[2:].replace(", …}", "}")


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
async def test_the_first_conversation_works_as_printed(clone: Path, name: str) -> None:
    needs.program("curl")
    page = (ROOT / name).read_text("utf-8")
    lines = [text for text in blocks(page, "text") if text.startswith(("> ", "< "))]
    logins = [text for text in blocks(page) if text.startswith("TOKEN=")]
    async with running_server(clone) as port:

        async def open_terminal(login: str) -> Terminal:
            terminal = Terminal(await shell(login.replace(PORT, port), clone))
            await terminal.read({"from": "System", "op_type": 40003})
            return terminal

        registered = await run_lines(block(page, "curl -d").replace(PORT, port), clone)
        assert registered.count('"status":41001') == 2
        one, two = [await open_terminal(login) for login in logins]
        for number, (terminal, text) in enumerate(zip("1221212", lines, strict=True)):
            if number == 3:
                await two.close()
            if number == 4:
                two = await open_terminal(logins[1])
            if number == 5:
                await one.close()
                token, _, _ = logins[0].partition(".venv/bin/python -m websockets")
                one = await open_terminal(token + block(page, "curl -H"))
            reader = one if terminal == "1" else two
            for sign, content in session_lines(text):
                if sign == ">":
                    reader.type(content)
                else:
                    await reader.read(json.loads(content))
        await one.close()
        await two.close()


async def test_backup_and_restore_work_as_printed(clone: Path) -> None:
    async with running_server(clone):
        assert "0 users" in await run_lines(block(README, ".venv/bin/python run.py backup"), clone)
    [verify] = re.findall(r"`(\.venv/bin/python run\.py verify copy\.db)`", README)
    await run_lines(verify, clone)
    shutil.move(clone / "data", clone / "old")
    await run_lines(block(README, ".venv/bin/python run.py restore"), clone)
    assert (clone / "data" / "chat.db").exists()


async def test_user_commands_work_as_printed(clone: Path) -> None:
    lines = block((ROOT / "docs" / "operations.md").read_text("utf-8"), ".venv/bin/python run.py user").splitlines()
    assert len(lines) >= 7
    (clone / "FILE").write_text("anna\tsecret-2\n", "utf-8")
    for line in lines:
        await run_lines(line.replace("NAME", "zoe"), clone, typed="secret-1\n", CHAT_SERVICE_PASSWORDCOST="4")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
async def test_every_other_command_exists(page: Path, clone: Path) -> None:
    """make has the targets, and the server has the options. Other commands run in other tests or cannot run here."""
    others = [command for command in commands(page.read_text("utf-8")) if not NOT_RUN.search(command)]
    for command in others:
        variables, program = re.findall(r"^((?:\w+=\S+ )*)(.*)", command)[0]
        if program.startswith("make "):
            await run_lines(
                f"{variables}make --dry-run --assume-old=.venv/.run --assume-old=.venv/.dev {program[5:]}", clone
            )
        elif program.startswith((".venv/bin/python run.py", "chat-server ")):
            action = re.findall(r"(?:run\.py|chat-server) (\w+)", program)
            await run_lines(f".venv/bin/python run.py {' '.join(action)} --help", clone)
        else:
            known = ("TOKEN=", "curl ", ".venv/bin/python -m websockets", "mkdir ", "for ", "od ", "done")
            assert command.strip().startswith(known), f"{page.name} prints a command that no test covers: {command}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_sentences_are_complete(page: Path) -> None:
    """`python run.py` needs the packages in .venv, and Debian has no `python` command."""
    text = page.read_text("utf-8")
    assert re.findall(r"(?<!bin/)python run\.py", text) == []
    targets = {*re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)}
    named: Sequence[str] = re.findall(r"`make ([a-z-]+)[^`]*`", text)
    assert {*named} - targets == set()
