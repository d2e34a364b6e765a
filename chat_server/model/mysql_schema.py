"""The schema of users in MySQL or MariaDB: its steps, and the statements that prove the rights of an account."""

import aiomysql

from chat_server.utils.errors import StartError

_SCHEMA_LOCK = "chat_server schema"
# utf8mb4_bin compares names byte by byte: A is not a.
STEPS = (
    """CREATE TABLE chat_users (
        name VARCHAR(64) NOT NULL PRIMARY KEY,
        password VARBINARY(255) NOT NULL
    ) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin""",
    "ALTER TABLE chat_users ADD COLUMN state TINYINT NOT NULL DEFAULT 0",
    """CREATE TABLE IF NOT EXISTS chat_blocks (
        user VARBINARY(256) NOT NULL,
        blocked VARBINARY(256) NOT NULL,
        PRIMARY KEY (user, blocked),
        KEY chat_blocks_by_blocked (blocked)
    ) ENGINE=InnoDB""",  # UTF-8, compared byte by byte: a collation would ignore spaces at the end
    """CREATE TABLE IF NOT EXISTS chat_groups (
        number BIGINT NOT NULL PRIMARY KEY,
        name VARBINARY(256) NULL UNIQUE,
        owner VARBINARY(256) NOT NULL
    ) ENGINE=InnoDB""",  # UTF-8; the name is NULL once the group is deleted
    """CREATE TABLE IF NOT EXISTS chat_members (
        number BIGINT NOT NULL,
        user VARBINARY(256) NOT NULL,
        since BIGINT NOT NULL,
        PRIMARY KEY (number, user),
        KEY chat_members_by_user (user),
        KEY chat_members_by_since (since)
    ) ENGINE=InnoDB""",  # of the groups that are not deleted
)
# Every kind of statement that the server executes on users, blocks and groups. No user name contains a slash, and no
# number of a group is negative.
PROBE = (
    "INSERT INTO chat_users (name, password, state) VALUES (%(name)s, '', 0)",
    "SELECT name, password, state FROM chat_users WHERE name = %(name)s",
    "UPDATE chat_users SET state = 1 WHERE name = %(name)s",
    "DELETE FROM chat_users WHERE name = %(name)s",
    "INSERT INTO chat_blocks (user, blocked) VALUES (%(name)s, %(name)s)",
    "SELECT user, blocked FROM chat_blocks WHERE user = %(name)s",
    "DELETE FROM chat_blocks WHERE user = %(name)s",
    "INSERT INTO chat_groups (number, name, owner) VALUES (%(number)s, %(name)s, %(name)s)",
    "INSERT INTO chat_members (number, user, since) VALUES (%(number)s, %(name)s, 0)",
    "SELECT name, owner FROM chat_groups WHERE number = %(number)s FOR UPDATE",
    "SELECT number, user, since FROM chat_members WHERE number = %(number)s AND user = %(name)s",
    "UPDATE chat_groups SET name = NULL WHERE number = %(number)s",
    "DELETE FROM chat_members WHERE number = %(number)s AND user = %(name)s",
    "DELETE FROM chat_groups WHERE number = %(number)s",
)
# They always fail; the error shows whether the account has the rights.
SCHEMA_PROBE = ("CREATE TABLE chat_probe LIKE chat_nothing", "ALTER TABLE chat_nothing ADD COLUMN nothing INT")


async def applied_steps(connection: aiomysql.Connection) -> int:
    """Return how many steps of the schema were applied. Raises StartError if a later version made the schema."""
    async with connection.cursor() as cursor:
        if not await cursor.execute("SHOW TABLES LIKE 'chat_schema'"):
            return 0
        await cursor.execute("SELECT coalesce(max(step), 0) FROM chat_schema")
        [done] = await cursor.fetchone()
    if done > len(STEPS):
        raise StartError(
            f"[mysql] the schema was made by a newer chat_server (step {done}, this one knows {len(STEPS)}); "
            "run the newer one, or restore a backup"
        )
    return int(done)


async def upgrade(connection: aiomysql.Connection, timeout: float, alongside: bool) -> None:
    """Apply the missing steps of the schema. A lock lets one process at a time do so."""
    async with connection.cursor() as cursor:
        await cursor.execute("SELECT GET_LOCK(%s, %s)", (_SCHEMA_LOCK, timeout))
        if (await cursor.fetchone())[0] != 1:
            raise TimeoutError("another process holds the schema's lock")
        try:
            done = await applied_steps(connection)
            if not done:
                await cursor.execute("CREATE TABLE IF NOT EXISTS chat_schema (step INT NOT NULL PRIMARY KEY)")
            if alongside and 0 < done < len(STEPS):
                raise StartError("[mysql] the schema is that of an earlier chat_server; start this one first")
            for number, step in enumerate(STEPS[done:], done + 1):
                await cursor.execute(step)
                await cursor.execute("INSERT INTO chat_schema (step) VALUES (%s)", (number,))
        finally:
            if not connection.closed:  # a lock ends with its connection
                await cursor.execute("SELECT RELEASE_LOCK(%s)", (_SCHEMA_LOCK,))
