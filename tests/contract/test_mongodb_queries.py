"""The commands that MongoMessages sends: each uses an index, bounded on both sides, and reads nothing unneeded.

Also: which answers count as durable.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import pytest
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo.monitoring import CommandFailedEvent, CommandListener, CommandStartedEvent, CommandSucceededEvent

from chat_server.model import mongodb
from chat_server.model.messages import Added, Confirmed, GroupKey, GroupView, Message, Pair, Record
from chat_server.utils.clock import Timeline
from chat_server.utils.errors import StoreUnavailable
from chat_server.utils.lease import always
from tests import servers
from tests.contract.conftest import _server
from tests.faults.stores import unique_names

Filter = Mapping[str, Any]

# The indexes of each collection, and those whose keys are unique.
INDEXES: dict[str, list[tuple[str, ...]]] = {
    "chat_messages": [
        *[("_id",), ("conv", "from", "mid"), ("conv", "deleted", "_id"), ("to", "conv", "_id")],
        ("conv", "mid", "_id"),
    ],
    "chat_conversations": [("_id",), ("user", "last"), ("last",)],
    "chat_positions": [("_id",)],
}
UNIQUE = {("_id",), ("conv", "from", "mid")}
PARTIAL: dict[tuple[str, ...], Filter] = {
    ("to", "conv", "_id"): {"read": False},
    ("conv", "mid", "_id"): {"group": True},
}
QUERIES = ("find", "update", "delete", "aggregate", "count", "distinct", "findAndModify")
# Commands that touch no stored documents, or only those that they contain.
HARMLESS = {"insert", "getMore", "killCursors", "ping", "hello", "ismaster", "endSessions", "dropDatabase"}
HARMLESS |= {"createIndexes", "listIndexes", "dropIndexes", "listCollections"}


def reach(collection: str, query: Filter) -> tuple[bool, str | None]:
    """Return for the best index whether it is unique and which key is a range. Fails if no index fits."""
    if set(query) == {"$or"}:
        assert all(reach(collection, branch) == (True, None) for branch in query["$or"]), query
        return True, None
    equal = {key for key, value in query.items() if not isinstance(value, Mapping) or set(value) <= {"$in", "$eq"}}
    if "_id" in equal:  # further conditions cost nothing
        return True, None
    ranges = {key for key in query if key not in equal and not key.startswith("$")}
    found: list[tuple[bool, str | None]] = []
    for index in INDEXES[collection]:
        if any(query.get(key) is not value for key, value in PARTIAL.get(index, {}).items()):
            continue
        prefix = next((n for n, key in enumerate(index) if key not in equal), len(index))
        ranged = index[prefix] if prefix < len(index) and index[prefix] in ranges else None
        if ranges <= {ranged} and (prefix or (ranged and not equal)):
            found.append((index in UNIQUE and prefix == len(index), ranged))
    assert found, f"no index for {query}"
    for key in ranges:
        assert {"$gt", "$gte"} & set(query[key]), f"{key} has no lower bound: {query}"
        assert {"$lt", "$lte"} & set(query[key]), f"{key} has no upper bound: {query}"
    return max(found, key=lambda one: one[0])


def check(command: Mapping[str, Any]) -> None:
    """Fail if the cost of a command exceeds its result, except for a skip."""
    name = next(iter(command))
    if name in HARMLESS or (name == "count" and not command.get("query")):  # the collection maintains its total count
        return
    collection = command[name]
    if name == "find":
        unique, ranged = reach(collection, command["filter"])
        sort = command.get("sort", {})
        assert not sort or list(sort) == [ranged], f"sorted by no index: {command}"
        assert unique or command.get("limit", 0) > 0, f"no limit: {command}"
    elif name in ("update", "delete"):
        for change in command[f"{name}s"]:
            unique, ranged = reach(collection, change["q"])
            assert unique or (name == "delete" and ranged), f"changes any number: {change}"
    else:
        raise AssertionError(f"not expected: {command}")


class Listener(CommandListener):
    """Records the commands that were sent."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []

    def started(self, event: CommandStartedEvent) -> None:
        self.sent.append(dict(event.command))

    def succeeded(self, event: CommandSucceededEvent) -> None:
        """Ignored."""

    def failed(self, event: CommandFailedEvent) -> None:
        """Ignored."""


