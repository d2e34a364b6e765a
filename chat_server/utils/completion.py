"""Changes that do not stop half-way."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any, TypeVar, TypeVarTuple

from chat_server.utils.locks import KeyedLock

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")


class Completion:
    """Completes changes even if the requests that began them are cancelled, because a client has disconnected."""

    def __init__(self) -> None:
        self._changes: set[asyncio.Task[Any]] = set()
        self._users = KeyedLock()

    async def run(self, change: Coroutine[Any, Any, Result]) -> Result:
        """Return the result of a change, or raise its exception."""
        task = asyncio.create_task(change)
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        return await asyncio.shield(task)

    async def run_for(
        self,
        change: Callable[[str, *Arguments], Coroutine[Any, Any, Result]],
        user: str,
        *arguments: *Arguments,
    ) -> Result:
        """Like `run`, one change of a user at a time: those that wait are cancelled with their requests."""
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._users.hold(user))
            held = stack.pop_all()

        async def change_and_release() -> Result:
            async with held:
                return await change(user, *arguments)

        return await self.run(change_and_release())

    async def close(self) -> None:
        """Finish the changes in progress."""
        while self._changes:
            await asyncio.wait(self._changes)
