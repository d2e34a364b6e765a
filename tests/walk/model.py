"""What docs/protocol.md says, as a few dozen lines that keep everything in lists: what must come on which socket.

Nothing here is the server's: only so can the two be compared.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import NamedTuple

from tests.harness import Frame

LIMIT = 2  # for strangers
WINDOW = 6 * 3600.0  # seconds
SOCKETS = 3  # of a user


@dataclass(eq=False)
class Message:
    """A message that is stored."""

    sender: str
    receiver: str
    id: str  # empty until the server has chosen one
    text: str
    time: int = 0  # milliseconds; 0 until the server has told it
    read: bool = False
    deleted: bool = False
    remembered: bool = False  # the process knows that it put it on a socket of the receiver's
    order: int = field(default_factory=count().__next__)

    @property
    def content(self) -> str:
        return f"{self.id}\n{self.text}"

    def live(self) -> Frame:
        """On its way."""
        return self._frame(1, 40011)

    def stored(self) -> Frame:
        """Out of the history."""
        return self._frame(2, 40005) | {"read": self.read}

    def acknowledged(self, op_type: int) -> Frame:
        """To its sender."""
        return system(self.sender, op_type) | {"id": self.id, "time": self.time}

    def _frame(self, type_: int, op_type: int) -> Frame:
        ends = {"from": self.sender, "to": self.receiver, "type": type_, "op_type": op_type}
        return ends | {"content": self.content, "id": self.id, "time": self.time}


class Expected(NamedTuple):
    """A frame that must come; it is made when it is looked at.

    By then the ids and times that the server chose are known, from the frame that acknowledged the message: `tells`.
    """

    frame: Callable[[], Frame]
    tells: Message | None = None


@dataclass(eq=False)
class Socket:
    """An open socket, and what must come on it next."""

    user: str
    session: str
    sync: bool
    expected: list[Expected] = field(default_factory=list)

    def expect(self, frame: Callable[[], Frame], tells: Message | None = None) -> None:
        """This must come next."""
        self.expected.append(Expected(frame, tells))

    def expect_as_it_is(self, frame: Frame) -> None:
        """This must come next, whatever happens until then."""
        self.expect(lambda: frame)

    def answer(self, op_type: int, content: object = "", **keys: object) -> None:
        """The server answers."""
        self.expect_as_it_is(system(self.user, op_type, content) | keys)

    def refusal(self, op_type: int, reason: str, **keys: object) -> None:
        """The server refuses; how it words that is free."""
        self.answer(op_type, ..., reason=reason, **keys)


def system(to: str, op_type: int, content: object = "") -> Frame:
    """A frame of the server's own."""
    return {"from": "System", "to": to, "type": 1, "op_type": op_type, "content": content}


@dataclass(eq=False)
class Relation:
    """What two users have to do with each other. Times in seconds."""

    messages: list[Message] = field(default_factory=list)  # in the order in which they were stored
    writer: str = ""  # the stranger, of whom `count` unanswered messages count since `started`
    count: int = 0
    started: float = 0
    refused: bool = False
    free_until: float = 0

    def visible(self) -> list[Message]:
        """Those that are not deleted."""
        return [one for one in self.messages if not one.deleted]

    def find(self, sender: str, id: str) -> Message | None:
        """The message that bears this id, deleted or not."""
        return next((one for one in self.messages if (one.sender, one.id) == (sender, id)), None)

    def allows(self, sender: str, now: float) -> bool:
        """Whether `sender` may send one message more, which is counted (protocol section 3, promise 4)."""
        if not self.writer:
            if now < self.free_until:
                self.free_until = now + WINDOW
                return True
        elif now < self.started + WINDOW:
            if sender != self.writer:  # an answer
                self.writer, self.free_until = "", now + WINDOW
            elif self.count >= LIMIT:
                self.refused = True
                return False
            else:
                self.count += 1
            return True
        self.writer, self.count, self.started, self.refused = sender, 1, now, False
        return True


