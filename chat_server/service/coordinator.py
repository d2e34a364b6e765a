"""What the processes of a server agree on."""

from contextlib import AbstractAsyncContextManager
from typing import Protocol

from chat_server.model.messages import ConversationKey
from chat_server.service.packets import Change
from chat_server.utils.clock import Timeline
from chat_server.utils.locks import KeyedLock


class Coordinator(Protocol):
    """Coordinates this process with others, if there can be any."""

    async def confirm(self, change: Change) -> None:
        """Return when every other process has applied a change. Raises StoreUnavailable."""
        ...

    def hold(self, name: str) -> AbstractAsyncContextManager[None]:
        """Hold the lock `name` at all processes. Raises StoreUnavailable."""
        ...

    async def end_of(self, key: ConversationKey) -> int:
        """Return a time after all messages of a conversation; later ones get later times. Raises StoreUnavailable."""
        ...


class SingleProcess:
    """Coordinator of a single process."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self.hold = KeyedLock().hold

    async def confirm(self, change: Change) -> None:
        """Do nothing: there is no other process."""

    async def end_of(self, key: ConversationKey) -> int:
        """See Coordinator."""
        return self._timeline.next()
