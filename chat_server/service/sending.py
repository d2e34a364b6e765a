"""Storing what is sent, and keeping strangers within their limit, so that neither can be had without the other."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Generic, Protocol, TypeVar

import msgspec

from chat_server.cache.counters import ContactState, ContactStore, Decision, Permission, rebuild
from chat_server.model.messages import Added, Message, MessageStore
from chat_server.utils.errors import StoreUnavailable

Tx = TypeVar("Tx")
Tx_contra = TypeVar("Tx_contra", contravariant=True)


class Outcome(msgspec.Struct, frozen=True):
    """What became of a message: `added`, or None when the limit for strangers refused it, or why it is not known.

    `free`: remember that the two talk freely from now on. `lifted`: the receiver had been refused before, and may
    write again.
    """

    added: Added | StoreUnavailable | None
    free: bool = True
    unblocked: bool = False


class SendStrategy(Protocol):
    """Stores messages some of which may be to strangers."""

    async def add(self, run: Sequence[Message], free: Sequence[bool]) -> list[Outcome]:
        """Decide on each message and store it, in this order; retries count for nothing. As MessageStore.add.

        `free` says for each whether its two users are known to talk freely.
        """
        ...


class Unlimited:
    """SendStrategy without a limit for strangers."""

    def __init__(self, messages: MessageStore) -> None:
        self._messages = messages

    async def add(self, run: Sequence[Message], free: Sequence[bool]) -> list[Outcome]:
        return [Outcome(added) for added in await self._messages.add(run)]


class MessagesInTransaction(Protocol[Tx_contra]):
    """What is needed of messages inside a transaction; the rules are those of MessageStore."""

    def add_in(self, tx: Tx_contra, run: Sequence[Message]) -> list[Added]: ...
    def find_in(self, tx: Tx_contra, message: Message) -> Added | None: ...
    def recent_in(self, tx: Tx_contra, one: str, other: str, count: int) -> list[tuple[str, int]]: ...
    def has_written_in(self, tx: Tx_contra, sender: str, receiver: str) -> bool: ...


class ContactsInTransaction(Protocol[Tx_contra]):
    """What is needed of the counters inside a transaction; the rules are those of ContactStore."""

    def take_in(
        self, tx: Tx_contra, sender: str, receiver: str, now: int, rebuilt: ContactState | None = None
    ) -> Decision: ...
    def allow_in(self, tx: Tx_contra, one: str, other: str, now: int) -> None: ...


class SameDatabase(Generic[Tx]):
    """SendStrategy where messages and counters lie in one database: one transaction decides and stores.

    `write` runs a function of a transaction, as utils.sqlite.Database.write does. `window` in microseconds.
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

    async def add(self, run: Sequence[Message], free: Sequence[bool]) -> list[Outcome]:
        return await self._write(lambda tx: [self._add(tx, *each) for each in zip(run, free, strict=True)])

    def _add(self, tx: Tx, message: Message, free: bool) -> Outcome:
        if earlier := self._messages.find_in(tx, message):
            return Outcome(earlier, free=False)
        decision = self._rule(tx, message, free)
        if decision.verdict is Permission.REFUSED:
            return Outcome(None, free=False)
        [added] = self._messages.add_in(tx, [message])
        return Outcome(added, free=decision.verdict is Permission.FREE, unblocked=decision.unblocked)

    def _rule(self, tx: Tx, message: Message, free: bool) -> Decision:
        sender, receiver, now = message.sender, message.receiver, message.time
        if free:
            self._contacts.allow_in(tx, sender, receiver, now)
            return Decision(Permission.FREE)
        decision = self._contacts.take_in(tx, sender, receiver, now)
        if decision.verdict is Permission.UNKNOWN:
            decision = self._contacts.take_in(tx, sender, receiver, now, self._rebuilt(tx, message))
        return decision

    def _rebuilt(self, tx: Tx, message: Message) -> ContactState:
        one, other = message.sender, message.receiver
        recent = self._messages.recent_in(tx, one, other, self._limit + 1)
        answered = self._messages.has_written_in(tx, *_silent(recent, one, other))
        return rebuild(recent, answered, message.time, self._limit, self._window)


class SeparateStores:
    """SendStrategy where messages and counters lie in different stores: the limit is taken first, then stored.

    Where it fails in between, the place is kept for the message's next try, while its window lasts: what was given up
    may be stored all the same, later than the next try looks for it. For all others the place is lost.
    `window` in microseconds.
    """

    def __init__(self, messages: MessageStore, contacts: ContactStore, limit: int, window: int) -> None:
        self._messages = messages
        self._contacts = contacts
        self._limit = limit
        self._window = window

    async def add(self, run: Sequence[Message], free: Sequence[bool]) -> list[Outcome]:
        each = list(zip(run, free, strict=True))
        friends = iter(await self._to_friends([message for message, known in each if known]))
        contacts = iter(await self._to_strangers([message for message, known in each if not known]))
        return [next(friends if known else contacts) for known in free]

    async def _to_friends(self, run: Sequence[Message]) -> list[Outcome]:
        if not run:
            return []
        newest = {(message.sender, message.receiver): message.time for message in run}
        with suppress(StoreUnavailable):  # friends talk on while the counters are away
            await asyncio.gather(*(self._contacts.allow(*pair, time) for pair, time in newest.items()))
        try:
            return [Outcome(added) for added in await self._messages.add(run)]
        except StoreUnavailable as away:
            return [Outcome(away, free=False)] * len(run)

    async def _to_strangers(self, run: Sequence[Message]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for message in run:
            outcomes.append(await self._to_stranger(message))
            if isinstance(away := outcomes[-1].added, StoreUnavailable):  # it is not waited for again
                return outcomes + [Outcome(away, free=False)] * (len(run) - len(outcomes))
        return outcomes

    async def _to_stranger(self, message: Message) -> Outcome:
        lifted = False
        try:
            [earlier] = await self._messages.stored([message])
            if earlier:
                return Outcome(earlier, free=False)
            decision = await self._rule(message)
            if decision.verdict is Permission.REFUSED:
                return Outcome(None, free=False)
            lifted = decision.unblocked  # also if the message is not stored: who writes frees the two
            [added] = await self._messages.add([message])
        except StoreUnavailable as away:
            return Outcome(away, free=False, unblocked=lifted)
        return Outcome(added, free=decision.verdict is Permission.FREE, unblocked=lifted)

    async def _rule(self, message: Message) -> Decision:
        sender, receiver, id, now = message.sender, message.receiver, message.id, message.time
        decision = await self._contacts.take(sender, receiver, id, now)
        if decision.verdict is Permission.UNKNOWN:
            decision = await self._contacts.take(sender, receiver, id, now, await self._rebuilt(message))
        return decision

    async def _rebuilt(self, message: Message) -> ContactState:
        one, other = message.sender, message.receiver
        recent = await self._messages.recent(one, other, self._limit + 1)
        answered = await self._messages.has_written(*_silent(recent, one, other))
        return rebuild(recent, answered, message.time, self._limit, self._window)


def _silent(recent: Sequence[tuple[str, int]], one: str, other: str) -> tuple[str, str]:
    """Of two users, who did not write the newest message, and who did."""
    return (other, one) if recent and recent[0][0] == one else (one, other)
