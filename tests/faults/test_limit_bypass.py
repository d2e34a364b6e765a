"""A search for ways to exceed a limit: parallel sockets, retries, cuts, clock jumps, restarts, lost counters.

Hypothesis generates the schedules and runs them on a real server, on embedded stores and on Redis with MongoDB.
`make search` searches longer.
"""

import asyncio
import json
import tempfile
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, suppress
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import pytest
import redis as redis_driver
import websockets
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tests import raw, servers
from tests.e2e import group_helpers
from tests.e2e.http_helpers import post, sql
from tests.faults.stores import unique_names
from tests.harness import PASSWORD, SEARCH, ChatClient, ManualClock, ServerHandle, serving, wait_until

T = TypeVar("T")

LIMIT = 3  # unanswered messages, failed logins, broadcasts; a quarter of the sockets of a user
DAY, MINUTE = 86400 * 1000, 60 * 1000  # milliseconds
ACKNOWLEDGED = (40018, 40019)

# Mostly far beyond the end of a window, or a short time: faults are likely at both ends of a window.
jumps = st.one_of(
    st.just(2 * DAY),
    st.just(2 * DAY),
    st.sampled_from([1000, MINUTE // 2, 2 * MINUTE, DAY // 2, -1000, -MINUTE, -DAY // 2, -2 * DAY]),
)


class RestartableServer:
    """A server with a manual clock that can be restarted. `lose` deletes its counters."""

    def __init__(self, stores: Mapping[str, str], lose: Callable[[Path], None]) -> None:
        self.clock = ManualClock()
        self._stores = stores
        self._lose = lose
        self._folder = tempfile.TemporaryDirectory(prefix="chat-limits-")
        self._runner = asyncio.Runner()
        self._stack = AsyncExitStack()
        self.names: list[str] = []
        self.handle: ServerHandle

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` on the event loop of the server."""
        return self._runner.run(work)

    async def start(self, *users: str) -> None:
        """Start or restart the server, register `users` and log all users in."""
        await self._stack.aclose()
        limits: dict[str, Any] = {"StrangerLimit": LIMIT, "StrangerWindow": 1, "LoginFailures": LIMIT, "LoginWindow": 1}
        limits |= {"BroadcastsPerMinute": LIMIT, "SocketsPerUser": LIMIT * 4, "TrustedProxies": "127.0.0.1"}
        folder = Path(self._folder.name)
        self.handle = await self._stack.enter_async_context(serving(folder, self.clock, stores=self._stores, **limits))
        for name in users:
            await self.handle.post("/user/register", {"user_name": name, "password": PASSWORD})
        self.names = self.names or list(users)
        await self.log_in()

    async def log_in(self) -> None:
        """Log all users in, from an address without wrong guesses."""
        for name in self.names:
            body = {"user_name": name, "password": PASSWORD}
            response = await self.handle.post("/user/login", body, headers={"X-Forwarded-For": "192.0.2.1"})
            self.handle.tokens[name] = response.json()["data"]["token"]

    async def lose(self) -> None:
        """Lose the counters, and the sessions if they are in the same database."""
        self._lose(Path(self._folder.name))
        await self.log_in()

    async def sockets(self, stack: AsyncExitStack, user: str, many: int, to: str = "") -> list[ChatClient]:
        """Open this many sockets, until the stack ends."""
        return [await stack.enter_async_context(self.handle.chat(user, to)) for _ in range(many)]

    def close(self) -> None:
        """Stop the server and delete its data."""
        self.do(self._stack.aclose())
        self._runner.close()
        self._folder.cleanup()


class LimitMachine(RuleBasedStateMachine):
    """The steps that both searches share."""

    make: Callable[[], RestartableServer]  # set by each test
    server: RestartableServer

    def teardown(self) -> None:
        self.server.close()

    @rule()
    def restart(self) -> None:
        self.server.do(self.server.start())

    @rule(by=jumps)
    def jump(self, by: int) -> None:
        self.server.clock.shift += by / 1000


class ContactLimitMachine(LimitMachine):
    """One user writes to another who never answers: no window ever has more than LIMIT stored messages."""

    @initialize()
    def begin(self) -> None:
        self.server = type(self).make()
        self.sender, self.receiver = unique_names(2)
        self.server.do(self.server.start(self.sender, self.receiver))
        self.ids = (f"m{number}" for number in count())
        self.tried: list[str] = []
        self.times: dict[str, int] = {}

    @rule(sockets=st.integers(1, 4), each=st.integers(1, 4), twins=st.booleans(), lost=st.booleans())
    def send_in_parallel(self, sockets: int, each: int, twins: bool, lost: bool) -> None:
        """Send from several sockets: the same ids if `twins`, and directly after a loss of the counters if `lost`."""
        if lost:
            self.server.do(self.server.lose())
        ids = [next(self.ids) for _ in range(each if twins else sockets * each)]
        mine = [ids if twins else ids[n * each : (n + 1) * each] for n in range(sockets)]
        self.tried += ids
        self.server.do(self._send(mine))

    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        """Retry a message from two sockets at the same time."""
        if self.tried:
            id = data.draw(st.sampled_from(self.tried))
            self.server.do(self._send([[id], [id]]))

    async def _send(self, mine: list[list[str]]) -> None:
        async with AsyncExitStack() as stack:
            chats = await self.server.sockets(stack, self.sender, len(mine), self.receiver)
            for answers in await asyncio.gather(*map(self._send_all, chats, mine)):
                for answer in answers:
                    if answer["op_type"] in ACKNOWLEDGED:
                        self.times[answer["id"]] = answer["time"]

    async def _send_all(self, chat: ChatClient, ids: list[str]) -> list[dict[str, Any]]:
        for id in ids:
            await chat.put(1, f"{id}\nhello")
        return [await chat.receive() for _ in ids]

    @rule(each=st.integers(1, 4), wait=st.sampled_from([0, 0, 0.002, 0.01]))
    def send_and_cut(self, each: int, wait: float) -> None:
        """Cut the connection between the check and the answer."""
        ids = [next(self.ids) for _ in range(each)]
        self.tried += ids

        async def cut() -> None:
            async with raw.chat(self.server.handle, self.sender, self.receiver) as one:
                await one.write(b"".join(raw.request(1, f"{id}\nhello") for id in ids))
                await asyncio.sleep(wait)
                one.reset()

        self.server.do(cut())

    @rule()
    def delete(self) -> None:
        """Delete all messages."""

        async def delete() -> None:
            async with self.server.handle.chat(self.sender, self.receiver) as chat:
                if found := [frame["id"] for frame in await chat.ask(2, "-200") if frame["type"] == 2]:
                    assert (await chat.answer(5, "\n".join(found)))["op_type"] == 40013

        self.check_windows()
        self.server.do(delete())

    @invariant()
    def check_windows(self) -> None:
        """Fail if a window, which starts with its first message, contains more than LIMIT messages."""
        if not hasattr(self, "times"):
            return
        self.server.do(self._read_times())
        started = used = 0
        for time in sorted(self.times.values()):
            if not used or time >= started + DAY:
                started, used = time, 0
            used += 1
            assert used <= LIMIT, self.times

    async def _read_times(self) -> None:
        async with self.server.handle.chat(self.receiver, self.sender) as chat:
            self.times |= {frame["id"]: frame["time"] for frame in await chat.ask(2, "-200") if frame["type"] == 2}


class BlockMachine(LimitMachine):
    """A blocked user tries to reach the user who blocks it, or to learn of it: only broadcasts pass, and messages in
    a common group.

    A friend of both, who never opens a socket, owns the common group and a secret group of the victim.
    """

    @initialize()
    def begin(self) -> None:
        self.server = type(self).make()
        self.victim, self.attacker, self.friend = unique_names(3)
        self.common, self.secret = f"#common-{self.victim}", f"#secret-{self.victim}"
        self.server.do(self.server.start(self.victim, self.attacker, self.friend))
        self.server.do(self._prepare())
        self.blocked = False
        self.count = 0

    async def _prepare(self) -> None:
        handle = self.server.handle
        await handle.make_contacts(self.victim, self.attacker)
        for user in (self.victim, self.attacker):
            async with handle.chat(user, self.friend) as chat:
                await chat.send("hello")
        await group_helpers.create(handle, self.friend, self.common, self.victim, self.attacker)
        await group_helpers.create(handle, self.friend, self.secret, self.victim)

    @rule(unblock=st.booleans())
    def change(self, unblock: bool) -> None:
        self.server.do(self._block(unblock=unblock))

    async def _block(self, *, unblock: bool = False) -> None:
        headers = {"Authorization": f"Bearer {self.server.handle.tokens[self.victim]}"}
        path = "/user/unblock" if unblock else "/user/block"
        response = await self.server.handle.post(path, {"user_name": self.attacker}, headers=headers)
        assert response.status_code == 200, response.text
        self.blocked = not unblock

    @rule(sockets=st.integers(1, 3), ops=st.lists(st.sampled_from("123456788gtsu"), min_size=1, max_size=6))
    def attack(self, sockets: int, ops: list[str]) -> None:
        """Send every op from several sockets, while the victim uses its own. Then block, and do it again."""
        self.server.do(self._attack(sockets, ops))

    async def _attack(self, many: int, ops: list[str]) -> None:
        handle = self.server.handle
        async with AsyncExitStack() as stack:
            victims = [await stack.enter_async_context(handle.chat(self.victim, self.attacker, sync=True))]
            victims += await self.server.sockets(stack, self.victim, 1, self.attacker)
            spies = [await stack.enter_async_context(handle.chat(self.attacker, self.victim, sync=True))]
            spies += await self.server.sockets(stack, self.attacker, many, self.victim)
            for _ in range(2):
                was_blocked = self.blocked
                attacks = [asyncio.create_task(self._put_all(chat, ops)) for chat in spies]
                await self._block()
                if not was_blocked:  # before the answer, everything was allowed
                    await received_frames(*victims)
                    await received_frames(*spies)
                await asyncio.gather(*attacks)
                for chat in victims:
                    for content, op in (("1", 8), ("0", 8), ("*", 4), (f"v{self.count}\nhello", 1)):
                        await chat.put(op, content)
                    await chat.put(8, "1", to=self.common)
                for frame in await received_frames(*victims):
                    passes = frame["to"] == "ALL" or frame["type"] == 2
                    passes = passes or (frame["to"], frame["op_type"]) == (self.common, 40011)
                    assert frame["from"] != self.attacker or passes, frame
                await self._attack_over_http()
                for frame in await received_frames(*spies):
                    assert self._reveals_nothing(frame), frame

    async def _attack_over_http(self) -> None:
        """The attacker cannot add the victim to a group, see it online in the common one, or find the secret one."""
        handle, token = self.server.handle, self.server.handle.tokens[self.attacker]
        own = f"#own-{self.attacker}"
        for path, group in (("create", own), ("add", self.common), ("add", self.secret), ("remove", self.secret)):
            body: dict[str, Any] = {"users": [self.victim]} if path != "remove" else {"user_name": self.victim}
            response = await post(handle, f"/group/{path}", token, group=group, **body)
            if group == self.common:  # the victim is a member already
                assert response.json()["data"] == [], response.text
            else:
                reason = "refused_by_limit" if group == own else "no_such_group"
                assert response.json()["data"]["reason"] == reason, response.text
        members = await group_helpers.members(handle, self.attacker, self.common)
        assert not members[self.victim]["online"]
        for group in (self.secret, own):
            assert (await group_helpers.ask_members(handle, self.attacker, group)).status_code == 404

    @rule(turns=st.integers(1, 4), sockets=st.integers(1, 2))
    def come_and_go(self, turns: int, sockets: int) -> None:
        """The attacker is added to the secret group and removed, while it writes there: at last, nothing passes."""
        self.server.do(self._come_and_go(turns, sockets))

    async def _come_and_go(self, turns: int, many: int) -> None:
        handle = self.server.handle
        async with AsyncExitStack() as stack:
            spies = await self.server.sockets(stack, self.attacker, many)
            victim = await stack.enter_async_context(handle.chat(self.victim, self.secret))
            for _ in range(turns):
                writing = [asyncio.create_task(self._write_in_secret(chat)) for chat in spies]
                await group_helpers.add(handle, self.friend, self.secret, self.attacker)
                await asyncio.sleep(0.01)
                await group_helpers.remove(handle, self.friend, self.secret, self.attacker)
                stored = await self._newest(victim)
                await asyncio.sleep(0.02)  # the attacker goes on
                for task in writing:
                    task.cancel()
                await asyncio.gather(*writing, return_exceptions=True)
                for chat in (victim, *spies):
                    await received_frames(chat)
                for chat in spies:
                    for op, content in ((1, "hello"), (2, "-1"), (4, "*"), (8, "1")):
                        assert (await chat.answer(op, content, to=self.secret))["reason"] == "no_such_group"
                assert await self._newest(victim) == stored

    async def _newest(self, victim: ChatClient) -> object:
        """Return the id of the newest message of the secret group."""
        await received_frames(victim)
        return [frame["id"] for frame in await victim.ask(2, "-1") if frame["type"] == 2]

    async def _write_in_secret(self, chat: ChatClient) -> None:
        while True:
            self.count += 1
            await chat.put(1, f"s{self.count}\nhello", to=self.secret)
            await chat.put(2, "-1", to=self.secret)
            await asyncio.sleep(0.002)

    async def _put_all(self, chat: ChatClient, ops: list[str]) -> None:
        for op in ops:
            self.count += 1
            old = f"hello-{self.attacker}-{self.victim}"
            contents = {"1": f"a{self.count}\nhello", "2": "-5", "3": "", "4": "*", "5": "nothing", "6": "to all"}
            if op in "gtsu":
                to = self.common if op in "gt" else self.secret
                content = f"a{self.count}\nhello" if op in "gs" else str(self.count % 2)
                await chat.put(1 if op in "gs" else 8, content, to=to)
                continue
            content = contents.get(op, "-5" if op == "7" else str(self.count % 2))
            await chat.put(int(op), content)
            await chat.put(1, f"{old}\nhello")  # a retry
            await asyncio.sleep(0)

    def _reveals_nothing(self, frame: dict[str, Any]) -> bool:
        """Whether the attacker may receive this from a server on which it is blocked."""
        if frame["op_type"] in (40018, 40021, 40025) or frame.get("online") is True:
            return False
        if frame["op_type"] == 40027:
            return f"+{self.victim}" not in str(frame["content"]).split("\n")
        if frame["to"] == self.secret:
            return False
        return bool(frame["from"] != self.victim or (frame["type"] == 2 and frame["op_type"] != 40007))


async def received_frames(*chats: ChatClient) -> list[dict[str, Any]]:
    """Return the frames that have arrived on these sockets, once none arrives any more."""
    found: list[dict[str, Any]] = []

    async def receive(chat: ChatClient) -> None:
        await (await chat.connection.ping())
        with suppress(TimeoutError):
            while True:
                async with asyncio.timeout(0.05):
                    found.append(json.loads(await chat.connection.recv()))

    await asyncio.gather(*map(receive, chats))
    return found


class EventCount:
    """Counts an event that may happen LIMIT times in a minute. A clock that is set back starts a new window."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self._used = self._started = 0

    def add(self, times: int) -> None:
        """Count events that happened now; fail if they are more than LIMIT."""
        now = self._clock.now() // 1000
        if not self._started <= now < self._started + MINUTE:
            self._started, self._used = now, 0
        self._used += times
        assert self._used <= LIMIT

    def reset(self) -> None:
        """Start from zero."""
        self._used = self._started = 0


class RateMachine(LimitMachine):
    """Wrong passwords, broadcasts and open sockets: none exceeds its limit."""

    @initialize()
    def begin(self) -> None:
        self.server = type(self).make()
        self.user, self.victim = unique_names(2)
        self.server.do(self.server.start(self.user))
        self.server.do(self.server.handle.post("/user/register", {"user_name": self.victim, "password": PASSWORD}))
        self.guesses, self.broadcasts = EventCount(self.server.clock), EventCount(self.server.clock)

    @rule(many=st.integers(1, 6))
    def guess(self, many: int) -> None:
        """Try wrong passwords in parallel; each answer 401 is a guess."""
        answers = self.server.do(self._log_in(many, "wrong password"))
        assert set(answers) <= {401, 429}
        self.guesses.add(answers.count(401))

    @rule()
    def log_in(self) -> None:
        """The user logs in from the same address; a success resets the count."""
        if self.server.do(self._log_in(1, PASSWORD)) == [200]:
            self.guesses.reset()

    @rule(many=st.integers(1, 4), wait=st.sampled_from([0, 0.001, 0.005]))
    def guess_and_cut(self, many: int, wait: float) -> None:
        """Cut the connections of wrong guesses, so that no answer arrives."""
        body = json.dumps({"user_name": self.victim, "password": "wrong password"}).encode()
        head = b"POST /user/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"

        async def cut() -> None:
            one = raw.RawSocket(await raw.connect(self.server.handle), "")
            await one.write(head % len(body) + body)
            await asyncio.sleep(wait)
            one.reset()

        async def cut_all() -> None:
            await asyncio.gather(*(cut() for _ in range(many)))

        self.server.do(cut_all())

    async def _log_in(self, many: int, password: str) -> list[int]:
        body = {"user_name": self.victim, "password": password}
        async with self.server.handle.client() as client:
            answers = await asyncio.gather(*(client.post("/user/login", json=body) for _ in range(many)))
        return [answer.status_code for answer in answers]

    @rule(sockets=st.integers(1, 3), each=st.integers(1, 3))
    def broadcast(self, sockets: int, each: int) -> None:
        async def send() -> list[int]:
            async with AsyncExitStack() as stack:
                chats = await self.server.sockets(stack, self.user, sockets)
                answers = await asyncio.gather(*(chat.answer(6, "hello") for chat in chats for _ in range(1)))
                for _ in range(each - 1):
                    answers += await asyncio.gather(*(chat.answer(6, "hello") for chat in chats))
                return [answer["op_type"] for answer in answers]

        self.broadcasts.add(self.server.do(send()).count(40009))

    @rule(many=st.integers(1, 6 * LIMIT), vanish=st.booleans())
    def open_sockets(self, many: int, vanish: bool) -> None:
        """Open sockets in parallel, never more than the limit. After they are closed, as many can be opened again."""
        self.server.do(self._open(many, vanish))

    async def _open(self, many: int, vanish: bool) -> None:
        async with AsyncExitStack() as stack:

            async def open_one() -> bool:
                with suppress(websockets.InvalidStatus):
                    chat = await stack.enter_async_context(self.server.handle.chat(self.user))
                    if vanish:
                        stack.callback(chat.connection.transport.abort)
                    return True
                return False

            opened = sum(await asyncio.gather(*(open_one() for _ in range(many))))
            assert opened <= 4 * LIMIT
        await wait_until(self._all_fit)

    async def _all_fit(self) -> bool:
        async with AsyncExitStack() as stack:
            try:
                await self.server.sockets(stack, self.user, 4 * LIMIT)
            except websockets.InvalidStatus:
                return False
        return True

    @rule()
    def lose_counters(self) -> None:
        """The counts start from zero, because nothing else can rebuild them."""
        self.server.do(self.server.lose())
        self.guesses.reset()
        self.broadcasts.reset()


def lose_rows(folder: Path) -> None:
    """Delete the counters of the embedded database."""
    sql(folder, "DELETE FROM strangers")
    sql(folder, "DELETE FROM rates")


def search(machine: type[LimitMachine], make: Callable[[], RestartableServer], examples: int) -> None:
    """Run `examples` schedules; hypothesis reduces a schedule that exceeds a limit, and reports it."""
    found: type[LimitMachine] = type(machine.__name__, (machine,), {"make": staticmethod(make)})
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    run_state_machine_as_test(
        found,
        settings=settings(
            max_examples=examples * SEARCH,
            stateful_step_count=20,
            suppress_health_check=checks,
            derandomize=SEARCH == 1,
        ),
        _min_steps=10,  # short schedules find nothing here
    )


# A schedule of BlockMachine takes several times as long as one of the others, because each attack uses every op.
@pytest.mark.parametrize(("machine", "examples"), [(ContactLimitMachine, 10), (RateMachine, 10), (BlockMachine, 6)])
def test_no_schedule_exceeds_a_limit_on_embedded_stores(machine: type[LimitMachine], examples: int) -> None:
    search(machine, lambda: RestartableServer({}, lose_rows), examples)


@pytest.mark.parametrize("machine", [ContactLimitMachine, RateMachine, BlockMachine])
def test_no_schedule_exceeds_a_limit_on_database_servers(
    machine: type[LimitMachine], redis: servers.DatabaseServer, mongodb: servers.DatabaseServer
) -> None:
    def flush(_: Path) -> None:
        with redis_driver.Redis(port=redis.port) as driver:
            driver.flushdb()

    search(machine, lambda: RestartableServer(servers.environ(redis=redis, mongodb=mongodb), flush), 3)
