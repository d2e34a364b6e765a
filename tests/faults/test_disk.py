"""A disk that fails, and power that goes: what was acknowledged is there, and it heals (promises 1 and 4)."""

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from chat_server.cache.sqlite import CACHE_SCHEMA
from chat_server.model.sqlite import MESSAGES_SCHEMA, USERS_SCHEMA
from chat_server.utils.sqlite import Database
from tests import raw
from tests.faults.disk import Call, Disk, disk, power_lost
from tests.harness import Server

__all__ = ["disk"]

# How much of what was not synced may have reached the disk all the same.
CHANCES = (0.0, 0.1, 0.5, 1.0)


async def stored(folder: Path) -> set[str]:
    """The ids of the messages in what the power left, opened as the next start would: it must be whole."""
    database = Database(folder, timeout=20)
    try:
        await database.open([USERS_SCHEMA, MESSAGES_SCHEMA, CACHE_SCHEMA])
        return {id for (id,) in await database.fetch("SELECT id FROM messages", ())}
    finally:
        await database.close()


async def survives(calls: list[Call], moments: Iterable[tuple[int, set[str]]], parent: Path) -> None:
    """Whenever the power goes, and whatever then reached the disk, what was acknowledged is there."""
    for end, acked in moments:
        before = [call for call in calls if call.end <= end]
        for chance in CHANCES:
            folder = parent / f"{end}-{chance}"
            power_lost(before, chance, folder)
            assert acked - await stored(folder) == set(), f"lost where {chance:.0%} of the rest was kept"


async def sent(server: Server, user: str, to: str, text: str) -> None:
    """A message is acknowledged."""
    async with server.chat(user, to) as chat:
        assert (await chat.send(text))["op_type"] in (40018, 40019)


async def test_what_a_failed_sync_left_in_memory_is_not_acknowledged_after_a_restart(
    disk: Disk, tmp_path: Path
) -> None:
    async with disk.server() as server:
        await server.users("a", "z")
        async with server.chat("a", "z") as a:
            assert (await a.send("m0\nhello"))["op_type"] == 40019
            with disk.failing("sync", "chat.db-wal"):
                assert (await a.send("m1\nhello"))["reason"] == "store_away"
                server.kill()
                await server.ended()
    tokens = server.tokens
    async with disk.server() as server:
        server.tokens = tokens
        async with server.chat("a", "z") as a:
            assert (await a.send("m1\nhello"))["op_type"] == 40019
        moment = (disk.now(), {"m0", "m1"})
    await survives(disk.calls(), [moment], tmp_path)


async def test_what_a_failed_sync_of_the_file_left_in_memory_is_written_again(disk: Disk, tmp_path: Path) -> None:
    async with disk.server() as server:
        await server.users("a", "z")
        await raw.store(server, "a", "z", 200)  # m0 to m199
        with closing(sqlite3.connect(disk.folder / "chat.db", isolation_level=None)) as backup:
            backup.execute("BEGIN")
            backup.execute("SELECT count(*) FROM messages").fetchone()
            await raw.store(server, "z", "a", 1000)  # enough for the log to be copied: as much as the backup sees
        with disk.failing("sync", "chat.db"):  # the rest follows
            await sent(server, "a", "z", "while it fails")
        assert [call for call in disk.calls() if call.failed]
        for n in range(3):
            await sent(server, "a", "z", f"after it {n}")
        moment = disk.now()
    await survives(disk.calls(), [(moment, {f"m{n}" for n in range(1000)})], tmp_path)
