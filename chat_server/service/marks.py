"""Ops 4 and 5, mark as read and delete (protocol section 2)."""

from collections.abc import Sequence

from chat_server.model.messages import GroupView, MessageStore
from chat_server.service.answers import Answer
from chat_server.service.coordinator import Coordinator
from chat_server.service.frames import Request
from chat_server.service.live_groups import LiveGroup
from chat_server.service.notices import Notices
from chat_server.service.peers import Peers, View
from chat_server.service.references import MAX_PAGE, References, names_of, refuse_missing
from chat_server.service.registry import Socket
from chat_server.status import Reason, Refused, Status
from chat_server.utils.locks import KeyedLock


class Marks:
    """Marks messages as read and deletes them. The ops raise Refused, StoreUnavailable."""

    def __init__(
        self, peers: Peers, references: References, messages: MessageStore, notices: Notices, coordinator: Coordinator
    ) -> None:
        self._peers = peers
        self._references = references
        self._messages = messages
        self._notices = notices
        self._coordinator = coordinator
        self._change_lock = KeyedLock()  # by user: one request is worked on at a time, however many sockets ask

    async def mark_read(self, socket: Socket, request: Request) -> Answer:
        """Op 4: mark messages to me as read."""
        failed = Status.MARK_READ_FAILED
        view = await self._peers.view(socket, request, failed)
        if request.content == "*":
            count = await (
                self._move_to_newest(socket, view, view.group) if view.group else self._mark_all(socket, view)
            )
            return Answer(Status.MARKED_READ, str(count))
        lines = _lines(failed, request.content)
        if view.group:
            await self._move(socket, view, view.group, lines)
        else:
            await self._mark(socket, view, lines)
        return Answer(Status.MARKED_READ, request.content)

    async def _mark(self, socket: Socket, view: View, lines: Sequence[str]) -> None:
        # Only messages sent to me can be marked: of the names that a line may mean, those from the peer.
        ids = [next((id for sender, id in names_of(view, line) if sender == view.name), None) for line in lines]
        async with self._change_lock.hold(socket.user):
            found, changed = await self._messages.mark(view.name, socket.user, [id for id in ids if id])
        await self._notices.read([(socket, view.name, changed)])
        missing = [line for line, id in zip(lines, ids, strict=True) if id not in found]
        refuse_missing(Status.MARK_READ_FAILED, view, missing)

    async def _mark_all(self, socket: Socket, view: View) -> int:
        until, after, count = await self._coordinator.end_of(view.key), 0, 0
        while True:
            page = await self._messages.unread(view.name, socket.user, after, MAX_PAGE)
            page = [message for message in page if message.time < until]
            async with self._change_lock.hold(socket.user):
                _, changed = await self._messages.mark(view.name, socket.user, [message.id for message in page])
            await self._notices.read([(socket, view.name, changed)])
            count += len(changed)
            if len(page) < MAX_PAGE:
                return count
            after = page[-1].time

    async def _move(self, socket: Socket, view: View, group: LiveGroup, lines: Sequence[str]) -> None:
        """Move the read position forward to the newest of these messages."""
        async with self._change_lock.hold(socket.user):
            found = [await self._references.find(view, line) for line in lines]
            newest = max((one for one in found if one), key=lambda one: one.time, default=None)
            moved = newest and await self._messages.move_position(group.key.number, socket.user, newest.time)
        view.check(Status.MARK_READ_FAILED)
        if newest and moved:
            self._notices.position(socket, group, newest.sender, newest.id)
        missing = [line for line, one in zip(lines, found, strict=True) if not one]
        refuse_missing(Status.MARK_READ_FAILED, view, missing)

    async def _move_to_newest(self, socket: Socket, view: View, group: LiveGroup) -> int:
        """Move the read position to the newest message. Returns the number of unread messages, as op 7 counts them."""
        async with self._change_lock.hold(socket.user):
            group_view = GroupView(group.key, view.since)
            [conversation] = await self._messages.group_conversations(socket.user, [group_view])
            newest = conversation.last
            moved = newest and await self._messages.move_position(group.key.number, socket.user, newest.time)
        view.check(Status.MARK_READ_FAILED)
        if not newest or not moved:
            return 0
        self._notices.position(socket, group, newest.sender, newest.id)
        return conversation.unread

    async def delete(self, socket: Socket, request: Request) -> Answer:
        """Op 5: delete messages of the conversation, for everyone in it."""
        failed = Status.DELETE_FAILED
        view = await self._peers.view(socket, request, failed)
        lines = _lines(failed, request.content)
        if view.group:
            await self._delete_in_group(socket, view, view.group, lines)
        else:
            async with self._change_lock.hold(socket.user):
                deleted = await self._messages.delete(view.key, [names_of(view, line) for line in lines])
            self._notices.deleted(socket, view.name, deleted)
            refuse_missing(failed, view, [line for line, key in zip(lines, deleted, strict=True) if not key])
        return Answer(Status.DELETED, request.content)

    async def _delete_in_group(self, socket: Socket, view: View, group: LiveGroup, lines: Sequence[str]) -> None:
        failed = Status.DELETE_FAILED
        async with self._change_lock.hold(socket.user):
            found = [await self._references.find(view, line) for line in lines]
            async with group.deleting:  # after the answer to its removal, a former member deletes nothing more
                view.check(failed)
                foreign = {
                    line
                    for line, one in zip(lines, found, strict=True)
                    if one and socket.user not in (one.sender, group.owner)
                }
                keys = [
                    [(one.sender, one.id)] if one and line not in foreign else []
                    for line, one in zip(lines, found, strict=True)
                ]
                deleted = await self._messages.delete(view.key, keys)
        self._notices.deleted_in_group(
            socket, group, [one for one, key in zip(found, deleted, strict=True) if one and key]
        )
        if foreign:
            named = ", ".join(line[:80] for line in lines if line in foreign)
            raise Refused(failed, Reason.NOT_YOURS, f"only the sender and the owner of the group may delete: {named}")
        refuse_missing(failed, view, [line for line, key in zip(lines, deleted, strict=True) if not key])


def _lines(failed: Status, content: str) -> list[str]:
    lines = content.split("\n")
    if lines[-1] == "":
        lines.pop()
    if not lines:
        raise Refused(failed, Reason.EMPTY, "content is empty: name the message's id")
    if len(lines) > MAX_PAGE:
        raise Refused(failed, Reason.TOO_LONG, f"more than {MAX_PAGE} ids")
    return lines
