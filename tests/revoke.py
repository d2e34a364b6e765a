"""Sessions that end under open sockets: a logout or a new password for each of many users, all at once.

    python -m tests.revoke [--sockets 5000]

Meanwhile all of them send, and somebody sends to all of them. It prints how long it took until the last socket was
closed, and fails if a frame passed after the answer to the request that ended its session.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import tempfile
import time
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

from tests import raw
from tests.harness import PASSWORD, Chat, Server, process

EACH = 32  # sockets of a user: SocketsPerUser
WRITER = "writer"


class Report(NamedTuple):
    """Seconds from the first request to the last answer and the last close frame; `lag`: between a user's two."""

    sockets: int
    answered: float
    closed: float
    lag: float


class _Ended:
    """A user whose session ends: their sockets, and what came on them."""

    def __init__(self, server: Server, name: str) -> None:
        self.name = name
        self.token = server.tokens[name]
        self.sockets: list[raw.Raw] = []
        self.codes: list[int] = []
        self.heard_late = False  # what was sent after the answer
        self.answered = self.closed = 0.0
        self.last = ""  # what was the newest message of theirs when the answer came

    async def listen(self, one: raw.Raw) -> None:
        """Read to the close frame, and to the end."""
        with suppress(raw.Cut):
            while (read := await one.read()).opcode != raw.CLOSE:
                self.heard_late |= b"late-" in read.payload  # not parsed: this process has 5,000 of them to read
            self.codes.append(int.from_bytes(read.payload[:2], "big"))
            self.closed = time.monotonic()
            while True:
                await one.read()

    async def flood(self, one: raw.Raw) -> None:
        """Send until it is over."""
        with suppress(ConnectionError):
            for number in range(1_000_000):
                await one.put(1, f"{self.name}-{number}\nsecret", to=WRITER)
                await asyncio.sleep(0.01)


async def revoke(server: Server, names: list[str], each: int) -> Report:
    """End the sessions of all of them, by turns with a logout and a new password. Raises AssertionError."""
    users = [_Ended(server, name) for name in names]
    changing = {name: await server.login(name) for name in names[1::2]}
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        writer = await stack.enter_async_context(server.chat(WRITER))
        for user in users:
            for _ in range(each):
                user.sockets.append(await stack.enter_async_context(raw.chat(server, user.name, token=user.token)))
        listening = [group.create_task(user.listen(one)) for user in users for one in user.sockets]
        for user in users:
            group.create_task(user.flood(user.sockets[0]))
        crowd = group.create_task(_send_to_all(server, names))
        turn = asyncio.Lock()
        client = await stack.enter_async_context(server.client())
        started = time.monotonic()

        async def end(user: _Ended) -> None:
            path, body, token = "/user/logout", {"user_name": user.name}, user.token
            if user.name in changing:
                path, token = "/user/set_password", changing[user.name]
                body |= {"old_password": PASSWORD, "new_password": "secret2"}
            response = await client.post(path, json=body, headers={"Authorization": f"Bearer {token}"})
            assert response.status_code == 200, response.text
            user.answered = time.monotonic()
            async with turn:
                user.last = await _newest(writer, user.name)
                assert (await writer.send(f"late-{user.name}\nlate", to=user.name))["op_type"] == 40019

        await asyncio.gather(*map(end, users))
        crowd.cancel()
        await asyncio.gather(*listening)
        answered = max(user.answered for user in users)
        for user in users:
            assert user.codes == [4001] * each, user.codes
            assert not user.heard_late
            assert await _newest(writer, user.name) == user.last
        closed = max(user.closed for user in users) - started
        return Report(len(listening), answered - started, closed, max(user.closed - user.answered for user in users))


async def _newest(writer: Chat, user: str) -> str:
    """The id of the newest message that `user` has sent to the writer."""
    frames = await writer.ask(2, "-50", to=user)
    return next((frame["id"] for frame in reversed(frames) if frame["type"] == 2 and frame["from"] == user), "")


async def _send_to_all(server: Server, names: list[str]) -> None:
    """Send to each of them in turn, for ever."""
    async with raw.chat(server, WRITER) as one:
        reading = asyncio.create_task(one.rest())
        try:
            for number in range(1_000_000):
                await one.put(1, f"w{number}\nhello", to=names[number % len(names)])
                await asyncio.sleep(0.001)
        finally:
            reading.cancel()


async def run(folder: Path, users: int, each: int) -> Report:
    """A server of its own, in a process of its own. Raises AssertionError."""
    names = [f"u{number}" for number in range(users)]
    limits: dict[str, Any] = {"StrangerLimit": 0, "SocketsPerUser": each + 1, "PasswordWait": 1000}
    async with process(folder, HeartbeatSeconds=3600, **limits) as server:
        await server.users(WRITER, *names)
        return await revoke(server, names, each)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sockets", type=int, default=5000)
    sockets = parser.parse_args().sockets
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # for this process and the server
    with tempfile.TemporaryDirectory(prefix="chat-revoke-") as folder:
        report = asyncio.run(run(Path(folder) / "data", -(-sockets // EACH), EACH))
    print(f"{report.sockets} sockets of {-(-sockets // EACH)} users, whose sessions ended at once:")
    print(f"all answered after {report.answered:.2f} s, the last socket closed with 4001 after {report.closed:.2f} s,")
    print(f"at most {report.lag:.2f} s after the answer to its user")


if __name__ == "__main__":
    main()
