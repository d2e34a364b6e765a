"""Messages in MongoDB."""

import asyncio
import re
import secrets
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import pymongo
from bson import Binary, Int64
from pymongo.errors import BulkWriteError, OperationFailure, PyMongoError

from chat_server.conf import MongoDBSettings
from chat_server.model.messages import MOST_UNREAD, Added, Conversation, Message, Name, Record
from chat_server.utils.batch import Batcher
from chat_server.utils.clock import MICROSECONDS
from chat_server.utils.digest import digest, is_digest_of
from chat_server.utils.errors import Duplicate, StartError, StoreMisconfigured, StoreUnavailable, cause
from chat_server.utils.lease import Held, always
from chat_server.utils.metrics import NO_STORE_METRICS, StoreMetrics

T = TypeVar("T")

Document = dict[str, Any]
# The collections have names of their own, so that the data of the Go original may lie in the same database.
MESSAGES, CONVERSATIONS, LEASES = "chat_messages", "chat_conversations", "chat_leases"
PROBE = "chat_probe"  # there only while --check looks at an empty database
EARLIEST, LATEST = Int64(0), Int64(2**62)  # no message's time: every range has two ends
LAST_KEY = "\U0010ffff"  # no conversation's key: no name begins with it
DUPLICATE_KEY = 11000
# What the server will answer again, by the code of the error.
_MISTAKES = {
    13: "MongoDBUser lacks a right on MongoDBName: grant it the role readWrite",
    18: "MongoDBUser or MongoDBPwd is wrong",
    73: "MongoDBName is not a name that MongoDB allows",
    8000: "MongoDBUser or MongoDBPwd is wrong",  # Atlas
}
# What the driver's texts tell of a connection that cannot be made; only this of them is passed on.
_TOLD = re.compile(
    r"\[Errno -?\d+\] [\w ]+|certificate verify failed(?:: [\w ]+)?|timed out|connection closed", re.IGNORECASE
)
# Callers whose messages go into one insert, at most.
MOST_CALLERS = 512
POOL = 16
EXPIRY = "at_1"
# Conversations are listed so many at a time.
PAIRS = 1000
# Op 7 looks at no fewer conversations at a time, however few are asked for: some may have no message that is left.
LISTED = 200
# One that has none, and was not written to for so long (microseconds), is not listed again: no write is on its way.
SETTLED = 3600 * MICROSECONDS


def client(config: MongoDBSettings, timeout: float) -> Any:
    """The driver. motor is past its end of life; its successor has the same calls:

    `return pymongo.AsyncMongoClient(address, **options)` is the whole change, and the contract suite runs with both.
    """
    from motor.motor_asyncio import AsyncIOMotorClient  # noqa: PLC0415 - slow to import, and only needed here

    uri, options = client_options(config, timeout)
    try:
        if "@" in uri.partition("://")[2].partition("/")[2]:
            raise ValueError("of a password with / a part would be taken for the host")
        with warnings.catch_warnings():  # an option that it does not understand, such as tls=yes, it would leave out
            warnings.simplefilter("error", UserWarning)
            warnings.filterwarnings("ignore", "You appear to be connected to", UserWarning)  # by the host's name
            return AsyncIOMotorClient(uri, **options)
    except (PyMongoError, ValueError, TypeError, OSError, UserWarning):  # their texts may repeat a password
        raise StartError(
            "[MongoDB] MongoDBAddr is neither a host nor a URI that MongoDB knows; "
            "in a URI write the special characters of user and password as %40"
        ) from None


def client_options(config: MongoDBSettings, timeout: float) -> tuple[str, dict[str, Any]]:
    """Address and options of a client, whichever it is; `timeout` in seconds."""
    is_uri = config.addr.startswith(("mongodb://", "mongodb+srv://"))
    options: dict[str, Any] = {
        "timeoutMS": int(timeout * 1000),
        "serverSelectionTimeoutMS": int(timeout * 1000),
        "maxPoolSize": POOL,
        "w": "majority",
        "journal": True,
        "retryWrites": True,
        "appname": "chat_server",
    }
    if not is_uri:
        options["port"] = config.port
    if config.user:
        options |= {"username": config.user, "password": config.pwd}
    return config.addr, options


