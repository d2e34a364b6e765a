"""What the tests of the operators' commands share: stores, with or without a server on them, and the commands."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.answers import refused
from tests.harness import TIMEOUT, ChatClient, ServerHandle, run_py, serving

# HeartbeatSeconds and StoreTimeout of the servers under test, and of the commands.
SOON: dict[str, Any] = {"HeartbeatSeconds": 0.3, "StoreTimeout": 1}


class Place:
    """Where a server and its commands find their stores."""

    def __init__(self, folder: Path, stores: Mapping[str, str] | None = None, **settings: Any) -> None:
        self.folder = folder
        self.stores = dict(stores or {})
        self.settings = {**SOON, **settings}

    @asynccontextmanager
    async def serving(self, **settings: Any) -> AsyncIterator[ServerHandle]:
        """A server on it, in this process."""
        async with serving(self.folder, stores=self.stores, **self.settings, **settings) as server:
            yield server

    @property
    def environ(self) -> dict[str, str]:
        """What the commands are told."""
        values = {"DataDir": self.folder, "PasswordCost": 4, "StartTimeout": 30, **self.settings}
        return {f"CHAT_SERVICE_{key.upper()}": str(value) for key, value in values.items()} | self.stores

    async def command(self, *arguments: str | Path, typed: str = "") -> tuple[int | None, str, str]:
        """python run.py ...: exit code, output, errors. `typed` is its standard input."""
        child = await run_py(*map(str, arguments), environ=self.environ, stdin=asyncio.subprocess.PIPE)
        async with asyncio.timeout(TIMEOUT):
            out, err = await child.communicate(typed.encode())
        return child.returncode, out.decode(), err.decode()

    async def does(self, *arguments: str | Path, typed: str = "") -> str:
        """A command that succeeds; what it said."""
        code, out, err = await self.command(*arguments, typed=typed)
        assert code == 0, (out, err)
        return out

    async def fails(self, *arguments: str | Path, typed: str = "") -> str:
        """The one line with which a command fails."""
        code, out, err = await self.command(*arguments, typed=typed)
        assert (code, out) == (1, ""), (code, out, err)
        [line] = err.splitlines()
        assert line.startswith("chat-server: "), line
        return line

    async def exported(self, name: str) -> list[dict[str, Any]]:
        """What `export` writes."""
        return [json.loads(line) for line in (await self.does("user", "export", name)).splitlines()]


def wrong(response: httpx.Response) -> None:
    """Fail unless the login was refused as a wrong password is."""
    refused(response, 401, 41010, "wrong_password")


async def said(chat: ChatClient) -> list[str]:
    """The texts of the conversation."""
    *page, _ = await chat.ask(2, "-200")
    return [frame["content"].partition("\n")[2] for frame in page if frame["op_type"] == 40005]
