"""The messages that clients name: `ID`, `>ID`, `<ID`, and `ID/NAME` in groups (protocol section 2, Message ids)."""

from collections.abc import Sequence
from typing import NamedTuple

from chat_server.model.messages import MessageKey, MessageStore
from chat_server.service.frames import is_id
from chat_server.service.names import normal
from chat_server.service.peers import View
from chat_server.status import Reason, Refused, Status

MAX_PAGE = 200  # messages of a page, and ids of a request or of a notice (protocol section 2)
LATEST = 2**62  # after every message's time, and more than there can be


class Found(NamedTuple):
    """A message that exists, or the tombstone of one; `time` in microseconds."""

    sender: str
    id: str
    time: int


class References:
    """Finds the messages that references name. Raises StoreUnavailable."""

    def __init__(self, messages: MessageStore) -> None:
        self._messages = messages

    async def find(self, view: View, reference: str) -> Found | None:
        """Return the message of the conversation that `reference` names, None if the user may read no such message."""
        for sender, id in names_of(view, reference):
            time = await self._messages.time_of(view.key, sender, id)
            if time is not None:
                return Found(sender, id, time) if time > view.since else None
        if (
            view.group
            and is_id(reference)
            and (newest := await self._messages.newest_with_id(view.group.key, reference))
        ):
            sender, time = newest
            return Found(sender, reference, time) if time > view.since else None
        return None


def names_of(view: View, reference: str) -> list[MessageKey]:
    """The messages that a reference may name, in the order of search; none if it has no valid id.

    Between two users: `>ID` the user's own, `<ID` the peer's, `ID` either. In a group: `ID/NAME` that of NAME, `ID`
    the user's own; if there is none, it names the newest message with this id.
    """
    if view.group:
        id, slash, name = reference.partition("/")
        return [(normal(name) if slash else view.user, id)] if is_id(id) else []
    senders = {">": [view.user], "<": [view.name]}.get(reference[:1], [view.user, view.name])
    id = reference.removeprefix(reference[:1]) if reference[:1] in ("<", ">") else reference
    return [(sender, id) for sender in senders] if is_id(id) else []


def refuse_missing(failed: Status, view: View, missing: Sequence[str]) -> None:
    """Raise Refused if there are references without a message."""
    if missing:
        named = ", ".join(reference[:80] for reference in missing)
        if all(names_of(view, reference) for reference in missing):
            raise Refused(failed, Reason.NO_SUCH_MESSAGE, f"no such message: {named}")
        raise Refused(failed, Reason.BAD_ID, f"no such message, or no valid id: {named}")