class RolledBack:
    """A collection whose documents vanish before they are changed."""

    def __init__(self, collection: Any) -> None:
        self._collection = collection
        self.find = collection.find

    async def update_many(self, query: Filter, change: Filter) -> Any:
        await self._collection.delete_many({})
        return await self._collection.update_many(query, change)


@pytest.fixture
def heard() -> Listener:
    return Listener()


@pytest.fixture
async def store(heard: Listener) -> AsyncIterator[mongodb.MongoMessages]:
    """The store, with a listener on its client."""
    config = servers.mongodb_config(
        None if "CHAT_TEST_MONGODB" in os.environ else _server("mongodb"), unique_names(1)[0]
    )
    address, options = mongodb.client_options(config, 20)
    client: Any = AsyncIOMotorClient(address, event_listeners=[heard], **options)
    try:
        yield await mongodb.connect(config, client, 20, 30, always)
        await client.drop_database(config.name)
    finally:
        client.close()


@pytest.fixture
async def used(store: mongodb.MongoMessages, heard: Listener, timeline: Timeline) -> dict[str, list[dict[str, Any]]]:
    """The commands that each method sends, with and without a match."""
    sent: dict[str, list[dict[str, Any]]] = {}

    def so_far(name: str) -> None:
        sent.setdefault(name, []).extend(heard.sent)
        heard.sent.clear()

    so_far("prepare")
    run = [Message("a", "b", f"m{n}", "text", timeline.next()) for n in range(9)]
    run += [Message("b", "a", "m0", "text", timeline.next()), Message("a", "c", "m0", "text", timeline.next())]
    for _ in range(2):
        await store.add(run)
        so_far("add")
    await store.stored(run)
    so_far("stored")
    time, pair = run[4].time, Pair("a", "b")
    group = GroupKey(run[0].time, "#group")
    written = [Message(user, "#group", "m0", "text", timeline.next(), group=group.number) for user in ("a", "b", "c")]
    for _ in range(2):
        await store.add(written)
        so_far("add")
    confirmed = {user: Confirmed(0, [message.time for message in written]) for user in ("a", "b", "d")}
    calls: dict[str, list[Sequence[Any]]] = {
        "newest": [()],
        "recent": [(pair, 6)],
        "have_written": [(["a"], "b"), (["c", "b"], "a")],
        "time_of": [(pair, "a", "m0"), (pair, "a", "none")],
        "skip": [(pair, 2, 3), (group, 2, 3, time)],
        "before": [(pair, time, 3), (group, written[2].time, 3, time)],
        "after": [(pair, time, 3), (group, time, 3)],
        "unread": [("a", "b", 0, 3)],
        "mark": [("a", "b", ["m1", "none"])],
        "mark_delivered": [([time, 1],)],
        "conversations": [("a", 2**62, 1), ("a", 2**62, 5)],
        "newest_peers": [("a", 1), ("unknown", 200)],
        "listed_at": [("a", "b"), ("a", "unknown")],
        "delete": [(pair, [[("a", "m8"), ("b", "m8")], [("b", "m0")], [("a", "none")]])],
        "ping": [()],
        "count": [()],
        "records": [(pair, 0, mongodb.LATEST, 5)],
        "update_last": [(pair,)],
        "used_times": [([time, 1],)],
        "put": [([Record("a", "b", f"m{n}", "text", run[n].time, True) for n in range(3)],)],
        "newest_with_id": [(group, "m0"), (group, "none")],
        "group_conversations": [("a", [GroupView(group, time)]), ("a", [])],
        "positions": [([group.number, 1],)],
        "move_position": [(group.number, "c", time), (group.number, "c", 1)],
        "advance": [(group.number, confirmed), (group.number, confirmed)],
        "put_positions": [(group.number, {"a": 1, "e": 1}), (group.number, {})],
        "erase_sent": [(group.number, "a", 1), (group.number, "a", 5)],
        "purge": [(time, 2), (time, 100)],
        "erase": [(pair, 2), (pair, 100), (group, 2), (group, 100)],
    }
    for name, arguments in calls.items():
        for each in arguments:
            await getattr(store, name)(*each)
            so_far(name)
    assert [pair async for pair in store.pairs()]
    so_far("pairs")
    assert [peer async for peer in store.peers("a")]
    so_far("peers")
    return sent


