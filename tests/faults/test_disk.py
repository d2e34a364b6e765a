"""Failing disks and power cuts: acknowledged messages survive and the server recovers (promises 1 and 4)."""

import errno
import sqlite3
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import pytest

from chat_server.cache.sqlite import CACHE_SCHEMA
from chat_server.model.sqlite import MESSAGES_SCHEMA, USERS_SCHEMA
from chat_server.utils.sqlite import Database
from tests import raw
from tests.e2e.http_helpers import send_request
from tests.faults.disk import (
    SYNC,
    WRITE,
    Disk,
    SystemCall,
    disk,
    send_acknowledged,
    send_refused,
    write_surviving_files,
)
from tests.harness import PASSWORD, ServerHandle, wait_until

__all__ = ["disk"]

# Probabilities that an unsynced sector reached the disk.
CHANCES = (0.0, 0.3, 1.0)


async def stored(folder: Path) -> set[str]:
    """Open the files after a power cut as the next start does, and return the ids of the messages."""
    database = Database(folder, timeout=20)
    try:
        await database.open([USERS_SCHEMA, MESSAGES_SCHEMA, CACHE_SCHEMA])
        await check_conversations(database)
        return {id for (id,) in await database.fetch("SELECT id FROM messages", ())}
    finally:
        await database.close()


async def check_conversations(database: Database) -> None:
    """Check that op 7 lists every stored message: the rows of each pair exist, in the order of the newest messages."""
    newest = dict(await database.fetch("SELECT conv, max(time) FROM messages WHERE deleted = 0 GROUP BY conv", ()))
    rows = await database.fetch("SELECT user, conv, last FROM conversations ORDER BY user, last DESC", ())
    assert Counter(conv for _, conv, _ in rows) == dict.fromkeys(newest, 2)
    for _, group in groupby(rows, itemgetter(0)):
        (_, first, position), *others = group
        assert position <= newest[first]
        assert all(last == newest[conv] < position for _, conv, last in others)


async def survives(calls: list[SystemCall], moments: Iterable[tuple[int, set[str]]], parent: Path) -> None:
    """After a power cut at each moment, whatever reached the disk, all acknowledged messages are stored."""
    for end, acked in moments:
        before = [call for call in calls if call.end <= end]
        for chance in CHANCES:
            folder = parent / f"{end}-{chance}"
            write_surviving_files(before, chance, folder)
            assert acked - await stored(folder) == set(), f"lost where {chance:.0%} of the rest was kept"


async def say(server: ServerHandle, user: str, to: str, text: str) -> None:
    """Send a message, which is acknowledged."""
    async with server.chat(user, to) as chat:
        assert (await chat.send(text))["op_type"] in (40018, 40019)


async def attempt(one: raw.RawSocket, names: Sequence[str], text: str) -> set[str]:
    """Send messages together and return the acknowledged ids."""
    await one.write(b"".join(raw.request(1, f"{name}\n{text}") for name in names))
    return {answer["id"] for answer in [await one.answer() for _ in names] if answer["op_type"] != 40008}


