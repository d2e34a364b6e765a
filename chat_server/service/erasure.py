"""Erase the messages of deleted groups, some at a time."""

from chat_server.model.groups import PAGE, GroupStore
from chat_server.model.messages import GroupKey, MessageStore

# Messages per call to the store.
CHUNK = 1000


class DeletedGroups:
    """Erases the messages of deleted groups; `erase` is called every SWEEP_SECONDS.

    A group is forgotten one call after its messages were erased: by then, messages that were being stored when the
    group was deleted are stored and erased too, including those whose write the server abandoned.
    """

    def __init__(self, groups: GroupStore, messages: MessageStore) -> None:
        self._groups = groups
        self._messages = messages
        self._erased: set[int] = set()

    async def erase(self) -> None:
        """Erase the messages of all deleted groups. Raises StoreUnavailable."""
        erased: set[int] = set()
        last = 0
        while numbers := await self._groups.deleted(last, PAGE):
            for number in numbers:
                while await self._messages.erase(GroupKey(number, ""), CHUNK) == CHUNK:
                    pass
                if number in self._erased:
                    await self._groups.forget(number)
                else:
                    erased.add(number)
            last = numbers[-1]
        self._erased = erased
