"""Costs that determine the speed, counted instead of timed: writes, encodings, tasks, memory per socket."""

import asyncio
import gc
import re
import signal
import sys
import weakref
from collections import Counter
from collections.abc import Awaitable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from chat_server.api import dispatcher
from chat_server.api.connection import Connection
from chat_server.model.messages import Added, Message
from chat_server.model.sqlite import SqliteMessages
from chat_server.service import frames
from tests import raw
from tests.e2e.group_helpers import create
from tests.faults.tools import strace
from tests.harness import ROOT, SubprocessServer, serving, subprocess_server, wait_until

RUN = 48


def trace_writes(trace: Path) -> tuple[str, ...]:
    """Return the command that runs the server and traces each write with the addresses of its socket."""
    return strace(trace, "write,writev,sendto,sendmsg", "-yy", "-s", "0")


async def test_a_batch_of_messages_takes_few_writes(tmp_path: Path) -> None:
    """Both the deliveries and the acknowledgements."""
    trace = tmp_path / "trace"
    async with subprocess_server(tmp_path / "data", users=("1", "2"), prefix=trace_writes(trace)) as server:
        await server.make_contacts("1", "2")
        async with raw.chat(server, "1", "2") as one, raw.chat(server, "2", "1") as two:
            before = writes(trace)
            await one.write(b"".join(raw.request(1, f"m{n}\nhello") for n in range(RUN)))
            assert [(await one.answer())["id"] for _ in range(RUN)] == [f"m{n}" for n in range(RUN)]
            assert [(await two.receive())["id"] for _ in range(RUN)] == [f"m{n}" for n in range(RUN)]
            made = writes(trace) - before
            for socket in (one, two):
                assert 1 <= made[socket.sock.getsockname()[1]] <= RUN // 8, made


async def test_a_batch_of_long_messages_is_stored_in_steps(tmp_path: Path) -> None:
    """Other sockets have their turn between the steps."""
    trace = tmp_path / "trace"
    async with subprocess_server(tmp_path / "data", users=("1", "2"), prefix=trace_writes(trace)) as server:
        await server.make_contacts("1", "2")
        async with raw.chat(server, "1", "2") as one:
            before = writes(trace)
            await one.write(b"".join(raw.request(1, f"m{n}\n" + "x" * 16000) for n in range(RUN)))
            assert [(await one.answer())["id"] for _ in range(RUN)] == [f"m{n}" for n in range(RUN)]
            made = writes(trace) - before
            assert made[one.sock.getsockname()[1]] >= RUN * 16000 // 81920, made


class LargeTextGate:
    """Let the message store block on large texts until `gate` opens; count the blocked batches."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gate = asyncio.Event()
        self.waiting = self.max_waiting = 0
        add = SqliteMessages.add

        async def gated_add(store: SqliteMessages, run: Sequence[Message]) -> list[Added]:
            if len(run[0].text) > 1000:
                self.waiting += 1
                self.max_waiting = max(self.max_waiting, self.waiting)
                await self.gate.wait()
                self.waiting -= 1
            return await add(store, run)

        monkeypatch.setattr(SqliteMessages, "add", gated_add)


async def test_a_short_text_does_not_wait_for_many_large_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most four batches of large texts are in the store at a time."""
    async with serving(tmp_path, users=("1", "2")) as server, AsyncExitStack() as stack:
        await server.make_contacts("1", "2")
        held = LargeTextGate(monkeypatch)
        chats = [await stack.enter_async_context(server.chat("1", "2")) for _ in range(12)]
        for number, chat in enumerate(chats):
            await chat.put(1, f"m{number}\n" + "x" * 16000, type=1)
        await wait_until(lambda: held.waiting == 4)
        async with server.chat("2", "1") as other:
            assert (await other.send("short\nhello"))["id"] == "short"
        held.gate.set()
        for number, chat in enumerate(chats):
            assert (await chat.receive())["content"] == "short\nhello"
            assert (await chat.receive())["id"] == f"m{number}"
        assert held.max_waiting == 4


