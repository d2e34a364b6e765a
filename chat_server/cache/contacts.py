"""The contact limit: how much a user may write to another who does not answer (protocol section 3, promise 4).

This is the rule, and the interface of a store of its states. Redis applies the same rule in lua/contact_take.lua.
"""

from collections.abc import AsyncIterator, Sequence
from enum import Enum
from typing import Protocol

import msgspec
from msgspec.structs import replace


class ContactState(msgspec.Struct, frozen=True):
    """The state of a pair of users, times in microseconds.

    Either `sender` has sent `count` messages since `started` that were not answered, and `refused` says whether one
    more was refused; or `sender` is empty, and the pair is free of the limit until `until`. `tries` has the ids of
    counted messages and the time at which each was counted.
    """

    sender: str = ""
    count: int = 0
    started: int = 0
    refused: bool = False
    until: int = 0
    tries: dict[str, int] = {}

    def expires(self, window: int) -> int:
        """The time from which a store may drop the state.

        That is a window after its end: until then an ended state can be told from one that was lost.
        """
        return (self.started + window if self.sender else self.until) + window


class Permission(Enum):
    """Whether a message may be sent."""

    FREE = "yes, and the pair is free of the limit"
    COUNTED = "yes, and it was counted"
    REFUSED = "no"
    UNKNOWN = "there is no state: rebuild it from the messages and ask again"


class Decision(msgspec.Struct, frozen=True):
    """The decision on a message. `unblocked`: it allows the receiver, who had been refused before, to write again."""

    permission: Permission
    unblocked: bool = False


class ContactStore(Protocol):
    """The states of all pairs (protocol section 3, promise 4). All methods raise StoreUnavailable."""

    async def take(
        self, sender: str, receiver: str, id: str, now: int, rebuilt: ContactState | None = None
    ) -> Decision:
        """Decide on the message `id` at `now` (microseconds), and count it if the rule says so, in one atomic step.

        A counted message keeps its place until its window ends or it would have expired: a retry is allowed and not
        counted again. If the store has no state of the pair, `rebuilt` is used, and without it the answer is UNKNOWN.
        """
        ...

    async def allow(self, one: str, other: str, now: int) -> None:
        """Record that the pair is free of the limit at `now`."""
        ...

    async def forget(self, one: str, other: str) -> None:
        """Drop the state of the pair."""
        ...

    async def peek(self, pairs: Sequence[tuple[str, str]]) -> list["ContactRecord"]:
        """The existing states of these pairs, each with the lesser name first."""
        ...


class ContactRecord(msgspec.Struct, frozen=True):
    """The stored state of a pair, the lesser name first; `expires` in microseconds since the epoch.

    It has no `tries`: no message of a server that has stopped is in work.
    """

    one: str
    other: str
    state: ContactState
    expires: int


class ExportableContacts(ContactStore, Protocol):
    """The methods for copying states to another store."""

    def pages(self, count: int) -> AsyncIterator[list[ContactRecord]]:
        """All states, about `count` per page, unordered; a state may occur twice."""
        ...

    async def put(self, states: Sequence[ContactRecord]) -> None:
        """Store these states unchanged."""
        ...


def decide(
    state: ContactState, sender: str, now: int, limit: int, window: int, id: str | None = None, kept: int = 0
) -> tuple[ContactState, Decision]:
    """The rule: the next state, and whether `sender` may send one message now. Times in microseconds.

    A window begins with the first message that counts. A message of the other user within the window is an answer: it
    makes the pair free for one window, which each message renews. `id` is needed if a write that was given up may still
    take effect: a retry of a counted message must not be refused. It counts again when the message would have expired,
    `kept` after it was sent.
    """
    tried = {id: now} if id else {}
    free = ContactState(until=now + window)
    if not state.sender:
        if now < state.until:
            return free, Decision(Permission.FREE)
    elif now < state.started + window:
        if sender != state.sender:
            return free, Decision(Permission.FREE, unblocked=state.refused)
        if id in state.tries and now < state.tries[id] + kept:
            return state, Decision(Permission.COUNTED)
        if state.count >= limit:
            return replace(state, refused=True), Decision(Permission.REFUSED)
        started = min(state.started, now)  # two concurrent messages may be counted in reverse order
        counted = replace(state, count=state.count + 1, started=started, tries={**state.tries, **tried})
        return counted, Decision(Permission.COUNTED)
    return ContactState(sender=sender, count=1, started=now, tries=tried), Decision(Permission.COUNTED)


def rebuild(recent: Sequence[tuple[str, int]], answered: bool, now: int, limit: int, window: int) -> ContactState:
    """The state at `now` that follows from the messages: `recent` has the newest `limit` + 1, the newest first.

    The rule is applied to each message in turn. If it refuses one that was sent nevertheless, the pair was free,
    provided that the other user ever wrote (`answered`). If there are more messages than `recent` has, the beginning of
    the window is not visible: then every message within the last window counts.
    """
    state = ContactState()
    for sender, time in reversed(recent):
        state, decision = decide(state, sender, time, limit, window)
        if decision.permission is Permission.REFUSED and answered:
            state = ContactState(until=time + window)
    if state.sender and len(recent) > limit:
        lately = [time for sender, time in recent if sender == state.sender and time > now - window][:limit]
        return ContactState(sender=state.sender, count=len(lately), started=lately[-1]) if lately else ContactState()
    return replace(state, refused=False)
