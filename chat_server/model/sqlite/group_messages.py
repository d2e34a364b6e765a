"""What only groups need of the message store in the embedded database: ids of any sender, read positions."""

import sqlite3
from collections.abc import Mapping, Sequence
from functools import partial

from chat_server.model.messages import MAX_UNREAD, Confirmed, Conversation, GroupKey, GroupView, Message
from chat_server.model.read_positions import Range, Row, find_moves
from chat_server.model.sqlite import statements as sql
from chat_server.utils.sqlite import Database, fetch_json, to_json


class SqliteGroupMessages:
    """The methods of MessageStore and ExportableMessages that concern only groups."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def newest_with_id(self, group: GroupKey, id: str) -> tuple[str, int] | None:
        found: list[tuple[str, int]] = await self._database.fetch(sql.NEWEST_WITH_ID, (-group.number, id))
        return found[0] if found else None

    async def group_conversations(self, user: str, views: Sequence[GroupView]) -> list[Conversation]:
        def job(connection: sqlite3.Connection) -> list[Conversation]:
            wanted = to_json([(-view.key.number, view.since) for view in views])
            rows = fetch_json(connection, sql.GROUPS_LISTED_COLUMNS, sql.GROUPS_LISTED, (user, wanted, MAX_UNREAD))
            return [_conversation(views[index], *row) for index, *row in rows]

        return await self._database.read(job)

    async def positions(self, numbers: Sequence[int]) -> dict[int, dict[str, int]]:
        def job(connection: sqlite3.Connection) -> dict[int, dict[str, int]]:
            found: dict[int, dict[str, int]] = {number: {} for number in numbers}
            convs = to_json([-number for number in numbers])
            for conv, user, position in fetch_json(connection, "conv, user, position", sql.POSITIONS, (convs,)):
                found[-conv][user] = position
            return found

        return await self._database.read(job)

    async def move_position(self, number: int, user: str, time: int) -> bool:
        # Write only if something changes, because all other writes wait for this one.
        position = (await self._positions(number, [user])).get(user, 0)
        return time > position and bool(await self._move_positions(number, {user: time}))

    async def advance(self, number: int, confirmed: Mapping[str, Confirmed]) -> dict[str, int]:
        stored = await self._positions(number, list(confirmed))
        moves = await find_moves(confirmed, stored, partial(self._read_ranges, number))
        moved = await self._move_positions(number, {user: move.position for user, move in moves.items()})
        return {user: moves[user].confirmed for user in moved if moves[user].confirmed}

    async def erase_sent(self, number: int, user: str, limit: int) -> int:
        key = (-number, user)  # the row in group_senders stays: servers may have cached the sender's number

        def job(tx: sqlite3.Connection) -> int:
            removed = tx.execute(sql.ERASE_SENT, (*key, limit)).rowcount
            if removed < limit:
                tx.execute(sql.REMOVE_POSITION, key)
            return removed

        # Write only if something changes, because all other writes wait for this one.
        return await self._database.write(job) if await self._database.fetch(sql.LEFT_BY, key) else 0

    async def put_positions(self, number: int, positions: Mapping[str, int]) -> None:
        values = (-number, to_json(list(positions.items())))
        await self._database.write(lambda tx: tx.execute(sql.PUT_POSITIONS, values))

    async def _positions(self, number: int, users: Sequence[str]) -> dict[str, int]:
        """Return the stored positions of these users."""
        return dict(await self._database.fetch(sql.POSITIONS_OF, (-number, to_json(users))))

    async def _move_positions(self, number: int, positions: Mapping[str, int]) -> list[str]:
        """Move positions forward. Returns the users whose position was less."""
        if not positions:
            return []

        def job(tx: sqlite3.Connection) -> list[str]:
            values = (-number, to_json(list(positions.items())))
            return [user for (user,) in tx.execute(sql.MOVE_POSITIONS, values).fetchall()]

        return await self._database.write(job)

    async def _read_ranges(self, number: int, ranges: Sequence[Range], limit: int) -> Sequence[Sequence[Row]]:
        def job(connection: sqlite3.Connection) -> Sequence[Sequence[Row]]:
            values = (-number, limit, to_json(ranges))
            return [rows for (rows,) in fetch_json(connection, sql.RANGES_COLUMNS, sql.RANGES, values)]

        return await self._database.read(job)


def _conversation(view: GroupView, time: int | None, sender: str, id: str, text: str, unread: int) -> Conversation:
    (number, name), since = view
    last = Message(sender, name, id, text, time, group=number) if time else None
    return Conversation(name, last, unread, time or since, number)
