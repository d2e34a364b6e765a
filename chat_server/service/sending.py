"""Op 1, send: check the requests that arrived together, and store them together (protocol section 2)."""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence

import msgspec

from chat_server.conf import ChatSettings
from chat_server.model.messages import Added, Message, MessageStore
from chat_server.service.blocks import Blocks
from chat_server.service.contact_limit import ContactLimit
from chat_server.service.frames import Request, match_id, split
from chat_server.service.live_groups import LiveGroup, LiveGroups
from chat_server.service.peers import Peer, Peers, check_from, no_such_group
from chat_server.service.registry import Socket
from chat_server.status import Reason, Refused, Status
from chat_server.utils.clock import Timeline
from chat_server.utils.errors import StoreUnavailable

log = logging.getLogger(__name__)

# Read once: before Python 3.12 each access to an enum's member is a call.
_FAILED = Status.SEND_FAILED
_AWAY = Refused(_FAILED, Reason.STORE_AWAY, "the store is away, send it again")
_USERS_AWAY = Refused(_FAILED, Reason.STORE_AWAY, "the store of users is away, send it again")
_YOU_BLOCKED = Refused(_FAILED, Reason.YOU_BLOCKED, "you block this user: unblock the user to write")
_ID_USED = Refused(_FAILED, Reason.ID_USED, "this id was used with another text")
_BAD_ID = Refused(_FAILED, Reason.BAD_ID, "the first line is no valid id: 1 to 64 of A-Z a-z 0-9 _ - . :, or empty")


class Sent(msgspec.Struct, gc=False):
    """A message that is stored, now or by an earlier request.

    `elsewhere`: how many other processes with a receiver that the sender sees as online have accepted the message.
    """

    message: Message
    added: Added
    elsewhere: int = 0


class Batch(msgspec.Struct, eq=False):
    """Requests of one socket that are sent together. `send` gives each its result, in order.

    `receivers` has the users and groups that the `to` of the requests name; None where a store must be asked. `direct`:
    the checks need no store, so the batch may share one call with other batches. `blocked_by`: the receivers who block
    the sender. `unblocked`: the receivers who had been refused by the contact limit before and may write to the sender
    again. `answered` is set once the batch is answered, if anything waits for it. `made_ids`: see `made_id`. `check`,
    with several processes, raises StoreUnavailable if the lease has ended since the batch was taken.
    """

    socket: Socket
    requests: Sequence[Request]
    receivers: dict[str, Peer | Refused | None]
    direct: bool
    results: Sequence[Sent | Refused] = ()
    blocked_by: Collection[str] = ()
    unblocked: Sequence[str] = ()
    answered: asyncio.Event | None = None
    made_ids: dict[int, str] = {}
    check: Callable[[], None] | None = None

    def made_id(self, request: Request) -> str:
        """The id that the server chose for a request without one: the same one if the batch is sent again."""
        return self.made_ids.setdefault(id(request), secrets.token_hex(12))


# Stores messages of a batch and returns their results, in order.
Store = Callable[[Batch, Sequence[Message]], Awaitable[list[Sent | Refused]]]


