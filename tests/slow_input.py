"""Search for slow input: hypothesis generates frames and requests and maximises the CPU time per byte.

    make fuzz

It combines and repeats the patterns of tests/hostile.py. Input slower than the bounds of that module is a fault
(tests/e2e/test_input_costs.py tests single patterns with the same bounds).
"""

import http.client
import json
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple, TypeVar

from hypothesis import HealthCheck, Phase, given, seed, settings, target
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.harness import SubprocessServer
from tests.hostile import BODIES, HEADERS, MAX_FRAME_SECONDS, MAX_REQUEST_SECONDS, PATTERNS, cpu_seconds

T = TypeVar("T")

FRAME, BODY, HEADER = 60_000, 16_000, 8_000  # characters at most
OVERHEAD = 200  # bytes added to the size of each input, so that the fixed cost of short input does not dominate


class HttpRequest(NamedTuple):
    """An HTTP request."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class SlowestInput(NamedTuple):
    """The input of one kind with the highest CPU time, in seconds; its size in bytes."""

    seconds: float
    size: int
    description: str


def texts(limit: int) -> st.SearchStrategy[str]:
    """Generate repeated patterns joined with arbitrary short texts, up to `limit` characters."""
    pattern = st.sampled_from(list(PATTERNS.values())) | st.text(min_size=1, max_size=4)
    repeated = st.tuples(pattern, st.integers(1, limit)).map(lambda pair: pair[0] * max(1, pair[1] // len(pair[0])))
    return st.lists(repeated | st.text(max_size=8), min_size=1, max_size=4).map(lambda parts: "".join(parts)[:limit])


frames = st.builds(
    lambda op, fields, escaped: json.dumps({"op_type": op, **fields}, ensure_ascii=escaped),
    st.integers(1, 8),
    st.dictionaries(st.sampled_from(["content", "to", "from"]), texts(FRAME // 6), min_size=1, max_size=3),
    st.booleans(),
) | texts(FRAME // 4)

_headers = st.dictionaries(st.sampled_from(HEADERS), texts(HEADER), min_size=1, max_size=2)
_gets = st.builds(
    lambda path, rest, headers: HttpRequest("GET", path + rest, headers, b""),
    st.sampled_from(["/", "/ping", "/web/x/", "/chat/test?uid=", "/chat/test?token="]),
    texts(HEADER // 3),
    _headers,
)
_posts = st.builds(
    lambda path, fields, kind, headers: HttpRequest(
        "POST", path, {**headers, "Content-Type": kind}, json.dumps(fields).encode()[:BODY]
    ),
    st.sampled_from(list(BODIES)),
    st.dictionaries(st.sampled_from(["user_name", "password"]), texts(BODY // 6), min_size=1, max_size=2),
    st.sampled_from(["application/json", "application/x-www-form-urlencoded"]),
    _headers,
)
requests = _gets | _posts


def search(server: SubprocessServer, examples: int, number: int) -> tuple[SlowestInput, SlowestInput]:
    """Return the slowest frame and the slowest request of `examples` each. Raises AssertionError if one is too slow.

    `number`: the seed.
    """
    pid = server.process.pid

    def slowest(
        strategy: st.SearchStrategy[T], send: Callable[[T], int], bound: float, show: Callable[[T], str]
    ) -> SlowestInput:
        found = SlowestInput(0, 0, "")

        @seed(number)
        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.target],
            suppress_health_check=list(HealthCheck),
        )
        @given(strategy)
        def costs(given: T) -> None:
            nonlocal found
            cost = bound + 1
            for _ in range(3):  # the cheapest of three attempts counts, because the server may have other work
                if cost > bound:
                    before = cpu_seconds(pid)
                    size = send(given)
                    cost = min(cost, cpu_seconds(pid) - before)
            target(cost * 1e9 / (size + OVERHEAD), label="CPU time in ns per byte")
            found = max(found, SlowestInput(cost, size, show(given)))
            assert cost < bound, (cost, show(given))

        costs()
        return found

    with FrameProbe(server) as probe:
        frame = slowest(frames, probe.send, MAX_FRAME_SECONDS, lambda text: text[:200])
    return frame, slowest(requests, RequestProbe(server).send, MAX_REQUEST_SECONDS, lambda request: repr(request)[:300])


class FrameProbe:
    """Sends frames on a socket of user 1, and reopens it if the server closes it."""

    def __init__(self, server: SubprocessServer) -> None:
        self._server = server
        self._stack = ExitStack()
        self._socket: ClientConnection | None = None

    def __enter__(self) -> "FrameProbe":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def send(self, text: str) -> int:
        """Send a frame, wait until the server has handled it, and return its size in bytes."""
        data = text.encode("utf-8", "replace")
        for _ in range(2):
            self._socket = self._socket or self._open()
            try:
                self._socket.send(data, text=True)
                self._socket.send('{"op_type": 99, "content": "mark"}')
                while "unknown op_type: 99" not in self._socket.recv(decode=True):
                    pass
            except ConnectionClosed:  # after a hundred bad frames, or one that is too long
                self._socket = None
                continue
            break
        return len(data)

    def _open(self) -> ClientConnection:
        headers = {"Authorization": f"Bearer {self._server.tokens['1']}"}
        url = self._server.socket_url("1", "2")
        self._stack.close()
        return self._stack.enter_context(
            connect(url, additional_headers=headers, proxy=None, compression=None, max_size=None)
        )


class RequestProbe:
    """Sends HTTP requests, each on a new connection."""

    def __init__(self, server: SubprocessServer) -> None:
        self._server = server

    def send(self, request: HttpRequest) -> int:
        """Send a request, read the response if there is one, and return the size of the request in bytes."""
        headers = {name: _latin(value) for name, value in request.headers.items()}
        path = request.path.encode("utf-8", "replace").replace(b" ", b"+")
        clean = bytes(byte if 32 < byte < 127 else 37 for byte in path).decode()
        connection = http.client.HTTPConnection(self._server.host, self._server.port, timeout=60)
        try:
            connection.putrequest(request.method, clean, skip_accept_encoding=True)
            for name, value in {**headers, "Content-Length": str(len(request.body))}.items():
                connection.putheader(name, value)
            connection.endheaders(request.body)
            connection.getresponse().read()
        except (http.client.HTTPException, OSError):
            pass  # the server closes the connection after invalid HTTP
        finally:
            connection.close()
        return len(clean) + sum(len(value) for value in headers.values()) + len(request.body)


def _latin(value: str) -> Any:
    """Return a header value as bytes, without the bytes that would end it."""
    return value.encode("utf-8", "replace").translate(None, b"\r\n\0")
