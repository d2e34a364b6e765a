"""What all tests share: a server on real sockets, and clients that read like the protocol.

async with serving(tmp_path, StrangerLimit=2) as server:
    await server.users("1", "2")
    async with server.chat("1", to="2") as one, server.chat("2", to="1") as two:
        ack = await one.send("m1\\nhello")
        assert (await two.receive())["content"] == "m1\\nhello"
"""

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import playwright
import websockets

from chat_server import app, conf
from chat_server.utils.clock import MICROSECONDS, Clock
from tests import described

Frame = dict[str, Any]

ROOT = Path(__file__).resolve().parent.parent
PASSWORD = "secret1"
# The Node that Playwright brings along.
NODE = str(Path(playwright.__file__).with_name("driver") / "node")
# A test that waits longer than this, in seconds, for what must come has failed. A machine with other work is slow.
PATIENCE = 60.0
# The environment of a process: nothing but the path, and what lets its lines be counted as covered.
BARE = {key: value for key, value in os.environ.items() if key == "PATH" or key.startswith("COVERAGE_")}
# Quick to hash, and no limit in the way of a test that is not about it.
DEFAULTS = {
    "HttpPort": 0,
    "Language": "en",
    "PasswordCost": 4,
    "FramesPerSecond": 0,
    "BroadcastsPerMinute": 0,
    "RegistrationsPerHour": 0,
}


class HandClock(Clock):
    """The machine's clock, moved by hand."""

    def __init__(self) -> None:
        self.shift = 0.0

    def now(self) -> int:
        return super().now() + int(self.shift * MICROSECONDS)


async def until(condition: Callable[[], bool] | Callable[[], Awaitable[bool]], what: str = "") -> None:
    """Wait until `condition` holds; fail after PATIENCE."""
    async with asyncio.timeout(PATIENCE):
        while True:
            held = condition()
            if held if isinstance(held, bool) else await held:
                return
            await asyncio.sleep(0.01)


def _request(op_type: int, content: str, keys: Mapping[str, Any]) -> str:
    return json.dumps({"op_type": op_type, "content": content, **keys})


class Chat:
    """A client's socket; `user` chats with `peer`."""

    def __init__(self, connection: websockets.ClientConnection, user: str, peer: str) -> None:
        self.connection = connection
        self.user = user
        self.peer = peer

    async def put(self, op_type: int, content: str = "", **keys: Any) -> None:
        """Send a frame and wait for nothing."""
        await self.raw(_request(op_type, content, keys))

    async def raw(self, text: str) -> None:
        """Send a text frame as it is."""
        await self.connection.send(text)

    async def receive(self) -> Frame:
        """The next frame, whatever it is."""
        async with asyncio.timeout(PATIENCE):
            text = await self.connection.recv(decode=True)
        described.frame(text)
        frame: Frame = json.loads(text)
        return frame

    async def ask(self, op_type: int, content: str = "", **keys: Any) -> list[Frame]:
        """Send a frame; all frames that come, up to and with the server's answer, the last."""
        text = _request(op_type, content, keys)
        await self.raw(text)
        frames = [await self.receive()]
        while frames[-1]["from"] != "System":
            frames.append(await self.receive())
        understood = frames[-1]["op_type"] != 40000
        assert understood == described.request(text), f"docs/asyncapi.yaml knows better: {text[:500]}"
        return frames

    async def answer(self, op_type: int, content: str = "", **keys: Any) -> Frame:
        """Send a frame; the server's answer alone."""
        return (await self.ask(op_type, content, **keys))[-1]

    async def send(self, content: str, **keys: Any) -> Frame:
        """Op 1; the server's answer."""
        return await self.answer(1, content, type=1, **keys)

    async def silent(self) -> None:
        """Fail if anything has come that was not received: a ping that was answered came after it."""
        async with asyncio.timeout(PATIENCE):
            await (await self.connection.ping())
        try:
            async with asyncio.timeout(0.05):
                frame = await self.connection.recv()
        except TimeoutError:
            return
        raise AssertionError(f"{self.user} heard {frame!r}")

    async def closed(self) -> int:
        """Wait until the server closes it; the close code."""
        async with asyncio.timeout(PATIENCE):
            try:
                while True:
                    await self.connection.recv()
            except websockets.ConnectionClosed:
                await self.connection.wait_closed()
        code = self.connection.close_code
        assert code is not None
        return code


async def _described(response: httpx.Response) -> None:
    await response.aread()
    described.answer(response)


