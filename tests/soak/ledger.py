"""What the clients of a soak know: what they sent, what was answered, what they received. Nothing of the server's."""

from collections import Counter
from dataclasses import dataclass

from tests.harness import Frame

# Faults that are written down; the others are only counted.
MOST_FAULTS = 50


@dataclass(slots=True, eq=False)
class Said:
    """A message that a client sent. Times in milliseconds."""

    sender: str
    receiver: str
    id: str
    text: str
    device: str  # which client of the sender's
    number: int  # in that client's order of sending
    stranger: bool = False  # the receiver never answers
    tries: int = 0
    time: int | None = None  # what its acknowledgement said
    barred: bool = False  # by the limit for strangers
    may_be_read: bool = False  # a pong after it was sent, or op 4
    read: bool = False  # and that was certainly heard
    may_be_gone: bool = False  # op 5 was sent
    gone: bool = False  # and answered

    @property
    def content(self) -> str:
        """What stands in frames."""
        return f"{self.id}\n{self.text}"

    def __str__(self) -> str:
        return f"{self.id} of {self.device} to {self.receiver} ({self.tries} tries, acknowledged: {self.time})"


class Ledger:
    """All that was said, and all that was wrong with what came back.

    `steady`: no store is ever away, so nothing may be refused for that, and what was proven is marked.
    """

    def __init__(self, *, steady: bool) -> None:
        self.steady = steady
        self.said: dict[tuple[str, str, str], Said] = {}
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []

    def say(self, said: Said) -> None:
        """Somebody is about to send it."""
        self.said[said.sender, said.receiver, said.id] = said

    def blame(self, why: str) -> None:
        """Something was not as promised."""
        self.counts["faults"] += 1
        if len(self.faults) < MOST_FAULTS:
            self.faults.append(why)

    def acknowledged(self, said: Said, time: int) -> None:
        """The server said that it is stored."""
        if said.time is None:
            said.time = time
            self.counts["acknowledged"] += 1
        elif said.time != time:
            self.blame(f"{said} was acknowledged again with another time, {time}")

    def heard(self, user: str, frame: Frame) -> Said | None:
        """A message came to a socket of `user`; None if nobody sent such a one."""
        sender, receiver = frame["from"], frame["to"]
        if user not in (sender, receiver):
            self.blame(f"{user} received what was not for him: {frame}")
        said = self.said.get((sender, receiver, frame.get("id", "")))
        if said is None or frame["content"] != said.content:
            self.blame(f"{user} received what nobody sent: {frame}")
            return None
        if said.time not in (None, frame["time"]):
            self.blame(f"{said} came with another time: {frame}")
        return said

    def stored(self, user: str, frame: Frame) -> Said | None:
        """A message came to `user` out of the history; None if nobody sent such a one."""
        said = self.heard(user, frame)
        if said and frame["read"] and not said.may_be_read:
            self.blame(f"{said} is read, although nobody marked it and no pong proved it")
        if said and said.barred:
            self.blame(f"{said} is stored, although the limit for strangers refused it")
        return said