async def test_a_large_text_that_waits_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatcher, "LARGE_TIMEOUT", 0.05)
    async with serving(tmp_path, users=("1", "2")) as server, AsyncExitStack() as stack:
        await server.make_contacts("1", "2")
        held = LargeTextGate(monkeypatch)
        chats = [await stack.enter_async_context(server.chat("1", "2")) for _ in range(5)]
        text = "\n" + "x" * 16000
        for chat in chats[1:]:
            await chat.put(1, text, type=1)
        await wait_until(lambda: held.waiting == 4)
        refused = await chats[0].send("m1" + text)
        assert (refused["op_type"], refused["reason"], refused["id"]) == (40008, "store_away", "m1")
        held.gate.set()
        for chat in chats[1:]:
            assert (await chat.receive())["op_type"] == 40019
        assert (await chats[0].send("m1" + text))["op_type"] == 40019


def writes(trace: Path) -> Counter[int]:
    """Count the writes to each socket so far, by the peer's port."""
    return Counter(map(int, re.findall(r"TCP:\[[^\]]*->127\.0\.0\.1:(\d+)\]", trace.read_text())))


async def test_a_broadcast_is_encoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[frames.Frame] = []
    encode = frames._encode

    def counted(record: frames.Frame) -> bytes:
        encoded.append(record)
        return encode(record)

    names = [str(number) for number in range(20)]
    async with serving(tmp_path, users=names) as server, AsyncExitStack() as stack:
        chats = [await stack.enter_async_context(server.chat(name)) for name in names for _ in range(2)]
        monkeypatch.setattr(frames, "_encode", counted)
        await chats[0].put(6, "hello")
        for chat in chats[2:]:
            assert (await chat.receive())["content"] == "hello"
        assert (await chats[0].receive())["op_type"] == 40009
        assert [record.to for record in encoded] == ["ALL", "0"]


def counting_calls(count: Path) -> tuple[str, ...]:
    """Return a `prefix` that runs run.py and counts the calls on the event loop's thread between two SIGUSR1."""
    launcher = count.with_name("launcher.py")
    launcher.write_text(
        f"""
import cProfile, pathlib, signal, sys
sys.path.insert(0, {str(ROOT)!r})
profile, counting = cProfile.Profile(), False

def toggle(*_):
    global counting
    counting = not counting
    if counting:
        return profile.enable()
    profile.disable()
    pathlib.Path({str(count)!r}).write_text(str(sum(entry.callcount for entry in profile.getstats())))

signal.signal(signal.SIGUSR1, toggle)
from chat_server import cli
sys.exit(cli.main(sys.argv[3:]))
"""
    )
    return sys.executable, str(launcher)


async def count_calls(server: SubprocessServer, count: Path, work: Awaitable[Any]) -> int:
    """Return the calls that a server with the prefix `counting_calls(count)` makes during `work`."""
    server.process.send_signal(signal.SIGUSR1)
    await work
    server.process.send_signal(signal.SIGUSR1)
    await wait_until(lambda: count.exists() and bool(count.read_text()))  # it exists before it is written
    return int(count.read_text())


async def send(sender: raw.RawSocket, rounds: range, in_flight: int) -> None:
    """In each of the rounds, send `in_flight` messages to a receiver who is online, and wait for the answers."""
    for number in rounds:
        await sender.write(b"".join(raw.request(1, f"m{number}-{n}\nhello") for n in range(in_flight)))
        for _ in range(in_flight):
            assert (await sender.answer())["op_type"] == 40018


