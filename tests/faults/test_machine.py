"""A machine without free resources, and a clock that jumps: a clear answer or a clean end (promise 4)."""

import asyncio
import os
import re
import resource
import signal
import subprocess
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from pathlib import Path

import pytest
import websockets

from tests import raw
from tests.faults.disk import send_acknowledged
from tests.faults.tools import WallClock, small_disk
from tests.harness import ServerHandle, SubprocessServer, run_py, subprocess_server, wait_until


@contextmanager
def limit(server: SubprocessServer, which: int, most: int) -> Iterator[None]:
    """Limit a resource of the server (RLIMIT_...) to `most`."""
    before = resource.prlimit(server.process.pid, which)
    resource.prlimit(server.process.pid, which, (most, before[1]))
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            resource.prlimit(server.process.pid, which, before)


async def test_open_sockets_continue_without_free_file_descriptors(tmp_path: Path) -> None:
    """New connections are cut. When descriptors are free again, the server accepts connections."""
    async with subprocess_server(tmp_path / "data", StrangerLimit=0) as server, AsyncExitStack() as stack:
        await server.add_users("a", "z")
        a = await stack.enter_async_context(server.chat("a", "z"))
        z = await stack.enter_async_context(server.chat("z", "a"))
        used = len(os.listdir(f"/proc/{server.process.pid}/fd"))
        with limit(server, resource.RLIMIT_NOFILE, used + 8):
            with suppress(raw.ConnectionCut):
                while len(os.listdir(f"/proc/{server.process.pid}/fd")) < used + 20:
                    await stack.enter_async_context(raw.chat(server, "a", "z"))
            await send_acknowledged(a, range(100), 40018)
            assert [(await z.receive())["id"] for _ in range(100)] == [f"m{n}" for n in range(100)]
            with pytest.raises(raw.ConnectionCut):
                async with raw.chat(server, "a"):
                    pass
        async with server.chat("a", "z") as again:
            assert (await again.send("once more"))["op_type"] == 40018
        assert server.log.read_text().count("descriptors low") == 1
        await wait_until(lambda: server.log.read_text().count("descriptors available") == 1)


async def test_acknowledged_messages_survive_a_lack_of_memory(tmp_path: Path) -> None:
    """The server recovers, or its process ends and can be restarted."""
    users = [f"u{n}" for n in range(8)]
    acked: dict[str, list[str]] = {user: [] for user in users}
    async with subprocess_server(tmp_path / "data", StrangerLimit=0) as server:
        await server.add_users("z", *users)

        async def send(user: str) -> None:
            try:
                async with raw.chat(server, user, "z") as one:
                    for part in range(10):
                        names = [f"{part}-{n}" for n in range(50)]
                        await one.write(b"".join(raw.request(1, f"{name}\n{'x' * 16000}") for name in names))
                        answers = [await one.answer() for _ in names]
                        acked[user] += [one["id"] for one in answers if one["op_type"] in (40018, 40019)]
            except (raw.ConnectionCut, ConnectionError, AssertionError):  # cut, or refused with 500
                pass

        pages = int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[0])
        with limit(server, resource.RLIMIT_AS, pages * resource.getpagesize() + 2_000_000):
            await asyncio.gather(*map(send, users))
        # Starting a thread needs memory too.
        assert re.search(r"MemoryError|threading\.py:\d+ start", server.log.read_text())
        try:
            await check_stored(server, acked)
            return
        except (ConnectionError, websockets.InvalidMessage):
            # After a failed allocation, the event loop may stop, or msgspec's decoder may write through a null pointer.
            assert await server.wait() in (1, -signal.SIGSEGV)
    async with subprocess_server(tmp_path / "data", StrangerLimit=0) as again:
        again.tokens = server.tokens
        await check_stored(again, acked)


