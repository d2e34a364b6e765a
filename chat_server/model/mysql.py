"""Users in MySQL or MariaDB."""

import asyncio
import re
import secrets
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

import aiomysql
import pymysql
from pymysql.constants import ER

from chat_server.conf import MySQLSettings
from chat_server.model.mysql_blocks import MySQLBlocks, Rows
from chat_server.model.mysql_groups import MySQLGroups
from chat_server.model.mysql_schema import PROBE, SCHEMA_PROBE, STEPS, applied_steps, upgrade
from chat_server.model.users import State, User
from chat_server.utils.errors import Duplicate, StartError, StoreMisconfigured, StoreUnavailable, cause
from chat_server.utils.metrics import NO_STORE_METRICS, StoreMetrics
from chat_server.utils.tls import NotOfferedError, permanent_tls_error

T = TypeVar("T")

# Connections at most. A login uses one for a moment.
POOL = 8
# The collation ignores trailing spaces: "a " equals "a". So the bytes are compared as well; the index is still used.
_BY_NAME = "WHERE name = %s AND CAST(name AS BINARY) = CAST(%s AS BINARY)"
_GET = f"SELECT name, password, state FROM chat_users {_BY_NAME}"  # noqa: S608 - constants only
# Error codes that the server will return again until an operator changes something.
_MISTAKES = {
    ER.ACCESS_DENIED_ERROR: "DbUser or DbPassWord is wrong",
    1698: "DbUser or DbPassWord is wrong",  # for an account without a password
    ER.HOST_NOT_PRIVILEGED: "no account may log in from this host",
    ER.DBACCESS_DENIED_ERROR: "DbUser may not use DbName",
    ER.BAD_DB_ERROR: "there is no database DbName: create it",
    ER.NO_SUCH_TABLE: "a table is missing in DbName: restore it from a backup",
    ER.BAD_FIELD_ERROR: "a column is missing in DbName: restore it from a backup",
}
# Their text begins with the missing right: "INSERT command denied to user ...".
_DENIED = (ER.TABLEACCESS_DENIED_ERROR, ER.COLUMNACCESS_DENIED_ERROR)
# Error codes of a server that became a replica. https://github.com/go-sql-driver/mysql drops connections on the same.
_READ_ONLY = (ER.OPTION_PREVENTS_STATEMENT, 1792, 1836)
_REFUSALS = dict.fromkeys(_READ_ONLY, "it is read-only") | {
    ER.DISK_FULL: "its disk is full",
    ER.RECORD_FILE_FULL: "its disk is full",
    ER.CON_COUNT_ERROR: "it has too many connections (max_connections)",
    ER.LOCK_WAIT_TIMEOUT: "no answer in time",
}


class MySQLUsers:
    """UserStore on MySQL. `timeout` in seconds bounds each operation, including the wait for a connection.

    `name` identifies the server in errors.
    """

    def __init__(self, pool: aiomysql.Pool, name: str, timeout: float, watch: StoreMetrics = NO_STORE_METRICS) -> None:
        self._pool = pool
        self._name = name
        self._timeout = timeout
        self._watch = watch
        self.blocks = MySQLBlocks(self._execute, self._run)
        self.groups = MySQLGroups(self._execute, self._run)

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
        update = f"UPDATE chat_users SET password = %s {_BY_NAME} AND password = %s"  # noqa: S608
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
        await self._execute(f"UPDATE chat_users SET state = %s {_BY_NAME}", state.value, name, name)  # noqa: S608
        # MySQL counts only rows that the statement changed, so an unchanged state would look like an unknown user.
        return await self.get(name) is not None

    async def remove(self, name: str) -> bool:
        changed, _ = await self._execute(f"DELETE FROM chat_users {_BY_NAME}", name, name)  # noqa: S608
        return changed > 0

    async def ping(self) -> None:
        await self._watch.time_call(self._borrow(lambda connection: _probe_writes(connection, commit=True)))

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
        # INSERT IGNORE would ignore other errors too.
        insert = f"""INSERT INTO chat_users (name, password, state) VALUES {rows}
            ON DUPLICATE KEY UPDATE name = chat_users.name"""  # noqa: S608
        values = ((user.name, user.password, user.state.value) for user in users)
        await self._execute(insert, *(value for row in values for value in row))

    async def close(self) -> None:
        """Close all connections."""
        await close_pool(self._pool)

    async def _execute(self, query: str, *values: str | int) -> Rows:
        """Run one statement in its own transaction."""

        async def work(connection: aiomysql.Connection) -> Rows:
            async with connection.cursor() as cursor:
                count = await cursor.execute(query, values)
                return count, await cursor.fetchall() if cursor.description else ()

        return await self._run(work)

    async def _run(self, work: Callable[[aiomysql.Connection], Awaitable[T]]) -> T:
        return await self._watch.time_call(self._borrow(work))

    async def _borrow(self, work: Callable[[aiomysql.Connection], Awaitable[T]]) -> T:
        """Run `work` on a connection and translate the driver's errors."""
        try:
            async with asyncio.timeout(self._timeout), borrowed(self._pool) as connection:
                return await work(connection)
        except pymysql.err.IntegrityError:
            raise
        except (pymysql.err.MySQLError, OSError, RuntimeError) as error:
            if _code(error) in _READ_ONLY:
                await self._drop_connections()
            raise _failure(self._name, error) from error

    async def _drop_connections(self) -> None:
        """Close idle connections: after a failover, the next call resolves the name again and finds the primary."""
        with suppress(OSError):  # TimeoutError is an OSError
            async with asyncio.timeout(self._timeout):
                await self._pool.clear()


def _user(row: tuple[str, bytes, int]) -> User:
    name, password, state = row
    return User(name, password.decode(), State(state))


