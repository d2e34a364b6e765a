"""The server and the client that all tests share. Both use real sockets, and the calls follow the protocol.

async with serving(tmp_path, users=("1", "2"), StrangerLimit=2) as server:
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
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import playwright
import websockets

from chat_server import app, conf
from chat_server.utils.clock import MICROSECONDS, Clock
from tests import api_schemas
from tests.forked import ForkedProcess

# httpcore tries to import sniffio, which is not installed, for each of its locks: a fifth of the CPU time of a request.
# None makes the import fail without a search.
sys.modules.setdefault("sniffio", None)  # type: ignore[arg-type]

Frame = dict[str, Any]

ROOT = Path(__file__).resolve().parent.parent
PASSWORD = "secret1"
# The Node.js that Playwright contains.
NODE = str(Path(playwright.__file__).with_name("driver") / "node")
# Hypothesis searches this many times as long as in `make test`.
SEARCH = int(os.environ.get("CHAT_TEST_SEARCH", "1"))
# The longest wait, in seconds, for an expected event. It is generous because a busy machine is slow.
TIMEOUT = 60.0
# The environment of a child process without coverage, which takes CPU time.
UNCOUNTED_ENVIRON = {"PATH": os.environ["PATH"]}
# The environment of a child process: only PATH and the variables that coverage needs to measure the process.
CLEAN_ENVIRON = UNCOUNTED_ENVIRON | {key: value for key, value in os.environ.items() if key.startswith("COVERAGE_")}
# Whether the e2e suite runs on several processes: the environment variable is their number.
CLUSTER = bool(os.environ.get("CHAT_TEST_PROCESSES"))
# Cheap password hashes, and no limits: a test of a limit sets it.
DEFAULTS = {
    "HttpPort": 0,
    "Language": "en",
    "PasswordCost": 4,
    "FramesPerSecond": 0,
    "BroadcastsPerMinute": 0,
    "RegistrationsPerHour": 0,
}


class ManualClock(Clock):
    """The system clock plus `shift` seconds, which the test sets."""

    def __init__(self) -> None:
        self.shift = 0.0

    def now(self) -> int:
        return super().now() + int(self.shift * MICROSECONDS)

    def monotonic(self) -> float:
        return super().monotonic() + self.shift


async def wait_until(condition: Callable[[], bool] | Callable[[], Awaitable[bool]], what: str = "") -> None:
    """Wait until `condition` returns True. After TIMEOUT, raise TimeoutError with `what` in its note."""
    try:
        async with asyncio.timeout(TIMEOUT):
            while True:
                held = condition()
                if held if isinstance(held, bool) else await held:
                    return
                await asyncio.sleep(0.01)
    except TimeoutError as error:
        error.add_note(f"while waiting for: {what or condition}")
        raise


def _request(op_type: int, content: str, keys: Mapping[str, Any]) -> str:
    return json.dumps({"op_type": op_type, "content": content, **keys})


class ChatClient:
    """The client's end of a socket of `user`, who chats with `peer`."""

    def __init__(self, connection: websockets.ClientConnection, user: str, peer: str) -> None:
        self.connection = connection
        self.user = user
        self.peer = peer
        self._frames: deque[Frame] = deque()
        self._presence: deque[Frame] = deque()
        self._changes: deque[Frame] = deque()

    async def put(self, op_type: int, content: str = "", **keys: Any) -> None:
        """Send a request; do not wait for the answer."""
        await self.send_text(_request(op_type, content, keys))

    async def send_text(self, text: str) -> None:
        """Send `text` unchanged as one text frame."""
        await self.connection.send(text)

    async def receive(self) -> Frame:
        """Return the next frame except presence (40027) and changes of groups (42011), which may arrive at any time."""
        return await self._next(self._frames)

    async def receive_presence(self) -> list[str]:
        """Return the sorted lines of the next presence frame."""
        frame = await self._next(self._presence)
        assert (frame["from"], frame["to"], frame["type"]) == ("System", self.user, 1), frame
        return sorted(frame["content"].split("\n"))

    async def receive_change(self) -> tuple[str, list[str]]:
        """Return the group and the lines of the next 42011."""
        frame = await self._next(self._changes)
        assert (frame["from"], frame["type"]) == ("System", 1), frame
        return frame["to"], frame["content"].split("\n")

    async def _next(self, queue: deque[Frame]) -> Frame:
        async with asyncio.timeout(TIMEOUT):
            while not queue:
                text = await self.connection.recv(decode=True)
                api_schemas.check_frame(text)
                frame: Frame = json.loads(text)
                {40027: self._presence, 42011: self._changes}.get(frame["op_type"], self._frames).append(frame)
        return queue.popleft()

    async def ask(self, op_type: int, content: str = "", **keys: Any) -> list[Frame]:
        """Send a request; return all frames up to and including the server's answer, which is the last."""
        text = _request(op_type, content, keys)
        await self.send_text(text)
        frames = [await self.receive()]
        while frames[-1]["from"] != "System":
            frames.append(await self.receive())
        accepted = frames[-1]["op_type"] != 40000
        assert accepted == api_schemas.is_valid_request(text), (
            f"docs/asyncapi.yaml disagrees with the server: {text[:500]}"
        )
        return frames

    async def answer(self, op_type: int, content: str = "", **keys: Any) -> Frame:
        """Send a request; return only the server's answer."""
        return (await self.ask(op_type, content, **keys))[-1]

    async def send(self, content: str, **keys: Any) -> Frame:
        """Send a message (op 1); return the server's answer."""
        return await self.answer(1, content, type=1, **keys)

    async def send_all(self, *contents: str, to: str = "") -> None:
        """Send messages, many at a time; return when all are acknowledged. Frames of other users are dropped."""
        for start in range(0, len(contents), 100):
            some = contents[start : start + 100]
            for content in some:
                await self.put(1, content, to=to)
            for _ in some:
                while (frame := await self.receive())["from"] != "System":
                    pass
                assert frame["op_type"] in (40018, 40019), frame

    async def expect_nothing(self) -> None:
        """Fail if an unread frame other than presence and changes of groups exists."""
        await self._expect_none(self._frames)

    async def expect_no_change(self) -> None:
        """Fail if an unread change of a group exists."""
        await self._expect_none(self._changes)

    async def expect_no_presence(self) -> None:
        """Fail if an unread presence frame exists."""
        await self._expect_none(self._presence)

    async def _expect_none(self, queue: deque[Frame]) -> None:
        """Fail if the queue gets a frame. The answer to a ping shows that earlier frames have arrived."""
        async with asyncio.timeout(TIMEOUT):
            await (await self.connection.ping())
        try:
            async with asyncio.timeout(0.05):
                frame = await self._next(queue)
        except TimeoutError:
            return
        raise AssertionError(f"unexpected frame for user {self.user}: {frame!r}")

    async def wait_closed(self) -> int:
        """Wait until the server closes the socket; return the close code."""
        async with asyncio.timeout(TIMEOUT):
            try:
                while True:
                    await self.connection.recv()
            except websockets.ConnectionClosed:
                await self.connection.wait_closed()
        code = self.connection.close_code
        assert code is not None
        return code


