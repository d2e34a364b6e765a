"""Blocks in MySQL or MariaDB."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

import aiomysql

from chat_server.model.blocks import MAX_BLOCKED, Block, BlockResult
from chat_server.model.users import State

T = TypeVar("T")

Rows = tuple[int, Sequence[tuple[Any, ...]]]  # the number of rows that a statement changed, the rows that it found

_INSERT = "INSERT INTO chat_blocks (user, blocked) VALUES {} ON DUPLICATE KEY UPDATE user = chat_blocks.user"
# Both rows are locked in the order of the primary key, so two users who block each other do not wait for each other.
_LOCK_USERS = "SELECT name FROM chat_users WHERE name IN (%s, %s) AND state != %s ORDER BY name FOR UPDATE"
_PAGE = """SELECT user, blocked FROM chat_blocks
    WHERE user > %s OR (user = %s AND blocked > %s) ORDER BY user, blocked LIMIT %s"""


class Run(Protocol):
    """Runs work on a connection of the pool and translates the driver's errors."""

    async def __call__(self, work: Callable[[aiomysql.Connection], Awaitable[T]]) -> T: ...


class MySQLBlocks:
    """BlockStore on MySQL; `execute` runs one statement, `run` a transaction."""

    def __init__(self, execute: Callable[..., Awaitable[Rows]], run: Run) -> None:
        self._execute = execute
        self._run = run

    async def block(self, blocker: str, blocked: str) -> BlockResult:
        async def work(connection: aiomysql.Connection) -> BlockResult:
            await connection.begin()  # the lock on the blocker's row lets one block at a time count and insert
            async with connection.cursor() as cursor:
                result = await _block(cursor, blocker, blocked)
            await connection.commit()
            return result

        return await self._run(work)

    async def unblock(self, blocker: str, blocked: str) -> None:
        await self._execute("DELETE FROM chat_blocks WHERE user = %s AND blocked = %s", blocker, blocked)

    async def blocked_by(self, user: str) -> list[str]:
        _, rows = await self._execute("SELECT blocked FROM chat_blocks WHERE user = %s ORDER BY blocked", user)
        return [blocked.decode() for (blocked,) in rows]

    async def existing(self, blocks: Sequence[Block]) -> set[Block]:
        if not blocks:
            return set()
        pairs = ", ".join(["(%s, %s)"] * len(blocks))
        query = f"SELECT user, blocked FROM chat_blocks WHERE (user, blocked) IN ({pairs})"  # noqa: S608
        _, rows = await self._execute(query, *(name for block in blocks for name in block))
        return set(map(_to_block, rows))

    async def forget(self, user: str, *, by_others: bool) -> None:
        await self._execute("DELETE FROM chat_blocks WHERE user = %s", user)
        if by_others:
            await self._execute("DELETE FROM chat_blocks WHERE blocked = %s", user)

    async def pages(self, count: int) -> AsyncIterator[list[Block]]:
        after = ("", "")
        while page := [_to_block(row) for row in (await self._execute(_PAGE, after[0], *after, count))[1]]:
            yield page
            after = page[-1]

    async def put(self, blocks: Sequence[Block]) -> None:
        pairs = ", ".join(["(%s, %s)"] * len(blocks))
        await self._execute(_INSERT.format(pairs), *(name for block in blocks for name in block))


def _to_block(row: Sequence[bytes]) -> Block:
    blocker, blocked = row
    return blocker.decode(), blocked.decode()


async def _block(cursor: aiomysql.Cursor, blocker: str, blocked: str) -> BlockResult:
    await cursor.execute(_LOCK_USERS, (blocker, blocked, State.REMOVED.value))
    if {name for (name,) in await cursor.fetchall()} != {blocker, blocked}:
        return BlockResult.NO_SUCH_USER
    if await cursor.execute("SELECT 1 FROM chat_blocks WHERE user = %s AND blocked = %s", (blocker, blocked)):
        return BlockResult.BLOCKED
    await cursor.execute("SELECT count(*) FROM chat_blocks WHERE user = %s", (blocker,))
    [count] = await cursor.fetchone()
    if count >= MAX_BLOCKED:
        return BlockResult.TOO_MANY
    await cursor.execute(_INSERT.format("(%s, %s)"), (blocker, blocked))
    return BlockResult.BLOCKED