class MongoMessages:
    """MessageStore on MongoDB. A message's time is its _id; `timeout` in seconds bounds every operation.

    `last` of a conversation is the time of its newest message, negative once all of them are deleted.
    `held` says whether this process still has the lease on the database: without it nothing counts as stored.
    `name` says which server it is, for people.
    """

    def __init__(
        self,
        database: Any,
        timeout: float,
        held: Held = always,
        watch: StoreMetrics = NO_STORE_METRICS,
        name: str = "MongoDB",
    ) -> None:
        self._held = held
        self._name = name
        self._watch = watch
        self._messages = database[MESSAGES]
        self._conversations = database[CONVERSATIONS]
        self._database = database
        self._timeout = timeout
        self._marking = asyncio.Lock()  # one at a time, so that each message is marked by one
        self._adding: Batcher[Sequence[Message], list[Added]] = Batcher(
            self._add_together, most=MOST_CALLERS, timeout=timeout, watch=watch, name=name
        )

    async def prepare(self, days: float) -> None:
        """Make the indexes; messages expire after `days`, never if that is 0."""
        messages, conversations = self._messages, self._conversations
        by_id = [("conv", 1), ("from", 1), ("mid", 1)]
        by_time = [("conv", 1), ("deleted", 1), ("_id", 1)]
        await self._do(messages.create_index(by_id, unique=True))
        await self._do(messages.create_index(by_time))
        await self._do(
            messages.create_index([("to", 1), ("conv", 1), ("_id", 1)], partialFilterExpression={"read": False})
        )
        await self._do(conversations.create_index([("user", 1), ("last", 1)]))
        await self._do(conversations.create_index([("last", 1)]))  # for what expires
        await self._expire(days)

    async def newest(self) -> int:
        query = {"_id": {"$gt": EARLIEST, "$lt": LATEST}}
        found = await self._do(self._messages.find(query, {"_id": 1}).sort("_id", -1).limit(1).to_list(1))
        return int(found[0]["_id"]) if found else 0

    async def add(self, run: Sequence[Message]) -> list[Added]:
        return await self._adding.submit(run)

    async def stored(self, messages: Sequence[Message]) -> list[Added | None]:
        documents = await self._namesakes(messages)
        return [_found(document, message) for document, message in zip(documents, messages, strict=True)]

    async def recent(self, one: str, other: str, count: int) -> list[tuple[str, int]]:
        found: list[tuple[str, int]] = []
        for deleted in (False, True):
            query = {"conv": _conv(one, other), "deleted": deleted, "_id": {"$gt": EARLIEST, "$lt": LATEST}}
            documents = await self._do(
                self._messages.find(query, {"from": 1}).sort("_id", -1).limit(count).to_list(count)
            )
            found += [(document["from"], int(document["_id"])) for document in documents]
        return sorted(found, key=lambda entry: entry[1], reverse=True)[:count]

    async def has_written(self, sender: str, receiver: str) -> bool:
        query = {"conv": _conv(sender, receiver), "from": sender}
        return await self._do(self._messages.find_one(query, {"_id": 1})) is not None

    async def place(self, one: str, other: str, sender: str, id: str) -> int | None:
        query = {"conv": _conv(one, other), "from": sender, "mid": id}
        document = await self._do(self._messages.find_one(query, {"_id": 1}))
        return int(document["_id"]) if document else None

    async def skip(self, one: str, other: str, skip: int, count: int) -> list[Message]:
        return await self._page(one, other, EARLIEST, LATEST, 1, count, skip=skip)

    async def before(self, one: str, other: str, time: int, count: int) -> list[Message]:
        return (await self._page(one, other, EARLIEST, Int64(time), -1, count))[::-1]

    async def after(self, one: str, other: str, time: int, count: int) -> list[Message]:
        return await self._page(one, other, Int64(time), LATEST, 1, count)

    async def unread(self, sender: str, receiver: str, after: int, count: int) -> list[Message]:
        query = {**_unread(sender, receiver), "_id": {"$gt": Int64(after), "$lt": LATEST}}
        documents = await self._do(self._messages.find(query).sort("_id", 1).limit(count).to_list(count))
        return [_message(document) for document in documents]

    async def mark(self, sender: str, receiver: str, ids: Sequence[str]) -> tuple[set[str], list[str]]:
        if not ids:
            return set(), []
        query = {"conv": _conv(sender, receiver), "from": sender, "mid": {"$in": list(ids)}, "deleted": False}
        async with self._marking:
            documents = await self._do(self._messages.find(query, {"mid": 1, "read": 1}).to_list(None))
            found = {document["mid"] for document in documents}
            unread = {document["mid"]: document["_id"] for document in documents if not document["read"]}
            if unread:
                await self._mark(list(unread.values()))
        return found, [id for id in dict.fromkeys(ids) if id in unread]

    async def mark_delivered(self, times: Sequence[int]) -> set[int]:
        query = {"_id": {"$in": [Int64(time) for time in times]}, "read": False}
        async with self._marking:
            documents = await self._do(self._messages.find(query, {"_id": 1}).to_list(None))
            if documents:
                await self._mark([document["_id"] for document in documents])
        return {int(document["_id"]) for document in documents}

    async def delete(self, one: str, other: str, names: Sequence[Sequence[Name]]) -> list[Name | None]:
        return [await self._delete_first(_conv(one, other), choices) for choices in names]

    async def conversations(self, user: str, before: int, count: int) -> list[Conversation]:
        top = Int64(before)
        page: list[Conversation] = []
        while len(page) < count:
            inboxes = {"user": user, "last": {"$gt": EARLIEST, "$lt": top}}
            most = max(count, LISTED)
            documents = await self._do(self._conversations.find(inboxes).sort("last", -1).limit(most).to_list(most))
            for start in range(0, len(documents), count):
                part = documents[start : start + count]
                seen = await asyncio.gather(*(self._conversation(user, document["peer"]) for document in part))
                await self._hide([one for one, conversation in zip(part, seen, strict=True) if not conversation])
                page += [conversation for conversation in seen if conversation]
                if len(page) >= count:
                    break
            if len(documents) < most:
                break
            top = documents[-1]["last"]
        return page[:count]

    async def listed_at(self, user: str, peer: str) -> int | None:
        document = await self._do(self._conversations.find_one({"_id": _inbox(user, peer)}))
        return abs(document["last"]) if document else None

    async def _hide(self, empty: Sequence[Document]) -> None:
        """List these conversations no more: a crash, or messages that expired, left them without one."""
        now = Int64(time.time() * MICROSECONDS)
        updates = [
            pymongo.UpdateOne({"_id": one["_id"], "last": one["last"]}, {"$set": {"last": Int64(-one["last"])}})
            for one in empty
            if one["last"] < now - SETTLED
        ]
        if updates:
            await self._do(self._conversations.bulk_write(updates, ordered=False))

    async def purge(self, before: int, most: int) -> int:
        query = {"_id": {"$gt": EARLIEST, "$lt": Int64(before)}}
        documents = await self._do(self._messages.find(query, {"conv": 1}).sort("_id", 1).limit(most).to_list(most))
        if documents:
            await self._do(self._messages.delete_many({"_id": {"$in": [document["_id"] for document in documents]}}))
        if len(documents) < most:
            await self._forget_empty(before, most)
        return len(documents)

    async def _forget_empty(self, before: int, most: int) -> None:
        """Forget conversations of which nothing is left; of one that was brought back by a deletion there may be."""
        query = {"last": {"$gt": Int64(-before), "$lt": Int64(before)}}
        for inbox in await self._do(self._conversations.find(query).sort("last", 1).limit(most).to_list(most)):
            conv = _conv(inbox["user"], inbox["peer"])
            if await self._do(self._messages.find_one({"conv": conv}, {"_id": 1})) is None:
                await self._do(self._conversations.delete_one({"_id": inbox["_id"]}))

    async def peers(self, user: str) -> AsyncIterator[str]:
        after = _inbox(user, "")
        while page := await self._inboxes({"$gt": after, "$lt": _inbox(user, LAST_KEY)}):
            for inbox in page:
                yield inbox["peer"]
            after = page[-1]["_id"]

    async def erase(self, one: str, other: str, most: int) -> int:
        conv = _conv(one, other)
        documents = await self._do(self._messages.find({"conv": conv}, {"_id": 1}).limit(most).to_list(most))
        if documents:
            await self._do(self._messages.delete_many({"_id": {"$in": [document["_id"] for document in documents]}}))
        if len(documents) < most:
            await self._do(self._conversations.delete_many({"_id": {"$in": [_inbox(one, other), _inbox(other, one)]}}))
        return len(documents)

    async def ping(self) -> None:
        await self._watch.timed(probe(self._messages, self._conversations, self._timeout, self._name))
        await self._expect_lease()

    # --- moving

    async def count(self) -> int:
        return int(await self._do(self._messages.estimated_document_count()))

    async def pairs(self) -> AsyncIterator[tuple[str, str]]:
        after = ""
        while page := await self._inboxes({"$gt": after, "$lt": LAST_KEY}):
            for inbox in page:
                if inbox["user"] < inbox["peer"]:
                    yield inbox["user"], inbox["peer"]
            after = page[-1]["_id"]

    async def records(self, one: str, other: str, after: int, until: int, count: int) -> list[Record]:
        found: list[Record] = []
        for deleted in (False, True):
            time = {"$gt": Int64(after), "$lte": Int64(until)}
            query = {"conv": _conv(one, other), "deleted": deleted, "_id": time}
            documents = await self._do(self._messages.find(query).sort("_id", 1).limit(count).to_list(count))
            found += [_record(document) for document in documents]
        return sorted(found, key=lambda record: record.time)[:count]

    async def put(self, records: Sequence[Record]) -> None:
        documents = [_document(record) for record in records]
        try:
            await self._do(self._messages.insert_many(documents, ordered=False))
        except BulkWriteError as error:
            there = [documents[index] for index in _duplicates(error)]
            replacements = [pymongo.ReplaceOne(_identity(document), document, upsert=True) for document in there]
            try:
                await self._do(self._messages.bulk_write(replacements, ordered=False))
            except BulkWriteError as another:
                _duplicates(another)
                raise Duplicate("a time or an id") from another
        await self._expect_lease()

    async def settle(self, one: str, other: str) -> None:
        newest = await self._page(one, other, EARLIEST, LATEST, -1, 1)
        last = newest[0].time if newest else -(await self.recent(one, other, 1))[0][1]
        updates = [
            pymongo.UpdateOne(
                {"_id": _inbox(user, peer)}, {"$set": {"user": user, "peer": peer, "last": Int64(last)}}, upsert=True
            )
            for user, peer in ((one, other), (other, one))
        ]
        try:
            await self._do(self._conversations.bulk_write(updates, ordered=False))
        except BulkWriteError as error:
            raise StoreUnavailable(f"{self._name}: it did not store all") from error

    async def taken(self, times: Sequence[int]) -> set[int]:
        query = {"_id": {"$in": [Int64(time) for time in times]}}
        documents = await self._do(self._messages.find(query, {"_id": 1}).to_list(None))
        return {int(document["_id"]) for document in documents}

    # --- adding

    async def _add_together(self, runs: list[Sequence[Message]]) -> Sequence[list[Added]]:
        """Insert what several callers send, but for retries, which change nothing."""
        messages = [message for run in runs for message in run]
        earlier = await self.stored(messages)
        new = [message for message, known in zip(messages, earlier, strict=True) if not known]
        if new:
            await self._touch(new)
        inserted = iter(await self._insert(new) if new else [])
        added = iter([known or next(inserted) for known in earlier])
        await self._expect_lease()
        return [[next(added) for _ in run] for run in runs]

    async def _touch(self, messages: Sequence[Message]) -> None:
        """Bring conversations up. It comes before their messages: op 7 skips one that has none, and none is lost."""
        last: dict[tuple[str, str], int] = {}
        for message in messages:
            last[message.sender, message.receiver] = last[message.receiver, message.sender] = message.time
        updates = [
            pymongo.UpdateOne(
                {"_id": _inbox(user, peer)},
                {"$max": {"last": Int64(newest)}, "$setOnInsert": {"user": user, "peer": peer}},
                upsert=True,
            )
            for (user, peer), newest in last.items()
        ]
        try:
            await self._do(self._conversations.bulk_write(updates, ordered=False))
        except BulkWriteError as error:
            raise StoreUnavailable(f"{self._name}: it did not store all") from error

    async def _insert(self, messages: Sequence[Message]) -> list[Added]:
        taken: list[int] = []
        try:
            await self._do(self._messages.insert_many([_document(message) for message in messages], ordered=False))
        except BulkWriteError as error:
            taken = _duplicates(error)
        # Of two with one id in a batch the second finds the first. A write of ours whose answer was lost, and which
        # the driver repeated, finds itself: it is new.
        documents = await self._namesakes([messages[index] for index in taken])
        if None in documents:  # it was its time that was taken, by another server
            raise StoreUnavailable(f"{self._name}: it did not store all")
        earlier = dict(zip(taken, documents, strict=True))
        return [_found(earlier.get(index), message) or Added(message.time) for index, message in enumerate(messages)]

    async def _namesakes(self, messages: Sequence[Message]) -> list[Document | None]:
        """For each message the document with its id, or None. What is found is durable."""
        names: dict[tuple[str, str], list[str]] = {}
        for message in messages:
            names.setdefault((message.sender, message.receiver), []).append(message.id)
        query = [
            {"conv": _conv(sender, receiver), "from": sender, "mid": {"$in": ids}}
            for (sender, receiver), ids in names.items()
        ]
        documents = await self._do(self._messages.find({"$or": query}).to_list(None)) if query else []
        if documents:
            # A write that changes nothing waits all the same until what was written before it is journaled, and on a
            # majority: what was only read may yet be rolled back.
            there = {"_id": {"$in": [document["_id"] for document in documents]}}
            confirmed = await self._do(self._messages.update_many(there, {"$unset": {"nothing": ""}}))
            if confirmed.matched_count < len(documents):
                raise StoreUnavailable(f"{self._name}: it rolled back what it had stored")
        found = {(document["conv"], document["from"], document["mid"]): document for document in documents}
        return [found.get((_conv(m.sender, m.receiver), m.sender, m.id)) for m in messages]

    # --- what several methods need

    async def _page(
        self, one: str, other: str, after: Int64, before: Int64, order: int, count: int, *, skip: int = 0
    ) -> list[Message]:
        query = {"conv": _conv(one, other), "deleted": False, "_id": {"$gt": after, "$lt": before}}
        cursor = self._messages.find(query).sort("_id", order).skip(skip).limit(count)
        return [_message(document) for document in await self._do(cursor.to_list(count))]

    async def _inboxes(self, keys: Document) -> list[Document]:
        """The first of those users' views of conversations, in the order of their keys."""
        cursor = self._conversations.find({"_id": keys}, {"user": 1, "peer": 1}).sort("_id", 1).limit(PAIRS)
        return await self._do(cursor.to_list(PAIRS))

    async def _mark(self, times: Sequence[Int64]) -> None:
        await self._do(self._messages.update_many({"_id": {"$in": list(times)}}, {"$set": {"read": True}}))

    async def _delete_first(self, conv: str, choices: Sequence[Name]) -> Name | None:
        for sender, id in choices:
            document = await self._do(self._messages.find_one({"conv": conv, "from": sender, "mid": id}))
            if document is None:
                continue
            if document["deleted"]:
                return None
            change = {"deleted": True, "read": True, "digest": Binary(digest(document["text"]))}
            result = await self._do(
                self._messages.update_one(
                    {"_id": document["_id"], "deleted": False}, {"$set": change, "$unset": {"text": ""}}
                )
            )
            if result.modified_count:
                await self._move(document)
                return sender, id
        return None

    async def _move(self, deleted: Document) -> None:
        """Put the conversation of a deleted message to the place of its newest; without any it is not listed."""
        one, other = deleted["from"], deleted["to"]
        newest = await self._page(one, other, EARLIEST, LATEST, -1, 1)
        last = Int64(newest[0].time if newest else -deleted["_id"])
        query = {"_id": {"$in": [_inbox(one, other), _inbox(other, one)]}, "last": deleted["_id"]}
        await self._do(self._conversations.update_many(query, {"$set": {"last": last}}))

    async def _conversation(self, user: str, peer: str) -> Conversation | None:
        last = await self._page(user, peer, EARLIEST, LATEST, -1, 1)
        if not last:
            return None
        query = {**_unread(peer, user), "_id": {"$gt": EARLIEST, "$lt": LATEST}}
        unread = await self._do(self._messages.find(query, {"_id": 1}).limit(MOST_UNREAD).to_list(MOST_UNREAD))
        return Conversation(peer, last[0], len(unread))

    async def _expire(self, days: float) -> None:
        """Let MongoDB forget messages by the date in `at`; it expires nothing by a number."""
        indexes = await self._do(self._messages.index_information())
        if EXPIRY in indexes:
            await self._do(self._messages.drop_index(EXPIRY))
        if days:
            seconds = int(timedelta(days=days).total_seconds())
            await self._do(self._messages.create_index("at", name=EXPIRY, expireAfterSeconds=seconds))

    async def _do(self, work: Awaitable[T]) -> T:
        return await self._watch.timed(_done(work, self._timeout, self._name))

    async def _expect_lease(self) -> None:
        if not await self._held():
            raise StoreUnavailable(f"{self._name}: the lease was not renewed in time")


