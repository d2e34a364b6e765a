"""A temporary database: what must be put in order, or looked up, without being in memory."""

import sqlite3
from collections.abc import AsyncIterator, Iterator

import msgspec

from chat_server.model.users import User

PAGE = 1000


class Draft(msgspec.Struct, frozen=True):
    """A message of the Go original on its way; `created` in whole seconds."""

    sender: str
    receiver: str
    id: str
    text: str
    created: int
    read: bool


class Spool:
    """SQLite keeps such a database in a nameless file that is gone with the process, however that ends."""

    def __init__(self, table: str) -> None:
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.execute("PRAGMA journal_mode = NO_METRICS")
        self._database.execute(table)

    def close(self) -> None:
        """Forget it all."""
        self._database.close()


class UserSpool(Spool):
    """The users by name, and under which name each name of the original is known here."""

    def __init__(self) -> None:
        super().__init__("CREATE TABLE users (name TEXT PRIMARY KEY, password TEXT) WITHOUT ROWID")
        self._database.execute("CREATE TABLE originals (name TEXT PRIMARY KEY, user TEXT) WITHOUT ROWID")

    def add(self, original: str, user: User) -> bool:
        """Add a user; False if there is one of that name."""
        insert = "INSERT OR IGNORE INTO users VALUES (?, ?)"
        if not self._database.execute(insert, (user.name, user.password)).rowcount:
            return False
        self._database.execute("INSERT INTO originals VALUES (?, ?)", (original, user.name))
        return True

    def known(self, original: str) -> str | None:
        """The name that a name of the original has here; None if that is no user's."""
        row = self._database.execute("SELECT user FROM originals WHERE name = ?", (original,)).fetchone()
        return row[0] if row else None

    async def count(self) -> int:
        """How many users there are."""
        return int(self._database.execute("SELECT count(*) FROM users").fetchone()[0])

    async def pages(self, count: int) -> AsyncIterator[list[User]]:
        """As ExportableUsers.pages."""
        cursor = self._database.execute("SELECT name, password FROM users ORDER BY name")
        while rows := cursor.fetchmany(count):
            yield [User(*row) for row in rows]


class MessageSpool(Spool):
    """The messages of one conversation, to be had in order: by second, within it by _id."""

    def __init__(self) -> None:
        super().__init__(
            "CREATE TABLE messages (sender TEXT, receiver TEXT, id TEXT, text TEXT, created INT, read INT, place BLOB)"
        )
        self._database.execute("CREATE UNIQUE INDEX by_id ON messages (sender, id)")

    def add(self, draft: Draft, place: bytes) -> bool:
        """Add a message; False if its sender has used the id."""
        values = (*msgspec.structs.astuple(draft), place)
        insert = "INSERT OR IGNORE INTO messages VALUES (?, ?, ?, ?, ?, ?, ?)"
        return self._database.execute(insert, values).rowcount > 0

    def pages(self) -> Iterator[list[Draft]]:
        """All messages in order."""
        query = "SELECT sender, receiver, id, text, created, read FROM messages ORDER BY created, place, sender"
        cursor = self._database.execute(query)
        while rows := cursor.fetchmany(PAGE):
            yield [_draft(row) for row in rows]


def _draft(row: tuple[str, str, str, str, int, int]) -> Draft:
    sender, receiver, id, text, created, read = row
    return Draft(sender, receiver, id, text, created, bool(read))
