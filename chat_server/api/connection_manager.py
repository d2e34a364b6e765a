"""The upgrade, the table of ops, and what concerns all sockets: heartbeats, limits, the end."""

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import NamedTuple

from aiohttp import web

from chat_server.api.connection import SEND, Connection, WebSocket
from chat_server.api.middleware import foreign
from chat_server.api.proxy_policy import ProxyPolicy
from chat_server.api.runner import Protocol
from chat_server.cache.sessions import SessionStore
from chat_server.conf import SocketSettings
from chat_server.service.accounts import Accounts, Session
from chat_server.service.chat import Chat
from chat_server.service.frames import Frames, Request, decode, given_id
from chat_server.service.names import normal
from chat_server.service.registry import Receipt, Registry
from chat_server.status import Reason, Refused, Status
from chat_server.utils.errors import StoreUnavailable
from chat_server.utils.free_lists import clear_free_lists
from chat_server.utils.locks import ConcurrencyLimiter
from chat_server.utils.metrics import Metrics
from chat_server.utils.token_bucket import TokenBucket

log = logging.getLogger(__name__)

# A heartbeat's work is spread over so many moments.
SLOTS = 32
# Between two turns of the loop so many of them have theirs.
BEATS = 50
# Once so many sockets were open and three quarters of them have gone, what Python keeps of them is given back.
MANY = 1000
# Runs with more text than so many characters are with the store so many at a time: a short message that comes when many
# such do waits until a few of them are written, not all. They wait for their turn so many seconds at most.
LARGE, LARGE_AT_ONCE, LARGE_PATIENCE = 8192, 4, 10.0
INTERNAL = "something went wrong here, it is in the server's log"


class Op(NamedTuple):
    """What an op does (it returns the status that it answered), and the code of its failure."""

    do: Callable[[Connection, Request], Awaitable[Status]]
    failed: Status


