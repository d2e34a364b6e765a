"""A server for the model tests. It runs on an event loop of its own, and only during calls of `do`."""

import asyncio
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar

from tests.harness import ManualClock, ServerHandle, serving
from tests.protocol_model.conversations import STRANGER_LIMIT, WINDOW
from tests.protocol_model.model import GROUPS_PER_USER, SOCKETS_PER_USER

T = TypeVar("T")


class SteppedClock(ManualClock):
    """A monotonic clock that only the test moves, so that intervals do not depend on the speed of the machine."""

    def monotonic(self) -> float:
        return self.shift


class ServerRunner:
    """A server, and the event loop that it shares with the clients of the test."""

    def __init__(self, folder: Path, stores: Mapping[str, str]) -> None:
        self.clock = SteppedClock()
        self._folder = folder
        self._stores = stores
        self._runner = asyncio.Runner()
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None]
        self.server: ServerHandle
        self.do(self.start())

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` to its end on the event loop of the server; return its result."""
        return self._runner.run(work)

    async def start(self) -> None:
        """Start the server."""
        self._stop.clear()
        ready: asyncio.Future[ServerHandle] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._serve(ready))
        await asyncio.wait((ready, self._task), return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            await self._task  # raises the error of the start
        self.server = ready.result()

    async def stop(self) -> None:
        """Stop the server."""
        self._stop.set()
        await self._task

    def close(self) -> None:
        """Stop the server and close the event loop."""
        self.do(self.stop())
        self._runner.close()

    async def _serve(self, ready: asyncio.Future[ServerHandle]) -> None:
        settings: dict[str, Any] = {
            "StrangerLimit": STRANGER_LIMIT,
            "StrangerWindow": WINDOW / 86400,
            "SocketsPerUser": SOCKETS_PER_USER,
            "GroupsPerUser": GROUPS_PER_USER,
            "LoginFailures": 10**6,
            "LoginFailuresPerAddress": 10**6,
        }
        async with serving(self._folder, self.clock, stores=self._stores, **settings) as server:
            ready.set_result(server)
            await self._stop.wait()
