"""The list of conversations in MongoDB: one document per user and peer, an inbox."""

import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pymongo
from bson import Int64
from pymongo.errors import BulkWriteError

from chat_server.model.messages import Message, Pair
from chat_server.model.mongodb.connection import Calls
from chat_server.model.mongodb.documents import CONVERSATIONS, EARLIEST, LAST_KEY, Document, inbox_key
from chat_server.utils.clock import MICROSECONDS

# Inboxes are iterated in pages of this size.
PAGE = 1000
# An inbox without messages is hidden only if it is older than this, in microseconds: no write is under way then.
HIDE_AFTER = 3600 * MICROSECONDS


class MongoConversations:
    """The inboxes. `last` is the time of the newest message, negative once all messages are deleted.

    An inbox is updated before its messages are stored. So a crash may leave an inbox without messages, which op 7
    skips, but never a message that op 7 does not find.
    """

    def __init__(self, database: Any, calls: Calls) -> None:
        self.collection = database[CONVERSATIONS]
        self._call = calls

    async def prepare(self) -> None:
        """Create the indexes."""
        await self._call(self.collection.create_index([("user", 1), ("last", 1)]))
        await self._call(self.collection.create_index([("last", 1)]))  # for remove_expired

    async def touch(self, messages: Sequence[Message]) -> None:
        """Raise `last` for messages between users that are about to be stored."""
        newest: dict[tuple[str, str], int] = {}
        for message in sorted(messages, key=lambda message: message.time):
            newest[message.sender, message.receiver] = newest[message.receiver, message.sender] = message.time
        await self._write(
            [
                pymongo.UpdateOne(
                    {"_id": inbox_key(user, peer)},
                    {"$max": {"last": Int64(last)}, "$setOnInsert": {"user": user, "peer": peer}},
                    upsert=True,
                )
                for (user, peer), last in newest.items()
            ]
        )

    async def set_last(self, pair: Pair, last: int) -> None:
        """Set `last` of both inboxes, creating them if necessary."""
        await self._write(
            [
                pymongo.UpdateOne(
                    {"_id": inbox_key(user, peer)},
                    {"$set": {"user": user, "peer": peer, "last": Int64(last)}},
                    upsert=True,
                )
                for user, peer in (pair, pair[::-1])
            ]
        )

    async def replace_last(self, pair: Pair, old: int, new: int) -> None:
        """Set `last` of both inboxes to `new` if it is still `old`."""
        query = {"_id": {"$in": [inbox_key(*pair), inbox_key(*pair[::-1])]}, "last": Int64(old)}
        await self._call(self.collection.update_many(query, {"$set": {"last": Int64(new)}}))

    async def listed(self, user: str, before: int, count: int) -> list[Document]:
        """Return at most `count` inboxes of `user` whose `last` is before `before`, the newest first."""
        query = {"user": user, "last": {"$gt": EARLIEST, "$lt": Int64(before)}}
        return await self._call(self.collection.find(query).sort("last", -1).limit(count).to_list(count))

    async def hide(self, inboxes: Sequence[Document]) -> None:
        """Take inboxes without messages off the list: a crash or expired messages left them."""
        latest = Int64(time.time() * MICROSECONDS) - HIDE_AFTER
        updates = [
            pymongo.UpdateOne({"_id": inbox["_id"], "last": inbox["last"]}, {"$set": {"last": Int64(-inbox["last"])}})
            for inbox in inboxes
            if inbox["last"] < latest
        ]
        if updates:
            await self._call(self.collection.bulk_write(updates, ordered=False))

    async def last(self, user: str, peer: str) -> int | None:
        """Return `last` of an inbox, None if there is no such inbox."""
        inbox = await self._call(self.collection.find_one({"_id": inbox_key(user, peer)}))
        return inbox["last"] if inbox else None

    async def older(self, before: int, limit: int) -> list[Document]:
        """Return at most `limit` inboxes, hidden ones included, whose `last` is before `before`, the hidden first."""
        query = {"last": {"$gt": Int64(-before), "$lt": Int64(before)}}
        return await self._call(self.collection.find(query).sort("last", 1).limit(limit).to_list(limit))

    async def remove(self, keys: Sequence[str]) -> None:
        """Delete the inboxes with these keys."""
        await self._call(self.collection.delete_many({"_id": {"$in": list(keys)}}))

    async def peers(self, user: str) -> AsyncIterator[str]:
        """Iterate over the peers of `user`."""
        async for inbox in self._inboxes(inbox_key(user, ""), inbox_key(user, LAST_KEY)):
            yield inbox["peer"]

    async def pairs(self) -> AsyncIterator[Pair]:
        """Iterate over the conversations as pairs of users, the lesser name first."""
        async for inbox in self._inboxes("", LAST_KEY):
            if inbox["user"] < inbox["peer"]:
                yield Pair(inbox["user"], inbox["peer"])

    async def _inboxes(self, after: str, before: str) -> AsyncIterator[Document]:
        """Iterate over the inboxes between two keys, in order."""
        while True:
            query = {"_id": {"$gt": after, "$lt": before}}
            cursor = self.collection.find(query, {"user": 1, "peer": 1}).sort("_id", 1).limit(PAGE)
            page = await self._call(cursor.to_list(PAGE))
            if not page:
                return
            for inbox in page:
                yield inbox
            after = page[-1]["_id"]

    async def _write(self, updates: Sequence[pymongo.UpdateOne]) -> None:
        try:
            await self._call(self.collection.bulk_write(updates, ordered=False))
        except BulkWriteError as error:
            raise self._call.incomplete() from error
