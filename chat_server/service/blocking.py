"""Block and unblock users (docs/protocol.md section 1, and section 3, promise 6)."""

from collections.abc import Awaitable, Callable

from chat_server.model.blocks import MAX_BLOCKED, BlockResult
from chat_server.service.blocks import Blocks
from chat_server.service.coordinator import Coordinator
from chat_server.service.names import is_name, normal
from chat_server.service.packets import BlockChanged
from chat_server.service.presence import Presence
from chat_server.status import Reason, Refused, Status


class Blocking:
    """The requests of a user who blocks others. The methods raise Refused, StoreUnavailable.

    `settle` waits until the messages of two users that are being stored are answered.
    """

    def __init__(
        self,
        blocks: Blocks,
        settle: Callable[[str, str], Awaitable[None]],
        presence: Presence,
        coordinator: Coordinator,
    ) -> None:
        self._blocks = blocks
        self._settle = settle
        self._presence = presence
        self._coordinator = coordinator

    async def block(self, user: str, name: str) -> None:
        """Block a user. After the return, nothing is stored or delivered that was allowed before."""
        other = normal(name)
        if other == user:
            raise Refused(Status.BLOCK_FAILED, Reason.TO_YOURSELF, "user_name is the user itself", field="user_name")
        result = await self._blocks.block(user, other) if is_name(other) else BlockResult.NO_SUCH_USER
        if result is BlockResult.NO_SUCH_USER:
            raise Refused(Status.NO_SUCH_USER, Reason.NO_SUCH_USER, f"no such user: {other[:64]}", field="user_name")
        if result is BlockResult.TOO_MANY:
            why = f"{MAX_BLOCKED} users are blocked already; unblock one first"
            raise Refused(Status.BLOCK_FAILED, Reason.TOO_MANY, why, retry_after=60)
        self._presence.changed_for(user, other)
        await self._settle(user, other)
        await self._coordinator.confirm(BlockChanged(user, other))

    async def unblock(self, user: str, name: str) -> None:
        """Unblock a user; also one who is not blocked."""
        if is_name(other := normal(name)):
            await self._blocks.unblock(user, other)
            self._presence.changed_for(user, other)
            await self._coordinator.confirm(BlockChanged(user, other))

    async def blocked(self, user: str) -> list[str]:
        """Return the users that `user` blocks, ordered by name."""
        return await self._blocks.blocked_by(user)
