"""Confirmed messages are marked in the background; no request waits for it."""

import gc
import logging
from typing import Any

import pytest

from chat_server.service.confirmations import Confirmations
from chat_server.service.registry import Delivery


class FailingMarkStub:
    """A message store whose marking raises an error that is not a failure of its database."""

    async def mark_delivered(self, times: list[int]) -> set[int]:
        raise ZeroDivisionError(times)


class CountingMarkStub:
    """A message store that counts calls for marking; all its messages are already read."""

    calls = 0

    async def mark_delivered(self, times: list[int]) -> set[int]:
        self.calls += 1
        return set()


class NoticesStub:
    """Notices without any receiver."""

    async def read(self, reads: list[Any]) -> None: ...


async def test_confirmations_of_many_sockets_are_stored_together() -> None:
    none: Any = None
    store: Any = CountingMarkStub()
    notices: Any = NoticesStub()
    confirmations = Confirmations(store, notices)
    for number in range(5000):  # the answers of many sockets to the pings after one batch of messages
        confirmations.confirm(none, [Delivery("1", f"m{number}", number)])
    await confirmations.flush()
    assert store.calls == 1


async def test_an_error_while_marking_is_logged_by_the_server(caplog: pytest.LogCaptureFixture) -> None:
    none: Any = None
    store: Any = FailingMarkStub()
    notices: Any = NoticesStub()
    confirmations = Confirmations(store, notices)
    confirmations.confirm(none, [Delivery("1", "m1", 1)])
    await confirmations.flush()
    gc.collect()  # asyncio would log an error that was never retrieved from its future
    [record] = caplog.records
    assert (record.name, record.levelno) == ("chat_server.service.confirmations", logging.ERROR)
    assert record.exc_info
    assert record.exc_info[0] is ZeroDivisionError
