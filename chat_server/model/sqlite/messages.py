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
    GroupKey,
    Message,
    MessageKey,
    Pair,
    Record,
)
from chat_server.model.sqlite import statements as sql
from chat_server.model.sqlite.conversations import pair_number, rows_of
from chat_server.model.sqlite.group_messages import SqliteGroupMessages
from chat_server.model.sqlite.numbers import MessageRow, Numbers
from chat_server.utils.digest import digest, is_text_of
from chat_server.utils.errors import Duplicate
from chat_server.utils.sqlite import Database, chunks, fetch_json, to_json

# Conversations are iterated in pages of this size.
PAGE = 1000
# Rows per INSERT statement, at most.
MAX_ROWS = 64

_ConversationRow = tuple[str, str, int, int, int]  # user, peer, conv, side, last


class _Found(NamedTuple):
    """A stored message and its state."""

    time: int
    side: int
    id: str
    read: int
    deleted: int


class SqliteMessages(SqliteGroupMessages):
    """MessageStore on the embedded database.

    Methods that end in `_in` work on the connection of a job, so that a caller can combine several in one transaction.
    """

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._numbers = Numbers()

    async def newest(self) -> int:
        [[newest]] = await self._database.fetch("SELECT max(time) FROM messages", ())
        return newest or 0

    async def add(self, batch: Sequence[Message]) -> list[Added]:
        return await self._database.write_batched(self._add_batches, batch, self._add_new_batches)

    def add_in(self, tx: sqlite3.Connection, batch: Sequence[Message]) -> list[Added]:
        """As `add`."""
        rows = self._numbers.rows(tx, batch)
        if _insert(tx, sql.MESSAGES, [(*row, row[1] < 0) for row in rows], sql.ON_USED_ID) == len(rows):
            added = [Added(message.time) for message in batch]
        else:
            each = zip(rows, batch, strict=True)
            added = [_earlier(tx, row[1], row[2], message) or Added(message.time) for row, message in each]
        new = [(message, row) for message, row, one in zip(batch, rows, added, strict=True) if one.new]
        tx.execute(sql.RAISE, (to_json(_conversation_rows(new)),))
        return added

    async def stored(self, messages: Sequence[Message]) -> list[Added | None]:
        return await self._database.read(lambda connection: [self.find_in(connection, one) for one in messages])

    def find_in(self, tx: sqlite3.Connection, message: Message) -> Added | None:
        """Return what is stored under the id of `message`, None if nothing is."""
        conv = pair_number(tx, (message.sender, message.receiver))
        side = int(message.sender > message.receiver)
        return _earlier(tx, conv, side, message) if conv else None

    async def recent(self, pair: Pair, count: int) -> list[tuple[str, int]]:
        return await self._database.read(lambda connection: self.recent_in(connection, pair, count))

    def recent_in(self, connection: sqlite3.Connection, pair: Pair, count: int) -> list[tuple[str, int]]:
        """As `recent`."""
        names, conv = sorted(pair), pair_number(connection, pair)
        rows = [row for deleted in (0, 1) for row in connection.execute(sql.RECENT, (conv, deleted, count))]
        return [(names[side], time) for time, side in sorted(rows, reverse=True)[:count]]

    async def have_written(self, senders: Sequence[str], receiver: str) -> set[str]:
        return await self._database.read(lambda connection: self.have_written_in(connection, senders, receiver))

    def have_written_in(self, connection: sqlite3.Connection, senders: Sequence[str], receiver: str) -> set[str]:
        """As `have_written`."""
        return {sender for (sender,) in connection.execute(sql.HAVE_WRITTEN, (to_json(senders), receiver))}

    async def time_of(self, key: ConversationKey, sender: str, id: str) -> int | None:
        def job(connection: sqlite3.Connection) -> int | None:
            rows = rows_of(connection, key)
            row = connection.execute(sql.BY_ID, (rows.number, rows.side(sender), id)).fetchone()
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
            values = (pair_number(connection, (sender, receiver)), int(sender > receiver), after, count)
            page = fetch_json(connection, "id, text, time", sql.UNREAD, values)
            return [Message(sender, receiver, *row) for row in page]

        return await self._database.read(job)

    async def mark(self, sender: str, receiver: str, ids: Sequence[str]) -> tuple[set[str], list[str]]:
        keys = [(int(sender > receiver), id) for id in ids]

        def find(connection: sqlite3.Connection) -> list[_Found]:
            found = _find_keys(connection, pair_number(connection, (sender, receiver)), keys)
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
        wanted = {name for alternatives in keys for name in alternatives}

        def find(connection: sqlite3.Connection) -> dict[MessageKey, _Found]:
            rows = rows_of(connection, key)
            senders = {rows.side(sender): sender for sender, _ in wanted}
            sides = {sender: side for side, sender in senders.items() if side is not None}
            found = _find_keys(connection, rows.number, [(sides[name], id) for name, id in wanted if name in sides])
            return {(senders[message.side], message.id): message for message in found}

        def job(tx: sqlite3.Connection) -> list[MessageKey | None]:
            found = find(tx)
            return [_delete_first(tx, found, alternatives) for alternatives in keys]

        if all(message.deleted for message in (await self._database.read(find)).values()):
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
            conv = rows_of(tx, key).number
            removed = tx.execute(delete, (conv, limit)).rowcount
            if removed < limit and isinstance(key, GroupKey):
                self._numbers.erase_senders(tx, -key.number)
                tx.execute("DELETE FROM group_positions WHERE conv = ?", (conv,))
            elif removed < limit:
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
            rows = rows_of(connection, key)
            query = sql.RECORDS.format(sender=rows.sender)
            found = connection.execute(query, (rows.number, after, until, count))
            return [Record(*rows.fields(*row)) for row in found]

        return await self._database.read(job)

    async def put(self, records: Sequence[Record]) -> None:
        await self._database.write(lambda tx: self._put(tx, records))

    async def update_last(self, pair: Pair) -> None:
        def job(tx: sqlite3.Connection) -> None:
            for user in pair:
                tx.execute(sql.EXACT_TOP, (user,))
            tx.execute(sql.UPDATE_LAST, (pair_number(tx, pair),))

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
        """As `_add_batches`, with one statement; None if an id was used before, or a sender is new in a group."""
        messages = [message for batch in batches for message in batch]
        rows = self._numbers.rows(tx, messages)
        encoded = to_json(rows)
        if "\\u0000" in encoded:  # SQLite would end a JSON string there
            return None
        try:
            tx.execute(sql.ADD_BATCH, (encoded, to_json(_conversation_rows(zip(messages, rows, strict=True)))))
        except sqlite3.IntegrityError:
            return None
        return [[Added(message.time) for message in batch] for batch in batches]

    def _put(self, tx: sqlite3.Connection, records: Sequence[Record]) -> None:
        rows = [
            (*row, record.read or row[1] < 0, isinstance(record.text, bytes))
            for row, record in zip(self._numbers.rows(tx, records), records, strict=True)
        ]
        if not records[0].group:
            self._put_pair(tx, records[0], rows[0][1])
        try:
            if tx.executemany(sql.PUT, rows).rowcount != len(rows):
                raise Duplicate("a time")
        except sqlite3.IntegrityError as error:
            raise Duplicate("an id") from error

    def _put_pair(self, tx: sqlite3.Connection, first: Record, conv: int) -> None:
        pair = tuple(sorted((first.sender, first.receiver)))
        if tx.execute(sql.OTHER_PAIR, (conv, *pair)).fetchone():  # a new conversation would get a number that is in use
            self._numbers.forget_pairs()
            raise Duplicate("a time")
        for user, peer in ((first.sender, first.receiver), (first.receiver, first.sender)):
            tx.execute(sql.NEW_PAIR, (user, peer, conv, int(user > peer), first.time))

    async def _page(
        self, key: ConversationKey, since: int, rest: str, values: tuple[int, ...], *, slow: bool = False
    ) -> list[Message]:
        """Return the messages after the time `since` that the `rest` of a query selects."""

        def job(connection: sqlite3.Connection) -> list[Message]:
            rows = rows_of(connection, key)
            query = sql.PAGE.format(sender=rows.sender) + rest
            page = fetch_json(connection, sql.PAGE_COLUMNS, query, (rows.number, since, *values))
            return [Message(*rows.fields(*row)) for row in page]

        return await self._database.read(job, slow=slow)


