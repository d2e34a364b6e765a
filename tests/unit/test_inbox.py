"""Inbox: batches of sends, order, bounds, and when it is idle."""

import asyncio

from chat_server.api.inbox import Inbox
from chat_server.api.limits import BATCH_BYTES, BATCH_REQUESTS, INBOX_BYTES, INBOX_FRAMES
from chat_server.service.frames import HISTORY, SEND, Request
from chat_server.status import Reason, Refused, Status

BAD = Refused(Status.FRAME_BAD, Reason.BAD_JSON, "not JSON")


def send(number: int = 0) -> Request:
    return Request(SEND, content=f"m{number}\nhello")


def test_sends_form_batches_and_other_requests_go_alone() -> None:
    inbox = Inbox()
    items: list[Request | Refused] = [send(1), send(2), BAD, Request(HISTORY), Request(HISTORY), send(3)]
    for item in items:
        inbox.put(item, 10)
    taken = [inbox.take() for _ in range(6)]
    assert [item for batch, _ in taken for item in batch] == items
    assert [(len(batch), size) for batch, size in taken] == [(2, 20), (1, 10), (1, 10), (1, 10), (1, 10), (0, 0)]


def test_a_batch_is_bounded_by_requests_and_by_bytes() -> None:
    inbox = Inbox()
    for number in range(BATCH_REQUESTS + 1):
        inbox.put(send(number), 1)
    assert [len(inbox.take()[0]) for _ in range(2)] == [BATCH_REQUESTS, 1]
    for number in range(4):
        inbox.put(send(number), BATCH_BYTES // 2)
    assert [len(inbox.take()[0]) for _ in range(2)] == [2, 2]


def test_it_is_full_by_requests_and_by_bytes() -> None:
    inbox = Inbox()
    assert [inbox.put(send(), 1) for _ in range(INBOX_FRAMES)] == [False] * (INBOX_FRAMES - 1) + [True]
    inbox.clear()
    assert [inbox.put(send(), INBOX_BYTES // 2) for _ in range(2)] == [False, True]


async def test_the_reader_goes_on_after_a_take_and_after_a_clear() -> None:
    inbox = Inbox()
    for free in (inbox.take, inbox.clear):
        inbox.put(send(), INBOX_BYTES)
        room = inbox.wait_for_room()
        assert not room.done()
        free()
        assert room.done()


async def test_it_is_idle_when_nothing_waits_or_is_in_work() -> None:
    inbox = Inbox()
    await inbox.wait_idle()
    inbox.active = True
    for number in range(3):
        inbox.put(Request(HISTORY) if number == 2 else send(number), BATCH_BYTES)
    idle = asyncio.create_task(inbox.wait_idle())
    await asyncio.sleep(0)
    inbox.take()
    inbox.take()  # pipelining: the next sends are taken before the first are answered
    assert [inbox.done(), inbox.done()] == [False, True]  # then the next request is due
    inbox.take()
    await asyncio.sleep(0)
    assert not idle.done()
    assert not inbox.done()
    assert not inbox.active
    await idle