class MongoLease:
    """LeaseStore on MongoDB; times by MongoDB's clock, so that hosts whose clocks differ agree."""

    def __init__(self, database: Any, timeout: float, name: str = "MongoDB") -> None:
        self._leases = database[LEASES]
        self._timeout = timeout
        self._name = name

    async def take(self, holder: bytes, seconds: float, instead_of: bytes | None) -> bytes:
        now = {"$divide": [{"$toLong": "$$NOW"}, 1000]}
        mine = [holder] if instead_of is None else [holder, instead_of]
        free = {"$or": [{"$in": ["$holder", mine]}, {"$lt": [{"$ifNull": ["$until", 0]}, now]}]}
        lease = {
            "holder": {"$cond": [free, {"$literal": holder}, "$holder"]},
            "until": {"$cond": [free, {"$add": [now, seconds]}, "$until"]},
        }
        taking = self._leases.find_one_and_update(
            {"_id": "server"}, [{"$set": lease}], upsert=True, return_document=pymongo.ReturnDocument.AFTER
        )
        return bytes((await _done(taking, self._timeout, self._name))["holder"])

    async def release(self, holder: bytes) -> None:
        await _done(self._leases.delete_one({"_id": "server", "holder": holder}), self._timeout, self._name)


async def reach(config: MongoDBSettings, mongo: Any, timeout: float) -> bool:
    """Whether the database holds our messages; return if the server answers and lets us in.

    Raises StoreUnavailable where it may help to wait, and StoreMisconfigured where it does not.
    """
    name = address(config)
    try:
        await _done(mongo[config.name].command("ping"), timeout, name)
        return MESSAGES in await _done(mongo[config.name].list_collection_names(), timeout, name)
    except (ValueError, TypeError):  # the driver prepares the password only now
        raise StoreMisconfigured(f"{name}: MongoDBPwd holds characters that no password can have") from None
    except StoreUnavailable as error:
        servers = mongo.topology_description.server_descriptions().values()
        known = next((server.error for server in servers if server.error), None)
        if known is None or isinstance(error, StoreMisconfigured):
            raise
        raise failure(name, known) from error  # it says more than that nobody answered in time


