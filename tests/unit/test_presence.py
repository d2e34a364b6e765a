"""Presence: which sockets learn about which changes, whatever happens between lookup and frame."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from chat_server.backends import SCHEMAS
from chat_server.model.blocks import BlockResult
from chat_server.model.messages import Message
from chat_server.model.sqlite import SqliteMessages, SqliteUsers
from chat_server.model.users import User
from chat_server.service import presence
from chat_server.service.blocks import Blocks
from chat_server.service.frames import Frames
from chat_server.service.presence import GRACE_SECONDS, MAX_WAITING, PEERS, USERS_PER_ROUND, Presence
from chat_server.service.registry import Registry
from chat_server.utils.errors import StoreUnavailable
from chat_server.utils.sqlite import Database
from tests.harness import ManualClock


class PresenceSocketStub:
    """An open socket that collects the lines of presence frames. `known` is what a client concludes from them."""

    peer, session = "", b""

    def __init__(self, user: str, *, sync: bool = True) -> None:
        self.user = user
        self.sync = sync
        self.frames: list[list[str]] = []
        self.known: dict[str, bool] = {}

    def offer(self, frame: bytes) -> None:
        content: str = json.loads(frame[frame.index(b'{"from"') :])["content"]
        self.frames.append(content.split("\n"))
        self.known |= {line[1:]: line[0] == "+" for line in self.frames[-1]}

    def new_frames(self) -> list[list[str]]:
        """Return the frames since the last call."""
        frames, self.frames = self.frames, []
        return frames


class PresenceSetup:
    """A registry and presence on an embedded store of messages."""

    def __init__(self, database: Database) -> None:
        self.clock = ManualClock()
        self.messages: Any = SqliteMessages(database)
        self.users = SqliteUsers(database)
        self.blocks = Blocks(self.users.blocks)
        self.registry = Registry()
        self.presence = Presence(self.messages, self.blocks, self.registry, Frames("en"), self.clock)
        self.registry.changed = self.presence.changed
        self._times = count(1)

    async def chats(self, *pairs: str) -> None:
        """Store a message for each pair, such as "ab"; the last conversation is the newest."""
        await self.messages.add(
            [Message(one, other, f"m{one}", "hello", next(self._times)) for one, other in map(tuple, pairs)]
        )

    def open(self, user: str, *, sync: bool = True) -> Any:
        socket: Any = PresenceSocketStub(user, sync=sync)
        self.registry.add(socket)
        return socket

    def close(self, *sockets: Any) -> None:
        for socket in sockets:
            self.registry.remove(socket)

    async def push_all(self) -> None:
        """Push until every change is announced."""
        await self.presence.push()
        while self.presence.waiting():
            await self.presence.push()

    async def after_grace(self) -> None:
        """Let the grace period of all closed sockets end, and push the changes."""
        self.clock.shift += GRACE_SECONDS
        await self.push_all()


@pytest.fixture
async def setup(tmp_path: Path) -> AsyncIterator[PresenceSetup]:
    database = Database(tmp_path, timeout=20)
    await database.open(SCHEMAS)
    yield PresenceSetup(database)
    await database.close()


async def test_peers_learn_of_the_first_and_the_last_socket(setup: PresenceSetup) -> None:
    await setup.chats("ab", "cd")
    a, c = setup.open("a"), setup.open("c")
    await setup.push_all()
    one, other = setup.open("b"), setup.open("b")
    await setup.push_all()
    assert a.new_frames() == [["+b"]]
    setup.close(one)
    await setup.after_grace()
    assert a.new_frames() == []
    setup.close(other)
    await setup.push_all()
    assert a.new_frames() == []
    await setup.after_grace()
    assert a.new_frames() == [["-b"]]
    assert c.new_frames() == []


async def test_a_return_within_the_grace_period_causes_no_frame(setup: PresenceSetup) -> None:
    await setup.chats("ab")
    a, b = setup.open("a"), setup.open("b")
    await setup.push_all()
    a.new_frames()
    for _ in range(3):
        setup.close(b)
        setup.clock.shift += GRACE_SECONDS / 2
        await setup.push_all()
        assert setup.presence.online("b", "a")
        b = setup.open("b")
        await setup.push_all()
    assert a.new_frames() == []


async def test_other_processes_are_told_of_a_return(setup: PresenceSetup) -> None:
    """One that started in between has read which users have sockets."""
    told: list[tuple[str, bool]] = []
    setup.presence.tell = lambda user, online: told.append((user, online))
    b = setup.open("b")
    setup.open("b")
    setup.close(b)
    assert told == [("b", True)]
    for socket in list(setup.registry):
        setup.close(socket)
    setup.open("b")
    assert told == [("b", True)] * 2
    setup.presence.changed("c")  # whose socket did not open
    assert told[2:] == [("c", False)]


async def test_notices_count_while_their_process_is_known(setup: PresenceSetup) -> None:
    await setup.chats("ab", "ac")
    a = setup.open("a")
    await setup.push_all()

    def notice(user: str, online: bool) -> bool:
        setup.presence.changed_elsewhere("node", user, online=online)
        return setup.presence.online(user, "a")

    assert not notice("b", online=True)
    setup.presence.appeared("node", {"b"})
    assert not notice("b", online=False)
    assert notice("c", online=True)
    setup.presence.appeared("node", {"b"})
    assert setup.presence.online("b", "a")
    assert not setup.presence.online("c", "a")
    setup.presence.vanished("node")
    assert not notice("b", online=True)
    await setup.push_all()
    assert [sorted(lines) for lines in a.new_frames()] == [["-b", "-c"]]


async def test_a_round_sends_one_frame_with_a_line_per_change(setup: PresenceSetup) -> None:
    await setup.chats("ab", "ac", "ad", "bc")
    a, plain, d = setup.open("a"), setup.open("a", sync=False), setup.open("d")
    await setup.push_all()
    a.new_frames()
    setup.close(d)
    setup.clock.shift += GRACE_SECONDS
    b = setup.open("b")
    setup.open("c")
    await setup.push_all()
    assert [sorted(lines) for lines in a.new_frames()] == [["+b", "+c", "-d"]]
    assert b.new_frames() == [["+c"]]
    assert plain.new_frames() == []


async def test_a_round_has_a_bounded_number_of_lines_and_lookups(setup: PresenceSetup) -> None:
    users = [f"{number:03}" for number in range(USERS_PER_ROUND + 50)]
    times = count(1)
    await setup.messages.add([Message("a", user, "m", "hello", next(times)) for user in users])
    a = setup.open("a")
    await setup.push_all()
    for user in users:
        setup.open(user)
    await setup.presence.push()
    assert setup.presence.waiting() == 50
    await setup.push_all()
    assert [len(lines) for lines in a.new_frames()] == [USERS_PER_ROUND, 50]


async def test_only_peers_of_the_newest_conversations_are_notified(setup: PresenceSetup) -> None:
    times = count(1)
    peers = [f"{number:03}" for number in range(PEERS + 1)]
    await setup.messages.add([Message("a", peer, "m", "hello", next(times)) for peer in peers])
    beyond, last = setup.open(peers[0]), setup.open(peers[1])
    setup.open("a")
    await setup.push_all()
    assert (beyond.new_frames(), last.new_frames()) == ([], [["+a"]])


async def test_a_failing_store_only_delays_presence(
    setup: PresenceSetup, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await setup.chats("ab", "ac", "ad")
    a = setup.open("a")
    await setup.push_all()
    found = setup.messages.newest_peers
    failing = {"c"}

    async def newest_peers(user: str, most: int) -> list[str]:
        if user in failing:
            raise StoreUnavailable("away")
        peers: list[str] = await found(user, most)
        return peers

    monkeypatch.setattr(setup.messages, "newest_peers", newest_peers)
    for user in "bcd":
        setup.open(user)
    await setup.presence.push()
    assert a.new_frames() == [["+b"]]
    assert setup.presence.waiting() == 2
    assert [record.message for record in caplog.records] == ["presence delayed"]
    failing.clear()
    await setup.presence.push()
    assert a.new_frames() == [["+c", "+d"]]


async def test_waiting_changes_are_bounded(setup: PresenceSetup) -> None:
    for number in range(MAX_WAITING + 10):
        setup.open(f"user{number}")
    assert setup.presence.waiting() == MAX_WAITING


async def test_a_repeated_change_displaces_no_waiting_change(
    setup: PresenceSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "MAX_WAITING", 2)
    await setup.chats("ab", "cb")
    b, a = setup.open("b"), setup.open("a")
    await setup.push_all()
    assert b.new_frames() == [["+a"]]
    setup.close(a)
    setup.open("c")
    setup.clock.shift += GRACE_SECONDS
    setup.presence._end_grace()  # now both changes wait
    setup.open("a")
    await setup.push_all()
    assert sorted(line for lines in b.new_frames() for line in lines) == ["+a", "+c"]


async def test_a_repeated_block_displaces_no_waiting_change(
    setup: PresenceSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "MAX_WAITING", 2)
    for user in "abc":
        await setup.users.add(User(user, "hash"))
    await setup.chats("ab", "cb")
    b, *_ = (setup.open(user) for user in "bac")
    await setup.push_all()
    assert sorted(*b.new_frames()) == ["+a", "+c"]
    for user in "acc":  # the last is a retry
        await setup.blocks.block(user, "b")
        setup.presence.changed_for(user, "b")
    await setup.push_all()
    assert sorted(*b.new_frames()) == ["-a", "-c"]


async def test_a_frame_states_the_presence_at_the_time_of_sending(
    setup: PresenceSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user who leaves for good during the lookup is announced as online, and as offline by the next round."""
    await setup.chats("ab")
    a = setup.open("a")
    await setup.push_all()
    found = setup.messages.newest_peers
    during: list[Callable[[], None]] = []

    async def newest_peers(user: str, most: int) -> list[str]:
        peers: list[str] = await found(user, most)
        while during:
            during.pop()()
        return peers

    monkeypatch.setattr(setup.messages, "newest_peers", newest_peers)
    b = setup.open("b")
    during.append(lambda: setup.close(b))
    await setup.presence.push()
    assert a.new_frames() == [["+b"]]
    await setup.after_grace()
    assert a.new_frames() == [["-b"]]


