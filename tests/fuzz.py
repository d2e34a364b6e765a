"""Rubbish after the upgrade: frames by the hundred thousand that no client would send, beside two who chat.

    python -m tests.fuzz [--frames 1000000] [--seed N]

First it searches for slow input (tests/slow.py), with an example of each kind for 500 frames. It says its seed, and
fails if the server dies, if the two who chat are disturbed, or if anything is left behind.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import NamedTuple

import psutil

from tests import raw, slow
from tests.harness import TIMEOUT, ServerHandle, SubprocessServer, subprocess_server, wait_until

FUZZERS = ("f0", "f1", "f2", "f3")
AT_ONCE = 24  # sockets
WORDS = (
    "",
    "f0",
    "f1",
    "nobody",
    "ALL",
    "System",
    "*",
    "-1",
    "-200",
    "0-200",
    "+3@a",
    "-3@>a",
    "a\nhello",
    "\n",
    "x" * 300,
)
# What is a fault of the measuring more than a leak: the allocator's own air. In bytes.
AIR = 24 << 20


class Report(NamedTuple):
    """What came of it; sizes in bytes, times in seconds."""

    frames: int
    sockets: int
    seconds: float
    messages: int
    slowest: float
    before: int
    after: int


def _request(random: Random) -> bytes:
    """A request, right or nearly so."""
    fields = {"op_type": random.randint(-1, 9), "content": random.choice(WORDS), "to": random.choice(WORDS)}
    text = json.dumps(fields).encode()
    if random.random() < 0.5:
        at = random.randrange(len(text))
        text = text[:at] + random.randbytes(random.randint(0, 3)) + text[at + random.randint(0, 3) :]
    return raw.frame(text)


def _json(random: Random) -> bytes:
    """JSON, but no request."""
    value: object = random.choice(
        [None, 1, -(2**70), 1e300, "\ud800", [], {}, True, {"op_type": [[]]}, {"op_type": 2**70}]
    )
    for _ in range(random.choice([0, 1, 3, 900])):
        value = [value] if random.random() < 0.5 else {"content": value}
    return raw.frame(json.dumps(value).encode())


def _bytes(random: Random) -> bytes:
    """Any bytes in a frame of any kind, whole or not."""
    payload = random.randbytes(random.choice([0, 1, 2, 125, 126, 300, 70_000 if random.random() < 0.01 else 5]))
    mask = random.randbytes(4) if random.random() < 0.9 else b""
    rsv = random.choice([0, 0, 0, 0, 1, 7])
    return raw.frame(payload, random.randrange(16), fin=random.random() < 0.8, rsv=rsv, mask=mask)


def _text(random: Random) -> bytes:
    """Text that is UTF-8, in any piece of a message."""
    opcode = random.choice([raw.TEXT, raw.TEXT, raw.CONTINUATION])
    return raw.frame("日\0x😀".encode() * random.randint(0, 9), opcode, fin=random.random() < 0.8)


def _control(random: Random) -> bytes:
    """Pings, pongs that answer nothing, close frames with any code."""
    opcode = random.choice([raw.PING, raw.PING, raw.PONG, raw.CLOSE])
    code = struct.pack("!H", random.choice([1000, 1005, 1006, 4001, random.randrange(65536)]))
    return raw.frame(code if opcode == raw.CLOSE else random.randbytes(random.choice([0, 8, 125, 126])), opcode)


def _wire(random: Random) -> bytes:
    """Bytes that are no frame at all."""
    return random.randbytes(random.randint(1, 40))


def _ping(random: Random) -> bytes:
    """A ping, or a pong that answers none."""
    return raw.frame(random.randbytes(random.choice([0, 8, 125])), random.choice([raw.PING, raw.PONG]))


# What a socket survives, and what it mostly does not.
HARMLESS: tuple[Callable[[Random], bytes], ...] = (_request, _request, _request, _json, _ping)
FATAL: tuple[Callable[[Random], bytes], ...] = (_bytes, _text, _control, _wire)


def rubbish(random: Random, most: int) -> list[bytes]:
    """At most so many frames for one socket: it is worked on to the last few."""
    frames = [random.choice(HARMLESS)(random) for _ in range(random.randint(1, 100))]
    return (frames + [random.choice(FATAL)(random) for _ in range(random.randint(0, 5))])[:most]


async def fuzz(server: SubprocessServer, frames: int, seed: int) -> Report:
    """Send so many. Users a and b must be friends. Raises AssertionError."""
    left = sockets = 0

    async def work(number: int) -> None:
        nonlocal left, sockets
        random, user = Random(f"{seed} {number} {left}"), FUZZERS[number % len(FUZZERS)]
        while left > 0:
            batch = rubbish(random, left)
            left -= len(batch)
            sockets += 1
            await _throw(server, user, b"".join(batch), random)

    seen = psutil.Process(server.process.pid)
    neighbours = _Neighbours(server)
    started = time.monotonic()
    async with asyncio.TaskGroup() as group:
        group.create_task(neighbours.chat())
        left = frames // 10
        await asyncio.gather(*map(work, range(AT_ONCE)))
        before, files = seen.memory_info().rss, seen.num_fds()  # the caches are full by now
        left = frames - frames // 10
        await asyncio.gather(*map(work, range(AT_ONCE)))
        neighbours.ending = True
    seconds = time.monotonic() - started
    await wait_until(lambda: seen.num_fds() <= files)
    return Report(frames, sockets, seconds, neighbours.messages, neighbours.slowest, before, seen.memory_info().rss)


async def _throw(server: ServerHandle, user: str, data: bytes, random: Random) -> None:
    """Open a socket, send the data in pieces, read what comes, and leave in some way."""
    with suppress(raw.ConnectionCut, ConnectionError):
        async with raw.chat(server, user, random.choice(FUZZERS)) as one:
            reading = asyncio.create_task(_drain(one))
            try:
                while data and not reading.done():
                    size = random.choice([100, 5000, 100_000]) if random.random() < 0.99 else 1
                    await one.write(data[:size])
                    data = data[size:]
                match random.randrange(20):
                    case 0:
                        one.half_close()
                        await asyncio.wait_for(reading, TIMEOUT)
                    case 1:
                        one.reset()
                    case 2:
                        one.vanish()
                    case _:
                        await one.write(raw.frame(b"", raw.CLOSE))
                        await asyncio.wait_for(reading, TIMEOUT)
            finally:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)


async def _drain(one: raw.RawSocket) -> None:
    """Read until it is over or the server says so; whatever it answers is as docs/asyncapi.yaml has it."""
    with suppress(raw.ConnectionCut):
        while (read := await one.read()).opcode != raw.CLOSE:
            if read.opcode == raw.TEXT:
                one.json(read)


class _Neighbours:
    """Users a and b, who chat meanwhile: each message is acknowledged and arrives, the next one after it."""

    def __init__(self, server: ServerHandle) -> None:
        self._server = server
        self.ending = False
        self.messages = 0
        self.slowest = 0.0

    async def chat(self) -> None:
        """Until `ending`."""
        async with self._server.chat("a", "b") as a, self._server.chat("b", "a") as b:
            while not self.ending:
                text = f"n{self.messages}\nstill here"
                started = time.monotonic()
                await a.put(1, text)
                for one, status in ((a, 40018), (b, 40011)):
                    while (frame := await one.receive())["to"] == "ALL":
                        pass  # rubbish may be a message to everybody, too
                    assert frame["op_type"] == status, frame
                assert frame["content"] == text, frame
                self.slowest = max(self.slowest, time.monotonic() - started)
                self.messages += 1
                await asyncio.sleep(0.02)


async def slowest(folder: Path, examples: int, seed: int) -> tuple[slow.Found, slow.Found]:
    """A server of its own, and a search for frames and requests that are slow. Raises AssertionError."""
    async with subprocess_server(folder, coverage=False, FramesPerSecond=0) as server:
        await server.add_users("1", "2")
        await server.make_contacts("1", "2")
        return await asyncio.to_thread(slow.search, server, examples, seed)


async def run(folder: Path, frames: int, seed: int) -> Report:
    """A server of its own, and rubbish for it. Raises AssertionError."""
    async with subprocess_server(folder, FramesPerSecond=0, BroadcastsPerMinute=30) as server:
        await server.add_users("a", "b", *FUZZERS)
        await server.make_contacts("a", "b")
        report = await fuzz(server, frames, seed)
        server.process.terminate()
        assert await server.wait() == 0
        errors = [line for line in server.log.read_text("utf-8").splitlines() if " ERROR " in line]
        assert not errors, errors[:3]
    return report


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="chat-fuzz-") as folder:
        found = asyncio.run(slowest(Path(folder) / "slow", arguments.frames // 500, arguments.seed))
        for kind, one in zip(("frame", "request"), found, strict=True):
            print(f"the dearest {kind} took {one.seconds * 1000:.1f} ms of CPU time for {one.size} bytes: {one.what}")
        report = asyncio.run(run(Path(folder) / "data", arguments.frames, arguments.seed))
    rate = report.frames / report.seconds
    print(f"{report.frames} frames on {report.sockets} sockets in {report.seconds:.0f} s ({rate:.0f}/s)")
    print(
        f"memory {report.before >> 20} MiB after a tenth, {report.after >> 20} MiB at the end; descriptors given back"
    )
    print(f"{report.messages} messages of two neighbours, the slowest took {report.slowest:.2f} s")
    sys.exit(report.after > report.before + AIR)


if __name__ == "__main__":
    main()