def _token(response: httpx.Response) -> str:
    """Return the token of a login."""
    assert response.status_code == 200, response.text
    token: str = response.json()["data"]["token"]
    return token


async def _check_described_response(response: httpx.Response) -> None:
    await response.aread()
    api_schemas.check_response(response)


class ServerHandle:
    """The address of a running server, and the tokens of its users."""

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port
        self.url = f"http://{host}:{port}"
        self.tokens: dict[str, str] = {}

    def client(self, **options: Any) -> httpx.AsyncClient:
        """Return a new HTTP client with its own cookies."""
        # verify=False: loading the certificate authorities takes longer than the request.
        hooks = {"response": [_check_described_response]}
        return httpx.AsyncClient(
            base_url=self.url, timeout=TIMEOUT, trust_env=False, event_hooks=hooks, **{"verify": False, **options}
        )

    async def post(self, path: str, body: Mapping[str, Any], **options: Any) -> httpx.Response:
        """POST JSON without cookies; return the response."""
        async with self.client() as client:
            return await client.post(path, json=body, **options)

    async def add_users(self, *names: str) -> None:
        """Register users, log them in on one connection and keep their tokens."""
        async with self.client() as client:
            for name in names:
                body = {"user_name": name, "password": PASSWORD}
                response = await client.post("/user/register", json=body)
                assert response.status_code == 200, response.text
                self.tokens[name] = _token(await client.post("/user/login", json=body))
                client.cookies.clear()

    async def login(self, name: str, password: str = PASSWORD) -> str:
        """Log in; return the token of the new session."""
        return _token(await self.post("/user/login", {"user_name": name, "password": password}))

    def socket_url(self, user: str, to: str = "", *, sync: bool = False) -> str:
        """Return the URL of a socket, without a token."""
        query = httpx.QueryParams({"uid": user} | ({"to_uid": to} if to else {}) | ({"sync": "1"} if sync else {}))
        return f"ws://{self.host}:{self.port}/chat/test?{query}"

    @asynccontextmanager
    async def chat(
        self, user: str, to: str = "", *, sync: bool = False, token: str | None = None, **options: Any
    ) -> AsyncIterator[ChatClient]:
        """Open a socket of `user` and read the greeting (40003)."""
        headers = {"Authorization": f"Bearer {token or self.tokens[user]}"}
        async with websockets.connect(
            self.socket_url(user, to, sync=sync),
            additional_headers=headers,
            proxy=None,
            **{"max_queue": None, **options},
        ) as connection:
            chat = ChatClient(connection, user, to)
            greeting = await chat.receive()
            assert greeting["op_type"] == 40003, greeting
            yield chat

    async def make_contacts(self, one: str, other: str) -> None:
        """Let two users write to each other, so that the contact limit does not apply to them."""
        async with self.chat(one, other) as first:
            await first.send(f"hello-{one}-{other}\nhello")
        async with self.chat(other, one) as second:
            await second.send(f"hello-{other}-{one}\nhello")


