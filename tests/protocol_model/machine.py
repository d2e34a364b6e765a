"""The steps of the model test. After each step, every socket has received the frames that the model expects."""

import asyncio
import uuid
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, ClassVar, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests import raw
from tests.e2e import group_helpers
from tests.e2e.http_helpers import check_refusal, check_success, post
from tests.harness import PASSWORD
from tests.protocol_model.client import Client, connect, connect_when_free
from tests.protocol_model.conversations import ModelPair
from tests.protocol_model.model import SOCKETS_PER_USER, TYPING_INTERVAL, HttpRefusal, Model, ModelSocket
from tests.protocol_model.server_runner import ServerRunner

T = TypeVar("T")

HOUR = 3600.0
# Selects an element of a list of any length: see _pick.
indexes = st.integers(0, 11)
pages = st.sampled_from((1, 2, 3, 200))
ids = st.sampled_from(("m1", "m2", "m3", ""))
texts = st.sampled_from(("hello", "two\nlines"))
# Lines of ops 2, 4 and 5: the index of a message, and how the line names it.
lines = st.tuples(indexes, st.sampled_from(("plain", "plain", "exact", "wrong", "nowhere")))
Line = tuple[int, str]
# Contents of op 8.
typed = st.lists(st.sampled_from("110"), min_size=1, max_size=3)
has_sockets = precondition(lambda self: self.clients)
has_sessions = precondition(lambda self: self.sessions)
# Invalid requests and their refusals: keys, op_type, reason, id. `{to}` is another user, `{me}` the sender.
INVALID_REQUESTS = (
    ({"op_type": 1, "content": "m1\n"}, 40008, "empty", "m1"),
    ({"op_type": 1, "content": "m1\n" + "x" * 16385}, 40008, "too_long", "m1"),
    ({"op_type": 1, "content": "a b\nhello"}, 40008, "bad_id", ""),
    ({"op_type": 1, "content": "m1\nhello", "from": "{to}"}, 40008, "wrong_from", "m1"),
    ({"op_type": 1, "content": "m1\nhello", "to": "{me}"}, 40008, "to_yourself", "m1"),
    ({"op_type": 1, "content": "m1\nhello", "to": "unknown"}, 40008, "no_such_user", "m1"),
    ({"op_type": 2, "content": "-0"}, 40004, "bad_page", ""),
    ({"op_type": 2, "content": "-201"}, 40004, "bad_page", ""),
    ({"op_type": 2, "content": "-1@a b"}, 40004, "bad_id", ""),
    ({"op_type": 3, "content": "all"}, 40004, "bad_page", ""),
    ({"op_type": 4, "content": ""}, 40006, "empty", ""),
    ({"op_type": 4, "content": "a b"}, 40006, "bad_id", ""),
    ({"op_type": 5, "content": "\n".join(["m1"] * 201)}, 40012, "too_long", ""),
    ({"op_type": 6, "content": ""}, 40008, "empty", ""),
    ({"op_type": 7, "content": "2"}, 40022, "bad_page", ""),
    ({"op_type": 8, "content": "2"}, 40024, "bad_frame", ""),
    ({"op_type": 8, "content": "1", "to": "{me}"}, 40024, "to_yourself", ""),
    ({"op_type": 9, "content": ""}, 40000, "unknown_op", ""),
)


GROUP_OPS = (1, 2, 3, 4, 5, 8)
# An index for `_peer` that selects the first group.
GROUP = 2
# The steps of `acts_in_a_group`; frequent ones appear twice.
GROUP_ACTIONS = (
    *("send", "send", "page", "page around", "unread", "mark", "mark", "mark all", "delete", "delete", "confirm"),
    *(
        "confirm",
        "miss",
        "list",
        "type",
        "open",
        "close",
        "add",
        "add",
        "remove",
        "leave",
        "delete group",
        "create",
        "create",
        "block",
    ),
)
GroupAction = tuple[str, int, int]
group_actions = st.tuples(st.sampled_from(GROUP_ACTIONS), indexes, indexes)


def _pick(elements: Sequence[T], index: int) -> T:
    """Return the element at this index, modulo the length."""
    return elements[index % len(elements)]


