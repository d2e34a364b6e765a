"""Sessions that end under open sockets, and how long it takes until the last of them is closed with 4001.

    python -m tests.revoke [--sockets 5000] [--cost 4]

First the sessions of many users, by turns with a logout and a new password, all asked for in the same moment; then
one user with all the sockets, by logout and by a new password. Meanwhile they send, and somebody sends to them. One
socket of each takes no notice of the close frame and goes on sending. It fails if a frame passes after the answer to
the request that ended its session.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import bcrypt
import psutil
import uvloop
from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect

from tests.harness import PASSWORD, TIMEOUT, SubprocessServer, subprocess_server

EACH = 32  # sockets of a user: SocketsPerUser
WRITER = "writer"
BY = ("logout", "password")
AT_ONCE = 50  # sockets that are being opened
# What goes on meanwhile, a second: messages from all users together, and frames that are delivered to their sockets.
SENT, DELIVERED = 1000, 3000


class Took(NamedTuple):
    """One request, in seconds: from sending it to its answer and to the last close frame of that user's sockets."""

    answered: float
    closed: float


class Report(NamedTuple):
    """What was measured: each request, all of it, and the CPU time of both processes meanwhile. In seconds."""

    sockets: int
    took: list[Took]
    whole: float
    server: float
    client: float


