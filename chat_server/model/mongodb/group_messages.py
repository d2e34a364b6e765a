"""What only groups need of the message store in MongoDB: ids of any sender, read positions."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pymongo
from bson import Binary, Int64
from pymongo.errors import BulkWriteError

from chat_server.model.messages import (
    MAX_UNREAD,
    Confirmed,
    Conversation,
    ConversationKey,
    GroupKey,
    GroupView,
    Message,
)
from chat_server.model.mongodb.connection import Calls
from chat_server.model.mongodb.documents import (
    EARLIEST,
    LAST_KEY,
    LATEST,
    MESSAGES,
    POSITIONS,
    conversation_key,
    group_key,
    position_key,
    to_message,
)
from chat_server.model.read_positions import Range, Row, find_moves
from chat_server.utils.digest import digest

# Positions are read in pages of this size.
PAGE = 1000
# MongoDB's code of an insert whose key exists.
DUPLICATE_KEY = 11000


class MongoGroupMessages:
    """The methods of MessageStore and ExportableMessages that concern only groups, and the pages that they need."""

    def __init__(self, database: Any, calls: Calls) -> None:
        self._call = calls
        self._messages = database[MESSAGES]
        self._positions = database[POSITIONS]
        self._moving = calls.one_at_a_time()  # the next caller continues where this one ends

    async def newest_with_id(self, group: GroupKey, id: str) -> tuple[str, int] | None:
        query = {"conv": conversation_key(group), "mid": id, "group": True, "_id": {"$gt": EARLIEST, "$lt": LATEST}}
        found = await self._call(self._messages.find(query, {"from": 1}).sort("_id", -1).limit(1).to_list(1))
        return (found[0]["from"], int(found[0]["_id"])) if found else None

    async def group_conversations(self, user: str, views: Sequence[GroupView]) -> list[Conversation]:
        stored = await self._stored_positions([position_key(view.key.number, user) for view in views])
        return await asyncio.gather(
            *(
                self._group_conversation(user, view, stored.get(position_key(view.key.number, user), 0))
                for view in views
            )
        )

    async def positions(self, numbers: Sequence[int]) -> dict[int, dict[str, int]]:
        found = await asyncio.gather(*map(self._all_positions, numbers))
        return dict(zip(numbers, found, strict=True))

    async def move_position(self, number: int, user: str, time: int) -> bool:
        return bool(await self._raise_positions({position_key(number, user): time}))

    async def advance(self, number: int, confirmed: Mapping[str, Confirmed]) -> dict[str, int]:
        async def read(ranges: Sequence[Range], limit: int) -> Sequence[Sequence[Row]]:
            return await asyncio.gather(*(self._read_range(number, one, limit) for one in ranges))

        keys = {user: position_key(number, user) for user in confirmed}
        async with self._moving.hold():
            stored = await self._stored_positions(list(keys.values()))
            positions = {user: stored[key] for user, key in keys.items() if key in stored}
            moves = await find_moves(confirmed, positions, read)
            raised = await self._raise_positions({keys[user]: move.position for user, move in moves.items()})
        return {user: move.confirmed for user, move in moves.items() if move.confirmed and keys[user] in raised}

    async def erase_sent(self, number: int, user: str, limit: int) -> int:
        query = {"conv": group_key(number), "from": user}
        found = await self._call(self._messages.find(query, {"_id": 1}).limit(limit).to_list(limit))
        times = [document["_id"] for document in found]
        if times and (newest := await self._read_newest(group_key(number))) in times:
            # Another process may be about to store a message after it, so it stays in the chain, without its content.
            chained = {**query, "_id": Int64(newest), "prev": {"$exists": True}}
            nothing = {"from": "", "mid": str(newest), "deleted": True, "digest": Binary(digest(""))}
            await self._call(self._messages.update_one(chained, {"$set": nothing, "$unset": {"text": ""}}))
        if times:
            await self._call(self._messages.delete_many({**query, "_id": {"$in": times}}))
        if len(times) < limit:
            await self._call(self._positions.delete_one({"_id": position_key(number, user)}))
        return len(times)

    async def put_positions(self, number: int, positions: Mapping[str, int]) -> None:
        await self._write_positions(
            [
                pymongo.UpdateOne({"_id": position_key(number, user)}, {"$set": {"position": Int64(time)}}, upsert=True)
                for user, time in positions.items()
            ]
        )

    async def _page(
        self, key: ConversationKey, after: int, before: int, order: int, count: int, *, skip: int = 0
    ) -> list[Message]:
        time = {"$gt": Int64(after), "$lt": Int64(before)}
        query = {"conv": conversation_key(key), "deleted": False, "_id": time}
        cursor = self._messages.find(query).sort("_id", order).skip(skip).limit(count)
        return [to_message(document) for document in await self._call(cursor.to_list(count))]

    async def _group_conversation(self, user: str, view: GroupView, position: int) -> Conversation:
        (number, name), since = view
        newest = await self._page(view.key, since, LATEST, -1, 1)
        if not newest:
            return Conversation(name, None, 0, since, number)
        rows = await self._read_range(number, Range(max(position, since), LATEST), MAX_UNREAD)
        unread = sum(sender != user for _, sender in rows)
        return Conversation(name, newest[0], unread, newest[0].time, number)

    async def _read_newest(self, conv: str) -> int:
        times = [0]
        for deleted in (False, True):
            query = {"conv": conv, "deleted": deleted, "_id": {"$gt": EARLIEST, "$lt": LATEST}}
            found = await self._call(self._messages.find(query, {"_id": 1}).sort("_id", -1).limit(1).to_list(1))
            times += [int(document["_id"]) for document in found]
        return max(times)

    async def _read_range(self, number: int, time: Range, limit: int) -> list[Row]:
        """Return at most `limit` rows at the beginning of a range."""
        bounds = {"$gt": Int64(time.after), "$lte": Int64(time.until)}
        query = {"conv": group_key(number), "deleted": False, "_id": bounds}
        cursor = self._messages.find(query, {"from": 1}).sort("_id", 1).limit(limit)
        return [(int(document["_id"]), document["from"]) for document in await self._call(cursor.to_list(limit))]

    async def _all_positions(self, number: int) -> dict[str, int]:
        found: dict[str, int] = {}
        after, before = position_key(number, ""), position_key(number, LAST_KEY)
        prefix = len(after)
        while True:
            cursor = self._positions.find({"_id": {"$gt": after, "$lt": before}}).sort("_id", 1).limit(PAGE)
            page = await self._call(cursor.to_list(PAGE))
            found.update((document["_id"][prefix:], int(document["position"])) for document in page)
            if len(page) < PAGE:
                return found
            after = page[-1]["_id"]

    async def _stored_positions(self, keys: Sequence[str]) -> dict[str, int]:
        """Return the positions that exist under these keys."""
        found = await self._call(self._positions.find({"_id": {"$in": list(keys)}}).to_list(None))
        return {document["_id"]: int(document["position"]) for document in found}

    async def _raise_positions(self, positions: Mapping[str, int]) -> set[str]:
        """Store positions that are greater than the stored ones. Returns the keys that this call has changed."""
        raised, left = set[str](), dict(positions)
        for _ in range(2):  # the second time, if two processes have created a position at the same moment
            updates = [
                pymongo.UpdateOne(
                    {"_id": key, "position": {"$lt": Int64(time)}}, {"$set": {"position": Int64(time)}}, upsert=True
                )
                for key, time in left.items()
            ]
            keys = list(left)
            # If the stored position is not less, the upsert finds that its key is in use.
            left = {keys[index]: left[keys[index]] for index in await self._write_positions(updates)}
            raised |= set(keys) - left.keys()
        return raised

    async def _write_positions(self, updates: Sequence[pymongo.UpdateOne]) -> list[int]:
        """Execute updates. Returns which of them failed as duplicates."""
        try:
            if updates:
                await self._call(self._positions.bulk_write(updates, ordered=False))
        except BulkWriteError as error:
            return self._duplicates(error)
        return []

    def _duplicates(self, error: BulkWriteError) -> list[int]:
        """Return which writes of a batch failed as duplicates. Raises StoreUnavailable if anything else failed."""
        errors = error.details["writeErrors"]
        if any(one["code"] != DUPLICATE_KEY for one in errors) or error.details.get("writeConcernErrors"):
            raise self._call.incomplete() from error
        return [one["index"] for one in errors]

    async def _remove(self, cursor: Any, limit: int) -> int:
        """Remove the messages that a query finds, at most `limit`. Returns how many there were."""
        times = [document["_id"] for document in await self._call(cursor.to_list(limit))]
        if times:
            await self._call(self._messages.delete_many({"_id": {"$in": times}}))
        return len(times)

    async def _remove_positions(self, number: int) -> None:
        bounds = {"$gt": position_key(number, ""), "$lt": position_key(number, LAST_KEY)}
        await self._call(self._positions.delete_many({"_id": bounds}))
