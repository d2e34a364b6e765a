"""What makes the server fast, counted and not timed: writes, encodings, tasks and memory of sockets."""

import asyncio
import re
import shutil
import subprocess
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from chat_server.service import frames
from tests import raw
from tests.harness import process, serving

RUN = 48


def strace(trace: Path) -> tuple[str, ...]:
    """The command that runs the server and writes down each write, with the addresses of the socket it goes to."""
    tool = shutil.which("strace")
    if not tool:
        pytest.skip("strace is not installed")
    if subprocess.run([tool, "-f", "-e", "trace=none", "true"], capture_output=True, check=False).returncode:
        pytest.skip("strace is not allowed to trace here")
    calls = "trace=write,writev,sendto,sendmsg"
    return (tool, "-D", "-f", "-q", "-yy", "-s", "0", "-e", calls, "-e", "signal=none", "-o", str(trace))


async def test_a_run_of_messages_reaches_its_receiver_and_is_acknowledged_in_a_few_writes(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    async with process(tmp_path / "data", prefix=strace(trace)) as server:
        await server.users("1", "2")
        await server.friends("1", "2")
        async with raw.chat(server, "1", "2") as one, raw.chat(server, "2", "1") as two:
            before = writes(trace)
            await one.write(b"".join(raw.request(1, f"m{n}\nhello") for n in range(RUN)))
            assert [(await one.answer())["id"] for _ in range(RUN)] == [f"m{n}" for n in range(RUN)]
            assert [(await two.receive())["id"] for _ in range(RUN)] == [f"m{n}" for n in range(RUN)]
            made = writes(trace) - before
            for socket in (one, two):
                assert 1 <= made[socket.sock.getsockname()[1]] <= RUN // 8, made


async def test_a_run_of_long_messages_is_stored_in_steps_between_which_others_have_their_turn(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    async with process(tmp_path / "data", prefix=strace(trace)) as server:
        await server.users("1", "2")
        await server.friends("1", "2")
        async with raw.chat(server, "1", "2") as one:
            before = writes(trace)
            await one.write(b"".join(raw.request(1, f"m{n}\n" + "x" * 16000) for n in range(RUN)))
            assert [(await one.answer())["id"] for _ in range(RUN)] == [f"m{n}" for n in range(RUN)]
            made = writes(trace) - before
            assert made[one.sock.getsockname()[1]] >= RUN * 16000 // 81920, made


def writes(trace: Path) -> Counter[int]:
    """The writes to each socket so far, by the peer's port."""
    return Counter(map(int, re.findall(r"TCP:\[[^\]]*->127\.0\.0\.1:(\d+)\]", trace.read_text())))


async def test_a_message_to_everybody_is_encoded_once_however_many_hear_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[frames.Frame] = []
    encode = frames._encode

    def counted(record: frames.Frame) -> bytes:
        encoded.append(record)
        return encode(record)

    names = [str(number) for number in range(20)]
    async with serving(tmp_path) as server, AsyncExitStack() as stack:
        await server.users(*names)
        chats = [await stack.enter_async_context(server.chat(name)) for name in names for _ in range(2)]
        monkeypatch.setattr(frames, "_encode", counted)
        await chats[0].put(6, "hello")
        for chat in chats[2:]:
            assert (await chat.receive())["content"] == "hello"
        assert (await chats[0].receive())["op_type"] == 40009
        assert [record.to for record in encoded] == ["ALL", "0"]


async def test_an_idle_socket_has_no_task_but_the_two_of_aiohttp(tmp_path: Path) -> None:
    async with serving(tmp_path, SocketsPerUser=1000) as server, AsyncExitStack() as stack:
        await server.users("1")
        await stack.enter_async_context(raw.chat(server, "1"))
        before = len(asyncio.all_tasks())
        for _ in range(20):
            await stack.enter_async_context(raw.chat(server, "1"))
        assert len(asyncio.all_tasks()) - before == 2 * 20  # of the connection, and of the request


async def test_an_idle_socket_takes_less_than_twenty_four_kibibytes(tmp_path: Path) -> None:
    async with process(tmp_path / "data", SocketsPerUser=1000) as server, AsyncExitStack() as stack:
        await server.users("1")
        for _ in range(50):  # what is made once
            await stack.enter_async_context(raw.chat(server, "1"))
        before = resident(server.process.pid)
        for _ in range(400):
            await stack.enter_async_context(raw.chat(server, "1"))
        assert (resident(server.process.pid) - before) / 400 < 24 * 1024


def resident(pid: int) -> int:
    """Resident memory of a process in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
