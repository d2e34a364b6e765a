"""Check who a request is from and whom it is about (protocol section 2, Frames)."""

from chat_server.service.accounts import Accounts
from chat_server.service.frames import Request
from chat_server.service.names import normal
from chat_server.service.registry import Socket
from chat_server.status import Reason, Refused, Status


class Peers:
    """Finds the other user of a request's conversation."""

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts

    def cached(self, socket: Socket, to: str) -> str | None:
        """The user that `to` names, if it is known without asking a store; None otherwise."""
        peer = to or socket.peer  # only normal names are cached
        return peer if self._accounts.is_cached(peer) and peer != socket.user else None

    async def find(self, socket: Socket, to: str, failed: Status) -> str:
        """The user that `to` names, who is not the socket's own. Raises Refused, StoreUnavailable."""
        peer = normal(to or socket.peer)
        if peer == socket.user:
            raise Refused(failed, Reason.TO_YOURSELF, "to is the user of this socket", field="to")
        if not await self._accounts.exists(peer, removed=failed is not Status.SEND_FAILED):
            why = f"no such user: {peer[:64]}" if peer else "to is empty, and so is the socket's to_uid"
            raise Refused(failed, Reason.NO_SUCH_USER, why, field="to")
        return peer

    async def of(self, socket: Socket, request: Request, failed: Status) -> str:
        """The other user of the conversation that `request` is about. Raises Refused, StoreUnavailable."""
        check_from(socket, request)
        return await self.find(socket, request.to, failed)


def check_from(socket: Socket, request: Request) -> None:
    """Raise Refused unless the request is from the user of its socket."""
    if request.sender and request.sender != socket.user and normal(request.sender) != socket.user:
        why = "from is not the user of this socket"
        raise Refused(Status.SEND_FAILED, Reason.WRONG_FROM, why, field="from")
