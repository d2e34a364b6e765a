"""Users in the embedded database."""

import sqlite3
from collections.abc import AsyncIterator, Sequence

from chat_server.model.sqlite.blocks import SqliteBlocks
from chat_server.model.sqlite.groups import SqliteGroups
from chat_server.model.users import State, User
from chat_server.utils.errors import Duplicate
from chat_server.utils.sqlite import Database, fetch_json, to_json


class SqliteUsers:
    """UserStore on the embedded database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.blocks = SqliteBlocks(database)
        self.groups = SqliteGroups(database)

    async def add(self, user: User) -> None:
        def job(tx: sqlite3.Connection) -> None:
            try:
                tx.execute("INSERT INTO users (name, password, state) VALUES (?, ?, ?)", _to_row(user))
            except sqlite3.IntegrityError as error:
                raise Duplicate(user.name) from error

        await self._database.write(job)

    async def get(self, name: str) -> User | None:
        query = "SELECT name, password, state FROM users WHERE name = ?"
        found = await self._database.fetch(query, (name,))
        return _to_user(found[0]) if found else None

    async def set_password(self, name: str, old: str, new: str) -> bool:
        return await self._change("UPDATE users SET password = ? WHERE name = ? AND password = ?", (new, name, old))

    async def enabled(self, names: Sequence[str]) -> set[str]:
        def job(connection: sqlite3.Connection) -> set[str]:
            query = "SELECT name FROM users WHERE name IN (SELECT value FROM json_each(?)) AND state = 0"
            values = (to_json(names),)
            return {name for (name,) in fetch_json(connection, "name", query, values)}

        return await self._database.read(job)

    async def set_state(self, name: str, state: State) -> bool:
        return await self._change("UPDATE users SET state = ? WHERE name = ?", (state, name))

    async def remove(self, name: str) -> bool:
        return await self._change("DELETE FROM users WHERE name = ?", (name,))

    async def ping(self) -> None:
        await self._database.ping("users")

    async def count(self) -> int:
        [[count]] = await self._database.fetch("SELECT count(*) FROM users", ())
        return int(count)

    async def pages(self, count: int) -> AsyncIterator[list[User]]:
        query = "SELECT name, password, state FROM users WHERE name > ? ORDER BY name LIMIT ?"
        after = ""
        while page := [_to_user(row) for row in await self._database.fetch(query, (after, count))]:
            yield page
            after = page[-1].name

    async def put(self, users: Sequence[User]) -> None:
        insert = "INSERT INTO users (name, password, state) VALUES (?, ?, ?) ON CONFLICT (name) DO NOTHING"
        rows = [_to_row(user) for user in users]
        await self._database.write(lambda tx: tx.executemany(insert, rows).rowcount)

    async def _change(self, statement: str, values: Sequence[object]) -> bool:
        """Run a statement; True if it changed a row."""
        return await self._database.write(lambda tx: tx.execute(statement, values).rowcount > 0)


def _to_user(row: tuple[str, str, int]) -> User:
    name, password, state = row
    return User(name, password, State(state))


def _to_row(user: User) -> tuple[str, str, int]:
    return user.name, user.password, user.state
