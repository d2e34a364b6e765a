"""Clients that send without end or never read: memory stays bounded, and the server keeps serving other users."""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from tests import raw
from tests.harness import ROOT, UNCOUNTED_ENVIRON, ChatClient, SubprocessServer, subprocess_server

MIB = 1 << 20
MAX_GROWTH_MIB = {1: 32, 20: 64}  # number of attacking connections -> maximum growth of the server
SECONDS = 0.6
CHUNK = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"

LINE = b"X-A: " + b"a" * 8000 + b"\r\n"
HEAD = (b"GET / HTTP/1.1\r\nHost: x\r\n" + LINE * 110 + b"\r\n") * 30

# An attack: the bytes that begin a connection, and the bytes that are then sent repeatedly.
Attack = tuple[Callable[[SubprocessServer], bytes], bytes]


def http(head: bytes) -> Callable[[SubprocessServer], bytes]:
    """Return a function that returns the first bytes of an HTTP connection."""
    return lambda server: head


def upgraded(server: SubprocessServer) -> bytes:
    """Return the upgrade request that opens a socket."""
    return raw.upgrade(server, "1", "2")


def chunked(path: bytes) -> bytes:
    """Return the head of a POST with an endless body."""
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head % path


ATTACKS: dict[str, Attack] = {
    "an endless body for a login": (http(chunked(b"/user/login")), CHUNK),
    "an endless body for an unknown path": (http(chunked(b"/nothing")), CHUNK),
    "an endless body for a GET": (http(chunked(b"/ping").replace(b"POST", b"GET")), CHUNK),
    "chunks of one byte": (http(chunked(b"/user/login")), b"1;a=b\r\nx\r\n" * 10_000),
    "large heads after unread answers": (
        http(b""),
        b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 8 + HEAD,
    ),
    "unfinished heads": (http(b"GET / HTTP/1.1\r\n" + LINE * 100), b""),
    "a body of 100 GB": (http(b"POST /user/login HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000000\r\n\r\n"), CHUNK),
    "pipelined requests": (http(b""), b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n" * 100),
    "pipelined logins": (http(b""), b"POST /user/login HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}" * 100),
    "a head without end": (http(b"GET / HTTP/1.1\r\n"), b"X-A: " + b"a" * 1000 + b"\r\n"),
    "a line without end": (http(b"GET /"), b"a" * 65536),
    "continuation frames without a first fragment": (upgraded, raw.frame(b"", raw.CONTINUATION, fin=False) * 10_000),
    "empty fragments": (lambda s: upgraded(s) + raw.frame(b"{", fin=False), raw.frame(b"", 0, fin=False) * 10_000),
    "small fragments": (lambda s: upgraded(s) + raw.frame(b"{", fin=False), raw.frame(b" ", 0, fin=False) * 10_000),
    "messages in a thousand fragments": (
        upgraded,
        (raw.frame(b"", fin=False) + raw.frame(b"", 0, fin=False) * 1000 + raw.frame(b"{}", 0)) * 10,
    ),
    "pings": (upgraded, raw.frame(b"x" * 125, raw.PING) * 1000),
    "empty pings": (upgraded, raw.frame(b"", raw.PING) * 10_000),
    "pongs": (upgraded, raw.frame(b"", raw.PONG) * 10_000),
    "bad frames": (upgraded, raw.frame(b"{") * 10_000),
    "pages of long messages": (upgraded, raw.request(2, "-200") * 200),
    "lists of conversations": (upgraded, raw.request(7, "-200") * 200),
    "all unread messages": (upgraded, raw.request(3) * 200),
    "long messages": (upgraded, raw.request(1, "\n" + "x" * 16000) * 20),
    "long messages that no other device reads": (
        lambda s: raw.upgrade(s, "1", "2", sync=True),
        raw.request(1, "\n" + "x" * 16000) * 20,
    ),
    "refused messages": (upgraded, raw.request(1, "\n" + "x" * 60_000) * 20),
    "broadcasts": (upgraded, raw.request(6, "x" * 16000) * 20),
}


@asynccontextmanager
async def attack_server(server: SubprocessServer, attack: Attack, connections: int) -> AsyncIterator[None]:
    """Let a separate process flood the server inside the context."""
    begin, data = attack
    flood = await asyncio.create_subprocess_exec(
        *("nice", sys.executable, "-m", "tests.flood", server.host, str(server.port)),
        *("--connections", str(connections), "--seconds", "30"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
        env=UNCOUNTED_ENVIRON,
    )
    assert flood.stdin
    assert flood.stdout
    try:
        flood.stdin.write(json.dumps([begin(server).hex(), data.hex()]).encode())
        flood.stdin.close()
        assert await flood.stdout.readline() == b"ready\n"
        yield
    finally:
        flood.kill()
        await flood.wait()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[SubprocessServer]:
    """A server with the default rate limits. User 2 has sent long messages to user 1; a and b can chat."""
    async with subprocess_server(
        tmp_path / "data", coverage=False, FramesPerSecond=200, BroadcastsPerMinute=30
    ) as server:
        await server.add_users("1", "2", "a", "b")
        await server.make_contacts("1", "2")
        await server.make_contacts("a", "b")
        await raw.store_messages(server, "2", "1", 300)
        yield server


async def chat_for(one: ChatClient, other: ChatClient, seconds: float) -> int:
    """Send messages for `seconds`, each after the last one was acknowledged and delivered; return their number."""
    count = 0
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        await one.put(1, "\nhello")
        for chat in (other, one):
            while (await chat.receive())["to"] == "ALL":
                pass
        count += 1
        await asyncio.sleep(0.005)
    return count


@pytest.mark.parametrize("connections", [1, 20])
async def test_a_flood_takes_little_memory_and_does_not_stop_others(server: SubprocessServer, connections: int) -> None:
    """`python -m bench disruption` measures the delay of the other users: clocks are too noisy for a test."""
    watched, faults = psutil.Process(server.process.pid), []
    async with server.chat("a", "b") as a, server.chat("b", "a") as b:
        await chat_for(a, b, SECONDS)
        for name, attack in ATTACKS.items():
            before = highest = watched.memory_info().rss
            async with attack_server(server, attack, connections):
                for _ in range(6):
                    assert await chat_for(a, b, SECONDS / 6)
                    highest = max(highest, watched.memory_info().rss)
            if highest - before > MAX_GROWTH_MIB[connections] * MIB:
                faults.append(f"{name}: {(highest - before) / MIB:.1f} MiB")
    assert not faults, "\n".join(faults)