class ConnectionManager:
    """All sockets of this process: makes them, hands their requests to Chat, keeps them alive, ends them."""

    def __init__(
        self,
        config: SocketSettings,
        accounts: Accounts,
        chat: Chat,
        sessions: SessionStore,
        registry: Registry,
        frames: Frames,
        proxy_policy: ProxyPolicy,
        metrics: Metrics,
        page: Callable[[web.Request], web.Response | None],
    ) -> None:
        self._config = config
        self._accounts = accounts
        self._chat = chat
        self._sessions = sessions
        self._registry = registry
        self._frames = frames
        self._proxy_policy = proxy_policy
        self._metrics = metrics
        self._page = page  # what a browser is shown that opens a socket's address as a page
        self._ops = {
            2: Op(chat.history, Status.HISTORY_FAILED),
            3: Op(chat.unread, Status.HISTORY_FAILED),
            4: Op(chat.mark_read, Status.MARK_READ_FAILED),
            5: Op(chat.delete, Status.DELETE_FAILED),
            6: Op(chat.broadcast, Status.SEND_FAILED),
            7: Op(chat.conversations, Status.CONVERSATIONS_FAILED),
        }
        self._slots: deque[set[Connection]] = deque(set() for _ in range(SLOTS))
        self._addresses: Counter[str] = Counter()
        self._users: Counter[str] = Counter()
        self._buckets: dict[str, TokenBucket] = {}
        self._workers: set[asyncio.Task[None]] = set()
        self._large = ConcurrencyLimiter(LARGE_AT_ONCE, LARGE_PATIENCE)
        self._most_open = 0  # since memory was last given back
        self._ending = False
        self._none_open = asyncio.Event()
        self._none_open.set()

    # --- the upgrade

    async def upgrade(self, request: web.Request) -> web.StreamResponse:
        """GET /chat/test: check in the order of the protocol, then serve the socket until it ends."""
        ws = WebSocket(
            autoclose=False,
            autoping=False,
            compress=self._config.compress,
            max_msg_size=self._config.max_frame_bytes + 1,
        )
        failed = Status.SOCKET_FAILED
        if not _is_handshake(ws, request):
            if page := self._page(request):
                return page
            raise Refused(failed, Reason.NO_UPGRADE, "this address is for WebSocket (RFC 6455, version 13)")
        if self._ending:
            raise Refused(failed, Reason.TOO_MANY, "the server is going away", retry_after=5)
        origin = self._proxy_policy.foreign(request)
        if origin is not None and not self._proxy_policy.allowed(origin):
            raise foreign(failed)
        endings = self._registry.endings
        session = await self._accounts.session(self._proxy_policy.tokens(request, socket=True))
        if normal(request.query.get("uid", "")) != session.user:
            raise Refused(failed, Reason.NOT_YOURS, "uid is not the user who is logged in", field="uid")
        peer = normal(request.query.get("to_uid", ""))
        if peer and not await self._accounts.exists(peer, removed=True):
            raise Refused(Status.NO_SUCH_USER, Reason.NO_SUCH_USER, "no such user as to_uid", field="to_uid")
        address = self._proxy_policy.address(request)
        self._reserve(session.user, address)
        try:
            return await self._serve(request, ws, session, peer, address, endings)
        finally:
            self._give_back(session.user, address)

    def _reserve(self, user: str, address: str) -> None:
        for counter, key, most in (
            (self._users, user, self._config.sockets_per_user),
            (self._addresses, address, self._config.sockets_per_address),
        ):
            if most and counter[key] >= most:
                why = f"{most} sockets are open already"
                raise Refused(Status.SOCKET_FAILED, Reason.TOO_MANY, why, retry_after=60)
        self._users[user] += 1
        self._addresses[address] += 1

    def _give_back(self, user: str, address: str) -> None:
        for counter, key in ((self._users, user), (self._addresses, address)):
            counter[key] -= 1
            if not counter[key]:
                del counter[key]

    async def _serve(
        self, request: web.Request, ws: WebSocket, session: Session, peer: str, address: str, endings: int
    ) -> WebSocket:
        writer = await ws.prepare(request)
        ws.headers.clear()  # they are sent, and would be kept as long as the socket is open
        obstacle = await self._obstacle(session, endings)
        transport = request.transport
        if transport is None or not isinstance(protocol := request.protocol, Protocol):
            return ws  # gone already
        connection = Connection(
            self,
            self._config,
            ws,
            transport,
            writer.drain,
            protocol.close,
            user=session.user,
            peer=peer,
            session=session.digest,
            sync=request.query.get("sync") == "1",
            address=address,
            bucket=self._bucket(session.user),
        )
        protocol.on_bytes = connection.arrived
        slot = min(self._slots, key=len)
        if not obstacle:
            connection.send(self._frames.answer(session.user, Status.CONNECTED))
        self._registry.add(connection)
        slot.add(connection)
        self._none_open.clear()
        log.info("socket opened", extra={"user": session.user, "address": address})
        try:
            if obstacle:
                connection.close(*obstacle)
            await connection.serve()
        except Exception:  # what aiohttp would answer to it is HTTP, and this is a socket by now
            log.exception("socket failed", extra={"user": session.user})
            connection.close(1011, "something went wrong here")
        finally:
            connection.gone()
            self._registry.leave(connection)
            connection.when_idle(partial(self._registry.remove, connection))
            slot.discard(connection)
            if not any(self._slots):
                self._none_open.set()
            log.info("socket closed", extra={"user": session.user, "code": connection.close_code})
        return ws

    async def _obstacle(self, session: Session, endings: int) -> tuple[int, str] | None:
        """Close code and text if the socket may not stay: the session was looked at after so many `endings`."""
        while self._registry.endings != endings:
            endings = self._registry.endings
            try:
                if not await self._sessions.use([session.digest]):
                    return 4001, "the session ended"
            except StoreUnavailable:
                return 1013, "whether the session still exists cannot be told now"
        return (1001, "the server is going away") if self._ending else None

    def _bucket(self, user: str) -> TokenBucket | None:
        if not self._config.frames_per_second:
            return None
        if user not in self._buckets:
            now = asyncio.get_running_loop().time()
            self._buckets[user] = TokenBucket(self._config.frames_per_second, self._config.frames_burst, now)
        return self._buckets[user]

    # --- what a connection needs of its owner

    def decode(self, data: str) -> Request | Refused:
        """The request in a frame, or what is wrong with it."""
        request = decode(data)
        if isinstance(request, Request) and request.op_type != SEND and request.op_type not in self._ops:
            return Refused(Status.FRAME_BAD, Reason.UNKNOWN_OP, f"unknown op_type: {request.op_type}", field="op_type")
        return request

    async def work(self, connection: Connection, request: Request) -> None:
        """Answer a request that is no send."""
        op = self._ops[request.op_type]
        try:
            self._metrics.answered(request.op_type, [await op.do(connection, request)])
        except Refused as refused:
            self.refuse(connection, refused, request.op_type)
        except StoreUnavailable as error:
            log.warning("store unavailable", extra={"op": request.op_type, "error": str(error)})
            away = Refused(op.failed, Reason.STORE_AWAY, "a store is away, try again")
            self.refuse(connection, away, request.op_type)
        except ConnectionError:
            raise
        except Exception:
            log.exception("frame failed", extra={"op": request.op_type})
            self.refuse(connection, Refused(op.failed, Reason.INTERNAL, INTERNAL), request.op_type)

    async def store(self, connection: Connection, run: Sequence[Request]) -> Callable[[], None]:
        """Store a run of sends; what it returns answers them."""
        large = sum(len(request.content) for request in run) > LARGE
        try:
            async with self._large.hold(connection.user) if large else nullcontext():
                return partial(self._answer, connection, run, await self._chat.store(connection, run))
        except StoreUnavailable:
            return partial(self._failed, connection, run, Reason.STORE_AWAY, "the store is busy, send it again")
        except Exception:
            log.exception("frame failed", extra={"op": SEND})
            return partial(self._failed, connection, run)

    def _answer(self, connection: Connection, run: Sequence[Request], answer: Callable[[], Sequence[Status]]) -> None:
        try:
            self._metrics.answered(SEND, answer())
        except Exception:
            log.exception("frame failed", extra={"op": SEND})
            self._failed(connection, run)

    def _failed(
        self, connection: Connection, run: Sequence[Request], reason: Reason = Reason.INTERNAL, why: str = INTERNAL
    ) -> None:
        refused = Refused(Status.SEND_FAILED, reason, why)
        for request in run:
            connection.send(self._frames.refusal(connection.user, refused, given_id(request.content)))
        self._metrics.answered(SEND, [refused.status] * len(run))

    def refuse(self, connection: Connection, refused: Refused, op: int = 0) -> None:
        """Say why not; `op` is 0 where it was no request."""
        connection.send(self._frames.refusal(connection.user, refused))
        self._metrics.answered(op, [refused.status])

    def proven(self, connection: Connection, receipts: Iterable[Receipt]) -> None:
        """These messages have arrived."""
        self._chat.proven(connection, receipts)

    def closing(self, connection: Connection) -> None:
        """From now on nothing can be delivered to it."""
        self._registry.leave(connection)

    def too_slow(self) -> None:
        """A connection is closed because its peer reads too slowly."""
        self._metrics.too_slow()

    def working(self, task: asyncio.Task[None]) -> None:
        """A task to wait for before the stores close."""
        self._workers.add(task)
        task.add_done_callback(self._workers.discard)

    # --- all sockets

    async def beat(self) -> None:
        """A slot's heartbeat: its sockets give a sign of life, and their sessions are asked for.

        Called SLOTS times in HeartbeatSeconds.
        """
        self._slots.append(slot := self._slots.popleft())
        connections = list(slot)
        for number, connection in enumerate(connections, 1):
            connection.beat()
            if number % BEATS == 0:
                await asyncio.sleep(0)
        await self._renew(connections)
        if len(self._buckets) > len(self._users):
            self._forget_buckets()
        open_now = self.open()
        self._most_open = max(self._most_open, open_now)
        if self._most_open >= MANY and open_now < self._most_open / 4:
            self._most_open = open_now
            clear_free_lists()

    async def _renew(self, connections: Sequence[Connection]) -> None:
        """Renew the sessions of open sockets; close those whose session is gone."""
        if not connections:
            return
        try:
            alive = await self._sessions.use([connection.session for connection in connections])
        except StoreUnavailable as error:
            log.warning("sessions not renewed", extra={"why": str(error)})  # a store that is away ends nobody
            return
        for connection in connections:
            if connection.session not in alive:
                connection.close(4001, "the session ended")

    def _forget_buckets(self) -> None:
        now = asyncio.get_running_loop().time()
        for user in [user for user, bucket in self._buckets.items() if user not in self._users and bucket.full(now)]:
            del self._buckets[user]

    async def end(self) -> None:
        """Finish the frames in work, close all sockets with 1001, and wait for what is under way."""
        self._ending = True
        connections = [connection for slot in self._slots for connection in slot]
        await asyncio.gather(*(one.finish(1001, "the server is going away") for one in connections))
        await self._none_open.wait()  # each peer has answered the close frame, or had LINGER seconds to do so
        if self._workers:
            await asyncio.wait(self._workers)
        await self._chat.flush()

    def open(self) -> int:
        """How many sockets are open, those that are closing too."""
        return sum(map(len, self._slots))

    def waiting(self) -> int:
        """The bytes that wait for the readers of all sockets."""
        return sum(connection.waiting for slot in self._slots for connection in slot)


def _is_handshake(ws: WebSocket, request: web.Request) -> bool:
    try:
        return ws.can_prepare(request).ok
    except ValueError:  # aiohttp's, for a header that is not ASCII
        return False
