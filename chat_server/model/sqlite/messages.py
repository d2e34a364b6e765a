"""Messages in the embedded database."""

import sqlite3
from collections.abc import AsyncIterator, Iterable, Sequence
from itertools import chain, islice
from operator import itemgetter
from typing import NamedTuple

import msgspec

from chat_server.model.messages import (
    MAX_UNREAD,
    Added,
    Conversation,
    ConversationKey,
    Message,
    MessageKey,
    Pair,
    Record,
)
from chat_server.model.sqlite import statements as sql
from chat_server.utils.digest import digest, is_text_of
from chat_server.utils.errors import Duplicate
from chat_server.utils.sqlite import Database, chunks, fetch_json, to_json

# The numbers of this many conversations stay in memory, so that adding a message needs no look-up.
CACHED_NUMBERS = 65536
# Conversations are iterated in pages of this size.
PAGE = 1000
# Rows per INSERT statement, at most.
MAX_ROWS = 64

_MessageRow = tuple[int, int, int, str, str]  # time, conv, side, id, text
_ConversationRow = tuple[str, str, int, int, int]  # user, peer, conv, side, last


class _Found(NamedTuple):
    """A stored message and its state."""

    time: int
    side: int
    id: str
    read: int
    deleted: int


class SqliteMessages:
    """MessageStore on the embedded database.

    Methods that end in `_in` work on the connection of a job, so that a caller can combine several in one transaction.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        # (lesser name, greater name) -> number. Only the writer thread uses it. After a rollback, the number of a new
        # conversation may stay here; the conversation's rows are then written with its next message.
        self._numbers: dict[tuple[str, str], int] = {}

    async def newest(self) -> int:
        [[newest]] = await self._database.fetch("SELECT max(time) FROM messages", ())
        return newest or 0

    async def add(self, batch: Sequence[Message]) -> list[Added]:
        return await self._database.write_batched(self._add_batches, batch, self._add_new_batches)

    def add_in(self, tx: sqlite3.Connection, batch: Sequence[Message]) -> list[Added]:
        """As `add`."""
        rows = self._message_rows(tx, batch)
        if _insert(tx, sql.MESSAGES, rows, sql.ON_USED_ID) == len(rows):
            added = [Added(message.time) for message in batch]
        else:
            added = [self._earlier(tx, row) or Added(row[0]) for row in rows]
        new = [(message, row) for message, row, one in zip(batch, rows, added, strict=True) if one.new]
        tx.execute(sql.RAISE, (to_json(_conversation_rows(new)),))
        return added

    async def stored(self, messages: Sequence[Message]) -> list[Added | None]:
        return await self._database.read(lambda connection: [self.find_in(connection, one) for one in messages])

    def find_in(self, tx: sqlite3.Connection, message: Message) -> Added | None:
        """Return what is stored under the id of `message`, None if nothing is."""
        conv = _conversation(tx, Pair(message.sender, message.receiver))
        side = int(message.sender > message.receiver)
        return self._earlier(tx, (message.time, conv, side, message.id, message.text)) if conv else None

    async def recent(self, pair: Pair, count: int) -> list[tuple[str, int]]:
        return await self._database.read(lambda connection: self.recent_in(connection, pair, count))

    def recent_in(self, connection: sqlite3.Connection, pair: Pair, count: int) -> list[tuple[str, int]]:
        """As `recent`."""
        names, conv = _names(pair), _conversation(connection, pair)
        rows = [row for deleted in (0, 1) for row in connection.execute(sql.RECENT, (conv, deleted, count))]
        return [(names[side], time) for time, side in sorted(rows, reverse=True)[:count]]

    async def have_written(self, senders: Sequence[str], receiver: str) -> set[str]:
        return await self._database.read(lambda connection: self.have_written_in(connection, senders, receiver))

    def have_written_in(self, connection: sqlite3.Connection, senders: Sequence[str], receiver: str) -> set[str]:
        """As `have_written`."""
        return {sender for (sender,) in connection.execute(sql.HAVE_WRITTEN, (to_json(senders), receiver))}

    async def time_of(self, key: ConversationKey, sender: str, id: str) -> int | None:
        def job(connection: sqlite3.Connection) -> int | None:
            values = (_conversation(connection, key), int(sender != _names(key)[0]), id)
            row = connection.execute(sql.BY_ID, values).fetchone()
            return row[0] if row else None

        return await self._database.read(job)

    async def skip(self, key: ConversationKey, skip: int, count: int, since: int = 0) -> list[Message]:
        return await self._page(key, since, "ORDER BY time LIMIT ? OFFSET ?", (count, skip), slow=True)

    async def before(self, key: ConversationKey, time: int, count: int, since: int = 0) -> list[Message]:
        page = await self._page(key, since, "AND time < ? ORDER BY time DESC LIMIT ?", (time, count))
        return page[::-1]

    async def after(self, key: ConversationKey, time: int, count: int) -> list[Message]:
        return await self._page(key, time, "ORDER BY time LIMIT ?", (count,))

    async def unread(self, sender: str, receiver: str, after: int, count: int) -> list[Message]:
        def job(connection: sqlite3.Connection) -> list[Message]:
            values = (_conversation(connection, Pair(sender, receiver)), int(sender > receiver), after, count)
            page = fetch_json(connection, "id, text, time", sql.UNREAD, values)
            return [Message(sender, receiver, *row) for row in page]

        return await self._database.read(job)

    async def mark(self, sender: str, receiver: str, ids: Sequence[str]) -> tuple[set[str], list[str]]:
        keys = [(int(sender > receiver), id) for id in ids]

        def find(connection: sqlite3.Connection) -> list[_Found]:
            found = _find_keys(connection, _conversation(connection, Pair(sender, receiver)), keys)
            return [message for message in found if not message.deleted]

        def job(tx: sqlite3.Connection) -> tuple[set[str], list[str]]:
            found = find(tx)
            unread = {message.id: message.time for message in found if not message.read}
            tx.execute(sql.MARK, (to_json(list(unread.values())),))
            return {message.id for message in found}, [id for id in dict.fromkeys(ids) if id in unread]

        # Write only if something changes, because all other writes wait for this one.
        found = await self._database.read(find)
        if all(message.read for message in found):
            return {message.id for message in found}, []
        return await self._database.write(job)

    async def mark_delivered(self, times: Sequence[int]) -> set[int]:
        def job(tx: sqlite3.Connection) -> set[int]:
            (unread,) = tx.execute(sql.UNREAD_TIMES, (to_json(times),)).fetchone()
            tx.execute(sql.MARK, (unread,))
            return set(msgspec.json.decode(unread))

        return await self._database.write(job)

    async def delete(self, key: ConversationKey, keys: Sequence[Sequence[MessageKey]]) -> list[MessageKey | None]:
        low, _ = _names(key)
        sides = [(int(sender != low), id) for alternatives in keys for sender, id in alternatives]

        def find(connection: sqlite3.Connection) -> list[_Found]:
            return _find_keys(connection, _conversation(connection, key), sides)

        def job(tx: sqlite3.Connection) -> list[MessageKey | None]:
            found = {(message.side, message.id): message for message in find(tx)}
            return [_delete_first(tx, found, low, alternatives) for alternatives in keys]

        if all(message.deleted for message in await self._database.read(find)):
            return [None] * len(keys)
        return await self._database.write(job)

    async def conversations(self, user: str, before: int, count: int) -> list[Conversation]:
        def job(connection: sqlite3.Connection) -> list[Conversation]:
            listed = fetch_json(connection, sql.LISTED_COLUMNS, sql.LISTED, (MAX_UNREAD, user, before, count))
            return [
                Conversation(peer, _message(sorted((user, peer)), *last), unread, last[0])
                for peer, *last, unread in listed
            ]

        return await self._database.read(job)

    async def newest_peers(self, user: str, count: int) -> list[str]:
        def job(connection: sqlite3.Connection) -> list[str]:
            query = "SELECT peer FROM conversations WHERE user = ? AND last > 0 ORDER BY last DESC LIMIT ?"
            return [peer for (peer,) in fetch_json(connection, "peer", query, (user, count))]

        return await self._database.read(job)

    async def listed_at(self, user: str, peer: str) -> int | None:
        query = "SELECT abs(last) FROM conversations WHERE user = ? AND peer = ?"
        found = await self._database.fetch(query, (user, peer))
        return found[0][0] if found else None

    async def purge(self, before: int, limit: int) -> int:
        def job(tx: sqlite3.Connection) -> int:
            removed = tx.execute(sql.PURGE, (before, limit)).fetchall()
            for conv in set(removed):
                tx.execute(sql.REMOVE_IF_EMPTY, conv)
                tx.execute(sql.LOWER, conv)
            return len(removed)

        return await self._database.write(job)

    async def peers(self, user: str) -> AsyncIterator[str]:
        query = "SELECT peer FROM conversations WHERE user = ? AND peer > ? ORDER BY peer LIMIT ?"
        after = ""
        while page := await self._database.fetch(query, (user, after, PAGE)):
            for (peer,) in page:
                yield peer
            after = page[-1][0]

    async def erase(self, key: ConversationKey, limit: int) -> int:
        delete = "DELETE FROM messages WHERE time IN (SELECT time FROM messages WHERE conv = ? LIMIT ?)"

        def job(tx: sqlite3.Connection) -> int:
            conv = _conversation(tx, key)
            removed = tx.execute(delete, (conv, limit)).rowcount
            if removed < limit:
                tx.execute("DELETE FROM conversations WHERE conv = ?", (conv,))
            return removed

        return await self._database.write(job)

    async def ping(self) -> None:
        await self._database.ping("messages")

    # --- migration

    async def count(self) -> int:
        [[count]] = await self._database.fetch("SELECT count(*) FROM messages", ())
        return int(count)

    async def pairs(self) -> AsyncIterator[Pair]:
        after = ("", "")
        while page := await self._database.fetch(sql.PAIRS, (*after, PAGE)):
            for pair in page:
                yield Pair(*pair)
            after = page[-1]

    async def records(self, key: ConversationKey, after: int, until: int, count: int) -> list[Record]:
        def job(connection: sqlite3.Connection) -> list[Record]:
            names = _names(key)
            rows = connection.execute(sql.RECORDS, (_conversation(connection, key), after, until, count))
            return [
                Record(names[side], names[1 - side], id, text, time, bool(read)) for time, side, id, text, read in rows
            ]

        return await self._database.read(job)

    async def put(self, records: Sequence[Record]) -> None:
        await self._database.write(lambda tx: self._put(tx, records))

    async def update_last(self, pair: Pair) -> None:
        def job(tx: sqlite3.Connection) -> None:
            for user in pair:
                tx.execute(sql.EXACT_TOP, (user,))
            tx.execute(sql.UPDATE_LAST, (_conversation(tx, pair),))

        await self._database.write(job)

    async def used_times(self, times: Sequence[int]) -> set[int]:
        def job(connection: sqlite3.Connection) -> set[int]:
            return {time for time in times if connection.execute(sql.USED_TIME, (time,)).fetchone()}

        return await self._database.read(job)

    # --- inside a job

    def _add_batches(self, tx: sqlite3.Connection, batches: Sequence[Sequence[Message]]) -> list[list[Added]]:
        added = iter(self.add_in(tx, [message for batch in batches for message in batch]))
        return [list(islice(added, len(batch))) for batch in batches]

    def _add_new_batches(
        self, tx: sqlite3.Connection, batches: Sequence[Sequence[Message]]
    ) -> list[list[Added]] | None:
        """As `_add_batches`, with one statement; None if an id was used before."""
        messages = [message for batch in batches for message in batch]
        rows = self._message_rows(tx, messages)
        encoded = to_json(rows)
        if "\\u0000" in encoded:  # SQLite would end a JSON string there
            return None
        try:
            tx.execute(sql.ADD_BATCH, (encoded, to_json(_conversation_rows(zip(messages, rows, strict=True)))))
        except sqlite3.IntegrityError:
            return None
        return [[Added(message.time) for message in batch] for batch in batches]

    def _message_rows(self, tx: sqlite3.Connection, messages: Sequence[Message]) -> list[_MessageRow]:
        return [
            (message.time, self._number(tx, message), int(message.sender > message.receiver), message.id, message.text)
            for message in messages
        ]

    def _put(self, tx: sqlite3.Connection, records: Sequence[Record]) -> None:
        rows = [
            (
                *(record.time, self._number(tx, record), int(record.sender > record.receiver), record.id),
                *(record.text, record.read, isinstance(record.text, bytes)),
            )
            for record in records
        ]
        first, conv = records[0], rows[0][1]
        pair = tuple(sorted((first.sender, first.receiver)))
        if tx.execute(sql.OTHER_PAIR, (conv, *pair)).fetchone():  # a new conversation would get a number that is in use
            self._numbers.clear()
            raise Duplicate("a time")
        for user, peer in ((first.sender, first.receiver), (first.receiver, first.sender)):
            tx.execute(sql.NEW_PAIR, (user, peer, conv, int(user > peer), first.time))
        try:
            if tx.executemany(sql.PUT, rows).rowcount != len(rows):
                raise Duplicate("a time")
        except sqlite3.IntegrityError as error:
            raise Duplicate("an id") from error

    def _number(self, tx: sqlite3.Connection, message: Message | Record) -> int:
        """Return the number of the conversation. A new one is numbered by the time of its first message."""
        sender, receiver = message.sender, message.receiver
        pair = (sender, receiver) if sender < receiver else (receiver, sender)
        number = self._numbers.get(pair)
        if number is None:
            number = _conversation(tx, Pair(*pair)) or message.time
            if len(self._numbers) >= CACHED_NUMBERS:
                del self._numbers[next(iter(self._numbers))]
            self._numbers[pair] = number
        return number

    def _earlier(self, tx: sqlite3.Connection, row: _MessageRow) -> Added | None:
        """Return what another message stored under the id of `row`; None if there is none, or it is this one."""
        new_time, conv, side, id, text = row
        found = tx.execute(sql.BY_ID, (conv, side, id)).fetchone()
        if found is None or found[0] == new_time:
            return None
        time, stored, read = found
        return Added(time, new=False, same=is_text_of(stored, text), unread=not read)

    async def _page(
        self, key: ConversationKey, since: int, rest: str, values: tuple[int, ...], *, slow: bool = False
    ) -> list[Message]:
        """Return the messages after the time `since` that the `rest` of a query selects."""

        def job(connection: sqlite3.Connection) -> list[Message]:
            names, conv = _names(key), _conversation(connection, key)
            page = fetch_json(connection, sql.PAGE_COLUMNS, sql.PAGE + rest, (conv, since, *values))
            return [_message(names, *row) for row in page]

        return await self._database.read(job, slow=slow)


def _conversation_rows(new: Iterable[tuple[Message, _MessageRow]]) -> list[_ConversationRow]:
    """Return the rows of the conversations of new messages, each with its newest time."""
    rows: dict[tuple[str, str], _ConversationRow] = {}
    for message, (time, conv, side, *_) in sorted(new, key=itemgetter(1)):  # by time
        sender, receiver = message.sender, message.receiver
        rows[sender, receiver] = (sender, receiver, conv, side, time)
        rows[receiver, sender] = (receiver, sender, conv, 1 - side, time)
    return list(rows.values())


def _insert(tx: sqlite3.Connection, table: str, rows: Sequence[tuple[object, ...]], on_conflict: str) -> int:
    """Insert rows with few statements. Returns how many rows were inserted or updated."""
    changed = 0
    for chunk in chunks(rows, MAX_ROWS):
        values = ", ".join([f"({', '.join('?' * len(chunk[0]))})"] * len(chunk))
        statement = f"INSERT INTO {table} VALUES {values} ON CONFLICT {on_conflict}"  # noqa: S608 - constants only
        changed += tx.execute(statement, list(chain.from_iterable(chunk))).rowcount
    return changed


def _names(key: ConversationKey) -> list[str]:
    """Return the sender of each side."""
    if not isinstance(key, Pair):
        raise NotImplementedError("messages of groups")
    return sorted(key)


def _conversation(connection: sqlite3.Connection, key: ConversationKey) -> int | None:
    """Return the number of a conversation, None if there is none. In a query, None matches nothing."""
    row = connection.execute(sql.CONVERSATION, _names(key)).fetchone()
    return row[0] if row else None


def _message(names: Sequence[str], time: int, side: int, id: str, text: str, read: int) -> Message:
    return Message(names[side], names[1 - side], id, text, time, bool(read))


def _find_keys(connection: sqlite3.Connection, conv: int | None, keys: Sequence[tuple[int, str]]) -> list[_Found]:
    """Return the messages that exist under these keys (side, id), with one statement."""
    return [_Found(*row) for row in fetch_json(connection, sql.BY_KEYS_COLUMNS, sql.BY_KEYS, (to_json(keys), conv))]


def _delete_first(
    tx: sqlite3.Connection, found: dict[tuple[int, str], _Found], low: str, alternatives: Sequence[MessageKey]
) -> MessageKey | None:
    """Delete the first message that exists; None if there is none, or it is a tombstone already."""
    for sender, id in alternatives:
        key = (int(sender != low), id)
        if message := found.get(key):
            if message.deleted:
                return None
            found[key] = message._replace(deleted=1)  # the request may contain the key twice
            _make_tombstone(tx, message.time)
            return sender, id
    return None


def _make_tombstone(tx: sqlite3.Connection, time: int) -> None:
    conv, text = tx.execute("SELECT conv, text FROM messages WHERE time = ?", (time,)).fetchone()
    tx.execute("UPDATE messages SET deleted = 1, read = 1, text = ? WHERE time = ?", (digest(text), time))
    tx.execute(sql.LOWER, (conv,))
