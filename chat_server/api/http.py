"""The HTTP endpoints (protocol section 1): parse, check who is asking, call a service, shape the answer."""

from importlib.resources import files

import msgspec
from aiohttp import web

from chat_server.api.envelope import Envelope
from chat_server.api.health import Health
from chat_server.api.proxy_policy import ProxyPolicy, body, delete_cookies, set_cookie
from chat_server.service.accounts import Accounts, Session
from chat_server.status import Status


class Credentials(msgspec.Struct):
    """The body of register and login."""

    user_name: str
    password: str


class NewPassword(msgspec.Struct):
    """The body of set_password."""

    user_name: str
    old_password: str
    new_password: str


class Name(msgspec.Struct):
    """The body of logout."""

    user_name: str


class Http:
    """The handlers of the HTTP endpoints; a body has `patience` seconds to come."""

    def __init__(
        self, accounts: Accounts, envelope: Envelope, proxy_policy: ProxyPolicy, health: Health, patience: float
    ) -> None:
        self._accounts = accounts
        self._envelope = envelope
        self._proxy_policy = proxy_policy
        self._health = health
        self._patience = patience
        self._openapi = files("chat_server.api").joinpath("openapi.json").read_bytes()

    async def ping(self, request: web.Request) -> web.Response:
        """GET /ping"""
        return self._envelope.success(Status.OK)

    async def health(self, request: web.Request) -> web.Response:
        """GET /health"""
        up, data = await self._health.probe()
        return self._envelope.success(Status.OK, data) if up else self._envelope.away(data)

    async def openapi(self, request: web.Request) -> web.Response:
        """GET /openapi.json: these endpoints, for machines (docs/openapi.yaml)"""
        return web.Response(body=self._openapi, content_type="application/json")

    async def register(self, request: web.Request) -> web.Response:
        """POST /user/register"""
        asked = await body(request, Credentials, Status.REGISTER_FAILED, self._patience)
        await self._accounts.register(asked.user_name, asked.password, self._proxy_policy.address(request))
        return self._envelope.success(Status.REGISTERED)

    async def login(self, request: web.Request) -> web.Response:
        """POST /user/login"""
        asked = await body(request, Credentials, Status.LOGIN_FAILED, self._patience)
        login = await self._accounts.login(asked.user_name, asked.password, self._proxy_policy.address(request))
        response = self._envelope.success(Status.LOGGED_IN, msgspec.to_builtins(login))
        if self._proxy_policy.foreign(request) is None:
            set_cookie(response, login.token, login.expires_in, secure=self._proxy_policy.secure(request))
        return response

    async def set_password(self, request: web.Request) -> web.Response:
        """POST /user/set_password"""
        session = await self._session(request)
        asked = await body(request, NewPassword, Status.SET_PASSWORD_FAILED, self._patience)
        await self._accounts.set_password(
            session, asked.user_name, asked.old_password, asked.new_password, self._proxy_policy.address(request)
        )
        return self._envelope.success(Status.PASSWORD_SET)

    async def logout(self, request: web.Request) -> web.Response:
        """POST /user/logout"""
        session = await self._session(request)
        asked = await body(request, Name, Status.LOGOUT_FAILED, self._patience)
        await self._accounts.logout(session, asked.user_name)
        response = self._envelope.success(Status.LOGGED_OUT)
        if self._proxy_policy.foreign(request) is None:
            delete_cookies(response, secure=self._proxy_policy.secure(request))
        return response

    async def _session(self, request: web.Request) -> Session:
        return await self._accounts.session(self._proxy_policy.tokens(request))
