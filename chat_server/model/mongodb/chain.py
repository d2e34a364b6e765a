"""Messages of several server processes: the store keeps the order of each conversation (docs/decisions/0002).

Each message names the one before it, and no two messages can name the same one. So once a message is visible, none with
an earlier time becomes visible in its conversation: it would need a predecessor without a successor, and only the
newest message has none. This holds whatever the clocks, the leases or a delayed write do.
"""

import asyncio
import secrets
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec
from bson import Binary, Int64
from pymongo.errors import BulkWriteError

from chat_server.model.messages import CACHED_SECONDS, Added, ConversationKey, LogEntry, Message
from chat_server.model.mongodb.documents import (
    LATEST,
    conversation_key,
    conversation_of,
    earlier_message,
    to_document,
    to_message,
)
from chat_server.model.mongodb.messages import MongoMessages
from chat_server.utils.clock import MICROSECONDS, Timeline

# Conversations whose newest time is cached: about 15 MiB.
CACHED_CONVERSATIONS = 65536
# An older time is read again, in microseconds. Expiry removes no message younger than 86 s (MessageDays), so no process
# continues after a message that is removed, while another one starts the conversation anew.
CACHED_FOR = CACHED_SECONDS * MICROSECONDS


class Link(NamedTuple):
    """A message to insert, and the time of the message before it in its conversation; 0 for the first one."""

    message: Message
    before: int


class ChainedMessages(MongoMessages):
    """MongoMessages for several processes. `timeline` gives a message a later time if its own is taken or too early."""

    def __init__(self, timeline: Timeline, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._timeline = timeline
        self._newest = NewestTimes(CACHED_CONVERSATIONS)
        self.conflicts = 0  # inserts that another process forced to be repeated

    async def prepare(self, days: float) -> None:
        await super().prepare(days)
        # Messages of a single process name none before them.
        chained = {"prev": {"$exists": True}}
        await self._call(
            self._messages.create_index([("conv", 1), ("prev", 1)], unique=True, partialFilterExpression=chained)
        )

    def saw(self, message: Message) -> None:
        self._newest.raise_to(conversation_of(message), message.time)

    async def since(self, time: int, count: int) -> list[LogEntry]:
        query = {"_id": {"$gt": Int64(time), "$lt": LATEST}}
        found = await self._call(self._messages.find(query).sort("_id", 1).limit(count).to_list(count))
        return [
            LogEntry(
                document["conv"],
                int(document["_id"]),
                int(document.get("prev", 0)),
                None if document["deleted"] else to_message(document),
            )
            for document in found
        ]

    async def end_of(self, key: ConversationKey) -> int:
        return 1 + await self._read_newest(conversation_key(key))

    async def _insert(self, messages: Sequence[Message]) -> list[Added]:
        added, left = list[Added](), list(messages)
        while left:  # each repetition means that another process stored something, or that an id is in use
            links = await self._link(left)
            inserted = await self._insert_links(links)
            added += [Added(message.time) for message, _ in links[:inserted]]
            left = [message for message, _ in links[inserted:]]
            if left and (document := (await self._durable(left[:1]))[0]):  # or the driver repeated the write
                added.append(earlier_message(document, left[0]) or Added(left[0].time))
                del left[0]
            elif left:  # another process has extended the conversation, or taken the time
                self.conflicts += 1
                left[0] = msgspec.structs.replace(left[0], time=self._timeline.next())
                if not left[0].group:
                    await self._conversations.touch(left[:1])
        return added

    async def _mark_times(self, times: Sequence[Int64]) -> set[int]:
        """See MongoMessages. Another process may mark the same messages, so each document names the call that did."""
        mark = Binary(secrets.token_bytes(8))
        query = {"_id": {"$in": list(times)}, "read": False}
        result = await self._call(self._messages.update_many(query, {"$set": {"read": True, "marked_by": mark}}))
        if result.modified_count == len(times):
            return set(map(int, times))
        query = {"_id": {"$in": list(times)}, "marked_by": mark}
        found = await self._call(self._messages.find(query, {"_id": 1}).to_list(None))
        return {int(document["_id"]) for document in found}

    async def _link(self, messages: Sequence[Message]) -> list[Link]:
        """Put each message after the newest one of its conversation, or after the one before it in `messages`."""
        newest = await self._newest_times({conversation_of(message) for message in messages})
        links, later = [], []
        for message in messages:
            conv, one = conversation_of(message), message
            if message.time <= newest[conv]:
                self._timeline.advance(newest[conv])
                one = msgspec.structs.replace(message, time=self._timeline.next())
                later.append(one)
            links.append(Link(one, newest[conv]))
            newest[conv] = one.time
        if between_users := [message for message in later if not message.group]:
            await self._conversations.touch(between_users)
        return links

    async def _insert_links(self, links: Sequence[Link]) -> int:
        """Insert messages in order until one fails as a duplicate. Returns the number of those before it."""
        inserted = len(links)
        documents = [{**to_document(message), "prev": Int64(before)} for message, before in links]
        try:
            await self._call(self._messages.insert_many(documents))  # none is stored without its predecessor
        except BulkWriteError as error:
            [inserted] = self._duplicates(error)
        for message, _ in links[:inserted]:
            self.saw(message)
        for message, _ in links[inserted:]:
            self._newest.forget(conversation_of(message))
        return inserted

    async def _newest_times(self, convs: Iterable[str]) -> dict[str, int]:
        """Return the time of the newest message of each conversation, 0 if there is none; it may be outdated."""
        earliest = self._timeline.now() - CACHED_FOR
        newest = {conv: self._newest.get(conv, earliest) for conv in convs}
        unknown = [conv for conv, time in newest.items() if not time]
        newest.update(zip(unknown, await asyncio.gather(*map(self._read_newest, unknown)), strict=True))
        return newest


class NewestTimes:
    """A cache of the time of the newest message, by conversation. A wrong entry only costs a repeated insert."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._times: dict[str, int] = {}  # the conversation that was noted first is the first

    def get(self, conv: str, earliest: int) -> int:
        """Return the time if it is known and not before `earliest`, otherwise 0."""
        time = self._times.get(conv, 0)
        return time if time >= earliest else 0

    def raise_to(self, conv: str, time: int) -> None:
        """Note that there is a message of this time."""
        time = max(time, self._times.pop(conv, 0))
        if len(self._times) >= self._most:
            del self._times[next(iter(self._times))]
        self._times[conv] = time

    def forget(self, conv: str) -> None:
        """Forget an outdated time."""
        self._times.pop(conv, None)
