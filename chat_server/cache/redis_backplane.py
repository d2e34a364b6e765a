"""Backplane on Redis Pub/Sub, with one channel for each node."""

import asyncio
import logging
from collections import deque
from collections.abc import Coroutine, Sequence, Set
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import msgspec
from redis import asyncio as aioredis

from chat_server.cache.backplane import Item, Receiver
from chat_server.cache.node_counts import NodeCounts
from chat_server.cache.redis import LOST, Scripts
from chat_server.cache.redis_changes import (
    CHANGE,
    CONFIRMED,
    ITEM,
    NUMBER,
    USERS,
    RedisChanges,
    close,
    header,
    node_channels,
    parse_header,
    record,
    records,
    subscribe,
)
from chat_server.cache.redis_directory import RedisDirectory
from chat_server.cache.redis_lock import RedisLocks
from chat_server.cache.redis_nodes import RedisNode
from chat_server.utils.batch import Batcher
from chat_server.utils.clock import MICROSECONDS, Clock
from chat_server.utils.errors import StoreUnavailable
from chat_server.utils.metrics import Metrics
from chat_server.utils.tasks import cancel

log = logging.getLogger(__name__)
_encode = msgspec.msgpack.Encoder().encode

# Seconds between two probes on the node's own channel, and without one until the subscription counts as broken.
PROBE_SECONDS, PROBE_TIMEOUT = 1.0, 3.0
# A message is published less than this after its time was taken, in microseconds: StoreTimeout, and clocks that differ.
PUBLISHED_WITHIN = 60 * MICROSECONDS
# Items per script. A script that runs long delays all nodes.
MAX_ITEMS = 256
# Calls of `publish` that go out together; more of them waiting are a congestion. Each may be a batch of messages.
MAX_CALLS = 256
# Bytes that wait while the node recovers. Beyond it they are dropped, and the node recovers once more.
MAX_WAITING = 64 * 1024 * 1024
# Applied changes that are remembered. A change is published again at most until the lease of a node has ended.
MAX_APPLIED = 256


class Gap(NamedTuple):
    """Items published after `since` may be lost. `closed` is set when the node has recovered.

    `own`: this node did not receive them. Otherwise, another node may not have published them.
    """

    since: int
    own: bool
    closed: asyncio.Event


class Arrived(NamedTuple):
    """A message of the channel, with its header parsed: the records begin at `place`."""

    sender: str
    since: int
    place: int
    message: bytes


