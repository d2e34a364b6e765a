"""Listening: our envelope and headers on every answer, and an end to peers that take for ever.

Also for what never reaches a handler: what is no HTTP, and unknown expectations.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from aiohttp import web

from chat_server.api.envelope import Envelope
from chat_server.api.headers import secure, secured
from chat_server.api.middleware import answer_to
from chat_server.status import Reason, Refused, Status
from chat_server.utils.descriptors import Descriptors
from chat_server.utils.errors import StartError
from chat_server.utils.pace import Pace

# Connections that the system holds for us until we accept them.
BACKLOG = 1024


class Protocol(web.RequestHandler):
    """aiohttp's end of an HTTP connection, with its own error pages replaced.

    A peer has `patience` seconds to send the head of its (next) request, and as many to take the answer.
    Where thousands come or go together, their requests and their ends wait for their turn in `pace`: whoever
    has a socket already is served in between.
    """

    __slots__ = ("_begun", "_descriptors", "_envelope", "_pace", "_patience")

    def __init__(
        self,
        envelope: Envelope,
        patience: float,
        descriptors: Descriptors,
        pace: Pace,
        manager: web.Server,
        **options: Any,
    ) -> None:
        # Of a body that nobody wants so many seconds are read and dropped before the connection ends.
        super().__init__(manager, keepalive_timeout=patience, lingering_time=min(10, patience), **options)
        self._envelope = envelope
        self._patience = patience
        self._descriptors = descriptors
        self._pace = pace
        self._begun = False  # a request has had its turn: what belongs to it, frames too, is read at once

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A peer has connected."""
        super().connection_made(transport)
        self._descriptors.taken(transport.get_extra_info("socket").fileno())

    def data_received(self, data: bytes) -> None:
        """Read it; of a new request when its turn has come, and nothing more until then."""
        if self._begun:
            super().data_received(data)
        elif self.transport:
            self.transport.pause_reading()
            self._pace.call(partial(self._begin, data))

    def _begin(self, data: bytes) -> None:
        self._begun = True
        if self.transport and not self.transport.is_closing():
            self.transport.resume_reading()  # first: aiohttp may want it paused again
            super().data_received(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        """The connection has ended; its handler learns it in its turn, after what came before."""
        self._pace.call(partial(super().connection_lost, exc))

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What is no HTTP: nothing of it is repeated, in the answer or in the log."""
        response = self._envelope.refusal(Refused(Status.BAD_REQUEST, Reason.BAD_REQUEST, "this is no valid HTTP"))
        response.force_close()
        secure(response)
        return response

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send an answer; one of aiohttp's own becomes ours. Who does not take it in time is cut."""
        if isinstance(resp, web.HTTPException):
            resp = answer_to(resp, self._envelope)
            secure(resp)
        self._begun = False
        try:
            async with asyncio.timeout(self._patience):
                return await super().finish_response(request, resp, start_time)
        except TimeoutError:
            if request.transport:
                request.transport.abort()
            return resp, True


@asynccontextmanager
async def listening(
    application: web.Application, envelope: Envelope, host: str, port: int, patience: float, *, keys: str = "Http"
) -> AsyncIterator[tuple[str, int]]:
    """Serve while the context lasts; yields host and port. Raises StartError if it cannot listen there.

    `patience`: as Protocol. `keys` is what the settings of host and port begin with.
    """
    application.on_response_prepare.append(secured)
    # A client that is gone cancels its handler: a password that nobody waits for leaves the queue.
    runner = web.AppRunner(application, handler_cancellation=True, access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        manager, loop, descriptors = runner.server, asyncio.get_running_loop(), Descriptors()
        if manager is None:
            raise RuntimeError("the runner was set up, but has no server")
        pace = Pace()
        try:
            server = await loop.create_server(
                lambda: Protocol(envelope, patience, descriptors, pace, manager, loop=loop, access_log=None),
                host,
                port,
                backlog=BACKLOG,
            )
        except OSError as error:
            raise StartError(
                f"{keys}Host {host}, {keys}Port {port}: cannot listen there ({error.strerror or error}); "
                "stop what uses it, or choose another"
            ) from error
        try:
            bound_host, bound_port, *_ = server.sockets[0].getsockname()
            yield bound_host, bound_port
        finally:
            server.close()
            # Here already: cleanup() first stops reading, and neither the last pongs nor close frames would be heard.
            await application.shutdown()
    finally:
        await runner.cleanup()
