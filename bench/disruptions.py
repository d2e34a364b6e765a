"""The disruptions of `bench disruption`. Each runs in a process of its own with a low priority.

disruption_test.py starts this process. It reads the tokens of its users from stdin, prints `ready`, begins when it
reads `go`, ends after --seconds and prints its counters as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from itertools import count
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import aiohttp
import msgspec
import uvloop

from bench.client import (
    PASSWORD,
    TIMEOUT,
    BenchError,
    ClientFrame,
    ServerFrame,
    StatusCode,
    UserSocket,
    connect,
    for_each,
    log_in,
)
from bench.raw_client import BINARY, CONTINUATION, ConnectionEnded, RawClient, frame, request

SMALL_BUFFER = 4096  # bytes that the kernel buffers for a client that does not read
LONG_TEXT = "x" * 16000  # slightly less than MaxTextBytes
BAD_FRAMES = [b"{", b"[]", b'{"op_type":"1"}', b'{"op_type":99,"content":""}', b'{"op_type":1,"content":7}', b"null"]
FATAL_FRAMES = [frame(b"{"), frame(b"x", BINARY), frame(b"x" * 70_000), frame(b"\xff\xfe")]
LOGIN_USERS = tuple(f"login{i}" for i in range(20))
RESET_USERS = tuple(f"reset{i}" for i in range(10))


class DisruptionContext:
    """The server to disrupt, the tokens of the users, and counters of what happened."""

    def __init__(self, url: str, tokens: dict[str, str]) -> None:
        self.url = url
        self.tokens = tokens
        self.done: Counter[str] = Counter()
        self.milliseconds: list[float] = []  # durations, for the median and the maximum
        self.unread: list[RawClient] = []  # sockets that nothing reads; kept open until the end

    async def open_raw(self, uid: str, *, buffer: int = 0) -> RawClient:
        """Open a socket that reads only on request."""
        return await RawClient.open(self.url, uid, self.tokens[uid], buffer=buffer)

    async def open_reading(self, uid: str) -> UserSocket:
        """Open a socket that reads and drops all frames and answers pings."""
        opened = await connect(self.url, uid, self.tokens[uid])
        opened.on_frame = lambda _: None
        return opened


Worker = Callable[[DisruptionContext], Awaitable[None]]


class StoredMessages(NamedTuple):
    """The number of messages to store for each of `readers` before the test."""

    readers: tuple[str, ...]
    messages: int
    text: str = ""
    unread: bool = False


class Disruption(NamedTuple):
    """One kind of disruption: its users, its preparation, and its workers."""

    users: tuple[str, ...]
    workers: tuple[Worker, ...]  # they run concurrently until they are cancelled
    partners: tuple[tuple[str, str], ...] = ()  # users who write to each other
    group: str = ""  # a group of all users, if any
    stored: StoredMessages | None = None
    prepare: Worker | None = None


# --- slow-reader


def _request_without_reading(uid: str) -> Worker:
    """Request all unread messages and many pages, and read none of the answers."""

    async def work(context: DisruptionContext) -> None:
        client = await context.open_raw(uid, buffer=SMALL_BUFFER)
        context.unread.append(client)
        await client.write(request(3, to="writer") + request(2, "-200", to="writer") * 100)
        context.done["large answers requested, not read"] += 101

    return work


def _open_without_reading(uid: str) -> Worker:
    """Open a socket that never reads, and another one every 4 seconds."""

    async def work(context: DisruptionContext) -> None:
        while True:
            context.unread.append(await context.open_raw(uid, buffer=SMALL_BUFFER))
            context.done["sockets that never read"] += 1
            await asyncio.sleep(4)

    return work


def _write_to_slow_reader(uid: str, to: str, interval: float = 0.02) -> Worker:
    """Send long texts to a user who does not read, one every `interval` seconds."""

    async def work(context: DisruptionContext) -> None:
        client = await context.open_raw(uid)
        while True:
            await client.write(request(1, f"\n{LONG_TEXT}", to))
            await client.read_answer()
            context.done["messages to users who do not read"] += 1
            await asyncio.sleep(interval)

    return work


# --- flood


def _flood(uid: str, to: str, text: str, batch: int) -> Worker:
    """Send messages to a user who is online, as fast as the server reads them."""

    async def work(context: DisruptionContext) -> None:
        await context.open_reading(to)
        await _send_fast(context, uid, to, text, batch)

    return work


async def _send_fast(context: DisruptionContext, uid: str, to: str, text: str, batch: int) -> None:
    """Send messages, `batch` at a time, and read the answers."""
    client = await context.open_raw(uid)
    frames = request(1, f"\n{text}", to) * batch

    async def read_answers() -> None:
        while True:
            await client.read_answer()
            context.done[f"answers to a flood of {len(text):,} bytes each"] += 1

    reading = asyncio.create_task(read_answers())
    try:
        while True:
            await client.write(frames)
    finally:
        reading.cancel()


def _send_bad_frames(uid: str) -> Worker:
    """Send 99 bad frames and one for which the server closes the socket; reconnect immediately."""

    async def work(context: DisruptionContext) -> None:
        for number in count():
            client = await context.open_raw(uid)
            bad = b"".join(frame(BAD_FRAMES[i % len(BAD_FRAMES)]) for i in range(99))
            try:
                await client.write(bad + FATAL_FRAMES[number % len(FATAL_FRAMES)])
                while True:
                    await client.read_answer()
                    context.done["bad frames answered"] += 1
            except ConnectionEnded:
                context.done["sockets closed for bad frames"] += 1
            finally:
                client.reset()

    return work


def _exceed_broadcast_limit(uid: str) -> Worker:
    """Write to everyone more often than BroadcastsPerMinute allows."""

    async def work(context: DisruptionContext) -> None:
        client = await context.open_raw(uid)
        while True:
            await client.write(request(6, "x" * 1000))
            answer = await client.read_answer()
            sent = f'"op_type":{StatusCode.SENT_TO_ALL.value},'.encode() in answer
            context.done["broadcasts sent" if sent else "broadcasts refused"] += 1
            await asyncio.sleep(0.1)

    return work


# --- logins


async def _register(context: DisruptionContext) -> None:
    """Register at the server, not in the database, so that the hashes have the cost of its settings."""
    await log_in(context.url, LOGIN_USERS, concurrency=4)


async def _log_in_repeatedly(context: DisruptionContext) -> None:
    """Log in again and again, 64 at a time; after a refusal, retry in 0.1 s."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(context.url, connector=connector) as http, asyncio.TaskGroup() as group:

        async def worker(number: int) -> None:
            body = {"user_name": LOGIN_USERS[number % len(LOGIN_USERS)], "password": PASSWORD}
            while True:
                try:
                    async with http.post("/user/login", json=body) as response:
                        await response.read()
                    answer = str(response.status)
                except aiohttp.ClientError as error:
                    answer = type(error).__name__
                context.done[f"logins answered {answer}"] += 1
                if answer != "200":
                    await asyncio.sleep(0.1)

        for number in range(64):
            group.create_task(worker(number))