class Sending:
    """Checks and stores messages."""

    def __init__(
        self,
        config: ChatSettings,
        peers: Peers,
        groups: LiveGroups,
        blocks: Blocks,
        messages: MessageStore,
        limit: ContactLimit,
        timeline: Timeline,
    ) -> None:
        self._config = config
        self._peers = peers
        self._groups = groups
        self._blocks = blocks
        self._messages = messages
        self._limit = limit
        self._timeline = timeline
        self._in_progress: set[Batch] = set()  # checked, but not answered yet

    def batch(self, socket: Socket, requests: Sequence[Request]) -> Batch:
        """A batch of these requests of a socket, at least one."""
        receivers: dict[str, Peer | Refused | None] = {}
        user, now, direct = socket.user, self._timeline.now(), True
        for request in requests:
            if request.to not in receivers:
                receivers[request.to] = peer = self._peers.cached(socket, request.to)
                if type(peer) is LiveGroup:
                    direct = direct and user in peer.blocks
                elif peer is None or not (
                    self._blocks.none_between(user, peer) and self._limit.is_free(user, peer, now)
                ):
                    direct = False
        return Batch(socket, requests, receivers, direct)

    async def send(self, batches: Sequence[Batch]) -> None:
        """Check each request and store the messages, which are durable when it returns; set the results.

        A direct batch must come straight from `batch`, without waiting in between. Several must all be direct. Call
        `finish` for each batch once it is answered.
        """
        first = batches[0]
        if not first.direct:
            [batch] = batches
            await self._find_receivers(batch)
        self._in_progress.update(batches)
        # From here to the store nothing waits, so messages are stored in the order of their times.
        times = iter(self._timeline.take(sum([len(batch.requests) for batch in batches])))
        checked = [
            self._check(batch, request, time)
            for batch in batches
            for request, time in zip(batch.requests, times)  # noqa: B905 - the next batch goes on with `times`
        ]
        messages = [one for one in checked if type(one) is Message]
        store = self._store_free if first.direct else self._store_each
        results = await store(first, messages) if messages else []
        if len(results) < len(checked):
            stored = iter(results)
            results = [one if isinstance(one, Refused) else next(stored) for one in checked]
        start = 0
        for batch in batches:
            end = start + len(batch.requests)
            batch.results = results[start:end]
            start = end

    def finish(self, batch: Batch) -> None:
        """The batch is answered, and its messages are delivered."""
        self._in_progress.discard(batch)
        if batch.answered:
            batch.answered.set()

    async def settle(self, *users: str) -> None:
        """Wait until the batches of these users that were checked before the call are answered."""
        await self._wait([batch for batch in self._in_progress if batch.socket.user in users])

    async def settle_group(self, group: LiveGroup) -> None:
        """Wait until the batches with messages to the group that were checked before the call are answered."""
        await self._wait([batch for batch in self._in_progress if group in batch.receivers.values()])

    async def _wait(self, batches: Sequence[Batch]) -> None:
        events = []
        for batch in batches:
            batch.answered = batch.answered or asyncio.Event()
            events.append(batch.answered)
        for event in events:
            await event.wait()

    async def _find_receivers(self, batch: Batch) -> None:
        """Replace each receiver that cannot receive by the refusal, and find those who block the sender."""
        sender, receivers = batch.socket.user, batch.receivers
        for to in receivers:
            receivers[to] = await self._receiver(batch.socket, to)
        names = {receiver for receiver in receivers.values() if isinstance(receiver, str)}
        blocks = await self._blocks.states([pair for name in names for pair in ((sender, name), (name, sender))])
        for to, receiver in receivers.items():
            if receiver in names:
                states = blocks.get((sender, receiver)), blocks.get((receiver, sender))
                if states[0]:
                    receivers[to] = _YOU_BLOCKED
                elif None in states:
                    receivers[to] = _USERS_AWAY
        batch.blocked_by = {name for name in names if blocks.get((name, sender))}

    async def _receiver(self, socket: Socket, to: str) -> Peer | Refused:
        try:
            peer = await self._peers.find(socket, to, _FAILED)
            if isinstance(peer, LiveGroup):
                await self._groups.look_up_blocks(peer, socket.user)
            return peer
        except Refused as refused:
            return refused.with_traceback(None)  # which would keep the batch, in a cycle, until the next collection
        except StoreUnavailable:
            return _USERS_AWAY

    def _check(self, batch: Batch, request: Request, time: int) -> Message | Refused:
        """The message in a request, or why it is refused. The refusal is not raised, so it has no traceback."""
        sender, receiver = batch.socket.user, batch.receivers[request.to]
        if request.sender and request.sender != sender:
            try:
                check_from(batch.socket, request)
            except Refused as refused:
                return refused.with_traceback(None)
        if isinstance(receiver, str):
            name, group = receiver, 0
        elif type(receiver) is LiveGroup:
            if sender not in receiver.members:  # removed meanwhile
                return no_such_group(_FAILED)
            name, group = receiver.name, receiver.key.number
        else:
            return receiver or _AWAY
        id, text = split(request.content)
        if id and not match_id(id):
            return _BAD_ID
        if bad := check_text(text, self._config.max_text_bytes):
            return bad
        return Message(sender, name, id or batch.made_id(request), text, time, group=group)

    async def _store_each(self, batch: Batch, messages: Sequence[Message]) -> list[Sent | Refused]:
        """Store the messages of a batch that is not direct, each in its way.

        Those to groups come first: they must be stored in the order of their times, because read positions pass over
        everything that is older.
        """
        ways = [self._way(batch, message) for message in messages]
        results: dict[Store, Iterator[Sent | Refused]] = {}
        for way in (self._store_free, self._store_limited, self._find_retries):
            some = [message for message, its in zip(messages, ways, strict=True) if its == way]
            results[way] = iter(await way(batch, some) if some else [])
        return [next(results[way]) for way in ways]

    def _way(self, batch: Batch, message: Message) -> Store:
        if message.group:
            return self._store_free
        return self._find_retries if message.receiver in batch.blocked_by else self._store_limited

    async def _store_free(self, batch: Batch, messages: Sequence[Message]) -> list[Sent | Refused]:
        """Store messages without a contact limit."""
        try:
            stored = await self._limit.add_free(messages)
        except StoreUnavailable as away:
            return _not_stored(away, messages)
        return [Sent(one, added) if added.same else _ID_USED for one, added in zip(messages, stored, strict=True)]

    async def _store_limited(self, batch: Batch, messages: Sequence[Message]) -> list[Sent | Refused]:
        """Store the messages that the contact limit allows."""
        try:
            decided = list(zip(messages, await self._limit.add(messages), strict=True))
        except StoreUnavailable as away:
            return _not_stored(away, messages)
        _log_failures([outcome.added for _, outcome in decided if isinstance(outcome.added, StoreUnavailable)])
        batch.unblocked = [message.receiver for message, outcome in decided if outcome.unblocked]
        return [_result(message, outcome.added) for message, outcome in decided]

    async def _find_retries(self, batch: Batch, messages: Sequence[Message]) -> list[Sent | Refused]:
        """Of messages to users who block the sender, acknowledge the stored ones; refuse the others like the limit."""
        try:
            earlier = await self._messages.stored(messages)
        except StoreUnavailable as away:
            return _not_stored(away, messages)
        return [_result(message, added) for message, added in zip(messages, earlier, strict=True)]


def check_text(text: str, most: int) -> Refused | None:
    """Why a text cannot be sent, or None; it may have `most` bytes of UTF-8."""
    size = len(text)
    if not size:
        return Refused(_FAILED, Reason.EMPTY, "the text is empty")
    if size > most // 4 and (size > most or (not text.isascii() and len(text.encode()) > most)):
        return Refused(_FAILED, Reason.TOO_LONG, f"the text is over {most} bytes of UTF-8")
    return None


def _result(message: Message, added: Added | StoreUnavailable | None) -> Sent | Refused:
    if isinstance(added, Added):
        return Sent(message, added) if added.same else _ID_USED
    return _AWAY if added else Refused(Status.REFUSED_BY_LIMIT, Reason.REFUSED_BY_LIMIT, message.receiver)


def _not_stored(away: StoreUnavailable, messages: Sequence[Message]) -> list[Sent | Refused]:
    _log_failures([away] * len(messages))
    return [_AWAY] * len(messages)


def _log_failures(errors: Sequence[StoreUnavailable]) -> None:
    if errors:
        log.warning("messages not stored", extra={"why": str(errors[0]), "messages": len(errors)})
