"""Blocks in the embedded database."""

import sqlite3
from collections.abc import AsyncIterator, Sequence

from chat_server.model.blocks import MAX_BLOCKED, Block, BlockResult
from chat_server.model.users import State
from chat_server.utils.sqlite import Database, fetch_json, to_json

_INSERT = "INSERT INTO blocks (user, blocked) VALUES (?, ?) ON CONFLICT DO NOTHING"
_PRESENT = "SELECT count(*) FROM users WHERE name IN (?, ?) AND state != ?"
# LIMIT keeps the order, and at most one block is found for each pair.
_EXISTING = """SELECT user, blocked FROM json_each(?) AS pair CROSS JOIN blocks
    WHERE user = json_extract(pair.value, '$[0]') AND blocked = json_extract(pair.value, '$[1]') LIMIT 1000"""


class SqliteBlocks:
    """BlockStore on the embedded database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def block(self, blocker: str, blocked: str) -> BlockResult:
        def job(tx: sqlite3.Connection) -> BlockResult:
            if tx.execute(_PRESENT, (blocker, blocked, State.REMOVED)).fetchone()[0] < 2:
                return BlockResult.NO_SUCH_USER
            if tx.execute("SELECT 1 FROM blocks WHERE user = ? AND blocked = ?", (blocker, blocked)).fetchone():
                return BlockResult.BLOCKED
            if tx.execute("SELECT count(*) FROM blocks WHERE user = ?", (blocker,)).fetchone()[0] >= MAX_BLOCKED:
                return BlockResult.TOO_MANY
            tx.execute(_INSERT, (blocker, blocked))
            return BlockResult.BLOCKED

        return await self._database.write(job)

    async def unblock(self, blocker: str, blocked: str) -> None:
        delete = "DELETE FROM blocks WHERE user = ? AND blocked = ?"
        await self._database.write(lambda tx: tx.execute(delete, (blocker, blocked)).rowcount)

    async def blocked_by(self, user: str) -> list[str]:
        found = await self._database.fetch("SELECT blocked FROM blocks WHERE user = ? ORDER BY blocked", (user,))
        return [name for (name,) in found]

    async def existing(self, blocks: Sequence[Block]) -> set[Block]:
        def job(connection: sqlite3.Connection) -> set[Block]:
            found = fetch_json(connection, "user, blocked", _EXISTING, (to_json(blocks),))
            return {(blocker, blocked) for blocker, blocked in found}

        return await self._database.read(job)

    async def forget(self, user: str, *, by_others: bool) -> None:
        delete = f"DELETE FROM blocks WHERE user = ?1{' OR blocked = ?1' if by_others else ''}"  # noqa: S608
        await self._database.write(lambda tx: tx.execute(delete, (user,)).rowcount)

    async def pages(self, count: int) -> AsyncIterator[list[Block]]:
        query = "SELECT user, blocked FROM blocks WHERE (user, blocked) > (?, ?) ORDER BY user, blocked LIMIT ?"
        after = ("", "")
        while page := [(blocker, blocked) for blocker, blocked in await self._database.fetch(query, (*after, count))]:
            yield page
            after = page[-1]

    async def put(self, blocks: Sequence[Block]) -> None:
        await self._database.write(lambda tx: tx.executemany(_INSERT, blocks).rowcount)