async def test_no_client_keeps_a_wrong_presence(setup: PresenceSetup) -> None:
    """Users come, go and block, and sockets read the list, at any moment of a round: no socket keeps a wrong state."""
    users = "abcd"
    await setup.chats("ab", "ac", "ad", "bc", "bd", "cd")
    await setup.users.put([User(user, "hash") for user in users])
    for seed in range(60):
        chance = random.Random(seed)
        sockets: list[Any] = []
        blocks: set[tuple[str, str]] = set()
        for _ in range(60):
            step = chance.randrange(8)
            if step == 0:
                sockets.append(setup.open(chance.choice(users)))
            elif step == 1 and sockets:
                setup.close(sockets.pop(chance.randrange(len(sockets))))
            elif step == 2:
                setup.clock.shift += chance.choice((0.1, 3, GRACE_SECONDS))
            elif step == 3 and sockets:
                reader = chance.choice(sockets)
                others = set(users) - {reader.user}
                seen = await setup.presence.seen_online(reader.user, others)
                reader.known |= {user: user in seen for user in others}
            elif step == 4:
                await asyncio.sleep(0)
            elif step == 5:
                blocks ^= {await toggle_block(setup, *chance.sample(users, 2))}
            else:
                push = asyncio.create_task(setup.presence.push())
                await asyncio.sleep(chance.choice((0, 0, 0.001)))
                if chance.random() < 0.5:
                    await push
                else:
                    sockets.append(setup.open(chance.choice(users)))
                    await push
        await setup.after_grace()
        for socket in sockets:
            online = {user: setup.registry.online(user) and (user, socket.user) not in blocks for user in socket.known}
            assert socket.known == online, (seed, socket.user)
        setup.close(*sockets)
        await setup.after_grace()
        for block in list(blocks):
            await toggle_block(setup, *block)


