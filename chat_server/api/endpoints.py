"""The HTTP endpoints (docs/protocol.md section 1): parse the request, call the service, create the answer."""

from importlib.resources import files

import msgspec
from aiohttp import web

from chat_server.api.envelope import Envelope
from chat_server.api.health import Health, Ping
from chat_server.api.proxy_policy import ProxyPolicy
from chat_server.api.request_body import read_body
from chat_server.api.session_cookies import delete_cookies, set_cookie
from chat_server.service.accounts import Accounts, Session
from chat_server.service.blocking import Blocking
from chat_server.status import Status
from chat_server.utils.completion import Completion


class Credentials(msgspec.Struct):
    """The body of register and login."""

    user_name: str
    password: str


class NewPassword(msgspec.Struct):
    """The body of set_password."""

    user_name: str
    old_password: str
    new_password: str


class UserName(msgspec.Struct):
    """The body of logout, block and unblock."""

    user_name: str


class HttpEndpoints:
    """The handlers of the HTTP endpoints. A request body must arrive within `timeout` seconds."""

    def __init__(
        self,
        accounts: Accounts,
        blocking: Blocking,
        completion: Completion,
        envelope: Envelope,
        proxy_policy: ProxyPolicy,
        health: Health,
        ready: Ping,
        timeout: float,
    ) -> None:
        self._accounts = accounts
        self._blocking = blocking
        self._completion = completion
        self._envelope = envelope
        self._proxy_policy = proxy_policy
        self._health = health
        self._ready = ready
        self._timeout = timeout
        self._openapi = files("chat_server.api").joinpath("openapi.json").read_bytes()

    async def ping(self, request: web.Request) -> web.Response:
        """GET /ping"""
        return self._envelope.success(Status.OK)

    async def health(self, request: web.Request) -> web.Response:
        """GET /health"""
        up, data = await self._health.probe()
        return self._envelope.success(Status.OK, data) if up else self._envelope.unhealthy(data)

    async def ready(self, request: web.Request) -> web.Response:
        """GET /ready"""
        await self._ready()
        return self._envelope.success(Status.OK)

    async def openapi(self, request: web.Request) -> web.Response:
        """GET /openapi.json: the description of these endpoints (docs/openapi.yaml)"""
        return web.Response(body=self._openapi, content_type="application/json")

    async def register(self, request: web.Request) -> web.Response:
        """POST /user/register"""
        fields = await read_body(request, Credentials, Status.REGISTER_FAILED, self._timeout)
        await self._accounts.register(fields.user_name, fields.password, self._proxy_policy.client_address(request))
        return self._envelope.success(Status.REGISTERED)

    async def login(self, request: web.Request) -> web.Response:
        """POST /user/login"""
        fields = await read_body(request, Credentials, Status.LOGIN_FAILED, self._timeout)
        login = await self._accounts.login(
            fields.user_name, fields.password, self._proxy_policy.client_address(request)
        )
        response = self._envelope.success(Status.LOGGED_IN, msgspec.to_builtins(login))
        if self._proxy_policy.foreign_origin(request) is None:
            set_cookie(response, login.token, login.expires_in, secure=self._proxy_policy.uses_tls(request))
        return response

    async def set_password(self, request: web.Request) -> web.Response:
        """POST /user/set_password"""
        session = await self.session(request)
        fields = await read_body(request, NewPassword, Status.SET_PASSWORD_FAILED, self._timeout)
        await self._accounts.set_password(
            session,
            fields.user_name,
            fields.old_password,
            fields.new_password,
            self._proxy_policy.client_address(request),
        )
        return self._envelope.success(Status.PASSWORD_SET)

    async def logout(self, request: web.Request) -> web.Response:
        """POST /user/logout"""
        session = await self.session(request)
        fields = await read_body(request, UserName, Status.LOGOUT_FAILED, self._timeout)
        await self._accounts.logout(session, fields.user_name)
        response = self._envelope.success(Status.LOGGED_OUT)
        if self._proxy_policy.foreign_origin(request) is None:
            delete_cookies(response, secure=self._proxy_policy.uses_tls(request))
        return response

    async def block(self, request: web.Request) -> web.Response:
        """POST /user/block"""
        session = await self.session(request)
        fields = await read_body(request, UserName, Status.BLOCK_FAILED, self._timeout)
        await self._completion.run_for(self._blocking.block, session.user, fields.user_name)
        return self._envelope.success(Status.BLOCKED)

    async def unblock(self, request: web.Request) -> web.Response:
        """POST /user/unblock"""
        session = await self.session(request)
        fields = await read_body(request, UserName, Status.UNBLOCK_FAILED, self._timeout)
        await self._completion.run_for(self._blocking.unblock, session.user, fields.user_name)
        return self._envelope.success(Status.UNBLOCKED)

    async def blocked(self, request: web.Request) -> web.Response:
        """GET /user/blocked"""
        session = await self.session(request)
        return self._envelope.success(Status.BLOCKED_USERS, await self._blocking.blocked(session.user))

    async def session(self, request: web.Request) -> Session:
        """The session of a request. Raises Refused, StoreUnavailable."""
        return await self._accounts.session(self._proxy_policy.session_tokens(request))