async def check_stored(server: ServerHandle, acked: dict[str, list[str]]) -> None:
    """Fail unless acknowledged messages are stored in order, and all users can write to z again."""
    async with server.chat("z") as z:
        for user, ids in acked.items():
            async with server.chat(user, "z") as one:
                assert (await one.send("last\nthe server works"))["op_type"] == 40018
            # Messages that the others sent before they were cut may still be delivered to z.
            stored = [frame["id"] for frame in (await z.ask(3, to=user))[:-1] if frame["type"] == 2]
            assert [id for id in stored if id in ids] == ids


async def test_a_read_only_folder_is_named_by_the_error_at_start(tmp_path: Path) -> None:
    """When the folder is writable again, the server starts with all data."""
    folder = tmp_path / "data"
    folder.mkdir()
    with small_disk(folder):
        async with subprocess_server(folder) as server:
            await server.add_users("a", "z")
            async with server.chat("a", "z") as a:
                assert (await a.send("m0\nhello"))["op_type"] == 40019
            server.kill()
            await server.wait()
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        child = await run_py(environ={"CHAT_SERVICE_DATADIR": str(folder), "CHAT_SERVICE_HTTPPORT": "0"})
        _, errors = await child.communicate()
        assert (child.returncode, errors.decode().count("\n")) == (1, 1)
        assert f"DataDir {folder}: cannot be written (Read-only file system)" in errors.decode()
        subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)
        async with subprocess_server(folder) as again:
            again.tokens = server.tokens
            async with again.chat("z", "a") as z:
                assert [frame["id"] for frame in (await z.ask(3))[:-1]] == ["m0"]


async def conversation_ids(server: ServerHandle) -> list[str]:
    """Return the ids in the conversation of a and z, oldest first."""
    async with server.chat("z", "a") as z:
        page = (await z.ask(2, "0-200"))[:-1]
    return [frame["id"] for frame in page]


async def test_clock_jumps_reorder_nothing_and_close_no_socket(tmp_path: Path) -> None:
    clock, folder = WallClock(tmp_path), tmp_path / "data"
    async with subprocess_server(folder, prefix=clock.prefix, StrangerLimit=0, HeartbeatSeconds=1) as server:
        await server.add_users("a", "z")
        async with server.chat("a", "z") as a, server.chat("z", "a") as z:
            for turn, shift in enumerate(("-400d", "+0", "-1d", "+3h")):
                clock.move(shift)
                await send_acknowledged(a, range(turn * 10, turn * 10 + 10), 40018)
                received = [(await z.receive())["id"] for _ in range(10)]
                assert received == [f"m{n}" for n in range(turn * 10, turn * 10 + 10)]
            await asyncio.sleep(1.5)  # more than a heartbeat
            await z.expect_nothing()
        assert await conversation_ids(server) == [f"m{n}" for n in range(40)]
        await server.login("a")
        server.kill()
        await server.wait()
    clock.move("-1d")
    async with subprocess_server(folder, prefix=clock.prefix, StrangerLimit=0, HeartbeatSeconds=1) as again:
        again.tokens = server.tokens
        await wait_until(lambda: "clock behind" in again.log.read_text())
        async with again.chat("a", "z") as a:
            await send_acknowledged(a, range(40, 50), 40019)
        assert await conversation_ids(again) == [f"m{n}" for n in range(50)]


async def test_a_clock_jump_beyond_a_session_ends_it(tmp_path: Path) -> None:
    """A new login works, also after the clock is back."""
    clock = WallClock(tmp_path)
    async with subprocess_server(tmp_path / "data", prefix=clock.prefix, HeartbeatSeconds=1) as server:
        await server.add_users("a", "z")
        async with server.chat("a", "z") as a:
            clock.move("+900d")
            assert await a.wait_closed() == 4001
        server.tokens["a"] = await server.login("a")
        async with server.chat("a", "z") as a:
            assert (await a.send("m0\nhello"))["op_type"] == 40019
            clock.move("+0")
            assert (await a.send("m1\nhello"))["op_type"] == 40019