class Model:
    """Users, their sockets and what they said. Each method does what a request does, and notes what must come."""

    def __init__(self, users: Iterable[str]) -> None:
        self.users = list(users)
        self.sockets: list[Socket] = []
        self.left: set[str] = set()  # users who have closed a socket
        self._talks: dict[frozenset[str], Relation] = defaultdict(Relation)

    def talk(self, one: str, other: str) -> Relation:
        """What is between the two."""
        return self._talks[frozenset((one, other))]

    def of(self, *users: str) -> list[Socket]:
        """The open sockets of these users."""
        return [socket for user in users for socket in self.sockets if socket.user == user]

    def online(self, user: str) -> bool:
        return bool(self.of(user))

    def listed_online(self, user: str) -> object:
        """What op 7 says of `user`: for some seconds after the last socket closed either is right."""
        return self.online(user) or (... if user in self.left else False)

    def check_presence(self, by: Socket, frame: Frame) -> None:
        """Fail unless this presence frame may come on that socket: it names peers, each once, as they were lately."""
        assert by.sync, frame
        assert {key: frame[key] for key in ("from", "to", "type")} == {"from": "System", "to": by.user, "type": 1}
        lines = frame["content"].split("\n")
        for line in lines:
            assert self.talk(by.user, line[1:]).messages, frame
            assert line[1:] in self.left or line == f"+{line[1:]}", frame
        assert len(lines) == len({line[1:] for line in lines}), frame

    def restart(self) -> None:
        """The process ends and starts again: what only it knew is gone."""
        self.sockets.clear()
        self.left.clear()
        for talk in self._talks.values():
            for message in talk.messages:
                message.remembered = False

    # --- op 1

    def send(self, by: Socket, to: str, id: str, text: str, now: float) -> None:
        """A message with a valid id, or with an empty one: then the server chooses it."""
        talk = self.talk(by.user, to)
        message = talk.find(by.user, id) if id else None
        if message and message.text != text:
            by.refusal(40008, "id_used", id=id)
            return
        new = message is None
        if message is None:
            lifted = talk.refused and talk.writer == to
            if not talk.allows(by.user, now):
                by.answer(40020, to, reason="refused_by_limit", **({"id": id} if id else {}))
                return
            if lifted and not talk.writer:
                talk.refused = False
                for socket in self.of(to):
                    socket.answer(40021, by.user)
            message = Message(by.user, to, id, text)
            talk.messages.append(message)
        if new or not (message.read or message.deleted or message.remembered):
            self._deliver(by, message)
        by.expect(partial(message.acknowledged, 40018 if self.online(to) else 40019), tells=message)

    def _deliver(self, by: Socket, message: Message) -> None:
        for socket in self.of(message.receiver):
            socket.expect(message.live)
            message.remembered = True
        for socket in self.of(message.sender):
            if socket.sync and socket is not by:
                socket.expect(message.live)

    # --- ops 2, 3 and 7

    def page(self, by: Socket, messages: Sequence[Message]) -> None:
        """Ops 2 and 3, once it is clear which messages are meant."""
        for message in messages:
            by.expect_as_it_is(message.stored())
        by.answer(40005, str(len(messages)))

    def around(self, by: Socket, peer: str, sign: str, most: int, mark: str) -> None:
        """Op 2: -N@ID and +N@ID."""
        talk = self.talk(by.user, peer)
        place = next((one for name in _named(by.user, peer, mark) if (one := talk.find(*name))), None)
        if place is None:
            by.refusal(40004, "no_such_message")
            return
        at = talk.messages.index(place)
        before = [one for one in talk.messages[:at] if not one.deleted]
        after = [one for one in talk.messages[at + 1 :] if not one.deleted]
        self.page(by, before[-most:] if sign == "-" else after[:most])

    def unread(self, by: Socket, peer: str) -> list[Message]:
        """What `peer` sent that waits to be read."""
        return [one for one in self.talk(by.user, peer).visible() if one.sender == peer and not one.read]

    def conversations(self, by: Socket, most: int, after: str) -> None:
        """Op 7; `after` is empty: from the top."""
        mine = [(talk, peer) for peer in self.users if (talk := self.talk(by.user, peer)).visible()]
        mine.sort(key=lambda one: one[0].messages[-1].order, reverse=True)
        peers = [peer for _, peer in mine]
        if after and after not in peers:
            by.refusal(40022, "no_such_user")
            return
        page = mine[peers.index(after) + 1 if after else 0 :][:most]
        for talk, peer in page:
            last = talk.visible()[-1].stored() | {"op_type": 40023}
            by.expect_as_it_is(last | {"unread": len(self.unread(by, peer)), "online": self.listed_online(peer)})
        by.answer(40023, str(len(page)))

    # --- marks

    def mark(self, by: Socket, peer: str, lines: Sequence[str]) -> None:
        """Op 4."""
        talk = self.talk(by.user, peer)
        found = [
            next((talk.find(*name) for name in _named(by.user, peer, line) if name[0] == peer), None) for line in lines
        ]
        there = [one if one and not one.deleted else None for one in found]
        self._read(by, [one for one in there if one])
        self._answered(by, 40007, 40006, lines, there)

    def mark_all(self, by: Socket, peer: str) -> None:
        """Op 4: *."""
        messages = self.unread(by, peer)
        self._read(by, messages)
        by.answer(40007, str(len(messages)))

    def prove(self, by: Socket, messages: Sequence[Message]) -> None:
        """A pong shows that these arrived."""
        fresh = [one for one in messages if not one.read and not one.deleted]
        for sender in dict.fromkeys(one.sender for one in fresh):
            self._read(by, [one for one in fresh if one.sender == sender])

    def _read(self, by: Socket, messages: Sequence[Message]) -> None:
        fresh = [one for one in dict.fromkeys(messages) if not one.read]
        for message in fresh:
            message.read = True
        if fresh:
            self._tell(by, fresh[0].sender, 40007, [one.id for one in fresh])

    def delete(self, by: Socket, peer: str, lines: Sequence[str]) -> None:
        """Op 5."""
        talk = self.talk(by.user, peer)
        gone: list[Message | None] = []
        for line in lines:
            message = next((one for name in _named(by.user, peer, line) if (one := talk.find(*name))), None)
            gone.append(message if message and not message.deleted else None)
            if message:
                message.deleted = True
        if any(gone):
            marks = [f"{'>' if one.sender == by.user else '<'}{one.id}" for one in gone if one]
            self._tell(by, peer, 40013, marks)
        self._answered(by, 40013, 40012, lines, gone)

    def _answered(
        self, by: Socket, done: int, failed: int, lines: Sequence[str], found: Sequence[Message | None]
    ) -> None:
        if all(found):
            by.answer(done, "\n".join(lines))
        else:
            by.refusal(failed, "no_such_message")

    def _tell(self, by: Socket, other: str, op_type: int, lines: Sequence[str]) -> None:
        for socket in self.of(by.user, other):
            if socket.sync and socket is not by:
                frame = {"from": by.user, "to": other, "type": 2, "op_type": op_type, "content": "\n".join(lines)}
                socket.expect_as_it_is(frame)

    # --- op 6

    def broadcast(self, by: Socket, text: str) -> None:
        """To everybody online."""
        others = {socket.user for socket in self.sockets} - {by.user}
        for socket in self.sockets:
            if socket.user in others or (socket.sync and socket is not by):
                frame = {"from": by.user, "to": "ALL", "type": 1, "op_type": 40011, "content": text, "time": ...}
                socket.expect_as_it_is(frame)
        by.answer(40009, str(len(others)))


def _named(me: str, peer: str, line: str) -> list[tuple[str, str]]:
    """Which messages a line may mean, in the order in which to look."""
    if line[0] in "<>":
        return [(me if line[0] == ">" else peer, line[1:])]
    return [(me, line), (peer, line)]
