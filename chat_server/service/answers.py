"""Send the answers to requests, and their effects on other sockets. No other module answers."""

import logging
from collections.abc import Sequence

import msgspec

from chat_server.service.frames import SEND, Frames, given_id
from chat_server.service.live_groups import LiveGroup
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

    def sent(self, batch: Batch) -> None:
        """Deliver each stored message of a batch and acknowledge or refuse each request, in order."""
        socket = batch.socket
        for receiver in batch.unblocked:
            allowed_again = self._frames.answer(receiver, Status.ALLOWED_AGAIN, socket.user)
            for other in self._registry.sockets(receiver):
                other.send(allowed_again)
        others = self._registry.sync_sockets(socket.user, without=socket)
        statuses = []
        for request, result in zip(batch.requests, batch.results, strict=True):
            try:
                if isinstance(result, Refused):
                    status = self._refuse(socket, result, given_id(request.content))
                else:
                    peer = batch.receivers[request.to]
                    status = self._deliver_and_acknowledge(
                        socket, result, others, peer if isinstance(peer, LiveGroup) else None
                    )
            except Exception:  # only this request fails: those before it are answered already
                log.exception("frame failed", extra={"op": SEND})
                status = self._refuse(socket, SENDING_FAILED, given_id(request.content))
            statuses.append(status)
        self._metrics.add_answers(SEND, statuses)

    def answered(self, socket: Socket, op: int, answer: Answer) -> None:
        """Answer a request that is no send."""
        if not answer.silent:
            socket.send(self._frames.answer(socket.user, answer.status, answer.content))
        self._metrics.add_answers(op, [answer.status])

    def refused(self, socket: Socket, op: int, refused: Refused) -> None:
        """Say why a request is refused; `op` is 0 if the frame is no request."""
        self._metrics.add_answers(op, [self._refuse(socket, refused)])

    def _refuse(self, socket: Socket, refused: Refused, id: str = "") -> Status:
        socket.send(self._frames.refusal(socket.user, refused, id))
        return refused.status

    def _deliver_and_acknowledge(
        self, socket: Socket, sent: Sent, others: Sequence[Socket], group: LiveGroup | None
    ) -> Status:
        """Deliver to the receiver or to the members of `group`; `others` are sync sockets of the sender's devices."""
        message, added = sent.message, sent.added
        time = added.time  # of a retry that of the first message, which is the one that is stored
        if group:
            receivers, online = self._members(group, message.sender, time)
        else:
            receivers = () if sent.blocked else self._registry.sockets(message.receiver)
            online = bool(receivers)
        if added.new or (added.unread and time not in self._delivered):
            frame = self._frames.live(message, time)
            if receivers:
                delivery = Delivery(message.sender, message.id, time, group)
                for receiver in receivers:
                    receiver.deliver(frame, delivery)
                self._delivered.add(time)
            for other in others:
                other.send(frame)
        status = _ONLINE if online else _OFFLINE
        socket.send(self._frames.acknowledgement(socket.user, status, message.id, time))
        return status

    def _members(self, group: LiveGroup, sender: str, time: int) -> tuple[Sequence[Socket], bool]:
        """The sockets of the other members who may read a message, and whether the sender sees anyone online."""
        users = self._registry.online_among(group.members)
        receivers = [
            receiver
            for user in users
            if user != sender and group.members[user] < time
            for receiver in self._registry.sockets(user)
        ]
        blocks = group.blocks.get(sender)  # None if a member has just joined or left: who blocks is not known now
        return receivers, blocks is not None and not (users - blocks.by_others <= {sender})


class RecentNumbers:
    """A set of the numbers that were added last: at least the last `least`, at most twice as many."""

    def __init__(self, least: int) -> None:
        self._least = least
        self._free = least  # places in _new
        self._new: set[int] = set()
        self._old: set[int] = set()

    def add(self, number: int) -> None:
        """Remember `number`."""
        if number not in self._new:
            self._new.add(number)
            self._free -= 1
            if not self._free:
                self._old, self._new, self._free = self._new, set(), self._least

    def __contains__(self, number: int) -> bool:
        return number in self._new or number in self._old
