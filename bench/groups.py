"""What a group costs as it grows: pages and read positions out of many messages, and the memory of idle groups."""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.client import TIMEOUT, BenchError, ClientFrame, ServerFrame, StatusCode, connect, for_each
from bench.history import BATCH, PAGE, request
from bench.load import Latency
from bench.report import Figures
from bench.seed_users import seed_groups
from bench.server_process import BenchServer, ResourceUsage
from chat_server.backends import SCHEMAS
from chat_server.model.groups import Group
from chat_server.model.messages import Confirmed, GroupKey, GroupView, Message
from chat_server.model.sqlite import SqliteMessages
from chat_server.utils.clock import Clock, Timeline
from chat_server.utils.sqlite import READERS, Database

MIB = 2**20
GROUP = "#bench"
READER = "m0"  # reads; the other members have written the messages in turn
GROUPS_OF_USER = 100  # GroupsPerUser


def seed_group(data_dir: Path, members: Sequence[str], n: int) -> Group:
    """Create GROUP, with READER among the members, and store `n` messages of the others; message i has the id m-i."""
    [group] = seed_groups(data_dir, {GROUP: members})
    asyncio.run(_seed(data_dir, group, n))
    return group


async def _seed(data_dir: Path, group: Group, n: int) -> None:
    writers = [member for member in group.members if member != READER]
    database = Database(data_dir, timeout=60)
    await database.open(SCHEMAS)
    try:
        store, timeline = SqliteMessages(database), Timeline(Clock(), group.number)
        for start in range(0, n, BATCH):
            await store.add(
                [
                    Message(
                        writers[i % len(writers)], GROUP, f"m-{i}", f"message {i}", timeline.next(), group=group.number
                    )
                    for i in range(start, min(start + BATCH, n))
                ]
            )
    finally:
        await database.close()


async def reset_position(data_dir: Path, group: Group) -> None:
    """Make all messages unread for READER, at a stopped server."""
    database = Database(data_dir, timeout=60)
    await database.open(SCHEMAS)
    try:
        await SqliteMessages(database).put_positions(group.number, {READER: 0})
    finally:
        await database.close()


async def measure_requests(server: BenchServer, token: str, n: int, times: int) -> Figures:
    """Send each kind of request `times` times in sequence; return its latency and the CPU time of the server.

    READER begins with all `n` messages unread. The marks move its position forward message by message.
    """
    half = n // 2
    history, marked = StatusCode.HISTORY, StatusCode.MARKED_READ
    conversations = ClientFrame("", f"-{PAGE}", op_type=7), StatusCode.CONVERSATIONS, 1

    def mark(i: int) -> tuple[ClientFrame, StatusCode, int]:
        return ClientFrame(GROUP, f"m-{half - times + i}", op_type=4), marked, 0

    def always(*parts: Any) -> Callable[[int], tuple[ClientFrame, StatusCode, int]]:
        return lambda _: parts

    kinds = {
        "newest page": always(ClientFrame(GROUP, f"-{PAGE}", op_type=2), history, PAGE),
        "page at depth": always(ClientFrame(GROUP, f"-{PAGE}@m-{half}", op_type=2), history, PAGE),
        "page after an id": always(ClientFrame(GROUP, f"+{PAGE}@m-{half}", op_type=2), history, PAGE),
        "unread, 20 of all": always(ClientFrame(GROUP, str(PAGE), op_type=3), history, PAGE),
        "conversations, all unread": always(*conversations),
        "marks": mark,
        "all marked": always(ClientFrame(GROUP, "*", op_type=4), marked, 0),
        "unread, none": always(ClientFrame(GROUP, str(PAGE), op_type=3), history, 0),
        "conversations, none unread": always(*conversations),
    }
    figures: Figures = {}
    reader = await connect(server.url, READER, token)
    try:
        for name, frame_of in kinds.items():
            usage = ResourceUsage(server)
            await request(reader, *frame_of(0))  # warm-up
            with usage:
                latency = Latency.of(array("d", [await request(reader, *frame_of(i)) for i in range(times)]))
            figures[f"{name}: p50 ms"] = latency.p50
            figures[f"{name}: p99 ms"] = latency.p99
            figures[f"{name}: CPU µs"] = usage.cpu_seconds / times * 1e6
    finally:
        await reader.close()
    return figures