async def connect(
    config: MySQLSettings, timeout: float, watch: StoreMetrics = NO_STORE_METRICS, *, alongside: bool = False
) -> MySQLUsers:
    """Open the user store of a database and upgrade its schema; `timeout` in seconds.

    With `alongside`, a server may be running: an earlier schema is then refused instead of upgraded.
    Raises StoreUnavailable if waiting may help, StartError and StoreMisconfigured if it does not.
    """
    pool = make_pool(config)
    try:
        async with opening(config, timeout), borrowed(pool) as connection:
            await upgrade(connection, timeout, alongside)
            if not alongside:
                await _probe_writes(connection)
    except BaseException:
        await close_pool(pool)
        raise
    return MySQLUsers(pool, address(config), timeout, watch)


async def probe(config: MySQLSettings, timeout: float) -> str:
    """Try what a start and the server's work need, and return a sentence for --check. Raises as `connect`."""
    pool = make_pool(config)
    try:
        async with opening(config, timeout), borrowed(pool) as connection:
            done = await applied_steps(connection)
            if done < len(STEPS):
                await _try(connection, SCHEMA_PROBE, {}, passes=(ER.NO_SUCH_TABLE,))
            missing = (ER.NO_SUCH_TABLE, ER.BAD_FIELD_ERROR) if done < len(STEPS) else ()
            await _probe_writes(connection, passes=missing)
            if done == len(STEPS):
                return "answers, holds our users"
            return "answers, " + (
                "the next start brings it up to date" if done else "empty yet, the first start makes it"
            )
    finally:
        await close_pool(pool)


async def _probe_writes(connection: aiomysql.Connection, *, commit: bool = False, passes: Sequence[int] = ()) -> None:
    """Add, read, change and delete a user, a block and a group with impossible names, in one transaction.

    `commit` also proves that a transaction can become durable: on a full disk, only the commit fails.
    Errors with the codes `passes` are expected.
    """
    await connection.begin()
    impossible = {"name": f"/{secrets.token_hex(8)}", "number": -secrets.randbits(62)}
    await _try(connection, PROBE, impossible, passes)
    await (connection.commit() if commit else connection.rollback())


async def _try(
    connection: aiomysql.Connection, statements: Sequence[str], values: dict[str, object], passes: Sequence[int]
) -> None:
    """Execute the statements. Errors with the codes `passes` are expected."""
    async with connection.cursor() as cursor:
        for statement in statements:
            try:
                await cursor.execute(statement, values)
            except pymysql.err.MySQLError as error:
                if _code(error) not in passes:
                    raise


def make_pool(config: MySQLSettings) -> aiomysql.Pool:
    """Create a pool of connections. It has no timeout; each use of it sets its own."""
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
        # The driver encodes the password as Latin-1, but the clients that create accounts use UTF-8.
        password=config.db_password.encode().decode("latin-1"),
        db=config.db_name,
        charset="utf8mb4",
        autocommit=True,
        # aiomysql would use asyncio.wait_for, which can swallow a cancellation and then wait forever.
        connect_timeout=None,
        ssl=_tls(config),
    )


async def close_pool(pool: aiomysql.Pool) -> None:
    """Close all connections of a pool at once.

    Over TLS, the driver alone leaves each of them open until the server answers, and does not wait for that.
    """
    connections = [*pool._free, *pool._used]
    transports = [connection._writer.transport for connection in connections if connection._writer]
    pool.terminate()
    for connection in connections:  # `pool.wait_closed` would wait forever if one that is being opened breaks
        connection.close()
    for transport in transports:
        transport.abort()
    await asyncio.sleep(0)  # the event loop closes the sockets in its next iteration


@asynccontextmanager
async def opening(config: MySQLSettings, timeout: float) -> AsyncIterator[None]:
    """Translate the errors of the first connection; `timeout` in seconds."""
    try:
        async with asyncio.timeout(timeout):
            yield
    except (pymysql.err.MySQLError, OSError, RuntimeError) as error:
        raise _failure(address(config), error) from error


@asynccontextmanager
async def borrowed(pool: aiomysql.Pool) -> AsyncIterator[aiomysql.Connection]:
    """Borrow a connection from the pool. After an error it is closed."""
    connection = await pool.acquire()
    try:
        if connection._ssl_context and not connection._secure:
            raise NotOfferedError  # if the server does not offer TLS, aiomysql continues without it
        yield connection
    except BaseException as error:
        if not isinstance(error, pymysql.err.IntegrityError):
            connection.close()
        raise
    finally:
        pool.release(connection)


def _tls(config: MySQLSettings) -> ssl.SSLContext | None:
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


def address(config: MySQLSettings) -> str:
    """Return MySQL's address for people."""
    return f"MySQL at {config.db_host}" + ("" if config.db_host.startswith("/") else f":{config.db_port}")


def _failure(name: str, error: BaseException) -> StoreUnavailable:
    """Translate an error of the driver. aiomysql raises RuntimeError if a connection ends while it is read."""
    code = _code(error)
    if code in _DENIED and (denied := re.match(r"[A-Z]+", str(error.args[1]))):
        return StoreMisconfigured(f"{name}: DbUser lacks the right {denied[0]} on DbName")
    if mistake := _MISTAKES.get(code):
        return StoreMisconfigured(f"{name}: {mistake}")
    if why := permanent_tls_error(error):
        return StoreMisconfigured(f"{name}: no TLS ({why}); see DbTls and DbTlsCa")
    return StoreUnavailable(f"{name}: {_REFUSALS.get(code) or cause(error)}{f' (error {code})' if code else ''}")


def _code(error: BaseException) -> int:
    return error.args[0] if error.args and isinstance(error.args[0], int) else 0
