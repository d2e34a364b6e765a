"""Messages in MongoDB."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import pymongo
from bson import Binary, Int64
from pymongo.errors import BulkWriteError

from chat_server.model.messages import (
    MAX_UNREAD,
    Added,
    Conversation,
    ConversationKey,
    GroupKey,
    Message,
    MessageKey,
    Pair,
    Record,
)
from chat_server.model.mongodb.connection import Calls
from chat_server.model.mongodb.conversations import MongoConversations
from chat_server.model.mongodb.documents import (
    EARLIEST,
    LATEST,
    Document,
    conversation_key,
    conversation_of,
    earlier_message,
    inbox_key,
    pair_key,
    to_document,
    to_message,
    to_record,
    unread_messages,
)
from chat_server.model.mongodb.group_messages import MongoGroupMessages
from chat_server.model.mongodb.probe import probe_writes
from chat_server.utils.batch import Batcher
from chat_server.utils.digest import digest
from chat_server.utils.errors import Duplicate, StoreUnavailable
from chat_server.utils.lease import Held, always
from chat_server.utils.metrics import NO_STORE_METRICS, StoreMetrics

T = TypeVar("T")

# Callers whose messages go into one insert, at most.
MAX_CALLERS = 512
EXPIRY = "at_1"  # the index by which messages expire
# Op 7 reads at least this many inboxes at a time, because some may have no message left.
MIN_LISTED = 200


class MongoMessages(MongoGroupMessages):
    """MessageStore on MongoDB. The time of a message is its _id; `timeout` in seconds bounds every call.

    `held` says whether this process still holds the lease on the database; without it, nothing counts as stored.
    `name` names the server in errors.
    """

    def __init__(
        self,
        database: Any,
        timeout: float,
        held: Held = always,
        watch: StoreMetrics = NO_STORE_METRICS,
        name: str = "MongoDB",
    ) -> None:
        super().__init__(database, Calls(timeout, name, watch))
        self._held = held
        self._watch = watch
        self._database = database
        self._conversations = MongoConversations(database, self._call)
        self._marking = self._call.one_at_a_time()  # so that only one caller marks a message
        self._adding: Batcher[Sequence[Message], list[Added]] = Batcher(
            self._add_batches, most=MAX_CALLERS, timeout=timeout, watch=watch, name=name
        )

    async def prepare(self, days: float) -> None:
        """Create the indexes. Messages expire after `days`; 0 means never."""
        by_id = [("conv", 1), ("from", 1), ("mid", 1)]
        by_time = [("conv", 1), ("deleted", 1), ("_id", 1)]
        unread = [("to", 1), ("conv", 1), ("_id", 1)]
        await self._call(self._messages.create_index(by_id, unique=True))
        await self._call(self._messages.create_index(by_time))
        await self._call(self._messages.create_index(unread, partialFilterExpression={"read": False}))
        of_groups = [("conv", 1), ("mid", 1), ("_id", 1)]
        await self._call(self._messages.create_index(of_groups, partialFilterExpression={"group": True}))
        await self._conversations.prepare()
        await self._expire_after(days)

    async def newest(self) -> int:
        query = {"_id": {"$gt": EARLIEST, "$lt": LATEST}}
        found = await self._call(self._messages.find(query, {"_id": 1}).sort("_id", -1).limit(1).to_list(1))
        return int(found[0]["_id"]) if found else 0

    async def add(self, batch: Sequence[Message]) -> list[Added]:
        return await self._adding.submit(batch)

    async def stored(self, messages: Sequence[Message]) -> list[Added | None]:
        documents = await self._durable(messages)
        return [earlier_message(document, message) for document, message in zip(documents, messages, strict=True)]

    async def recent(self, pair: Pair, count: int) -> list[tuple[str, int]]:
        found: list[tuple[str, int]] = []
        for deleted in (False, True):
            query = {"conv": pair_key(*pair), "deleted": deleted, "_id": {"$gt": EARLIEST, "$lt": LATEST}}
            documents = await self._call(
                self._messages.find(query, {"from": 1}).sort("_id", -1).limit(count).to_list(count)
            )
            found += [(document["from"], int(document["_id"])) for document in documents]
        return sorted(found, key=lambda entry: entry[1], reverse=True)[:count]

    async def have_written(self, senders: Sequence[str], receiver: str) -> set[str]:
        queries = [{"conv": pair_key(sender, receiver), "from": sender} for sender in senders]
        found = await asyncio.gather(*(self._call(self._messages.find_one(query, {"from": 1})) for query in queries))
        return {document["from"] for document in found if document}

    async def time_of(self, key: ConversationKey, sender: str, id: str) -> int | None:
        query = {"conv": conversation_key(key), "from": sender, "mid": id}
        document = await self._call(self._messages.find_one(query, {"_id": 1}))
        return int(document["_id"]) if document else None

    async def skip(self, key: ConversationKey, skip: int, count: int, since: int = 0) -> list[Message]:
        return await self._page(key, since, LATEST, 1, count, skip=skip)

    async def before(self, key: ConversationKey, time: int, count: int, since: int = 0) -> list[Message]:
        return (await self._page(key, since, time, -1, count))[::-1]

    async def after(self, key: ConversationKey, time: int, count: int) -> list[Message]:
        return await self._page(key, time, LATEST, 1, count)

    async def unread(self, sender: str, receiver: str, after: int, count: int) -> list[Message]:
        query = {**unread_messages(sender, receiver), "_id": {"$gt": Int64(after), "$lt": LATEST}}
        documents = await self._call(self._messages.find(query).sort("_id", 1).limit(count).to_list(count))
        return [to_message(document) for document in documents]

    async def mark(self, sender: str, receiver: str, ids: Sequence[str]) -> tuple[set[str], list[str]]:
        if not ids:
            return set(), []
        conv = pair_key(sender, receiver)
        query = {"conv": conv, "from": sender, "mid": {"$in": list(ids)}, "deleted": False}
        async with self._marking.hold():
            documents = await self._call(self._messages.find(query, {"mid": 1, "read": 1}).to_list(None))
            found = {document["mid"] for document in documents}
            unread = {document["mid"]: document["_id"] for document in documents if not document["read"]}
            marked = await self._mark_times(list(unread.values())) if unread else set()
        return found, [id for id in dict.fromkeys(ids) if unread.get(id) in marked]

    async def mark_delivered(self, times: Sequence[int]) -> set[int]:
        query = {"_id": {"$in": [Int64(time) for time in times]}, "read": False}
        async with self._marking.hold():
            documents = await self._call(self._messages.find(query, {"_id": 1}).to_list(None))
            return await self._mark_times([document["_id"] for document in documents]) if documents else set()

    async def delete(self, key: ConversationKey, keys: Sequence[Sequence[MessageKey]]) -> list[MessageKey | None]:
        return [await self._delete_first(conversation_key(key), alternatives) for alternatives in keys]

    async def conversations(self, user: str, before: int, count: int) -> list[Conversation]:
        page: list[Conversation] = []
        limit = max(count, MIN_LISTED)
        while len(page) < count:
            inboxes = await self._conversations.listed(user, before, limit)
            for start in range(0, len(inboxes), count):
                part = inboxes[start : start + count]
                found = await asyncio.gather(*(self._conversation(user, inbox["peer"]) for inbox in part))
                await self._conversations.hide(
                    [inbox for inbox, conversation in zip(part, found, strict=True) if not conversation]
                )
                page += [conversation for conversation in found if conversation]
                if len(page) >= count:
                    break
            if len(inboxes) < limit:
                break
            before = inboxes[-1]["last"]
        return page[:count]

    async def newest_peers(self, user: str, count: int) -> list[str]:
        return [inbox["peer"] for inbox in await self._conversations.listed(user, LATEST, count)]

    async def listed_at(self, user: str, peer: str) -> int | None:
        last = await self._conversations.last(user, peer)
        return None if last is None else abs(last)

    async def purge(self, before: int, limit: int) -> int:
        query = {"_id": {"$gt": EARLIEST, "$lt": Int64(before)}}
        removed = await self._remove(self._messages.find(query, {"_id": 1}).sort("_id", 1).limit(limit), limit)
        if removed < limit:
            await self._remove_empty(before, limit)
        return removed

    def peers(self, user: str) -> AsyncIterator[str]:
        return self._conversations.peers(user)

    async def erase(self, key: ConversationKey, limit: int) -> int:
        query = {"conv": conversation_key(key)}
        removed = await self._remove(self._messages.find(query, {"_id": 1}).limit(limit), limit)
        if removed < limit and isinstance(key, GroupKey):
            await self._remove_positions(key.number)
        elif removed < limit:
            await self._conversations.remove([inbox_key(*key), inbox_key(*key[::-1])])
        return removed

    async def ping(self) -> None:
        conversations = self._conversations.collection
        await self._watch.time_call(probe_writes(self._messages, conversations, self._call.timeout, self._call.name))
        await self._expect_lease()

    # --- migration

    async def count(self) -> int:
        return int(await self._call(self._messages.estimated_document_count()))

    def pairs(self) -> AsyncIterator[Pair]:
        return self._conversations.pairs()

    async def records(self, key: ConversationKey, after: int, until: int, count: int) -> list[Record]:
        found: list[Record] = []
        for deleted in (False, True):
            time = {"$gt": Int64(after), "$lte": Int64(until)}
            query = {"conv": conversation_key(key), "deleted": deleted, "_id": time}
            documents = await self._call(self._messages.find(query).sort("_id", 1).limit(count).to_list(count))
            found += [to_record(document) for document in documents]
        return sorted(found, key=lambda record: record.time)[:count]

    async def put(self, records: Sequence[Record]) -> None:
        documents = [to_document(record) for record in records]
        try:
            await self._call(self._messages.insert_many(documents, ordered=False))
        except BulkWriteError as error:
            existing = [documents[index] for index in self._duplicates(error)]
            replacements = [
                pymongo.ReplaceOne(
                    {key: document[key] for key in ("_id", "conv", "from", "mid")}, document, upsert=True
                )
                for document in existing
            ]
            try:
                await self._call(self._messages.bulk_write(replacements, ordered=False))
            except BulkWriteError as another:
                self._duplicates(another)
                raise Duplicate("a time or an id") from another
        await self._expect_lease()

    async def update_last(self, pair: Pair) -> None:
        newest = await self._page(pair, 0, LATEST, -1, 1)
        last = newest[0].time if newest else -(await self.recent(pair, 1))[0][1]
        await self._conversations.set_last(pair, last)

    async def used_times(self, times: Sequence[int]) -> set[int]:
        query = {"_id": {"$in": [Int64(time) for time in times]}}
        documents = await self._call(self._messages.find(query, {"_id": 1}).to_list(None))
        return {int(document["_id"]) for document in documents}

    # --- adding

    async def _add_batches(self, batches: list[Sequence[Message]]) -> Sequence[list[Added]]:
        """Insert the messages of several callers, except for retries."""
        messages = [message for batch in batches for message in batch]
        earlier = await self.stored(messages)
        new = [message for message, known in zip(messages, earlier, strict=True) if not known]
        if between_users := [message for message in new if not message.group]:
            await self._conversations.touch(between_users)
        inserted = iter(await self._insert(new) if new else [])
        added = iter([known or next(inserted) for known in earlier])
        await self._expect_lease()
        return [[next(added) for _ in batch] for batch in batches]

    async def _insert(self, messages: Sequence[Message]) -> list[Added]:
        rejected: list[int] = []
        try:
            await self._call(self._messages.insert_many([to_document(message) for message in messages], ordered=False))
        except BulkWriteError as error:
            rejected = self._duplicates(error)
        # The second of two messages with one id in a batch finds the first. If the driver repeated a write whose
        # answer was lost, the message finds itself and is new.
        documents = await self._durable([messages[index] for index in rejected])
        if None in documents:  # not the id but the time is in use, by another server
            raise self._call.incomplete()
        earlier = dict(zip(rejected, documents, strict=True))
        return [
            earlier_message(earlier.get(index), message) or Added(message.time)
            for index, message in enumerate(messages)
        ]

    async def _durable(self, messages: Sequence[Message]) -> list[Document | None]:
        """Return for each message the document with its id, or None. The documents are durable."""
        ids: dict[tuple[str, str], list[str]] = {}
        for message in messages:
            ids.setdefault((conversation_of(message), message.sender), []).append(message.id)
        query = [{"conv": conv, "from": sender, "mid": {"$in": mids}} for (conv, sender), mids in ids.items()]
        documents = await self._call(self._messages.find({"$or": query}).to_list(None)) if query else []
        if documents:
            # A document that was only read may still be rolled back. A write waits until everything before it is
            # journaled on a majority, even if it changes nothing.
            there = {"_id": {"$in": [document["_id"] for document in documents]}}
            confirmed = await self._call(self._messages.update_many(there, {"$unset": {"nothing": ""}}))
            if confirmed.matched_count < len(documents):
                raise StoreUnavailable(f"{self._call.name}: it rolled back what it had stored")
        found = {(document["conv"], document["from"], document["mid"]): document for document in documents}
        return [found.get((conversation_of(m), m.sender, m.id)) for m in messages]

    async def _expect_lease(self) -> None:
        if not await self._held():
            raise StoreUnavailable(f"{self._call.name}: the lease was not renewed in time")

    # --- shared by several methods

    async def _conversation(self, user: str, peer: str) -> Conversation | None:
        last = await self._page(Pair(user, peer), 0, LATEST, -1, 1)
        if not last:
            return None
        query = {**unread_messages(peer, user), "_id": {"$gt": EARLIEST, "$lt": LATEST}}
        unread = await self._call(self._messages.find(query, {"_id": 1}).limit(MAX_UNREAD).to_list(MAX_UNREAD))
        return Conversation(peer, last[0], len(unread), last[0].time)

    async def _mark_times(self, times: Sequence[Int64]) -> set[int]:
        """Mark unread messages as read. Returns the times of those that this call has marked."""
        await self._call(self._messages.update_many({"_id": {"$in": list(times)}}, {"$set": {"read": True}}))
        return set(map(int, times))

    async def _delete_first(self, conv: str, alternatives: Sequence[MessageKey]) -> MessageKey | None:
        for sender, id in alternatives:
            document = await self._call(self._messages.find_one({"conv": conv, "from": sender, "mid": id}))
            if document is None:
                continue
            if document["deleted"]:
                return None
            change = {"deleted": True, "read": True, "digest": Binary(digest(document["text"]))}
            result = await self._call(
                self._messages.update_one(
                    {"_id": document["_id"], "deleted": False}, {"$set": change, "$unset": {"text": ""}}
                )
            )
            if not result.modified_count:  # deleted by another call meanwhile
                return None
            if "group" not in document:
                await self._move_conversation(document)
            return sender, id
        return None

    async def _move_conversation(self, deleted: Document) -> None:
        """After a deletion, list the conversation at its newest remaining message, or hide it if there is none."""
        pair = Pair(deleted["from"], deleted["to"])
        newest = await self._page(pair, 0, LATEST, -1, 1)
        last = newest[0].time if newest else -deleted["_id"]
        await self._conversations.replace_last(pair, deleted["_id"], last)

    async def _remove_empty(self, before: int, limit: int) -> None:
        """Remove old inboxes without messages. Deletions can move an inbox back in time, so each one is checked."""
        for inbox in await self._conversations.older(before, limit):
            conv = pair_key(inbox["user"], inbox["peer"])
            if await self._call(self._messages.find_one({"conv": conv}, {"_id": 1})) is None:
                await self._conversations.remove([inbox["_id"]])

    async def _expire_after(self, days: float) -> None:
        """Let MongoDB remove messages by the date in `at`, because it cannot expire them by a number such as _id."""
        indexes = await self._call(self._messages.index_information())
        if EXPIRY in indexes:
            await self._call(self._messages.drop_index(EXPIRY))
        if days:
            seconds = int(timedelta(days=days).total_seconds())
            await self._call(self._messages.create_index("at", name=EXPIRY, expireAfterSeconds=seconds))
