"""What the clients of a soak test observed: sent messages, answers and received frames; no state of the server."""

from collections import Counter
from dataclasses import dataclass

from tests.harness import Frame

MAX_FAULTS = 50  # with a description; more faults are only counted


@dataclass(slots=True, eq=False)
class SentMessage:
    """A message that a client sent. Times in milliseconds."""

    sender: str
    receiver: str
    id: str
    text: str
    device: str  # the client of the sender
    number: int  # in that client's order of sending
    limited: bool = False  # the contact limit applies, because the receiver never answers
    tries: int = 0
    time: int | None = None  # in its acknowledgement
    refused: bool = False  # by the contact limit
    may_be_read: bool = False  # after its delivery a pong was sent, or op 4 named it
    read: bool = False  # and a later answer shows that the server processed this
    may_be_deleted: bool = False  # op 5 was sent
    deleted: bool = False  # and answered

    @property
    def content(self) -> str:
        """The `content` of its frames."""
        return f"{self.id}\n{self.text}"

    def __str__(self) -> str:
        return f"{self.id} of {self.device} to {self.receiver} ({self.tries} tries, acknowledged: {self.time})"


class Ledger:
    """All sent messages, and all faults in what the server returned.

    `steady`: all stores are always available. Then `store_away` is a fault, and every confirmed message gets marked.
    """

    def __init__(self, *, steady: bool) -> None:
        self.steady = steady
        self.sent: dict[tuple[str, str, str], SentMessage] = {}
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self.blocks: set[tuple[str, str]] = set()  # from before the load to its end: the blocker, the blocked user

    def add(self, message: SentMessage) -> None:
        """Record a message before a client sends it."""
        self.sent[message.sender, message.receiver, message.id] = message

    def fault(self, why: str) -> None:
        """Record a broken promise."""
        self.counts["faults"] += 1
        if len(self.faults) < MAX_FAULTS:
            self.faults.append(why)

    def acknowledge(self, message: SentMessage, time: int) -> None:
        """Record an acknowledgement."""
        if message.time is None:
            message.time = time
            self.counts["acknowledged"] += 1
        elif message.time != time:
            self.fault(f"{message} was acknowledged again with another time, {time}")

    def check_received(self, user: str, frame: Frame) -> SentMessage | None:
        """Check a message that arrived on a socket of `user`; return None if no client sent it."""
        sender, receiver = frame["from"], frame["to"]
        if user not in (sender, receiver):
            self.fault(f"{user} received a message of other users: {frame}")
        message = self.sent.get((sender, receiver, frame.get("id", "")))
        if message is None or frame["content"] != message.content:
            self.fault(f"{user} received a message that no client sent: {frame}")
            return None
        if message.time not in (None, frame["time"]):
            self.fault(f"{message} has another time: {frame}")
        return message

    def check_stored(self, user: str, frame: Frame) -> SentMessage | None:
        """Check a stored message that `user` read; return None if no client sent it."""
        message = self.check_received(user, frame)
        if message and frame["read"] and not message.may_be_read:
            self.fault(f"{message} is read, but was neither marked nor confirmed")
        if message and message.refused:
            self.fault(f"{message} is stored, although the contact limit or a block refused it")
        return message
