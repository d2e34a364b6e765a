"""Senders of test messages: each one checks and times its messages from the send to the answer and the delivery.

Answers and deliveries arrive in the order of sending. So each is compared with the oldest outstanding message: a
lost, duplicated, changed or reordered frame does not match.
"""

from __future__ import annotations

import math
import time
from array import array
from collections import deque
from collections.abc import Sequence
from functools import partial
from uuid import uuid4

from bench.client import ClientFrame, ServerFrame, StatusCode, UserSocket


class Recorder:
    """The state that the senders of one run share: whether to continue, the measured times, the errors."""

    def __init__(self) -> None:
        self.running = True
        self.since = math.inf  # on time.perf_counter; messages sent before it are not timed
        self.errors = 0
        self.problems: list[str] = []  # descriptions of the first few errors
        self.ack_seconds = array("d")
        self.delivery_seconds = array("d")

    def report(self, problem: str, count: int = 1) -> None:
        """Count violations of the contract and keep the first few descriptions."""
        self.errors += count
        if len(self.problems) < 5:
            self.problems.append(problem)

    def record(self, seconds: array[float], sent_at: float) -> None:
        """Append the time since `sent_at` to `seconds`, if the message was sent within the window."""
        if sent_at >= self.since:
            seconds.append(time.perf_counter() - sent_at)


class PairSender:
    """One user who writes to another, with a fixed number of unacknowledged messages, `limit` messages in all.

    The ids are PREFIX-0, PREFIX-1 and so on. The default prefix is random.
    """

    def __init__(
        self, recorder: Recorder, sender: UserSocket, receiver: UserSocket, limit: int | None = None, prefix: str = ""
    ) -> None:
        self._recorder = recorder
        self._sender = sender
        self._name, self._to = sender.uid, receiver.uid
        self._limit = limit
        self._prefix = prefix or uuid4().hex[:8]
        self._unacknowledged: deque[tuple[str, float]] = deque()
        self._undelivered: deque[tuple[str, float]] = deque()
        self.sent = self.acked = self.delivered = 0
        sender.on_frame = self._on_answer
        receiver.on_frame = self._on_delivery

    @property
    def done(self) -> int:
        """The number of messages that are both acknowledged and delivered."""
        return min(self.acked, self.delivered)

    @property
    def open(self) -> int:
        """The number of messages that are sent, but not yet both acknowledged and delivered."""
        return self.sent - self.done

    def start(self, in_flight: int) -> None:
        """Send the first `in_flight` messages; every acknowledgement sends another one."""
        for _ in range(in_flight):
            self._send()

    def finish(self) -> None:
        """Report missing acknowledgements and deliveries at the end of a run."""
        if missing := len(self._unacknowledged):
            self._recorder.report(f"{self._name}: {missing} messages were never acknowledged", missing)
        if missing := len(self._undelivered):
            self._recorder.report(f"{self._to}: {missing} messages were never delivered", missing)

    def _on_acknowledged(self) -> None:
        """Send the next message. Subclasses may send at other times."""
        self._send()

    def _send(self, at: float | None = None) -> None:
        """Send a message and time it from `at` (default: now)."""
        if not self._recorder.running or self.sent == self._limit:
            return
        message_id = f"{self._prefix}-{self.sent}"
        content = f"{message_id}\nmessage {self.sent:010} from {self._name:10} to {self._to:10}{'.' * 16}"
        self.sent += 1
        since = time.perf_counter() if at is None else at
        self._unacknowledged.append((message_id, since))
        self._undelivered.append((content, since))
        self._sender.send(ClientFrame(self._to, content))

    def _on_answer(self, frame: ServerFrame) -> None:
        if frame.op_type != StatusCode.ONLINE or not self._unacknowledged or self._unacknowledged[0][0] != frame.id:
            self._recorder.report(f"{self._name} got the answer {frame}")
            return
        _, sent_at = self._unacknowledged.popleft()
        self.acked += 1
        self._recorder.record(self._recorder.ack_seconds, sent_at)
        self._on_acknowledged()

    def _on_delivery(self, frame: ServerFrame) -> None:
        expected = self._undelivered[0][0] if self._undelivered else None
        if (frame.op_type, frame.sender, frame.content) != (StatusCode.RECEIVED, self._name, expected):
            self._recorder.report(f"{self._to} received {frame} instead of {expected!r}")
            return
        _, sent_at = self._undelivered.popleft()
        self.delivered += 1
        self._recorder.record(self._recorder.delivery_seconds, sent_at)