async def test_a_power_cut_at_any_moment_keeps_acknowledged_messages(disk: Disk, tmp_path: Path) -> None:
    acked, moments = set[str](), [(0, set[str]())]
    async with disk.server() as server:
        await server.add_users("a", "z", "y")
        async with (
            server.chat("z", "a"),  # confirmed deliveries are written too
            raw.chat(server, "a", "z") as to_z,
            raw.chat(server, "a", "y") as to_y,
        ):
            for part in range(20):
                one = to_y if part % 3 == 2 else to_z  # the first conversation of the list changes
                names = [f"{part}-{n}" for n in range(50)]
                if part % 5 == 2:
                    with disk.failing("sync", "chat.db-wal"):
                        assert await attempt(one, names, "x" * 16000) == set()
                    moments.append((disk.now(), set(acked)))
                acked |= await attempt(one, names, "x" * 16000)
                assert acked >= set(names)
                moments.append((disk.now(), set(acked)))
    calls = disk.calls()
    assert any(call.kind == WRITE and call.file == "chat.db" for call in calls[len(calls) // 2 :])  # the log was copied
    await survives(calls, moments[-1:0:-5], tmp_path)


@pytest.mark.parametrize(
    ("call", "error"),
    [("write", errno.EIO), ("sync", errno.EIO), ("sync", errno.ENOSPC), ("write", errno.EROFS)],
    ids=["write", "sync", "no-room-at-the-sync", "became-read-only"],
)
async def test_an_unwritable_log_acknowledges_nothing_and_recovers(
    disk: Disk, tmp_path: Path, call: str, error: int
) -> None:
    async with disk.server() as server:
        await server.add_users("a", "z")
        async with server.chat("a", "z") as a, server.chat("z", "a") as z:
            await send_acknowledged(a, range(20), 40018)
            assert [(await z.receive())["id"] for _ in range(20)] == [f"m{n}" for n in range(20)]
            with disk.failing(call, "chat.db-wal", error):
                await send_refused(a, range(20, 40))
                await z.expect_nothing()
                assert (await a.answer(2, "-200"))["content"] == "20"  # reading continues
                assert (await server.post("/user/login", {"user_name": "a", "password": PASSWORD})).status_code == 503
            await send_acknowledged(a, range(20, 60), 40018)
            await server.login("a")
        moment = (disk.now(), {f"m{n}" for n in range(60)})
        server.kill()
        await server.wait()
    async with disk.server() as again:
        again.tokens = server.tokens
        async with again.chat("z", "a") as z:
            assert [frame["id"] for frame in (await z.ask(2, "0-200"))[:-1]] == [f"m{n}" for n in range(60)]
    await survives(disk.calls(), [moment], tmp_path)


@pytest.mark.parametrize("call", ["write", "sync"])
async def test_the_log_keeps_messages_while_the_file_is_unwritable(disk: Disk, tmp_path: Path, call: str) -> None:
    async with disk.server() as server:
        await server.add_users("a", "z")
        with disk.failing(call, "chat.db"):
            await raw.store_messages(server, "a", "z", 1000)
            moments = [(disk.now(), {f"m{n}" for n in range(1000)})]
            await wait_until(lambda: "WAL not copied" in server.log.read_text())
            async with server.chat("z", "a") as z:
                assert (await z.answer(3, "200"))["content"] == "200"
        healed = disk.now()

        async def copied() -> bool:
            await say(server, "z", "a", "another message")
            since = [call for call in disk.calls() if call.end > healed and call.file == "chat.db"]
            return any(call.kind == SYNC and not call.failed for call in since)

        await wait_until(copied)
        moments.append((disk.now(), moments[0][1]))
        server.kill()
        await server.wait()
    await survives(disk.calls(), moments, tmp_path)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS, errno.EIO])
async def test_health_is_503_while_the_log_cannot_be_written(disk: Disk, error: int) -> None:
    """Even if no client writes."""
    async with disk.server() as server:

        async def answers(code: int) -> bool:
            return (await send_request(server, "GET", "/health")).status_code == code

        assert await answers(200)
        with disk.failing("write", "chat.db-wal", error):
            await wait_until(lambda: answers(503))
        await wait_until(lambda: answers(200))


async def test_a_restart_rewrites_a_log_whose_sync_failed(disk: Disk, tmp_path: Path) -> None:
    async with disk.server() as server:
        await server.add_users("a", "z")
        async with server.chat("a", "z") as a:
            assert (await a.send("m0\nhello"))["op_type"] == 40019
            with disk.failing("sync", "chat.db-wal"):
                assert (await a.send("m1\nhello"))["reason"] == "store_away"
                server.kill()
                await server.wait()
    tokens = server.tokens
    async with disk.server() as server:
        server.tokens = tokens
        async with server.chat("a", "z") as a:
            assert (await a.send("m1\nhello"))["op_type"] == 40019
        moment = (disk.now(), {"m0", "m1"})
    await survives(disk.calls(), [moment], tmp_path)


async def test_a_failed_sync_of_the_file_copies_the_log_again(disk: Disk, tmp_path: Path) -> None:
    async with disk.server() as server:
        await server.add_users("a", "z")
        await raw.store_messages(server, "a", "z", 200)  # m0 to m199
        with closing(sqlite3.connect(disk.folder / "chat.db", isolation_level=None)) as backup:
            backup.execute("BEGIN")
            backup.execute("SELECT count(*) FROM messages").fetchone()
            await raw.store_messages(server, "z", "a", 1000)  # enough to copy the part of the log that the backup sees
        with disk.failing("sync", "chat.db"):  # while the rest is copied

            async def failed() -> bool:
                await say(server, "a", "z", "while it fails")
                return any(call.failed for call in disk.calls())

            await wait_until(failed)
        for n in range(3):
            await say(server, "a", "z", f"after it {n}")
        moment = disk.now()
    await survives(disk.calls(), [(moment, {f"m{n}" for n in range(1000)})], tmp_path)
