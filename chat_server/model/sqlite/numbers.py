"""The numbers in the rows of `messages`: of the conversation, and of the sender in it."""

import sqlite3
from collections.abc import Sequence

from chat_server.model.messages import Message, Record
from chat_server.model.sqlite import statements as sql
from chat_server.model.sqlite.conversations import pair_number

# The numbers of this many conversations, and of this many senders in groups, stay in memory.
CACHED_NUMBERS = 65536

MessageRow = tuple[int, int, int | None, str, str | bytes]  # time, conv, side (None: new in the group), id, text


class Numbers:
    """Assigns the numbers of new messages. The caches save a look-up; only the writer thread uses them."""

    def __init__(self) -> None:
        # (lesser name, greater name) -> conv. After a rollback, the number of a new conversation may stay here; the
        # conversation's rows are then written with its next message.
        self._pairs: dict[tuple[str, str], int] = {}
        # (conv, user) -> side in a group. Only numbers that were read outside a transaction are here: no rollback can
        # take them back.
        self._senders: dict[tuple[int, str], int] = {}

    def rows(self, tx: sqlite3.Connection, messages: Sequence[Message | Record]) -> list[MessageRow]:
        """Return the rows of messages. In a transaction, new senders in groups get their numbers."""
        return [
            self._group_row(tx, m) if m.group else (m.time, self._pair(tx, m), int(m.sender > m.receiver), m.id, m.text)
            for m in messages
        ]

    def forget_pairs(self) -> None:
        """Read the numbers of pairs again."""
        self._pairs.clear()

    def erase_senders(self, tx: sqlite3.Connection, conv: int) -> None:
        """Remove the senders of a group without messages."""
        self._senders.clear()
        tx.execute("DELETE FROM group_senders WHERE conv = ?", (conv,))

    def _pair(self, tx: sqlite3.Connection, message: Message | Record) -> int:
        """Return the number of the conversation. A new one is numbered by the time of its first message."""
        sender, receiver = message.sender, message.receiver
        pair = (sender, receiver) if sender < receiver else (receiver, sender)
        number = self._pairs.get(pair)
        if number is None:
            number = pair_number(tx, pair) or message.time
            if len(self._pairs) >= CACHED_NUMBERS:
                del self._pairs[next(iter(self._pairs))]
            self._pairs[pair] = number
        return number

    def _group_row(self, tx: sqlite3.Connection, message: Message | Record) -> MessageRow:
        conv = -message.group
        return message.time, conv, self._sender(tx, (conv, message.sender)), message.id, message.text

    def _sender(self, tx: sqlite3.Connection, key: tuple[int, str]) -> int | None:
        """Return the number of a sender. A new sender gets one in a transaction; outside of one, None."""
        side = self._senders.get(key)
        if side is not None:
            return side
        row = tx.execute(sql.SIDE, key).fetchone()
        if tx.in_transaction:
            [[side]] = [row] if row else tx.execute(sql.NEW_SENDER, key)
        elif row:
            [side] = row
            if len(self._senders) >= CACHED_NUMBERS:
                del self._senders[next(iter(self._senders))]
            self._senders[key] = side
        return side
