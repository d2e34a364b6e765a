"""docs/protocol.md as a small model that keeps everything in lists: which frames must arrive on which socket.

The model shares no code with the server, so that the two can be compared.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from tests.harness import Frame
from tests.protocol_model.conversations import (
    WINDOW,
    ModelConversation,
    ModelGroup,
    ModelMessage,
    ModelPair,
    system,
)

TYPING_INTERVAL = 2.0  # seconds
SOCKETS_PER_USER = 3
GROUPS_PER_USER = 2


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


class HttpRefusal(NamedTuple):
    """The refusal of a request: HTTP code, status, reason and field."""

    code: int
    status: int
    reason: str
    field: str | None = None


class Model:
    """Users, their sockets and messages. Each method performs one request and notes the frames that must arrive."""

    def __init__(self, users: Iterable[str]) -> None:
        self.users = list(users)
        self.sockets: list[ModelSocket] = []
        self.left: set[str] = set()  # users that have closed a socket
        self.blocks: set[tuple[str, str]] = set()  # the user that blocks, the user that is blocked
        self.once_blocked: set[tuple[str, str]] = set()
        self.groups: dict[str, ModelGroup] = {}  # by name
        self._pairs: dict[frozenset[str], ModelPair] = {}

    def pair(self, one: str, other: str) -> ModelPair:
        """Return the conversation of two users."""
        return self._pairs.setdefault(frozenset((one, other)), ModelPair((one, other)))

    def conversation(self, user: str, peer: str) -> ModelConversation | None:
        """Return the conversation of a user with a user or a group; None if the group does not exist for the user."""
        if peer[:1] != "#":
            return self.pair(user, peer)
        group = self.groups.get(peer)
        return group if group and user in group.joined else None

    def groups_of(self, user: str) -> list[ModelGroup]:
        """Return the groups that have this member."""
        return [group for group in self.groups.values() if user in group.joined]

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
            assert self.pair(by.user, line[1:]).messages, frame
            block = line[1:], by.user
            assert line[1:] in self.left or block in self.once_blocked or line[0] == "+", frame
            assert block not in self.blocks or line[0] == "-", frame
        assert len(lines) == len({line[1:] for line in lines}), frame

    def restart(self) -> None:
        """Close all sockets and forget the state that only the process of the server had."""
        self.sockets.clear()
        self.left.clear()
        for conversation in (*self._pairs.values(), *self.groups.values()):
            for message in conversation.messages:
                message.delivered = False

    # --- groups over HTTP

    def create(self, user: str, name: str, users: Sequence[str]) -> HttpRefusal | None:
        """POST /group/create."""
        if not all(self._has_written(other, user) for other in users):
            return HttpRefusal(403, 42000, "refused_by_limit", "users")
        if name in self.groups:
            return HttpRefusal(409, 42000, "group_exists", "group")
        if refusal := self._joining(42000, user, [user, *users]):
            return refusal
        group = self.groups[name] = ModelGroup(name, user, users)
        self._changed(group.joined, name, [*(f"+{member}" for member in group.joined), f"!{user}"])
        return None

    def add(self, user: str, name: str, users: Sequence[str]) -> HttpRefusal | list[str]:
        """POST /group/add; return the added users."""
        group = self.groups.get(name)
        if not group or user not in group.joined:
            return HttpRefusal(404, 42002, "no_such_group", "group")
        if not all(self._has_written(other, user) for other in users):
            return HttpRefusal(403, 42002, "refused_by_limit", "users")
        if refusal := self._joining(42002, user, [other for other in users if other not in group.joined]):
            return refusal
        added = group.join(users)
        self._changed(group.joined, name, [f"+{other}" for other in added])
        return added

    def _has_written(self, sender: str, receiver: str) -> bool:
        return any(one.sender == sender for one in self.pair(sender, receiver).messages)

    def _joining(self, failed: int, by: str, users: Sequence[str]) -> HttpRefusal | None:
        for user in users:
            if (user, by) in self.blocks:
                return HttpRefusal(403, failed, "refused_by_limit", "users")
            if len(self.groups_of(user)) >= GROUPS_PER_USER:
                return HttpRefusal(429, failed, "too_many")
        return None

    def remove(self, user: str, name: str, other: str) -> HttpRefusal | None:
        """POST /group/remove."""
        group = self.groups.get(name)
        if not group or user not in group.joined:
            return HttpRefusal(404, 42004, "no_such_group", "group")
        if user not in (other, group.owner):
            return HttpRefusal(403, 42004, "not_yours")
        if other not in group.joined:
            return HttpRefusal(404, 41006, "no_such_user", "user_name")
        new_owner = group.leave(other)
        if not group.joined:
            del self.groups[name]
        self._changed(group.joined, name, [f"-{other}", *([f"!{group.owner}"] if new_owner else [])])
        self._changed([other], name, [f"-{other}"])
        return None

    def delete_group(self, user: str, name: str) -> HttpRefusal | None:
        """POST /group/delete."""
        group = self.groups.get(name)
        if not group or user not in group.joined:
            return HttpRefusal(404, 42006, "no_such_group", "group")
        if user != group.owner:
            return HttpRefusal(403, 42006, "not_yours")
        del self.groups[name]
        for member in group.joined:
            self._changed([member], name, [f"-{member}"])
        return None

    def _changed(self, users: Iterable[str], name: str, lines: Sequence[str]) -> None:
        """Expect 42011 with these lines in any order."""
        for socket in self.sockets_of(*users):
            if socket.sync and lines:
                socket.expect_now(system(name, 42011, frozenset(lines)))

    def members(self, user: str, name: str) -> HttpRefusal | list[dict[str, object]]:
        """GET /group/members."""
        group = self.groups.get(name)
        if not group or user not in group.joined:
            return HttpRefusal(404, 42008, "no_such_group", "group")
        return [
            {
                "user_name": member,
                "owner": member == group.owner,
                "online": self.listed_online(member, user),
                "since": group.since.get(member, ...),
            }
            for member in sorted(group.joined, key=lambda member: (group.joined[member], member))
        ]

    # --- op 1

    def send(self, by: ModelSocket, to: str, id: str, text: str, now: float) -> None:
        """Op 1 with a valid id, or with an empty one that the server replaces."""
        conversation = self.conversation(by.user, to)
        if isinstance(conversation, ModelPair):
            self._send_to_user(by, conversation, to, id, text, now)
        elif isinstance(conversation, ModelGroup):
            self._send_to_group(by, conversation, id, text)
        else:
            by.refusal(40008, "no_such_group", **({"id": id} if id else {}))

    def _send_to_user(self, by: ModelSocket, pair: ModelPair, to: str, id: str, text: str, now: float) -> None:
        if (by.user, to) in self.blocks:
            by.refusal(40008, "you_blocked", **({"id": id} if id else {}))
            return
        blocked = (to, by.user) in self.blocks
        pair.attempted = pair.attempted if blocked else now
        message = pair.find(by.user, id) if id else None
        if message and message.text != text:
            by.refusal(40008, "id_used", id=id)
            return
        new = message is None
        if message is None:
            was_refused = pair.refused and pair.writer == to
            if blocked or not pair.allows(by.user, now):
                by.answer(40020, to, reason="refused_by_limit", **({"id": id} if id else {}))
                return
            if was_refused and not pair.writer:
                pair.refused = False
                for socket in self.sockets_of(to):
                    socket.answer(40021, by.user)
            message = ModelMessage(pair, by.user, to, id, text)
            pair.messages.append(message)
        if new or not (message.read or message.deleted or message.delivered):
            self._deliver(by, message, [] if blocked else [to])
        online = self.online(to) and not blocked
        by.expect(partial(message.acknowledged, 40018 if online else 40019), acknowledged=message)

    def _send_to_group(self, by: ModelSocket, group: ModelGroup, id: str, text: str) -> None:
        message = group.find(by.user, id) if id else None
        if message and message.text != text:
            by.refusal(40008, "id_used", id=id)
            return
        new = message is None
        if message is None:
            message = ModelMessage(group, by.user, group.name, id, text)
            group.messages.append(message)
        others = group.others(by.user)
        if new or not (message.deleted or message.delivered):
            self._deliver(by, message, [other for other in others if group.joined[other] < message.order])
        online = any(self.online(other) and (other, by.user) not in self.blocks for other in others)
        by.expect(partial(message.acknowledged, 40018 if online else 40019), acknowledged=message)

    def _deliver(self, by: ModelSocket, message: ModelMessage, receivers: Iterable[str]) -> None:
        for socket in self.sockets_of(*receivers):
            socket.expect(message.live)
            message.delivered = True
        for socket in self.sockets_of(message.sender):
            if socket.sync and socket is not by:
                socket.expect(message.live)

    # --- ops 2, 3 and 7

    def page(
        self, by: ModelSocket, peer: str, choose: Callable[[Sequence[ModelMessage]], Sequence[ModelMessage]]
    ) -> None:
        """Op 2 that returns some of the messages of the conversation."""
        if conversation := self._conversation(by, peer, 40004):
            self._page(by, choose(conversation.visible(by.user)))

    def unread(self, by: ModelSocket, peer: str, most: int | None) -> None:
        """Op 3."""
        if conversation := self._conversation(by, peer, 40004):
            self._page(by, conversation.unread(by.user)[:most])

    def page_around(self, by: ModelSocket, peer: str, sign: str, most: int, line: str) -> None:
        """Op 2 with -N@ID or +N@ID."""
        conversation = self._conversation(by, peer, 40004)
        if conversation is None:
            return
        place = conversation.referenced(by.user, line)
        if place is None:
            by.refusal(40004, _missing(conversation, [line]))
            return
        visible = conversation.visible(by.user)
        before = [one for one in visible if one.order < place.order]
        after = [one for one in visible if one.order > place.order]
        self._page(by, before[-most:] if sign == "-" else after[:most])

    def _conversation(self, by: ModelSocket, peer: str, failed: int) -> ModelConversation | None:
        """Return the conversation, or expect the refusal of a user who is not a member of the group."""
        conversation = self.conversation(by.user, peer)
        if conversation is None:
            by.refusal(failed, "no_such_group")
        return conversation

    def _page(self, by: ModelSocket, messages: Sequence[ModelMessage]) -> None:
        for message in messages:
            by.expect_now(message.stored(by.user))
        by.answer(40005, str(len(messages)))

    def list_conversations(self, by: ModelSocket, most: int, after: str) -> None:
        """Op 7; an empty `after` starts at the top."""
        me = by.user
        mine: dict[str, ModelConversation] = {
            peer: pair for peer in self.users if peer != me and (pair := self.pair(me, peer)).visible(me)
        }
        mine |= {group.name: group for group in self.groups_of(me)}
        if after and after not in mine:
            by.refusal(40022, "no_such_group" if after[0] == "#" else "no_such_user")
            return
        peers = sorted(mine, key=lambda peer: mine[peer].listed_at(me), reverse=True)
        page = peers[peers.index(after) + 1 if after else 0 :][:most]
        for peer in page:
            by.expect_now(self._listed(me, peer, mine[peer]))
        by.answer(40023, str(len(page)))

    def _listed(self, me: str, peer: str, conversation: ModelConversation) -> Frame:
        group = conversation if isinstance(conversation, ModelGroup) else None
        states = [self.listed_online(other, me) for other in (group.others(me) if group else [peer])]
        online = True in states or (... if ... in states else False)
        visible = conversation.visible(me)
        last: Frame = visible[-1].stored(me) if visible else {"from": me, "to": peer, "type": 2, "content": ""}
        if group and not visible:
            last["time"] = group.since.get(me, ...)
        return last | {"op_type": 40023, "unread": len(conversation.unread(me)), "online": online}

    # --- marks

    def mark(self, by: ModelSocket, peer: str, lines: Sequence[str]) -> None:
        """Op 4."""
        conversation = self._conversation(by, peer, 40006)
        if isinstance(conversation, ModelPair):
            names = [[name for name in conversation.candidates(by.user, line) if name[0] == peer] for line in lines]
            found = [next((one for name in some if (one := conversation.find(*name))), None) for some in names]
            visible = [one if one and not one.deleted else None for one in found]
            self._mark(by, [one for one in visible if one])
            self._answer(by, 40007, 40006, conversation, lines, visible)
        elif isinstance(conversation, ModelGroup):
            named = [conversation.referenced(by.user, line) for line in lines]
            newest = max((one for one in named if one), key=lambda one: one.order, default=None)
            self._move(by, conversation, newest)
            self._answer(by, 40007, 40006, conversation, lines, named)

    def mark_all(self, by: ModelSocket, peer: str) -> None:
        """Op 4 with *."""
        conversation = self._conversation(by, peer, 40006)
        if conversation is None:
            return
        unread, visible = conversation.unread(by.user), conversation.visible(by.user)
        if isinstance(conversation, ModelGroup):
            self._move(by, conversation, visible[-1] if visible else None)
        else:
            self._mark(by, unread)
        by.answer(40007, str(len(unread)))

    def confirm(self, by: ModelSocket, messages: Sequence[ModelMessage]) -> None:
        """A pong confirms the delivery of these messages."""
        by_pair = [one for one in messages if isinstance(one.conversation, ModelPair)]
        unread = [one for one in by_pair if not one.read and not one.deleted]
        for sender in dict.fromkeys(one.sender for one in unread):
            self._mark(by, [one for one in unread if one.sender == sender])
        for group in dict.fromkeys(one.conversation for one in messages):
            if isinstance(group, ModelGroup) and by.user in group.joined and self.groups.get(group.name) is group:
                mine = [one for one in messages if one.conversation is group and one.order > group.joined[by.user]]
                if mine and (passed := group.confirm(by.user, mine)):
                    self._notify(by, [by.user], group.name, 40007, [passed.reference])

    def _mark(self, by: ModelSocket, messages: Sequence[ModelMessage]) -> None:
        unread = [one for one in dict.fromkeys(messages) if not one.read]
        for message in unread:
            message.read = True
        if unread:
            author = unread[0].sender
            users = (by.user,) if (by.user, author) in self.blocks else (by.user, author)
            self._notify(by, users, author, 40007, [one.id for one in unread])

    def _move(self, by: ModelSocket, group: ModelGroup, message: ModelMessage | None) -> None:
        if message and group.move(by.user, message):
            self._notify(by, [by.user], group.name, 40007, [message.reference])

    def delete(self, by: ModelSocket, peer: str, lines: Sequence[str]) -> None:
        """Op 5."""
        conversation = self._conversation(by, peer, 40012)
        if conversation is None:
            return
        group = conversation if isinstance(conversation, ModelGroup) else None
        deleted: list[ModelMessage | None] = []
        foreign = False
        for line in lines:
            message = conversation.referenced(by.user, line)
            if message and group and by.user not in (message.sender, group.owner):
                foreign, message = True, None
            deleted.append(message if message and not message.deleted else None)
            if message:
                message.deleted = True
        done = [one for one in deleted if one]
        if group:
            for member, joined in group.joined.items():
                visible = [one.reference for one in done if one.order > joined]
                self._notify(by, [member], group.name, 40013, visible)
        else:
            marks = [f"{'>' if one.sender == by.user else '<'}{one.id}" for one in done]
            self._notify(by, [by.user, peer], peer, 40013, marks)
        if foreign:
            by.refusal(40012, "not_yours")
        else:
            self._answer(by, 40013, 40012, conversation, lines, deleted)

    def _answer(
        self,
        by: ModelSocket,
        done: int,
        failed: int,
        conversation: ModelConversation,
        lines: Sequence[str],
        found: Sequence[ModelMessage | None],
    ) -> None:
        if all(found):
            by.answer(done, "\n".join(lines))
        else:
            by.refusal(failed, _missing(conversation, lines))

    def _notify(self, by: ModelSocket, users: Sequence[str], other: str, op_type: int, lines: Sequence[str]) -> None:
        for socket in self.sockets_of(*users):
            if socket.sync and socket is not by and lines:
                frame = {"from": by.user, "to": other, "type": 2, "op_type": op_type, "content": "\n".join(lines)}
                socket.expect_now(frame)

    # --- op 8

    def knows_contacts(self, one: str, other: str, now: float) -> bool:
        """Return whether the protocol says if the two are contacts: a retry may have renewed their window or not."""
        if other[0] == "#":
            return True
        pair = self.pair(one, other)
        return bool(pair.writer) or not pair.free_until <= now < pair.attempted + WINDOW

    def typing(self, by: ModelSocket, peer: str, content: str, now: float, monotonic: float) -> bool:
        """Op 8: at most one `1` in TYPING_INTERVAL, and one `0` after it. Returns whether it has no answer."""
        conversation = self._conversation(by, peer, 40024)
        if conversation is None:
            return False
        started, typing = by.typing.get(peer, (-TYPING_INTERVAL, False))
        if content == "1":
            if monotonic < started + TYPING_INTERVAL:
                return True
            by.typing[peer] = monotonic, True
        else:
            by.typing[peer] = started, False
            if not typing:
                return True
        receivers = [peer]
        if isinstance(conversation, ModelGroup):
            receivers = conversation.others(by.user)
        elif isinstance(conversation, ModelPair) and (conversation.writer or now >= conversation.free_until):
            receivers = []  # no contacts
        for socket in self.sockets_of(*receivers):
            if socket.sync and self.blocks.isdisjoint({(by.user, socket.user), (socket.user, by.user)}):
                frame = {"from": by.user, "to": peer, "type": 1, "op_type": 40025, "content": content}
                socket.expect_now(frame)
        return True

    # --- op 6

    def broadcast(self, by: ModelSocket, text: str) -> None:
        """Op 6."""
        others = {socket.user for socket in self.sockets} - {by.user}
        for socket in self.sockets:
            if socket.user in others or (socket.sync and socket is not by):
                frame = {"from": by.user, "to": "ALL", "type": 1, "op_type": 40011, "content": text, "time": ...}
                socket.expect_now(frame)
        by.answer(40009, str(len(others)))


def _missing(conversation: ModelConversation, lines: Sequence[str]) -> str:
    """Return the reason of a refusal because messages are missing: in a group, `>ID` and `<ID` are no ids."""
    invalid = isinstance(conversation, ModelGroup) and any(line[0] in "<>" for line in lines)
    return "bad_id" if invalid else "no_such_message"
