"""Sessions, rates and contact states in the embedded database, so that they survive a restart."""

import sqlite3
from collections.abc import AsyncIterator, Sequence
from functools import partial

import msgspec
from msgspec.structs import replace

from chat_server.cache.contacts import ContactRecord, ContactState, Decision, Permission, decide
from chat_server.cache.rates import CLOCK_TOLERANCE, Rate
from chat_server.cache.sessions import MAX_SESSIONS, SessionRecord
from chat_server.utils.batch import Batcher
from chat_server.utils.clock import MICROSECONDS, Clock
from chat_server.utils.sqlite import Database, Schema, chunks, fetch_json

# A use renews a session only if more than this fraction of its lifetime has passed.
RENEWAL = 0.01
# Expired rows per transaction, at most, so that no transaction is long.
SWEEP = 500
# Callers whose sessions one query looks up, at most.
MAX_CALLERS = 8
# Parameters per statement, at most.
MAX_PARAMETERS = 64
_TOLERANCE = int(CLOCK_TOLERANCE * MICROSECONDS)

# Times are in microseconds since the epoch. A released step never changes.
CACHE_SCHEMA = Schema(
    "cache",
    (
        """CREATE TABLE sessions (
            digest BLOB PRIMARY KEY, user TEXT NOT NULL, expires INTEGER NOT NULL
        ) STRICT, WITHOUT ROWID""",
        "CREATE INDEX sessions_by_user ON sessions (user)",
        "CREATE INDEX sessions_by_expiry ON sessions (expires)",
        """CREATE TABLE rates (
            key BLOB PRIMARY KEY, count INTEGER NOT NULL, expires INTEGER NOT NULL
        ) STRICT, WITHOUT ROWID""",
        "CREATE INDEX rates_by_expiry ON rates (expires)",
        """CREATE TABLE strangers (
            low TEXT NOT NULL, high TEXT NOT NULL, state BLOB NOT NULL, expires INTEGER NOT NULL,
            PRIMARY KEY (low, high)
        ) STRICT, WITHOUT ROWID""",
        "CREATE INDEX strangers_by_expiry ON strangers (expires)",
    ),
)


class SqliteSessions:
    """SessionStore on the embedded database; `lifetime` in seconds."""

    def __init__(self, database: Database, lifetime: float, clock: Clock) -> None:
        self._database = database
        self._lifetime = int(lifetime * MICROSECONDS)
        self._clock = clock
        # When thousands of clients reconnect at once, one query looks up several sessions, because other reads wait
        # behind these queries. A batch is small, because all its callers continue in the same loop iteration.
        self._uses: Batcher[Sequence[bytes], dict[bytes, str]] = Batcher(
            self._use_batch, most=MAX_CALLERS, timeout=database.timeout
        )

    async def add(self, digest: bytes, user: str) -> None:
        expires = self._clock.now() + self._lifetime
        oldest = "SELECT digest FROM sessions WHERE user = ? ORDER BY expires DESC LIMIT ? OFFSET ?"

        def job(tx: sqlite3.Connection) -> None:
            tx.execute("INSERT INTO sessions (digest, user, expires) VALUES (?, ?, ?)", (digest, user, expires))
            tx.execute(f"DELETE FROM sessions WHERE digest IN ({oldest})", (user, SWEEP, MAX_SESSIONS))  # noqa: S608

        await self._database.write(job)

    async def use(self, digests: Sequence[bytes]) -> dict[bytes, str]:
        return await self._uses.submit(digests)

    async def _use_batch(self, batch: list[Sequence[bytes]]) -> list[dict[bytes, str]]:
        found = await self._use([digest for digests in batch for digest in digests])
        return [{digest: found[digest] for digest in digests if digest in found} for digests in batch]

    async def _use(self, digests: Sequence[bytes]) -> dict[bytes, str]:
        now = self._clock.now()
        fresh = now + int(self._lifetime * (1 - RENEWAL))

        def job(connection: sqlite3.Connection) -> list[tuple[bytes, str, int]]:
            found = []
            for some in chunks(digests, MAX_PARAMETERS):
                names = ", ".join("?" * len(some))
                query = f"SELECT digest, user, expires FROM sessions WHERE digest IN ({names}) AND expires > ?"  # noqa: S608
                found += fetch_json(connection, "hex(digest), user, expires", query, (*some, now))
            return [(bytes.fromhex(digest), user, expires) for digest, user, expires in found]

        found = await self._database.read(job)
        if due := [(now + self._lifetime, digest) for digest, _, expires in found if expires < fresh]:
            update = "UPDATE sessions SET expires = ? WHERE digest = ?"
            await self._database.write(lambda tx: tx.executemany(update, due).rowcount)
        return {digest: user for digest, user, _ in found}

    async def end(self, digest: bytes) -> None:
        await self._database.write(lambda tx: tx.execute("DELETE FROM sessions WHERE digest = ?", (digest,)).rowcount)

    async def end_others(self, user: str, keep: bytes = b"") -> int:
        delete = "DELETE FROM sessions WHERE user = ? AND digest != ?"
        return await self._database.write(lambda tx: tx.execute(delete, (user, keep)).rowcount)

    async def ping(self) -> None:
        await self._database.ping("sessions")

    async def pages(self, count: int) -> AsyncIterator[list[SessionRecord]]:
        query = "SELECT digest, user, expires FROM sessions WHERE digest > ? ORDER BY digest LIMIT ?"
        after, now = b"", self._clock.now()
        while page := [SessionRecord(*row) for row in await self._database.fetch(query, (after, count))]:
            after = page[-1].digest
            yield [session for session in page if session.expires > now]

    async def peek(self, digests: Sequence[bytes]) -> list[SessionRecord]:
        def job(connection: sqlite3.Connection) -> list[SessionRecord]:
            query = "SELECT digest, user, expires FROM sessions WHERE digest = ?"
            rows = (connection.execute(query, (digest,)).fetchone() for digest in digests)
            return [SessionRecord(*row) for row in rows if row]

        return await self._database.read(job)

    async def put(self, sessions: Sequence[SessionRecord]) -> None:
        insert = "INSERT OR REPLACE INTO sessions (digest, user, expires) VALUES (?, ?, ?)"
        rows = [(session.digest, session.user, session.expires) for session in sessions]
        await self._database.write(lambda tx: tx.executemany(insert, rows).rowcount)


