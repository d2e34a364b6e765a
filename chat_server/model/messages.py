"""The interface of a message store, and its records."""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import msgspec

# With several processes, a process continues a conversation after a message that it cached at most this long ago.
CACHED_SECONDS = 60


class Pair(NamedTuple):
    """The conversation of two users, in either order."""

    one: str
    other: str


class GroupKey(NamedTuple):
    """The conversation of a group. The number keys its messages; the name becomes the receiver of each message."""

    number: int
    name: str


ConversationKey = Pair | GroupKey


class Message(msgspec.Struct, frozen=True, gc=False):
    """A message. `time` is in microseconds since the epoch and unique among all messages.

    `group` is the number of the group in whose conversation it is, and `receiver` then the name of the group. In such
    a message, stores return `read` as False: each member has a read position instead.
    """

    sender: str
    receiver: str
    id: str
    text: str
    time: int
    read: bool = False
    group: int = 0


class Added(msgspec.Struct, frozen=True, gc=False):
    """The result of adding a message.

    `new`: it was stored now. Otherwise its sender had already used the id, at `time`: `same` says whether with the
    same text, and `unread` whether the earlier message is unread (a deleted message is not).
    """

    time: int
    new: bool = True
    same: bool = True
    unread: bool = True


class Conversation(msgspec.Struct, frozen=True):
    """A conversation as one user sees it: its newest message and the number of unread messages from others.

    `peer` is the other user or the name of the group. A group without visible messages has no `last`; `time` is then
    the time of joining, otherwise that of the newest message.
    """

    peer: str
    last: Message | None
    unread: int
    time: int
    group: int = 0


class GroupView(NamedTuple):
    """The conversation of a group as a member sees it: the messages sent after `since`, the time of joining."""

    key: GroupKey
    since: int


class Confirmed(NamedTuple):
    """The times of messages of a group that a member has received, in order, and the member's time of joining."""

    since: int
    times: Sequence[int]


class Record(msgspec.Struct, frozen=True):
    """A message as it is stored. The `text` of a deleted message is its salted digest; `group` as in Message."""

    sender: str
    receiver: str
    id: str
    text: str | bytes
    time: int
    read: bool
    group: int = 0


# Within a conversation, sender and id identify a message.
MessageKey = tuple[str, str]

MAX_UNREAD = 1000  # the count of unread messages stops here (protocol section 2, op 7)


