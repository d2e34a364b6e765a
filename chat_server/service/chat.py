"""Class Chat: what the ops of a socket do (protocol section 2), one method each."""

import logging
import re
import secrets
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TypeVar

from chat_server.cache.counters import Rate, RateStore
from chat_server.conf import ChatSettings
from chat_server.model.messages import Conversation, Message, MessageKey, MessageStore
from chat_server.service.accounts import Accounts
from chat_server.service.frames import Frames, Request, given_id, is_id, split
from chat_server.service.memory import Friends, Recent, Relation
from chat_server.service.names import normal
from chat_server.service.registry import Receipt, Registry, Socket
from chat_server.service.sending import Outcome, SendStrategy
from chat_server.status import Reason, Refused, Status
from chat_server.utils.batch import Batcher
from chat_server.utils.clock import Timeline
from chat_server.utils.errors import StoreUnavailable
from chat_server.utils.locks import KeyedLock

log = logging.getLogger(__name__)

T = TypeVar("T", Message, Conversation)

LARGEST_PAGE = 200  # messages of a page, ids of a request
PIECE = 32768  # characters of a page that are kept for its reader at a time
LATEST = 2**62  # after every message's time, and more than there can be
DELIVERED = 16384  # recent deliveries that are remembered
PAIRS = 500  # pairs of friends that are asked for anew at a time
# Proofs of delivery that are stored together, at most: more than a batch of sends brings, or marks would fall behind.
MARKS = 8192
# They wait so many seconds for others: a mark for each message would be a transaction for each.
MARKED_AFTER = 0.05

Draft = tuple[str, str, str]  # a message's receiver, id and text

# In linear time: no two unbounded repetitions that could share a character stand next to each other.
_SKIP = re.compile(r"([0-9]+)-([0-9]{1,3})")
_NEWEST = re.compile(r"-([0-9]{1,3})(?:@(.+))?", re.DOTALL)
_AFTER = re.compile(r"\+([0-9]{1,3})@(.+)", re.DOTALL)
_COUNT = re.compile(r"[0-9]{1,3}")

# Looked up once: before Python 3.12 each look at an enum's member is a call.
_FAILED, _ONLINE, _OFFLINE = Status.SEND_FAILED, Status.RECEIVER_ONLINE, Status.RECEIVER_OFFLINE
_FREE, _UNKNOWN = Relation.FREE, Relation.UNKNOWN


