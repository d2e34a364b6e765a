"""Temporary SQLite databases that sort and look up the data of an import without keeping it in memory."""

import sqlite3
from collections.abc import AsyncIterator, Iterator

import msgspec

from chat_server.migrate.record_pages import PAGE_SIZE
from chat_server.model.users import User


class GoMessage(msgspec.Struct, frozen=True):
    """A message of the Go server before it gets its exact time. `created` in whole seconds since the epoch."""

    sender: str
    receiver: str
    id: str
    text: str
    created: int
    read: bool


class Spool:
    """A temporary database. SQLite keeps it in an unnamed file, which disappears with the process."""

    def __init__(self, table: str) -> None:
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute(table)

    def close(self) -> None:
        """Delete the database."""
        self._database.close()


class UserSpool(Spool):
    """The users, and for each name in the Go database the name of the user."""

    def __init__(self) -> None:
        super().__init__("CREATE TABLE users (name TEXT PRIMARY KEY, password TEXT) WITHOUT ROWID")
        self._database.execute("CREATE TABLE go_names (name TEXT PRIMARY KEY, user TEXT) WITHOUT ROWID")

    def add(self, go_name: str, user: User) -> bool:
        """Add a user. Returns False if the name already exists."""
        insert = "INSERT OR IGNORE INTO users VALUES (?, ?)"
        if not self._database.execute(insert, (user.name, user.password)).rowcount:
            return False
        self._database.execute("INSERT INTO go_names VALUES (?, ?)", (go_name, user.name))
        return True

    def find(self, go_name: str) -> str | None:
        """The name of the user that has `go_name` in the Go database; None if there is no such user."""
        row = self._database.execute("SELECT user FROM go_names WHERE name = ?", (go_name,)).fetchone()
        return row[0] if row else None

    async def count(self) -> int:
        """The number of users."""
        return int(self._database.execute("SELECT count(*) FROM users").fetchone()[0])

    async def pages(self, count: int) -> AsyncIterator[list[User]]:
        """Yield all users by name, `count` at a time, like ExportableUsers.pages."""
        cursor = self._database.execute("SELECT name, password FROM users ORDER BY name")
        while rows := cursor.fetchmany(count):
            yield [User(*row) for row in rows]


class MessageSpool(Spool):
    """The messages of one conversation, in order of their second, and within a second in order of their _id."""

    def __init__(self) -> None:
        super().__init__(
            "CREATE TABLE messages"
            " (sender TEXT, receiver TEXT, id TEXT, text TEXT, created INT, read INT, position BLOB)"
        )
        self._database.execute("CREATE UNIQUE INDEX by_id ON messages (sender, id)")

    def add(self, message: GoMessage, position: bytes) -> bool:
        """Add a message. Returns False if its sender has already used the id. `position` sorts like the _id."""
        values = (*msgspec.structs.astuple(message), position)
        insert = "INSERT OR IGNORE INTO messages VALUES (?, ?, ?, ?, ?, ?, ?)"
        return self._database.execute(insert, values).rowcount > 0

    def pages(self) -> Iterator[list[GoMessage]]:
        """Yield all messages in order, PAGE_SIZE at a time."""
        query = "SELECT sender, receiver, id, text, created, read FROM messages ORDER BY created, position, sender"
        cursor = self._database.execute(query)
        while rows := cursor.fetchmany(PAGE_SIZE):
            yield [_message(row) for row in rows]


def _message(row: tuple[str, str, str, str, int, int]) -> GoMessage:
    sender, receiver, id, text, created, read = row
    return GoMessage(sender, receiver, id, text, created, bool(read))
