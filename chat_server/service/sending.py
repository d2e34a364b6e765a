"""Storing what is sent, and keeping strangers within their limit, so that neither can be had without the other."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, Protocol, TypeVar

import msgspec

from chat_server.cache.limits import Ruling, Stranger, Verdict, rebuild
from chat_server.model.messages import Added, Message, MessageStore

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

    async def add(self, run: Sequence[Message]) -> list[Outcome]:
        """Decide on each message and store it, in this order; retries count for nothing. As MessageStore.add."""
        ...


class Unguarded:
    """Sending without a limit for strangers."""

    def __init__(self, messages: MessageStore) -> None:
        self._messages = messages

    async def add(self, run: Sequence[Message]) -> list[Outcome]:
        return [Outcome(added) for added in await self._messages.add(run)]


class MessagesIn(Protocol[Tx_contra]):
    """What is needed of messages inside a transaction; the rules are those of MessageStore."""

    def add_in(self, tx: Tx_contra, run: Sequence[Message]) -> list[Added]: ...
    def find_in(self, tx: Tx_contra, message: Message) -> Added | None: ...
    def recent_in(self, tx: Tx_contra, one: str, other: str, count: int, since: int) -> list[tuple[str, int]]: ...
    def has_written_in(self, tx: Tx_contra, sender: str, receiver: str) -> bool: ...


class StrangersIn(Protocol[Tx_contra]):
    """What is needed of the counters inside a transaction; the rules are those of StrangerStore."""

    def take_in(
        self, tx: Tx_contra, sender: str, receiver: str, now: int, rebuilt: Stranger | None = None
    ) -> Ruling: ...


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

    async def add(self, run: Sequence[Message]) -> list[Outcome]:
        return await self._write(lambda tx: [self._add(tx, message) for message in run])

    def _add(self, tx: Tx, message: Message) -> Outcome:
        if earlier := self._messages.find_in(tx, message):
            return Outcome(earlier, free=False)
        sender, receiver, now = message.sender, message.receiver, message.time
        ruling = self._strangers.take_in(tx, sender, receiver, now)
        if ruling.verdict is Verdict.UNKNOWN:
            ruling = self._strangers.take_in(tx, sender, receiver, now, self._rebuilt(tx, message))
        if ruling.verdict is Verdict.REFUSED:
            return Outcome(None, free=False)
        [added] = self._messages.add_in(tx, [message])
        return Outcome(added, free=ruling.verdict is Verdict.FREE, lifted=ruling.lifted)

    def _rebuilt(self, tx: Tx, message: Message) -> Stranger:
        one, other = message.sender, message.receiver
        recent = self._messages.recent_in(tx, one, other, self._limit + 1, message.time - self._window)
        silent = other if recent and recent[0][0] == one else one
        answered = self._messages.has_written_in(tx, silent, one if silent == other else other)
        return rebuild(recent, answered, self._limit, self._window)
