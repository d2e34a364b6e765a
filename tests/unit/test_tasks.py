"""The end of asyncio tasks."""

import asyncio

import pytest

from chat_server.utils import tasks


async def test_a_task_that_loses_a_cancellation_is_cancelled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "REPEAT_SECONDS", 0.01)
    lost: list[bool] = []

    async def lose_two() -> None:
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                if len(lost) == 2:
                    raise
                lost.append(True)

    async def end() -> None:
        pass

    losing, ended = asyncio.create_task(lose_two()), asyncio.create_task(end())
    await asyncio.sleep(0)
    await tasks.cancel(losing, ended)
    assert losing.cancelled()
    assert len(lost) == 2
    assert not ended.cancelled()


async def test_a_canceller_waits_for_the_end_of_each_task() -> None:
    cleaned: list[bool] = []

    async def clean() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0)
            cleaned.append(True)

    cleaning = [asyncio.create_task(clean()) for _ in range(3)]
    await asyncio.sleep(0)
    await tasks.cancel(*cleaning)
    assert len(cleaned) == 3
