"""Liveness checks, session renewal by an open socket, and flood control without refusals (protocol section 2)."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from tests import raw
from tests.harness import ChatClient, ManualClock, ServerHandle, serving, wait_until

HEARTBEAT = 0.1
DAY = 86400


@asynccontextmanager
async def fast_heartbeat(folder: Path, **settings: Any) -> AsyncIterator[ServerHandle]:
    """Run a server with a fast heartbeat, the users 1 and 2, and no contact limit."""
    async with serving(
        folder, users=("1", "2"), **{"HeartbeatSeconds": HEARTBEAT, "StrangerLimit": 0, **settings}
    ) as server:
        yield server


# --- liveness


async def test_an_idle_client_that_answers_pings_stays(tmp_path: Path) -> None:
    async with fast_heartbeat(tmp_path) as server, raw.chat(server, "1", to="2") as one:
        for _ in range(8):
            read = await one.read()
            assert read.opcode == raw.PING
            await one.write(raw.frame(read.payload, raw.PONG))
        assert (await one.ask(1, "m1\nhello"))["op_type"] == 40019


async def test_an_idle_client_of_another_library_stays(tmp_path: Path) -> None:
    async with fast_heartbeat(tmp_path) as server, server.chat("1", to="2") as one:
        await asyncio.sleep(8 * HEARTBEAT)
        assert (await one.send("m1\nhello"))["op_type"] == 40019


async def test_an_unresponsive_client_is_disconnected(tmp_path: Path) -> None:
    """There is no close frame, because the client would not answer it."""
    async with (
        fast_heartbeat(tmp_path) as server,
        raw.chat(server, "1") as silent,
        raw.chat(server, "1") as early,
        server.chat("2", to="1") as two,
    ):
        await early.write(raw.request(1, "half a frame")[:10])
        assert await silent.wait_closed() is None
        assert await early.wait_closed() is None
        await raw.wait_offline(two)


@pytest.mark.parametrize("more", [0, 2_000_000], ids=["silent", "with frames that wait"])
async def test_a_reader_that_stops_in_a_page_is_disconnected(tmp_path: Path, more: int) -> None:
    """There is no close frame."""
    async with fast_heartbeat(tmp_path) as server:
        await raw.store_messages(server, "1", "2", raw.MAX_KERNEL_BYTES // 16000 + 100)
        async with server.chat("1", to="2") as one, raw.chat(server, "2", to="1", buffer=4096) as two:
            await two.put(3)
            await two.flood(raw.request(1, "\n😀" + "x" * 16000), more)
            await raw.wait_offline(one)
            assert await two.wait_closed() is None


async def test_a_half_closed_reader_that_stops_is_disconnected(tmp_path: Path) -> None:
    async with fast_heartbeat(tmp_path) as server:
        await raw.store_messages(server, "1", "2", raw.MAX_KERNEL_BYTES // 16000 + 100)
        async with server.chat("1", to="2") as one, raw.chat(server, "2", to="1", buffer=4096) as two:
            await two.put(3)
            await two.wait_stalled()
            two.half_close()
            await raw.wait_offline(one)


async def test_a_client_that_sends_a_frame_slowly_stays(tmp_path: Path) -> None:
    async with fast_heartbeat(tmp_path) as server, raw.chat(server, "1", to="2") as one:
        frame = raw.request(1, "m1\nhello")
        for byte in frame[:40]:
            await one.write(bytes([byte]))
            await asyncio.sleep(HEARTBEAT / 4)
        await one.write(frame[40:])
        assert (await one.answer())["id"] == "m1"


async def test_a_client_that_reads_a_page_slowly_stays(tmp_path: Path) -> None:
    """Reading the page takes many heartbeats."""
    async with fast_heartbeat(tmp_path) as server:
        await raw.store_messages(server, "1", "2", 150)
        async with raw.chat(server, "2", to="1", buffer=4096) as two:
            await two.put(2, "-150")
            for _ in range(40):
                await two.read_bytes(16384)
                await asyncio.sleep(HEARTBEAT / 4)
            for n in range(150):
                assert (await two.receive())["id"] == f"m{n}"
            assert (await two.answer())["content"] == "150"


async def test_a_client_that_reads_each_message_stays(tmp_path: Path) -> None:
    async with fast_heartbeat(tmp_path) as server, server.chat("1", to="2") as one, raw.chat(server, "2") as two:
        for n in range(40):  # no message waits for long
            assert (await one.send(f"m{n}\nhello"))["op_type"] == 40018
            assert (await two.receive())["id"] == f"m{n}"
            await asyncio.sleep(HEARTBEAT / 4)


# --- sessions


async def test_an_open_socket_renews_only_its_own_session(tmp_path: Path) -> None:
    clock = ManualClock()

    def expires() -> int:
        with closing(sqlite3.connect(tmp_path / "chat.db")) as database:
            found: int = database.execute("SELECT max(expires) FROM sessions").fetchone()[0]
        return found

    async with serving(tmp_path, clock, users=("1", "2"), HeartbeatSeconds=HEARTBEAT, SessionDays=1) as server:
        unused = await server.login("1")
        async with server.chat("1", to="2") as one:
            for _ in range(3):
                clock.shift += 0.7 * DAY
                await wait_until(lambda: expires() >= clock.now() + 0.98 * DAY * 1_000_000)
            assert (await one.send("m1\nhello"))["op_type"] == 40019
        async with server.chat("1", to="2"):  # the token is still valid
            pass
        body, headers = {"user_name": "1"}, {"Authorization": f"Bearer {unused}"}
        assert (await server.post("/user/logout", body, headers=headers)).json()["status"] == 41012


# --- flood control


def flood_ids(chat: ChatClient, count: int) -> list[str]:
    """Return the ids of the messages that `flood` sends."""
    return [f"{id(chat):x}-{n}" for n in range(count)]


async def check_answers(chat: ChatClient, count: int) -> None:
    """Fail unless all `count` messages of `flood` are acknowledged in order."""
    assert [(await chat.receive()).get("id") for _ in range(count)] == flood_ids(chat, count)


async def flood(chat: ChatClient, count: int) -> None:
    """Send `count` messages at once."""
    for name in flood_ids(chat, count):
        await chat.put(1, f"{name}\nhello")


async def test_a_user_that_sends_too_fast_is_read_more_slowly(tmp_path: Path) -> None:
    """The rate covers all sockets of the user, and no frame is lost."""
    async with (
        fast_heartbeat(tmp_path, FramesPerSecond=40, FramesBurst=20) as server,
        server.chat("1", to="2") as one,
        server.chat("1", to="2") as other,
        server.chat("2", to="1", max_queue=None) as two,
    ):
        began = monotonic()
        await flood(one, 30)
        await flood(other, 30)
        assert (await two.answer(2, "-1"))["op_type"] == 40005  # other users are not slowed down
        await asyncio.gather(check_answers(one, 30), check_answers(other, 30))
        got = [(await two.receive())["id"] for _ in range(60)]
        for chat in (one, other):
            assert [name for name in got if name in flood_ids(chat, 30)] == flood_ids(chat, 30)
        assert monotonic() - began > (60 - 20) / 40 * 0.95  # no frame bypassed the rate


async def test_a_new_socket_gets_no_new_burst(tmp_path: Path) -> None:
    async with fast_heartbeat(tmp_path, FramesPerSecond=20, FramesBurst=20) as server:
        began = monotonic()
        for _ in range(4):
            async with server.chat("1", to="2") as one:
                await flood(one, 10)
                await check_answers(one, 10)
        assert monotonic() - began > (40 - 20) / 20 * 0.95


async def test_a_throttled_client_with_a_waiting_burst_stays(tmp_path: Path) -> None:
    async with (
        fast_heartbeat(tmp_path, FramesPerSecond=20, FramesBurst=1) as server,
        server.chat("1", to="2") as one,
    ):
        await flood(one, 20)
        await check_answers(one, 20)


async def test_a_throttled_client_stays_for_many_heartbeats(tmp_path: Path) -> None:
    # The protocol: "the time in which the server itself does not read does not count"
    async with (
        fast_heartbeat(tmp_path, FramesPerSecond=1, FramesBurst=1) as server,
        server.chat("1", to="2") as one,
    ):
        await flood(one, 2)
        await check_answers(one, 2)
