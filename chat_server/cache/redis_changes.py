"""Changes that every node must apply before the answer, and the format of all messages on the channels of the nodes."""

import asyncio
import secrets
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from redis import asyncio as aioredis

from chat_server.cache.node_counts import NodeCounts
from chat_server.cache.redis import LOST, Scripts, client
from chat_server.conf import RedisSettings
from chat_server.utils.errors import StoreUnavailable, cause

# Seconds until a change is published again to nodes that have not confirmed it.
REPEAT_SECONDS = 1.0
# Seconds until Redis has confirmed a subscription, and until a command pings a silent one, which must then answer.
SUBSCRIBE_SECONDS = 3.0
# Seconds until a change is given up: the lease of a frozen node, and time for a slow one.
CHANGE_SECONDS = 30.0

# How a payload begins: an item; a change and its number; the confirmation of a change; a node, with its users.
ITEM, CHANGE, CONFIRMED, USERS = b"i", b"?", b"!", b"u"
NUMBER = struct.Struct(">Q")
_HEADER = struct.Struct(">QH")  # read again since; length of the name of the sender
_RECORD = struct.Struct(">II")  # lengths of the payload and of the names of users


class RedisChanges:
    """The changes that this process publishes.

    `channels` precedes the name of a node in the name of its channel. `name` returns the current name of this process,
    and `lapsed` whether its lease has ended.
    """

    def __init__(
        self,
        scripts: Scripts,
        channels: str,
        name: Callable[[], str],
        lapsed: Callable[[], bool],
        counts: NodeCounts,
    ) -> None:
        self._counts = counts
        self._scripts = scripts
        self._channels = channels
        self._name = name
        self._lapsed = lapsed
        self._last = 0  # the number of the last change
        self._confirmed: dict[int, tuple[set[str], asyncio.Event]] = {}  # by the number of the change

    def waiting(self) -> int:
        """Return how many changes wait for other nodes."""
        return len(self._confirmed)

    async def confirm(self, payload: bytes) -> None:
        """Publish a change. Return when each other node has confirmed it or its lease has ended.

        Raises StoreUnavailable, also if a node with a lease has not confirmed it within CHANGE_SECONDS.
        """
        try:
            async with asyncio.timeout(CHANGE_SECONDS):
                await self._confirm(payload)
        except TimeoutError:
            why = f"a server has not confirmed within {CHANGE_SECONDS:g} s"
            raise StoreUnavailable(f"{self._scripts.name}: {why}") from None

    async def _confirm(self, payload: bytes) -> None:
        self._last += 1
        number, confirmed, event = self._last, set[str](), asyncio.Event()
        self._confirmed[number] = confirmed, event
        message = record(CHANGE + NUMBER.pack(number) + payload)
        waiting: set[str] | None = None
        try:
            while True:
                name = self._name()
                arguments: list[str | bytes] = [name, self._channels, header(name) + message, *confirmed]
                found = {node.decode() for node in await self._scripts.run("publish_change", ["nodes"], arguments)}
                waiting = found if waiting is None else waiting & found  # the others have lost their leases
                with suppress(TimeoutError):
                    async with asyncio.timeout(REPEAT_SECONDS):
                        while not waiting <= confirmed:
                            event.clear()
                            await event.wait()
                if waiting <= confirmed:
                    return
                self._counts.slow_changes += 1
                if self._lapsed():
                    raise StoreUnavailable(f"{self._scripts.name}: the lease of this process has ended")
        finally:
            del self._confirmed[number]

    def note(self, node: str, number: int) -> None:
        """A node has confirmed the change of this number."""
        if change := self._confirmed.get(number):
            confirmed, event = change
            confirmed.add(node)
            event.set()


