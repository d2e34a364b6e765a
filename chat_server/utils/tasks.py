"""The end of asyncio tasks."""

import asyncio
from typing import Any

# Seconds until a task that has not ended is cancelled again.
REPEAT_SECONDS = 1.0


async def cancel(*tasks: "asyncio.Task[Any]") -> None:
    """Cancel tasks, and return when all have ended.

    Cancels again a task that goes on: on Python 3.11, `asyncio.wait_for` in a library loses a cancellation at the
    moment at which its own work is done (https://github.com/python/cpython/issues/86296). asyncio logs an exception of
    a task.
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=REPEAT_SECONDS)
