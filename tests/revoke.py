"""End sessions with open sockets, and measure the time until the last socket is closed with 4001.

    python -m tests.revoke [--sockets 5000] [--cost 4]

First, the sessions of many users end at the same moment, alternately by a logout and by a new password. Then one user
with all the sockets logs out, and one changes the password. During this, the users send messages and receive some.
One socket of each user ignores the close frame and keeps sending. The command fails if a frame passes after the answer
to the request that ended its session.
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

SOCKETS_PER_USER = 32  # the default of SocketsPerUser
WRITER = "writer"
METHODS = ("logout", "password")  # ways to end a session
OPEN_CONCURRENCY = 50  # sockets opened at a time
# The load during the test, per second: messages from all users together, and frames delivered to their sockets.
SENT, DELIVERED = 1000, 3000


class RevocationTime(NamedTuple):
    """Seconds from the request of one user to its answer, and to the last close frame on the user's sockets."""

    answered: float
    closed: float


class RevocationReport(NamedTuple):
    """The measurements in seconds: each user, the whole test, and the CPU time of both processes."""

    sockets: int
    times: list[RevocationTime]
    total: float
    server_cpu: float
    client_cpu: float


class _SocketListener(WSListener):
    """A socket that answers pings. `greeted` is done after the first frame, `disconnected` after the last."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.greeted = loop.create_future()
        self.disconnected = loop.create_future()

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.transport = transport

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.PING:
            transport.send_pong(frame.get_payload_as_bytes())
        elif frame.msg_type == WSMsgType.CLOSE:
            self.on_close(int.from_bytes(frame.get_payload_as_bytes()[:2], "big"))
        elif not self.greeted.done():
            self.greeted.set_result(None)
        else:
            self.on_text(frame.get_payload_as_bytes())

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self.disconnected.set_result(None)

    def send(self, op_type: int, content: str, to: str) -> None:
        """Send a request."""
        text = json.dumps({"op_type": op_type, "content": content, "to": to})
        self.transport.send(WSMsgType.TEXT, text.encode())

    def on_text(self, text: bytes) -> None:
        """Handle a text frame."""

    def on_close(self, code: int) -> None:
        """Handle a close frame; by default, it is an error."""
        raise AssertionError(code)


class _Writer(_SocketListener):
    """A user who sends to all others and reads the stored messages."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = asyncio.Lock()
        self._answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def on_text(self, text: bytes) -> None:
        frame = json.loads(text)
        is_answer = frame["from"] == "System" or frame["type"] == 2
        if is_answer and not frame.get("id", "").startswith("hello-"):
            self._answers.put_nowait(frame)

    async def greet(self, users: Sequence[_RevokedUser], pause: float) -> None:
        """Send to each user in turn, as long as the user's session has not ended."""
        for number, user in enumerate(itertools.cycle(users)):
            if not user.answered:
                self.send(1, f"hello-{number}\nhello", user.name)
            await asyncio.sleep(pause)

    async def newest(self, user: str, *, late: bool = False) -> str:
        """Return the id of the newest message from `user`. With `late`, then send a message that no socket may get."""
        async with self._lock, asyncio.timeout(TIMEOUT):
            self.send(2, "-200", user)  # messages to the user may follow
            newest = ""
            while (frame := await self._answers.get())["type"] == 2:
                newest = frame["id"] if frame["from"] == user else newest
            if late:
                self.send(1, f"late-{user}\nlate", user)
                answer = await self._answers.get()
                assert answer["op_type"] == 40019, answer
            return newest


class _RevokedUser:
    """A user with a session that ends: the sockets, and the frames that they received."""

    def __init__(self, name: str, method: str, token: str, other_token: str) -> None:
        self.name = name
        self.token = token
        self._method = method
        self._other_token = other_token  # of a session that does not end
        self.sockets: list[_RevokedSocket] = []
        self.codes: list[int] = []
        self.received_late = False  # whether a message sent after the answer arrived
        self.requested = self.answered = self.closed = 0.0
        self.last = ""  # the id of the user's newest message when the answer arrived

    async def flood(self, pause: float) -> None:
        """Send messages until the connection is cut, whatever the server answers."""
        first = self.sockets[0]
        for number in itertools.count():
            if first.disconnected.done():
                break
            first.send(1, f"{self.name}-{number}\nsecret", WRITER)
            await asyncio.sleep(pause)

    async def end(self, http: aiohttp.ClientSession) -> None:
        """End the session by a logout, or by a new password in another session."""
        path, token, body = "/user/logout", self.token, {"user_name": self.name}
        if self._method == "password":
            path, token = "/user/set_password", self._other_token
            body |= {"old_password": PASSWORD, "new_password": "secret2"}
        self.requested = time.monotonic()
        async with http.post(path, json=body, headers={"Authorization": f"Bearer {token}"}) as response:
            self.answered = time.monotonic()
            assert response.status == 200, await response.text()


class _RevokedSocket(_SocketListener):
    """One socket of a _RevokedUser. All sockets except the first answer the close frame."""

    def __init__(self, user: _RevokedUser) -> None:
        super().__init__()
        self._user = user
        user.sockets.append(self)

    def on_text(self, text: bytes) -> None:
        self._user.received_late |= b"late-" in text

    def on_close(self, code: int) -> None:
        self._user.closed = time.monotonic()
        self._user.codes.append(code)
        if self is not self._user.sockets[0]:
            self.transport.send_close()