class SqliteRates:
    """RateStore on the embedded database: fixed windows."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def take(self, rates: Sequence[Rate]) -> float:
        def job(tx: sqlite3.Connection) -> float:
            now = self._clock.now()
            counts = []
            wait = 0
            for rate in rates:
                window = int(rate.window * MICROSECONDS)
                count, expires = tx.execute(
                    "SELECT count, expires FROM rates WHERE key = ?", (_key(rate),)
                ).fetchone() or (0, 0)
                if expires <= now or expires > now + window + _TOLERANCE:  # over, or the clock was set back
                    count, expires = 0, now + window
                if count >= rate.limit:
                    wait = max(wait, expires - now)
                counts.append((_key(rate), count + 1, expires))
            if not wait:
                tx.executemany("INSERT OR REPLACE INTO rates (key, count, expires) VALUES (?, ?, ?)", counts)
            return wait / MICROSECONDS

        return await self._database.write(job)

    async def count(self, rate: Rate) -> int:
        query, now = "SELECT count FROM rates WHERE key = ? AND expires > ? AND expires <= ?", self._clock.now()
        values = (_key(rate), now, now + int(rate.window * MICROSECONDS) + _TOLERANCE)
        rows = await self._database.fetch(query, values)
        return rows[0][0] if rows else 0

    async def give_back(self, rates: Sequence[Rate], age: float) -> None:
        taken = self._clock.now() - int(age * MICROSECONDS)
        values = [(_key(rate), taken + int(rate.window * MICROSECONDS)) for rate in rates]
        update = "UPDATE rates SET count = count - 1 WHERE key = ? AND count > 0 AND expires <= ?"
        await self._database.write(lambda tx: tx.executemany(update, values).rowcount)

    async def forget(self, rate: Rate) -> None:
        await self._database.write(lambda tx: tx.execute("DELETE FROM rates WHERE key = ?", (_key(rate),)).rowcount)

    async def ping(self) -> None:
        await self._database.ping("rates")


class SqliteContacts:
    """ContactStore on the embedded database. `window`, and `kept`, the lifetime of messages, in seconds.

    A state stays stored for one more window after its end, to distinguish an ended state from a lost one.
    """

    def __init__(self, database: Database, limit: int, window: float, kept: float) -> None:
        self._database = database
        self._limit = limit
        self._window = int(window * MICROSECONDS)
        self._kept = int(kept * MICROSECONDS)

    async def take(
        self, sender: str, receiver: str, id: str, now: int, rebuilt: ContactState | None = None
    ) -> Decision:
        return await self._database.write(lambda tx: self.take_in(tx, sender, receiver, now, rebuilt, id))

    def take_in(
        self,
        tx: sqlite3.Connection,
        sender: str,
        receiver: str,
        now: int,
        rebuilt: ContactState | None = None,
        id: str | None = None,
    ) -> Decision:
        """As `take`, inside a job; without `id` if the same job stores the message."""
        low, high = sorted((sender, receiver))
        row = tx.execute("SELECT state FROM strangers WHERE low = ? AND high = ?", (low, high)).fetchone()
        state = msgspec.msgpack.decode(row[0], type=ContactState) if row else rebuilt
        if state is None:
            return Decision(Permission.UNKNOWN)
        after, decision = decide(state, sender, now, self._limit, self._window, id, self._kept)
        if after != state or not row:
            self._put(tx, low, high, after)
        return decision

    async def allow(self, one: str, other: str, now: int) -> None:
        await self._database.write(lambda tx: self.allow_in(tx, one, other, now))

    def allow_in(self, tx: sqlite3.Connection, one: str, other: str, now: int) -> None:
        """As `allow`, inside a job."""
        self._put(tx, min(one, other), max(one, other), ContactState(until=now + self._window))

    async def forget(self, one: str, other: str) -> None:
        delete, pair = "DELETE FROM strangers WHERE low = ? AND high = ?", sorted((one, other))
        await self._database.write(lambda tx: tx.execute(delete, pair).rowcount)

    async def pages(self, count: int) -> AsyncIterator[list[ContactRecord]]:
        query = """SELECT low, high, state, expires FROM strangers
            WHERE (low, high) > (?, ?) ORDER BY low, high LIMIT ?"""
        after = ("", "")
        while page := [_to_record(row) for row in await self._database.fetch(query, (*after, count))]:
            after = (page[-1].one, page[-1].other)
            yield page

    async def peek(self, pairs: Sequence[tuple[str, str]]) -> list[ContactRecord]:
        def job(connection: sqlite3.Connection) -> list[ContactRecord]:
            query = "SELECT low, high, state, expires FROM strangers WHERE low = ? AND high = ?"
            rows = (connection.execute(query, pair).fetchone() for pair in pairs)
            return [_to_record(row) for row in rows if row]

        return await self._database.read(job)

    async def put(self, states: Sequence[ContactRecord]) -> None:
        insert = "INSERT OR REPLACE INTO strangers (low, high, state, expires) VALUES (?, ?, ?, ?)"
        rows = [(one.one, one.other, msgspec.msgpack.encode(one.state), one.expires) for one in states]
        await self._database.write(lambda tx: tx.executemany(insert, rows).rowcount)

    def _put(self, tx: sqlite3.Connection, low: str, high: str, state: ContactState) -> None:
        tx.execute(
            "INSERT OR REPLACE INTO strangers (low, high, state, expires) VALUES (?, ?, ?, ?)",
            (low, high, msgspec.msgpack.encode(state), state.expires(self._window)),
        )


async def sweep(database: Database, now: int) -> None:
    """Delete rows that expired before `now` (microseconds), SWEEP at a time."""
    for table, key in (("sessions", "digest"), ("rates", "key"), ("strangers", "low, high")):
        query = f"DELETE FROM {table} WHERE ({key}) IN (SELECT {key} FROM {table} WHERE expires <= ? LIMIT ?)"  # noqa: S608 - constants
        while await database.write(partial(_execute, query, (now, SWEEP))) == SWEEP:
            pass


def _execute(query: str, values: Sequence[object], tx: sqlite3.Connection) -> int:
    return tx.execute(query, values).rowcount


def _to_record(row: tuple[str, str, bytes, int]) -> ContactRecord:
    state = msgspec.msgpack.decode(row[2], type=ContactState)
    return ContactRecord(row[0], row[1], replace(state, tries={}), row[3])


def _key(rate: Rate) -> bytes:
    return msgspec.msgpack.encode(rate.key)