async def test_every_query_is_bounded_by_an_index_and_only_skip_skips(used: dict[str, list[dict[str, Any]]]) -> None:
    for name, commands in used.items():
        assert commands, name
        for command in commands:
            check(command)
            assert not command.get("skip") or name == "skip", command
    public = {name for name in dir(mongodb.MongoMessages) if not name.startswith("_")}
    assert public == set(used), "a method that the test does not call"


async def test_the_tests_know_all_indexes(store: mongodb.MongoMessages, used: dict[str, list[dict[str, Any]]]) -> None:
    for collection, indexes in INDEXES.items():
        information = await store._database[collection].index_information()
        there = {tuple(key for key, _ in index["key"]): index for index in information.values()}
        assert set(there) - {("at",)} == set(indexes)
        assert {keys for keys, index in there.items() if index.get("unique")} | {("_id",)} == UNIQUE & set(indexes)


@pytest.mark.parametrize(
    "command",
    [
        {"find": "chat_messages", "filter": {}, "limit": 1},
        {"find": "chat_messages", "filter": {"conv": "a/b"}},
        {"find": "chat_messages", "filter": {"read": True}, "limit": 1},
        {"find": "chat_messages", "filter": {"_id": {"$gt": 1}}, "limit": 1},
        {"find": "chat_messages", "filter": {"_id": {"$lt": 1}}, "limit": 1},
        {"find": "chat_messages", "filter": {"_id": {"$gt": 1, "$lt": 2}}, "sort": {"_id": 1}},
        {"find": "chat_messages", "filter": {"conv": "a/b", "deleted": False}, "sort": {"_id": 1}, "limit": 1},
        {
            "find": "chat_messages",
            "filter": {"conv": "a/b", "_id": {"$gt": 1, "$lt": 2}},
            "sort": {"at": 1},
            "limit": 1,
        },
        {"find": "chat_messages", "filter": {"to": "a", "conv": "a/b", "_id": {"$gt": 1, "$lt": 2}, "read": True}},
        {"find": "chat_messages", "filter": {"mid": "m", "conv": "#1", "_id": {"$gt": 1, "$lt": 2}}, "limit": 1},
        {"find": "chat_messages", "filter": {"$or": [{"_id": 1}, {"read": False}]}},
        {"find": "chat_messages", "filter": {"mid": {"$regex": "m"}, "conv": "a/b"}, "limit": 1},
        {"update": "chat_messages", "updates": [{"q": {"conv": "a/b"}}]},
        {"delete": "chat_conversations", "deletes": [{"q": {"last": {"$lt": 5}}}]},
        {"aggregate": "chat_messages", "pipeline": []},
        {"count": "chat_messages", "query": {"read": False}},
    ],
)
def test_the_check_finds_unbounded_queries(command: dict[str, Any]) -> None:
    with pytest.raises(AssertionError):
        check(command)


async def test_a_retry_waits_until_a_majority_stored_the_message(
    store: mongodb.MongoMessages, heard: Listener, timeline: Timeline
) -> None:
    """A write that changes nothing waits for earlier writes. A plain read may return what is later rolled back."""
    first = Message("a", "b", "m", "text", timeline.next())
    await store.add([first])
    heard.sent.clear()
    retry = Message("a", "b", "m", "text", timeline.next())
    assert await store.add([retry]) == [Added(first.time, new=False)]
    find, update = heard.sent
    assert "find" in find
    assert update["update"] == "chat_messages"
    assert [change["q"] for change in update["updates"]] == [{"_id": {"$in": [first.time]}}]
    assert update["writeConcern"] == {"w": "majority", "j": True}
    assert await store.after(Pair("a", "b"), 0, 9) == [first]


