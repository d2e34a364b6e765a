"""Users in MySQL or MariaDB."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiomysql
import pymysql
from pymysql.constants import ER

from chat_server.conf import MySQL as Config
from chat_server.model.users import State, User
from chat_server.utils.errors import Duplicate, StartError, StoreUnavailable
from chat_server.utils.meter import UNWATCHED, Watch
from chat_server.utils.tls import NotOfferedError, trouble

# Connections at most; a login needs one for a moment.
POOL = 8
# utf8mb4 with a binary collation: names are compared byte by byte, A is not a.
STEPS = (
    """CREATE TABLE chat_users (
        name VARCHAR(64) NOT NULL PRIMARY KEY,
        password VARBINARY(255) NOT NULL
    ) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin""",
    "ALTER TABLE chat_users ADD COLUMN state TINYINT NOT NULL DEFAULT 0",
)
# The collation is binary, but for spaces at the end: to it "a " is "a". The index is used all the same.
_NAMED = "WHERE name = %s AND CAST(name AS BINARY) = CAST(%s AS BINARY)"
_GET = f"SELECT name, password, state FROM chat_users {_NAMED}"  # noqa: S608 - all of it stands here
_LOCK = "chat_server schema"
# What the server says when it understood us and will say again: nothing to wait for.
_REFUSALS = {
    ER.ACCESS_DENIED_ERROR: "DbUser or DbPassWord is wrong",
    ER.DBACCESS_DENIED_ERROR: "DbUser may not use DbName",
    ER.BAD_DB_ERROR: "there is no database DbName: create it",
}


class MySQLUsers:
    """UserStore on MySQL. An operation takes `timeout` seconds at most, waiting for a connection included."""

    def __init__(self, pool: aiomysql.Pool, timeout: float, watch: Watch = UNWATCHED) -> None:
        self._pool = pool
        self._timeout = timeout
        self._watch = watch

    async def add(self, user: User) -> None:
        try:
            insert = "INSERT INTO chat_users (name, password, state) VALUES (%s, %s, %s)"
            await self._execute(insert, user.name, user.password, user.state.value)
        except pymysql.err.IntegrityError as error:
            if error.args[0] != ER.DUP_ENTRY:
                raise
            raise Duplicate(user.name) from error

    async def get(self, name: str) -> User | None:
        _, rows = await self._execute(_GET, name, name)
        return _user(rows[0]) if rows else None

    async def set_password(self, name: str, old: str, new: str) -> bool:
        update = f"UPDATE chat_users SET password = %s {_NAMED} AND password = %s"  # noqa: S608
        changed, _ = await self._execute(update, new, name, name, old)
        return changed > 0

    async def enabled(self, names: Sequence[str]) -> set[str]:
        if not names:
            return set()
        marks = ", ".join(["%s"] * len(names))
        query = f"SELECT name FROM chat_users WHERE name IN ({marks}) AND state = 0"  # noqa: S608
        _, rows = await self._execute(query, *names)
        return {name for (name,) in rows} & set(names)

    async def set_state(self, name: str, state: State) -> bool:
        await self._execute(f"UPDATE chat_users SET state = %s {_NAMED}", state.value, name, name)  # noqa: S608
        # MySQL counts the rows that it changed, not those that it found
        return await self.get(name) is not None

    async def remove(self, name: str) -> bool:
        changed, _ = await self._execute(f"DELETE FROM chat_users {_NAMED}", name, name)  # noqa: S608
        return changed > 0

    async def ping(self) -> None:
        await self._execute("SELECT 1")

    async def count(self) -> int:
        _, rows = await self._execute("SELECT count(*) FROM chat_users")
        return int(rows[0][0])

    async def pages(self, count: int) -> AsyncIterator[list[User]]:
        query = "SELECT name, password, state FROM chat_users WHERE name > %s ORDER BY name LIMIT %s"
        after = ""
        while page := [_user(row) for row in (await self._execute(query, after, count))[1]]:
            yield page
            after = page[-1].name

    async def put(self, users: Sequence[User]) -> None:
        rows = ", ".join(["(%s, %s, %s)"] * len(users))
        # Not INSERT IGNORE: that would ignore other errors too.
        insert = f"""INSERT INTO chat_users (name, password, state) VALUES {rows}
            ON DUPLICATE KEY UPDATE name = chat_users.name"""  # noqa: S608
        values = ((user.name, user.password, user.state.value) for user in users)
        await self._execute(insert, *(value for row in values for value in row))

    async def close(self) -> None:
        """Close all connections."""
        self._pool.terminate()
        await self._pool.wait_closed()

    async def _execute(self, query: str, *values: str | int) -> tuple[int, Sequence[tuple[Any, ...]]]:
        return await self._watch.timed(self._run(query, values))

    async def _run(self, query: str, values: Sequence[str | int]) -> tuple[int, Sequence[tuple[Any, ...]]]:
        """Run one statement in a transaction of its own: how many rows it changed, and those it found."""
        try:
            async with (
                asyncio.timeout(self._timeout),
                borrowed(self._pool) as connection,
                connection.cursor() as cursor,
            ):
                count = await cursor.execute(query, values)
                return count, await cursor.fetchall() if cursor.description else ()
        except TimeoutError as error:
            raise StoreUnavailable(f"MySQL did not answer within {self._timeout:g} s") from error
        except pymysql.err.IntegrityError:
            raise
        except (pymysql.err.MySQLError, OSError, RuntimeError) as error:
            # aiomysql raises RuntimeError where a connection ended while it was read
            raise StoreUnavailable(f"MySQL failed: {type(error).__name__} {_code(error)}") from error


def _user(row: tuple[str, bytes, int]) -> User:
    name, password, state = row
    return User(name, password.decode(), State(state))


async def connect(config: Config, timeout: float, watch: Watch = UNWATCHED, *, beside: bool = False) -> MySQLUsers:
    """The users of that database, its schema up to date; with `beside` an earlier one that a server may use is refused.

    Raises StoreUnavailable where it may help to wait, and StartError where it does not.
    """
    pool = make_pool(config)
    try:
        async with opening(config, timeout), borrowed(pool) as connection:
            await _prepare(connection, timeout, beside)
    except BaseException:
        pool.terminate()
        await pool.wait_closed()
        raise
    return MySQLUsers(pool, timeout, watch)


async def look(config: Config, timeout: float) -> str:
    """What --check says of it."""
    pool = make_pool(config)
    try:
        async with opening(config, timeout), borrowed(pool) as connection, connection.cursor() as cursor:
            await cursor.execute("SHOW TABLES LIKE 'chat_users'")
            known = await cursor.fetchone()
            return "answers, " + ("holds our users" if known else "empty yet, the first start makes it")
    finally:
        pool.terminate()
        await pool.wait_closed()


async def _prepare(connection: aiomysql.Connection, timeout: float, beside: bool) -> None:
    """Bring the schema up to date by the steps not recorded yet; a lock lets one process at a time do so."""
    async with connection.cursor() as cursor:
        await cursor.execute("SELECT GET_LOCK(%s, %s)", (_LOCK, timeout))
        if (await cursor.fetchone())[0] != 1:
            raise TimeoutError("another process holds the schema's lock")
        try:
            if not await cursor.execute("SHOW TABLES LIKE 'chat_schema'"):
                await cursor.execute("CREATE TABLE chat_schema (step INT NOT NULL PRIMARY KEY)")
            await cursor.execute("SELECT coalesce(max(step), 0) FROM chat_schema")
            [done] = await cursor.fetchone()
            if done > len(STEPS):
                raise StartError(
                    f"[mysql] the schema was made by a newer chat_server (step {done}, this one knows {len(STEPS)}); "
                    "run that one, or restore a backup"
                )
            if beside and 0 < done < len(STEPS):
                raise StartError("[mysql] the schema is that of an earlier chat_server; start this one first")
            for number, step in enumerate(STEPS[done:], done + 1):
                await cursor.execute(step)
                await cursor.execute("INSERT INTO chat_schema (step) VALUES (%s)", (number,))
        finally:
            await cursor.execute("SELECT RELEASE_LOCK(%s)", (_LOCK,))


def make_pool(config: Config) -> aiomysql.Pool:
    """A pool that waits for ever: each use of it has its own time."""
    return aiomysql.Pool(
        minsize=0,
        maxsize=POOL,
        echo=False,
        pool_recycle=-1,
        loop=asyncio.get_running_loop(),
        host=config.db_host,
        port=config.db_port,
        unix_socket=config.db_host if config.db_host.startswith("/") else None,
        user=config.db_user,
        password=config.db_password,
        db=config.db_name,
        charset="utf8mb4",
        autocommit=True,
        # aiomysql's own, by way of asyncio.wait_for, could swallow a cancellation of ours, and wait for ever.
        connect_timeout=None,
        ssl=_tls(config),
    )


@asynccontextmanager
async def opening(config: Config, timeout: float) -> AsyncIterator[None]:
    """Turns what goes wrong with the first connection into our errors."""
    where = config.db_host if config.db_host.startswith("/") else f"{config.db_host}:{config.db_port}"
    try:
        async with asyncio.timeout(timeout):
            yield
    except (pymysql.err.MySQLError, OSError, TimeoutError, RuntimeError) as error:
        if why := _REFUSALS.get(_code(error)):
            raise StartError(f"[mysql] {where}: {why}") from error
        if why := trouble(error):
            raise StartError(f"[mysql] {where}: no TLS ({why}); see DbTls and DbTlsCa") from error
        raise StoreUnavailable(f"MySQL at {where}: {type(error).__name__}") from error


@asynccontextmanager
async def borrowed(pool: aiomysql.Pool) -> AsyncIterator[aiomysql.Connection]:
    """A connection of the pool; one on which something went wrong is not used again."""
    connection = await pool.acquire()
    try:
        if connection._ssl_context and not connection._secure:
            raise NotOfferedError  # where the server does not offer TLS aiomysql goes on without it
        yield connection
    except BaseException as error:
        if not isinstance(error, pymysql.err.IntegrityError):
            connection.close()
        raise
    finally:
        pool.release(connection)


def _tls(config: Config) -> ssl.SSLContext | None:
    if config.db_tls == "off":
        return None
    try:
        context = ssl.create_default_context(cafile=config.db_tls_ca or None)
    except OSError as error:
        why = "it holds no certificate" if isinstance(error, ssl.SSLError) else error.strerror
        raise StartError(f"[mysql] DbTlsCa = {config.db_tls_ca}: {why}; name a file in PEM format") from error
    if config.db_tls == "unverified":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _code(error: BaseException) -> int:
    return error.args[0] if error.args and isinstance(error.args[0], int) else 0
