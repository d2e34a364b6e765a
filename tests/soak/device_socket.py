"""One open socket of a soak test: its requests, their answers, and events. Every received frame is checked."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count

from tests import raw
from tests.harness import Frame
from tests.soak.ledger import Ledger, SentMessage

# The close codes for a client that breaks no rule: shutdown, and reading too slowly.
ALLOWED_CODES = (1001, 1013)
MAX_BATCH = 64  # messages in one write
_NUMBERS = count(1)  # of sockets


class DeviceSocket:
    """A socket of `user` on `device`. Raises raw.ConnectionCut and ConnectionError when it has ended.

    `outbox` contains unacknowledged messages, `received` messages to this user. Both belong to the device and outlive
    the socket. A socket with `mute` answers no ping.
    """

    def __init__(
        self,
        ledger: Ledger,
        socket: raw.RawSocket,
        device: str,
        outbox: dict[SentMessage, None],
        received: deque[SentMessage],
        *,
        sync: bool,
        mute: bool,
    ) -> None:
        self.socket = socket
        self._user = socket.user
        self._ledger = ledger
        self._device = device
        self._outbox = outbox
        self._received = received
        self._sync = sync
        self._mute = mute
        self._waiting: deque[Callable[[Frame], object]] = deque(
            [partial(self._expect, 40003)]
        )  # one callback per unanswered request, in order
        self._asked: set[SentMessage] = set()  # sent on this socket
        self._pinged = False
        self._page: list[Frame] = []  # the received part of an unfinished page
        self._unconfirmed: list[SentMessage] = []  # received after the last pong
        self._confirmed: list[SentMessage] = []  # a pong was sent, but no later request was answered yet
        self._latest: dict[
            tuple[str, int, str], int
        ] = {}  # by sending device, its socket, and receiver: the last number
        self._opened = time.time() * 1000
        self._number = next(_NUMBERS)
        self._left: set[str] = set()  # groups that 42011 has ended for this user

    # --- requests

    async def send(self, messages: Sequence[SentMessage]) -> None:
        """Op 1."""
        for start in range(0, len(messages), MAX_BATCH):
            batch = messages[start : start + MAX_BATCH]
            for message in batch:
                message.tries += 1
                message.socket = self._number
                self._asked.add(message)
                self._waiting.append(partial(self._sent, message))
            await self.socket.write(b"".join(raw.request(1, message.content, to=message.receiver) for message in batch))

    async def page(self, peer: str, op_type: int, content: str) -> None:
        """Op 2 or 3."""
        await self._ask(partial(self._paged, peer, self._confirmed), op_type, content, peer)
        self._confirmed = []

    async def conversations(self) -> None:
        """Op 7."""
        await self._ask(partial(self._conversations_listed, self._confirmed), 7, "-20")
        self._confirmed = []

    async def mark(self, peer: str, messages: Sequence[SentMessage]) -> None:
        """Op 4."""
        for message in messages:
            if message.group:
                message.group.asked[self._user].add(message)
            else:
                message.may_be_read = True
        lines = [f"{message.id}/{message.sender}" if message.group else message.id for message in messages]
        await self._ask(partial(self._marked, messages), 4, "\n".join(lines), peer)

    async def delete(self, peer: str, messages: Sequence[SentMessage]) -> None:
        """Op 5."""
        for message in messages:
            message.may_be_deleted = True
        lines = [f"{'>' if message.sender == self._user else '<'}{message.id}" for message in messages]
        await self._ask(partial(self._deleted, messages), 5, "\n".join(lines), peer)

    async def broadcast(self, text: str) -> None:
        """Op 6."""
        await self._ask(partial(self._expect, 40009), 6, text)

    async def typing(self, peer: str, content: str) -> None:
        """Op 8, which has no answer."""
        await self.socket.put(8, content, to=peer)

    async def _ask(self, answered: Callable[[Frame], object], op_type: int, content: str, to: str = "") -> None:
        self._waiting.append(answered)
        await self.socket.put(op_type, content, to=to)

    # --- received frames

    async def read_answers(self) -> None:
        """Read until every request is answered. Raises TimeoutError."""
        while self._waiting:
            await self.read()

    async def read_sent(self) -> None:
        """Read everything that the server has sent so far."""
        self._pinged = True
        await self.socket.write(raw.frame(b"", raw.PING))
        while self._pinged:
            await self.read()

    async def read(self) -> None:
        """Read one frame."""
        read = await self.socket.read()
        if read.opcode == raw.PONG:
            self._pinged = False
        elif read.opcode == raw.PING:
            if not self._mute:
                await self._pong(read.payload)
        elif read.opcode == raw.TEXT:
            self._handle(self.socket.json(read))
        else:
            code = int.from_bytes(read.payload[:2], "big")
            if code not in ALLOWED_CODES:
                self._fault(f"was closed with {code}")
            raise raw.ConnectionCut(str(code))

    async def _pong(self, payload: bytes) -> None:
        if not self._sync:
            for message in self._unconfirmed:
                if message.group:
                    message.group.confirmed[self._user].add(message)
                else:
                    message.may_be_read = True
        await self.socket.write(raw.frame(payload, raw.PONG))
        if not self._sync:
            self._confirmed += [message for message in self._unconfirmed if not message.group]
        self._unconfirmed = []

    def _handle(self, frame: Frame) -> None:
        kind = frame["type"], frame["op_type"]
        if frame["op_type"] == 42011:
            self._changed(frame)
        elif frame["to"] in self._left:
            self._fault(f"received a frame of a group that the user has left: {frame}")
        elif frame["from"] == "System":
            if frame["op_type"] == 40021 or (frame["op_type"] == 40027 and self._sync):
                return
            if frame["op_type"] == 40024 and frame["reason"] in ("no_such_group", "store_away"):
                return  # typing has no answer, except these refusals: of a guest, and by a process without its lease
            if not self._waiting:
                self._fault(f"received an answer without a request: {frame}")
                return
            self._waiting.popleft()(frame)
        elif kind == (1, 40011):
            self._live(frame)
        elif kind in ((2, 40005), (2, 40023)):
            self._page.append(frame)
        elif kind in ((2, 40007), (2, 40013)) and self._sync:
            self._notice(frame)
        elif kind == (1, 40025) and self._sync and (frame["to"] == self._user or frame["to"] in self._ledger.groups):
            self._ledger.counts["typing"] += 1
            self._expect_not_blocked({**frame, "to": self._user})
        else:
            self._fault(f"received an unexpected frame: {frame}")

    def _live(self, frame: Frame) -> None:
        self._ledger.counts["delivered"] += 1
        if frame["to"] == "ALL":
            return
        message = self._ledger.check_received(self._user, frame)
        if message is None:
            return
        self._expect_not_blocked(frame)
        if message.sender != self._user:
            self._unconfirmed.append(message)
            self._received.append(message)
            if message.tries == 1 and not self._may_be_late(frame):  # a retry may be delivered after later messages
                source = message.device, message.socket if self._ledger.gaps else 0, message.receiver
                if self._latest.get(source, 0) > message.number:
                    self._fault(f"received {message} after a later message")
                self._latest[source] = max(message.number, self._latest.get(source, 0))
        elif not self._sync or (message in self._asked and message.tries == 1):
            self._fault(f"received its own message, {message}")

    def _may_be_late(self, frame: Frame) -> bool:
        """Whether a process that reads again after a gap may deliver this message: op 3 is there for it."""
        return self._ledger.gaps and frame["time"] < self._opened

    def _expect_not_blocked(self, frame: Frame) -> None:
        """Live frames of a user whom another user blocks from the start never arrive."""
        if (frame["to"], frame["from"]) in self._ledger.blocks:
            self._fault(f"received a frame of a blocked user: {frame}")

    def _changed(self, frame: Frame) -> None:
        """Members of a group have changed."""
        group = self._ledger.groups.get(frame["to"])
        if group is None or not self._sync or self._user not in (*group.members, *group.guests):
            self._fault(f"received a change of a group of others: {frame}")
            return
        self._ledger.counts["changes of groups"] += 1
        for line in frame["content"].split("\n"):
            if line == f"-{self._user}":
                self._left.add(group.name)
            elif line == f"+{self._user}":
                self._left.discard(group.name)

    def _moved(self, frame: Frame) -> None:
        """Another device of this user moved its read position in a group."""
        group = self._ledger.groups[frame["to"]]
        id, _, sender = frame["content"].partition("/")
        message = self._ledger.sent.get((sender, group.name, id))
        seen = group.asked[self._user] | group.confirmed[self._user]
        if frame["op_type"] != 40007 or frame["from"] != self._user or message not in seen:
            self._fault(f"received a notice that no client caused: {frame}")

    def _notice(self, frame: Frame) -> None:
        """Another device of this user, or one of the peer, marked or deleted messages."""
        by, other = frame["from"], frame["to"]
        if other in self._ledger.groups:
            self._moved(frame)
            return
        if self._user not in (by, other):
            self._fault(f"received a notice for other users: {frame}")
        for line in frame["content"].split("\n"):
            if frame["op_type"] == 40007:
                message = self._ledger.sent.get((other, by, line))
                known = message is not None and message.may_be_read
            else:
                names = {">": (by, other), "<": (other, by)}
                message = self._ledger.sent.get((*names[line[0]], line[1:]))
                known = message is not None and message.may_be_deleted
            if not known:
                self._fault(f"received a notice about {line} that no client caused: {frame}")

    # --- answers

    def _expect(self, code: int, frame: Frame) -> bool:
        """Return whether this is the expected answer. The only other allowed one is `store_away`, unless `steady`."""
        if frame["op_type"] == code:
            return True
        if frame.get("reason") != "store_away" or self._ledger.steady:
            self._fault(f"expected {code}, got {frame}")
        self._ledger.counts["refused"] += 1
        return False

    def _sent(self, message: SentMessage, frame: Frame) -> None:
        if frame.get("id") != message.id:
            self._fault(f"expected the answer to {message}, got {frame}")
        elif frame["op_type"] in (40018, 40019):
            self._ledger.acknowledge(message, frame["time"])
            del self._outbox[message]
        elif self._is_refused_by_block(message, frame):
            message.refused = True
            self._ledger.counts["refused by a block"] += 1
            del self._outbox[message]
        elif self._is_no_member(message.receiver, frame):  # an earlier try may be stored
            message.refused = message.tries == 1
            self._ledger.counts["refused in a group"] += 1
            del self._outbox[message]
        elif frame["op_type"] == 40020 and message.limited:
            message.refused = True
            self._ledger.counts["refused by the limit"] += 1
            del self._outbox[message]
        else:
            self._expect(40018, frame)

    def _is_refused_by_block(self, message: SentMessage, frame: Frame) -> bool:
        if frame["op_type"] == 40020:
            return (message.receiver, message.sender) in self._ledger.blocks
        return frame.get("reason") == "you_blocked" and (message.sender, message.receiver) in self._ledger.blocks

    def _is_no_member(self, name: str, frame: Frame) -> bool:
        """Whether this refuses a guest of a group."""
        group = self._ledger.groups.get(name)
        return frame.get("reason") == "no_such_group" and group is not None and self._user in group.guests

    def _paged(self, peer: str, confirmed: Sequence[SentMessage], frame: Frame) -> None:
        page, self._page = self._page, []
        if self._is_no_member(peer, frame) or not self._expect(40005, frame):
            return
        if frame["content"] != str(len(page)):
            self._fault(f"a page of {len(page)} messages, counted as {frame['content']}")
        if [one["time"] for one in page] != sorted(one["time"] for one in page):
            self._fault("a page out of order")
        for one in page:
            self._ledger.check_stored(self._user, one)
            if peer not in (one["from"], one["to"]):
                self._fault(f"a page with {peer} has {one}")
        self._mark_confirmed(confirmed)

    def _conversations_listed(self, confirmed: Sequence[SentMessage], frame: Frame) -> None:
        page, self._page = self._page, []
        if self._expect(40023, frame):
            for one in page:
                if "id" in one:  # not a group without messages
                    self._ledger.check_stored(self._user, one)
            self._mark_confirmed(confirmed)

    def _mark_confirmed(self, confirmed: Sequence[SentMessage]) -> None:
        """A page waits for earlier confirmations to be stored. Only a store that is away may lose them."""
        if self._ledger.steady:
            self._set_read(confirmed)

    def _marked(self, messages: Sequence[SentMessage], frame: Frame) -> None:
        group = messages[0].group
        if group and self._user in group.guests and frame.get("reason") in ("no_such_group", "no_such_message"):
            return  # it has left since, or joined again
        if frame.get("reason") == "no_such_message":  # another client deleted the messages that it names
            missing = frame["content"].removeprefix("no such message: ").split(", ")
            for message in messages:
                if not message.may_be_deleted and message.id in missing:
                    self._fault(f"{message} is missing, and cannot be marked")
        elif not self._expect(40007, frame):
            return
        elif group:
            group.marked[self._user].update(messages)
        else:
            self._set_read(messages)

    def _deleted(self, messages: Sequence[SentMessage], frame: Frame) -> None:
        if frame.get("reason") != "no_such_message" and not self._expect(40013, frame):
            return
        for message in messages:  # including missing ones, which another client deleted first
            message.deleted = True

    def _set_read(self, messages: Sequence[SentMessage]) -> None:
        for message in messages:
            message.read = True

    def _fault(self, why: str) -> None:
        self._ledger.fault(f"{self._device} {why}")