class ProtocolMachine(RuleBasedStateMachine):
    """One sequence of steps, with users of its own, on a server that all sequences share."""

    runner: ClassVar[ServerRunner]

    def __init__(self) -> None:
        super().__init__()
        self.clients: list[Client] = []
        self.sessions: list[tuple[str, str]] = []  # user and token
        self.ended: list[tuple[str, str]] = []
        self.passwords: dict[str, str] = {}
        self.group_names: list[str] = []
        self.model = Model(())

    @initialize()
    def begin(self) -> None:
        """Register three users, each with one session, one plain socket and one sync socket.

        Two of them are contacts, with unread messages, and have a group, and the third has written to the first: most
        steps about blocks, typing and groups need that.
        """
        run = uuid.uuid4().hex[:10]
        names = [f"{letter}-{run}" for letter in "abc"]
        self.group_names = [f"#{letter}-{run}" for letter in "def"]
        self.model = Model(names)
        self.runner.do(self.runner.server.add_users(*names))
        self.passwords = dict.fromkeys(names, PASSWORD)
        self.sessions = [(name, self.runner.server.tokens[name]) for name in names]
        for session in self.sessions:
            self._open(*session, sync=False)
            self._open(*session, sync=True)
        for by, peer in ((self.clients[0], names[1]), (self.clients[2], names[0]), (self.clients[4], names[0])):
            self.model.send(by.socket, peer, "m1", "hello", self.runner.clock.now() / 1e6)
            self._request(by, raw.request(1, "m1\nhello", to=peer))
        self.creates_a_group(0, 0, [1])

    def teardown(self) -> None:
        """Close all sockets."""
        for client in self.clients:
            self.runner.do(client.close())

    # --- sessions and sockets

    @rule(which=indexes)
    def logs_in(self, which: int) -> None:
        user = _pick(self.model.users, which)
        token = self.runner.do(self.runner.server.login(user, self.passwords[user]))
        self.sessions.append((user, token))

    @has_sessions
    @rule(which=indexes)
    def logs_out(self, which: int) -> None:
        user, token = session = _pick(self.sessions, which)
        check_success(
            self._end_sessions([session], post(self.runner.server, "/user/logout", token, user_name=user)), 41015
        )

    @has_sessions
    @rule(which=indexes)
    def changes_the_password(self, which: int) -> None:
        user, token = session = _pick(self.sessions, which)
        ending = [other for other in self.sessions if other[0] == user and other != session]
        old, new = self.passwords[user], f"{self.passwords[user]}+"
        body = {"user_name": user, "old_password": old, "new_password": new}
        check_success(self._end_sessions(ending, post(self.runner.server, "/user/set_password", token, **body)), 41005)
        self.passwords[user] = new

    @has_sessions
    @rule(which=indexes, sync=st.booleans())
    def opens(self, which: int, sync: bool) -> None:
        user, token = _pick(self.sessions, which)
        if len(self.model.sockets_of(user)) == SOCKETS_PER_USER:
            assert self.runner.do(connect(self.runner.server, user, token, sync=sync)) == 429
            return
        self._open(user, token, sync=sync)

    @has_sessions
    @rule(which=indexes, other=indexes)
    def is_refused(self, which: int, other: int) -> None:
        """A wrong password, another user's session, and ended sessions are refused."""
        server = self.runner.server
        user, token = _pick(self.sessions, which)
        body = {"user_name": user, "password": "wrong password"}
        check_refusal(self.runner.do(post(server, "/user/login", **body)), 401, 41010, "wrong_password")
        assert self.runner.do(connect(server, self._other(user, other), token, sync=False)) == 403
        for ended in self.ended[-3:]:
            assert self.runner.do(connect(server, *ended, sync=False)) == 401

    @has_sockets
    @rule(by=indexes)
    def leaves(self, by: int) -> None:
        client = _pick(self.clients, by)
        self._remove([client])
        self.runner.do(client.close())

    @rule()
    def restarts(self) -> None:
        """The server restarts, and all clients open their sockets again."""
        clients = list(self.clients)
        self._remove(clients)
        self.model.restart()

        async def restart() -> None:
            await asyncio.gather(self.runner.stop(), *(client.wait_closed(1001) for client in clients))
            await self.runner.start()

        self.runner.do(restart())
        for client in clients:
            self._open(client.socket.user, client.socket.session, sync=client.socket.sync)

    @rule(hours=st.sampled_from((1, 4, 7)))
    def time_passes(self, hours: int) -> None:
        self.runner.clock.shift += hours * HOUR

    # --- the ops

    @has_sockets
    @rule(by=indexes, batch=st.lists(st.tuples(indexes, ids, texts), min_size=1, max_size=4))
    def sends(self, by: int, batch: Sequence[tuple[int, str, str]]) -> None:
        client = _pick(self.clients, by)
        requests = []
        for to, id, text in batch:
            peer = self._peer(client.socket.user, to)
            self.model.send(client.socket, peer, id, text, self.runner.clock.now() / 1e6)
            requests.append(raw.request(1, f"{id}\n{text}", to=peer))
        self._request(client, *requests)

    @has_sockets
    @rule(by=indexes, to=indexes, skip=st.integers(0, 5), count=pages)
    def pages_from_the_oldest(self, by: int, to: int, skip: int, count: int) -> None:
        client, peer = self._pair(by, to)
        self.model.page(client.socket, peer, lambda messages: messages[skip:][:count])
        self._request(client, raw.request(2, f"{skip}-{count}", to=peer))

    @has_sockets
    @rule(by=indexes, to=indexes, count=pages)
    def pages_from_the_newest(self, by: int, to: int, count: int) -> None:
        client, peer = self._pair(by, to)
        self.model.page(client.socket, peer, lambda messages: messages[-count:])
        self._request(client, raw.request(2, f"-{count}", to=peer))

    @has_sockets
    @rule(by=indexes, to=indexes, sign=st.sampled_from("+-"), count=pages, line=lines)
    def pages_around(self, by: int, to: int, sign: str, count: int, line: Line) -> None:
        client, peer = self._pair(by, to)
        mark = self._line(client, peer, line)
        self.model.page_around(client.socket, peer, sign, count, mark)
        self._request(client, raw.request(2, f"{sign}{count}@{mark}", to=peer))

    @has_sockets
    @rule(by=indexes, to=indexes, count=st.none() | pages)
    def pages_the_unread(self, by: int, to: int, count: int | None) -> None:
        client, peer = self._pair(by, to)
        self.model.unread(client.socket, peer, count)
        self._request(client, raw.request(3, "" if count is None else str(count), to=peer))

    @has_sockets
    @rule(by=indexes, to=indexes, named=st.lists(lines, min_size=1, max_size=3))
    def marks(self, by: int, to: int, named: Sequence[Line]) -> None:
        client, peer = self._pair(by, to)
        marks = [self._line(client, peer, line) for line in named]
        self.model.mark(client.socket, peer, marks)
        self._request(client, raw.request(4, "\n".join(marks), to=peer))

    @has_sockets
    @rule(by=indexes, to=indexes)
    def marks_all(self, by: int, to: int) -> None:
        client, peer = self._pair(by, to)
        self.model.mark_all(client.socket, peer)
        self._request(client, raw.request(4, "*", to=peer))

    @has_sockets
    @rule(by=indexes, to=indexes, named=st.lists(lines, min_size=1, max_size=2))
    def deletes(self, by: int, to: int, named: Sequence[Line]) -> None:
        client, peer = self._pair(by, to)
        marks = [self._line(client, peer, line) for line in named]
        self.model.delete(client.socket, peer, marks)
        self._request(client, raw.request(5, "\n".join(marks), to=peer))

    @has_sockets
    @rule(by=indexes)
    def broadcasts(self, by: int) -> None:
        client = _pick(self.clients, by)
        self.model.broadcast(client.socket, "to all")
        self._request(client, raw.request(6, "to all"))

    @has_sockets
    @rule(by=indexes, count=pages, after=st.none() | indexes)
    def lists_conversations(self, by: int, count: int, after: int | None) -> None:
        client = _pick(self.clients, by)
        peer = "" if after is None else self._peer(client.socket.user, after)
        if peer and peer[0] != "#":
            pair = self.model.pair(client.socket.user, peer)
            if pair.messages and not pair.visible(client.socket.user):
                return  # such a conversation is a position of the list, but the protocol does not say which
        self.model.list_conversations(client.socket, count, peer)
        self._request(client, raw.request(7, f"-{count}@{peer}" if peer else f"-{count}"))

    @has_sockets
    @rule(by=indexes, to=indexes, invalid=st.sampled_from(INVALID_REQUESTS))
    def sends_an_invalid_request(self, by: int, to: int, invalid: tuple[dict[str, object], int, str, str]) -> None:
        client, peer = self._pair(by, to)
        keys, op_type, reason, id = invalid
        conversation = self.model.conversation(client.socket.user, peer)
        if keys["op_type"] == 1 and isinstance(conversation, ModelPair):
            conversation.attempted = self.runner.clock.now() / 1e6
            if not keys.keys() & {"to", "from"} and (client.socket.user, peer) in self.model.blocks:
                reason = "you_blocked"  # the receiver is checked before the text
        if conversation is None and keys["op_type"] in GROUP_OPS and not keys.keys() & {"to", "from"}:
            reason = "no_such_group"
        client.socket.refusal(op_type, reason, **({"id": id} if id else {}))
        named = {
            key: str(value).format(to=peer, me=client.socket.user) for key, value in keys.items() if key != "op_type"
        }
        self._request(client, raw.request(int(str(keys["op_type"])), **({"to": peer} | named)))

    @has_sessions
    @rule(which=indexes, other=indexes, unblock=st.booleans(), marks=st.booleans(), retries=st.booleans())
    def blocks(self, which: int, other: int, unblock: bool, marks: bool, retries: bool) -> None:
        """A user blocks or unblocks another. Frames sent before the answer still follow the old state.

        Then the user `marks` the messages of the other as read, and each `retries` the first message.
        """
        user, token = _pick(self.sessions, which)
        block = user, self._other(user, other)
        path, done = ("/user/unblock", 43003) if unblock else ("/user/block", 43001)
        self.model.once_blocked.add(block)
        self.model.blocks.discard(block)
        check_success(self.runner.do(post(self.runner.server, path, token, user_name=block[1])), done)
        self._compare()
        if not unblock:
            self.model.blocks.add(block)
        for client in [one for one in self.clients if one.socket.user in block]:
            peer = block[client.socket.user == user]
            if marks and client.socket.user == user:
                self.model.mark_all(client.socket, peer)
                self._request(client, raw.request(4, "*", to=peer))
            if retries:
                self.model.send(client.socket, peer, "m1", "hello", self.runner.clock.now() / 1e6)
                self._request(client, raw.request(1, "m1\nhello", to=peer))

    @has_sockets
    @rule(by=indexes, to=indexes, contents=typed, later=st.booleans())
    def types(self, by: int, to: int, contents: Sequence[str], later: bool) -> None:
        """Op 8 has no answer, so an empty page follows: its answer shows that the frames are processed."""
        client, peer = self._pair(by, to)
        clock = self.runner.clock
        clock.shift += TYPING_INTERVAL * later
        if not self.model.knows_contacts(client.socket.user, peer, clock.now() / 1e6):
            return
        now = clock.now() / 1e6, clock.monotonic()
        silent = [self.model.typing(client.socket, peer, content, *now) for content in contents]
        self.model.page(client.socket, peer, lambda messages: messages[999:])
        requests = [raw.request(8, content, to=peer) for content in contents]
        self._request(client, *requests, raw.request(2, "999-1", to=peer), unanswered=sum(silent))

    @has_sockets
    @rule(by=indexes)
    def confirms(self, by: int) -> None:
        """The client answers the ping; the next page shows the confirmed messages as read."""
        client = _pick(self.clients, by)
        user = client.socket.user
        self.model.confirm(client.socket, self.runner.do(client.confirm()))
        for peer in (self._other(user, by), *(group.name for group in self.model.groups_of(user))):
            self.model.page(client.socket, peer, lambda messages: messages[-200:])
            self._request(client, raw.request(2, "-200", to=peer))

    # --- groups

    @rule(actions=st.lists(group_actions, min_size=3, max_size=12))
    def acts_in_a_group(self, actions: Sequence[GroupAction]) -> None:
        """Many steps that concern one group."""
        for action in actions:
            if self.clients and self.sessions:
                self._act(*action)

    def _act(self, action: str, by: int, n: int) -> None:
        """One step in the first group, most of those that change it by the first user."""
        steps: dict[str, Callable[[], object]] = {
            "send": lambda: self.sends(by, [(GROUP, ("m1", "m2", "", "")[n % 4], "hello")] * (1 + n % 2)),
            "page": lambda: self.pages_from_the_newest(by, GROUP, (2, 200)[n % 2]),
            "page around": lambda: self.pages_around(by, GROUP, "+-"[n % 2], 3, (n, "exact")),
            "unread": lambda: self.pages_the_unread(by, GROUP, None),
            "mark": lambda: self.marks(by, GROUP, [(n, "exact")]),
            "mark all": lambda: self.marks_all(by, GROUP),
            "delete": lambda: self.deletes(by, GROUP, [(n, "exact")]),
            "confirm": lambda: self.confirms(by),
            "list": lambda: self.lists_conversations(by, 200, None),
            "type": lambda: self.types(by, GROUP, "1", later=True),
            "miss": lambda: self._misses_a_message(by, n),
            "open": lambda: self.opens(by, sync=n % 3 == 0),
            "close": lambda: n % 2 and self.leaves(by),
            "add": lambda: self.adds(0, 0, [n % 2]),
            "remove": lambda: self.removes(0, 0, 1 + n % 2),
            "leave": lambda: n % 2 and self.removes(by, 0, by),
            "delete group": lambda: n % 3 or self.deletes_a_group(by, 0),
            "create": lambda: self.creates_a_group(0, 0, [0, 1][: n % 3]),
            "block": lambda: self.blocks(by, n, unblock=n % 2 == 0, marks=False, retries=False),
        }
        steps[action]()

    def _misses_a_message(self, which: int, by: int) -> None:
        """A user is offline while the group gets messages, returns, and confirms the next ones."""
        user, token = _pick(self.sessions, which)
        for client in [one for one in self.clients if one.socket.user == user]:
            self._remove([client])
            self.runner.do(client.close())
        for _ in range(2):
            if self.clients:
                self.sends(by, [(GROUP, "", "hello")])
            self._open(user, token, sync=False)
        self.confirms(len(self.clients) - 2)

    @has_sessions
    @rule(which=indexes, name=indexes, others=st.lists(st.integers(0, 1), max_size=2, unique=True))
    def creates_a_group(self, which: int, name: int, others: Sequence[int]) -> None:
        (user, token), group = _pick(self.sessions, which), _pick(self.group_names, name)
        users = [self._other(user, other) for other in others]
        self._change(group, token, "create", 42001, self.model.create(user, group, users), users=users)

    @has_sessions
    @rule(which=indexes, name=indexes, others=st.lists(st.integers(0, 1), max_size=2))
    def adds(self, which: int, name: int, others: Sequence[int]) -> None:
        (user, token), group = _pick(self.sessions, which), _pick(self.group_names, name)
        users = [self._other(user, other) for other in others]
        self._change(group, token, "add", 42003, self.model.add(user, group, users), users=users)

    @has_sessions
    @rule(which=indexes, name=indexes, other=indexes)
    def removes(self, which: int, name: int, other: int) -> None:
        (user, token), group = _pick(self.sessions, which), _pick(self.group_names, name)
        member = _pick(self.model.users, other)
        self._change(group, token, "remove", 42005, self.model.remove(user, group, member), user_name=member)

    @has_sessions
    @rule(which=indexes, name=indexes)
    def deletes_a_group(self, which: int, name: int) -> None:
        (user, token), group = _pick(self.sessions, which), _pick(self.group_names, name)
        self._change(group, token, "delete", 42007, self.model.delete_group(user, group))

    def _change(self, group: str, token: str, path: str, done: int, expected: object, **body: object) -> None:
        """Change a group, and compare the answer. Then all users with a session ask for its members."""
        response = self.runner.do(post(self.runner.server, f"/group/{path}", token, group=group, **body))
        if isinstance(expected, HttpRefusal):
            check_refusal(response, *expected)
        else:
            assert check_success(response, done) == expected
        self._compare()
        for user, its_token in dict(self.sessions).items():
            self._ask_members(user, its_token, group)

    def _ask_members(self, user: str, token: str, name: str) -> None:
        """Compare the members of a group; the model learns their times of joining."""
        expected = self.model.members(user, name)
        response = self.runner.do(group_helpers.ask_members_with(self.runner.server, token, name))
        if isinstance(expected, HttpRefusal):
            check_refusal(response, *expected)
            return
        found = check_success(response, 42009)
        unknown = [{key for key, value in wanted.items() if value is ...} for wanted in expected]
        shown = [
            {key: ... if key in keys else value for key, value in one.items()}
            for one, keys in zip(found, unknown, strict=True)
        ]
        assert shown == expected, (found, expected)
        self.model.groups[name].since = {one["user_name"]: one["since"] for one in found}

    # --- helpers

    def _peer(self, user: str, index: int) -> str:
        """Return another user, or a group whether it exists or not: half of the indexes each, the first group most."""
        names = self.group_names
        others = [other for other in self.model.users if other != user]
        return _pick([*others, names[0], *others, names[0], names[0], names[1], names[2]], index)

    def _other(self, user: str, index: int) -> str:
        return _pick([other for other in self.model.users if other != user], index)

    def _pair(self, by: int, to: int) -> tuple[Client, str]:
        client = _pick(self.clients, by)
        return client, self._peer(client.socket.user, to)

    def _line(self, client: Client, peer: str, line: Line) -> str:
        """Return a line that names the message of the conversation as `line` says, or no message."""
        index, how = line
        conversation = self.model.conversation(client.socket.user, peer)
        if not conversation or not conversation.messages or how == "nowhere":
            return "nowhere"
        message = _pick(conversation.messages, index)
        if how == "plain":
            return message.id
        if peer[0] == "#" and (how == "exact" or index % 2):
            return message.reference if how == "exact" else f"{message.id}/{_pick(self.model.users, index)}"
        return f"{'>' if (message.sender == client.socket.user) == (how == 'exact') else '<'}{message.id}"

    def _open(self, user: str, token: str, *, sync: bool) -> None:
        wire = self.runner.do(connect_when_free(self.runner.server, user, token, sync=sync))
        socket = ModelSocket(user, token, sync)
        self.model.sockets.append(socket)
        self.clients.append(Client(wire, socket))

    def _request(self, client: Client, *requests: bytes, unanswered: int = 0) -> None:
        """Send requests, and compare the frames on every socket. `unanswered` of the requests have no answer."""
        self.runner.do(client.ask(*requests, unanswered=unanswered))
        self._compare(client)

    def _compare(self, *first: Client) -> None:
        """Compare the frames on every socket; a `first` client learns ids and times of its messages."""

        async def receive() -> None:
            await asyncio.gather(*(one.receive_sent() for one in self.clients))

        self.runner.do(receive())
        for one in (*first, *(other for other in self.clients if other not in first)):
            one.compare(self.model)

    def _end_sessions(self, sessions: Sequence[tuple[str, str]], request: Coroutine[Any, Any, T]) -> T:
        """Send a request that ends these sessions, and wait until their sockets are closed."""
        tokens = [token for _, token in sessions]
        clients = [client for client in self.clients if client.socket.session in tokens]
        self._remove(clients)

        async def end() -> T:
            closing = [asyncio.create_task(client.wait_closed(4001)) for client in clients]
            response = await request
            await asyncio.gather(*closing)
            return response

        response = self.runner.do(end())
        self.sessions = [session for session in self.sessions if session not in sessions]
        self.ended += sessions
        return response

    def _remove(self, clients: Sequence[Client]) -> None:
        for client in clients:
            self.clients.remove(client)
            self.model.left.add(client.socket.user)
            if client.socket in self.model.sockets:
                self.model.sockets.remove(client.socket)
