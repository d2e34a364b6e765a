"""Fuzz test: send random and invalid WebSocket frames while two users chat.

    python -m tests.fuzz [--frames 1000000] [--seed N]

First it searches for slow input (tests/slow_input.py), with one example of each kind per 500 frames. It prints its
seed. It fails if the server exits, if the two users miss a message, or if memory or file descriptors leak.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import signal
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import NamedTuple

import psutil

from tests import raw, slow_input
from tests.harness import TIMEOUT, ServerHandle, SubprocessServer, subprocess_server, wait_until

FUZZERS = ("f0", "f1", "f2", "f3")
CONCURRENCY = 24  # sockets
WORDS = (
    "",
    "f0",
    "f1",
    "unknown",
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
# Memory growth that does not count as a leak, in bytes: free memory that the allocator keeps.
MEMORY_TOLERANCE = 24 << 20


class FuzzReport(NamedTuple):
    """The measurements of a run: RSS before and after in bytes, the messages of the two users, times in seconds."""

    frames: int
    sockets: int
    seconds: float
    messages: int
    slowest: float
    before: int
    after: int


def _request(random: Random) -> bytes:
    """Return a request, valid or nearly valid."""
    fields = {"op_type": random.randint(-1, 9), "content": random.choice(WORDS), "to": random.choice(WORDS)}
    text = json.dumps(fields).encode()
    if random.random() < 0.5:
        at = random.randrange(len(text))
        text = text[:at] + random.randbytes(random.randint(0, 3)) + text[at + random.randint(0, 3) :]
    return raw.frame(text)


def _json(random: Random) -> bytes:
    """Return JSON that is not a request."""
    value: object = random.choice(
        [None, 1, -(2**70), 1e300, "\ud800", [], {}, True, {"op_type": [[]]}, {"op_type": 2**70}]
    )
    for _ in range(random.choice([0, 1, 3, 900])):
        value = [value] if random.random() < 0.5 else {"content": value}
    return raw.frame(json.dumps(value).encode())


def _bytes(random: Random) -> bytes:
    """Return random bytes in a frame of random kind, valid or not."""
    payload = random.randbytes(random.choice([0, 1, 2, 125, 126, 300, 70_000 if random.random() < 0.01 else 5]))
    mask = random.randbytes(4) if random.random() < 0.9 else b""
    rsv = random.choice([0, 0, 0, 0, 1, 7])
    return raw.frame(payload, random.randrange(16), fin=random.random() < 0.8, rsv=rsv, mask=mask)


def _text(random: Random) -> bytes:
    """Return UTF-8 text in any fragment of a message."""
    opcode = random.choice([raw.TEXT, raw.TEXT, raw.CONTINUATION])
    return raw.frame("日\0x😀".encode() * random.randint(0, 9), opcode, fin=random.random() < 0.8)


def _control(random: Random) -> bytes:
    """Return a ping, an unsolicited pong, or a close frame with any code."""
    opcode = random.choice([raw.PING, raw.PING, raw.PONG, raw.CLOSE])
    code = struct.pack("!H", random.choice([1000, 1005, 1006, 4001, random.randrange(65536)]))
    return raw.frame(code if opcode == raw.CLOSE else random.randbytes(random.choice([0, 8, 125, 126])), opcode)


def _wire(random: Random) -> bytes:
    """Return bytes that are not a frame."""
    return random.randbytes(random.randint(1, 40))


def _ping(random: Random) -> bytes:
    """Return a ping or an unsolicited pong."""
    return raw.frame(random.randbytes(random.choice([0, 8, 125])), random.choice([raw.PING, raw.PONG]))


# Frames that leave the socket open, and frames that usually close it.
HARMLESS: tuple[Callable[[Random], bytes], ...] = (_request, _request, _request, _json, _ping)
FATAL: tuple[Callable[[Random], bytes], ...] = (_bytes, _text, _control, _wire)


def random_frames(random: Random, limit: int) -> list[bytes]:
    """Return up to `limit` frames for one socket. Only the last few can close it, so the server handles all others."""
    frames = [random.choice(HARMLESS)(random) for _ in range(random.randint(1, 100))]
    return (frames + [random.choice(FATAL)(random) for _ in range(random.randint(0, 5))])[:limit]


async def fuzz(server: SubprocessServer, frames: int, seed: int) -> FuzzReport:
    """Send `frames` frames. Users a and b must be contacts. Raises AssertionError."""
    left = sockets = 0

    async def work(number: int) -> None:
        nonlocal left, sockets
        random, user = Random(f"{seed} {number} {left}"), FUZZERS[number % len(FUZZERS)]
        while left > 0:
            batch = random_frames(random, left)
            left -= len(batch)
            sockets += 1
            await _send(server, user, b"".join(batch), random)

    processes = [psutil.Process(pid) for pid in server.pids]
    pair = _ChatPair(server)
    started = time.monotonic()
    async with asyncio.TaskGroup() as group:
        group.create_task(pair.chat())
        left = frames // 10
        await asyncio.gather(*map(work, range(CONCURRENCY)))
        before, files = _memory(processes), _open_files(processes)  # the caches are full now
        left = frames - frames // 10
        await asyncio.gather(*map(work, range(CONCURRENCY)))
        pair.ending = True
    seconds = time.monotonic() - started
    await wait_until(lambda: _open_files(processes) <= files)
    return FuzzReport(frames, sockets, seconds, pair.messages, pair.slowest, before, _memory(processes))


def _memory(processes: Sequence[psutil.Process]) -> int:
    return sum(process.memory_info().rss for process in processes)


def _open_files(processes: Sequence[psutil.Process]) -> int:
    """Return the number of open files without the connections to database servers, whose number may grow."""
    count = 0
    for process in processes:
        connections = process.net_connections()
        listening = {connection.laddr.port for connection in connections if connection.status == psutil.CONN_LISTEN}
        count += process.num_fds() - sum(connection.laddr.port not in listening for connection in connections)
    return count


async def _send(server: ServerHandle, user: str, data: bytes, random: Random) -> None:
    """Open a socket, send the data in pieces, read the answers, and end the connection in a random way."""
    with suppress(raw.ConnectionCut, ConnectionError):
        async with raw.chat(server, user, random.choice(FUZZERS)) as client:
            reading = asyncio.create_task(_check_answers(client))
            try:
                while data and not reading.done():
                    size = random.choice([100, 5000, 100_000]) if random.random() < 0.99 else 1
                    await client.write(data[:size])
                    data = data[size:]
                match random.randrange(20):
                    case 0:
                        client.half_close()
                        await asyncio.wait_for(reading, TIMEOUT)
                    case 1:
                        client.reset()
                    case 2:
                        client.vanish()
                    case _:
                        await client.write(raw.frame(b"", raw.CLOSE))
                        await asyncio.wait_for(reading, TIMEOUT)
            finally:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)


async def _check_answers(client: raw.RawSocket) -> None:
    """Read until the connection ends, and check every answer against docs/asyncapi.yaml."""
    with suppress(raw.ConnectionCut):
        while (read := await client.read()).opcode != raw.CLOSE:
            if read.opcode == raw.TEXT:
                client.json(read)


class _ChatPair:
    """Users a and b. Each message must be acknowledged and delivered before the next one is sent."""

    def __init__(self, server: ServerHandle) -> None:
        self._server = server
        self.ending = False
        self.messages = 0
        self.slowest = 0.0

    async def chat(self) -> None:
        """Chat until `ending` is set."""
        async with self._server.chat("a", "b") as a, self._server.chat("b", "a") as b:
            while not self.ending:
                text = f"n{self.messages}\nstill here"
                started = time.monotonic()
                await a.put(1, text)
                for client, status in ((a, 40018), (b, 40011)):
                    while (frame := await client.receive())["to"] == "ALL":
                        pass  # a random frame may be a message to all users
                    assert frame["op_type"] == status, frame
                assert frame["content"] == text, frame
                self.slowest = max(self.slowest, time.monotonic() - started)
                self.messages += 1
                await asyncio.sleep(0.02)


async def slowest(folder: Path, examples: int, seed: int) -> tuple[slow_input.SlowestInput, slow_input.SlowestInput]:
    """Search for slow frames and requests on a new server. Raises AssertionError if one is too slow."""
    async with subprocess_server(folder, coverage=False, FramesPerSecond=0) as server:
        await server.add_users("1", "2")
        await server.make_contacts("1", "2")
        return await asyncio.to_thread(slow_input.search, server, examples, seed)


async def run(folder: Path, frames: int, seed: int) -> FuzzReport:
    """Run the fuzz test on a new server. Raises AssertionError."""
    async with subprocess_server(folder, FramesPerSecond=0, BroadcastsPerMinute=30) as server:
        await server.add_users("a", "b", *FUZZERS)
        await server.make_contacts("a", "b")
        report = await fuzz(server, frames, seed)
        server.send_signal(signal.SIGTERM)
        assert await server.wait() == 0
        errors = [line for line in server.log.read_text("utf-8").splitlines() if " ERROR " in line]
        assert not errors, errors[:3]
    return report


def main() -> None:
    """Run the command line. The exit code is 1 if memory leaks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="chat-fuzz-") as folder:
        found = asyncio.run(slowest(Path(folder) / "slow", arguments.frames // 500, arguments.seed))
        for kind, slow in zip(("frame", "request"), found, strict=True):
            print(f"slowest {kind}: {slow.seconds * 1000:.1f} ms of CPU time for {slow.size} bytes: {slow.description}")
        report = asyncio.run(run(Path(folder) / "data", arguments.frames, arguments.seed))
    rate = report.frames / report.seconds
    print(f"{report.frames} frames on {report.sockets} sockets in {report.seconds:.0f} s ({rate:.0f}/s)")
    print(f"memory {report.before >> 20} MiB after 10 % of the frames, {report.after >> 20} MiB at the end")
    print("no file descriptor leaked")
    print(f"{report.messages} messages of the two users, the slowest took {report.slowest:.2f} s")
    sys.exit(report.after > report.before + MEMORY_TOLERANCE)


if __name__ == "__main__":
    main()
