"""What is proven to have arrived is marked behind the requests: nobody waits for it."""

import gc
import logging
from typing import Any

import pytest

from chat_server.service.chat import Chat
from chat_server.service.registry import Receipt


class Faulty:
    """A store of messages with a fault that is no failure of its database."""

    async def mark_delivered(self, times: list[int]) -> set[int]:
        raise ZeroDivisionError(times)


async def test_a_fault_while_marking_is_in_the_log_and_not_left_to_asyncio(caplog: pytest.LogCaptureFixture) -> None:
    none: Any = None
    store: Any = Faulty()
    chat = Chat(none, none, store, none, none, none, none, none, none)
    chat.proven(none, [Receipt("1", "m1", 1)])
    await chat.settled()
    gc.collect()  # asyncio speaks up when a future goes
    [record] = caplog.records
    assert (record.name, record.levelno) == ("chat_server.service.chat", logging.ERROR)
    assert record.exc_info
    assert record.exc_info[0] is ZeroDivisionError
