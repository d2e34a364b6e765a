"""Op 6, send to all online users: not stored (protocol section 2)."""

from chat_server.cache.rates import Rate, RateStore
from chat_server.conf import ChatSettings
from chat_server.service.answers import Answer
from chat_server.service.cluster import Cluster
from chat_server.service.frames import Frames, Request
from chat_server.service.peers import check_from
from chat_server.service.registry import Registry, Socket
from chat_server.service.sending import check_text
from chat_server.status import Reason, Refused, Status
from chat_server.utils.clock import Timeline


class Broadcasts:
    """Sends messages to all online users."""

    def __init__(
        self,
        config: ChatSettings,
        rates: RateStore,
        registry: Registry,
        frames: Frames,
        timeline: Timeline,
        cluster: Cluster | None,
    ) -> None:
        self._config = config
        self._rates = rates
        self._registry = registry
        self._frames = frames
        self._timeline = timeline
        self._cluster = cluster

    async def broadcast(self, socket: Socket, request: Request) -> Answer:
        """Op 6. Raises Refused, StoreUnavailable."""
        check_from(socket, request)
        if refused := check_text(request.content, self._config.max_text_bytes):
            raise refused
        if limit := self._config.broadcasts_per_minute:
            rate = Rate(("broadcast", socket.user), limit, 60)
            if wait := await self._rates.take([rate]):
                why = f"more than {limit} messages to everybody in a minute; try again in {wait:.0f} s"
                raise Refused(Status.SEND_FAILED, Reason.TOO_MANY, why, retry_after=wait)
        time = self._timeline.next()
        frame = self._frames.broadcast(socket.user, request.content, time)
        reached = await self._registry.broadcast(socket.user, frame, socket)
        if self._cluster:
            reached = await self._cluster.broadcast(socket.user, request.content, time)
        return Answer(Status.SENT, str(reached))
