"""Reading what is stored: how long a page takes with few and with many messages in the store."""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from bench.client import PATIENCE, BenchError, Code, Heard, Peer, Say, connect, log_in
from bench.flows import Flow, Ledger
from bench.harness import Meter, Server
from bench.load import Latency, befriend
from bench.report import Figures
from chat_server.backends import SCHEMAS
from chat_server.model.messages import Message
from chat_server.model.sqlite import SqliteMessages
from chat_server.utils.clock import Clock, Timeline
from chat_server.utils.sqlite import Database

WRITER, READER = "writer", "reader"
PREFIX = "m"  # message number i of WRITER has the id m-i
PAGE = 20  # messages
BATCH = 5000  # messages seeded in one transaction


def seed(data_dir: Path, n: int, readers: Sequence[str] = (READER,), text: str = "", *, unread: bool = False) -> None:
    """Store `n` messages of WRITER to each of `readers`, ids m-0 to m-(n-1) in order of time, under `data_dir`.

    For --fill seed. When it is called the data folder was made by a server that has ended: the schema
    is there, WRITER and the readers are registered and are no strangers to each other.
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
            run = [Message(WRITER, reader, f"{PREFIX}-{i}", f"message {i}{text}", timeline.next()) for i in numbers]
            await store.add(run)
            if not unread:
                await store.mark_delivered([message.time for message in run])
    finally:
        await database.close()


async def speak(url: str, n: int, in_flight: int = 400) -> None:
    """Introduce WRITER and READER to each other and let WRITER send READER `n` messages, ids as above."""
    tokens = await log_in(url, (WRITER, READER))
    writer = await connect(url, WRITER, tokens[WRITER], READER)
    reader = await connect(url, READER, tokens[READER], WRITER)
    try:
        await befriend(writer, reader)
        ledger = Ledger()
        flow = Flow(ledger, writer, reader, limit=n, prefix=PREFIX)
        flow.start(in_flight)
        await _finish(flow, ledger, n)
        await asyncio.sleep(0.5)  # for the last pong, so that all is marked read
    finally:
        await writer.close()
        await reader.close()


async def _finish(flow: Flow, ledger: Ledger, n: int) -> None:
    """Wait until `n` messages are done; give up where for PATIENCE seconds none was."""
    done, since = 0, time.monotonic()
    while flow.done < n:
        await asyncio.sleep(0.1)
        if flow.done > done:
            done, since = flow.done, time.monotonic()
        if ledger.errors or time.monotonic() - since > PATIENCE:
            raise BenchError(f"filling stopped after {flow.done} messages: {ledger.problems}")


async def read(server: Server, n: int, times: int) -> Figures:
    """Ask for each kind of page `times` times, one after the other; return milliseconds and CPU of each.

    `n` is how many messages WRITER has sent READER.
    """
    pages = {
        "newest page": (Say(WRITER, f"-{PAGE}", op_type=2), Code.HISTORY, PAGE),
        "page at depth": (Say(WRITER, f"-{PAGE}@<{PREFIX}-{n // 2}", op_type=2), Code.HISTORY, PAGE),
        "page after an id": (Say(WRITER, f"+{PAGE}@<{PREFIX}-{n // 2}", op_type=2), Code.HISTORY, PAGE),
        "unread, none": (Say(WRITER, str(PAGE), op_type=3), Code.HISTORY, 0),
        "conversations": (Say("", f"-{PAGE}", op_type=7), Code.CONVERSATIONS, 1),
    }
    figures: Figures = {}
    tokens = await log_in(server.url, [READER])
    peer = await connect(server.url, READER, tokens[READER], WRITER)
    try:
        for name, (frame, code, size) in pages.items():
            meter = Meter(server)
            for _ in range(20):  # to warm up
                await _ask(peer, frame, code, size)
            with meter:
                latency = Latency.of(array("d", [await _ask(peer, frame, code, size) for _ in range(times)]))
            figures[f"{name}: p50 ms"] = latency.p50
            figures[f"{name}: p99 ms"] = latency.p99
            figures[f"{name}: CPU µs"] = meter.cpu_seconds / times * 1e6
    finally:
        await peer.close()
    return figures | {"start s": server.started_in, "RSS MiB": server.rss() / 2**20}


async def stream(server: Server, reader: str, token: str, n: int) -> Figures:
    """Ask for all `n` messages that WRITER has sent `reader` and he has not read; return what that took."""
    peer = await connect(server.url, reader, token, WRITER)
    server.forget_peak()
    before, began = server.peak(), time.perf_counter()
    try:
        await _ask(peer, Say(WRITER, "", op_type=3), Code.HISTORY, n, patience=10 * PATIENCE)
    finally:
        await peer.close()
    return {
        "op 3, all unread: messages/s": n / (time.perf_counter() - began),
        "op 3, all unread: RSS grown at the peak, MiB": (server.peak() - before) / 2**20,
    }


async def _ask(peer: Peer, frame: Say, code: Code, size: int, patience: float = PATIENCE) -> float:
    """Ask for one page, check that `size` frames came, and return the seconds it took."""
    answered: asyncio.Future[Heard] = asyncio.get_running_loop().create_future()
    frames = 0

    def hear(heard: Heard) -> None:
        nonlocal frames
        if heard.sender == "System":
            answered.set_result(heard)
        else:
            frames += 1

    peer.hear = hear
    began = time.perf_counter()
    peer.say(frame)
    async with asyncio.timeout(patience):
        heard = await answered
    took = time.perf_counter() - began
    if (heard.op_type, heard.content, frames) != (code, str(size), size):
        raise BenchError(f"{frame} was answered {heard} after {frames} frames, not {size}")
    return took