def _earlier(tx: sqlite3.Connection, conv: int, side: int | None, message: Message) -> Added | None:
    """Return what another message stored under the id of `message`; None if there is none, or it is this one."""
    found = tx.execute(sql.BY_ID, (conv, side, message.id)).fetchone()
    if found is None or found[0] == message.time:
        return None
    time, text, read = found
    unread = isinstance(text, str) if message.group else not read
    return Added(time, new=False, same=is_text_of(text, message.text), unread=unread)


def _conversation_rows(new: Iterable[tuple[Message, MessageRow]]) -> list[_ConversationRow]:
    """Return the rows of the conversations of two users with new messages, each with its newest time."""
    newest = {row[1]: (message, row) for message, row in sorted(new, key=itemgetter(1))}  # by conversation
    rows: list[_ConversationRow] = []
    for message, (time, conv, side, *_) in newest.values():
        if side is not None and conv > 0:
            rows.append((message.sender, message.receiver, conv, side, time))
            rows.append((message.receiver, message.sender, conv, 1 - side, time))
    return rows


def _insert(tx: sqlite3.Connection, table: str, rows: Sequence[tuple[object, ...]], on_conflict: str) -> int:
    """Insert rows with few statements. Returns how many rows were inserted or updated."""
    changed = 0
    for chunk in chunks(rows, MAX_ROWS):
        values = ", ".join([f"({', '.join('?' * len(chunk[0]))})"] * len(chunk))
        statement = f"INSERT INTO {table} VALUES {values} ON CONFLICT {on_conflict}"  # noqa: S608 - constants only
        changed += tx.execute(statement, list(chain.from_iterable(chunk))).rowcount
    return changed


def _message(names: Sequence[str], time: int, side: int, id: str, text: str, read: int) -> Message:
    return Message(names[side], names[1 - side], id, text, time, bool(read))


def _find_keys(connection: sqlite3.Connection, conv: int | None, keys: Sequence[tuple[int, str]]) -> list[_Found]:
    """Return the messages that exist under these keys (side, id), with one statement."""
    return [_Found(*row) for row in fetch_json(connection, sql.BY_KEYS_COLUMNS, sql.BY_KEYS, (to_json(keys), conv))]


def _delete_first(
    tx: sqlite3.Connection, found: dict[MessageKey, _Found], alternatives: Sequence[MessageKey]
) -> MessageKey | None:
    """Delete the first message that exists; None if there is none, or it is a tombstone already."""
    for key in alternatives:
        if message := found.get(key):
            if message.deleted:
                return None
            found[key] = message._replace(deleted=1)  # the request may contain the key twice
            _make_tombstone(tx, message.time)
            return key
    return None


def _make_tombstone(tx: sqlite3.Connection, time: int) -> None:
    conv, text = tx.execute("SELECT conv, text FROM messages WHERE time = ?", (time,)).fetchone()
    tx.execute("UPDATE messages SET deleted = 1, read = 1, text = ? WHERE time = ?", (digest(text), time))
    tx.execute(sql.LOWER, (conv,))
