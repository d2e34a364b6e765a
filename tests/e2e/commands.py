"""Helpers for the tests of the administration commands: data stores, a server on them, and the commands."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from chat_server.backends import ExportableStores, open_exportable
from chat_server.conf import load
from chat_server.utils.clock import Clock
from tests.e2e.http_helpers import check_refusal
from tests.harness import CLUSTER, ChatClient, CommandResult, ServerHandle, run_command, serving

# Settings of the tested servers and commands. The processes of a cluster do not stop when the test does, so a short
# heartbeat would close its sockets; they learn of a command without the heartbeat.
SHORT_TIMES: dict[str, Any] = {"HeartbeatSeconds": 3 if CLUSTER else 0.3}
# `user remove` waits for the requests of running servers, twice as long as this. The servers have the default, because
# a command that stops in a transaction delays them.
COMMAND_TIMES: dict[str, Any] = {"StoreTimeout": 1}


class Deployment:
    """The stores and settings that a server and its commands share."""

    def __init__(self, folder: Path, stores: Mapping[str, str] | None = None, **settings: Any) -> None:
        self.folder = folder
        self.stores = dict(stores or {})
        self.settings = {**SHORT_TIMES, **settings}

    @asynccontextmanager
    async def serving(self, **settings: Any) -> AsyncIterator[ServerHandle]:
        """Run a server on these stores in this process."""
        async with serving(self.folder, stores=self.stores, **self.settings, **settings) as server:
            yield server

    @asynccontextmanager
    async def open_stores(self) -> AsyncIterator[ExportableStores]:
        """Open these stores in this process, while no server uses them."""
        async with open_exportable([load(None, self.environ)], Clock(), print) as [stores]:
            yield stores

    @property
    def environ(self) -> dict[str, str]:
        """The environment variables of the commands."""
        values = {"DataDir": self.folder, "PasswordCost": 4, "StartTimeout": 30, **COMMAND_TIMES, **self.settings}
        environ = {f"CHAT_SERVICE_{key.upper()}": str(value) for key, value in values.items()}
        if CLUSTER and not self.stores:
            from tests.cluster import suite  # noqa: PLC0415 - only a run on several processes needs it

            environ |= suite.command_environ(self.folder)
        return environ | self.stores

    async def command(self, *arguments: str | Path, typed: str = "") -> CommandResult:
        """Run `python run.py` with these arguments. `typed` is its standard input."""
        return await run_command(*arguments, environ=self.environ, typed=typed)

    async def run(self, *arguments: str | Path, typed: str = "") -> str:
        """Run a command that must succeed; return its output."""
        code, out, err = await self.command(*arguments, typed=typed)
        assert code == 0, (out, err)
        return out

    async def run_failing(self, *arguments: str | Path, typed: str = "") -> str:
        """Run a command that must fail; return its single error line."""
        code, out, err = await self.command(*arguments, typed=typed)
        assert (code, out) == (1, ""), (code, out, err)
        [line] = err.splitlines()
        assert line.startswith("chat-server: "), line
        return line

    async def export_user(self, name: str) -> list[dict[str, Any]]:
        """Return the JSON objects that `user export` writes."""
        return [json.loads(line) for line in (await self.run("user", "export", name)).splitlines()]


def check_wrong_password(response: httpx.Response) -> None:
    """Fail unless the login was refused with the answer to a wrong password."""
    check_refusal(response, 401, 41010, "wrong_password")


async def message_texts(chat: ChatClient) -> list[str]:
    """Return the newest 200 texts of the conversation."""
    *page, _ = await chat.ask(2, "-200")
    return [frame["content"].partition("\n")[2] for frame in page if frame["op_type"] == 40005]
