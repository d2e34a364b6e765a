"""Tell sync sockets what other devices and users did (protocol section 2, Sync)."""

from collections.abc import Iterable, Sequence

from chat_server.model.messages import MessageKey
from chat_server.service.blocks import Blocks
from chat_server.service.frames import Frames
from chat_server.service.live_groups import LiveGroup
from chat_server.service.references import MAX_PAGE, Found
from chat_server.service.registry import Registry, Socket
from chat_server.status import Status


class Notices:
    """Sends 40007, 40013 and 42011. The socket `by` of an event receives none."""

    def __init__(self, blocks: Blocks, registry: Registry, frames: Frames) -> None:
        self._blocks = blocks
        self._registry = registry
        self._frames = frames

    async def read(self, reads: Sequence[tuple[Socket, str, list[str]]]) -> None:
        """Tell which messages (ids) of an author each socket has read, but tell no author whom the reader blocks."""
        if not self._registry.forward:  # most messages concern no sync socket
            listening = self._registry.sync_users
            reads = [one for one in reads if one[0].user in listening or one[1] in listening]
        may_listen = self._registry.may_listen
        blocks = [(by.user, author) for by, author, ids in reads if ids and may_listen((author,))]
        blocked = await self._blocks.states(blocks) if blocks else {}
        for by, author, ids in reads:
            users = (by.user, author) if blocked.get((by.user, author)) is False else (by.user,)
            self._send(by, users, author, Status.MARKED_READ, ids)

    def position(self, by: Socket, group: LiveGroup, sender: str, id: str) -> None:
        """Tell the user's other devices up to which message of a group the user has read."""
        self._send(by, (by.user,), group, Status.MARKED_READ, [f"{id}/{sender}"])

    def deleted(self, by: Socket, peer: str, keys: Iterable[MessageKey | None]) -> None:
        """Tell both users which messages were deleted."""
        lines = [f"{'>' if key[0] == by.user else '<'}{key[1]}" for key in keys if key]
        self._send(by, (by.user, peer), peer, Status.DELETED, lines)

    def deleted_in_group(self, by: Socket, group: LiveGroup, deleted: Sequence[Found]) -> None:
        """Tell all members which of the messages that they may read were deleted."""
        for member, since in group.members.items():
            lines = [f"{found.id}/{found.sender}" for found in deleted if since < found.time]
            self._send(by, (member,), group, Status.DELETED, lines)

    def group_changed(self, users: Iterable[str], group: str, lines: Sequence[str]) -> None:
        """Tell users at this process what changed in a group: `+NAME`, `-NAME`, or `!NAME` for a new owner."""
        listeners = [socket for user in users for socket in self._registry.sync_sockets(user)]
        for start in range(0, len(lines) if listeners else 0, MAX_PAGE):
            content = "\n".join(lines[start : start + MAX_PAGE])
            frame = self._frames.answer(group, Status.GROUP_CHANGED, content)
            for socket in listeners:
                socket.send(frame)

    def _send(self, by: Socket, users: Sequence[str], to: str | LiveGroup, status: Status, lines: list[str]) -> None:
        name, number = (to.name, to.key.number) if isinstance(to, LiveGroup) else (to, 0)
        for start in range(0, len(lines) if self._registry.may_listen(users) else 0, MAX_PAGE):
            frame = self._frames.notice(by.user, name, status, lines[start : start + MAX_PAGE])
            self._registry.notify(users, frame, without=by, group=number)
