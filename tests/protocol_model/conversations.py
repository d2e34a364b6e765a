"""The conversations of the model: two users or a group, with all their messages in a list."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count

from tests.harness import Frame

STRANGER_LIMIT = 2
WINDOW = 6 * 3600.0  # StrangerWindow in seconds

next_order = count().__next__  # messages and members are ordered by the time of their storing and joining


@dataclass(eq=False)
class ModelMessage:
    """A stored message."""

    conversation: "ModelConversation"
    sender: str
    receiver: str  # a user or a group
    id: str  # empty until the server has assigned one
    text: str
    time: int = 0  # milliseconds; 0 until the acknowledgement
    read: bool = False  # between two users; in a group, positions say so
    deleted: bool = False
    delivered: bool = False  # by this process of the server, to a socket of a receiver
    order: int = field(default_factory=next_order)

    @property
    def content(self) -> str:
        return f"{self.id}\n{self.text}"

    @property
    def reference(self) -> str:
        """The message as notices about a group name it."""
        return f"{self.id}/{self.sender}"

    def live(self) -> Frame:
        """Return the frame of its delivery."""
        return self._frame(1, 40011)

    def stored(self, viewer: str) -> Frame:
        """Return the frame in a page of the history that `viewer` requests."""
        return self._frame(2, 40005) | {"read": self.conversation.is_read(self, viewer)}

    def acknowledged(self, op_type: int) -> Frame:
        """Return the acknowledgement for the sender."""
        return system(self.sender, op_type) | {"id": self.id, "time": self.time}

    def _frame(self, type_: int, op_type: int) -> Frame:
        ends = {"from": self.sender, "to": self.receiver, "type": type_, "op_type": op_type}
        return ends | {"content": self.content, "id": self.id, "time": self.time}


def system(to: str, op_type: int, content: object = "") -> Frame:
    """Return a frame from `System`."""
    return {"from": "System", "to": to, "type": 1, "op_type": op_type, "content": content}


class ModelConversation:
    """The messages of two users or of a group, in the order in which they were stored."""

    def __init__(self) -> None:
        self.messages: list[ModelMessage] = []

    def find(self, sender: str, id: str) -> ModelMessage | None:
        """Return the message with this id, deleted or not."""
        return next((one for one in self.messages if (one.sender, one.id) == (sender, id)), None)

    def visible(self, viewer: str) -> list[ModelMessage]:
        """Return the messages that `viewer` may read."""
        raise NotImplementedError

    def unread(self, viewer: str) -> list[ModelMessage]:
        """Return the messages of others that `viewer` has not read."""
        return [one for one in self.visible(viewer) if one.sender != viewer and not self.is_read(one, viewer)]

    def is_read(self, message: ModelMessage, viewer: str) -> bool:
        """Return `read` in a page that `viewer` requests."""
        raise NotImplementedError

    def referenced(self, viewer: str, line: str) -> ModelMessage | None:
        """Return the message that a line of `viewer` names, deleted or not."""
        raise NotImplementedError

    def listed_at(self, viewer: str) -> int:
        """Return the place in the list of op 7."""
        raise NotImplementedError


class ModelPair(ModelConversation):
    """The conversation of two users, with the state of their contact limit. Times in seconds."""

    def __init__(self, users: Iterable[str]) -> None:
        super().__init__()
        self.users = tuple(users)
        self.writer = ""  # the user with `count` unanswered messages since `started`
        self.count = 0
        self.started = 0.0
        self.refused = False
        self.free_until = 0.0
        self.attempted = 0.0  # the last message of any kind: the server may count it as a renewal

    def visible(self, viewer: str) -> list[ModelMessage]:
        return [one for one in self.messages if not one.deleted]

    def is_read(self, message: ModelMessage, viewer: str) -> bool:
        return message.read

    def referenced(self, viewer: str, line: str) -> ModelMessage | None:
        return next((one for name in self.candidates(viewer, line) if (one := self.find(*name))), None)

    def candidates(self, viewer: str, line: str) -> list[tuple[str, str]]:
        """Return the (sender, id) pairs that a line may name, in the order of the search."""
        peer = self.users[self.users[0] == viewer]
        if line[0] in "<>":
            return [(viewer if line[0] == ">" else peer, line[1:])]
        return [(viewer, line), (peer, line)]

    def listed_at(self, viewer: str) -> int:
        return self.messages[-1].order

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


class ModelGroup(ModelConversation):
    """A group. Each member has the order of joining, and a read position: the order of a message or of joining."""

    def __init__(self, name: str, owner: str, users: Iterable[str]) -> None:
        super().__init__()
        self.name = name
        self.owner = owner
        self.joined: dict[str, int] = {}
        self.positions: dict[str, int] = {}
        self.since: dict[str, int] = {}  # the time of joining in milliseconds, once the server has told it
        self.join([owner, *users])

    def join(self, users: Iterable[str]) -> list[str]:
        """Add users at the same time; return those who were no members."""
        order, added = next_order(), [user for user in dict.fromkeys(users) if user not in self.joined]
        for user in added:
            self.joined[user] = self.positions[user] = order
        return added

    def leave(self, user: str) -> bool:
        """Remove a member; return whether another member becomes the owner."""
        del self.joined[user], self.positions[user]
        self.since.pop(user, None)
        if user != self.owner or not self.joined:
            return False
        self.owner = min(self.joined, key=lambda member: (self.joined[member], member))
        return True

    def others(self, user: str) -> list[str]:
        """Return the other members."""
        return [member for member in self.joined if member != user]

    def visible(self, viewer: str) -> list[ModelMessage]:
        return [one for one in self.messages if not one.deleted and one.order > self.joined[viewer]]

    def is_read(self, message: ModelMessage, viewer: str) -> bool:
        readers = self.others(viewer) if message.sender == viewer else [viewer]
        return all(message.order <= self.positions[reader] for reader in readers)

    def referenced(self, viewer: str, line: str) -> ModelMessage | None:
        id, slash, sender = line.partition("/")
        found = self.find(sender if slash else viewer, id)
        if not found and not slash:
            found = next((one for one in reversed(self.messages) if one.id == id), None)
        return found if found and found.order > self.joined[viewer] else None

    def listed_at(self, viewer: str) -> int:
        visible = self.visible(viewer)
        return visible[-1].order if visible else self.joined[viewer]

    def move(self, user: str, message: ModelMessage) -> bool:
        """Move the read position forward; return whether it moved."""
        moved = message.order > self.positions[user]
        self.positions[user] = max(message.order, self.positions[user])
        return moved

    def confirm(self, user: str, confirmed: Sequence[ModelMessage]) -> ModelMessage | None:
        """Move the read position past confirmed messages, but past no other one; return the last that it passed."""
        start = self.positions[user]
        for one in self.messages:
            if start < one.order <= max(other.order for other in confirmed) and not one.deleted:
                if one.sender != user and one not in confirmed:
                    break
                self.positions[user] = one.order
        else:
            self.positions[user] = max(start, *(one.order for one in confirmed))
        passed = [one for one in confirmed if start < one.order <= self.positions[user]]
        return max(passed, key=lambda one: one.order, default=None)
