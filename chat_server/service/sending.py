"""Storing what is sent, and keeping strangers within their limit, so that neither can be had without the other."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Generic, Protocol, TypeVar

import msgspec

from chat_server.cache.limits import Stranger, StrangerStore, Verdict, rebuild
from chat_server.model.messages import Added, Message, MessageStore
from chat_server.utils.errors import StoreUnavailable

Tx = TypeVar("Tx")
Tx_contra = TypeVar("Tx_contra", contravariant=True)


class Outcome(msgspec.Struct, frozen=True):
    """What became of a message: `added`, or None when the limit for strangers refused it.

    `free`: from now on the two talk freely. `lifted`: the receiver had been refused before, and may write again.
    """

    added: Added | None
    free: bool = True
    lifted: bool = False


class Sending(Protocol):
    """Stores messages of which some may be to strangers."""

    async def add(self, run: Sequence[Message], free: Sequence[bool]) -> Sequence[Outcome | StoreUnavailable]:
        """Decide on each message and store it, in this order; retries count for nothing. As MessageStore.add.

        `free` says for each whether its two users are known to talk freely. Where not all failed, the others have
        StoreUnavailable for an outcome.
        """
        ...


class Unguarded:
    """Sending without a limit for strangers."""

    def __init__(self, messages: MessageStore) -> None:
        self._messages = messages

    async def add(self, run: Sequence[Message], free: Sequence[bool]) -> list[Outcome]:
        return [Outcome(added) for added in await self._messages.add(run)]


class MessagesIn(Protocol[Tx_contra]):
    """What is needed of messages inside a transaction; the rules are those of MessageStore."""

    def add_in(self, tx: Tx_contra, run: Sequence[Message]) -> list[Added]: ...
    def find_in(self, tx: Tx_contra, message: Message) -> Added | None: ...
    def recent_in(self, tx: Tx_contra, one: str, other: str, count: int) -> list[tuple[str, int]]: ...
    def has_written_in(self, tx: Tx_contra, sender: str, receiver: str) -> bool: ...


class StrangersIn(Protocol[Tx_contra]):
    """What is needed of the counters inside a transaction; the rules are those of StrangerStore."""

    def take_in(
        self, tx: Tx_contra, sender: str, receiver: str, now: int, rebuilt: Stranger | None = None
    ) -> Verdict: ...
    def settle_in(self, tx: Tx_contra, sender: str, receiver: str, id: str, time: int) -> bool: ...
    def befriend_in(self, tx: Tx_contra, one: str, other: str, now: int) -> None: ...


class OneTransaction(Generic[Tx]):
    """Sending where messages and counters lie in one database: one transaction decides and stores.

    `write` runs a function of a transaction, as utils.sqlite.Database.write does. `window` in microseconds.
    """

    def __init__(
        self,
        write: Callable[[Callable[[Tx], list[Outcome]]], Awaitable[list[Outcome]]],
        messages: MessagesIn[Tx],
        strangers: StrangersIn[Tx],
        limit: int,
        window: int,
    ) -> None:
        self._write = write
        self._messages = messages
        self._strangers = strangers
        self._limit = limit
        self._window = window

    async def add(self, run: Sequence[Message], free: Sequence[bool]) -> list[Outcome]:
        return await self._write(lambda tx: [self._add(tx, *each) for each in zip(run, free, strict=True)])

    def _add(self, tx: Tx, message: Message, free: bool) -> Outcome:
        if earlier := self._messages.find_in(tx, message):
            return Outcome(earlier, free=False)
        verdict = self._rule(tx, message, free)
        if verdict is Verdict.REFUSED:
            return Outcome(None, free=False)
        [added] = self._messages.add_in(tx, [message])
        lifted = verdict is Verdict.ANSWER and self._strangers.settle_in(
            tx, message.sender, message.receiver, message.id, message.time
        )
        return Outcome(added, free=verdict is not Verdict.COUNTED, lifted=lifted)

    def _rule(self, tx: Tx, message: Message, free: bool) -> Verdict:
        sender, receiver, now = message.sender, message.receiver, message.time
        if free:
            self._strangers.befriend_in(tx, sender, receiver, now)
            return Verdict.FREE
        verdict = self._strangers.take_in(tx, sender, receiver, now)
        if verdict is Verdict.UNKNOWN:
            verdict = self._strangers.take_in(tx, sender, receiver, now, self._rebuilt(tx, message))
        return verdict

    def _rebuilt(self, tx: Tx, message: Message) -> Stranger:
        one, other = message.sender, message.receiver
        recent = self._messages.recent_in(tx, one, other, self._limit + 1)
        answered = self._messages.has_written_in(tx, *_silent(recent, one, other))
        return rebuild(recent, answered, message.time, self._limit, self._window)


class TwoSteps:
    """Sending where messages and counters lie in different stores: the limit is taken, the message stored, and settled.

    Where it fails in between, the place is kept for the message's next try until the window ends: what was given up
    may be stored all the same, later than the next try looks for it. For all others the place is lost.
    `window` in microseconds.
    """

    def __init__(self, messages: MessageStore, strangers: StrangerStore, limit: int, window: int) -> None:
        self._messages = messages
        self._strangers = strangers
        self._limit = limit
        self._window = window

    async def add(self, run: Sequence[Message], free: Sequence[bool]) -> Sequence[Outcome | StoreUnavailable]:
        each = list(zip(run, free, strict=True))
        friends, strangers = await asyncio.gather(
            self._to_friends([message for message, free in each if free]),
            self._to_strangers([message for message, free in each if not free]),
        )
        outcomes = {True: iter(friends), False: iter(strangers)}
        return [next(outcomes[free]) for free in free]

    async def _to_friends(self, run: Sequence[Message]) -> Sequence[Outcome | StoreUnavailable]:
        newest = {(message.sender, message.receiver): message.time for message in run}
        with suppress(StoreUnavailable):  # friends talk on while the counters are away
            await asyncio.gather(*(self._strangers.befriend(*pair, time) for pair, time in newest.items()))
        try:
            return [Outcome(added) for added in await self._messages.add(run)] if run else []
        except StoreUnavailable as away:
            return [away] * len(run)

    async def _to_strangers(self, run: Sequence[Message]) -> Sequence[Outcome | StoreUnavailable]:
        outcomes: list[Outcome | StoreUnavailable] = []
        try:
            for message in run:
                outcomes.append(await self._to_stranger(message))
        except StoreUnavailable as away:  # it is not waited for again
            outcomes += [away] * (len(run) - len(outcomes))
        return outcomes

    async def _to_stranger(self, message: Message) -> Outcome:
        [earlier] = await self._messages.stored([message])
        if earlier:
            return Outcome(earlier, free=False, lifted=await self._settle(message, earlier))
        verdict = await self._rule(message)
        if verdict is Verdict.REFUSED:
            return Outcome(None, free=False)
        [added] = await self._messages.add([message])
        lifted = verdict is not Verdict.FREE and await self._settle(message, added)
        return Outcome(added, free=verdict is not Verdict.COUNTED, lifted=lifted)

    async def _rule(self, message: Message) -> Verdict:
        sender, receiver, id, now = message.sender, message.receiver, message.id, message.time
        verdict = await self._strangers.take(sender, receiver, id, now)
        if verdict is Verdict.UNKNOWN:
            verdict = await self._strangers.take(sender, receiver, id, now, await self._rebuilt(message))
        return verdict

    async def _settle(self, message: Message, added: Added) -> bool:
        # The id of another text is refused, and its message is settled when it is tried again itself.
        return added.same and await self._strangers.settle(message.sender, message.receiver, message.id, added.time)

    async def _rebuilt(self, message: Message) -> Stranger:
        one, other = message.sender, message.receiver
        recent = await self._messages.recent(one, other, self._limit + 1)
        answered = await self._messages.has_written(*_silent(recent, one, other))
        return rebuild(recent, answered, message.time, self._limit, self._window)


def _silent(recent: Sequence[tuple[str, int]], one: str, other: str) -> tuple[str, str]:
    """Of two users, who did not write the newest message, and who did."""
    return (other, one) if recent and recent[0][0] == one else (one, other)
