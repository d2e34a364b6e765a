"""The HTTP endpoints of groups (docs/protocol.md section 1)."""

from collections.abc import Awaitable, Callable

import msgspec
from aiohttp import web

from chat_server.api.envelope import Envelope
from chat_server.api.request_body import read_body
from chat_server.service.accounts import Session
from chat_server.service.groups import Groups
from chat_server.status import Status
from chat_server.utils.completion import Completion


class GroupAndUsers(msgspec.Struct):
    """The body of create and add."""

    group: str
    users: list[str] = []


class GroupAndUser(msgspec.Struct):
    """The body of remove."""

    group: str
    user_name: str


class GroupName(msgspec.Struct):
    """The body of delete."""

    group: str


class GroupEndpoints:
    """The handlers of the endpoints of groups. `session` finds the session of a request, or raises Refused.

    A request body must arrive within `timeout` seconds.
    """

    def __init__(
        self,
        groups: Groups,
        completion: Completion,
        session: Callable[[web.Request], Awaitable[Session]],
        envelope: Envelope,
        timeout: float,
    ) -> None:
        self._groups = groups
        self._completion = completion
        self._session = session
        self._envelope = envelope
        self._timeout = timeout

    async def create(self, request: web.Request) -> web.Response:
        """POST /group/create"""
        session = await self._session(request)
        fields = await read_body(request, GroupAndUsers, Status.GROUP_CREATE_FAILED, self._timeout)
        await self._completion.run_for(self._groups.create, session.user, fields.group, fields.users)
        return self._envelope.success(Status.GROUP_CREATED)

    async def add(self, request: web.Request) -> web.Response:
        """POST /group/add"""
        session = await self._session(request)
        fields = await read_body(request, GroupAndUsers, Status.GROUP_ADD_FAILED, self._timeout)
        added = await self._completion.run_for(self._groups.add, session.user, fields.group, fields.users)
        return self._envelope.success(Status.GROUP_ADDED, added)

    async def remove(self, request: web.Request) -> web.Response:
        """POST /group/remove"""
        session = await self._session(request)
        fields = await read_body(request, GroupAndUser, Status.GROUP_REMOVE_FAILED, self._timeout)
        await self._completion.run_for(self._groups.remove, session.user, fields.group, fields.user_name)
        return self._envelope.success(Status.GROUP_REMOVED)

    async def delete(self, request: web.Request) -> web.Response:
        """POST /group/delete"""
        session = await self._session(request)
        fields = await read_body(request, GroupName, Status.GROUP_DELETE_FAILED, self._timeout)
        await self._completion.run_for(self._groups.delete, session.user, fields.group)
        return self._envelope.success(Status.GROUP_DELETED)

    async def members(self, request: web.Request) -> web.Response:
        """GET /group/members?group=NAME"""
        session = await self._session(request)
        members = await self._groups.members(session.user, request.query.get("group", ""))
        return self._envelope.success(Status.GROUP_MEMBERS, [member._asdict() for member in members])
