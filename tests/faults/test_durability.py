"""Messages are stored before they are acknowledged, despite crashes and full disks (protocol section 3, 1 to 3)."""

import asyncio
import re
import resource
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

from tests import raw
from tests.faults.disk import send_acknowledged, send_refused
from tests.faults.tools import small_disk, strace
from tests.harness import Frame, ServerHandle, SubprocessServer, subprocess_server, wait_until

SENDERS = ("a", "b", "c")


class Burst:
    """A client that sends m0, m1, ... to `to` until the server ends the connection, up to 200 before their answers.

    With more, a busy machine reads the close frame only after the time that the server grants for it.
    """

    def __init__(self, server: ServerHandle, user: str, to: str) -> None:
        self.user = user
        self.to = to
        self.acks: list[Frame] = []
        self.code: int | None = None  # of the close frame
        self._free = asyncio.Semaphore(200)
        self._running = asyncio.create_task(self._run(server))

    async def ended(self) -> None:
        """Wait until the server has ended the connection."""
        await self._running

    def content(self, n: int) -> str:
        """Return the content of the n-th message."""
        return f"m{n}\ntext {n} of {self.user} 漢字"

    async def _run(self, server: ServerHandle) -> None:
        async with raw.chat(server, self.user, self.to) as one:
            sending = asyncio.create_task(self._send(one))
            with suppress(raw.ConnectionCut):
                while (read := await one.read()).opcode != raw.CLOSE:
                    if read.opcode == raw.TEXT:
                        self.acks.append(one.json(read))
                        self._free.release()
                self.code = int.from_bytes(read.payload[:2], "big")
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    async def _send(self, one: raw.RawSocket) -> None:
        for start in range(0, 1_000_000, 20):
            for _ in range(20):
                await self._free.acquire()
            await one.write(b"".join(raw.request(1, self.content(n)) for n in range(start, start + 20)))


@asynccontextmanager
async def again(folder: Path, tokens: dict[str, str]) -> AsyncIterator[SubprocessServer]:
    """Start the server again on the same data."""
    async with subprocess_server(folder, StrangerLimit=0) as server:
        server.tokens = tokens
        yield server


async def unread(server: ServerHandle, burst: Burst) -> list[Frame]:
    """Return the unread messages of the receiver."""
    async with server.chat(burst.to, burst.user, max_queue=None) as two:
        return (await two.ask(3))[:-1]


async def history(server: ServerHandle, burst: Burst) -> list[Frame]:
    """Return all messages of the conversation."""
    found: list[Frame] = []
    async with server.chat(burst.to, burst.user, max_queue=None) as two:
        while page := (await two.ask(2, f"{len(found)}-200"))[:-1]:
            found += page
    return found


def complete(burst: Burst, stored: list[Frame]) -> None:
    """Every acknowledged message is stored once, unchanged, in the order of sending."""
    assert [one["content"] for one in stored] == [burst.content(n) for n in range(len(stored))]
    acked = [(ack["id"], ack["time"]) for ack in burst.acks]
    assert [(one["id"], one["time"]) for one in stored][: len(acked)] == acked


# --- the process