class RedisBackplane:
    """Backplane of one node. `scripts` need no lease."""

    _receiver: Receiver

    def __init__(
        self, redis: "aioredis.Redis", scripts: Scripts, node: RedisNode, clock: Clock, timeout: float
    ) -> None:
        self._redis = redis
        self._scripts = scripts
        self._node = node
        self._clock = clock
        self._timeout = timeout
        self._channels = node_channels(redis, scripts)
        self._directory = RedisDirectory(scripts, self._channels, self.name, timeout)
        self.set_sockets, self.count_users = self._directory.set_sockets, self._directory.count_users
        self._publishing: Batcher[Sequence[Item], list[int]] = Batcher(self._publish_calls, most=MAX_CALLS)
        self._lost_since = 0  # items published since could not be published
        self._waiting: deque[Arrived] = deque()
        self._waiting_bytes = 0
        self._gap: Gap | None = None  # all gaps for which no recovery has begun
        self._arrived = asyncio.Event()
        self._probed = clock.now()  # what was published before has been handled or read again
        self._subscribed = False
        self._subscriptions = 0  # so far
        self._counts = NodeCounts()
        self._changes = RedisChanges(scripts, self._channels, self.name, node.lapsed, self._counts)
        self._applying: set[tuple[str, int]] = set()
        self._applied: deque[tuple[str, int]] = deque(maxlen=MAX_APPLIED)
        self._recovering = False
        self._elsewhere = False  # the subscription is at another Redis than the scripts
        self._live: Set[str] = frozenset()  # nodes with a lease, at the last look
        self._listening = set[str]()  # other nodes
        self._asked = set[str]()  # those of them whose users have been asked for; another set after a gap
        self._tasks: set[asyncio.Task[None]] = set()
        self.lapsed = node.lapsed
        self.lock = RedisLocks(scripts).hold
        node.rejoined = self._rejoined

    def name(self) -> str:
        return self._node.name

    async def ping(self) -> None:
        if self.lapsed():
            raise StoreUnavailable(f"{self._scripts.name}: the lease of this process has ended")
        if not self._subscribed:
            raise StoreUnavailable(f"{self._scripts.name}: the subscription of this process is broken")

    def add_metrics(self, metrics: Metrics) -> None:
        """Register the metrics of this node."""
        counts = self._counts
        for name, meaning, read in (
            ("ready", "1 with a lease and a subscription, else 0.", lambda: self._subscribed and not self.lapsed()),
            ("peers", "Other processes that listen.", lambda: len(self._listening)),
            ("queue", "Batches of items that wait to be published.", self._publishing.waiting),
            ("waiting_bytes", "Bytes of other processes that wait to be handled.", lambda: self._waiting_bytes),
            (
                "recovering_seconds",
                "Duration so far of the recovery in progress; 0 without one.",
                counts.recovering_seconds,
            ),
            ("changes_waiting", "Changes that other processes have not applied yet.", self._changes.waiting),
        ):
            metrics.add_gauge(f"chat_cluster_{name}", meaning, read)
        for attribute, meaning in (
            ("published", "Items published."),
            ("published_bytes", "Bytes of the items, without the names of users."),
            ("slow_changes", "Changes that another process had not applied after a second, for each second."),
            ("gaps", "Recoveries."),
            ("own_gaps", "Recoveries because this process missed notifications."),
            ("recovery_seconds", "Duration of all recoveries."),
        ):
            metrics.add_counter(f"chat_cluster_{attribute}", meaning, partial(getattr, counts, attribute))

    # --- publishing

    def publish(self, items: Sequence[Item]) -> asyncio.Future[list[int]]:
        return self._publishing.submit(items)

    def congested(self) -> bool:
        return self._publishing.waiting() > MAX_CALLS

    async def _publish_calls(self, calls: list[Sequence[Item]]) -> Sequence[list[int]]:
        items, accepted = [item for call in calls for item in call], list[int]()
        for start in range(0, len(items), MAX_ITEMS):
            accepted += await self._publish(items[start : start + MAX_ITEMS])
        results = iter(accepted)
        return [list(islice(results, len(call))) for call in calls]

    async def _publish(self, items: list[Item]) -> Sequence[int]:
        arguments: list[str | int | bytes] = [self._node.name, self._directory.prefix, self._channels]
        began, lost_since = self._clock.now() - PUBLISHED_WITHIN, self._lost_since
        self._lost_since = 0  # what is lost from now on belongs to the next call
        arguments += [header(self._node.name, lost_since), int(lost_since > 0)]
        payloads = [ITEM + item.payload for item in items]
        sizes = map(len, payloads)
        entries = [(item.users, size, item.others) for item, size in zip(items, sizes, strict=True)]
        arguments += [_encode(entries), b"".join(payloads)]
        try:
            accepted: bytes = await self._scripts.run("publish", ["nodes"], arguments)
        except BaseException as error:
            self._lost_since = lost_since or began
            if not isinstance(error, StoreUnavailable):
                raise
            log.warning("items not published", extra={"items": len(items), "error": str(error)})
            return [0] * len(items)
        self._counts.published += len(items)
        self._counts.published_bytes += sum(len(item.payload) for item in items)
        return accepted

    async def confirm(self, payload: bytes) -> None:
        try:
            await self._changes.confirm(payload)
        except StoreUnavailable:  # it is stored: the others find it when they read again
            self._lost_since = self._lost_since or self._clock.now()
            raise

    # --- receiving

    async def open(self) -> None:
        """Subscribe. Raises StoreUnavailable."""
        self._reading = self._begin(self._read(await self._subscribe()))

    def start(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._begin(self._consume())
        self._begin(self._probe())

    async def close(self) -> None:
        """Publish what waits, as far as Redis answers in time, and end the subscription."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._timeout):
                await self._publishing.flush()
                await self._directory.flush()
        await cancel(*self._tasks)

    async def _subscribe(self) -> Any:
        """Subscribe to the channel of this node. Raises StoreUnavailable."""
        subscription = await subscribe(self._redis, self._channels + self._node.name, self._scripts)
        self._subscribed, self._elsewhere = True, False
        self._subscriptions += 1
        return subscription

    async def _read(self, subscription: Any) -> None:
        """Read the subscription. When it ends or is silent, subscribe again; recover once Redis has confirmed that."""
        try:
            while True:
                try:
                    async with asyncio.timeout(PROBE_TIMEOUT):
                        message = await subscription.get_message(timeout=None)
                    if message and message["type"] == "message":
                        self._arrive(message["data"])
                        if not self._elsewhere:
                            continue
                except LOST:
                    pass
                except Exception:  # a bug must not make the node deaf
                    log.exception("item failed")
                self._subscribed = False
                log.warning("subscription broken", extra={"store": self._scripts.name})
                await close(subscription)
                subscription = await self._subscribe_again()
                self._note_gap(own=True)
        finally:
            await close(subscription)

    async def _subscribe_again(self) -> Any:
        """Subscribe as soon as Redis permits it. The directory is complete before, because then the others read it."""
        while True:
            try:
                await self._directory.write_all()
                return await self._subscribe()
            except StoreUnavailable as error:
                log.warning("store unavailable", extra={"error": str(error)})
            except Exception:  # a bug must not make the node deaf
                log.exception("subscription broken", extra={"store": self._scripts.name})
            await asyncio.sleep(PROBE_SECONDS)

    async def _probe(self) -> None:
        """Publish to the node's own channel: while that arrives, messages of others do, too."""
        while True:
            try:
                probe, before = header(self._node.name, self._clock.now()), self._subscriptions
                found = await self._scripts.run("publish_to", [], [self._channels + self._node.name, probe])
                # After a failover, a demoted Redis still passes on what the new one replicates, but the other nodes ask
                # the new one whether this node listens.
                if before == self._subscriptions:  # otherwise there was none when Redis looked for it
                    self._elsewhere = not found
                await self._watch()
                if self._directory.incomplete:
                    self._directory.incomplete = False
                    await self._directory.write_all()
                    self._note_gap(own=False)  # the others may have published meanwhile what belongs here
                    self._lost_since = self._lost_since or self._clock.now()  # they must read the directory again
                if self._lost_since:  # tell the others, even if nothing else is to be published
                    await self.publish([Item([], b"")])
            except StoreUnavailable:
                pass  # the missing probe is a gap
            except Exception:  # a bug must not end the probes silently
                log.exception("probe failed")
            await asyncio.sleep(PROBE_SECONDS)

    async def _watch(self) -> None:
        """Find the other nodes that have started or ended."""
        names = await self._scripts.run("nodes_listening", ["nodes"], [self._node.name, self._channels])
        listening = {name.decode() for name in names}
        ended, self._live = self._live - self._node.live, self._node.live
        for name in self._listening - listening:
            self._receiver.vanished(name)
            ended |= {name}
        self._listening, asked = listening, self._asked
        asked &= listening
        if ended:
            # They may have stored messages that they did not publish. A node that listens no more can store until its
            # lease ends, so the end of the lease counts, too.
            self._note_gap(own=False)
        for name in listening - asked:
            await self._directory.publish_users(name, header(self._node.name, self._clock.now()))
            asked.add(name)

    def _note_gap(self, since: int | None = None, *, own: bool = False) -> asyncio.Event:
        """Let the node recover before it handles what waits; without `since`, from now.

        One recovery is enough for all gaps that were noted before it begins. Returns an event that it sets at its end.
        """
        if since is None:
            since = self._clock.now() - PUBLISHED_WITHIN
        gap = self._gap or Gap(since, own, asyncio.Event())
        self._gap = Gap(min(gap.since, since), gap.own or own, gap.closed)
        self._arrived.set()
        return gap.closed

    def _arrive(self, message: bytes) -> None:
        """Take a message of the channel."""
        arrived = Arrived(*parse_header(message), message)
        if arrived.since and arrived.sender != self._node.name:  # the number of a probe is its time
            self._note_gap(arrived.since)
        self._queue(arrived)

    def _queue(self, arrived: Arrived) -> None:
        """Let a message wait for its turn. If there is no room, drop all that wait and read them again.

        During a recovery, changes and confirmations do not wait: it may last as long as an outage, and it may itself
        wait for a lock whose holder waits for this node. The receiver checks what it delivers against the new state.
        """
        if self._recovering and self._take_change(arrived):
            return
        if self._waiting_bytes + len(arrived.message) > MAX_WAITING:
            self._waiting.clear()
            self._waiting_bytes = 0
            self._note_gap(own=True)
            return
        self._waiting.append(arrived)
        self._waiting_bytes += len(arrived.message)
        self._arrived.set()

    async def _consume(self) -> None:
        """Handle gaps and what arrived, one after the other."""
        while True:
            self._arrived.clear()
            while self._gap or self._waiting:
                try:
                    if self._gap:
                        await self._recover(self._gap)
                    else:
                        arrived = self._waiting.popleft()
                        self._waiting_bytes -= len(arrived.message)
                        await self._handle(arrived)
                except Exception:  # the next one must be handled
                    log.exception("item failed")
            await self._arrived.wait()

    async def _recover(self, gap: Gap) -> None:
        self._gap, self._recovering = None, True
        try:
            waiting, self._waiting, self._waiting_bytes = self._waiting, deque(), 0
            for arrived in waiting:  # changes no longer wait
                self._queue(arrived)
            with self._counts.recovery(own=gap.own):
                await self._read_again(gap)
        finally:
            self._recovering = False
            gap.closed.set()

    async def _read_again(self, gap: Gap) -> None:
        since = min(gap.since, self._probed - PUBLISHED_WITHIN) if gap.own else gap.since
        self._asked = set()
        while True:
            began = self._clock.now()
            try:
                await self._receiver.recover(since, own=gap.own)
                if gap.own:
                    self._probed = began
                return
            except StoreUnavailable as error:
                log.warning("store unavailable", extra={"error": str(error)})
                await asyncio.sleep(PROBE_SECONDS)

    async def _handle(self, arrived: Arrived) -> None:
        if self.lapsed():  # what has changed meanwhile is not known; after the lapse, the node reads again
            return
        if arrived.sender == self._node.name:
            self._probed = max(self._probed, arrived.since)
            for content, users in records(arrived.message, arrived.place):
                if (name := content[len(USERS) :].decode()) in self._listening:  # it may have ended meanwhile
                    self._receiver.appeared(name, users)
            return
        if self._take_change(arrived):
            return
        for content, users in records(arrived.message, arrived.place):
            if content[:1] == ITEM:
                try:
                    await self._receiver.received(users, content[1:])
                except Exception:  # only this item fails
                    log.exception("item failed")

    def _take_change(self, arrived: Arrived) -> bool:
        """Begin to apply a change, or note a confirmation. Returns whether the message is one of these.

        Both are alone in their messages. What a later version publishes in addition is ignored.
        """
        content, _ = next(records(arrived.message, arrived.place), (b"", []))
        kind, payload = content[:1], content[1:]
        if kind == CHANGE:
            (number,) = NUMBER.unpack_from(payload)
            self._begin(self._apply(arrived.sender, number, payload[NUMBER.size :]))
        elif kind == CONFIRMED:
            self._changes.note(arrived.sender, NUMBER.unpack_from(payload)[0])
        return kind in (CHANGE, CONFIRMED)

    async def _apply(self, sender: str, number: int, payload: bytes) -> None:
        """Apply a change and confirm it, after everything that was published before."""
        if (sender, number) in self._applying:  # published again meanwhile
            return
        self._applying.add((sender, number))
        try:
            if (sender, number) not in self._applied:  # the confirmation may have been lost
                await self._receiver.apply(payload)
                self._applied.append((sender, number))
            await self._publishing.flush()
            message = header(self._node.name) + record(CONFIRMED + NUMBER.pack(number))
            await self._scripts.run("publish_to", [], [self._channels + sender, message])
        except StoreUnavailable as error:  # the sender publishes the change again
            log.warning("store unavailable", extra={"error": str(error)})
        except Exception:
            log.exception("change failed")
        finally:
            self._applying.discard((sender, number))

    async def _rejoined(self) -> None:
        """Subscribe to the channel of the node's other name, and return when the node has recovered."""
        await cancel(self._reading)
        await self._directory.write_all()
        await self.open()
        await self._note_gap(own=True).wait()

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
