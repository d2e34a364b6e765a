"""What a store of messages must do, and the records it takes and gives."""

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

import msgspec


class Message(msgspec.Struct, frozen=True, gc=False):
    """A message. `time` is in microseconds since the epoch, unlike that of any other message."""

    sender: str
    receiver: str
    id: str
    text: str
    time: int
    read: bool = False


class Added(msgspec.Struct, frozen=True, gc=False):
    """What became of a message that was to be added.

    `new`: it was stored now. Otherwise its sender had used the id before, at `time`: `same` says whether
    with the same text, `unread` whether that one still waits to be read (a deleted one does not).
    """

    time: int
    new: bool = True
    same: bool = True
    unread: bool = True


class Conversation(msgspec.Struct, frozen=True):
    """A conversation as its user sees it: its newest message and how many of the peer's are unread."""

    peer: str
    last: Message
    unread: int


class Record(msgspec.Struct, frozen=True):
    """A message as it is kept: of a deleted one `text` is the salted digest."""

    sender: str
    receiver: str
    id: str
    text: str | bytes
    time: int
    read: bool


# A message of a conversation is named by who sent it and its id: (sender, id).
Name = tuple[str, str]

MOST_UNREAD = 1000  # unread messages of a conversation are counted up to here (protocol section 2, op 7)


class MessageStore(Protocol):
    """Messages and conversations, durable. Every method raises StoreUnavailable when the store fails.

    A conversation is a pair of users, whoever writes. An id is unique per sender and receiver. A deleted
    message leaves a tombstone (id, time and a salted digest of its text) that keeps its id used and its
    place, and is in no page. Pages are lists in order of time. No cost grows with the number of stored
    messages, but that of `skip`.
    """

    async def newest(self) -> int:
        """The time of the newest message ever added, 0 if there is none."""
        ...

    async def add(self, run: Sequence[Message]) -> list[Added]:
        """Store messages, unread, in this order. When it returns they are durable; the answers are in order.

        An id that its sender has used with the receiver is stored once, also when two come at once.
        """
        ...

    async def stored(self, messages: Sequence[Message]) -> list[Added | None]:
        """For each message, what is stored already under its id; None if nothing is."""
        ...

    async def recent(self, one: str, other: str, count: int) -> list[tuple[str, int]]:
        """Sender and time of the newest `count` messages, tombstones too, the newest first."""
        ...

    async def has_written(self, sender: str, receiver: str) -> bool:
        """Whether `sender` ever sent `receiver` a message that is stored, tombstones included."""
        ...

    async def place(self, one: str, other: str, sender: str, id: str) -> int | None:
        """The time of that message of the conversation, also of a tombstone; None if there is none."""
        ...

    async def skip(self, one: str, other: str, skip: int, count: int) -> list[Message]:
        """At most `count` messages after skipping the `skip` oldest (protocol section 2, `S-N`)."""
        ...

    async def before(self, one: str, other: str, time: int, count: int) -> list[Message]:
        """The `count` messages just before `time`."""
        ...

    async def after(self, one: str, other: str, time: int, count: int) -> list[Message]:
        """The `count` messages just after `time`."""
        ...

    async def unread(self, sender: str, receiver: str, after: int, count: int) -> list[Message]:
        """At most `count` unread messages to `receiver` after the time `after`, the oldest first."""
        ...

    async def mark(self, sender: str, receiver: str, ids: Sequence[str]) -> tuple[set[str], list[str]]:
        """Mark messages as read. Returns the ids that exist, and those that were unread until now."""
        ...

    async def mark_delivered(self, times: Sequence[int]) -> set[int]:
        """Mark the messages of those times, proven to have arrived; returns which were unread until now."""
        ...

    async def delete(self, one: str, other: str, names: Sequence[Sequence[Name]]) -> list[Name | None]:
        """For each of `names`, a list of names to try, delete the first that is there.

        One that was deleted before ends the search: a repeated request must not take another's message of that id.
        Returns the names deleted, None where there was none.
        """
        ...

    async def conversations(self, user: str, before: int, count: int) -> list[Conversation]:
        """At most `count` of the user's conversations whose newest message is older than `before`, the newest first.

        A conversation of tombstones alone is left out.
        """
        ...

    async def listed_at(self, user: str, peer: str) -> int | None:
        """The time of the newest message of a conversation, of tombstones alone about that; None if there is none."""
        ...

    async def purge(self, before: int, most: int) -> int:
        """Forget at most `most` messages older than `before`, whole; returns how many there were."""
        ...

    def peers(self, user: str) -> AsyncIterator[str]:
        """With whom `user` has conversations, also those of tombstones alone; some may have no message."""
        ...

    async def erase(self, one: str, other: str, most: int) -> int:
        """Forget at most `most` messages of the conversation, whole; returns how many there were.

        Where fewer are left the conversation itself is forgotten too.
        """
        ...

    async def ping(self) -> None:
        """Return if the store answers."""
        ...


class ExportableMessages(MessageStore, Protocol):
    """What moving messages to another store needs besides: they are read and written as they are kept."""

    async def count(self) -> int:
        """How many are stored, tombstones too; after a crash of the database perhaps only about."""
        ...

    def pairs(self) -> AsyncIterator[tuple[str, str]]:
        """The conversations, each as its two users, the lesser name first. Some may have no message."""
        ...

    async def records(self, one: str, other: str, after: int, until: int, count: int) -> list[Record]:
        """The first `count` messages after the time `after` and up to `until`, tombstones too."""
        ...

    async def put(self, records: Sequence[Record]) -> None:
        """Store messages of one conversation as they are, in place of their own earlier states.

        Raises Duplicate where a time, or an id of its sender, is another message's already; some of the
        others may be stored then. `settle` must follow the last call.
        """
        ...

    async def settle(self, one: str, other: str) -> None:
        """Bring the conversation to the place that its newest message has; of tombstones alone, the newest."""
        ...

    async def taken(self, times: Sequence[int]) -> set[int]:
        """Which of those times a message has."""
        ...