# --- reset


async def _reset_within_frame(context: DisruptionContext, sockets: int = 40) -> None:
    """Every second, open `sockets` sockets and reset all of them in the middle of a frame."""
    message = request(1, f"\n{LONG_TEXT}", RESET_USERS[0])
    while True:
        users = (RESET_USERS[i % len(RESET_USERS)] for i in range(sockets))
        clients = await asyncio.gather(*map(context.open_raw, users))
        for client in clients:
            await client.write(message + message[: len(message) // 2])  # the answer to the first one finds no client
        await asyncio.sleep(0.5)
        for client in clients:
            client.reset()
        context.done["sockets reset within a frame"] += sockets
        await asyncio.sleep(0.5)


# --- herd

HERD_USERS = tuple(f"herd{i}" for i in range(400))
HERD_SOCKETS = 10_000  # each needs a file descriptor here and at the server


async def _reconnect_together(context: DisruptionContext) -> None:
    """Open HERD_SOCKETS sockets at the same time, reset all of them, and repeat."""

    async def open_one(uid: str) -> RawClient | None:
        try:
            client = await context.open_raw(uid)
        except (*ConnectionEnded, OSError, BenchError, TimeoutError):
            context.done["sockets that failed to open"] += 1
            return None
        context.done["sockets opened"] += 1
        return client

    while True:
        users = (HERD_USERS[i % len(HERD_USERS)] for i in range(HERD_SOCKETS))
        clients = await asyncio.gather(*map(open_one, users))
        context.done["rounds"] += 1
        await asyncio.sleep(1)
        for client in filter(None, clients):
            client.reset()


# --- deep-pages

DEEP_MESSAGES = 200_000


def _request_deep_pages(uid: str) -> Worker:
    """Request the most expensive pages: one at the far end of the history and one beyond it."""

    async def work(context: DisruptionContext) -> None:
        client = await context.open_raw(uid)
        at_end, beyond = f"{DEEP_MESSAGES - 10}-20", f"{10**15}-200"
        while True:
            await client.write(request(2, at_end, to="writer") + request(2, beyond, to="writer"))
            for _ in range(2):
                await client.read_answer()
                context.done["deep pages"] += 1

    return work


# --- endless, fragments, lists

CHUNK = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
CHUNKED_POST = (
    b"POST /user/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
)
PIPELINED_GETS = b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n" * 100


def _send_endlessly(head: bytes, data: bytes) -> Worker:
    """Send `head` and then `data` again and again on an unauthenticated connection, and read nothing."""

    async def work(context: DisruptionContext) -> None:
        address = urlsplit(context.url)
        while True:
            _, writer = await asyncio.open_connection(address.hostname, address.port)
            context.done["connections"] += 1
            try:
                writer.write(head)
                while True:
                    writer.write(data)
                    async with asyncio.timeout(1):
                        await writer.drain()
            except (ConnectionError, TimeoutError, RuntimeError):  # uvloop raises RuntimeError on a closed transport
                pass
            finally:
                writer.transport.abort()
            await asyncio.sleep(0.01)

    return work


def _send_fragments(uid: str) -> Worker:
    """Send the fragments of a message that never ends."""

    async def work(context: DisruptionContext) -> None:
        while True:
            client = await context.open_raw(uid)
            context.done["sockets"] += 1
            try:
                await client.write(frame(b"{", fin=False))
                while True:
                    await client.write(frame(b"", CONTINUATION, fin=False) * 10_000)
            except ConnectionError:
                client.reset()

    return work


def _request_conversations(uid: str) -> Worker:
    """Request the list of conversations (op 7) again and again."""

    async def work(context: DisruptionContext) -> None:
        client = await context.open_raw(uid)
        while True:
            await client.write(request(7, "-200"))
            await client.read_answer()
            context.done["lists"] += 1

    return work


# --- broadcast

BROADCAST_RECEIVERS = 5000
BROADCAST_WRITERS = tuple(f"speaker{i}" for i in range(8))


async def _open_receivers(context: DisruptionContext) -> None:
    """Open the sockets of the receivers."""

    async def open_one(uid: str) -> None:
        await context.open_reading(uid)

    await for_each(open_one, [uid for uid in context.tokens if uid not in BROADCAST_WRITERS], 32)


async def _write_to_everyone(context: DisruptionContext) -> None:
    """Write to everyone four times a second, with each writer in turn because of BroadcastsPerMinute."""
    sockets = [await connect(context.url, uid, context.tokens[uid]) for uid in BROADCAST_WRITERS]
    answers: asyncio.Queue[ServerFrame] = asyncio.Queue()
    for number in count():
        writer = sockets[number % len(sockets)]
        writer.on_frame = lambda received: answers.put_nowait(received) if received.sender == "System" else None
        writer.send(ClientFrame("", "x" * 100, op_type=6))
        answer = await answers.get()
        receivers = int(answer.content) if answer.op_type == StatusCode.SENT_TO_ALL else 0
        context.done["deliveries of broadcasts"] += receivers
        await asyncio.sleep(0.25)


# --- group-flood

GROUP = "#flood"
FLOOD_MEMBERS = tuple(f"member{i}" for i in range(200))
FLOOD_ONLINE = 50  # members with a socket


async def _open_members(context: DisruptionContext) -> None:
    """Open the sockets of the members who are online, and count their messages."""

    def count_delivery(received: ServerFrame) -> None:
        context.done["deliveries to members"] += received.op_type == StatusCode.RECEIVED

    for uid in FLOOD_MEMBERS[1:FLOOD_ONLINE]:
        member = await connect(context.url, uid, context.tokens[uid])
        member.on_frame = count_delivery


async def _flood_group(context: DisruptionContext) -> None:
    """Write to the group as fast as the server reads."""
    await _send_fast(context, FLOOD_MEMBERS[0], GROUP, "hello", 100)


# --- reconnect

RECONNECT_SOCKETS = 1000
MISSED_MESSAGES = 20  # that each client has to fetch


def _reconnect(uid: str) -> Worker:
    """Connect as after a restart of the server: request the conversations and the missed messages."""

    async def work(context: DisruptionContext) -> None:
        began = time.perf_counter()
        client = await connect(context.url, uid, context.tokens[uid])
        client.send(ClientFrame("", "-20", op_type=7))
        for code in (StatusCode.CONVERSATIONS, StatusCode.CONVERSATIONS):
            await client.expect(code)
        client.send(ClientFrame("writer", f"+200@<m-{MISSED_MESSAGES - 1}", op_type=2))
        for _ in range(MISSED_MESSAGES + 1):
            await client.expect(StatusCode.HISTORY)
        context.milliseconds.append((time.perf_counter() - began) * 1000)
        context.done["ms median wait"] = round(statistics.median(context.milliseconds))
        context.done["ms longest wait"] = round(max(context.milliseconds))
        context.done["sockets reconnected"] += 1

    return work


_indexes = [str(i) for i in range(5)]
DISRUPTIONS = {
    "none": Disruption(users=(), workers=()),  # shows the difference between two phases without a disruption
    "slow-reader": Disruption(
        users=(*(f"{name}{i}" for name in ("hoarder", "deaf", "teller") for i in _indexes),),
        partners=(*((f"teller{i}", f"deaf{i}") for i in _indexes),),
        stored=StoredMessages(tuple(f"hoarder{i}" for i in _indexes), 20_000, "x" * 500, unread=True),
        workers=(
            *(_request_without_reading(f"hoarder{i}") for i in _indexes),
            *(_open_without_reading(f"deaf{i}") for i in _indexes),
            *(_write_to_slow_reader(f"teller{i}", f"deaf{i}") for i in _indexes),
        ),
    ),
    "flood": Disruption(
        users=("flood0", "flood1", "victim0", "victim1", "bad0", "broadcast0", "broadcast1", "broadcast2"),
        partners=(("flood0", "victim0"), ("flood1", "victim1")),
        workers=(
            _flood("flood0", "victim0", "hello", 100),
            _flood("flood1", "victim1", LONG_TEXT, 4),
            _send_bad_frames("bad0"),
            *(_exceed_broadcast_limit(f"broadcast{i}") for i in range(3)),
        ),
    ),
    "logins": Disruption(users=(), prepare=_register, workers=(_log_in_repeatedly,)),
    "broadcast": Disruption(
        users=(*BROADCAST_WRITERS, *(f"receiver{i}" for i in range(BROADCAST_RECEIVERS))),
        prepare=_open_receivers,
        workers=(_write_to_everyone,),
    ),
    "group-flood": Disruption(users=FLOOD_MEMBERS, group=GROUP, prepare=_open_members, workers=(_flood_group,)),
    "reconnect": Disruption(
        users=tuple(f"back{i}" for i in range(RECONNECT_SOCKETS)),
        stored=StoredMessages(tuple(f"back{i}" for i in range(RECONNECT_SOCKETS)), 2 * MISSED_MESSAGES),
        workers=tuple(_reconnect(f"back{i}") for i in range(RECONNECT_SOCKETS)),
    ),
    "reset": Disruption(
        users=RESET_USERS,
        partners=tuple((user, RESET_USERS[0]) for user in RESET_USERS[1:]),
        workers=(_reset_within_frame,),
    ),
    "endless": Disruption(
        users=(), workers=(_send_endlessly(CHUNKED_POST, CHUNK), _send_endlessly(b"", PIPELINED_GETS))
    ),
    "fragments": Disruption(users=("fragments",), workers=(_send_fragments("fragments"),)),
    "lists": Disruption(
        users=("lister",),
        stored=StoredMessages(("lister",), 300, LONG_TEXT),
        workers=(_request_conversations("lister"),) * 31,
    ),
    "herd": Disruption(users=HERD_USERS, workers=(_reconnect_together,)),
    "deep-pages": Disruption(
        users=tuple(f"deep{i}" for i in range(4)),
        stored=StoredMessages(tuple(f"deep{i}" for i in range(4)), DEEP_MESSAGES, "x" * 20),
        workers=(*(_request_deep_pages(f"deep{i}") for i in range(4)),),
    ),
}


async def disrupt(disruption: Disruption, url: str, seconds: float) -> None:
    """Prepare, wait for `go`, and run the workers for `seconds`."""
    os.nice(10)  # real disruptions come from other machines, so this process must not take CPU time from the server
    context = DisruptionContext(url, msgspec.json.decode(sys.stdin.readline(), type=dict[str, str]))
    if disruption.prepare is not None:
        await disruption.prepare(context)
    print("ready", flush=True)
    if await asyncio.to_thread(sys.stdin.readline) != "go\n":
        return
    try:
        async with asyncio.timeout(seconds) as limit, asyncio.TaskGroup() as group:
            for worker in disruption.workers:
                running: Coroutine[Any, Any, None] = _run(worker, context)
                group.create_task(running)
            await asyncio.sleep(seconds + 1)
    except TimeoutError:
        if not limit.expired():
            raise
    for client in context.unread:
        client.reset()
    print(msgspec.json.encode(context.done).decode(), flush=True)


async def _run(worker: Worker, context: DisruptionContext) -> None:
    """Run a worker until it is cancelled. If the server closes its socket, count that and restart the worker."""
    while True:
        try:
            await worker(context)
            return
        except (*ConnectionEnded, BenchError) as error:
            context.done[f"{type(error).__name__}, restarted"] += 1
            await asyncio.sleep(1)


def main() -> None:
    """Run one disruption."""
    parser = argparse.ArgumentParser(prog="python -m bench.disruptions", description=__doc__.partition("\n")[0])
    parser.add_argument("name", choices=DISRUPTIONS)
    parser.add_argument("--url", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    args = parser.parse_args()

    async def bounded() -> None:
        async with asyncio.timeout(args.seconds * 2 + 10 * TIMEOUT):
            await disrupt(DISRUPTIONS[args.name], args.url, args.seconds)

    uvloop.run(bounded())


if __name__ == "__main__":
    main()
