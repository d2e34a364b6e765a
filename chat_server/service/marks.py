"""Ops 4 and 5, mark as read and delete; and marks for deliveries that a pong confirmed (protocol sections 2 and 3)."""

import asyncio
import logging
from collections.abc import Iterable, Sequence

from chat_server.model.messages import MessageKey, MessageStore, Pair
from chat_server.service.answers import Answer
from chat_server.service.blocks import Blocks
from chat_server.service.frames import Frames, Request, is_id
from chat_server.service.peers import Peers
from chat_server.service.registry import Delivery, Registry, Socket
from chat_server.status import Reason, Refused, Status
from chat_server.utils.clock import Timeline
from chat_server.utils.errors import StoreUnavailable
from chat_server.utils.locks import KeyedLock

log = logging.getLogger(__name__)

MAX_PAGE = 200  # messages of a page, and ids of a request or of a notice (protocol section 2)
# Confirmed deliveries wait for others, in seconds: a transaction for each would cost as much as one for each message.
MARK_DELAY = 0.05
# Sockets with confirmed deliveries per call to the store. Fewer than a batch of messages brings would fall behind.
MARKED_SOCKETS = 8192


class Marks:
    """Marks messages as read and deletes them. The ops raise Refused, StoreUnavailable."""

    def __init__(
        self,
        peers: Peers,
        blocks: Blocks,
        messages: MessageStore,
        registry: Registry,
        frames: Frames,
        timeline: Timeline,
    ) -> None:
        self._peers = peers
        self._blocks = blocks
        self._messages = messages
        self._registry = registry
        self._frames = frames
        self._timeline = timeline
        self._change_lock = KeyedLock()  # by user: one request is worked on at a time, however many sockets ask
        self._confirmed: list[tuple[Socket, list[Delivery]]] = []  # not stored yet
        self._taken = self._done = 0  # entries of `_confirmed` so far, and those that were stored or failed
        self._timer: asyncio.TimerHandle | None = None
        self._storing: asyncio.Task[None] | None = None

    def confirm(self, socket: Socket, deliveries: Iterable[Delivery]) -> None:
        """A pong proved that these messages arrived: mark them as read soon."""
        fresh = [delivery for delivery in deliveries if not delivery.confirmed]
        for delivery in fresh:
            delivery.confirmed = True
        if fresh:
            self._confirmed.append((socket, fresh))
            self._taken += 1
            if self._timer is None and self._storing is None:
                self._timer = asyncio.get_running_loop().call_later(MARK_DELAY, self._start)

    async def flush(self) -> None:
        """Store the marks of all deliveries confirmed so far."""
        target = self._taken
        while self._done < target:
            await asyncio.wait((self._storing or self._start(),))

    def _start(self) -> asyncio.Task[None]:
        if self._timer:
            self._timer.cancel()
            self._timer = None
        self._storing = asyncio.create_task(self._store_confirmed())
        return self._storing

    async def _store_confirmed(self) -> None:
        batch, self._confirmed = self._confirmed[:MARKED_SOCKETS], self._confirmed[MARKED_SOCKETS:]
        try:
            changed = await self._messages.mark_delivered([delivery.time for _, some in batch for delivery in some])
            reads = []
            for socket, deliveries in batch:
                by_sender: dict[str, list[str]] = {}
                for delivery in deliveries:
                    if delivery.time in changed:
                        by_sender.setdefault(delivery.sender, []).append(delivery.id)
                reads += [(socket, sender, ids) for sender, ids in by_sender.items()]
            await self._notify_read(reads)
        except StoreUnavailable as error:  # the messages stay unread: op 3 returns them again
            log.warning("deliveries not marked", extra={"why": str(error)})
        except Exception:  # no caller awaits the result
            log.exception("marking failed", extra={"marks": len(batch)})
        finally:
            self._storing = None
            self._done += len(batch)
            if self._confirmed:
                self._timer = asyncio.get_running_loop().call_later(MARK_DELAY, self._start)

    async def mark_read(self, socket: Socket, request: Request) -> Answer:
        """Op 4: mark messages to me as read."""
        failed = Status.MARK_READ_FAILED
        peer = await self._peers.of(socket, request, failed)
        if request.content == "*":
            count = await self._mark_all(socket, peer)
            return Answer(Status.MARKED_READ, str(count))
        lines = _lines(failed, request.content)
        choices = names_of(lines, socket.user, peer)
        # Only messages sent to me can be marked: of the names that a line may mean, those from the peer.
        ids = [next((id for sender, id in names if sender == peer), None) for names in choices]
        async with self._change_lock.hold(socket.user):
            found, changed = await self._messages.mark(peer, socket.user, [id for id in ids if id])
        await self._notify_read([(socket, peer, changed)])
        _refuse_missing(failed, [line for line, id in zip(lines, ids, strict=True) if id not in found])
        return Answer(Status.MARKED_READ, request.content)

    async def _mark_all(self, socket: Socket, peer: str) -> int:
        until, after, count = self._timeline.next(), 0, 0
        while True:
            page = await self._messages.unread(peer, socket.user, after, MAX_PAGE)
            page = [message for message in page if message.time < until]
            async with self._change_lock.hold(socket.user):
                _, changed = await self._messages.mark(peer, socket.user, [message.id for message in page])
            await self._notify_read([(socket, peer, changed)])
            count += len(changed)
            if len(page) < MAX_PAGE:
                return count
            after = page[-1].time

    async def delete(self, socket: Socket, request: Request) -> Answer:
        """Op 5: delete messages of the conversation, for both."""
        failed = Status.DELETE_FAILED
        peer = await self._peers.of(socket, request, failed)
        lines = _lines(failed, request.content)
        async with self._change_lock.hold(socket.user):
            deleted = await self._messages.delete(Pair(socket.user, peer), names_of(lines, socket.user, peer))
        notice = [f"{'>' if name[0] == socket.user else '<'}{name[1]}" for name in deleted if name]
        self._notify(socket, (socket.user, peer), peer, Status.DELETED, notice)
        _refuse_missing(failed, [line for line, name in zip(lines, deleted, strict=True) if not name])
        return Answer(Status.DELETED, request.content)

    async def _notify_read(self, reads: Sequence[tuple[Socket, str, list[str]]]) -> None:
        """Tell sync sockets which messages (ids) of an author each socket has read, but no author whom it blocks."""
        listeners = self._registry.sync_sockets
        blocks = [(by.user, author) for by, author, ids in reads if ids and listeners(author, without=by)]
        blocked = await self._blocks.states(blocks) if blocks else {}
        for by, author, ids in reads:
            users = (by.user, author) if blocked.get((by.user, author)) is False else (by.user,)
            self._notify(by, users, author, Status.MARKED_READ, ids)

    def _notify(self, by: Socket, users: Sequence[str], other: str, status: Status, lines: list[str]) -> None:
        """Tell the other sync sockets of `users` what the socket `by` did to the conversation with `other`."""
        listeners = [socket for user in users for socket in self._registry.sync_sockets(user, without=by)]
        for start in range(0, len(lines) if listeners else 0, MAX_PAGE):
            frame = self._frames.notice(by.user, other, status, lines[start : start + MAX_PAGE])
            for socket in listeners:
                socket.send(frame)