async def probe(messages: Any, conversations: Any, timeout: float, name: str) -> None:
    """Write to both collections as a message is written, and delete it: MongoDB lets us, is a primary, and has room.

    Messages have times above 0 as _id, and conversations keys that begin with a name: nobody ever sees a probe. One
    that was left by a process that was killed is deleted by the next.
    """
    number = secrets.randbits(62)
    message = {"_id": Int64(-number), "conv": "/", "from": "", "mid": f"{number}", "deleted": True, "read": True}
    inbox = {"$set": {"user": "", "peer": "", "last": EARLIEST}}
    await _done(conversations.update_one({"_id": f"/{number}"}, inbox, upsert=True), timeout, name)
    await _done(messages.insert_one(message), timeout, name)
    await _done(messages.delete_many({"_id": {"$gt": -LATEST, "$lte": EARLIEST}}), timeout, name)
    await _done(conversations.delete_many({"_id": {"$gte": "/", "$lt": "0"}}), timeout, name)


async def look(config: MongoDBSettings, timeout: float) -> str:
    """What --check says of it, having tried what the work needs. Raises as `reach`."""
    mongo, name = client(config, timeout), address(config)
    database = mongo[config.name]
    try:
        if await reach(config, mongo, timeout):
            await probe(database[MESSAGES], database[CONVERSATIONS], timeout, name)
            return "answers, holds our messages"
        await probe(database[PROBE], database[PROBE], timeout, name)
        await _done(database.drop_collection(PROBE), timeout, name)  # a write has made it
        return "answers, empty yet, the first start makes it"
    finally:
        mongo.close()