class Chat:
    """One-to-one chat, history, marks, and messages to everybody. Methods raise Refused and StoreUnavailable.

    An op returns the status that it answered.
    """

    def __init__(
        self,
        config: ChatSettings,
        accounts: Accounts,
        messages: MessageStore,
        sending: SendStrategy,
        rates: RateStore,
        registry: Registry,
        frames: Frames,
        timeline: Timeline,
        friends: Friends,
    ) -> None:
        self._config = config
        self._accounts = accounts
        self._messages = messages
        self._send_strategy = sending
        self._rates = rates
        self._registry = registry
        self._frames = frames
        self._timeline = timeline
        self._friends = friends
        self._delivered = Recent(DELIVERED)
        # By user: however many sockets ask, one page is read at a time, and one request to mark or delete is worked on.
        self._reading, self._changing = KeyedLock(), KeyedLock()
        self._marks: Batcher[tuple[Socket, list[Receipt]], None] = Batcher(
            self._mark_together, most=MARKS, gather=MARKED_AFTER
        )

    # --- op 1

    async def store(self, socket: Socket, run: Sequence[Request]) -> Callable[[], list[Status]]:
        """Store a run of messages that arrived together; what it returns delivers them and answers each, in order."""
        receivers = {to: await self._receiver(socket, to) for to in {request.to for request in run}}
        drafts = [self._draft(socket, request, receivers[request.to]) for request in run]
        # Times are given at once for the whole run: nobody else's message may come in between and be stored first.
        messages = [
            Message(socket.user, *draft, self._timeline.next()) for draft in drafts if not isinstance(draft, Refused)
        ]
        outcomes = await self._store(messages)
        return partial(self._answer_run, socket, run, drafts, zip(messages, outcomes, strict=True))

    def _answer_run(
        self,
        socket: Socket,
        run: Sequence[Request],
        drafts: Sequence[Draft | Refused],
        stored: Iterator[tuple[Message, Outcome]],
    ) -> list[Status]:
        statuses = []
        for request, draft in zip(run, drafts, strict=True):
            result = draft if isinstance(draft, Refused) else self._sent(socket, *next(stored))
            if isinstance(result, Refused):
                socket.send(self._frames.refusal(socket.user, result, given_id(request.content)))
                result = result.status
            statuses.append(result)
        return statuses

    async def _receiver(self, socket: Socket, to: str) -> str | Refused:
        """To whom the frames with that `to` go, or why to nobody."""
        try:
            return await self._other(socket, to, _FAILED)
        except Refused as refused:
            return refused.with_traceback(None)
        except StoreUnavailable:
            return Refused(_FAILED, Reason.STORE_AWAY, "the store of users is away, send it again")

    def _draft(self, socket: Socket, request: Request, receiver: str | Refused) -> Draft | Refused:
        """The message, or why there is none."""
        try:
            self._check_from(socket, request)
            if isinstance(receiver, Refused):
                return receiver
            id, text = split(request.content)
            if id and not is_id(id):
                why = "the first line is no valid id: 1 to 64 of A-Z a-z 0-9 _ - . :, or empty"
                return Refused(_FAILED, Reason.BAD_ID, why)
            self._check_text(text)
        except Refused as refused:
            return refused.with_traceback(None)  # which would hold the run, in a cycle, until the next collection
        return receiver, id or secrets.token_hex(12), text

    async def _store(self, messages: Sequence[Message]) -> Sequence[Outcome]:
        if not messages:
            return []
        newest = {message.receiver: message for message in messages}
        talks = {to: self._friends.lookup(message.sender, to, message.time) for to, message in newest.items()}
        try:
            if min(talks.values()) is _FREE:
                return [Outcome(added, free=False) for added in await self._messages.add(messages)]
            known = [talks[message.receiver] is not _UNKNOWN for message in messages]
            outcomes = await self._send_strategy.add(messages, known)
        except StoreUnavailable as away:
            outcomes = [Outcome(away.with_traceback(None), free=False)] * len(messages)
        if errors := [outcome.added for outcome in outcomes if isinstance(outcome.added, StoreUnavailable)]:
            log.warning("messages not stored", extra={"why": str(errors[0]), "messages": len(errors)})
        return outcomes

    def _sent(self, socket: Socket, message: Message, outcome: Outcome) -> Status | Refused:
        """Deliver and acknowledge what was stored; or why it was not."""
        if outcome.unblocked:
            again = self._frames.answer(message.receiver, Status.ALLOWED_AGAIN, message.sender)
            for other in self._registry.sockets(message.receiver):
                other.send(again)
        added = outcome.added
        if isinstance(added, StoreUnavailable):
            return Refused(Status.SEND_FAILED, Reason.STORE_AWAY, "the store is away, send it again")
        if added is None:
            return Refused(Status.REFUSED_BY_LIMIT, Reason.REFUSED_BY_LIMIT, message.receiver)
        if not added.same:
            return Refused(Status.SEND_FAILED, Reason.ID_USED, "this id was used with another text")
        if outcome.free:
            self._friends.remember(message.sender, message.receiver, message.time)
        online = self._registry.online(message.receiver)
        if added.new or (added.unread and added.time not in self._delivered):
            self._deliver(socket, message, added.time)
        status = _ONLINE if online else _OFFLINE
        socket.send(self._frames.answer(socket.user, status, id=message.id, time=added.time))
        return status

    def _deliver(self, sender: Socket, message: Message, time: int) -> None:
        if time != message.time:  # a retry: what was stored first is the message
            message = Message(message.sender, message.receiver, message.id, message.text, time)
        frame = self._frames.live(message)
        if sockets := self._registry.sockets(message.receiver):
            receipt = Receipt(message.sender, message.id, time)
            for socket in sockets:
                socket.deliver(frame, receipt)
            self._delivered.add(time)
        for other in self._registry.sockets(message.sender):
            if other.sync and other is not sender:
                other.send(frame)

    # --- ops 2, 3 and 7

    async def history(self, socket: Socket, request: Request) -> Status:
        """Op 2: a page of the conversation."""
        failed = Status.HISTORY_FAILED
        peer = await self._peer(socket, request, failed)
        await self._marks.flush()
        me = socket.user
        async with self._reading.hold(me):
            page = await self._page(me, peer, request.content)
        until = page[-1].time if page else 0

        async def read_on(last: Message, most: int) -> list[Message]:
            page = await self._messages.after(me, peer, last.time, most)
            return [message for message in page if message.time <= until]

        came = await self._stream(socket, page, len(page), read_on, self._frames.stored)
        return self._answer(socket, Status.HISTORY, str(came))

    async def _page(self, me: str, peer: str, content: str) -> list[Message]:
        """The messages that `content` names (protocol section 2, op 2). Raises Refused."""
        failed = Status.HISTORY_FAILED
        if match := _SKIP.fullmatch(content):
            digits = match[1].lstrip("0") or "0"
            skip = int(digits) if len(digits) < 19 else LATEST
            return await self._messages.skip(me, peer, skip, _count(failed, match[2]))
        if match := _NEWEST.fullmatch(content):
            count = _count(failed, match[1])
            before = LATEST if match[2] is None else await self._place(me, peer, match[2])
            return await self._messages.before(me, peer, before, count)
        if match := _AFTER.fullmatch(content):
            count = _count(failed, match[1])
            return await self._messages.after(me, peer, await self._place(me, peer, match[2]), count)
        raise Refused(failed, Reason.BAD_PAGE, "content is S-N, -N, -N@ID or +N@ID, N from 1 to 200")

    async def unread(self, socket: Socket, request: Request) -> Status:
        """Op 3: every unread message from the peer, or the oldest N, streamed."""
        failed = Status.HISTORY_FAILED
        peer = await self._peer(socket, request, failed)
        left = _count(failed, request.content) if request.content else LATEST
        await self._marks.flush()
        until = self._timeline.next()

        async def read_on(last: Message | None, most: int) -> list[Message]:
            page = await self._messages.unread(peer, socket.user, last.time if last else 0, most)
            return [message for message in page if message.time < until]

        most = min(left, LARGEST_PAGE)
        async with self._reading.hold(socket.user):
            page = await read_on(None, most)
        came = await self._stream(socket, page, left if len(page) == most else len(page), read_on, self._frames.stored)
        return self._answer(socket, Status.HISTORY, str(came))

    async def conversations(self, socket: Socket, request: Request) -> Status:
        """Op 7: the user's conversations, the newest first."""
        failed = Status.CONVERSATIONS_FAILED
        self._check_from(socket, request)
        match = _NEWEST.fullmatch(request.content)
        if not match:
            raise Refused(failed, Reason.BAD_PAGE, "content is -N or -N@USER, N from 1 to 200")
        count = _count(failed, match[1])
        await self._marks.flush()
        before = LATEST
        if match[2] is not None:
            peer = normal(match[2])
            found = await self._messages.listed_at(socket.user, peer)
            if found is None:
                raise Refused(failed, Reason.NO_SUCH_USER, f"there is no conversation with {peer[:80]}")
            before = found

        async def read_on(last: Conversation, most: int) -> list[Conversation]:
            return await self._messages.conversations(socket.user, last.last.time, most)

        def encode(one: Conversation) -> bytes:
            return self._frames.conversation(one, self._registry.online(one.peer))

        async with self._reading.hold(socket.user):
            page = await self._messages.conversations(socket.user, before, count)
        came = await self._stream(socket, page, len(page), read_on, encode)
        return self._answer(socket, Status.CONVERSATIONS, str(came))

    async def _stream(
        self,
        socket: Socket,
        page: list[T],
        most: int,
        read_on: Callable[[T, int], Awaitable[list[T]]],
        encode: Callable[[T], bytes],
    ) -> int:
        """Send the page, and what `read_on` finds after it, at most `most` in all. Returns how many were sent.

        Of a page with more than PIECE characters only the beginning is kept until the reader has taken it; the rest
        is read again then. So a socket that is not read holds little memory, whatever it asked for.
        """
        sent = 0
        while page:
            piece = page[: _fitting(page)]
            page.clear()  # the caller has this list, too
            for one in piece:
                socket.send(encode(one))
                await socket.room()
            sent += len(piece)
            if sent < most:
                async with self._reading.hold(socket.user):
                    page = await read_on(piece[-1], min(most - sent, LARGEST_PAGE, 2 * len(piece)))
        return sent

    async def _place(self, me: str, peer: str, marker: str) -> int:
        """The time of the message that a page starts from."""
        [choices] = _names([marker], me, peer)
        if not choices:
            raise Refused(Status.HISTORY_FAILED, Reason.BAD_ID, f"no valid id: {marker[:80]}")
        for sender, id in choices:
            if (time := await self._messages.time_of(me, peer, sender, id)) is not None:
                return time
        raise Refused(Status.HISTORY_FAILED, Reason.NO_SUCH_MESSAGE, f"no such message: {marker}")

    # --- ops 4 and 5

    async def mark_read(self, socket: Socket, request: Request) -> Status:
        """Op 4: mark messages to me as read."""
        failed = Status.MARK_READ_FAILED
        peer = await self._peer(socket, request, failed)
        if request.content == "*":
            count = await self._mark_all(socket, peer)
            return self._answer(socket, Status.MARKED_READ, str(count))
        lines = _lines(failed, request.content)
        choices = _names(lines, socket.user, peer)
        # Only messages sent to me can be marked: of the names that a line may mean, those from the peer.
        ids = [next((id for sender, id in names if sender == peer), None) for names in choices]
        async with self._changing.hold(socket.user):
            found, changed = await self._messages.mark(peer, socket.user, [id for id in ids if id])
        self._notify(socket, peer, Status.MARKED_READ, changed)
        _refuse_missing(failed, [line for line, id in zip(lines, ids, strict=True) if id not in found])
        return self._answer(socket, Status.MARKED_READ, request.content)

    async def _mark_all(self, socket: Socket, peer: str) -> int:
        until, after, count = self._timeline.next(), 0, 0
        while True:
            page = await self._messages.unread(peer, socket.user, after, LARGEST_PAGE)
            page = [message for message in page if message.time < until]
            async with self._changing.hold(socket.user):
                _, changed = await self._messages.mark(peer, socket.user, [message.id for message in page])
            self._notify(socket, peer, Status.MARKED_READ, changed)
            count += len(changed)
            if len(page) < LARGEST_PAGE:
                return count
            after = page[-1].time

    async def delete(self, socket: Socket, request: Request) -> Status:
        """Op 5: delete messages of the conversation, for both."""
        failed = Status.DELETE_FAILED
        peer = await self._peer(socket, request, failed)
        lines = _lines(failed, request.content)
        async with self._changing.hold(socket.user):
            deleted = await self._messages.delete(socket.user, peer, _names(lines, socket.user, peer))
        notice = [f"{'>' if name[0] == socket.user else '<'}{name[1]}" for name in deleted if name]
        self._notify(socket, peer, Status.DELETED, notice)
        _refuse_missing(failed, [line for line, name in zip(lines, deleted, strict=True) if not name])
        return self._answer(socket, Status.DELETED, request.content)

    # --- op 6

    async def broadcast(self, socket: Socket, request: Request) -> Status:
        """Op 6: to everybody online, not stored."""
        self._check_from(socket, request)
        self._check_text(request.content)
        if limit := self._config.broadcasts_per_minute:
            rate = Rate(("broadcast", socket.user), limit, 60)
            if wait := await self._rates.take([rate]):
                why = f"more than {limit} messages to everybody in a minute; try again in {wait:.0f} s"
                raise Refused(Status.SEND_FAILED, Reason.TOO_MANY, why, retry_after=wait)
        frame = self._frames.broadcast(socket.user, request.content, self._timeline.next())
        reached = await self._registry.broadcast(socket, frame)
        return self._answer(socket, Status.SENT, str(reached))

    # --- proof of delivery

    def proven(self, socket: Socket, receipts: Iterable[Receipt]) -> None:
        """A socket of the receiver has provably got these messages: they become read."""
        fresh = [receipt for receipt in receipts if not receipt.proven]
        for receipt in fresh:
            receipt.proven = True
        if fresh:
            self._marks.submit((socket, fresh))

    async def flush(self) -> None:
        """Wait for the marks under way."""
        await self._marks.flush()

    async def refresh(self) -> None:
        """Forget what is remembered of users whom another process has disabled or removed."""
        await self._accounts.refresh()
        pairs = self._friends.pairs()
        for start in range(0, len(pairs), PAIRS):
            page = pairs[start : start + PAIRS]
            gone = await self._accounts.not_enabled({name for pair in page for name in pair})
            self._friends.forget(pair for pair in page if not gone.isdisjoint(pair))

    async def _mark_together(self, batch: list[tuple[Socket, list[Receipt]]]) -> list[None]:
        try:
            changed = await self._messages.mark_delivered([receipt.time for _, some in batch for receipt in some])
            for socket, receipts in batch:
                by_sender: dict[str, list[str]] = {}
                for receipt in receipts:
                    if receipt.time in changed:
                        by_sender.setdefault(receipt.sender, []).append(receipt.id)
                for sender, ids in by_sender.items():
                    self._notify(socket, sender, Status.MARKED_READ, ids)
        except StoreUnavailable as error:  # they stay unread, and op 3 has them again
            log.warning("deliveries not marked", extra={"why": str(error)})
        except Exception:  # nobody waits for the result, who could say so
            log.exception("marking failed", extra={"marks": len(batch)})
        return [None] * len(batch)

    # --- what several ops need

    def _answer(self, socket: Socket, status: Status, content: str) -> Status:
        socket.send(self._frames.answer(socket.user, status, content))
        return status

    def _check_from(self, socket: Socket, request: Request) -> None:
        if request.sender and request.sender != socket.user and normal(request.sender) != socket.user:
            why = "from is not the user of this socket"
            raise Refused(Status.SEND_FAILED, Reason.WRONG_FROM, why, field="from")

    async def _peer(self, socket: Socket, request: Request, failed: Status) -> str:
        """The other user of the conversation that a request is about. Raises Refused."""
        self._check_from(socket, request)
        return await self._other(socket, request.to, failed)

    async def _other(self, socket: Socket, to: str, failed: Status) -> str:
        """The user that `to` names, whom the socket's may write to. Raises Refused."""
        peer = normal(to or socket.peer)
        if self._accounts.is_cached(peer) and peer != socket.user:
            return peer
        if peer == socket.user:
            raise Refused(failed, Reason.TO_YOURSELF, "to is the user of this socket", field="to")
        if not await self._accounts.exists(peer, removed=failed is not Status.SEND_FAILED):
            why = f"no such user: {peer[:64]}" if peer else "to is empty, and so is the socket's to_uid"
            raise Refused(failed, Reason.NO_SUCH_USER, why, field="to")
        return peer

    def _check_text(self, text: str) -> None:
        if not text:
            raise Refused(Status.SEND_FAILED, Reason.EMPTY, "the text is empty")
        most = self._config.max_text_bytes
        if len(text) > most or (not text.isascii() and len(text.encode()) > most):
            raise Refused(Status.SEND_FAILED, Reason.TOO_LONG, f"the text is over {most} bytes of UTF-8")

    def _notify(self, by: Socket, other: str, status: Status, lines: list[str]) -> None:
        """Tell the sync sockets of both users what `by` did, but `by` itself."""
        hearers = [
            socket
            for user in (by.user, other)
            for socket in self._registry.sockets(user)
            if socket.sync and socket is not by
        ]
        for start in range(0, len(lines) if hearers else 0, LARGEST_PAGE):
            frame = self._frames.notice(by.user, other, status, lines[start : start + LARGEST_PAGE])
            for socket in hearers:
                socket.send(frame)