class _Listener(WSListener):
    """A socket whose pings are answered, and what it waits for."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.greeted = loop.create_future()
        self.gone = loop.create_future()

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.transport = transport

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.PING:
            transport.send_pong(frame.get_payload_as_bytes())
        elif frame.msg_type == WSMsgType.CLOSE:
            self.closed(int.from_bytes(frame.get_payload_as_bytes()[:2], "big"))
        elif not self.greeted.done():
            self.greeted.set_result(None)
        else:
            self.hear(frame.get_payload_as_bytes())

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self.gone.set_result(None)

    def say(self, op_type: int, content: str, to: str) -> None:
        """Send a request."""
        text = json.dumps({"op_type": op_type, "content": content, "to": to})
        self.transport.send(WSMsgType.TEXT, text.encode())

    def hear(self, text: bytes) -> None:
        """A text frame came."""

    def closed(self, code: int) -> None:
        """A close frame came."""
        raise AssertionError(code)


class _Writer(_Listener):
    """Somebody who sends to all of them, and looks at what is stored."""

    def __init__(self) -> None:
        super().__init__()
        self._turn = asyncio.Lock()
        self._answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def hear(self, text: bytes) -> None:
        frame = json.loads(text)
        is_answer = frame["from"] == "System" or frame["type"] == 2
        if is_answer and not frame.get("id", "").startswith("hello-"):
            self._answers.put_nowait(frame)

    async def greet(self, users: Sequence[_Ended], pause: float) -> None:
        """Send to each of them in turn, until their session ends."""
        for number, user in enumerate(itertools.cycle(users)):
            if not user.answered:
                self.say(1, f"hello-{number}\nhello", user.name)
            await asyncio.sleep(pause)

    async def newest(self, user: str, *, late: bool = False) -> str:
        """The id of the newest message from `user`; if `late`, something is sent to them, which nobody may hear."""
        async with self._turn, asyncio.timeout(TIMEOUT):
            self.say(2, "-20", user)
            newest = ""
            while (frame := await self._answers.get())["type"] == 2:
                newest = frame["id"] if frame["from"] == user else newest
            if late:
                self.say(1, f"late-{user}\nlate", user)
                answer = await self._answers.get()
                assert answer["op_type"] == 40019, answer
            return newest


class _Ended:
    """A user whose session ends: their sockets, and what came on them."""

    def __init__(self, name: str, by: str, token: str, other: str) -> None:
        self.name = name
        self.token = token
        self._by = by
        self._other = other  # the token of a session that stays
        self.sockets: list[_Socket] = []
        self.codes: list[int] = []
        self.heard_late = False  # what was sent after the answer
        self.asked = self.answered = self.closed = 0.0
        self.last = ""  # what was the newest message of theirs when the answer came

    async def flood(self, pause: float) -> None:
        """Send, whatever comes, until the connection is cut."""
        first = self.sockets[0]
        for number in itertools.count():
            if first.gone.done():
                break
            first.say(1, f"{self.name}-{number}\nsecret", WRITER)
            await asyncio.sleep(pause)

    async def end(self, http: aiohttp.ClientSession) -> None:
        """End the session, by logging it out or by changing the password in another one."""
        path, token, body = "/user/logout", self.token, {"user_name": self.name}
        if self._by == "password":
            path, token = "/user/set_password", self._other
            body |= {"old_password": PASSWORD, "new_password": "secret2"}
        self.asked = time.monotonic()
        async with http.post(path, json=body, headers={"Authorization": f"Bearer {token}"}) as response:
            self.answered = time.monotonic()
            assert response.status == 200, await response.text()


class _Socket(_Listener):
    """One socket of such a user."""

    def __init__(self, user: _Ended) -> None:
        super().__init__()
        self._user = user
        user.sockets.append(self)

    def hear(self, text: bytes) -> None:
        self._user.heard_late |= b"late-" in text

    def closed(self, code: int) -> None:
        self._user.closed = time.monotonic()
        self._user.codes.append(code)
        if self is not self._user.sockets[0]:
            self.transport.send_close()


async def _open(server: SubprocessServer, name: str, token: str, listener: _Listener) -> None:
    await ws_connect(
        lambda: listener,
        server.socket_url(name),
        extra_headers={"Authorization": f"Bearer {token}"},
        enable_auto_pong=False,
    )
    async with asyncio.timeout(TIMEOUT):
        await listener.greeted


async def _open_all(server: SubprocessServer, users: Sequence[_Ended], each: int) -> None:
    limit = asyncio.Semaphore(AT_ONCE)

    async def one(user: _Ended) -> None:
        async with limit:
            await _open(server, user.name, user.token, _Socket(user))

    await asyncio.gather(*(one(user) for user in users for _ in range(each)))


async def revoke(server: SubprocessServer, users: Sequence[_Ended], each: int) -> Report:
    """End the sessions of all of them, each under so many sockets. Raises AssertionError."""
    writer = _Writer()
    await _open(server, WRITER, server.tokens[WRITER], writer)
    await _open_all(server, users, each)
    program = psutil.Process(server.process.pid)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(server.url, connector=connector) as http, asyncio.TaskGroup() as group:
        for user in users:
            group.create_task(user.flood(len(users) / SENT))
        greeting = group.create_task(writer.greet(users, each / DELIVERED))
        await asyncio.sleep(0.5)  # it is under way

        async def end(user: _Ended) -> None:
            await user.end(http)
            user.last = await writer.newest(user.name, late=True)

        used = -_cpu(program), -time.process_time()
        await asyncio.gather(*map(end, users))
        async with asyncio.timeout(TIMEOUT):
            while any(len(user.codes) < each for user in users):
                await asyncio.sleep(0.01)
        used = used[0] + _cpu(program), used[1] + time.process_time()
        async with asyncio.timeout(TIMEOUT):
            await asyncio.gather(*(socket.gone for user in users for socket in user.sockets))
        greeting.cancel()
    for user in users:
        assert user.codes == [4001] * each, user.codes
        assert not user.heard_late
        assert await writer.newest(user.name) == user.last
    writer.transport.disconnect()
    await writer.gone
    whole = max(max(user.answered, user.closed) for user in users) - min(user.asked for user in users)
    took = [Took(user.answered - user.asked, user.closed - user.asked) for user in users]
    return Report(each * len(users), took, whole, *used)


def _cpu(program: psutil.Process) -> float:
    times = program.cpu_times()
    return float(times.user + times.system)


async def run(folder: Path, users: int, each: int, by: Sequence[str] = BY, cost: int = 4) -> Report:
    """A server of its own, in a process of its own; users by turns with each of `by`. Raises AssertionError."""
    limits: dict[str, Any] = {"StrangerLimit": 0, "SocketsPerUser": each + 1, "PasswordWait": 1000}
    async with subprocess_server(folder, HeartbeatSeconds=3600, PasswordCost=cost, **limits) as server:
        names = [f"u{number}" for number in range(users)]
        await server.add_users(WRITER, *names)
        ways = zip(names, itertools.cycle(by), strict=False)
        return await revoke(
            server, [_Ended(name, way, server.tokens[name], await server.login(name)) for name, way in ways], each
        )


def _print(report: Report, what: str, changes: int, cost: int) -> None:
    answered = [took.answered for took in report.took]
    closed = [took.closed for took in report.took]
    after = [took.closed - took.answered for took in report.took]
    print(f"{report.sockets} sockets of {what}")
    print("  each, in seconds (median, worst)")
    for label, times in (
        ("request to answer", answered),
        ("request to the last 4001", closed),
        ("answer to the last 4001", after),
    ):
        print(f"    {label:<26}{statistics.median(times):6.2f}{max(times):6.2f}")
    print(f"  all of it took {report.whole:.2f} s; CPU: server {report.server:.2f} s, client {report.client:.2f} s")
    if changes:
        print(
            f"  to hash {2 * changes} passwords at cost {cost} alone takes {2 * changes * _hashing(cost):.2f} s of that"
        )


def _hashing(cost: int) -> float:
    """How long one password takes, in seconds: the quickest of three."""

    def once() -> float:
        started = time.monotonic()
        bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(cost))
        return time.monotonic() - started

    return min(once() for _ in range(3))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sockets", type=int, default=5000)
    parser.add_argument("--cost", type=int, default=4, help="PasswordCost")
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # for this process and the server
    many = -(-options.sockets // EACH)
    for users, each, by, what in (
        (many, EACH, BY, f"{many} users, half of whom log out, half change their password"),
        (1, options.sockets, BY[:1], "one user, who logs out"),
        (1, options.sockets, BY[1:], "one user, who changes the password elsewhere"),
    ):
        with (
            tempfile.TemporaryDirectory(prefix="chat-revoke-") as folder,
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            report = runner.run(run(Path(folder) / "data", users, each, by, options.cost))
        _print(report, what, users * ("password" in by) // len(by), options.cost)


if __name__ == "__main__":
    main()
