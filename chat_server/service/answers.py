"""Send the answers to requests, and their effects on other sockets. No other module answers."""

import logging
from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import attrgetter

import msgspec

from chat_server.model.messages import Message
from chat_server.service.frames import SEND, Frames, Request, given_id
from chat_server.service.live_groups import LiveGroup
from chat_server.service.peers import Peer
from chat_server.service.registry import Delivery, Registry, Socket
from chat_server.service.sending import Batch, Sent
from chat_server.status import Reason, Refused, Status
from chat_server.utils.metrics import Metrics

log = logging.getLogger(__name__)

INTERNAL = "something went wrong here, it is in the server's log"
SENDING_FAILED = Refused(Status.SEND_FAILED, Reason.INTERNAL, INTERNAL)

# Recent deliveries that are remembered: at least this many, at most twice as many, which take about 3 MiB. A client
# retries within seconds.
REMEMBERED_DELIVERIES = 16384

# Read once: before Python 3.12 each access to an enum's member is a call.
_ONLINE, _OFFLINE = Status.RECEIVER_ONLINE, Status.RECEIVER_OFFLINE
_TO = attrgetter("to")


class Answer(msgspec.Struct, frozen=True):
    """The answer to a request that is no send. A `silent` one is counted, but not sent."""

    status: Status
    content: str
    silent: bool = False


