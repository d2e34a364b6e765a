"""One open socket of a soak: what it asks, what it is answered, and what comes by itself. All of it is looked at."""

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from tests import raw
from tests.harness import Frame
from tests.soak.ledger import Ledger, Said

# How the server ends a connection that did nothing wrong: it stops, or this peer has not read for too long.
POLITE = (1001, 1013)
RUN = 64  # messages in one write


class Session:
    """A socket of `user` on `device`. Raises raw.Cut and ConnectionError when it has ended.

    `outbox`: what is not acknowledged yet. `got`: what came. Both belong to the device and outlive the socket.
    `mute`: it answers no ping.
    """

    def __init__(
        self,
        ledger: Ledger,
        socket: raw.RawSocket,
        device: str,
        outbox: dict[Said, None],
        got: deque[Said],
        *,
        sync: bool,
        mute: bool,
    ) -> None:
        self.socket = socket
        self._user = socket.user
        self._ledger = ledger
        self._device = device
        self._outbox = outbox
        self._got = got
        self._sync = sync
        self._mute = mute
        self._waiting: deque[Callable[[Frame], object]] = deque([partial(self._expect, 40003)])  # for answers, in order
        self._asked: set[Said] = set()  # sent here
        self._pinged = False
        self._page: list[Frame] = []  # came, its end did not
        self._unproven: list[Said] = []  # came, no pong was sent since
        self._proven: list[Said] = []  # a pong was sent, no request was answered since
        self._latest: dict[str, int] = {}  # for each device: the number of what came last

    # --- requests

    async def send(self, messages: Sequence[Said]) -> None:
        """Op 1."""
        for start in range(0, len(messages), RUN):
            run = messages[start : start + RUN]
            for said in run:
                said.tries += 1
                self._asked.add(said)
                self._waiting.append(partial(self._sent, said))
            await self.socket.write(b"".join(raw.request(1, said.content, to=said.receiver) for said in run))

    async def page(self, peer: str, op_type: int, content: str) -> None:
        """Op 2 or 3."""
        await self._ask(partial(self._paged, peer, self._proven), op_type, content, peer)
        self._proven = []

    async def conversations(self) -> None:
        """Op 7."""
        await self._ask(partial(self._listed, self._proven), 7, "-20")
        self._proven = []

    async def mark(self, peer: str, messages: Sequence[Said]) -> None:
        """Op 4."""
        for said in messages:
            said.may_be_read = True
        await self._ask(partial(self._marked, messages), 4, "\n".join(said.id for said in messages), peer)

    async def delete(self, peer: str, messages: Sequence[Said]) -> None:
        """Op 5."""
        for said in messages:
            said.may_be_gone = True
        lines = [f"{'>' if said.sender == self._user else '<'}{said.id}" for said in messages]
        await self._ask(partial(self._deleted, messages), 5, "\n".join(lines), peer)

    async def broadcast(self, text: str) -> None:
        """Op 6."""
        await self._ask(partial(self._expect, 40009), 6, text)

    async def _ask(self, answered: Callable[[Frame], object], op_type: int, content: str, to: str = "") -> None:
        self._waiting.append(answered)
        await self.socket.put(op_type, content, to=to)

    # --- what comes

    async def answers(self) -> None:
        """Read until everything is answered. Raises TimeoutError if that takes too long."""
        while self._waiting:
            await self.read()

    async def listen(self) -> None:
        """Read what has come."""
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
            self._heard(self.socket.json(read))
        else:
            code = int.from_bytes(read.payload[:2], "big")
            if code not in POLITE:
                self._blame(f"was closed with {code}")
            raise raw.ConnectionCut(str(code))

    async def _pong(self, payload: bytes) -> None:
        if not self._sync:
            for said in self._unproven:
                said.may_be_read = True
        await self.socket.write(raw.frame(payload, raw.PONG))
        if not self._sync:
            self._proven += self._unproven
        self._unproven = []

    def _heard(self, frame: Frame) -> None:
        kind = frame["type"], frame["op_type"]
        if frame["from"] == "System":
            if frame["op_type"] == 40021 or (frame["op_type"] == 40027 and self._sync):
                return
            if not self._waiting:
                self._blame(f"got an answer to nothing: {frame}")
                return
            self._waiting.popleft()(frame)
        elif kind == (1, 40011):
            self._live(frame)
        elif kind in ((2, 40005), (2, 40023)):
            self._page.append(frame)
        elif kind in ((2, 40007), (2, 40013)) and self._sync:
            self._notice(frame)
        else:
            self._blame(f"got what it did not ask for: {frame}")

    def _live(self, frame: Frame) -> None:
        self._ledger.counts["delivered"] += 1
        if frame["to"] == "ALL":
            return
        said = self._ledger.heard(self._user, frame)
        if said is None:
            return
        if said.receiver == self._user:
            self._unproven.append(said)
            self._got.append(said)
            if said.tries == 1:  # a retry may be delivered after what was sent later
                if self._latest.get(said.device, 0) > said.number:
                    self._blame(f"got {said} after what was sent later")
                self._latest[said.device] = max(said.number, self._latest.get(said.device, 0))
        elif not self._sync or (said in self._asked and said.tries == 1):
            self._blame(f"heard of what it sent itself, {said}")

    def _notice(self, frame: Frame) -> None:
        """Another device of one of two users marked or deleted messages."""
        by, other = frame["from"], frame["to"]
        if self._user not in (by, other):
            self._blame(f"heard what was not for it: {frame}")
        for line in frame["content"].split("\n"):
            if frame["op_type"] == 40007:
                said = self._ledger.said.get((other, by, line))
                known = said is not None and said.may_be_read
            else:
                names = {">": (by, other), "<": (other, by)}
                said = self._ledger.said.get((*names[line[0]], line[1:]))
                known = said is not None and said.may_be_gone
            if not known:
                self._blame(f"heard of what nobody did to {line}: {frame}")

    # --- answers

    def _expect(self, code: int, frame: Frame) -> bool:
        """Whether this is that answer; the only other one is that a store is away, where that may be."""
        if frame["op_type"] == code:
            return True
        if frame.get("reason") != "store_away" or self._ledger.steady:
            self._blame(f"expected {code}, got {frame}")
        self._ledger.counts["refused"] += 1
        return False

    def _sent(self, said: Said, frame: Frame) -> None:
        if frame.get("id") != said.id:
            self._blame(f"expected the answer to {said}, got {frame}")
        elif frame["op_type"] in (40018, 40019):
            self._ledger.acknowledged(said, frame["time"])
            del self._outbox[said]
        elif frame["op_type"] == 40020 and said.stranger:
            said.barred = True
            self._ledger.counts["barred"] += 1
            del self._outbox[said]
        else:
            self._expect(40018, frame)

    def _paged(self, peer: str, proven: Sequence[Said], frame: Frame) -> None:
        page, self._page = self._page, []
        if not self._expect(40005, frame):
            return
        if frame["content"] != str(len(page)):
            self._blame(f"a page of {len(page)} messages, counted as {frame['content']}")
        if [one["time"] for one in page] != sorted(one["time"] for one in page):
            self._blame("a page out of order")
        for one in page:
            self._ledger.stored(self._user, one)
            if peer not in (one["from"], one["to"]):
                self._blame(f"a page with {peer} has {one}")
        self._proved(proven)

    def _listed(self, proven: Sequence[Said], frame: Frame) -> None:
        page, self._page = self._page, []
        if self._expect(40023, frame):
            for one in page:
                self._ledger.stored(self._user, one)
            self._proved(proven)

    def _proved(self, proven: Sequence[Said]) -> None:
        """Pages wait for what was proven before them; only where a store may be away it can be lost."""
        if self._ledger.steady:
            self._are_read(proven)

    def _marked(self, messages: Sequence[Said], frame: Frame) -> None:
        if frame.get("reason") == "no_such_message":  # somebody deleted those that it names
            missing = frame["content"].removeprefix("no such message: ").split(", ")
            for said in messages:
                if not said.may_be_gone and said.id in missing:
                    self._blame(f"{said} is not there to be marked")
        elif self._expect(40007, frame):
            self._are_read(messages)

    def _deleted(self, messages: Sequence[Said], frame: Frame) -> None:
        if frame.get("reason") != "no_such_message" and not self._expect(40013, frame):
            return
        for said in messages:  # also those that are named as missing: somebody else was faster
            said.gone = True

    def _are_read(self, messages: Sequence[Said]) -> None:
        for said in messages:
            said.read = True

    def _blame(self, why: str) -> None:
        self._ledger.blame(f"{self._device} {why}")
