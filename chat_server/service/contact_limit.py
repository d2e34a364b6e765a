"""Enforce the contact limit: how much a user may write to another who does not answer (protocol section 3, promise 4).

The rule itself is `decide` in cache/contacts.py. Here it is applied and the message stored, so that neither happens
without the other.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import suppress
from typing import Generic, Protocol, TypeVar

import msgspec

from chat_server.cache.contacts import ContactRecord, ContactState, ContactStore, Decision, Permission, rebuild
from chat_server.model.messages import Added, Message, MessageStore, Pair
from chat_server.utils.errors import StoreUnavailable

Tx = TypeVar("Tx")
Tx_contra = TypeVar("Tx_contra", contravariant=True)
SortedPair = tuple[str, str]  # two users, the lesser name first

# Pairs per request to the user store when the cache is refreshed; each names up to two users.
REFRESHED_PAIRS = 500


class Outcome(msgspec.Struct, frozen=True):
    """The outcome of one message: `added`, or None if the limit refused it, or the failure of the store.

    `free`: from now on the two users write without a limit. `unblocked`: the receiver had been refused before, and may
    write again.
    """

    added: Added | StoreUnavailable | None
    free: bool = True
    unblocked: bool = False


class SendStrategy(Protocol):
    """Decide on messages and store them; the strategies differ by where messages and counters are kept."""

    async def add(self, batch: Sequence[Message], free: Sequence[bool]) -> list[Outcome]:
        """Decide on each message and store it, in this order; retries do not count. Otherwise as MessageStore.add.

        `free` says for each message whether its two users are known to write without a limit.
        """
        ...

    async def are_free(self, pair: SortedPair, now: int) -> bool:
        """Whether the counters know that the two users write without a limit at `now`. Raises StoreUnavailable."""
        ...


class ContactLimit:
    """Stores messages within the limit. Pairs known to be free are cached, so their messages need no counter."""

    def __init__(self, messages: MessageStore, strategy: SendStrategy, cache: "ContactCache") -> None:
        self._messages = messages
        self._strategy = strategy
        self._cache = cache

    def is_free(self, sender: str, receiver: str, now: int) -> bool:
        """Whether `sender` may write to `receiver` at `now` (microseconds) and the counters need not know."""
        return self._cache.lookup(sender, receiver, now) == FREE

    async def are_contacts(self, one: str, other: str, now: int) -> bool:
        """Whether the two users write without a limit at `now`: from the cache, or else by one look at the counters.

        A missing counter is not rebuilt from the messages, so after a loss of the counters the answer is False until
        one of the two writes. Raises StoreUnavailable.
        """
        pair = (one, other) if one < other else (other, one)
        return self._cache.lookup(*pair, now) != UNKNOWN or await self._strategy.are_free(pair, now)

    async def add(self, messages: Sequence[Message]) -> list[Outcome]:
        """Store the messages that the limit allows, in this order. Raises StoreUnavailable."""
        newest = {message.receiver: message for message in messages}
        known = {to: self._cache.lookup(message.sender, to, message.time) for to, message in newest.items()}
        if min(known.values()) == FREE:
            return [Outcome(added, free=False) for added in await self.add_free(messages)]
        outcomes = await self._strategy.add(messages, [known[message.receiver] != UNKNOWN for message in messages])
        for message, outcome in zip(messages, outcomes, strict=True):
            if outcome.free and isinstance(outcome.added, Added) and outcome.added.new:
                self._cache.remember(message.sender, message.receiver, message.time)
        return outcomes

    async def add_free(self, messages: Sequence[Message]) -> list[Added]:
        """Store messages whose pairs are free, in this order. Raises StoreUnavailable."""
        stored = await self._messages.add(messages)
        self._cache.renew([message for message, added in zip(messages, stored, strict=True) if added.new])
        return stored

    async def refresh(self, not_enabled: Callable[[Collection[str]], Awaitable[set[str]]]) -> None:
        """Drop the cached pairs of users whom another process has disabled or removed."""
        pairs = self._cache.pairs()
        for start in range(0, len(pairs), REFRESHED_PAIRS):
            page = pairs[start : start + REFRESHED_PAIRS]
            gone = await not_enabled({name for pair in page for name in pair})
            self._cache.forget(pair for pair in page if not gone.isdisjoint(pair))


# What the cache knows of a pair: nothing; free, but the counters should be told again; free.
UNKNOWN, DUE, FREE = range(3)


class ContactCache:
    """Pairs of users known to write to each other without a limit.

    A pair is free for `window` microseconds after its last message. After a fiftieth of that time the counters are
    updated again, so that they know nearly as much after a restart. Beyond `most` pairs the oldest one is dropped.
    """

    def __init__(self, window: int, most: int) -> None:
        self._window = window
        self._most = most
        self._pairs: dict[SortedPair, tuple[int, int]] = {}  # -> free until, tell the counters from

    def lookup(self, one: str, other: str, now: int) -> int:
        """UNKNOWN, DUE or FREE at `now`."""
        pair = (one, other) if one < other else (other, one)
        known = self._pairs.get(pair)
        if known is None or now >= known[0]:
            return UNKNOWN
        return FREE if now < known[1] else DUE

    def renew(self, messages: Iterable[Message]) -> None:
        """These messages are stored: each renews its pair, if it is cached. Refused ones and retries renew nothing."""
        for message in messages:
            one, other = message.sender, message.receiver
            pair = (one, other) if one < other else (other, one)
            if known := self._pairs.get(pair):
                self._pairs[pair] = (message.time + self._window, known[1])

    def remember(self, one: str, other: str, now: int) -> None:
        """The counters know that the pair is free from `now` on."""
        pair = (one, other) if one < other else (other, one)
        self._pairs.pop(pair, None)
        if len(self._pairs) >= self._most:
            del self._pairs[next(iter(self._pairs))]
        self._pairs[pair] = (now + self._window, now + self._window // 50)

    def pairs(self) -> Sequence[SortedPair]:
        """The cached pairs."""
        return list(self._pairs)

    def forget(self, pairs: Iterable[SortedPair]) -> None:
        """Drop these pairs."""
        for pair in pairs:
            self._pairs.pop(pair, None)


class Unlimited:
    """SendStrategy without a limit."""

    def __init__(self, messages: MessageStore) -> None:
        self._messages = messages

    async def add(self, batch: Sequence[Message], free: Sequence[bool]) -> list[Outcome]:
        return [Outcome(added) for added in await self._messages.add(batch)]

    async def are_free(self, pair: SortedPair, now: int) -> bool:
        return True


class MessagesInTransaction(Protocol[Tx_contra]):
    """The methods of a MessageStore that work inside a transaction."""

    def add_in(self, tx: Tx_contra, batch: Sequence[Message]) -> list[Added]: ...
    def find_in(self, tx: Tx_contra, message: Message) -> Added | None: ...
    def recent_in(self, tx: Tx_contra, pair: Pair, count: int) -> list[tuple[str, int]]: ...
    def have_written_in(self, tx: Tx_contra, senders: Sequence[str], receiver: str) -> set[str]: ...


class ContactsInTransaction(Protocol[Tx_contra]):
    """The methods of a ContactStore that work inside a transaction."""

    def take_in(
        self, tx: Tx_contra, sender: str, receiver: str, now: int, rebuilt: ContactState | None = None
    ) -> Decision: ...
    def allow_in(self, tx: Tx_contra, one: str, other: str, now: int) -> None: ...
    async def peek(self, pairs: Sequence[SortedPair]) -> list[ContactRecord]: ...


class SameDatabase(Generic[Tx]):
    """SendStrategy for messages and counters in one database: one transaction decides and stores.

    `write` runs a function in a transaction, like utils.sqlite.Database.write. `window` in microseconds.
    """

    def __init__(
        self,
        write: Callable[[Callable[[Tx], list[Outcome]]], Awaitable[list[Outcome]]],
        messages: MessagesInTransaction[Tx],
        contacts: ContactsInTransaction[Tx],
        limit: int,
        window: int,
    ) -> None:
        self._write = write
        self._messages = messages
        self._contacts = contacts
        self._limit = limit
        self._window = window

    async def add(self, batch: Sequence[Message], free: Sequence[bool]) -> list[Outcome]:
        return await self._write(lambda tx: [self._add(tx, *each) for each in zip(batch, free, strict=True)])

    async def are_free(self, pair: SortedPair, now: int) -> bool:
        return _are_free(await self._contacts.peek([pair]), now)

    def _add(self, tx: Tx, message: Message, free: bool) -> Outcome:
        if earlier := self._messages.find_in(tx, message):
            return Outcome(earlier, free=False)
        decision = self._decide(tx, message, free)
        if decision.permission is Permission.REFUSED:
            return Outcome(None, free=False)
        [added] = self._messages.add_in(tx, [message])
        return Outcome(added, free=decision.permission is Permission.FREE, unblocked=decision.unblocked)

    def _decide(self, tx: Tx, message: Message, free: bool) -> Decision:
        sender, receiver, now = message.sender, message.receiver, message.time
        if free:
            self._contacts.allow_in(tx, sender, receiver, now)
            return Decision(Permission.FREE)
        decision = self._contacts.take_in(tx, sender, receiver, now)
        if decision.permission is Permission.UNKNOWN:
            decision = self._contacts.take_in(tx, sender, receiver, now, self._rebuild(tx, message))
        return decision

    def _rebuild(self, tx: Tx, message: Message) -> ContactState:
        pair = Pair(message.sender, message.receiver)
        recent = self._messages.recent_in(tx, pair, self._limit + 1)
        silent, writer = _silent_first(recent, pair)
        answered = bool(self._messages.have_written_in(tx, [silent], writer))
        return rebuild(recent, answered, message.time, self._limit, self._window)


class SeparateStores:
    """SendStrategy for messages and counters in different stores: count the message first, then store it.

    If the second step fails, the count stays reserved for a retry of this message until its window ends: a write that
    was given up may still take effect, later than the retry looks for the message. For any other message that place is
    lost. `window` in microseconds.
    """

    def __init__(self, messages: MessageStore, contacts: ContactStore, limit: int, window: int) -> None:
        self._messages = messages
        self._contacts = contacts
        self._limit = limit
        self._window = window

    async def add(self, batch: Sequence[Message], free: Sequence[bool]) -> list[Outcome]:
        each = list(zip(batch, free, strict=True))
        to_free = iter(await self._to_free([message for message, known in each if known]))
        limited = iter(await self._to_limited([message for message, known in each if not known]))
        return [next(to_free if known else limited) for known in free]

    async def are_free(self, pair: SortedPair, now: int) -> bool:
        return _are_free(await self._contacts.peek([pair]), now)

    async def _to_free(self, batch: Sequence[Message]) -> list[Outcome]:
        if not batch:
            return []
        newest = {(message.sender, message.receiver): message.time for message in batch}
        with suppress(StoreUnavailable):  # free pairs write on while the counters are unavailable
            await asyncio.gather(*(self._contacts.allow(*pair, time) for pair, time in newest.items()))
        try:
            return [Outcome(added) for added in await self._messages.add(batch)]
        except StoreUnavailable as away:
            return [Outcome(away, free=False)] * len(batch)

    async def _to_limited(self, batch: Sequence[Message]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for message in batch:
            outcomes.append(await self._to_one(message))
            if isinstance(away := outcomes[-1].added, StoreUnavailable):  # do not wait for the same store again
                return outcomes + [Outcome(away, free=False)] * (len(batch) - len(outcomes))
        return outcomes

    async def _to_one(self, message: Message) -> Outcome:
        unblocked = False
        try:
            [earlier] = await self._messages.stored([message])
            if earlier:
                return Outcome(earlier, free=False)
            decision = await self._decide(message)
            if decision.permission is Permission.REFUSED:
                return Outcome(None, free=False)
            unblocked = decision.unblocked  # also if the message is not stored: to write frees the pair
            [added] = await self._messages.add([message])
        except StoreUnavailable as away:
            return Outcome(away, free=False, unblocked=unblocked)
        return Outcome(added, free=decision.permission is Permission.FREE, unblocked=unblocked)

    async def _decide(self, message: Message) -> Decision:
        sender, receiver, id, now = message.sender, message.receiver, message.id, message.time
        decision = await self._contacts.take(sender, receiver, id, now)
        if decision.permission is Permission.UNKNOWN:
            decision = await self._contacts.take(sender, receiver, id, now, await self._rebuild(message))
        return decision

    async def _rebuild(self, message: Message) -> ContactState:
        pair = Pair(message.sender, message.receiver)
        recent = await self._messages.recent(pair, self._limit + 1)
        silent, writer = _silent_first(recent, pair)
        answered = bool(await self._messages.have_written([silent], writer))
        return rebuild(recent, answered, message.time, self._limit, self._window)


def _are_free(records: Sequence[ContactRecord], now: int) -> bool:
    return any(not record.state.sender and now < record.state.until for record in records)


def _silent_first(recent: Sequence[tuple[str, int]], pair: Pair) -> Pair:
    """The two users: first the one who did not write the newest message, then the one who did."""
    return Pair(pair.other, pair.one) if recent and recent[0][0] == pair.one else pair
