"""Listen: our envelope and headers on every answer, and timeouts for slow peers.

This includes input that reaches no handler, such as bytes that are no HTTP.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from socket import SO_RCVBUF, SO_SNDBUF, SOL_SOCKET
from typing import Any

from aiohttp import HttpVersion11, StreamReader, web
from aiohttp.typedefs import Handler, Middleware

from chat_server.api.envelope import Envelope
from chat_server.api.headers import add_security_headers, on_response_prepare
from chat_server.api.middleware import http_error_response
from chat_server.status import Reason, Refused, Status
from chat_server.utils.descriptors import Descriptors
from chat_server.utils.errors import StartError
from chat_server.utils.turn_queue import TurnQueue

# Connections that the kernel queues until the server accepts them.
BACKLOG = 1024
# The kernel's buffers of a connection, in each direction, in bytes. Otherwise Linux lets them grow to several MiB while
# the peer or the server does not read: memory that no limit of the server counts.
KERNEL_BUFFER = 65536
# Bytes on the wire of the head of a request, and of a request with its body and what is pipelined behind it, at most.
# They bound endless heads, chunks of one byte, and pipelines with answers that are not read.
HEAD_BYTES, REQUEST_BYTES = 32768, 65536
# After the answer to a request that was not read to its end, the server drops up to this many bytes for up to this many
# seconds, so that the client can read the answer before the connection ends.
DROPPED_BYTES, DROPPED_SECONDS = 4194304, 2.0


class Protocol(web.RequestHandler):
    """aiohttp's side of an HTTP connection, with our error pages.

    A peer has `timeout` seconds to send the head of its (next) request, and as many to take the answer.
    Thousands of connections that end together end one per loop iteration, so that other work runs in between.
    `on_bytes` is called with the size of each read; an open socket counts these bytes.
    """

    __slots__ = (
        *("_answered", "_body", "_broken", "_bytes", "_descriptors", "_envelope", "_pace", "_timeout"),
        "on_bytes",
    )

    def __init__(
        self,
        envelope: Envelope,
        timeout: float,
        descriptors: Descriptors,
        pace: TurnQueue,
        manager: web.Server,
        **options: Any,
    ) -> None:
        # No endpoint accepts a compressed body: none is decompressed, and body() refuses it.
        super().__init__(manager, keepalive_timeout=timeout, lingering_time=0, auto_decompress=False, **options)
        self._envelope = envelope
        self._timeout = timeout
        self._descriptors = descriptors
        self._pace = pace
        self._broken = False  # input is dropped
        self._bytes = 0  # received since the last time that no request was in work
        self._answered = 0  # requests
        self._body: StreamReader | None = None  # of the newest request; the earlier ones are complete
        self.on_bytes: Callable[[int], None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A peer has connected."""
        super().connection_made(transport)
        sock = transport.get_extra_info("socket")
        for buffer in (SO_SNDBUF, SO_RCVBUF):
            sock.setsockopt(SOL_SOCKET, buffer, KERNEL_BUFFER)
        self._descriptors.connection_opened(sock.fileno())

    def data_received(self, data: bytes) -> None:
        """Bytes arrived: of a socket, or of requests, whose size is limited."""
        if self.on_bytes or self._upgraded:
            super().data_received(data)
            if self.on_bytes:
                self.on_bytes(len(data))
            return
        room = REQUEST_BYTES - self._bytes
        self._bytes += len(data)
        if self._broken:
            if self._bytes > DROPPED_BYTES and self.transport:
                self.transport.abort()
            return
        super().data_received(data if len(data) <= room else data[:room])
        self._look_at_requests()
        if self._bytes > (REQUEST_BYTES if self._is_busy() else HEAD_BYTES) and not self._broken:
            self._refuse_more()

    def _is_busy(self) -> bool:
        """Whether a request is not answered yet."""
        return self._request_count > self._answered

    def _refuse_more(self) -> None:
        """Answer the requests that have arrived, then end the connection."""
        if not self._is_busy():
            super().data_received(b"\0")  # no head may contain it: the answer is 400
            self._look_at_requests()
            return
        self._broken = True
        self.close()
        if self._body and not self._body.is_eof():
            self._body.set_exception(Refused(Status.BAD_REQUEST, Reason.TOO_LARGE, "the request is too large"))

    def _look_at_requests(self) -> None:
        """Remember the newest body, and drop further input after bytes that are no HTTP.

        aiohttp keeps the error among the requests. Its traceback would keep the input, in a cycle, until the next
        collection; it can be reached only here.
        """
        for request, body in self._messages:
            self._body = body
            if error := getattr(request, "exc", None):
                self._broken = True
                error.__traceback__ = None

    def connection_lost(self, exc: BaseException | None) -> None:
        """The connection has ended. Notify its handler in its turn, after the input that came before."""
        self.on_bytes = None
        self._pace.call(partial(super().connection_lost, exc))

    async def start(self) -> None:
        """Handle the requests of the connection, then close it."""
        await super().start()
        if self.transport:
            self._abort_unread(self.transport)

    def force_close(self) -> None:
        """Close the connection now."""
        transport = self.transport
        super().force_close()
        if transport:
            self._abort_unread(transport)

    def _abort_unread(self, transport: asyncio.Transport) -> None:
        """Give the peer of a closing connection a last `timeout` to take the answers: a transport waits forever."""
        if transport.get_write_buffer_size():
            asyncio.get_running_loop().call_later(self._timeout, transport.abort)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer bytes that are no HTTP, and repeat none of them in the answer or the log."""
        response = self._envelope.refusal(Refused(Status.BAD_REQUEST, Reason.BAD_REQUEST, "this is no valid HTTP"))
        response.force_close()
        add_security_headers(response)
        return response

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send an answer, with our envelope instead of aiohttp's. Cut a peer that does not take it in time."""
        if isinstance(resp, web.HTTPException):
            resp = http_error_response(resp, self._envelope)
            add_security_headers(resp)
        unread = not request.content.is_eof()
        if unread and not resp.prepared:
            resp.force_close()
        try:
            async with asyncio.timeout(self._timeout):
                finished = await super().finish_response(request, resp, start_time)
            self._look_at_requests()  # behind a refused upgrade
        except TimeoutError:
            if request.transport:
                request.transport.abort()
            return resp, True
        self._answered += 1
        if not self._is_busy():
            self._bytes = 0
        if unread:
            self._broken = True
            await asyncio.sleep(DROPPED_SECONDS)  # cancelled when the connection is lost
        return finished