async def connect(
    config: MongoDBSettings, mongo: Any, timeout: float, days: float, held: Held, watch: StoreMetrics = NO_STORE_METRICS
) -> MongoMessages:
    """The messages of that database, its indexes made. Raises StoreUnavailable."""
    messages = MongoMessages(mongo[config.name], timeout, held, watch, address(config))
    await messages.prepare(days)
    await messages.ping()
    return messages


def address(config: MongoDBSettings) -> str:
    """Where MongoDB is, for people: never the user and password of a URI."""
    hosts = re.sub(r"^mongodb(\+srv)?://", "", config.addr).rpartition("@")[2].partition("/")[0].partition("?")[0]
    return f"MongoDB at {hosts}" if "://" in config.addr else f"MongoDB at {hosts}:{config.port}"


async def _done(work: Awaitable[T], timeout: float, name: str) -> T:
    """Wait for the driver, and turn its errors into ours."""
    try:
        async with asyncio.timeout(timeout * 1.2):  # the driver's own comes first
            return await work
    except BulkWriteError:
        raise
    except (PyMongoError, OSError) as error:  # a timeout is one
        raise failure(name, error) from error


def failure(name: str, error: Exception) -> StoreUnavailable:
    """Ours, for an error of the driver."""
    if isinstance(error, OperationFailure):
        if mistake := _MISTAKES.get(error.code or 0):
            return StoreMisconfigured(f"{name}: {mistake}")
        details = error.details or {}
        return StoreUnavailable(f"{name}: {details.get('codeName') or type(error).__name__} (error {error.code})")
    if told := _TOLD.search(str(error)):
        return StoreUnavailable(f"{name}: {(told[0].partition('] ')[2] or told[0]).strip().lower()}")
    return StoreUnavailable(f"{name}: {cause(error)}")


