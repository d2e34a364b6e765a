"""How the rows of `messages` belong to a conversation: its number, its senders, and messages made of rows."""

import sqlite3
from collections.abc import Sequence
from typing import TypeVar

from chat_server.model.messages import ConversationKey, GroupKey, Pair
from chat_server.model.sqlite import statements as sql

Text = TypeVar("Text", str, str | bytes)


class PairRows:
    """The rows of two users: the side of a row is 0 for messages of the lesser name, 1 for those of the greater."""

    sender = "side"  # the SQL expression from which `fields` knows the sender

    def __init__(self, connection: sqlite3.Connection, pair: Pair) -> None:
        self.number = pair_number(connection, pair)
        self._names = sorted(pair)

    def side(self, user: str) -> int | None:
        """Return the side of the messages of `user`, None if there are none. In a query, None matches nothing."""
        return int(user != self._names[0])

    def fields(
        self, time: int, sender: int, id: str, text: Text, read: int
    ) -> tuple[str, str, str, Text, int, bool, int]:
        """Return the fields of the Message or Record in a row."""
        return self._names[sender], self._names[1 - sender], id, text, time, bool(read), 0


class GroupRows:
    """The rows of a group: its number with a minus sign, and for each sender a side (see schema)."""

    sender = sql.SENDER

    def __init__(self, connection: sqlite3.Connection, group: GroupKey) -> None:
        self.number: int | None = -group.number
        self._connection = connection
        self._group = group

    def side(self, user: str) -> int | None:
        """As in PairRows."""
        row = self._connection.execute(sql.SIDE, (self.number, user)).fetchone()
        return row[0] if row else None

    def fields(
        self, time: int, sender: str, id: str, text: Text, _read: int
    ) -> tuple[str, str, str, Text, int, bool, int]:
        """As in PairRows."""
        return sender, self._group.name, id, text, time, False, self._group.number


def rows_of(connection: sqlite3.Connection, key: ConversationKey) -> PairRows | GroupRows:
    """Return how the rows of a conversation are to be read."""
    return GroupRows(connection, key) if isinstance(key, GroupKey) else PairRows(connection, key)


def pair_number(connection: sqlite3.Connection, pair: Sequence[str]) -> int | None:
    """Return the number of the conversation of two users, None if there is none. In a query, None matches nothing."""
    row = connection.execute(sql.CONVERSATION, pair).fetchone()
    return row[0] if row else None
