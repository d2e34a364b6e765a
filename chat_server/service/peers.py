"""Check who a request is from and which conversation it is about (protocol section 2, Frames)."""

from chat_server.model.messages import ConversationKey, Pair
from chat_server.service.accounts import Accounts
from chat_server.service.frames import Request
from chat_server.service.live_groups import LiveGroup, LiveGroups
from chat_server.service.names import GROUP_SIGN, MAX_LENGTH, normal
from chat_server.service.registry import Socket
from chat_server.status import Reason, Refused, Status

# The other side of a conversation: another user, or a group that the user is a member of.
Peer = str | LiveGroup


class View:
    """A conversation as one user may read it: in a group, only the messages after the time of joining `since`."""

    def __init__(self, user: str, peer: Peer) -> None:
        self.user = user
        self.group = peer if isinstance(peer, LiveGroup) else None
        self.name = peer.name if isinstance(peer, LiveGroup) else peer
        self.key: ConversationKey = peer.key if isinstance(peer, LiveGroup) else Pair(user, peer)
        self.since = peer.members[user] if isinstance(peer, LiveGroup) else 0

    def check(self, failed: Status) -> None:
        """Raise Refused if the user has left the group, or joined it again, since the view was made."""
        if self.group and self.group.members.get(self.user) != self.since:
            raise no_such_group(failed)


class Peers:
    """Finds the other side of a request's conversation."""

    def __init__(self, accounts: Accounts, groups: LiveGroups) -> None:
        self._accounts = accounts
        self._groups = groups

    def cached(self, socket: Socket, to: str) -> Peer | None:
        """The peer that `to` names, if it is known without asking a store; None otherwise."""
        name = to or socket.peer  # only normal names are cached
        if name[:1] == GROUP_SIGN:
            return self._groups.cached(name, socket.user)
        return name if self._accounts.is_cached(name) and name != socket.user else None

    async def find(self, socket: Socket, to: str, failed: Status) -> Peer:
        """The peer that `to` names. Raises Refused, StoreUnavailable."""
        name = normal(to or socket.peer)
        if name[:1] == GROUP_SIGN:
            return await self.group(socket.user, name, failed)
        if name == socket.user:
            raise Refused(failed, Reason.TO_YOURSELF, "to is the user of this socket", field="to")
        if not await self._accounts.exists(name, removed=failed is not Status.SEND_FAILED):
            why = f"no such user: {name[:64]}" if name else "to is empty, and so is the socket's to_uid"
            raise Refused(failed, Reason.NO_SUCH_USER, why, field="to")
        return name

    async def group(self, user: str, name: str, failed: Status, field: str = "to") -> LiveGroup:
        """The group of this (normal) name. Raises Refused unless it exists and has the member `user`."""
        group = await self._groups.find(name, user) if len(name) <= MAX_LENGTH else None
        if group is None:
            raise no_such_group(failed, field)
        return group

    async def of(self, socket: Socket, request: Request, failed: Status) -> Peer:
        """The peer of the conversation that `request` is about. Raises Refused, StoreUnavailable."""
        check_from(socket, request)
        return await self.find(socket, request.to, failed)

    async def view(self, socket: Socket, request: Request, failed: Status) -> View:
        """The conversation that `request` is about. Raises Refused, StoreUnavailable."""
        return View(socket.user, await self.of(socket, request, failed))


def no_such_group(failed: Status, field: str = "to") -> Refused:
    """The refusal of a request about a group that does not exist, or that the user is no member of."""
    return Refused(failed, Reason.NO_SUCH_GROUP, "no such group, or you are not a member", field=field)


def check_from(socket: Socket, request: Request) -> None:
    """Raise Refused unless the request is from the user of its socket."""
    if request.sender and request.sender != socket.user and normal(request.sender) != socket.user:
        why = "from is not the user of this socket"
        raise Refused(Status.SEND_FAILED, Reason.WRONG_FROM, why, field="from")
