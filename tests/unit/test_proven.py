"""What is proven to have arrived is marked behind the requests: nobody waits for it."""

import gc
import logging
from typing import Any

import pytest

from chat_server.service.marks import Marks
from chat_server.service.registry import Delivery


class Faulty:
    """A store of messages with a fault that is no failure of its database."""

    async def mark_delivered(self, times: list[int]) -> set[int]:
        raise ZeroDivisionError(times)


class Counting:
    """A store of messages that were all read before, and how often it was asked to mark some."""

    calls = 0

    async def mark_delivered(self, times: list[int]) -> set[int]:
        self.calls += 1
        return set()


async def test_proofs_of_many_sockets_are_stored_together_and_do_not_fall_behind() -> None:
    none: Any = None
    store: Any = Counting()
    marks = Marks(none, store, none, none, none)
    for number in range(5000):  # as many sockets answer the pings of one batch of messages
        marks.confirm(none, [Delivery("1", f"m{number}", number)])
    await marks.flush()
    assert store.calls == 1


async def test_a_fault_while_marking_is_in_the_log_and_not_left_to_asyncio(caplog: pytest.LogCaptureFixture) -> None:
    none: Any = None
    store: Any = Faulty()
    marks = Marks(none, store, none, none, none)
    marks.confirm(none, [Delivery("1", "m1", 1)])
    await marks.flush()
    gc.collect()  # asyncio speaks up when a future goes
    [record] = caplog.records
    assert (record.name, record.levelno) == ("chat_server.service.marks", logging.ERROR)
    assert record.exc_info
    assert record.exc_info[0] is ZeroDivisionError
