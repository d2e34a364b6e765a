"""Users and messages in the embedded database."""

import sqlite3
from collections.abc import AsyncIterator, Iterable, Sequence
from itertools import chain, islice
from typing import NamedTuple

import msgspec

from chat_server.model.messages import MAX_UNREAD, Added, Conversation, Message, MessageKey, Record
from chat_server.model.users import State, User
from chat_server.utils.digest import digest, is_text_of
from chat_server.utils.errors import Duplicate
from chat_server.utils.sqlite import Database, Schema, chunks, fetch_json

# How many conversations' numbers are kept in memory, so that a message needs no look-up.
KNOWN_CONVERSATIONS = 65536
# Conversations are listed so many at a time.
PAIRS = 1000
# Messages are inserted by statements of at most so many rows.
INSERTED = 64


# The users' part of the database.
USERS_SCHEMA = Schema(
    "users",
    (
        "CREATE TABLE users (name TEXT PRIMARY KEY, password TEXT NOT NULL) STRICT, WITHOUT ROWID",
        "ALTER TABLE users ADD COLUMN state INTEGER NOT NULL DEFAULT 0",
    ),
)


class SqliteUsers:
    """UserStore on the embedded database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, user: User) -> None:
        def job(tx: sqlite3.Connection) -> None:
            try:
                tx.execute("INSERT INTO users (name, password, state) VALUES (?, ?, ?)", _user_row(user))
            except sqlite3.IntegrityError as error:
                raise Duplicate(user.name) from error

        await self._database.write(job)

    async def get(self, name: str) -> User | None:
        def job(connection: sqlite3.Connection) -> User | None:
            row = connection.execute("SELECT name, password, state FROM users WHERE name = ?", (name,)).fetchone()
            return _user(row) if row else None

        return await self._database.read(job)

    async def set_password(self, name: str, old: str, new: str) -> bool:
        def job(tx: sqlite3.Connection) -> bool:
            values = (new, name, old)
            return tx.execute("UPDATE users SET password = ? WHERE name = ? AND password = ?", values).rowcount > 0

        return await self._database.write(job)

    async def enabled(self, names: Sequence[str]) -> set[str]:
        def job(connection: sqlite3.Connection) -> set[str]:
            query = "SELECT name FROM users WHERE name IN (SELECT value FROM json_each(?)) AND state = 0"
            return {name for (name,) in fetch_json(connection, "name", query, (_json(names),))}

        return await self._database.read(job)

    async def set_state(self, name: str, state: State) -> bool:
        update = "UPDATE users SET state = ? WHERE name = ?"
        return await self._database.write(lambda tx: tx.execute(update, (state, name)).rowcount > 0)

    async def remove(self, name: str) -> bool:
        return await self._database.write(
            lambda tx: tx.execute("DELETE FROM users WHERE name = ?", (name,)).rowcount > 0
        )

    async def ping(self) -> None:
        await self._database.ping("users")

    async def count(self) -> int:
        return await self._database.read(lambda connection: _count(connection, "SELECT count(*) FROM users"))

    async def pages(self, count: int) -> AsyncIterator[list[User]]:
        query = "SELECT name, password, state FROM users WHERE name > ? ORDER BY name LIMIT ?"
        after = ""
        while page := [_user(row) for row in await self._database.fetch(query, (after, count))]:
            yield page
            after = page[-1].name

    async def put(self, users: Sequence[User]) -> None:
        insert = "INSERT INTO users (name, password, state) VALUES (?, ?, ?) ON CONFLICT (name) DO NOTHING"
        rows = [_user_row(user) for user in users]
        await self._database.write(lambda tx: tx.executemany(insert, rows).rowcount)


def _user(row: tuple[str, str, int]) -> User:
    name, password, state = row
    return User(name, password, State(state))


def _user_row(user: User) -> tuple[str, str, int]:
    return user.name, user.password, user.state


# The messages' part of the database.
# `time` is the key of a message: unique, increasing, so that a page is a range of an index. `conv` is the
# number of a conversation (the time of its first message), `side` who sent: 0 the lesser name, 1 the
# greater. `text` is the text, or of a deleted message the salted digest, a blob. `last` is the time of a conversation's
# newest message; negative once all of them are deleted: then op 7 does not list it, and does not come across it.
MESSAGES_SCHEMA = Schema(
    "messages",
    (
        """CREATE TABLE messages (
            time INTEGER PRIMARY KEY,
            conv INTEGER NOT NULL,
            side INTEGER NOT NULL,
            id TEXT NOT NULL,
            text ANY NOT NULL,
            read INTEGER NOT NULL DEFAULT 0,
            deleted INTEGER NOT NULL DEFAULT 0
        ) STRICT""",
        "CREATE UNIQUE INDEX messages_by_id ON messages (conv, side, id)",
        "CREATE INDEX messages_by_time ON messages (conv, deleted, time)",
        "CREATE INDEX messages_unread ON messages (conv, side, time) WHERE read = 0",
        """CREATE TABLE conversations (
            user TEXT NOT NULL,
            peer TEXT NOT NULL,
            conv INTEGER NOT NULL,
            side INTEGER NOT NULL,
            last INTEGER NOT NULL,
            PRIMARY KEY (user, peer)
        ) STRICT, WITHOUT ROWID""",
        "CREATE INDEX conversations_by_time ON conversations (user, last)",
        "CREATE INDEX conversations_by_number ON conversations (conv)",
        # What is inserted here, rows of the two tables as JSON, is stored in them: a whole batch by one statement.
        "CREATE VIEW batches (messages, conversations) AS SELECT NULL, NULL",
        """CREATE TRIGGER batches_stored INSTEAD OF INSERT ON batches BEGIN
            INSERT INTO messages (time, conv, side, id, text)
                SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
                    json_extract(value, '$[3]'), json_extract(value, '$[4]') FROM json_each(new.messages);
            INSERT INTO conversations (user, peer, conv, side, last)
                SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
                    json_extract(value, '$[3]'), json_extract(value, '$[4]') FROM json_each(new.conversations)
                WHERE true ON CONFLICT (user, peer) DO UPDATE SET last = max(last, excluded.last);
        END""",
        """UPDATE conversations SET last = -last WHERE last > 0
            AND NOT EXISTS (SELECT 1 FROM messages WHERE conv = conversations.conv AND deleted = 0)""",
    ),
)


_Row = tuple[int, int, int, str, str]  # of messages: time, conv, side, id, text

_MESSAGES, _KEEP = "messages (time, conv, side, id, text)", "(conv, side, id) DO NOTHING"
_CONVERSATIONS = "conversations (user, peer, conv, side, last)"
_TOUCH = "(user, peer) DO UPDATE SET last = max(last, excluded.last)"
_RANGE = """SELECT * FROM (SELECT time, side, id, text, read FROM messages
    WHERE conv = ?1 AND deleted = {} AND time > ?2 AND time <= ?3 ORDER BY time LIMIT ?4)"""
_RECORDS = " UNION ALL ".join(_RANGE.format(deleted) for deleted in (0, 1)) + " ORDER BY time LIMIT ?4"
_PUT = """INSERT INTO messages (time, conv, side, id, text, read, deleted) VALUES (?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (time) DO UPDATE SET text = excluded.text, read = excluded.read, deleted = excluded.deleted
        WHERE conv = excluded.conv AND side = excluded.side AND id = excluded.id"""
_COLUMNS = "time, side, id, text, read"
_PAGE = f"SELECT {_COLUMNS} FROM messages WHERE conv = ? AND deleted = 0 "  # noqa: S608 - no names but ours
_UNREAD = """SELECT time, id, text FROM messages
    WHERE conv = ? AND side = ? AND read = 0 AND time > ? ORDER BY time LIMIT ?"""
_LISTED = """SELECT peer, m.time, m.side, m.id, m.text, m.read, (SELECT count(*) FROM
            (SELECT 1 FROM messages WHERE conv = c.conv AND side = 1 - c.side AND read = 0 LIMIT ?)) AS unread
    FROM conversations c CROSS JOIN messages m
    WHERE user = ? AND last > 0 AND last < ? AND m.time =
        (SELECT time FROM messages WHERE conv = c.conv AND deleted = 0 ORDER BY time DESC LIMIT 1)
    ORDER BY last DESC LIMIT ?"""
_HIDE = """UPDATE conversations SET last = -last WHERE conv = ? AND last > 0
    AND NOT EXISTS (SELECT 1 FROM messages WHERE conv = conversations.conv AND deleted = 0)"""
_UNREAD_OF = """SELECT json_group_array(time) FROM messages
    WHERE time IN (SELECT value FROM json_each(?)) AND read = 0"""
_NAMED = """SELECT time, side, m.id AS id, read, deleted FROM json_each(?) AS n CROSS JOIN messages AS m
    WHERE conv = ? AND side = json_extract(n.value, '$[0]') AND m.id = json_extract(n.value, '$[1]') LIMIT 1000"""
_MARK = "UPDATE messages SET read = 1 WHERE time IN (SELECT value FROM json_each(?))"


class _Place(NamedTuple):
    """Where a message is, and what has become of it."""

    time: int
    side: int
    id: str
    read: int
    deleted: int


class SqliteMessages:
    """MessageStore on the embedded database.

    Methods that end in `_in` do their work inside a job, for whoever needs several in one transaction.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        # (lesser name, greater name) -> number. Only the writer thread uses it. A number whose transaction
        # was rolled back may stay: _TOUCH then writes it with the next message.
        self._numbers: dict[tuple[str, str], int] = {}

    async def newest(self) -> int:
        def job(connection: sqlite3.Connection) -> int:
            row = connection.execute("SELECT max(time) FROM messages").fetchone()
            return int(row[0] or 0)

        return await self._database.read(job)

    async def add(self, batch: Sequence[Message]) -> list[Added]:
        return await self._database.write_batched(self._add_runs, batch, self._add_new_runs)

    def add_in(self, tx: sqlite3.Connection, run: Sequence[Message]) -> list[Added]:
        """What `add` does."""
        rows = self._rows(tx, run)
        if _insert(tx, _MESSAGES, rows, _KEEP) == len(rows):
            added = [Added(message.time) for message in run]
        else:
            added = [self._found(tx, row) or Added(row[0]) for row in rows]
        new = [(message, row) for message, row, one in zip(run, rows, added, strict=True) if one.new]
        _insert(tx, _CONVERSATIONS, _touched(new), _TOUCH)
        return added

    async def stored(self, messages: Sequence[Message]) -> list[Added | None]:
        return await self._database.read(lambda connection: [self.find_in(connection, one) for one in messages])

    def find_in(self, tx: sqlite3.Connection, message: Message) -> Added | None:
        """What is stored under the id of `message` already, None if nothing is."""
        conv = _conversation(tx, message.sender, message.receiver)
        side = int(message.sender > message.receiver)
        return self._found(tx, (message.time, conv, side, message.id, message.text)) if conv else None

    async def recent(self, one: str, other: str, count: int) -> list[tuple[str, int]]:
        return await self._database.read(lambda connection: self.recent_in(connection, one, other, count))

    def recent_in(self, connection: sqlite3.Connection, one: str, other: str, count: int) -> list[tuple[str, int]]:
        """What `recent` does."""
        names = sorted((one, other))
        conv = _conversation(connection, one, other)
        rows = [
            row
            for deleted in (0, 1)
            for row in connection.execute(
                """SELECT time, side FROM messages
                    WHERE conv = ? AND deleted = ? ORDER BY time DESC LIMIT ?""",
                (conv, deleted, count),
            )
        ]
        return [(names[side], time) for time, side in sorted(rows, reverse=True)[:count]]

    async def has_written(self, sender: str, receiver: str) -> bool:
        return await self._database.read(lambda connection: self.has_written_in(connection, sender, receiver))

    def has_written_in(self, connection: sqlite3.Connection, sender: str, receiver: str) -> bool:
        """What `has_written` does."""
        values = (_conversation(connection, sender, receiver), int(sender > receiver))
        found = connection.execute("SELECT 1 FROM messages WHERE conv = ? AND side = ? LIMIT 1", values)
        return found.fetchone() is not None

    async def time_of(self, one: str, other: str, sender: str, id: str) -> int | None:
        def job(connection: sqlite3.Connection) -> int | None:
            values = (_conversation(connection, one, other), int(sender != min(one, other)), id)
            row = connection.execute(
                "SELECT time FROM messages WHERE conv = ? AND side = ? AND id = ?", values
            ).fetchone()
            return row[0] if row else None

        return await self._database.read(job)

    async def skip(self, one: str, other: str, skip: int, count: int) -> list[Message]:
        return await self._page(one, other, "ORDER BY time LIMIT ? OFFSET ?", (count, skip), slow=True)

    async def before(self, one: str, other: str, time: int, count: int) -> list[Message]:
        page = await self._page(one, other, "AND time < ? ORDER BY time DESC LIMIT ?", (time, count))
        return page[::-1]

    async def after(self, one: str, other: str, time: int, count: int) -> list[Message]:
        return await self._page(one, other, "AND time > ? ORDER BY time LIMIT ?", (time, count))

    async def unread(self, sender: str, receiver: str, after: int, count: int) -> list[Message]:
        def job(connection: sqlite3.Connection) -> list[Message]:
            values = (_conversation(connection, sender, receiver), int(sender > receiver), after, count)
            page = fetch_json(connection, "id, text, time", _UNREAD, values)
            return [Message(sender, receiver, *row) for row in page]

        return await self._database.read(job)

    async def mark(self, sender: str, receiver: str, ids: Sequence[str]) -> tuple[set[str], list[str]]:
        side = int(sender > receiver)

        def look(connection: sqlite3.Connection) -> list[_Place]:
            return _places(connection, _conversation(connection, sender, receiver), [(side, id) for id in ids])

        def job(tx: sqlite3.Connection) -> tuple[set[str], list[str]]:
            there = [place for place in look(tx) if not place.deleted]
            unread = {place.id: place.time for place in there if not place.read}
            tx.execute(_MARK, (_json(list(unread.values())),))
            return {place.id for place in there}, [id for id in dict.fromkeys(ids) if id in unread]

        # Only what changes something is written: all other writes would wait for it.
        there = [place for place in await self._database.read(look) if not place.deleted]
        if all(place.read for place in there):
            return {place.id for place in there}, []
        return await self._database.write(job)

    async def mark_delivered(self, times: Sequence[int]) -> set[int]:
        def job(tx: sqlite3.Connection) -> set[int]:
            (unread,) = tx.execute(_UNREAD_OF, (_json(times),)).fetchone()
            tx.execute(_MARK, (unread,))
            return set(msgspec.json.decode(unread))

        return await self._database.write(job)

    async def delete(self, one: str, other: str, keys: Sequence[Sequence[MessageKey]]) -> list[MessageKey | None]:
        low = min(one, other)
        sides = [(int(sender != low), id) for choices in keys for sender, id in choices]

        def look(connection: sqlite3.Connection) -> list[_Place]:
            return _places(connection, _conversation(connection, one, other), sides)

        def job(tx: sqlite3.Connection) -> list[MessageKey | None]:
            places = {(place.side, place.id): place for place in look(tx)}
            return [_bury_first(tx, places, low, choices) for choices in keys]

        if all(place.deleted for place in await self._database.read(look)):
            return [None] * len(keys)
        return await self._database.write(job)

    async def conversations(self, user: str, before: int, count: int) -> list[Conversation]:
        def job(connection: sqlite3.Connection) -> list[Conversation]:
            listed = fetch_json(connection, f"peer, {_COLUMNS}, unread", _LISTED, (MAX_UNREAD, user, before, count))
            return [Conversation(peer, _message(sorted((user, peer)), *last), unread) for peer, *last, unread in listed]

        return await self._database.read(job)

    async def listed_at(self, user: str, peer: str) -> int | None:
        query = "SELECT abs(last) FROM conversations WHERE user = ? AND peer = ?"
        found = await self._database.fetch(query, (user, peer))
        return found[0][0] if found else None

    async def purge(self, before: int, limit: int) -> int:
        def job(tx: sqlite3.Connection) -> int:
            gone = tx.execute(
                """DELETE FROM messages WHERE time IN
                    (SELECT time FROM messages WHERE time < ? ORDER BY time LIMIT ?) RETURNING conv""",
                (before, limit),
            ).fetchall()
            for conv in set(gone):
                tx.execute(
                    """DELETE FROM conversations WHERE conv = ?1
                        AND NOT EXISTS (SELECT 1 FROM messages WHERE conv = ?1)""",
                    conv,
                )
                tx.execute(_HIDE, conv)
            return len(gone)

        return await self._database.write(job)

    async def peers(self, user: str) -> AsyncIterator[str]:
        query = "SELECT peer FROM conversations WHERE user = ? AND peer > ? ORDER BY peer LIMIT ?"
        after = ""
        while page := await self._database.fetch(query, (user, after, PAIRS)):
            for (peer,) in page:
                yield peer
            after = page[-1][0]

    async def erase(self, one: str, other: str, limit: int) -> int:
        def job(tx: sqlite3.Connection) -> int:
            conv = _conversation(tx, one, other)
            gone = tx.execute(
                "DELETE FROM messages WHERE time IN (SELECT time FROM messages WHERE conv = ? LIMIT ?)", (conv, limit)
            ).rowcount
            if gone < limit:
                tx.execute("DELETE FROM conversations WHERE conv = ?", (conv,))
            return gone

        return await self._database.write(job)

    async def ping(self) -> None:
        await self._database.ping("messages")

    # --- moving

    async def count(self) -> int:
        return await self._database.read(lambda connection: _count(connection, "SELECT count(*) FROM messages"))

    async def pairs(self) -> AsyncIterator[tuple[str, str]]:
        query = """SELECT user, peer FROM conversations
            WHERE (user, peer) > (?, ?) AND user < peer ORDER BY user, peer LIMIT ?"""
        after = ("", "")
        while page := await self._database.fetch(query, (*after, PAIRS)):
            for pair in page:
                yield pair
            after = page[-1]

    async def records(self, one: str, other: str, after: int, until: int, count: int) -> list[Record]:
        def job(connection: sqlite3.Connection) -> list[Record]:
            names = sorted((one, other))
            rows = connection.execute(_RECORDS, (_conversation(connection, one, other), after, until, count))
            return [
                Record(names[side], names[1 - side], id, text, time, bool(read)) for time, side, id, text, read in rows
            ]

        return await self._database.read(job)

    async def put(self, records: Sequence[Record]) -> None:
        await self._database.write(lambda tx: self._put(tx, records))

    async def update_last(self, one: str, other: str) -> None:
        settle = """UPDATE conversations SET last = coalesce(
                (SELECT time FROM messages WHERE conv = ?1 AND deleted = 0 ORDER BY time DESC LIMIT 1),
                (SELECT -time FROM messages WHERE conv = ?1 AND deleted = 1 ORDER BY time DESC LIMIT 1), last)
            WHERE conv = ?1"""
        await self._database.write(lambda tx: tx.execute(settle, (_conversation(tx, one, other),)).rowcount)

    async def used_times(self, times: Sequence[int]) -> set[int]:
        def job(connection: sqlite3.Connection) -> set[int]:
            # a conversation's number is the time of a message, perhaps of one that is forgotten
            query = "SELECT 1 FROM messages WHERE time = ?1 UNION ALL SELECT 1 FROM conversations WHERE conv = ?1"
            return {time for time in times if connection.execute(query, (time,)).fetchone()}

        return await self._database.read(job)

    # --- inside a job

    def _add_runs(self, tx: sqlite3.Connection, runs: Sequence[Sequence[Message]]) -> list[list[Added]]:
        added = iter(self.add_in(tx, [message for run in runs for message in run]))
        return [list(islice(added, len(run))) for run in runs]

    def _add_new_runs(self, tx: sqlite3.Connection, runs: Sequence[Sequence[Message]]) -> list[list[Added]] | None:
        """What `_add_runs` does, by one statement, if no id was used before."""
        messages = [message for run in runs for message in run]
        rows = self._rows(tx, messages)
        batch = _json(rows), _json(_touched(zip(messages, rows, strict=True)))
        if "\\u0000" in batch[0]:  # SQLite's strings of JSON end there
            return None
        try:
            tx.execute("INSERT INTO batches (messages, conversations) VALUES (?, ?)", batch)
        except sqlite3.IntegrityError:
            return None
        return [[Added(message.time) for message in run] for run in runs]

    def _rows(self, tx: sqlite3.Connection, run: Sequence[Message]) -> list[_Row]:
        return [
            (message.time, self._number(tx, message), int(message.sender > message.receiver), message.id, message.text)
            for message in run
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
        others = "SELECT 1 FROM conversations WHERE conv = ? AND user < peer AND (user, peer) != (?, ?)"
        if tx.execute(others, (conv, *pair)).fetchone():  # a new one would be numbered by a time that is in use
            self._numbers.clear()
            raise Duplicate("a time")
        touch = "INSERT INTO conversations (user, peer, conv, side, last) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
        for user, peer in ((first.sender, first.receiver), (first.receiver, first.sender)):
            tx.execute(touch, (user, peer, conv, int(user > peer), first.time))
        try:
            if tx.executemany(_PUT, rows).rowcount != len(rows):
                raise Duplicate("a time")
        except sqlite3.IntegrityError as error:
            raise Duplicate("an id") from error

    def _number(self, tx: sqlite3.Connection, message: Message | Record) -> int:
        """The number of the conversation; a new one is numbered by its first message's time."""
        sender, receiver = message.sender, message.receiver
        pair = (sender, receiver) if sender < receiver else (receiver, sender)
        number = self._numbers.get(pair)
        if number is None:
            number = _conversation(tx, *pair) or message.time
            if len(self._numbers) >= KNOWN_CONVERSATIONS:
                del self._numbers[next(iter(self._numbers))]
            self._numbers[pair] = number
        return number

    def _found(self, tx: sqlite3.Connection, row: _Row) -> Added | None:
        """What another message stored under the id of `row` is; None if there is none, or it is this one."""
        mine, conv, side, id, text = row
        found = tx.execute(
            "SELECT time, text, read FROM messages WHERE conv = ? AND side = ? AND id = ?", (conv, side, id)
        ).fetchone()
        if found is None or found[0] == mine:
            return None
        time, stored, read = found
        same = is_text_of(stored, text)
        return Added(time, new=False, same=same, unread=not read)

    async def _page(
        self, one: str, other: str, rest: str, values: tuple[int, ...], *, slow: bool = False
    ) -> list[Message]:
        def job(connection: sqlite3.Connection) -> list[Message]:
            names = sorted((one, other))
            page = fetch_json(connection, _COLUMNS, _PAGE + rest, (_conversation(connection, one, other), *values))
            return [_message(names, *row) for row in page]

        return await self._database.read(job, slow=slow)


def _touched(new: Iterable[tuple[Message, _Row]]) -> list[tuple[str, str, int, int, int]]:
    """The rows of the conversations that these messages are the newest of, in order of time."""
    touched: dict[tuple[str, str], tuple[str, str, int, int, int]] = {}
    for message, (time, conv, side, *_) in new:
        sender, receiver = message.sender, message.receiver
        touched[sender, receiver] = (sender, receiver, conv, side, time)
        touched[receiver, sender] = (receiver, sender, conv, 1 - side, time)
    return list(touched.values())


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _insert(tx: sqlite3.Connection, table: str, rows: Sequence[tuple[object, ...]], otherwise: str) -> int:
    """Insert rows by few statements; `otherwise` says what happens to one that is there. Returns how many changed."""
    changed = 0
    for chunk in chunks(rows, INSERTED):
        values = ", ".join([f"({', '.join('?' * len(chunk[0]))})"] * len(chunk))
        statement = f"INSERT INTO {table} VALUES {values} ON CONFLICT {otherwise}"  # noqa: S608 - no names but ours
        changed += tx.execute(statement, list(chain.from_iterable(chunk))).rowcount
    return changed


def _count(connection: sqlite3.Connection, query: str) -> int:
    return int(connection.execute(query).fetchone()[0])


def _conversation(connection: sqlite3.Connection, one: str, other: str) -> int | None:
    """The number of the conversation, None if there is none; as a value in a query, None finds nothing."""
    row = connection.execute("SELECT conv FROM conversations WHERE user = ? AND peer = ?", (one, other)).fetchone()
    return row[0] if row else None


def _message(names: Sequence[str], time: int, side: int, id: str, text: str, read: int) -> Message:
    return Message(names[side], names[1 - side], id, text, time, bool(read))


def _places(connection: sqlite3.Connection, conv: int | None, named: Sequence[tuple[int, str]]) -> list[_Place]:
    """Those of the messages, each named by side and id, that are there; by one statement."""
    return [
        _Place(*row) for row in fetch_json(connection, "time, side, id, read, deleted", _NAMED, (_json(named), conv))
    ]


def _bury_first(
    tx: sqlite3.Connection, places: dict[tuple[int, str], _Place], low: str, choices: Sequence[MessageKey]
) -> MessageKey | None:
    """Turn the first of the messages that is there into a tombstone; None if there is none, or it is one already."""
    for sender, id in choices:
        key = (int(sender != low), id)
        if place := places.get(key):
            if place.deleted:
                return None
            places[key] = place._replace(deleted=1)  # it may be named twice
            _bury(tx, place.time)
            return sender, id
    return None


def _bury(tx: sqlite3.Connection, time: int) -> None:
    conv, text = tx.execute("SELECT conv, text FROM messages WHERE time = ?", (time,)).fetchone()
    tx.execute("UPDATE messages SET deleted = 1, read = 1, text = ? WHERE time = ?", (digest(text), time))
    # The conversation's place is that of its newest message; without any it keeps its place, and is not listed.
    tx.execute(
        """UPDATE conversations SET last = coalesce(
                (SELECT time FROM messages WHERE conv = ?1 AND deleted = 0 ORDER BY time DESC LIMIT 1), -last)
            WHERE conv = ?1 AND last = ?2""",
        (conv, time),
    )
