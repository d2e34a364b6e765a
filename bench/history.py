"""Page latency with few and with many stored messages."""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from bench.client import TIMEOUT, BenchError, ClientFrame, ServerFrame, StatusCode, UserSocket, connect, log_in
from bench.load import Latency, greet
from bench.report import Figures
from bench.senders import PairSender, Recorder
from bench.server_process import BenchServer, ResourceUsage
from chat_server.backends import SCHEMAS
from chat_server.model.messages import Message
from chat_server.model.sqlite import SqliteMessages
from chat_server.service.frames import MARK_READ
from chat_server.utils.clock import Clock, Timeline
from chat_server.utils.sqlite import Database

WRITER, READER = "writer", "reader"
PREFIX = "m"  # message number i from WRITER has the id m-i
PAGE = 20  # messages
BATCH = 5000  # messages stored in one transaction


def seed(data_dir: Path, n: int, readers: Sequence[str] = (READER,), text: str = "", *, unread: bool = False) -> None:
    """Store `n` messages from WRITER to each of `readers`, with ids m-0 to m-(n-1) in chronological order.

    `data_dir` must come from a stopped server at which WRITER and the readers are registered and have written to
    each other. Used for --fill seed.
    """
    asyncio.run(_seed(data_dir, n, readers, text, unread))


async def _seed(data_dir: Path, n: int, readers: Sequence[str], text: str, unread: bool) -> None:
    database = Database(data_dir, timeout=60)
    await database.open(SCHEMAS)
    try:
        store = SqliteMessages(database)
        timeline = Timeline(Clock(), await store.newest())
        for reader, start in product(readers, range(0, n, BATCH)):
            numbers = range(start, min(start + BATCH, n))
            batch = [Message(WRITER, reader, f"{PREFIX}-{i}", f"message {i}{text}", timeline.next()) for i in numbers]
            await store.add(batch)
            if not unread:
                await store.mark_delivered([message.time for message in batch])
    finally:
        await database.close()


async def send_messages(url: str, n: int, in_flight: int = 400) -> None:
    """Log in WRITER and READER and send `n` messages from WRITER to READER, with the same ids as `seed`."""
    tokens = await log_in(url, (WRITER, READER))
    writer = await connect(url, WRITER, tokens[WRITER], READER)
    reader = await connect(url, READER, tokens[READER], WRITER)
    try:
        await greet(writer, reader)
        recorder = Recorder()
        sender = PairSender(recorder, writer, reader, limit=n, prefix=PREFIX)
        sender.start(in_flight)
        await _wait_until_done(sender, recorder, n)
        await asyncio.sleep(0.5)  # for the last pong, after which all messages are marked as read
    finally:
        await writer.close()
        await reader.close()


async def _wait_until_done(sender: PairSender, recorder: Recorder, n: int) -> None:
    """Wait for `n` messages. Raises BenchError at the first error, or without progress for TIMEOUT seconds."""
    done, since = 0, time.monotonic()
    while sender.done < n:
        await asyncio.sleep(0.1)
        if sender.done > done:
            done, since = sender.done, time.monotonic()
        if recorder.errors or time.monotonic() - since > TIMEOUT:
            raise BenchError(f"storing messages stopped after {sender.done} messages: {recorder.problems}")


async def measure_pages(server: BenchServer, n: int, times: int) -> Figures:
    """Request each kind of page `times` times in sequence; return its latency and the CPU time of the server.

    `n` is the number of messages from WRITER to READER.
    """
    pages = {
        "newest page": (ClientFrame(WRITER, f"-{PAGE}", op_type=2), StatusCode.HISTORY, PAGE),
        "page at depth": (ClientFrame(WRITER, f"-{PAGE}@<{PREFIX}-{n // 2}", op_type=2), StatusCode.HISTORY, PAGE),
        "page after an id": (ClientFrame(WRITER, f"+{PAGE}@<{PREFIX}-{n // 2}", op_type=2), StatusCode.HISTORY, PAGE),
        "unread, none": (ClientFrame(WRITER, str(PAGE), op_type=3), StatusCode.HISTORY, 0),
        "conversations": (ClientFrame("", f"-{PAGE}", op_type=7), StatusCode.CONVERSATIONS, 1),
    }
    figures: Figures = {}
    tokens = await log_in(server.url, [READER])
    reader = await connect(server.url, READER, tokens[READER], WRITER)
    try:
        for name, (frame, code, size) in pages.items():
            usage = ResourceUsage(server)
            for _ in range(20):  # warm-up
                await request(reader, frame, code, size)
            with usage:
                latency = Latency.of(array("d", [await request(reader, frame, code, size) for _ in range(times)]))
            figures[f"{name}: p50 ms"] = latency.p50
            figures[f"{name}: p99 ms"] = latency.p99
            figures[f"{name}: CPU µs"] = usage.cpu_seconds / times * 1e6
    finally:
        await reader.close()
    return figures | {"start s": server.started_in, "RSS MiB": server.rss() / 2**20}


async def measure_unread(server: BenchServer, name: str, token: str, n: int) -> Figures:
    """Request all `n` unread messages of the user `name` from WRITER; return throughput and memory growth."""
    reader = await connect(server.url, name, token, WRITER)
    server.reset_peak()
    before, began = server.peak(), time.perf_counter()
    try:
        await request(reader, ClientFrame(WRITER, "", op_type=3), StatusCode.HISTORY, n, timeout=10 * TIMEOUT)
    finally:
        await reader.close()
    return {
        "op 3, all unread: messages/s": n / (time.perf_counter() - began),
        "op 3, all unread: RSS growth at the peak, MiB": (server.peak() - before) / 2**20,
    }


async def request(
    reader: UserSocket, frame: ClientFrame, code: StatusCode, size: int, timeout: float = TIMEOUT
) -> float:
    """Send a request, check the code and that `size` messages came before it, and return the seconds it took.

    The content of the answer must be the number of messages; that of op 4 is not checked.
    """
    answered: asyncio.Future[ServerFrame] = asyncio.get_running_loop().create_future()
    frames = 0

    def count(received: ServerFrame) -> None:
        nonlocal frames
        if received.sender == "System":
            answered.set_result(received)
        else:
            frames += 1

    reader.on_frame = count
    began = time.perf_counter()
    reader.send(frame)
    async with asyncio.timeout(timeout):
        answer = await answered
    took = time.perf_counter() - began
    expected = answer.content if frame.op_type == MARK_READ else str(size)
    if (answer.op_type, answer.content, frames) != (code, expected, size):
        raise BenchError(f"{frame} got the answer {answer} after {frames} messages instead of {size}")
    return took
