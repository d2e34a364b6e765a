"""Confirmed messages are marked in the background; no request waits for it."""

import asyncio
import gc
import logging
from typing import Any

import pytest

from chat_server.model.groups import Group
from chat_server.service.confirmations import GROUPS_AT_ONCE, MAX_UNUSED, Confirmations
from chat_server.service.live_groups import LiveGroup
from chat_server.service.registry import Delivery
from chat_server.utils.errors import StoreUnavailable


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


class ConcurrentAdvanceStub:
    """A message store that counts how many groups it works on at the same time."""

    def __init__(self) -> None:
        self.calls = self.waiting = self.most = 0

    async def advance(self, number: int, confirmed: dict[str, Any]) -> dict[str, int]:
        self.calls += 1
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        await asyncio.sleep(0)
        self.waiting -= 1
        if number == 13:
            raise StoreUnavailable("away")
        return {}


class UserStub:
    """A socket of the user 1."""

    user = "1"


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


async def test_kept_confirmations_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A member may never confirm an earlier message. The newest confirmations are kept, of the latest members."""
    monkeypatch.setattr("chat_server.service.confirmations.MAX_UNUSED_MEMBERS", 3)
    socket: Any = UserStub()
    store: Any = ConcurrentAdvanceStub()
    confirmations = Confirmations(store, socket, out_of_order=True)
    for number in range(5):
        group = LiveGroup(Group(20 + number, f"#g{number}", "1", {"1": 0}))
        for time in range(100):
            confirmations.confirm(socket, [Delivery("2", f"m{time}", time, group)])
            if time % 10 == 9:
                await confirmations.flush()
    kept = {key: [one.time for one in unused] for key, unused in confirmations._unused.items()}
    assert kept == {(20 + number, "1"): list(range(100 - MAX_UNUSED, 100)) for number in (2, 3, 4)}


@pytest.mark.parametrize(("first", "calls"), [(100, 200), (0, GROUPS_AT_ONCE)])
async def test_positions_of_many_groups_move_together(first: int, calls: int) -> None:
    """A store that is away for one group is not asked for the groups after those in progress."""
    none: Any = None
    store: Any = ConcurrentAdvanceStub()
    confirmations = Confirmations(store, none)
    groups = [LiveGroup(Group(first + number, f"#g{number}", "1", {"1": 0})) for number in range(200)]
    socket: Any = UserStub()
    for group in groups:
        confirmations.confirm(socket, [Delivery("2", "m1", 1, group)])
    await confirmations.flush()
    assert (store.most, store.calls) == (GROUPS_AT_ONCE, calls)


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