async def test_kill_9_keeps_acknowledged_messages_once_in_order_unread(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "data"
    async with subprocess_server(folder, StrangerLimit=0) as server:
        await server.add_users(*SENDERS, "z", "idle")
        async with raw.chat(server, "z") as z:  # reads frames but sends no pong
            bursts = [Burst(server, user, "z") for user in SENDERS]
            await wait_until(lambda: min(len(one.acks) for one in bursts) > 200)
            server.kill()
            for one in bursts:
                await one.ended()
            await z.read_to_end()
        await server.wait()
    async with again(folder, server.tokens) as server:
        for one in bursts:
            assert {ack["op_type"] for ack in one.acks} == {40018}
            stored = await unread(server, one)
            complete(one, stored)
            await retried(server, one, stored)


async def retried(server: ServerHandle, burst: Burst, stored: list[Frame]) -> None:
    """Retries are acknowledged with the original time and are not stored again."""
    async with raw.chat(server, burst.user, burst.to) as one:
        for start in range(0, len(stored), 50):
            part = stored[start : start + 50]
            await one.write(b"".join(raw.request(1, frame["content"]) for frame in part))
            acks = [await one.answer() for _ in part]
            assert [(ack["id"], ack["time"]) for ack in acks] == [(frame["id"], frame["time"]) for frame in part]
    assert await unread(server, burst) == stored


async def is_any_read(server: ServerHandle, burst: Burst) -> bool:
    """Whether the server has marked a message; the sender asks, so this confirms nothing."""
    async with server.chat(burst.user, burst.to, max_queue=None) as one:
        return any(frame["read"] for frame in (await one.ask(2, "+200@>m0"))[:-1])


async def test_after_kill_9_only_confirmed_messages_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    got: list[str] = []
    confirmed: list[str] = []
    async with subprocess_server(folder, StrangerLimit=0) as server:
        await server.add_users("a", "z")
        async with raw.chat(server, "z") as z:
            burst = Burst(server, "a", "z")
            while len(got) < 500 or not confirmed:
                read = await z.read()
                if read.opcode == raw.TEXT:
                    got.append(z.json(read)["id"])
                elif len(got) < 300 or not confirmed:
                    await z.write(raw.frame(read.payload, raw.PONG))
                    confirmed = list(got)
            await wait_until(lambda: is_any_read(server, burst))
            server.kill()
            await burst.ended()
        await server.wait()
    async with again(folder, server.tokens) as server:
        stored = await history(server, burst)
        complete(burst, stored)
        read_ones = [one["id"] for one in stored if one["read"]]
        assert 0 < len(read_ones) <= len(confirmed)
        assert read_ones == confirmed[: len(read_ones)]


async def test_the_server_restarts_immediately_after_each_kill_9(tmp_path: Path) -> None:
    folder, sent = tmp_path / "data", list[str]()
    tokens: dict[str, str] = {}
    for n in range(3):
        async with subprocess_server(folder, StrangerLimit=0) as server:
            if not tokens:
                await server.add_users("a", "z")
                tokens = server.tokens
            server.tokens = tokens
            async with server.chat("a", "z") as a:
                assert (await a.send(f"m{n}\nhello"))["op_type"] == 40019
                sent.append(f"m{n}")
                async with server.chat("z", "a") as z:
                    assert [frame["id"] for frame in (await z.ask(3))[:-1]] == sent
                server.kill()
                assert await a.wait_closed() == 1006
            await server.wait()


async def test_sigterm_in_a_burst_closes_with_1001_and_loses_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    async with subprocess_server(folder, StrangerLimit=0) as server:
        await server.add_users(*SENDERS, "z")
        async with server.chat("z", max_queue=None) as z:
            bursts = [Burst(server, user, "z") for user in SENDERS]
            await wait_until(lambda: min(len(one.acks) for one in bursts) > 200)
            server.process.send_signal(signal.SIGTERM)
            for one in bursts:
                await one.ended()
            assert await z.wait_closed() == 1001
        assert await server.wait() == 0
    async with again(folder, server.tokens) as server:
        for one in bursts:
            complete(one, await history(server, one))
    assert [one.code for one in bursts] == [1001] * len(bursts)


async def test_sigterm_finishes_frames_in_progress(tmp_path: Path) -> None:
    async with subprocess_server(tmp_path / "data", StrangerLimit=0) as server:
        await server.add_users("a", "z")
        async with raw.chat(server, "a", "z") as a:
            await a.write(b"".join(raw.request(1, f"m{n}\nhello") for n in range(100)))
            first = await a.answer()
            server.process.send_signal(signal.SIGTERM)
            assert [first["id"], *[(await a.answer())["id"] for _ in range(99)]] == [f"m{n}" for n in range(100)]
            assert await a.wait_closed() == 1001
            await a.write(raw.close(1001))
        assert await server.wait() == 0
        assert "Traceback" not in server.log.read_text()


async def test_sigterm_closes_a_flooding_client_with_1001(tmp_path: Path) -> None:
    async with subprocess_server(tmp_path / "data", StrangerLimit=0) as server:
        await server.add_users("a", "z")
        async with raw.chat(server, "a", "z") as a:
            asking = asyncio.create_task(a.flood(raw.request(2, "-1") * 100, 1 << 40))
            await a.answer()
            server.process.send_signal(signal.SIGTERM)
            assert await a.wait_closed() == 1001
            asking.cancel()
        assert await server.wait() == 0


async def test_sigterm_does_not_wait_for_a_stalled_reader(tmp_path: Path) -> None:
    async with subprocess_server(tmp_path / "data", StrangerLimit=0) as server:
        await server.add_users("a", "z")
        await raw.store_messages(server, "a", "z", raw.MAX_KERNEL_BYTES // 16000 + 100)
        async with raw.chat(server, "z", "a", buffer=4096) as z, server.chat("a") as a:
            await z.put(3)
            await z.wait_stalled()
            server.process.send_signal(signal.SIGTERM)
            assert await a.wait_closed() == 1001
            assert await server.wait() == 0
        assert "Traceback" not in server.log.read_text()


# --- the disk

_CALL = re.compile(r"(\d+) +(?:<\.\.\. )?(\w+)(?:\(| resumed>)(.*)", re.DOTALL)
_ACK = re.compile(r'\{\\"from\\":\\"System\\",[^}]*?\\"op_type\\":4001[89],[^}]*?\\"id\\":\\"([^"\\]+)\\"')


def unsynced(trace: str, ids: list[str]) -> tuple[set[str], set[str]]:
    """Return the acknowledged ids, and those of them that were not synced before the acknowledgement.

    Synced: after the id was written into the write-ahead log, an fsync of the log began and returned 0.
    """
    written: set[str] = set()  # written to the log since the last sync began
    syncing: dict[str, set[str]] = {}  # thread -> ids written before its running sync
    synced: set[str] = set()
    acked: set[str] = set()
    false: set[str] = set()
    for line in trace.splitlines():
        if not (match := _CALL.match(line)):
            continue
        thread, call, rest = match.groups()
        if call in ("fsync", "fdatasync"):
            if "chat.db-wal>" in rest:
                syncing[thread], written = written, set()
            if "unfinished" not in rest and thread in syncing:
                begun = syncing.pop(thread)
                (synced if rest.endswith("= 0") else written).update(begun)
        elif "chat.db-wal>" in rest:
            written.update(id for id in ids if id in rest and id not in synced)
        elif "<socket:" in rest or "<TCP:" in rest:
            now = {id for id in _ACK.findall(rest) if id not in acked}
            acked |= now
            false |= now - synced
    return acked, false


async def test_every_ack_leaves_after_its_message_was_synced(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    names = [f"{user}-{n:04}-id" for user in SENDERS for n in range(100)]
    calls = "fdatasync,fsync,write,writev,pwrite64,pwritev,sendto,sendmsg"
    prefix = strace(trace, calls, "-y", "-s", "1000000")
    async with subprocess_server(tmp_path / "data", prefix=prefix, StrangerLimit=0) as server:
        await server.add_users(*SENDERS, "z")

        async def send(user: str) -> None:
            mine = [name for name in names if name.startswith(user)]
            async with raw.chat(server, user, "z") as one:
                for start in range(0, len(mine), 10):
                    await one.write(b"".join(raw.request(1, f"{name}\nhello") for name in mine[start : start + 10]))
                assert [(await one.answer())["id"] for _ in mine] == mine

        await asyncio.gather(*map(send, SENDERS))
        server.process.send_signal(signal.SIGTERM)
        assert await server.wait() == 0
    await wait_until(lambda: "+++ exited with 0 +++" in trace.read_text().rsplit("\n", 2)[-2])
    acked, false = unsynced(trace.read_text(), names)
    assert acked == set(names)
    assert false == set()


@contextmanager
def full_disk(server: SubprocessServer, folder: Path) -> Iterator[None]:
    """Prevent all files of the server from growing."""
    _, most = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (1, most))
    yield
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (most, most))


async def test_an_unwritable_disk_acknowledges_nothing_and_recovers(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    async with subprocess_server(folder, StrangerLimit=0) as server:
        await server.add_users("a", "z")
        async with server.chat("a", "z", max_queue=None) as a, server.chat("z", "a", max_queue=None) as z:
            await send_acknowledged(a, range(50), 40018)
            for n in range(50):
                assert (await z.receive())["id"] == f"m{n}"
            await z.expect_nothing()
            with full_disk(server, folder):
                await send_refused(a, range(50, 100))
                await z.expect_nothing()
                assert (await a.answer(2, "-200"))["content"] == "50"  # reading continues
                response = await server.post("/user/login", {"user_name": "a", "password": "secret1"})
                assert (response.status_code, response.json()["status"]) == (503, 44444)
                assert response.json()["data"]["reason"] == "store_away"
            await send_acknowledged(a, range(50, 150), 40018)
            await server.login("a")
        server.kill()
        await server.wait()
    async with again(folder, server.tokens) as server, server.chat("z", "a", max_queue=None) as z:
        assert [one["id"] for one in (await z.ask(2, "0-200"))[:-1]] == [f"m{n}" for n in range(150)]


async def test_a_full_disk_refuses_messages_and_recovers(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    with small_disk(folder):
        async with subprocess_server(folder, StrangerLimit=0) as server:
            await server.add_users("a", "z")
            async with server.chat("a", "z", max_queue=None) as a:
                await send_acknowledged(a, range(20), 40019)
                with (folder / "filler").open("wb", buffering=0) as filler, suppress(OSError):
                    while filler.write(b"x" * 4096):
                        pass
                await send_refused(a, range(20, 40), "x" * 9000)
                (folder / "filler").unlink()
                await send_acknowledged(a, range(20, 40), 40019, "x" * 9000)
            server.kill()
            await server.wait()
        async with again(folder, server.tokens) as server, server.chat("z", "a", max_queue=None) as z:
            assert [one["id"] for one in (await z.ask(3))[:-1]] == [f"m{n}" for n in range(40)]