async def count_steps(data_dir: Path, group: Group, n: int) -> Figures:
    """Return the steps of SQLite's virtual machine for each read: a measure of work that needs no quiet machine."""
    key, members = GroupKey(group.number, GROUP), list(group.members)
    database = Database(data_dir, timeout=60)
    await database.open(SCHEMAS)
    try:
        store = SqliteMessages(database)
        writer = members[1 + n // 2 % (len(members) - 1)]
        middle = await store.time_of(key, writer, f"m-{n // 2}")
        assert middle
        confirmed = Confirmed(group.number, [message.time for message in await store.before(key, 2**62, 16)])
        await store.put_positions(group.number, dict.fromkeys(members[:50], confirmed.times[0] - 1))
        reads: dict[str, Callable[[], Awaitable[Any]]] = {
            "newest page": lambda: store.before(key, 2**62, PAGE, group.number),
            "page at depth": lambda: store.before(key, middle, PAGE, group.number),
            "page after an id": lambda: store.after(key, middle, PAGE),
            "the time of an id": lambda: store.time_of(key, writer, f"m-{n // 2}"),
            "the newest of an id": lambda: store.newest_with_id(key, f"m-{n // 2}"),
            "conversations, all unread": lambda: store.group_conversations(members[-1], [GroupView(key, group.number)]),
            "conversations, none unread": lambda: store.group_conversations(READER, [GroupView(key, group.number)]),
            "positions": lambda: store.positions([group.number]),
            "16 confirmed by 50 members": lambda: store.advance(group.number, dict.fromkeys(members[:50], confirmed)),
        }
        return {f"{name}: SQLite steps": await _steps(database, read) for name, read in reads.items()}
    finally:
        await database.close()


async def _steps(database: Database, read: Callable[[], Awaitable[Any]]) -> float:
    steps = 0

    def step() -> int:
        nonlocal steps
        steps += 1
        return 0

    for _ in range(READERS):  # they take turns
        await database.read(lambda connection: connection.set_progress_handler(step, 1))
    await read()
    for _ in range(READERS):
        await database.read(lambda connection: connection.set_progress_handler(None, 1))
    return steps


def idle_groups(groups: int, members: int) -> dict[str, list[str]]:
    """Return names and members of groups, such that each user is in at most GROUPS_OF_USER groups."""
    users = max(members, groups * members // GROUPS_OF_USER)
    return {f"#g{i}": [f"u{(i * members + k) % users}" for k in range(members)] for i in range(groups)}


async def measure_memory(
    server: BenchServer, tokens: Mapping[str, str], groups: Mapping[str, Sequence[str]]
) -> Figures:
    """List the conversations of all users, write once to each group, list them again four times: RSS after each step.

    What the server keeps of each group would grow by every list; what it caches is full after the first ones.
    """
    sent: dict[str, list[str]] = {user: [] for user in tokens}
    for name, members in groups.items():
        sent[members[0]].append(name)
    listed = dict.fromkeys(tokens, 0)
    for members in groups.values():
        for member in members:
            listed[member] += 1

    async def list_all(user: str) -> None:
        socket = await connect(server.url, user, tokens[user])
        size = listed[user]
        await request(socket, ClientFrame("", "-200", op_type=7), StatusCode.CONVERSATIONS, size)
        await socket.close()

    async def write(user: str) -> None:
        socket = await connect(server.url, user, tokens[user])
        answers: asyncio.Queue[ServerFrame] = asyncio.Queue()
        socket.on_frame = lambda frame: answers.put_nowait(frame) if frame.sender == "System" else None
        for name in sent[user]:
            socket.send(ClientFrame(name, "hello"))
            async with asyncio.timeout(TIMEOUT):
                answer = await answers.get()
            if answer.op_type not in (StatusCode.ONLINE, StatusCode.OFFLINE):
                raise BenchError(f"{name}: {answer}")
        await socket.close()

    began = time.perf_counter()
    sizes = [server.rss()]
    for step in (list_all, write, list_all, list_all, list_all, list_all):
        await for_each(step, tokens, 8)
        await asyncio.sleep(1)
        sizes.append(server.rss())
    labels = [
        *("at the start", "after op 7 of all users", "after a message to each group"),
        *(f"after op 7, time {number}" for number in (2, 3, 4, 5)),
    ]
    figures = {f"RSS {label}, MiB": size / MIB for label, size in zip(labels, sizes, strict=True)}
    figures |= {
        "growth, MiB": (sizes[-1] - sizes[0]) / MIB,
        "growth by the last op 7, MiB": (sizes[-1] - sizes[-2]) / MIB,
    }
    return figures | {"seconds": time.perf_counter() - began}
