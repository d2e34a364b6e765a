"""Clients that stop reading, send without end or vanish: limits and released resources (protocol section 2)."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from chat_server import conf
from tests import raw
from tests.harness import TIMEOUT, ChatClient, ServerHandle, SubprocessServer, serving, subprocess_server, wait_until

TEXT = "x" * 16000
# The number of such messages that exceeds all buffers on the way to a stopped reader.
MANY = (raw.MAX_KERNEL_BYTES + 2_000_000) // len(TEXT)
MIB = 1 << 20


@asynccontextmanager
async def open_server(folder: Path, *users: str, **settings: Any) -> AsyncIterator[ServerHandle]:
    """Run a server in this process with these users and without a contact limit."""
    async with serving(folder, users=users, StrangerLimit=0, **settings) as server:
        yield server


def resident_memory(server: SubprocessServer) -> int:
    """Return the resident memory of the server in bytes."""
    return 4096 * sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in server.pids)


async def read_page(two: raw.RawSocket, count: int) -> None:
    """Read a complete page of `count` messages."""
    assert [(await two.receive()).get("id") for _ in range(count)] == [f"m{n}" for n in range(count)]
    assert (await two.receive())["content"] == str(count)


# --- clients that stop reading


async def test_pages_wait_for_a_stopped_reader_and_then_continue(tmp_path: Path) -> None:
    """Both op 2 and op 3 continue when the client reads again."""
    async with open_server(tmp_path, "1", "2") as server:
        await raw.store_messages(server, "1", "2", MANY)
        async with raw.chat(server, "2", to="1", buffer=4096) as two, server.chat("1", to="2") as one:
            await two.write(raw.request(3) + raw.request(2, "-200") + raw.request(3) + raw.request(7, "-1"))
            await two.wait_stalled()
            assert (await one.answer(7, "-1"))["op_type"] == 40023  # other users are not delayed
            await read_page(two, MANY)
            newest = [f"m{n}" for n in range(MANY)][-200:]
            assert [(await two.receive()).get("id") for _ in range(len(newest) + 1)] == [*newest, None]
            await read_page(two, MANY)
            assert (await two.answer())["op_type"] == 40023


async def test_many_short_pages_wait_for_the_reader_like_a_long_one(tmp_path: Path) -> None:
    async with open_server(tmp_path, "1", "2") as server:
        await raw.store_messages(server, "1", "2", 20, "x" * 1000)
        count = 2 * MANY * len(TEXT) // (20 * 1000)
        async with raw.chat(server, "2", to="1", buffer=4096) as two:
            asking = asyncio.create_task(two.write(raw.request(2, "-20") * count))
            await two.wait_stalled()
            for _ in range(count):
                await read_page(two, 20)
            await asking


async def test_a_page_never_closes_a_socket_with_a_small_outbox(tmp_path: Path) -> None:
    """The smallest OutboxBytes that the configuration accepts."""
    text = "\x01" * 16384  # JSON encodes each of these bytes as six
    with pytest.raises(conf.ConfigError, match="OutboxBytes") as refused:
        conf.load(None, {"CHAT_SERVICE_OUTBOXBYTES": "4096"})
    least = int(str(refused.value).rpartition("at least ")[2])
    async with open_server(tmp_path, "1", "2", OutboxBytes=least, MaxFrameBytes=131072) as server:
        await raw.store_messages(server, "1", "2", MANY, text)
        async with raw.chat(server, "2", to="1", buffer=4096) as two:
            await two.put(3)
            await two.wait_stalled()
            await read_page(two, MANY)


async def test_memory_stays_bounded_while_many_readers_stop(tmp_path: Path) -> None:
    async with subprocess_server(tmp_path / "data", users=("1", "2"), StrangerLimit=0) as server:
        await raw.store_messages(server, "1", "2", MANY)
        before = resident_memory(server)
        sockets = [raw.chat(server, "2", to="1", buffer=4096) for _ in range(20)]
        readers = [await one.__aenter__() for one in sockets]
        for reader in readers:
            await reader.put(3)
        await asyncio.gather(*(reader.wait_stalled() for reader in readers))
        grown = resident_memory(server) - before
        for one in sockets:
            await one.__aexit__(None, None, None)
        assert grown < 100 * MIB  # the frames of all unread messages would take more than 120 MB


async def test_live_messages_over_outbox_bytes_close_with_1013(
    tmp_path: Path,
) -> None:
    """A socket that reads in time gets the same messages; the closed one leaves them unread."""
    async with open_server(tmp_path, "1", "2", OutboxBytes=262144) as server:
        async with raw.chat(server, "2", buffer=4096) as slow, raw.chat(server, "2") as quick:
            await asyncio.gather(raw.store_messages(server, "1", "2", MANY), read_messages(quick, MANY))
            assert await slow.wait_closed() in (1013, None)  # None: the close frame no longer fitted into the buffers
        async with raw.chat(server, "2", to="1") as two:
            await two.put(3)
            await read_page(two, MANY)


async def read_messages(two: raw.RawSocket, count: int) -> None:
    """Read `count` live messages without answering pings."""
    assert [(await two.receive())["id"] for _ in range(count)] == [f"m{n}" for n in range(count)]


# --- clients that send without end


async def test_a_sender_that_never_reads_is_stopped(tmp_path: Path) -> None:
    """Meanwhile other users continue to chat."""
    async with (
        open_server(tmp_path, "1", "2", "3", OutboxBytes=262144) as server,
        server.chat("3", to="2") as three,
        server.chat("2") as two,
        raw.chat(server, "1", to="2", buffer=4096) as one,
    ):
        # Each answer lists all ids that were not found, so the unread data grows fast.
        marks = raw.request(4, "\n".join(f"{n:064}" for n in range(200))) + raw.request(1, "m1\nhello")
        sending = asyncio.create_task(send_until_closed(one, marks * 10))
        chats = 0
        while not sending.done():
            assert (await three.send(f"c{chats}\nhello"))["op_type"] == 40018
            while (await two.receive())["id"] != f"c{chats}":
                pass
            chats += 1
        assert chats
        await sending
        assert await one.wait_closed() in (1013, None)


async def send_until_closed(one: raw.RawSocket, data: bytes) -> None:
    """Send `data` repeatedly until the server ends the connection."""
    with suppress(ConnectionError):
        async with asyncio.timeout(3 * TIMEOUT):
            while True:
                await one.flood(data, 1 << 40)


async def test_a_client_is_not_read_while_its_own_requests_wait(tmp_path: Path) -> None:
    async with open_server(tmp_path, "1", "2") as server:
        await raw.store_messages(server, "1", "2", MANY)
        async with raw.chat(server, "2", to="1", buffer=4096) as two:
            await two.put(3)
            await two.wait_stalled()
            frames = [raw.request(1, f"r{n:04}\n{TEXT}") for n in range(2000)]
            size = len(frames[0])
            sent_bytes = await two.flood(b"".join(frames), 2000 * size)
            assert sent_bytes < 1900 * size  # the rest is in the kernel's buffers and, to a small part, in the server
            await read_page(two, MANY)
            assert [(await two.answer())["id"] for _ in range(sent_bytes // size)] == [
                f"r{n:04}" for n in range(sent_bytes // size)
            ]


# --- clients that vanish


async def idle(one: raw.RawSocket) -> None:
    """No request is in progress."""


async def half_a_frame(one: raw.RawSocket) -> None:
    """The client has sent half a frame."""
    await one.write(raw.request(1, "half")[:20])


async def in_a_page(one: raw.RawSocket) -> None:
    """The server waits for the client to read a page."""
    await one.put(3, to="2")
    await one.wait_stalled()


async def in_a_burst(one: raw.RawSocket) -> None:
    """Requests wait for their answers."""
    await one.write(b"".join(raw.request(1, f"burst{n}\nhello") for n in range(1000)))


async def throttled(one: raw.RawSocket) -> None:
    """The server delays the next read because the client sends too fast."""
    await one.write(raw.frame(b"", raw.PING) * 10000)


async def closing(one: raw.RawSocket) -> None:
    """The server has closed the socket, and the client does not answer the close frame."""
    await one.write(raw.frame(b"", raw.BINARY))


async def unconfirmed(one: raw.RawSocket) -> None:
    """A delivered message waits for the pong that confirms it."""


WAYS: dict[str, Callable[[raw.RawSocket], None]] = {
    "RST": raw.RawSocket.reset,
    "killed": raw.RawSocket.vanish,
    "half-close": raw.RawSocket.half_close,
}


@pytest.mark.parametrize("way", WAYS)
async def test_vanished_sockets_leak_nothing(tmp_path: Path, way: str) -> None:
    states = [idle, half_a_frame, in_a_burst, throttled, closing, unconfirmed]
    if way != "half-close":  # a half-closed client may still read until the heartbeat fails: test_heartbeat.py
        states.append(in_a_page)
    async with open_server(tmp_path, "1", "2", "3", FramesPerSecond=2000, FramesBurst=2000) as server:
        await raw.store_messages(server, "2", "1", MANY)
        async with server.chat("2", to="1", max_queue=None) as two, server.chat("3") as three:
            await wait_settled(two)
            before = asyncio.all_tasks()
            for state in states:
                async with raw.chat(server, "1", to="2", buffer=4096) as one:
                    if state is unconfirmed:
                        assert (await two.send("hello"))["op_type"] == 40018
                    await state(one)
                    WAYS[way](one)
                    await raw.wait_offline(two)
                    assert (await three.answer(6, "hello"))["content"] == "1"  # user 2
                    while (await two.receive())["from"] != "3":  # the messages of the burst come first
                        pass
                await wait_until(lambda: asyncio.all_tasks() <= before, state.__name__)


async def wait_settled(chat: ChatClient) -> None:
    """Wait until the server has finished all work that this socket caused."""
    await chat.answer(7, "-1")
    await chat.expect_nothing()


async def test_clients_that_vanish_while_connecting_leak_nothing(tmp_path: Path) -> None:
    async with open_server(tmp_path, "1", "2", SocketsPerUser=2) as server, server.chat("2", to="1") as two:
        await wait_settled(two)
        before = asyncio.all_tasks()
        upgrade = raw.upgrade(server, "1")
        for _ in range(10):
            for part in (b"", upgrade[:50], upgrade):
                sock = await raw.connect(server)
                sock.send(part)
                raw.RawSocket(sock, "1").reset()
        await raw.wait_offline(two)
        await wait_until(lambda: asyncio.all_tasks() <= before)
        async with server.chat("1"), server.chat("1"):  # no place under SocketsPerUser is in use
            pass


async def test_two_hundred_connects_and_resets_leak_nothing(tmp_path: Path) -> None:
    async with open_server(tmp_path, "1", "2") as server, server.chat("2", to="1") as two:
        await wait_settled(two)
        before = asyncio.all_tasks()
        for _ in range(200):
            async with raw.chat(server, "1", to="2") as one:
                one.reset()
        await raw.wait_offline(two)
        await wait_until(lambda: asyncio.all_tasks() <= before)