async def confirm_as_command(redis: "aioredis.Redis", scripts: Scripts, payload: bytes) -> None:
    """Like RedisChanges.confirm, for a process that is no node: it receives the confirmations on its own channel."""
    name, channels = f"command:{secrets.token_hex(8)}", node_channels(redis, scripts)
    changes = RedisChanges(scripts, channels, lambda: name, lambda: False, NodeCounts())
    subscription = await subscribe(redis, channels + name, scripts)
    confirming = asyncio.create_task(changes.confirm(payload))
    reading = asyncio.create_task(_read(subscription, changes))
    try:
        done, _ = await asyncio.wait((confirming, reading), return_when=asyncio.FIRST_COMPLETED)
        await (confirming if confirming in done else reading)
    except LOST as error:
        raise StoreUnavailable(f"{scripts.name}: {cause(error)}") from error
    finally:
        confirming.cancel()
        reading.cancel()
        await asyncio.gather(confirming, reading, return_exceptions=True)
        await close(subscription)


async def probe_rights(redis: "aioredis.Redis", scripts: Scripts) -> None:
    """Try what only nodes do: commands of their scripts, and a subscription. Raises StoreUnavailable."""
    await scripts.run("cluster_probe", ["probe"])
    await close(await subscribe(redis, node_channels(redis, scripts) + "probe", scripts))


async def probe(config: RedisSettings, timeout: float) -> None:
    """Try what only nodes do, for --check. Raises StoreUnavailable."""
    redis = client(config, timeout)
    scripts = Scripts(redis, config.redis_prefix, timeout)
    try:
        await probe_rights(redis, scripts)
    finally:
        await scripts.close()


async def _read(subscription: Any, changes: RedisChanges) -> None:
    """Note each confirmation. Raises one of LOST when the subscription ends, TimeoutError if it is silent."""
    silent = False
    while True:
        message = await subscription.get_message(timeout=SUBSCRIBE_SECONDS)
        if message is None and silent:
            raise TimeoutError
        if silent := message is None:  # its connection may be half-open
            await subscription.ping()
        elif message["type"] == "message":
            node, _, place = parse_header(message["data"])
            for payload, _ in records(message["data"], place):
                changes.note(node, NUMBER.unpack(payload[1:])[0])  # nodes publish nothing else here


def node_channels(redis: "aioredis.Redis", scripts: Scripts) -> str:
    """Return the beginning of the names of channels. It has the database, because Pub/Sub has no databases."""
    return f"{scripts.prefix}{redis.connection_pool.connection_kwargs.get('db', 0)}:node:"


async def subscribe(redis: "aioredis.Redis", channel: str, scripts: Scripts) -> Any:
    """Subscribe to a channel, and return when Redis has confirmed it. Raises StoreUnavailable like a script."""
    subscription = redis.pubsub()
    try:
        async with asyncio.timeout(SUBSCRIBE_SECONDS):
            await subscription.subscribe(channel)
            await subscription.get_message(timeout=None)
    except BaseException as error:
        await close(subscription)
        if isinstance(error, LOST):
            raise scripts.failure(error) from error
        raise
    return subscription


async def close(subscription: Any) -> None:
    """Close a subscription, even if its connection is broken."""
    with suppress(*LOST):
        await subscription.aclose()


def header(sender: str, since: int = 0) -> bytes:
    """Begin a message; `since`: the receivers must read again what was published since."""
    name = sender.encode()
    return _HEADER.pack(since, len(name)) + name


def parse_header(message: bytes) -> tuple[str, int, int]:
    """Return the sender, `since`, and where the records begin."""
    since, size = _HEADER.unpack_from(message)
    place = _HEADER.size + size
    return message[_HEADER.size : place].decode(), since, place


def record(payload: bytes) -> bytes:
    """A record of a message, without users."""
    return _RECORD.pack(len(payload), 0) + payload


def records(message: bytes, place: int) -> Iterator[tuple[bytes, list[str]]]:
    """The payloads of a message, each with the users of this node."""
    while place < len(message):
        size, names = _RECORD.unpack_from(message, place)
        place += _RECORD.size
        payload, users = message[place : place + size], message[place + size : place + size + names]
        place += size + names
        yield payload, users.decode().split("\n") if users else []
