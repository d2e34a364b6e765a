"""What a load sends, and how each message is checked and timed on its way.

Answers and deliveries both come in the order of sending, so each is compared with the oldest one
outstanding: whatever is lost, doubled, changed or out of order does not fit it.
"""

from __future__ import annotations

import math
import time
from array import array
from collections import deque
from collections.abc import Sequence
from functools import partial
from uuid import uuid4

from bench.client import Code, Heard, Peer, Say


class Ledger:
    """What the flows of one run share: whether to go on, since when to time, what went wrong."""

    def __init__(self) -> None:
        self.running = True
        self.since = math.inf  # on time.perf_counter; what was sent before it is not timed
        self.errors = 0
        self.problems: list[str] = []  # the first few errors in words
        self.ack_seconds = array("d")
        self.delivery_seconds = array("d")

    def wrong(self, problem: str, count: int = 1) -> None:
        """Count breaches of the contract, remembering the first few."""
        self.errors += count
        if len(self.problems) < 5:
            self.problems.append(problem)

    def time(self, seconds: array[float], sent_at: float) -> None:
        """Note how long ago `sent_at` was, if that is in the window."""
        if sent_at >= self.since:
            seconds.append(time.perf_counter() - sent_at)


class Flow:
    """One user writing to another, so many messages unacknowledged at a time, `limit` in all.

    The ids are PREFIX-0, PREFIX-1 and so on, the prefix a random one unless given.
    """

    def __init__(
        self, ledger: Ledger, sender: Peer, receiver: Peer, limit: int | None = None, prefix: str = ""
    ) -> None:
        self._ledger = ledger
        self._sender = sender
        self._name, self._to = sender.uid, receiver.uid
        self._limit = limit
        self._prefix = prefix or uuid4().hex[:8]
        self._unacked: deque[tuple[str, float]] = deque()
        self._unheard: deque[tuple[str, float]] = deque()
        self.sent = self.acked = self.delivered = 0
        sender.hear = self._on_answer
        receiver.hear = self._on_delivery

    @property
    def done(self) -> int:
        """Messages both acknowledged and delivered."""
        return min(self.acked, self.delivered)

    @property
    def open(self) -> int:
        """Messages sent, but not yet both acknowledged and delivered."""
        return self.sent - self.done

    def start(self, in_flight: int) -> None:
        """Send the first messages; every ack sends another."""
        for _ in range(in_flight):
            self._send()

    def finish(self) -> None:
        """Report what never came: after the end of a run that is an error."""
        if self._unacked:
            self._ledger.wrong(f"{self._name}: {len(self._unacked)} never acknowledged", len(self._unacked))
        if self._unheard:
            self._ledger.wrong(f"{self._to}: {len(self._unheard)} never delivered", len(self._unheard))

    def _follow(self) -> None:
        """Do what an acknowledgement allows: send another."""
        self._send()

    def _send(self, at: float | None = None) -> None:
        """Send a message, timed from `at` where that is not now."""
        if not self._ledger.running or self.sent == self._limit:
            return
        message_id = f"{self._prefix}-{self.sent}"
        content = f"{message_id}\nmessage {self.sent:010} from {self._name:10} to {self._to:10}{'.' * 16}"
        self.sent += 1
        since = time.perf_counter() if at is None else at
        self._unacked.append((message_id, since))
        self._unheard.append((content, since))
        self._sender.say(Say(self._to, content))

    def _on_answer(self, heard: Heard) -> None:
        if heard.op_type != Code.ONLINE or not self._unacked or self._unacked[0][0] != heard.id:
            self._ledger.wrong(f"{self._name} was answered {heard}")
            return
        _, sent_at = self._unacked.popleft()
        self.acked += 1
        self._ledger.time(self._ledger.ack_seconds, sent_at)
        self._follow()

    def _on_delivery(self, heard: Heard) -> None:
        expected = self._unheard[0][0] if self._unheard else None
        if (heard.op_type, heard.sender, heard.content) != (Code.RECEIVED, self._name, expected):
            self._ledger.wrong(f"{self._to} was given {heard} instead of {expected!r}")
            return
        _, sent_at = self._unheard.popleft()
        self.delivered += 1
        self._ledger.time(self._ledger.delivery_seconds, sent_at)


class Cast:
    """One user writing to all, so many messages not yet with everybody at a time.

    The next one waits for the slowest receiver, so that no queue grows at the server.
    """

    def __init__(self, ledger: Ledger, sender: Peer, receivers: Sequence[Peer]) -> None:
        self._ledger = ledger
        self._sender = sender
        self._receivers = receivers
        self._prefix = uuid4().hex[:8]
        self._sent_at: dict[int, float] = {}
        self._texts: dict[int, str] = {}
        self._missing: dict[int, int] = {}  # message -> deliveries and acknowledgements to come
        self._heard = [0] * len(receivers)
        self.sent = self.acked = self.done = 0  # done: deliveries
        sender.hear = self._on_answer
        for index, receiver in enumerate(receivers):
            receiver.hear = partial(self._on_delivery, index)

    @property
    def open(self) -> int:
        """Messages not yet acknowledged and with everybody."""
        return len(self._missing)

    def start(self, in_flight: int) -> None:
        """Send the first messages; every one completed sends another."""
        for _ in range(in_flight):
            self._send()

    def finish(self) -> None:
        """Report what never came: after the end of a run that is an error."""
        missing = sum(self._missing.values())
        if missing:
            self._ledger.wrong(f"to all: {missing} deliveries or acknowledgements never came", missing)

    def _send(self) -> None:
        if not self._ledger.running:
            return
        number = self.sent
        self.sent += 1
        text = f"{self._prefix} message {number:010} from {self._sender.uid:10} to everybody{'.' * 10}"
        self._sent_at[number] = time.perf_counter()
        self._texts[number] = text
        self._missing[number] = len(self._receivers) + 1
        self._sender.say(Say("", text, op_type=6))

    def _on_answer(self, heard: Heard) -> None:
        reached = str(len(self._receivers))
        if (heard.op_type, heard.content) != (Code.SENT_TO_ALL, reached):
            self._ledger.wrong(f"{self._sender.uid} was answered {heard}, not that it reached {reached}")
            return
        number = self.acked
        self.acked += 1
        if number not in self._missing:
            self._ledger.wrong(f"{self._sender.uid} was answered more often than it sent")
            return
        self._ledger.time(self._ledger.ack_seconds, self._sent_at[number])
        self._came(number)

    def _on_delivery(self, index: int, heard: Heard) -> None:
        number = self._heard[index]
        text = heard.content.rpartition("\n")[2]  # with or without the line of an id
        if (heard.op_type, heard.sender, text) != (Code.RECEIVED, self._sender.uid, self._texts.get(number)):
            self._ledger.wrong(f"{self._receivers[index].uid} was given {heard} as broadcast {number}")
            return
        self._heard[index] += 1
        self.done += 1
        self._came(number)

    def _came(self, number: int) -> None:
        self._missing[number] -= 1
        if not self._missing[number]:
            del self._missing[number], self._texts[number]
            self._ledger.time(self._ledger.delivery_seconds, self._sent_at.pop(number))
            self._send()
