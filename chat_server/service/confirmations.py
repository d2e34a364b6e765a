"""Marks for deliveries that a pong confirmed (protocol section 3, promise 2)."""

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from operator import attrgetter

from chat_server.model.messages import Confirmed, MessageStore
from chat_server.service.live_groups import LiveGroup
from chat_server.service.notices import Notices
from chat_server.service.registry import Delivery, Socket
from chat_server.utils.errors import StoreUnavailable

log = logging.getLogger(__name__)

# Confirmed deliveries wait for others, in seconds: a transaction for each would cost as much as one for each message.
MARK_DELAY = 0.05
# Sockets with confirmed deliveries per call to the store. Fewer than a batch of messages brings would fall behind.
MARKED_SOCKETS = 8192
# Groups whose read positions move at the same time: they share transactions, and ops 2, 3 and 7 wait for all of them.
GROUPS_AT_ONCE = 64
# Confirmed deliveries that are kept for a member because an earlier one is not confirmed yet, and such members: 16 MiB.
MAX_UNUSED, MAX_UNUSED_MEMBERS = 32, 4096

Confirmation = tuple[Socket, list[Delivery]]

_GROUP = attrgetter("group")


class Confirmations:
    """Marks confirmed messages as read, and moves read positions in groups, a short time later and together.

    `out_of_order`: a message of a group may arrive after a later one, because several processes store them.
    """

    def __init__(self, messages: MessageStore, notices: Notices, *, out_of_order: bool = False) -> None:
        self._messages = messages
        self._notices = notices
        self._out_of_order = out_of_order
        self._unused: dict[tuple[int, str], list[Delivery]] = {}  # confirmed, by group and member; the oldest first
        self._confirmed: list[Confirmation] = []  # not stored yet
        self._taken = self._done = 0  # entries of `_confirmed` so far, and those that were stored or failed
        self._timer: asyncio.TimerHandle | None = None
        self._storing: asyncio.Task[None] | None = None

    def confirm(self, socket: Socket, deliveries: Iterable[Delivery]) -> None:
        """A pong proved that these messages arrived: mark them as read soon."""
        fresh = [delivery for delivery in deliveries if not delivery.confirmed]
        for delivery in fresh:
            delivery.confirmed = delivery.group is None
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
        self._storing = asyncio.create_task(self._store())
        return self._storing

    async def _store(self) -> None:
        batch, self._confirmed = self._confirmed[:MARKED_SOCKETS], self._confirmed[MARKED_SOCKETS:]
        try:
            for mark in (self._mark, self._move_positions):
                try:
                    await mark(batch)
                except StoreUnavailable as error:  # the messages stay unread: op 3 returns them again
                    log.warning("deliveries not marked", extra={"why": str(error)})
        except Exception:  # no caller awaits the result
            log.exception("marking failed", extra={"marks": len(batch)})
        finally:
            self._storing = None
            self._done += len(batch)
            if self._confirmed:
                self._timer = asyncio.get_running_loop().call_later(MARK_DELAY, self._start)

    async def _mark(self, batch: Sequence[Confirmation]) -> None:
        """Mark the messages between two users."""
        times = [delivery.time for _, some in batch for delivery in some if not delivery.group]
        if not times:
            return
        changed = await self._messages.mark_delivered(times)
        reads = []
        for socket, deliveries in batch:
            by_sender: dict[str, list[str]] = {}
            for delivery in deliveries:
                if delivery.time in changed:
                    by_sender.setdefault(delivery.sender, []).append(delivery.id)
            reads += [(socket, sender, ids) for sender, ids in by_sender.items()]
        await self._notices.read(reads)

    async def _move_positions(self, batch: Sequence[Confirmation]) -> None:
        """Move the read positions of the members of groups."""
        groups: dict[LiveGroup, dict[str, list[Confirmation]]] = {}
        for socket, deliveries in batch:
            for group, received in groupby(deliveries, _GROUP):
                if group:
                    groups.setdefault(group, {}).setdefault(socket.user, []).append((socket, list(received)))
        confirmed = list(groups.items())
        for start in range(0, len(confirmed), GROUPS_AT_ONCE):
            moves = [self._advance(*one) for one in confirmed[start : start + GROUPS_AT_ONCE]]
            for error in await asyncio.gather(*moves, return_exceptions=True):
                if error:
                    raise error

    async def _advance(self, group: LiveGroup, users: Mapping[str, Sequence[Confirmation]]) -> None:
        """Move the read positions of these members of a group."""
        number = group.key.number
        if self._unused:
            users = {user: [(some[-1][0], self._unused.pop((number, user), [])), *some] for user, some in users.items()}
        confirmed = {
            user: Confirmed(since, sorted([delivery.time for _, received in some for delivery in received]))
            for user, some in users.items()
            if (since := group.members.get(user)) is not None
        }
        reached = await self._messages.advance(number, confirmed) if confirmed else {}
        if self._out_of_order:
            for user in confirmed:
                self._keep((number, user), users[user], reached.get(user, 0))
        for user, time in reached.items():
            if group.members.get(user) != confirmed[user].since:  # removed meanwhile
                continue
            newest_first = ((socket, one) for socket, some in users[user][::-1] for one in some[::-1])
            socket, delivery = next(entry for entry in newest_first if entry[1].time == time)
            self._notices.position(socket, group, delivery.sender, delivery.id)

    def _keep(self, key: tuple[int, str], confirmed: Sequence[Confirmation], position: int) -> None:
        """Keep the newest deliveries after a position for the next confirmation, without their group."""
        later = [Delivery(one.sender, one.id, one.time) for _, some in confirmed for one in some if one.time > position]
        if later:
            self._unused[key] = later[-MAX_UNUSED:]
        if len(self._unused) > MAX_UNUSED_MEMBERS:
            del self._unused[next(iter(self._unused))]