def _count(failed: Status, text: str) -> int:
    if not _COUNT.fullmatch(text) or not 1 <= int(text) <= LARGEST_PAGE:
        raise Refused(failed, Reason.BAD_PAGE, f"N is 1 to {LARGEST_PAGE}")
    return int(text)


def _fitting(page: Sequence[Message | Conversation]) -> int:
    """How many at the beginning of a page have PIECE characters together, at least one."""
    size = 0
    for number, one in enumerate(page):
        size += len((one.last if isinstance(one, Conversation) else one).text)
        if number and size > PIECE:
            return number
    return len(page)


def _lines(failed: Status, content: str) -> list[str]:
    lines = content.split("\n")
    if lines[-1] == "":
        lines.pop()
    if not lines:
        raise Refused(failed, Reason.EMPTY, "content is empty: name the message's id")
    if len(lines) > LARGEST_PAGE:
        raise Refused(failed, Reason.TOO_LONG, f"more than {LARGEST_PAGE} ids")
    return lines


def _names(lines: Sequence[str], me: str, peer: str) -> list[list[MessageKey]]:
    """Which messages each line may mean, in the order in which to look: `>ID` mine, `<ID` the peer's, `ID` either.

    A line that holds no valid id means none.
    """
    names = []
    for line in lines:
        senders = {">": [me], "<": [peer]}.get(line[:1], [me, peer])
        id = line[1:] if line[:1] in ("<", ">") else line
        names.append([(sender, id) for sender in senders] if is_id(id) else [])
    return names


def _refuse_missing(failed: Status, missing: Sequence[str]) -> None:
    if missing:
        named = ", ".join(line[:80] for line in missing)
        if all(is_id(line.removeprefix(">").removeprefix("<")) for line in missing):
            raise Refused(failed, Reason.NO_SUCH_MESSAGE, f"no such message: {named}")
        raise Refused(failed, Reason.BAD_ID, f"no such message, or no valid id: {named}")
