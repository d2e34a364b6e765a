"""What a store of counters must do: how often something was tried, and who may write to a stranger."""

from collections.abc import AsyncIterator, Sequence
from enum import Enum
from typing import Protocol

import msgspec
from msgspec.structs import replace


class Rate(msgspec.Struct, frozen=True):
    """At most `limit` times per `window` seconds for what `key` names.

    The key is a sequence of strings, so that no part can be mistaken for another.
    """

    key: tuple[str, ...]
    limit: int
    window: float


class ContactState(msgspec.Struct, frozen=True):
    """The state of two users' talk, times in microseconds.

    Either `sender` has sent `count` messages since `started` that were not answered, and `refused` says
    whether one more was refused; or (`sender` is empty) both talk freely until `until`. `tries` has the ids of
    counted messages, and when each was counted.
    """

    sender: str = ""
    count: int = 0
    started: int = 0
    refused: bool = False
    until: int = 0
    tries: dict[str, int] = {}


class Permission(Enum):
    """May this message be sent?"""

    FREE = "yes, as every other between the two"
    COUNTED = "yes, and it was counted"
    REFUSED = "no"
    UNKNOWN = "there is no counter: rebuild it from the messages and ask again"


class Decision(msgspec.Struct, frozen=True):
    """A verdict; `lifted`: whether the receiver, refused before, may write again because of this message."""

    verdict: Permission
    unblocked: bool = False


class RateStore(Protocol):
    """Counts of what may be done only so often. Raises StoreUnavailable throughout."""

    async def take(self, rates: Sequence[Rate]) -> float:
        """Count one for each rate, if all allow it, in one atomic step.

        Returns 0, or, counting nothing, the seconds until the last of those exceeded begins anew.
        """
        ...

    async def count(self, rate: Rate) -> int:
        """How many the present window has counted."""
        ...

    async def give_back(self, rates: Sequence[Rate], age: float) -> None:
        """Take back what `take` counted `age` seconds ago; not from a window that began since."""
        ...

    async def forget(self, rate: Rate) -> None:
        """Begin anew."""
        ...

    async def ping(self) -> None:
        """Return if the store answers."""
        ...


class ContactStore(Protocol):
    """Who may write to whom (protocol section 3, promise 4). Raises StoreUnavailable throughout."""

    async def take(
        self, sender: str, receiver: str, id: str, now: int, rebuilt: ContactState | None = None
    ) -> Decision:
        """Decide on the message `id` at `now` (microseconds), and count it if it counts, in one atomic step.

        A message that was counted keeps its place while its window lasts and it would not have expired: tried again it
        is let through, and not counted again. Where nothing is known of the two the verdict is UNKNOWN, unless
        `rebuilt` says what the messages do.
        """
        ...

    async def allow(self, one: str, other: str, now: int) -> None:
        """Remember that the two are known to talk freely at `now`."""
        ...

    async def forget(self, one: str, other: str) -> None:
        """Know nothing of the two any more."""
        ...


class ContactRecord(msgspec.Struct, frozen=True):
    """The state of two users' talk as it is kept, the lesser name first; `expires` in microseconds since the epoch.

    It is without `tries`: none of a server that has stopped is under way.
    """

    one: str
    other: str
    state: ContactState
    expires: int


class ExportableContacts(ContactStore, Protocol):
    """What moving the counters to another store needs besides."""

    def pages(self, count: int) -> AsyncIterator[list[ContactRecord]]:
        """All states, about `count` at a time, in no order; one may come twice."""
        ...

    async def peek(self, pairs: Sequence[tuple[str, str]]) -> list[ContactRecord]:
        """The states of those pairs, each with the lesser name first, that exist."""
        ...

    async def put(self, states: Sequence[ContactRecord]) -> None:
        """Keep these states as they are."""
        ...


def decide(
    state: ContactState, sender: str, now: int, limit: int, window: int, id: str | None = None, kept: int = 0
) -> tuple[ContactState, Decision]:
    """The rule itself: the next state, and may `sender` send one message now? Times in microseconds.

    A window begins with the first message that counts. The other side's message within it is an answer:
    both are free for a window from then on, renewed by each message. `id` is needed where a try may be given up
    and yet succeed: the next try of a message that was counted must not be refused. It must count anew once the
    message would have expired, `kept` after it was sent.
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
        started = min(state.started, now)  # two that came at once may be counted the other way round
        counted = replace(state, count=state.count + 1, started=started, tries={**state.tries, **tried})
        return counted, Decision(Permission.COUNTED)
    return ContactState(sender=sender, count=1, started=now, tries=tried), Decision(Permission.COUNTED)


def rebuild(recent: Sequence[tuple[str, int]], answered: bool, now: int, limit: int, window: int) -> ContactState:
    """The state at `now` that the messages tell of: `recent` is sender and time of the newest `limit` + 1, backwards.

    The rule is applied to each as if it were sent again. One that it refuses was sent all the same: then the two
    were free, if the other side ever wrote (`answered`). Where there are more messages than are seen, it is hidden
    when a stranger's window began: then all that was sent within the last one counts.
    """
    state = ContactState()
    for sender, time in reversed(recent):
        state, decision = decide(state, sender, time, limit, window)
        if decision.verdict is Permission.REFUSED and answered:
            state = ContactState(until=time + window)
    if state.sender and len(recent) > limit:
        lately = [time for sender, time in recent if sender == state.sender and time > now - window][:limit]
        return ContactState(sender=state.sender, count=len(lately), started=lately[-1]) if lately else ContactState()
    return replace(state, refused=False)