@asynccontextmanager
async def serving(
    folder: Path,
    clock: Clock | None = None,
    *,
    users: Sequence[str] = (),
    stores: Mapping[str, str] | None = None,
    **settings: Any,
) -> AsyncIterator[ServerHandle]:
    """Run a server in this process, on a free port, with its data in `folder`. Register and log in `users`.

    `stores` contains environment variables that select other stores, such as CHAT_REDIS_REDISDB.

    With CHAT_TEST_PROCESSES, run that many processes behind a balancer instead (tests/cluster/suite.py).
    """
    if CLUSTER:
        from tests.cluster import suite  # noqa: PLC0415 - it imports this module

        async with suite.serving(folder, clock, users=users, stores=stores, **settings) as cluster:
            yield cluster
        return
    environ = {f"CHAT_SERVICE_{key.upper()}": str(value) for key, value in {**DEFAULTS, **settings}.items()}
    environ |= {"CHAT_SERVICE_DATADIR": str(folder), **(stores or {})}
    async with app.serving(conf.load(None, environ), clock) as (host, port):
        server = ServerHandle(host, port)
        await server.add_users(*users)
        yield server


class SubprocessServer(ServerHandle):
    """A server that runs in its own process (`python run.py`)."""

    def __init__(self, host: str, port: int, process: asyncio.subprocess.Process | ForkedProcess, log: Path) -> None:
        super().__init__(host, port)
        self.process = process
        self.log = log

    @property
    def pids(self) -> list[int]:
        """The ids of the processes; several with CHAT_TEST_PROCESSES."""
        return [self.process.pid]

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the process."""
        self.process.send_signal(number)

    async def next_output(self) -> str:
        """Return the next line of standard output; "" at its end."""
        assert self.process.stdout
        async with asyncio.timeout(TIMEOUT):
            return (await self.process.stdout.readline()).decode()

    async def wait(self) -> int:
        """Wait until the process ends; return the exit code."""
        async with asyncio.timeout(TIMEOUT):
            return await self.process.wait()


async def run_py(
    *arguments: str,
    prefix: tuple[str, ...] = (),
    environ: Mapping[str, str] | None = None,
    stdin: int | None = None,
) -> asyncio.subprocess.Process:
    """Start `python run.py` with these arguments and with pipes for its output.

    Its environment contains only CLEAN_ENVIRON and `environ`. `prefix` is a command that runs it, such as strace.
    """
    return await asyncio.create_subprocess_exec(
        *prefix,
        sys.executable,
        str(ROOT / "run.py"),
        *arguments,
        stdin=stdin,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**CLEAN_ENVIRON, **(environ or {})},
    )


class CommandResult(NamedTuple):
    """The exit code and the output of a command."""

    code: int | None
    out: str
    err: str


async def run_command(
    *arguments: str | Path, environ: Mapping[str, str] | None = None, typed: str = "", timeout: float = TIMEOUT
) -> CommandResult:
    """Run `python run.py` to its end; kill it after `timeout` seconds. `typed` is its standard input."""
    child = await run_py(*map(str, arguments), environ=environ, stdin=asyncio.subprocess.PIPE)
    try:
        async with asyncio.timeout(timeout):
            out, err = await child.communicate(typed.encode())
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    return CommandResult(child.returncode, out.decode(), err.decode())


def shell(script: str) -> tuple[str, ...]:
    """Return a `prefix` that runs run.py as "$@" of a shell script. A PATH may lack sh."""
    return "/bin/sh", "-c", script, "sh"


def short_lease(folder: Path, seconds: float) -> tuple[str, ...]:
    """Return a `prefix` that runs run.py unchanged except for a lease of `seconds`."""
    launcher = folder / "launcher.py"
    launcher.write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        f"from chat_server.utils import lease\nlease.LEASE_SECONDS = {seconds}\n"
        "from chat_server import cli\nsys.exit(cli.main(sys.argv[3:]))\n"
    )
    return sys.executable, str(launcher)


@asynccontextmanager
async def subprocess_server(
    folder: Path, *, users: Sequence[str] = (), prefix: tuple[str, ...] = (), **options: Any
) -> AsyncIterator[SubprocessServer]:
    """Run a server in its own process: see `one_process_server`. `users` are registered and logged in.

    With CHAT_TEST_PROCESSES, run that many processes behind a balancer instead (tests/cluster/suite.py).
    """
    if CLUSTER:
        from tests.cluster import suite  # noqa: PLC0415 - it imports this module

        async with suite.subprocess_server(folder, users=users, prefix=prefix, **options) as cluster:
            yield cluster
        return
    async with one_process_server(folder, prefix=prefix, **options) as server:
        await server.add_users(*users)
        yield server


@asynccontextmanager
async def one_process_server(
    folder: Path,
    *,
    prefix: tuple[str, ...] = (),
    stores: Mapping[str, str] | None = None,
    coverage: bool = True,
    log: Path | None = None,
    run_py: Path | None = None,
    patient: bool = False,
    **settings: Any,
) -> AsyncIterator[SubprocessServer]:
    """Run a server in its own process with its data in `folder`; kill it at the end if it still runs.

    `stores` contains environment variables that select other stores. `prefix` is a command that runs the server, such
    as strace. `run_py` is the program of another version of the server. `log` is folder/../server.log by default.
    `coverage=False`: coverage does not measure it, which would take CPU time. Without all of these, the server is
    forked, and so starts faster (tests/forked.py). `patient`: see tests/cluster/patient.py.
    """
    config = folder.parent / "server.ini"
    values = {**DEFAULTS, "DataDir": folder, **settings}
    config.write_text("[service]\n" + "\n".join(f"{key} = {value}" for key, value in values.items()))
    log = log or folder.parent / "server.log"
    environ = {**(CLEAN_ENVIRON if coverage else UNCOUNTED_ENVIRON), **(stores or {})}
    own = ROOT / "tests" / "cluster" / "patient.py" if patient else ROOT / "run.py"
    program, arguments = run_py or own, ("--config", str(config))
    child: asyncio.subprocess.Process | ForkedProcess
    if coverage and not (prefix or run_py):
        child = await ForkedProcess.start(program, *arguments, environ=environ, errors=log)
    else:
        with log.open("ab") as errors:
            child = await asyncio.create_subprocess_exec(
                *(*prefix, sys.executable, str(program), *arguments),
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                env=environ,
            )
    assert child.stdout
    try:
        async with asyncio.timeout(TIMEOUT):
            ready = (await child.stdout.readline()).decode()
        match = re.search(r"ready.*http://(\S+):(\d+)", ready)  # text, or JSON in release mode
        assert match, (ready, log.read_text())
        server = SubprocessServer(match[1], int(match[2]), child, log)
        yield server
    finally:
        if child.returncode is None:
            child.send_signal(signal.SIGKILL)
        await child.wait()
