"""Which users a user may add to groups (docs/protocol.md section 1, Groups)."""

from collections.abc import Collection, Sequence

from chat_server.conf import ChatSettings
from chat_server.model.groups import GroupLimits, GroupProblem, GroupRefusal
from chat_server.model.messages import MessageStore
from chat_server.service.accounts import Accounts
from chat_server.service.names import normal
from chat_server.service.peers import no_such_group
from chat_server.status import Reason, Refused, Status


class Additions:
    """Checks that users exist and have written to the requesting user. GroupStore checks blocks and `limits`."""

    def __init__(self, config: ChatSettings, accounts: Accounts, messages: MessageStore) -> None:
        self.limits = GroupLimits(config.group_members, config.groups_per_user)
        self._needs_message = config.stranger_limit > 0  # users may add only those who have written to them
        self._accounts = accounts
        self._messages = messages

    async def check(self, failed: Status, user: str, names: Sequence[str], members: Collection[str]) -> list[str]:
        """Return those of the users who are no members yet, each once. Raises Refused, StoreUnavailable."""
        others = [name for name in dict.fromkeys(map(normal, names)) if name not in members]
        if len(others) > self.limits.members:
            raise self.refusal(failed, GroupRefusal(GroupProblem.GROUP_FULL))
        for other in others:
            if not await self._accounts.exists(other):
                raise self.refusal(failed, GroupRefusal(GroupProblem.NO_SUCH_USER, other))
        if self._needs_message and others:
            written = await self._messages.have_written(others, user)
            for other in others:
                if other not in written:
                    raise self.refusal(failed, GroupRefusal(GroupProblem.BLOCKED, other))
        return others

    def refusal(self, failed: Status, refusal: GroupRefusal) -> Refused:
        """Return the answer to a request that the store of groups or `check` refused."""
        user, limits = refusal.user, self.limits
        match refusal.problem:
            case GroupProblem.GROUP_EXISTS:
                return Refused(failed, Reason.GROUP_EXISTS, "this name is taken; choose another one", field="group")
            case GroupProblem.NO_SUCH_GROUP:
                return no_such_group(failed, "group")
            case GroupProblem.NO_SUCH_USER:
                field = "user_name" if failed is Status.GROUP_REMOVE_FAILED else "users"
                return Refused(Status.NO_SUCH_USER, Reason.NO_SUCH_USER, f"no such user: {user[:64]}", field=field)
            case GroupProblem.BLOCKED:  # the same answer whether the user has not written or blocks the caller
                return Refused(failed, Reason.REFUSED_BY_LIMIT, f"{user} has not written to you", field="users")
            case GroupProblem.NOT_YOURS:
                return Refused(failed, Reason.NOT_YOURS, "only the owner of the group may do this")
            case GroupProblem.GROUP_FULL:
                return Refused(failed, Reason.GROUP_FULL, f"a group has at most {limits.members} members")
            case GroupProblem.TOO_MANY:
                why = f"{user} is in {limits.groups} groups, the maximum"
                return Refused(failed, Reason.TOO_MANY, why, retry_after=60)