@pytest.mark.parametrize(("in_flight", "limit"), [(16, 55), (1, 180)])
async def test_a_message_costs_few_function_calls(tmp_path: Path, in_flight: int, limit: int) -> None:
    """The number of calls does not depend on the machine. Measured: 40 to 44 and 119 to 148."""
    pairs, rounds = 50, range(1, 1 + 64 // in_flight)
    count = tmp_path / "calls"
    async with (
        subprocess_server(tmp_path / "data", prefix=counting_calls(count), coverage=False, StrangerLimit=0) as server,
        AsyncExitStack() as stack,
    ):
        names = [str(number) for number in range(2 * pairs)]
        await server.add_users(*names)
        for name in names[pairs:]:
            await stack.enter_async_context(server.chat(name))  # these clients answer pings
        senders = [
            await stack.enter_async_context(raw.chat(server, one, to=two))
            for one, two in zip(names[:pairs], names[pairs:], strict=True)
        ]

        await asyncio.gather(*(send(sender, range(1), in_flight) for sender in senders))  # fill the caches
        calls = await count_calls(server, count, asyncio.gather(*(send(one, rounds, in_flight) for one in senders)))
        assert calls / (pairs * len(rounds) * in_flight) <= limit


@pytest.mark.parametrize(("in_flight", "limit"), [(16, 6), (1, 50)])
async def test_a_delivery_in_a_group_costs_few_function_calls(tmp_path: Path, in_flight: int, limit: int) -> None:
    """Counted for each receiver, with its pong and its read position. Measured: 4 and 34 to 41."""
    members, rounds = 50, range(1, 1 + 128 // in_flight)
    count = tmp_path / "calls"
    async with (
        subprocess_server(tmp_path / "data", prefix=counting_calls(count), coverage=False, StrangerLimit=0) as server,
        AsyncExitStack() as stack,
    ):
        writer, *others = names = [str(number) for number in range(members)]
        await server.add_users(*names)
        await create(server, writer, "#team", *others)
        for name in others:
            await stack.enter_async_context(server.chat(name))  # these clients answer pings
        sender = await stack.enter_async_context(raw.chat(server, writer, to="#team"))
        await send(sender, range(1), in_flight)  # fill the caches
        calls = await count_calls(server, count, send(sender, rounds, in_flight))
        assert calls / (len(rounds) * in_flight * len(others)) <= limit


async def test_a_closed_socket_is_freed_without_garbage_collection(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        await server.add_users("1", "2")
        gc.collect()
        gc.disable()
        try:
            async with server.chat("1", to="2") as one, server.chat("2") as two:
                await one.send("m1\nhello")
                await two.receive()
                await one.answer(2, "-1")
                await one.send_text("no json")
                await one.receive()
                connections = [weakref.ref(other) for other in gc.get_objects() if isinstance(other, Connection)]
                assert len(connections) == 2
            await wait_until(lambda: not any(connection() for connection in connections))
        finally:
            gc.enable()


async def test_an_idle_socket_has_three_tasks(tmp_path: Path) -> None:
    async with serving(tmp_path, users=("1",), SocketsPerUser=1000) as server, AsyncExitStack() as stack:
        await stack.enter_async_context(raw.chat(server, "1"))
        before = len(asyncio.all_tasks())
        for _ in range(20):
            await stack.enter_async_context(raw.chat(server, "1"))
        assert len(asyncio.all_tasks()) - before == 3 * 20  # the connection and the handler of aiohttp, and the reader


async def test_an_idle_socket_takes_less_than_24_kib(tmp_path: Path) -> None:
    async with (
        subprocess_server(tmp_path / "data", users=("1",), SocketsPerUser=1000) as server,
        AsyncExitStack() as stack,
    ):
        for _ in range(50):  # warm up: allocate everything that is allocated only once
            await stack.enter_async_context(raw.chat(server, "1"))
        before = sum(map(resident_memory, server.pids))
        for _ in range(400):
            await stack.enter_async_context(raw.chat(server, "1"))
        assert (sum(map(resident_memory, server.pids)) - before) / 400 < 24 * 1024


def resident_memory(pid: int) -> int:
    """Return the resident memory of a process in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