class Server:
    """A running server, seen from outside."""

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port
        self.url = f"http://{host}:{port}"
        self.tokens: dict[str, str] = {}

    def client(self, **options: Any) -> httpx.AsyncClient:
        """An HTTP client of its own, with its own cookies."""
        # Without TLS: to load the authorities takes longer than all the rest.
        hooks = {"response": [_described]}
        return httpx.AsyncClient(
            base_url=self.url, timeout=PATIENCE, trust_env=False, event_hooks=hooks, **{"verify": False, **options}
        )

    async def post(self, path: str, body: Mapping[str, Any], **options: Any) -> httpx.Response:
        """POST JSON without cookies."""
        async with self.client() as client:
            return await client.post(path, json=body, **options)

    async def users(self, *names: str) -> None:
        """Register users and log them in."""
        for name in names:
            response = await self.post("/user/register", {"user_name": name, "password": PASSWORD})
            assert response.status_code == 200, response.text
            self.tokens[name] = await self.login(name)

    async def login(self, name: str, password: str = PASSWORD) -> str:
        """The token of a new session."""
        response = await self.post("/user/login", {"user_name": name, "password": password})
        assert response.status_code == 200, response.text
        token: str = response.json()["data"]["token"]
        return token

    def socket_url(self, user: str, to: str = "", *, sync: bool = False) -> str:
        """Where to connect, without a token."""
        query = httpx.QueryParams({"uid": user} | ({"to_uid": to} if to else {}) | ({"sync": "1"} if sync else {}))
        return f"ws://{self.host}:{self.port}/chat/test?{query}"

    @asynccontextmanager
    async def chat(
        self, user: str, to: str = "", *, sync: bool = False, token: str | None = None, **options: Any
    ) -> AsyncIterator[Chat]:
        """An open socket of `user`, greeted."""
        headers = {"Authorization": f"Bearer {token or self.tokens[user]}"}
        async with websockets.connect(
            self.socket_url(user, to, sync=sync),
            additional_headers=headers,
            proxy=None,
            **{"max_queue": None, **options},
        ) as connection:
            chat = Chat(connection, user, to)
            greeting = await chat.receive()
            assert greeting["op_type"] == 40003, greeting
            yield chat

    async def friends(self, one: str, other: str) -> None:
        """Two users who have written to each other, so that no limit is between them."""
        async with self.chat(one, other) as first:
            await first.send(f"hello-{one}-{other}\nhello")
        async with self.chat(other, one) as second:
            await second.send(f"hello-{other}-{one}\nhello")


@asynccontextmanager
async def serving(
    folder: Path, clock: Clock | None = None, *, stores: Mapping[str, str] | None = None, **settings: Any
) -> AsyncIterator[Server]:
    """A server in this process, on a free port, with its data in `folder`.

    `stores` are environment variables that name other stores, such as CHAT_REDIS_REDISDB.
    """
    environ = {f"CHAT_SERVICE_{key.upper()}": str(value) for key, value in {**DEFAULTS, **settings}.items()}
    environ |= {"CHAT_SERVICE_DATADIR": str(folder), **(stores or {})}
    async with app.serving(conf.load(None, environ), clock) as (host, port):
        yield Server(host, port)


class Process(Server):
    """A server in a process of its own: python run.py."""

    def __init__(self, host: str, port: int, process: asyncio.subprocess.Process, log: Path) -> None:
        super().__init__(host, port)
        self.process = process
        self.log = log

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()

    async def ended(self) -> int:
        """Wait until it has ended; its exit code."""
        async with asyncio.timeout(PATIENCE):
            return await self.process.wait()


async def run_py(
    *arguments: str,
    prefix: tuple[str, ...] = (),
    environ: Mapping[str, str] | None = None,
    stdin: int | None = None,
) -> asyncio.subprocess.Process:
    """python run.py with these arguments, output to be read; only PATH and `environ` in its environment.

    `prefix` is a command that runs it.
    """
    return await asyncio.create_subprocess_exec(
        *prefix,
        sys.executable,
        str(ROOT / "run.py"),
        *arguments,
        stdin=stdin,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**BARE, **(environ or {})},
    )


def short_lease(folder: Path, seconds: float) -> tuple[str, ...]:
    """A `prefix` that runs run.py as it is, but with a lease that ends so soon."""
    launcher = folder / "launcher.py"
    launcher.write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        f"from chat_server.utils import lease\nlease.LEASE_SECONDS = {seconds}\n"
        "from chat_server import cli\nsys.exit(cli.main(sys.argv[3:]))\n"
    )
    return sys.executable, str(launcher)


@asynccontextmanager
async def process(
    folder: Path,
    *,
    prefix: tuple[str, ...] = (),
    stores: Mapping[str, str] | None = None,
    coverage: bool = True,
    **settings: Any,
) -> AsyncIterator[Process]:
    """A server in a process of its own with its data in `folder`, killed at the end if it still runs.

    `stores` are environment variables that name other stores. `prefix` is a command that runs it, such as strace.
    Without `coverage` its lines are not counted: to count them takes CPU time. Its log is in folder/../server.log.
    """
    config = folder.parent / "server.ini"
    values = {**DEFAULTS, "DataDir": folder, **settings}
    config.write_text("[service]\n" + "\n".join(f"{key} = {value}" for key, value in values.items()))
    log = folder.parent / "server.log"
    with log.open("ab") as errors:
        child = await asyncio.create_subprocess_exec(
            *prefix,
            sys.executable,
            str(ROOT / "run.py"),
            "--config",
            str(config),
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            env={**(BARE if coverage else {"PATH": BARE["PATH"]}), **(stores or {})},
        )
    assert child.stdout
    try:
        async with asyncio.timeout(PATIENCE):
            ready = (await child.stdout.readline()).decode()
        match = re.search(r"ready.*http://(\S+):(\d+)", ready)  # in release mode as JSON
        assert match, (ready, log.read_text())
        yield Process(match[1], int(match[2]), child, log)
    finally:
        if child.returncode is None:
            child.send_signal(signal.SIGKILL)
        await child.wait()