def _conv(one: str, other: str) -> str:
    """The key of a conversation. No name holds a slash (service.accounts.is_name), so no two are alike."""
    return f"{one}/{other}" if one < other else f"{other}/{one}"


def _inbox(user: str, peer: str) -> str:
    return f"{user}/{peer}"


def _unread(sender: str, receiver: str) -> Document:
    return {"to": receiver, "conv": _conv(sender, receiver), "read": False}


def _document(message: Message | Record) -> Document:
    """The document of a message; one that is added is neither read nor deleted."""
    text: Document = {"text": message.text, "deleted": False}
    if isinstance(message.text, bytes):
        text = {"digest": Binary(message.text), "deleted": True}
    return {
        "_id": Int64(message.time),
        "conv": _conv(message.sender, message.receiver),
        "from": message.sender,
        "to": message.receiver,
        "mid": message.id,
        **text,
        "read": message.read,
        "at": datetime.fromtimestamp(message.time / MICROSECONDS, UTC),
    }


def _record(document: Document) -> Record:
    text = bytes(document["digest"]) if document["deleted"] else document["text"]
    return Record(document["from"], document["to"], document["mid"], text, int(document["_id"]), document["read"])


def _identity(document: Document) -> Document:
    return {key: document[key] for key in ("_id", "conv", "from", "mid")}


def _duplicates(error: BulkWriteError) -> list[int]:
    """Which of a batch were there already. Raises StoreUnavailable if that is not all that went wrong."""
    failures = error.details["writeErrors"]
    if any(failure["code"] != DUPLICATE_KEY for failure in failures) or error.details.get("writeConcernErrors"):
        raise StoreUnavailable("MongoDB: it did not store all") from error
    return [failure["index"] for failure in failures]


def _message(document: Document) -> Message:
    return Message(
        document["from"], document["to"], document["mid"], document["text"], int(document["_id"]), document["read"]
    )


def _found(document: Document | None, message: Message) -> Added | None:
    """What another message stored under the id of `message` is."""
    if document is None or document["_id"] == message.time:
        return None
    buried = document.get("digest")
    same = document["text"] == message.text if buried is None else is_digest_of(bytes(buried), message.text)
    return Added(int(document["_id"]), new=False, same=same, unread=not document["read"])