class MessageStore(Protocol):
    """Durable messages and conversations. Every method raises StoreUnavailable if the store fails.

    A conversation belongs to a pair of users, in both directions, or to a group. An id is unique per sender and
    conversation. A deleted message leaves a tombstone: its id, its time and a salted digest of its text. The id stays
    used and remains a valid position, but no page contains the message. Pages are lists in order of time; those of a
    group contain only messages after the time `since`. Only the cost of `skip` grows with the number of stored
    messages.

    Messages between two users are unread or read. In a group, each member has a read position instead, the time up to
    which all messages are read; a member without a stored one has read the messages up to the time of joining.
    """

    async def newest(self) -> int:
        """Return the time of the newest message ever added, 0 if there is none."""
        ...

    async def add(self, batch: Sequence[Message]) -> list[Added]:
        """Store messages as unread, in this order. They are durable on return; the results are in the same order.

        If another process has stored a later message of the conversation, a message gets a time after that one.
        An id that its sender has already used in the conversation is stored once, even if both arrive together.
        """
        ...

    async def time_of(self, key: ConversationKey, sender: str, id: str) -> int | None:
        """Return the time of a message of the conversation, also of a tombstone; None if it does not exist."""
        ...

    async def skip(self, key: ConversationKey, skip: int, count: int, since: int = 0) -> list[Message]:
        """Return at most `count` messages after the `skip` oldest (protocol section 2, `S-N`)."""
        ...

    async def before(self, key: ConversationKey, time: int, count: int, since: int = 0) -> list[Message]:
        """Return the `count` messages just before `time`."""
        ...

    async def after(self, key: ConversationKey, time: int, count: int) -> list[Message]:
        """Return the `count` messages just after `time`."""
        ...

    async def delete(self, key: ConversationKey, keys: Sequence[Sequence[MessageKey]]) -> list[MessageKey | None]:
        """For each list of alternative keys, delete the first message that exists.

        A tombstone ends the search: a repeated request must not delete another message with the same id.
        Returns the deleted keys, None where there was nothing to delete.
        """
        ...

    async def purge(self, before: int, limit: int) -> int:
        """Remove at most `limit` messages older than `before`, leaving no tombstones. Returns how many."""
        ...

    async def erase(self, key: ConversationKey, limit: int) -> int:
        """Remove at most `limit` messages of the conversation, leaving no tombstones. Returns how many.

        If there were fewer, the conversation itself is removed too, with the read positions of a group.
        """
        ...

    async def ping(self) -> None:
        """Return if the store answers."""
        ...

    # --- conversations of two users

    async def stored(self, messages: Sequence[Message]) -> list[Added | None]:
        """Return for each message what is stored under its id, or None."""
        ...

    async def recent(self, pair: Pair, count: int) -> list[tuple[str, int]]:
        """Return sender and time of the newest `count` messages, tombstones included, the newest first."""
        ...

    async def have_written(self, senders: Sequence[str], receiver: str) -> set[str]:
        """Return which of these users have sent a message to `receiver`, tombstones included."""
        ...

    async def unread(self, sender: str, receiver: str, after: int, count: int) -> list[Message]:
        """Return at most `count` unread messages to `receiver` after the time `after`, the oldest first."""
        ...

    async def mark(self, sender: str, receiver: str, ids: Sequence[str]) -> tuple[set[str], list[str]]:
        """Mark messages as read. Returns the ids that exist, and those that were unread until now."""
        ...

    async def mark_delivered(self, times: Sequence[int]) -> set[int]:
        """Mark the messages of these times, whose delivery is confirmed. Returns those that were unread until now."""
        ...

    async def conversations(self, user: str, before: int, count: int) -> list[Conversation]:
        """Return at most `count` of the user's conversations with other users, with newest messages before `before`.

        The newest comes first. Conversations that consist of tombstones are left out.
        """
        ...

    async def newest_peers(self, user: str, count: int) -> list[str]:
        """Return the peers of the user's newest `count` conversations, newest first; no message is read for it.

        A conversation of tombstones alone is left out; one whose messages have all expired may be included.
        """
        ...

    async def listed_at(self, user: str, peer: str) -> int | None:
        """Return the position of a conversation in the list: the time of its newest message.

        For a conversation of tombstones, about that time; None if there is no conversation.
        """
        ...

    def peers(self, user: str) -> AsyncIterator[str]:
        """Iterate over the users with whom `user` has conversations, including those without any message left."""
        ...

    # --- groups

    async def newest_with_id(self, group: GroupKey, id: str) -> tuple[str, int] | None:
        """Return sender and time of the newest message with this id, also of a tombstone; None if there is none."""
        ...

    async def group_conversations(self, user: str, views: Sequence[GroupView]) -> list[Conversation]:
        """Return these groups, in any order, as the member `user` sees them; `unread` as in op 7."""
        ...

    async def positions(self, numbers: Sequence[int]) -> dict[int, dict[str, int]]:
        """Return for each of these groups the stored read positions by user; former members may be among them."""
        ...

    async def move_position(self, number: int, user: str, time: int) -> bool:
        """Move the read position of a member forward to `time`. Returns False if it was there or later."""
        ...

    async def advance(self, number: int, confirmed: Mapping[str, Confirmed]) -> dict[str, int]:
        """Move the read position of each user past the confirmed messages, but past no other message by others.

        The user's own messages and tombstones count as read. Returns, for each user whose position passed confirmed
        messages, the time of the last of them.
        """
        ...

    async def erase_sent(self, number: int, user: str, limit: int) -> int:
        """Remove at most `limit` messages by `user` in a group, leaving no tombstones. Returns how many.

        With several processes, the newest message of the group becomes a tombstone without a sender.
        If there were fewer, the user's read position is removed too.
        """
        ...


class LogEntry(NamedTuple):
    """A message among all of a store; None if it is deleted. `before`: the one before it in its conversation, or 0."""

    conversation: str
    time: int
    before: int
    message: Message | None


class MessageLog(Protocol):
    """What several processes need of a MessageStore in addition."""

    def saw(self, message: Message) -> None:
        """Note a message that another process has stored, so that the next one here needs no query."""
        ...

    async def since(self, time: int, count: int) -> list[LogEntry]:
        """Return the first `count` messages of all conversations after `time`, in order. Raises StoreUnavailable.

        A message may appear later than one with a greater time, but not in its own conversation.
        """
        ...

    async def end_of(self, key: ConversationKey) -> int:
        """Return a time after every message of a conversation that is stored now. Raises StoreUnavailable."""
        ...


class ExportableMessages(MessageStore, Protocol):
    """What a migration needs in addition: reading and writing messages as they are stored."""

    async def count(self) -> int:
        """Return the number of messages, tombstones included; after a crash of the database an estimate."""
        ...

    def pairs(self) -> AsyncIterator[Pair]:
        """Iterate over the conversations of two users, the lesser name first. Some may have no message."""
        ...

    async def records(self, key: ConversationKey, after: int, until: int, count: int) -> list[Record]:
        """Return the first `count` messages after the time `after` and up to `until`, tombstones included."""
        ...

    async def put(self, records: Sequence[Record]) -> None:
        """Store messages of one conversation as they are, replacing earlier states of the same messages.

        Raises Duplicate if another message already has one of the times, or one of the ids of a sender; some of the
        other messages may then be stored. After the last call for a pair, call `update_last`.
        """
        ...

    async def put_positions(self, number: int, positions: Mapping[str, int]) -> None:
        """Store read positions as they are."""
        ...

    async def update_last(self, pair: Pair) -> None:
        """Move the conversation to the time of its newest message in the list; if all are tombstones, of the newest."""
        ...

    async def used_times(self, times: Sequence[int]) -> set[int]:
        """Return which of these times belong to a message."""
        ...
