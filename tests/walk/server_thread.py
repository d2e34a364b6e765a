"""A server for walks: it lives between the steps, each of which is a call from outside its loop."""

import asyncio
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar

from tests.harness import ManualClock, ServerHandle, serving
from tests.walk.model import LIMIT, SOCKETS, WINDOW

T = TypeVar("T")


class ServerThread:
    """A server on a loop that runs whenever something is to be done."""

    def __init__(self, folder: Path, stores: Mapping[str, str]) -> None:
        self.clock = ManualClock()
        self._folder = folder
        self._stores = stores
        self._runner = asyncio.Runner()
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None]
        self.server: ServerHandle
        self.do(self.start())

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Do this, and let the server live meanwhile."""
        return self._runner.run(work)

    async def start(self) -> None:
        """Start the server."""
        self._stop.clear()
        ready: asyncio.Future[ServerHandle] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._serve(ready))
        await asyncio.wait((ready, self._task), return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            await self._task  # raises why it did not start
        self.server = ready.result()

    async def stop(self) -> None:
        """End it."""
        self._stop.set()
        await self._task

    def close(self) -> None:
        """End it for good."""
        self.do(self.stop())
        self._runner.close()

    async def _serve(self, ready: asyncio.Future[ServerHandle]) -> None:
        settings: dict[str, Any] = {"StrangerLimit": LIMIT, "StrangerWindow": WINDOW / 86400, "SocketsPerUser": SOCKETS}
        async with serving(
            self._folder,
            self.clock,
            stores=self._stores,
            **settings,
            LoginFailures=10**6,
            LoginFailuresPerAddress=10**6,
        ) as server:
            ready.set_result(server)
            await self._stop.wait()
