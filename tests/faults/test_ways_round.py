"""A search for ways round the limits: parallel sockets, retries, cut connections, clock jumps, restarts, lost counters.

Hypothesis draws the schedules and the real server runs them, on the embedded database and on Redis with MongoDB.
CHAT_TEST_WALK=20 searches twenty times as long.
"""

import asyncio
import json
import os
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
from tests.e2e.http_helpers import sql
from tests.faults.stores import names
from tests.harness import PASSWORD, ChatClient, ManualClock, ServerHandle, serving, wait_until

T = TypeVar("T")

WALK = int(os.environ.get("CHAT_TEST_WALK", "1"))
LIMIT = 3  # messages to a stranger, failed logins, broadcasts, sockets
DAY, MINUTE = 86400 * 1000, 60 * 1000  # milliseconds
STORED = (40018, 40019)

# Mostly past the end of a window, or a little: both ends of it are where a fault would be.
jumps = st.one_of(
    st.just(2 * DAY),
    st.just(2 * DAY),
    st.sampled_from([1000, MINUTE // 2, 2 * MINUTE, DAY // 2, -1000, -MINUTE, -DAY // 2, -2 * DAY]),
)


class World:
    """A server that can be stopped and started, with a clock moved by hand; `lose` makes it lose its counters."""

    def __init__(self, stores: Mapping[str, str], lose: Callable[[Path], None]) -> None:
        self.clock = ManualClock()
        self._stores = stores
        self._lose = lose
        self._folder = tempfile.TemporaryDirectory(prefix="chat-walk-")
        self._runner = asyncio.Runner()
        self._stack = AsyncExitStack()
        self.names: list[str] = []
        self.server: ServerHandle

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run it."""
        return self._runner.run(work)

    async def begin(self, *users: str) -> None:
        """Start it anew, and log in."""
        await self._stack.aclose()
        limits: dict[str, Any] = {"StrangerLimit": LIMIT, "StrangerWindow": 1, "LoginFailures": LIMIT, "LoginWindow": 1}
        limits |= {"BroadcastsPerMinute": LIMIT, "SocketsPerUser": LIMIT * 4, "TrustedProxies": "127.0.0.1"}
        folder = Path(self._folder.name)
        self.server = await self._stack.enter_async_context(serving(folder, self.clock, stores=self._stores, **limits))
        for name in users:
            await self.server.post("/user/register", {"user_name": name, "password": PASSWORD})
        self.names = self.names or list(users)
        await self.log_in()

    async def log_in(self) -> None:
        """Sessions for all, from an address that did not guess."""
        for name in self.names:
            body = {"user_name": name, "password": PASSWORD}
            response = await self.server.post("/user/login", body, headers={"X-Forwarded-For": "192.0.2.1"})
            self.server.tokens[name] = response.json()["data"]["token"]

    async def lose(self) -> None:
        """Lose the counters, and with them, where they lie together, the sessions."""
        self._lose(Path(self._folder.name))
        await self.log_in()

    async def sockets(self, stack: AsyncExitStack, user: str, many: int, to: str = "") -> list[ChatClient]:
        """So many sockets, open until the stack ends."""
        return [await stack.enter_async_context(self.server.chat(user, to)) for _ in range(many)]

    def end(self) -> None:
        """Stop it and forget it all."""
        self.do(self._stack.aclose())
        self._runner.close()
        self._folder.cleanup()


class Walk(RuleBasedStateMachine):
    """What both searches may do to the server."""

    make: Callable[[], World]  # set by each test
    world: World

    def teardown(self) -> None:
        self.world.end()

    @rule()
    def restart(self) -> None:
        self.world.do(self.world.begin())

    @rule(by=jumps)
    def jump(self, by: int) -> None:
        self.world.clock.shift += by / 1000


class Strangers(Walk):
    """One writes to another who never answers: of LIMIT messages in a window not one more is ever stored."""

    @initialize()
    def begin(self) -> None:
        self.world = type(self).make()
        self.sender, self.receiver = names(2)
        self.world.do(self.world.begin(self.sender, self.receiver))
        self.ids = (f"m{number}" for number in count())
        self.tried: list[str] = []
        self.times: dict[str, int] = {}

    @rule(sockets=st.integers(1, 4), each=st.integers(1, 4), twins=st.booleans(), lost=st.booleans())
    def send_at_once(self, sockets: int, each: int, twins: bool, lost: bool) -> None:
        """From several sockets; `twins`: all send the same ids; `lost`: the counters were lost just before."""
        if lost:
            self.world.do(self.world.lose())
        ids = [next(self.ids) for _ in range(each if twins else sockets * each)]
        mine = [ids if twins else ids[n * each : (n + 1) * each] for n in range(sockets)]
        self.tried += ids
        self.world.do(self._send(mine))

    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        """From two sockets at once."""
        if self.tried:
            id = data.draw(st.sampled_from(self.tried))
            self.world.do(self._send([[id], [id]]))

    async def _send(self, mine: list[list[str]]) -> None:
        async with AsyncExitStack() as stack:
            chats = await self.world.sockets(stack, self.sender, len(mine), self.receiver)
            for answers in await asyncio.gather(*map(self._run, chats, mine)):
                for answer in answers:
                    if answer["op_type"] in STORED:
                        self.times[answer["id"]] = answer["time"]

    async def _run(self, chat: ChatClient, ids: list[str]) -> list[dict[str, Any]]:
        for id in ids:
            await chat.put(1, f"{id}\nhello")
        return [await chat.receive() for _ in ids]

    @rule(each=st.integers(1, 4), wait=st.sampled_from([0, 0, 0.002, 0.01]))
    def send_and_cut(self, each: int, wait: float) -> None:
        """The connection is gone between the check and the answer."""
        ids = [next(self.ids) for _ in range(each)]
        self.tried += ids

        async def cut() -> None:
            async with raw.chat(self.world.server, self.sender, self.receiver) as one:
                await one.write(b"".join(raw.request(1, f"{id}\nhello") for id in ids))
                await asyncio.sleep(wait)
                one.reset()

        self.world.do(cut())

    @rule()
    def delete(self) -> None:
        """All that is there."""

        async def delete() -> None:
            async with self.world.server.chat(self.sender, self.receiver) as chat:
                if found := [frame["id"] for frame in await chat.ask(2, "-200") if frame["type"] == 2]:
                    assert (await chat.answer(5, "\n".join(found)))["op_type"] == 40013

        self.look()
        self.world.do(delete())

    @invariant()
    def look(self) -> None:
        """In each window, which begins with the first message of it, there are at most LIMIT."""
        if not hasattr(self, "times"):
            return
        self.world.do(self._look())
        began = used = 0
        for time in sorted(self.times.values()):
            if not used or time >= began + DAY:
                began, used = time, 0
            used += 1
            assert used <= LIMIT, self.times

    async def _look(self) -> None:
        async with self.world.server.chat(self.receiver, self.sender) as chat:
            self.times |= {frame["id"]: frame["time"] for frame in await chat.ask(2, "-200") if frame["type"] == 2}


class Count:
    """What may happen LIMIT times in a minute; a clock that is set back begins a window anew."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self._used = self._began = 0

    def happened(self, times: int) -> None:
        """So often, just now. Raises AssertionError."""
        now = self._clock.now() // 1000
        if not self._began <= now < self._began + MINUTE:
            self._began, self._used = now, 0
        self._used += times
        assert self._used <= LIMIT

    def begin_anew(self) -> None:
        """Nothing has happened yet."""
        self._used = self._began = 0


class Rates(Walk):
    """Guesses at a password, messages to everybody, open sockets: of each no more than its limit."""

    @initialize()
    def begin(self) -> None:
        self.world = type(self).make()
        self.user, self.victim = names(2)
        self.world.do(self.world.begin(self.user))
        self.world.do(self.world.server.post("/user/register", {"user_name": self.victim, "password": PASSWORD}))
        self.guesses, self.broadcasts = Count(self.world.clock), Count(self.world.clock)

    @rule(many=st.integers(1, 6))
    def guess(self, many: int) -> None:
        """At once; who is told that it was wrong has guessed."""
        answers = self.world.do(self._log_in(many, "wrong password"))
        assert set(answers) <= {401, 429}
        self.guesses.happened(answers.count(401))

    @rule()
    def log_in(self) -> None:
        """The owner of the name, from the same address: a success begins anew."""
        if self.world.do(self._log_in(1, PASSWORD)) == [200]:
            self.guesses.begin_anew()

    @rule(many=st.integers(1, 4), wait=st.sampled_from([0, 0.001, 0.005]))
    def guess_and_cut(self, many: int, wait: float) -> None:
        """Nobody learns anything from these."""
        body = json.dumps({"user_name": self.victim, "password": "wrong password"}).encode()
        head = b"POST /user/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"

        async def cut() -> None:
            one = raw.RawSocket(await raw.connect(self.world.server), "")
            await one.write(head % len(body) + body)
            await asyncio.sleep(wait)
            one.reset()

        async def cut_all() -> None:
            await asyncio.gather(*(cut() for _ in range(many)))

        self.world.do(cut_all())

    async def _log_in(self, many: int, password: str) -> list[int]:
        body = {"user_name": self.victim, "password": password}
        async with self.world.server.client() as client:
            answers = await asyncio.gather(*(client.post("/user/login", json=body) for _ in range(many)))
        return [answer.status_code for answer in answers]

    @rule(sockets=st.integers(1, 3), each=st.integers(1, 3))
    def send_to_all(self, sockets: int, each: int) -> None:
        async def send() -> list[int]:
            async with AsyncExitStack() as stack:
                chats = await self.world.sockets(stack, self.user, sockets)
                answers = await asyncio.gather(*(chat.answer(6, "hello") for chat in chats for _ in range(1)))
                for _ in range(each - 1):
                    answers += await asyncio.gather(*(chat.answer(6, "hello") for chat in chats))
                return [answer["op_type"] for answer in answers]

        self.broadcasts.happened(self.world.do(send()).count(40009))

    @rule(many=st.integers(1, 6 * LIMIT), vanish=st.booleans())
    def open_sockets(self, many: int, vanish: bool) -> None:
        """At once: never more than the limit, and when they are gone, there is room for as many again."""
        self.world.do(self._open(many, vanish))

    async def _open(self, many: int, vanish: bool) -> None:
        async with AsyncExitStack() as stack:

            async def one() -> bool:
                with suppress(websockets.InvalidStatus):
                    chat = await stack.enter_async_context(self.world.server.chat(self.user))
                    if vanish:
                        stack.callback(chat.connection.transport.abort)
                    return True
                return False

            came = sum(await asyncio.gather(*(one() for _ in range(many))))
            assert came <= 4 * LIMIT
        await wait_until(self._all_fit)

    async def _all_fit(self) -> bool:
        async with AsyncExitStack() as stack:
            try:
                await self.world.sockets(stack, self.user, 4 * LIMIT)
            except websockets.InvalidStatus:
                return False
        return True

    @rule()
    def lose_counters(self) -> None:
        """They are counted anew: nothing else knows of them."""
        self.world.do(self.world.lose())
        self.guesses.begin_anew()
        self.broadcasts.begin_anew()


def lose_rows(folder: Path) -> None:
    """The counters of the embedded database."""
    sql(folder, "DELETE FROM strangers")
    sql(folder, "DELETE FROM rates")


def search(walk: type[Walk], make: Callable[[], World], examples: int) -> None:
    """Walk so many times; a schedule that breaks a limit is shrunk and told."""
    found: type[Walk] = type(walk.__name__, (walk,), {"make": staticmethod(make)})
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    run_state_machine_as_test(
        found,
        settings=settings(
            max_examples=examples * WALK,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=checks,
            derandomize=WALK == 1,
        ),
        _min_steps=10,  # short walks find nothing here
    )


@pytest.mark.parametrize("walk", [Strangers, Rates])
def test_no_schedule_gets_more_than_a_limit(walk: type[Walk]) -> None:
    search(walk, lambda: World({}, lose_rows), 10)


@pytest.mark.parametrize("walk", [Strangers, Rates])
def test_no_schedule_gets_more_than_a_limit_on_servers(
    walk: type[Walk], redis: servers.DatabaseServer, mongodb: servers.DatabaseServer
) -> None:
    def flush(_: Path) -> None:
        with redis_driver.Redis(port=redis.port) as driver:
            driver.flushdb()

    search(walk, lambda: World(servers.environ(redis=redis, mongodb=mongodb), flush), 3)
