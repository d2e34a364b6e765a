"""Changes are completed although their requests are cancelled."""

import asyncio

import pytest

from chat_server.utils.completion import Completion


async def test_a_change_survives_its_request() -> None:
    completion, go, done = Completion(), asyncio.Event(), list[str]()

    async def change(user: str, name: str) -> None:
        await go.wait()
        done.append(f"{user} {name}")

    first = asyncio.create_task(completion.run_for(change, "ann", "first"))
    waiting = asyncio.create_task(completion.run_for(change, "ann", "second"))
    other = asyncio.create_task(completion.run_for(change, "bob", "other"))
    await asyncio.sleep(0.01)
    for request in (first, waiting, other):
        request.cancel()
    await asyncio.gather(first, waiting, other, return_exceptions=True)
    go.set()
    await completion.close()
    assert done == ["ann first", "bob other"]  # the second had not begun


async def test_results_and_refusals_reach_the_request() -> None:
    completion = Completion()

    async def double(user: str, number: int) -> int:
        if not number:
            raise ValueError(user)
        return 2 * number

    assert await completion.run_for(double, "ann", 2) == 4
    with pytest.raises(ValueError, match="ann"):
        await completion.run_for(double, "ann", 0)
    assert await completion.run_for(double, "ann", 3) == 6