async def _open(server: SubprocessServer, name: str, token: str, listener: _SocketListener) -> None:
    await ws_connect(
        lambda: listener,
        server.socket_url(name),
        extra_headers={"Authorization": f"Bearer {token}"},
        enable_auto_pong=False,
    )
    async with asyncio.timeout(TIMEOUT):
        await listener.greeted


async def _open_all(server: SubprocessServer, users: Sequence[_RevokedUser], sockets: int) -> None:
    limit = asyncio.Semaphore(OPEN_CONCURRENCY)

    async def open_one(user: _RevokedUser) -> None:
        async with limit:
            await _open(server, user.name, user.token, _RevokedSocket(user))

    await asyncio.gather(*(open_one(user) for user in users for _ in range(sockets)))


async def revoke(server: SubprocessServer, users: Sequence[_RevokedUser], sockets: int) -> RevocationReport:
    """Open `sockets` sockets per user and end all sessions. Raises AssertionError if a frame passes too late."""
    writer = _Writer()
    await _open(server, WRITER, server.tokens[WRITER], writer)
    await _open_all(server, users, sockets)
    processes = [psutil.Process(pid) for pid in server.pids]
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(server.url, connector=connector) as http, asyncio.TaskGroup() as group:
        for user in users:
            group.create_task(user.flood(len(users) / SENT))
        greeting = group.create_task(writer.greet(users, sockets / DELIVERED))
        await asyncio.sleep(0.5)  # until the load is steady

        async def end(user: _RevokedUser) -> None:
            await user.end(http)
            user.last = await writer.newest(user.name, late=True)

        used = -_cpu_seconds(processes), -time.process_time()
        await asyncio.gather(*map(end, users))
        async with asyncio.timeout(TIMEOUT):
            while any(len(user.codes) < sockets for user in users):
                await asyncio.sleep(0.01)
        used = used[0] + _cpu_seconds(processes), used[1] + time.process_time()
        async with asyncio.timeout(TIMEOUT):
            await asyncio.gather(*(socket.disconnected for user in users for socket in user.sockets))
        greeting.cancel()
    for user in users:
        assert user.codes == [4001] * sockets, user.codes
        assert not user.received_late
        assert await writer.newest(user.name) == user.last
    writer.transport.disconnect()
    await writer.disconnected
    total = max(max(user.answered, user.closed) for user in users) - min(user.requested for user in users)
    times = [RevocationTime(user.answered - user.requested, user.closed - user.requested) for user in users]
    return RevocationReport(sockets * len(users), times, total, *used)


def _cpu_seconds(processes: Sequence[psutil.Process]) -> float:
    return float(sum(sum(process.cpu_times()[:2]) for process in processes))


async def run(
    folder: Path, users: int, sockets: int, methods: Sequence[str] = METHODS, cost: int = 4
) -> RevocationReport:
    """Run the test on a new server, with `sockets` per user and the METHODS in turn. Raises AssertionError.

    `cost`: PasswordCost.
    """
    limits: dict[str, Any] = {"StrangerLimit": 0, "SocketsPerUser": sockets + 1, "PasswordWait": 1000}
    async with subprocess_server(folder, HeartbeatSeconds=3600, PasswordCost=cost, **limits) as server:
        names = [f"u{number}" for number in range(users)]
        await server.add_users(WRITER, *names)
        revoked = [
            _RevokedUser(name, method, server.tokens[name], await server.login(name))
            for name, method in zip(names, itertools.cycle(methods), strict=False)
        ]
        return await revoke(server, revoked, sockets)


def _print_report(report: RevocationReport, users: str, password_changes: int, cost: int) -> None:
    print(f"{report.sockets} sockets of {users}")
    print("  seconds per user (median, maximum)")
    for label, times in (
        ("request to answer", [user.answered for user in report.times]),
        ("request to the last 4001", [user.closed for user in report.times]),
        ("answer to the last 4001", [user.closed - user.answered for user in report.times]),
    ):
        print(f"    {label:<26}{statistics.median(times):6.2f}{max(times):6.2f}")
    print(f"  total {report.total:.2f} s; CPU: server {report.server_cpu:.2f} s, client {report.client_cpu:.2f} s")
    if hashes := 2 * password_changes:
        print(f"  of that, hashing {hashes} passwords at cost {cost} takes {hashes * _hash_seconds(cost):.2f} s")


def _hash_seconds(cost: int) -> float:
    """Return the time to hash one password: the minimum of three."""

    def once() -> float:
        started = time.monotonic()
        bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(cost))
        return time.monotonic() - started

    return min(once() for _ in range(3))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sockets", type=int, default=5000)
    parser.add_argument("--cost", type=int, default=4, help="PasswordCost")
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # for this process and the server
    many = -(-options.sockets // SOCKETS_PER_USER)
    for users, sockets, methods, description in (
        (many, SOCKETS_PER_USER, METHODS, f"{many} users: half log out, half change the password"),
        (1, options.sockets, METHODS[:1], "one user who logs out"),
        (1, options.sockets, METHODS[1:], "one user who changes the password in another session"),
    ):
        with (
            tempfile.TemporaryDirectory(prefix="chat-revoke-") as folder,
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            report = runner.run(run(Path(folder) / "data", users, sockets, methods, options.cost))
        _print_report(report, description, users * ("password" in methods) // len(methods), options.cost)


if __name__ == "__main__":
    main()