async def toggle_block(setup: PresenceSetup, user: str, other: str) -> tuple[str, str]:
    """Let `user` unblock the other, or block."""
    if (await setup.blocks.states([(user, other)]))[user, other]:
        await setup.blocks.unblock(user, other)
    else:
        assert await setup.blocks.block(user, other) is BlockResult.BLOCKED
    setup.presence.changed_for(user, other)
    return user, other


async def test_a_blocked_peer_sees_the_user_go_offline_and_return(setup: PresenceSetup) -> None:
    await setup.users.put([User(user, "hash") for user in "abc"])
    await setup.chats("ab", "bc")
    a, b, c = (setup.open(user) for user in "abc")
    await setup.push_all()
    for socket in (a, b, c):
        socket.new_frames()
    await toggle_block(setup, "b", "a")
    await setup.push_all()
    assert a.new_frames() == [["-b"]]
    setup.close(b)
    await setup.after_grace()
    b = setup.open("b")
    await setup.push_all()
    assert a.new_frames() == []
    assert c.new_frames() == [["-b"], ["+b"]]
    assert await setup.presence.seen_online("a", ["b"]) == set()
    assert await setup.presence.seen_online("b", ["a"]) == {"a"}
    await toggle_block(setup, "b", "a")
    await setup.push_all()
    assert a.new_frames() == [["+b"]]
    await toggle_block(setup, "a", "c")  # no conversation
    await setup.push_all()
    assert c.new_frames() == []
