"""All sockets of this process: the upgrade, limits, heartbeats and the end."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Container, Sequence
from contextlib import ExitStack
from itertools import cycle

from aiohttp import web

from chat_server.api.connection import Connection, Events, WebSocket
from chat_server.api.limits import BEATS, MANY, SLOTS
from chat_server.api.middleware import foreign_origin_refusal
from chat_server.api.proxy_policy import ProxyPolicy
from chat_server.api.runner import Protocol
from chat_server.cache.sessions import SessionStore
from chat_server.conf import SocketSettings
from chat_server.service.accounts import Accounts, Session
from chat_server.service.cluster import Cluster
from chat_server.service.frames import Frames
from chat_server.service.names import GROUP_SIGN, normal
from chat_server.service.peers import Peers
from chat_server.service.registry import Registry, Socket
from chat_server.status import Reason, Refused, Status
from chat_server.utils.errors import StoreUnavailable
from chat_server.utils.free_lists import clear_free_lists
from chat_server.utils.token_bucket import TokenBucket

log = logging.getLogger(__name__)

# Sessions per call to the store when all are checked.
SESSIONS_AT_ONCE = 1000
# `close_slowly` closes sockets over this many seconds, so that their clients do not all load the state at once.
CLOSING_SECONDS = 5.0


class ConnectionManager:
    """Opens sockets, keeps them alive and closes them."""

    def __init__(
        self,
        config: SocketSettings,
        accounts: Accounts,
        peers: Peers,
        sessions: SessionStore,
        registry: Registry,
        frames: Frames,
        proxy_policy: ProxyPolicy,
        events: Events,
        page: Callable[[web.Request], web.Response | None],
    ) -> None:
        self._config = config
        self._accounts = accounts
        self._peers = peers
        self._sessions = sessions
        self._registry = registry
        self._frames = frames
        self._proxy_policy = proxy_policy
        self._page = page  # the answer to a browser that opens a socket's address as a page
        self.cluster: Cluster | None = None  # set if there are several processes
        self._events = events
        self._connections: set[Connection] = set()  # until their peers disconnect; the registry has those that are open
        self._users: Counter[str] = Counter()  # sockets, those that are being opened included
        self._addresses: Counter[str] = Counter()
        self._buckets: dict[str, TokenBucket] = {}  # by user
        self._slots = cycle(range(SLOTS))
        self._beating = cycle(range(SLOTS))
        self._most_open = 0  # since memory was last freed
        self._ending = False
        self._closing: set[asyncio.Task[None]] = set()  # calls of `close_slowly`
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
        origin = self._proxy_policy.foreign_origin(request)
        if origin is not None and not self._proxy_policy.is_allowed(origin):
            raise foreign_origin_refusal(failed)
        endings = self._registry.endings
        session = await self._accounts.session(self._proxy_policy.session_tokens(request, socket=True))
        if normal(request.query.get("uid", "")) != session.user:
            raise Refused(failed, Reason.NOT_YOURS, "uid is not the user who is logged in", field="uid")
        peer = normal(request.query.get("to_uid", ""))
        if peer[:1] == GROUP_SIGN:
            await self._peers.group(session.user, peer, Status.NO_SUCH_USER, "to_uid")
        elif peer and not await self._accounts.exists(peer, removed=True):
            raise Refused(Status.NO_SUCH_USER, Reason.NO_SUCH_USER, "no such user as to_uid", field="to_uid")
        address = self._proxy_policy.client_address(request)
        self._reserve(session.user, address)
        try:
            with ExitStack() as opening:
                if self.cluster:  # before the user can learn that the socket is open: from then on messages arrive
                    opening.callback(self.cluster.opened, session.user)
                    if not await self.cluster.open(session.user, self._config.sockets_per_user):
                        raise _too_many(self._config.sockets_per_user)
                return await self._serve(request, ws, session, peer, address, endings, opening.close)
        finally:
            self._release(session.user, address)

    def _reserve(self, user: str, address: str) -> None:
        for counter, key, limit in (
            (self._users, user, self._config.sockets_per_user),
            (self._addresses, address, self._config.sockets_per_address),
        ):
            if limit and counter[key] >= limit:
                raise _too_many(limit)
        self._users[user] += 1
        self._addresses[address] += 1

    def _release(self, user: str, address: str) -> None:
        for counter, key in ((self._users, user), (self._addresses, address)):
            counter[key] -= 1
            if not counter[key]:
                del counter[key]

    async def _serve(
        self,
        request: web.Request,
        ws: WebSocket,
        session: Session,
        peer: str,
        address: str,
        endings: int,
        opened: Callable[[], None],
    ) -> WebSocket:
        writer = await ws.prepare(request)
        ws.headers.clear()  # they are sent, and would take memory as long as the socket is open
        obstacle = await self._obstacle(session, endings)
        transport = request.transport
        if transport is None or not isinstance(protocol := request.protocol, Protocol):
            return ws  # the peer has disconnected
        connection = Connection(
            self._events,
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
            slot=next(self._slots),
            bucket=self._bucket(session.user),
        )
        protocol.on_bytes = connection.bytes_arrived
        if not obstacle:
            connection.send(self._frames.answer(session.user, Status.CONNECTED))
        self._registry.add(connection)
        opened()
        self._connections.add(connection)
        self._none_open.clear()
        log.info("socket opened", extra={"user": session.user, "address": address})
        try:
            if obstacle:
                connection.close(*obstacle)
            # In a task of its own: as part of the handler each frame would wake a dozen coroutines of aiohttp and ours.
            await asyncio.create_task(connection.serve())
        except Exception:  # aiohttp would answer with HTTP, and this is a socket by now
            log.exception("socket failed", extra={"user": session.user})
            connection.close(1011, "something went wrong here")
        finally:
            connection.connection_lost()
            self._registry.leave(connection)
            connection.inbox.when_idle(lambda: self._registry.remove(connection))
            self._connections.discard(connection)
            if not self._connections:
                self._none_open.set()
            log.info("socket closed", extra={"user": session.user, "code": connection.close_code})
        return ws

    async def _obstacle(self, session: Session, endings: int) -> tuple[int, str] | None:
        """Check the session again if any session ended since the check at `endings`.

        Returns the close code and the reason if the socket must close, else None.
        """
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

    # --- all sockets

    async def heartbeat(self) -> None:
        """Run the heartbeat of one slot: check the liveness of its sockets and renew their sessions.

        Called SLOTS times in HeartbeatSeconds.
        """
        slot = next(self._beating)
        connections = [connection for connection in self._connections if connection.slot == slot]
        for number, connection in enumerate(connections, 1):
            connection.check_liveness()
            if number % BEATS == 0:
                await asyncio.sleep(0)
        await self._renew(connections)
        if len(self._buckets) > len(self._users):
            self._drop_buckets()
        self._most_open = max(self._most_open, self.open())
        if self._most_open >= MANY and self.open() < self._most_open / 4:
            self._most_open = self.open()
            clear_free_lists()

    async def _renew(self, connections: Sequence[Connection]) -> None:
        """Renew the sessions of open sockets, and close those whose session has ended."""
        if not connections:
            return
        try:
            alive = await self._sessions.use([connection.session for connection in connections])
        except StoreUnavailable as error:
            log.warning("sessions not renewed", extra={"why": str(error)})  # an unavailable store ends no session
            return
        self._close_ended(connections, alive)

    async def check_sessions(self) -> None:
        """Close the sockets whose sessions have ended. Raises StoreUnavailable."""
        connections = list(self._connections)
        for start in range(0, len(connections), SESSIONS_AT_ONCE):
            page = connections[start : start + SESSIONS_AT_ONCE]
            self._close_ended(page, await self._sessions.use([connection.session for connection in page]))

    def _close_ended(self, connections: Sequence[Connection], alive: Container[bytes]) -> None:
        for connection in connections:
            if connection.session not in alive:
                connection.close(4001, "the session ended")

    def close_slowly(self, sockets: Sequence[Socket]) -> None:
        """Close sockets with 1001 over CLOSING_SECONDS, each after its requests in work."""
        if sockets:
            task = asyncio.create_task(self._close_slowly(sockets))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def _close_slowly(self, sockets: Sequence[Socket]) -> None:
        log.info("sockets closing", extra={"sockets": len(sockets)})
        async with asyncio.TaskGroup() as closing:
            for socket in sockets:
                closing.create_task(socket.finish(1001, "some events were lost, connect again"))
                await asyncio.sleep(CLOSING_SECONDS / len(sockets))

    def _drop_buckets(self) -> None:
        """Drop the token buckets of users without a socket, once they are full again."""
        now = asyncio.get_running_loop().time()
        for user in [user for user, bucket in self._buckets.items() if user not in self._users and bucket.full(now)]:
            del self._buckets[user]

    async def end(self) -> None:
        """Finish the requests in work, and close all sockets with 1001."""
        self._ending = True
        for task in self._closing:
            task.cancel()
        await asyncio.gather(*(one.finish(1001, "the server is going away") for one in list(self._connections)))
        await self._none_open.wait()  # each peer has answered the close frame, or had CLOSE_TIMEOUT to do so

    def open(self) -> int:
        """The number of sockets, those that are closing included."""
        return len(self._connections)

    def waiting(self) -> int:
        """The bytes that wait for the readers of all sockets."""
        return sum(connection.waiting for connection in self._connections)


def _too_many(limit: int) -> Refused:
    why = f"{limit} sockets are open already"
    return Refused(Status.SOCKET_FAILED, Reason.TOO_MANY, why, retry_after=60)


def _is_handshake(ws: WebSocket, request: web.Request) -> bool:
    try:
        return ws.can_prepare(request).ok
    except ValueError:  # aiohttp's, for a header that is not ASCII
        return False