def _admission(pace: TurnQueue, envelope: Envelope) -> Middleware:
    """The first middleware: each request waits for its turn, and must have an unambiguous length."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        await pace.turn()
        coding = ", ".join(request.headers.getall("Transfer-Encoding", ()))
        if coding and (coding.lower() != "chunked" or request.version < HttpVersion11):
            why = "Transfer-Encoding may only be chunked, with HTTP/1.1"  # RFC 9112, section 6.1
            return envelope.refusal(Refused(Status.BAD_REQUEST, Reason.BAD_REQUEST, why), close=True)
        return await handler(request)

    return middleware


@asynccontextmanager
async def listening(
    application: web.Application, envelope: Envelope, host: str, port: int, timeout: float, *, keys: str = "Http"
) -> AsyncIterator[tuple[str, int]]:
    """Serve within the context; yields host and port. Raises StartError if the address is not available.

    `timeout` as in Protocol. `keys` is the beginning of the names of the settings for host and port.
    """
    pace = TurnQueue()
    application.middlewares.insert(0, _admission(pace, envelope))
    application.on_response_prepare.append(on_response_prepare)
    # A lost connection cancels its handler, so that its password leaves the queue.
    runner = web.AppRunner(application, handler_cancellation=True, access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        manager, loop, descriptors = runner.server, asyncio.get_running_loop(), Descriptors()
        if manager is None:
            raise RuntimeError("the runner was set up, but has no server")
        try:
            server = await loop.create_server(
                lambda: Protocol(envelope, timeout, descriptors, pace, manager, loop=loop, access_log=None),
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
            # Not left to cleanup(), which first stops reading: the last pongs and close frames would be lost.
            await application.shutdown()
    finally:
        await runner.cleanup()
