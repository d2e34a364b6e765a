"""docs/protocol.md as a small model that keeps everything in lists: which frames must arrive on which socket.

The model shares no code with the server, so that the two can be compared.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import NamedTuple

from tests.harness import Frame

STRANGER_LIMIT = 2
WINDOW = 6 * 3600.0  # StrangerWindow in seconds
TYPING_INTERVAL = 2.0  # seconds
SOCKETS_PER_USER = 3


@dataclass(eq=False)
class ModelMessage:
    """A stored message."""

    sender: str
    receiver: str
    id: str  # empty until the server has assigned one
    text: str
    time: int = 0  # milliseconds; 0 until the acknowledgement
    read: bool = False
    deleted: bool = False
    delivered: bool = False  # by this process of the server, to a socket of the receiver
    order: int = field(default_factory=count().__next__)

    @property
    def content(self) -> str:
        return f"{self.id}\n{self.text}"

    def live(self) -> Frame:
        """Return the frame of its delivery."""
        return self._frame(1, 40011)

    def stored(self) -> Frame:
        """Return the frame in a page of the history."""
        return self._frame(2, 40005) | {"read": self.read}

    def acknowledged(self, op_type: int) -> Frame:
        """Return the acknowledgement for the sender."""
        return system(self.sender, op_type) | {"id": self.id, "time": self.time}

    def _frame(self, type_: int, op_type: int) -> Frame:
        ends = {"from": self.sender, "to": self.receiver, "type": type_, "op_type": op_type}
        return ends | {"content": self.content, "id": self.id, "time": self.time}


class Expected(NamedTuple):
    """A frame that must arrive. `frame` is called only when the frame is compared.

    By then, the frame that acknowledges a message has revealed the id and time that the server chose: `acknowledged`
    is the message that this frame acknowledges.
    """

    frame: Callable[[], Frame]
    acknowledged: ModelMessage | None = None


@dataclass(eq=False)
class ModelSocket:
    """An open socket, and the frames that must arrive on it next."""

    user: str
    session: str
    sync: bool
    expected: list[Expected] = field(default_factory=list)
    typing: dict[str, tuple[float, bool]] = field(default_factory=dict)  # peer -> time of the last `1`, no `0` since

    def expect(self, frame: Callable[[], Frame], acknowledged: ModelMessage | None = None) -> None:
        """Expect a frame that is built when it is compared."""
        self.expected.append(Expected(frame, acknowledged))

    def expect_now(self, frame: Frame) -> None:
        """Expect this frame, whatever changes until it is compared."""
        self.expect(lambda: frame)

    def answer(self, op_type: int, content: object = "", **keys: object) -> None:
        """Expect an answer of the server."""
        self.expect_now(system(self.user, op_type, content) | keys)

    def refusal(self, op_type: int, reason: str, **keys: object) -> None:
        """Expect a refusal with any text."""
        self.answer(op_type, ..., reason=reason, **keys)


def system(to: str, op_type: int, content: object = "") -> Frame:
    """Return a frame from `System`."""
    return {"from": "System", "to": to, "type": 1, "op_type": op_type, "content": content}


@dataclass(eq=False)
class ModelConversation:
    """The messages between two users, and the state of their contact limit. Times in seconds."""

    messages: list[ModelMessage] = field(default_factory=list)  # in the order in which they were stored
    writer: str = ""  # the user with `count` unanswered messages since `started`
    count: int = 0
    started: float = 0
    refused: bool = False
    free_until: float = 0
    attempted: float = 0  # the last message of any kind: the server may count it as a renewal

    def visible(self) -> list[ModelMessage]:
        """Return the messages that are not deleted."""
        return [one for one in self.messages if not one.deleted]

    def find(self, sender: str, id: str) -> ModelMessage | None:
        """Return the message with this id, deleted or not."""
        return next((one for one in self.messages if (one.sender, one.id) == (sender, id)), None)

    def find_first(self, names: Iterable[tuple[str, str]]) -> ModelMessage | None:
        """Return the message with the first of these (sender, id) that exists."""
        return next((one for name in names if (one := self.find(*name))), None)

    def allows(self, sender: str, now: float) -> bool:
        """Return whether `sender` may send one more message, and count it (protocol section 3, promise 4)."""
        if not self.writer:
            if now < self.free_until:
                self.free_until = now + WINDOW
                return True
        elif now < self.started + WINDOW:
            if sender != self.writer:  # an answer
                self.writer, self.free_until = "", now + WINDOW
            elif self.count >= STRANGER_LIMIT:
                self.refused = True
                return False
            else:
                self.count += 1
            return True
        self.writer, self.count, self.started, self.refused = sender, 1, now, False
        return True


class Model:
    """Users, their sockets and messages. Each method performs one request and notes the frames that must arrive."""

    def __init__(self, users: Iterable[str]) -> None:
        self.users = list(users)
        self.sockets: list[ModelSocket] = []
        self.left: set[str] = set()  # users that have closed a socket
        self.blocks: set[tuple[str, str]] = set()  # the user that blocks, the user that is blocked
        self.once_blocked: set[tuple[str, str]] = set()
        self._conversations: dict[frozenset[str], ModelConversation] = defaultdict(ModelConversation)

    def conversation(self, one: str, other: str) -> ModelConversation:
        """Return the conversation of two users."""
        return self._conversations[frozenset((one, other))]

    def sockets_of(self, *users: str) -> list[ModelSocket]:
        """Return the open sockets of these users."""
        return [socket for user in users for socket in self.sockets if socket.user == user]

    def online(self, user: str) -> bool:
        return bool(self.sockets_of(user))

    def listed_online(self, user: str, viewer: str) -> object:
        """Return `online` in op 7: for some seconds after the last socket of `user` closed, either value is right."""
        if (user, viewer) in self.blocks:
            return False
        return self.online(user) or (... if user in self.left else False)

    def check_presence(self, by: ModelSocket, frame: Frame) -> None:
        """Fail unless this frame lists peers of the user, each once, with a presence that they had recently."""
        assert by.sync, frame
        assert {key: frame[key] for key in ("from", "to", "type")} == {"from": "System", "to": by.user, "type": 1}
        lines = frame["content"].split("\n")
        for line in lines:
            assert self.conversation(by.user, line[1:]).messages, frame
            block = line[1:], by.user
            assert line[1:] in self.left or block in self.once_blocked or line[0] == "+", frame
            assert block not in self.blocks or line[0] == "-", frame
        assert len(lines) == len({line[1:] for line in lines}), frame

    def restart(self) -> None:
        """Close all sockets and forget the state that only the process of the server had."""
        self.sockets.clear()
        self.left.clear()
        for conversation in self._conversations.values():
            for message in conversation.messages:
                message.delivered = False

    # --- op 1

    def send(self, by: ModelSocket, to: str, id: str, text: str, now: float) -> None:
        """Op 1 with a valid id, or with an empty one that the server replaces."""
        conversation = self.conversation(by.user, to)
        if (by.user, to) in self.blocks:
            by.refusal(40008, "you_blocked", **({"id": id} if id else {}))
            return
        blocked = (to, by.user) in self.blocks
        conversation.attempted = conversation.attempted if blocked else now
        message = conversation.find(by.user, id) if id else None
        if message and message.text != text:
            by.refusal(40008, "id_used", id=id)
            return
        new = message is None
        if message is None:
            was_refused = conversation.refused and conversation.writer == to
            if blocked or not conversation.allows(by.user, now):
                by.answer(40020, to, reason="refused_by_limit", **({"id": id} if id else {}))
                return
            if was_refused and not conversation.writer:
                conversation.refused = False
                for socket in self.sockets_of(to):
                    socket.answer(40021, by.user)
            message = ModelMessage(by.user, to, id, text)
            conversation.messages.append(message)
        if new or not (message.read or message.deleted or message.delivered):
            self._deliver(by, message, blocked=blocked)
        online = self.online(to) and not blocked
        by.expect(partial(message.acknowledged, 40018 if online else 40019), acknowledged=message)

    def _deliver(self, by: ModelSocket, message: ModelMessage, *, blocked: bool) -> None:
        for socket in self.sockets_of(message.receiver) if not blocked else ():
            socket.expect(message.live)
            message.delivered = True
        for socket in self.sockets_of(message.sender):
            if socket.sync and socket is not by:
                socket.expect(message.live)

    # --- ops 2, 3 and 7

    def page(self, by: ModelSocket, messages: Sequence[ModelMessage]) -> None:
        """Op 2 or 3 that returns these messages."""
        for message in messages:
            by.expect_now(message.stored())
        by.answer(40005, str(len(messages)))

    def page_around(self, by: ModelSocket, peer: str, sign: str, most: int, mark: str) -> None:
        """Op 2 with -N@ID or +N@ID."""
        conversation = self.conversation(by.user, peer)
        place = conversation.find_first(_candidates(by.user, peer, mark))
        if place is None:
            by.refusal(40004, "no_such_message")
            return
        at = conversation.messages.index(place)
        before = [one for one in conversation.messages[:at] if not one.deleted]
        after = [one for one in conversation.messages[at + 1 :] if not one.deleted]
        self.page(by, before[-most:] if sign == "-" else after[:most])

    def unread(self, by: ModelSocket, peer: str) -> list[ModelMessage]:
        """Return the unread messages from `peer`."""
        return [one for one in self.conversation(by.user, peer).visible() if one.sender == peer and not one.read]

    def list_conversations(self, by: ModelSocket, most: int, after: str) -> None:
        """Op 7; an empty `after` starts at the top."""
        mine = [(found, peer) for peer in self.users if (found := self.conversation(by.user, peer)).visible()]
        mine.sort(key=lambda one: one[0].messages[-1].order, reverse=True)
        peers = [peer for _, peer in mine]
        if after and after not in peers:
            by.refusal(40022, "no_such_user")
            return
        page = mine[peers.index(after) + 1 if after else 0 :][:most]
        for conversation, peer in page:
            last = conversation.visible()[-1].stored() | {"op_type": 40023}
            by.expect_now(last | {"unread": len(self.unread(by, peer)), "online": self.listed_online(peer, by.user)})
        by.answer(40023, str(len(page)))

    # --- marks

    def mark(self, by: ModelSocket, peer: str, lines: Sequence[str]) -> None:
        """Op 4."""
        conversation = self.conversation(by.user, peer)
        found = [
            conversation.find_first(name for name in _candidates(by.user, peer, line) if name[0] == peer)
            for line in lines
        ]
        visible = [one if one and not one.deleted else None for one in found]
        self._mark(by, [one for one in visible if one])
        self._answer(by, 40007, 40006, lines, visible)

    def mark_all(self, by: ModelSocket, peer: str) -> None:
        """Op 4 with *."""
        messages = self.unread(by, peer)
        self._mark(by, messages)
        by.answer(40007, str(len(messages)))

    def confirm(self, by: ModelSocket, messages: Sequence[ModelMessage]) -> None:
        """A pong confirms the delivery of these messages."""
        unread = [one for one in messages if not one.read and not one.deleted]
        for sender in dict.fromkeys(one.sender for one in unread):
            self._mark(by, [one for one in unread if one.sender == sender])

    def _mark(self, by: ModelSocket, messages: Sequence[ModelMessage]) -> None:
        unread = [one for one in dict.fromkeys(messages) if not one.read]
        for message in unread:
            message.read = True
        if unread:
            author = unread[0].sender
            users = (by.user,) if (by.user, author) in self.blocks else (by.user, author)
            self._notify(by, users, author, 40007, [one.id for one in unread])

    def delete(self, by: ModelSocket, peer: str, lines: Sequence[str]) -> None:
        """Op 5."""
        conversation = self.conversation(by.user, peer)
        deleted: list[ModelMessage | None] = []
        for line in lines:
            message = conversation.find_first(_candidates(by.user, peer, line))
            deleted.append(message if message and not message.deleted else None)
            if message:
                message.deleted = True
        if any(deleted):
            marks = [f"{'>' if one.sender == by.user else '<'}{one.id}" for one in deleted if one]
            self._notify(by, (by.user, peer), peer, 40013, marks)
        self._answer(by, 40013, 40012, lines, deleted)

    def _answer(
        self, by: ModelSocket, done: int, failed: int, lines: Sequence[str], found: Sequence[ModelMessage | None]
    ) -> None:
        if all(found):
            by.answer(done, "\n".join(lines))
        else:
            by.refusal(failed, "no_such_message")

    def _notify(self, by: ModelSocket, users: Sequence[str], other: str, op_type: int, lines: Sequence[str]) -> None:
        for socket in self.sockets_of(*users):
            if socket.sync and socket is not by:
                frame = {"from": by.user, "to": other, "type": 2, "op_type": op_type, "content": "\n".join(lines)}
                socket.expect_now(frame)

    # --- op 8

    def knows_contacts(self, one: str, other: str, now: float) -> bool:
        """Return whether the protocol says if the two are contacts: a retry may have renewed their window or not."""
        conversation = self.conversation(one, other)
        return bool(conversation.writer) or not conversation.free_until <= now < conversation.attempted + WINDOW

    def typing(self, by: ModelSocket, peer: str, content: str, now: float, monotonic: float) -> None:
        """Op 8: at most one `1` in TYPING_INTERVAL, and one `0` after it."""
        started, typing = by.typing.get(peer, (-TYPING_INTERVAL, False))
        if content == "1":
            if monotonic < started + TYPING_INTERVAL:
                return
            by.typing[peer] = monotonic, True
        else:
            by.typing[peer] = started, False
            if not typing:
                return
        conversation = self.conversation(by.user, peer)
        contacts = not conversation.writer and now < conversation.free_until
        if contacts and self.blocks.isdisjoint({(by.user, peer), (peer, by.user)}):
            for socket in self.sockets_of(peer):
                if socket.sync:
                    frame = {"from": by.user, "to": peer, "type": 1, "op_type": 40025, "content": content}
                    socket.expect_now(frame)

    # --- op 6

    def broadcast(self, by: ModelSocket, text: str) -> None:
        """Op 6."""
        others = {socket.user for socket in self.sockets} - {by.user}
        for socket in self.sockets:
            if socket.user in others or (socket.sync and socket is not by):
                frame = {"from": by.user, "to": "ALL", "type": 1, "op_type": 40011, "content": text, "time": ...}
                socket.expect_now(frame)
        by.answer(40009, str(len(others)))


def _candidates(me: str, peer: str, line: str) -> list[tuple[str, str]]:
    """Return the (sender, id) pairs that a line may name, in the order of the search."""
    if line[0] in "<>":
        return [(me if line[0] == ">" else peer, line[1:])]
    return [(me, line), (peer, line)]