class Answers:
    """Delivers stored messages, acknowledges requests and refuses them."""

    def __init__(self, registry: Registry, frames: Frames, metrics: Metrics) -> None:
        self._registry = registry
        self._frames = frames
        self._metrics = metrics
        self._delivered = RecentNumbers(REMEMBERED_DELIVERIES)

    def sent(self, batch: Batch) -> int:
        """Deliver each stored message of a batch and acknowledge or refuse each request, in order.

        Returns how much work it was: the number of requests, and of outboxes for their messages.
        """
        socket = batch.socket
        for receiver in batch.unblocked:
            allowed_again = self._frames.answer(receiver, Status.ALLOWED_AGAIN, socket.user)
            self._registry.notify([receiver], allowed_again, to_all=True)
        results, outboxes = iter(batch.results), 0
        statuses: list[Status] = []
        for to, requests in groupby(batch.requests, _TO):
            run = zip(requests, results)  # noqa: B905 - the next run goes on with `results`
            outboxes += self._answer_run(batch, batch.receivers[to], run, statuses)
        self._metrics.add_answers(SEND, statuses)
        return len(statuses) + outboxes

    def receive(self, message: Message, users: Iterable[str], group: LiveGroup | None) -> None:
        """Deliver a message that another process has stored, unless it was delivered before."""
        receivers = [socket for user in users for socket in self._registry.sockets(user)]
        if receivers and message.time not in self._delivered:
            self._delivered.add(message.time)
            frame = self._frames.live(message, message.time)
            delivery = Delivery(message.sender, message.id, message.time, group)
            for receiver in receivers:
                receiver.deliver(frame, [delivery])

    def answered(self, socket: Socket, op: int, answer: Answer) -> None:
        """Answer a request that is no send."""
        if not answer.silent:
            socket.send(self._frames.answer(socket.user, answer.status, answer.content))
        self._metrics.add_answers(op, [answer.status])

    def refused(self, socket: Socket, op: int, refused: Refused) -> None:
        """Say why a request is refused; `op` is 0 if the frame is no request."""
        socket.send(self._frames.refusal(socket.user, refused))
        self._metrics.add_answers(op, [refused.status])

    def _refusal(self, socket: Socket, refused: Refused, request: Request) -> bytes:
        return self._frames.refusal(socket.user, refused, given_id(request.content))

    def _answer_run(
        self,
        batch: Batch,
        peer: Peer | Refused | None,
        run: Iterable[tuple[Request, Sent | Refused]],
        statuses: list[Status],
    ) -> int:
        """Answer consecutive requests with the same receiver. Each outbox gets its frames of the run as one piece.

        Appends the status of each request to `statuses`. Returns the number of the receiver's outboxes.
        """
        socket, group = batch.socket, peer if type(peer) is LiveGroup else None
        if group:
            receivers, online = self._members(group, socket.user)
        else:
            receivers = self._registry.sockets(peer) if type(peer) is str and peer not in batch.blocked_by else ()
            online = bool(receivers)
        online_status = _ONLINE if online else _OFFLINE
        frames: list[bytes] = []
        deliveries: list[Delivery] = []
        repeated = set[int]()  # read again after a gap of this process, and so delivered, since they were stored
        answers = b""
        for request, result in run:
            try:
                if not isinstance(result, Refused):
                    message, time = result.message, result.added.time  # of a retry the time of the stored message
                    if result.added.new or (result.added.unread and time not in self._delivered):
                        frames.append(self._frames.live(message, time))
                        deliveries.append(Delivery(message.sender, message.id, time, group))
                        if receivers and not self._delivered.add(time):
                            repeated.add(time)
                    status = _ONLINE if result.elsewhere else online_status
                    answer = self._frames.acknowledgement(socket.user, status, message.id, time)
                else:
                    status, answer = result.status, self._refusal(socket, result, request)
            except Exception:  # only this request fails
                log.exception("frame failed", extra={"op": SEND})
                status, answer = SENDING_FAILED.status, self._refusal(socket, SENDING_FAILED, request)
            answers += answer
            statuses.append(status)
        try:
            if frames:
                self._copy(socket, frames)
                if repeated:
                    frames = [frame for frame, one in zip(frames, deliveries, strict=True) if one.time not in repeated]
                    deliveries = [one for one in deliveries if one.time not in repeated]
                self._deliver(group, receivers, frames, deliveries)
        except Exception:  # the messages are stored: op 3 returns them
            log.exception("frame failed", extra={"op": SEND})
        socket.send(answers)
        return len(receivers)

    def _members(self, group: LiveGroup, sender: str) -> tuple[Sequence[Socket], bool]:
        """The sockets of the other members, and whether the sender sees anyone online."""
        online = self._registry.sockets_among(group.members)
        online.pop(sender, None)
        receivers = [socket for sockets in online.values() for socket in sockets]
        blocks = group.blocks.get(sender)  # None if a member has just joined or left: who blocks is not known now
        return receivers, blocks is not None and any(user not in blocks.by_others for user in online)

    def _deliver(
        self,
        group: LiveGroup | None,
        receivers: Sequence[Socket],
        frames: Sequence[bytes],
        deliveries: Sequence[Delivery],
    ) -> None:
        """Deliver messages to the receivers."""
        if not deliveries:
            return
        together, oldest = b"".join(frames), min([one.time for one in deliveries]) if group else 0
        for receiver in receivers:
            if not group or group.members[receiver.user] < oldest:
                receiver.deliver(together, deliveries)
                continue
            for frame, delivery in zip(frames, deliveries, strict=True):  # the member has just joined
                if group.members[receiver.user] < delivery.time:
                    receiver.deliver(frame, [delivery])

    def _copy(self, sender: Socket, frames: Sequence[bytes]) -> None:
        """Send messages to the sender's other devices."""
        if sender.user in self._registry.sync_users:
            self._registry.notify_here([sender.user], b"".join(frames), without=sender)


class RecentNumbers:
    """A set of the numbers that were added last: at least the last `least`, at most twice as many."""

    def __init__(self, least: int) -> None:
        self._least = least
        self._free = least  # places in _new
        self._new: set[int] = set()
        self._old: set[int] = set()

    def add(self, number: int) -> bool:
        """Remember `number`. Returns whether it was not remembered before."""
        if number in self._new:
            return False
        known = number in self._old
        self._new.add(number)
        self._free -= 1
        if not self._free:
            self._old, self._new, self._free = self._new, set(), self._least
        return not known

    def __contains__(self, number: int) -> bool:
        return number in self._new or number in self._old