class FanOutSender:
    """One user who writes to all others, with a fixed number of messages not yet delivered to everyone.

    `group` is the group to write to (op 1); without one, the messages are broadcasts (op 6). The next message waits
    for the slowest receiver, so that no queue grows at the server.
    """

    def __init__(
        self, recorder: Recorder, sender: UserSocket, receivers: Sequence[UserSocket], group: str = ""
    ) -> None:
        self._recorder = recorder
        self._group = group
        self._sender = sender
        self._receivers = receivers
        self._prefix = uuid4().hex[:8]
        self._sent_at: dict[int, float] = {}
        self._texts: dict[int, str] = {}
        self._missing: dict[int, int] = {}  # message number -> outstanding deliveries and acknowledgements
        self._received = [0] * len(receivers)
        self.sent = self.acked = self.done = 0  # done: deliveries
        sender.handlers["System"] = self._on_answer
        for index, receiver in enumerate(receivers):
            receiver.handlers[sender.uid] = partial(self._on_delivery, index)
        for socket in (sender, *receivers):
            socket.on_frame = socket.handle

    @property
    def open(self) -> int:
        """The number of messages that are not yet acknowledged and delivered to everyone."""
        return len(self._missing)

    def start(self, in_flight: int) -> None:
        """Send the first `in_flight` messages; every completed message sends another one."""
        for _ in range(in_flight):
            self._send()

    def finish(self) -> None:
        """Report missing acknowledgements and deliveries at the end of a run."""
        missing = sum(self._missing.values())
        if missing:
            self._recorder.report(
                f"{self._sender.uid}: {missing} deliveries or acknowledgements never arrived", missing
            )

    def _send(self) -> None:
        if not self._recorder.running:
            return
        number = self.sent
        self.sent += 1
        text = f"{self._prefix} message {number:010} from {self._sender.uid:10} to everybody{'.' * 10}"
        self._sent_at[number] = time.perf_counter()
        self._texts[number] = text
        self._missing[number] = len(self._receivers) + 1
        if self._group:
            self._sender.send(ClientFrame(self._group, f"{self._prefix}-{number}\n{text}"))
        else:
            self._sender.send(ClientFrame("", text, op_type=6))

    def _on_answer(self, frame: ServerFrame) -> None:
        number = self.acked
        answer = StatusCode.SENT_TO_ALL, str(len(self._receivers)), ""
        if self._group:
            answer = StatusCode.ONLINE, "", f"{self._prefix}-{number}"
        if (frame.op_type, frame.content, frame.id) != answer:
            self._recorder.report(f"{self._sender.uid} got the answer {frame} instead of {answer}")
            return
        self.acked += 1
        if number not in self._missing:
            self._recorder.report(f"{self._sender.uid} got more answers than it sent messages")
            return
        self._recorder.record(self._recorder.ack_seconds, self._sent_at[number])
        self._count_down(number)

    def _on_delivery(self, index: int, frame: ServerFrame) -> None:
        number = self._received[index]
        text = frame.content.rpartition("\n")[2]  # with or without an id on the first line
        if (frame.op_type, frame.sender, text) != (StatusCode.RECEIVED, self._sender.uid, self._texts.get(number)):
            self._recorder.report(f"{self._receivers[index].uid} received {frame} instead of message {number}")
            return
        self._received[index] += 1
        self.done += 1
        self._count_down(number)

    def _count_down(self, number: int) -> None:
        """Note one delivery or acknowledgement of a message; the last one completes it."""
        self._missing[number] -= 1
        if not self._missing[number]:
            del self._missing[number], self._texts[number]
            self._recorder.record(self._recorder.delivery_seconds, self._sent_at.pop(number))
            self._send()