async def test_op_7_skips_emptied_conversations_without_queries(
    store: mongodb.MongoMessages, heard: Listener, timeline: Timeline
) -> None:
    kept = Message("a", "z", "m", "text", timeline.next())
    emptied = [Message("a", f"b{number}", "m", "text", timeline.next()) for number in range(30)]
    await store.add([kept, *emptied])
    for message in emptied:
        await store.delete(Pair("a", message.receiver), [[("a", "m")]])
    heard.sent.clear()
    assert [one.peer for one in await store.conversations("a", 2**62, 1)] == ["z"]
    assert [next(iter(command)) for command in heard.sent] == ["find"] * 3  # inboxes, last message, unread messages


async def test_op_7_reads_an_expired_conversation_once(
    store: mongodb.MongoMessages, heard: Listener, timeline: Timeline
) -> None:
    """MongoDB expires messages without updating their conversations."""
    kept = Message("a", "z", "m", "text", 5)
    await store.add([kept, *(Message("a", f"b{number}", "m", "text", 10 + number) for number in range(5))])
    await store._messages.delete_many({"_id": {"$gte": 10}})
    for _ in range(2):
        heard.sent.clear()
        assert [one.peer for one in await store.conversations("a", 2**62, 10)] == ["z"]
    assert [next(iter(command)) for command in heard.sent] == ["find"] * 3


async def test_a_message_that_is_rolled_back_is_not_reported_as_stored(
    store: mongodb.MongoMessages, timeline: Timeline
) -> None:
    first = Message("a", "b", "m", "text", timeline.next())
    await store.add([first])
    collection = store._messages
    store._messages = RolledBack(collection)
    with pytest.raises(StoreUnavailable):
        await store.stored([Message("a", "b", "m", "text", timeline.next())])
    store._messages = collection


async def test_a_message_with_a_used_time_is_not_acknowledged(store: mongodb.MongoMessages, timeline: Timeline) -> None:
    """Two servers write concurrently despite the lease: one was frozen and has not noticed its replacement."""
    first = Message("a", "b", "m", "text", timeline.next())
    await store.add([first])
    second = Message("c", "d", "m", "text", first.time)
    with pytest.raises(StoreUnavailable):
        await store.add([second])
    second = Message("c", "d", "m", "text", timeline.next())
    assert await store.add([second]) == [Added(second.time)]
    assert await store.after(Pair("a", "b"), 0, 9) == [first]


@pytest.mark.skipif("CHAT_TEST_MONGODB" not in os.environ, reason="needs a server that explains: CHAT_TEST_MONGODB")
async def test_the_server_explains_index_use(
    store: mongodb.MongoMessages, used: dict[str, list[dict[str, Any]]]
) -> None:
    for command in (command for commands in used.values() for command in commands if "find" in command):
        query = {key: command[key] for key in ("find", "filter", "sort", "skip", "limit") if key in command}
        plan = str((await store._database.command("explain", query, verbosity="queryPlanner"))["queryPlanner"])
        assert "COLLSCAN" not in plan.partition("rejectedPlans")[0], query
        assert "'stage': 'SORT'" not in plan.partition("rejectedPlans")[0], query


@pytest.mark.skipif("CHAT_TEST_MONGODB" in os.environ, reason="that mongod must not be stopped")
async def test_closing_a_client_waits_for_no_frozen_server() -> None:
    """The driver alone waits for about 30 seconds, and blocks the event loop meanwhile."""
    server = _server("mongodb")
    client = mongodb.client(servers.mongodb_config(server, "closing"), 20)
    await client.admin.command("ping")
    server.send(signal.SIGSTOP)
    try:
        closing, turns = asyncio.create_task(mongodb.close(client)), 0
        async with asyncio.timeout(10):
            while not closing.done():
                turns += 1
                await asyncio.sleep(0)
        assert turns > 2
    finally:
        server.send(signal.SIGCONT)