def names_of(lines: Sequence[str], me: str, peer: str) -> list[list[MessageKey]]:
    """The messages that each line may name, in the order of search: `>ID` mine, `<ID` the peer's, `ID` either.

    A line without a valid id names none.
    """
    names = []
    for line in lines:
        senders = {">": [me], "<": [peer]}.get(line[:1], [me, peer])
        id = line[1:] if line[:1] in ("<", ">") else line
        names.append([(sender, id) for sender in senders] if is_id(id) else [])
    return names


def _lines(failed: Status, content: str) -> list[str]:
    lines = content.split("\n")
    if lines[-1] == "":
        lines.pop()
    if not lines:
        raise Refused(failed, Reason.EMPTY, "content is empty: name the message's id")
    if len(lines) > MAX_PAGE:
        raise Refused(failed, Reason.TOO_LONG, f"more than {MAX_PAGE} ids")
    return lines


def _refuse_missing(failed: Status, missing: Sequence[str]) -> None:
    if missing:
        named = ", ".join(line[:80] for line in missing)
        if all(is_id(line.removeprefix(">").removeprefix("<")) for line in missing):
            raise Refused(failed, Reason.NO_SUCH_MESSAGE, f"no such message: {named}")
        raise Refused(failed, Reason.BAD_ID, f"no such message, or no valid id: {named}")
