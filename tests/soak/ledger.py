"""What the clients of a soak test observed: sent messages, answers and received frames; no state of the server."""

import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import strftime

from tests.harness import Frame

# The times of messages come from the server's clock, and those of answers from this process, on the same machine.
TOLERANCE = 20  # milliseconds
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
    group: "SoakGroup | None" = None
    tries: int = 0
    socket: int = 0  # the number of the socket that sent it last
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

    @property
    def peer(self) -> str:
        """The conversation as a receiver names it."""
        return self.receiver if self.group else self.sender

    def __str__(self) -> str:
        return f"{self.id} of {self.device} to {self.receiver} ({self.tries} tries, acknowledged: {self.time})"


@dataclass(eq=False)
class SoakGroup:
    """A group. Its owner is the first of the members who stay.

    `absent` has, for each guest, the periods in milliseconds in which it was certainly no member: from the answer to
    its removal to the next request to add it. The last period may be open.
    """

    name: str
    members: Sequence[str]
    guests: Sequence[str]
    absent: dict[str, list[list[float]]] = field(default_factory=dict)
    added: dict[str, float] = field(default_factory=dict)  # when the last request to add a guest was answered
    asked: dict[str, set[SentMessage]] = field(default_factory=lambda: defaultdict(set))  # op 4 by this user
    confirmed: dict[str, set[SentMessage]] = field(default_factory=lambda: defaultdict(set))  # a pong by this user
    marked: dict[str, set[SentMessage]] = field(default_factory=lambda: defaultdict(set))  # op 4, answered

    def __post_init__(self) -> None:
        self.absent = {guest: [[0, float("inf")]] for guest in self.guests}

    @property
    def owner(self) -> str:
        return self.members[0]

    def was_absent(self, user: str, at: int) -> bool:
        """Whether the user was certainly no member at this time in milliseconds."""
        if user in self.members:
            return False
        periods = self.absent.get(user, [[0, float("inf")]])
        return any(start + TOLERANCE < at < end for start, end in periods)


class Ledger:
    """All sent messages, and all faults in what the server returned.

    `steady`: all stores are always available. Then `store_away` is a fault, and every confirmed message gets marked.
    `gaps`: there are several processes. After a gap, one of them delivers unread messages of the last minute again,
    also to sockets that are newer, and only messages from one socket are in order (protocol section 7).
    """

    def __init__(self, *, steady: bool, gaps: bool = False) -> None:
        self.steady = steady
        self.gaps = gaps
        self.sent: dict[tuple[str, str, str], SentMessage] = {}
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self.groups: dict[str, SoakGroup] = {}  # by name
        self.blocks: set[tuple[str, str]] = set()  # from before the load to its end: the blocker, the blocked user

    def add(self, message: SentMessage) -> None:
        """Record a message before a client sends it."""
        self.sent[message.sender, message.receiver, message.id] = message

    def fault(self, why: str) -> None:
        """Record a broken promise, and print it with the time, by which the logs of the server can be searched."""
        self.counts["faults"] += 1
        if len(self.faults) < MAX_FAULTS:
            self.faults.append(why)
            print(f"FAULT at {strftime('%H:%M:%S')}: {why}", file=sys.stderr, flush=True)

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
        if group := self.groups.get(receiver):
            for one in {user, sender}:
                if group.was_absent(one, frame["time"]):
                    self.fault(f"{user} received a message, but {one} was not in {receiver}: {frame}")
        elif user not in (sender, receiver):
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
        if message and frame["read"] and not message.may_be_read and not message.group:
            self.fault(f"{message} is read, but was neither marked nor confirmed")
        if message and message.refused:
            self.fault(f"{message} is stored, although the contact limit or a block refused it")
        return message
