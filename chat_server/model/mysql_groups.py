"""Groups in MySQL or MariaDB."""

from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import aiomysql
import pymysql
from pymysql.constants import ER

from chat_server.model.group_rules import (
    JoinFacts,
    Removal,
    add_members,
    check_joining,
    check_size,
    remove_all_members,
    remove_member,
)
from chat_server.model.groups import Group, GroupLimits, GroupProblem, GroupRefusal
from chat_server.model.mysql_blocks import Rows, Run
from chat_server.model.users import State
from chat_server.utils.errors import Duplicate

T = TypeVar("T")

# A transaction that the server ends because of a deadlock runs again, at most this many times in all. So does one that
# finds a number or a name taken between its check and its insertion: its next check reports it.
ATTEMPTS = 5
_REPEATED = (ER.LOCK_DEADLOCK, ER.DUP_ENTRY)
# Groups that one statement reads: parsing the rows of 200 members each must not delay the event loop.
_CHUNK = 8

# Locks are taken in one order: users by primary key, then the group. So two changes do not wait for each other, nor
# does a change wait for a block, which locks users too. Only locking reads precede the last lock: the first other read
# fixes the state of the database that the transaction sees.
_LOCK_USERS = "SELECT name FROM chat_users WHERE name IN ({}) AND state != %s ORDER BY name FOR UPDATE"
_LOCK_GROUP = "SELECT name, owner FROM chat_groups WHERE number = %s AND name IS NOT NULL FOR UPDATE"
_SELECT = "SELECT g.number, name, owner, user, since FROM chat_groups g JOIN chat_members m ON m.number = g.number "
_INSERT = "INSERT INTO chat_groups (number, name, owner) VALUES (%s, %s, %s)"
_NUMBERS = "SELECT number FROM chat_groups WHERE number > %s AND name IS NOT NULL ORDER BY number LIMIT %s"


class MySQLGroups:
    """GroupStore on MySQL; `execute` runs one statement, `run` a transaction."""

    def __init__(self, execute: Callable[..., Awaitable[Rows]], run: Run) -> None:
        self._execute = execute
        self._run = run

    async def newest(self) -> int:
        _, rows = await self._execute("SELECT max(since) FROM chat_members")
        return rows[0][0] or 0

    async def create(
        self, number: int, name: str, owner: str, users: Sequence[str], limits: GroupLimits
    ) -> Group | GroupRefusal:
        joining = list(dict.fromkeys((owner, *users)))

        async def change(cursor: aiomysql.Cursor) -> Group | GroupRefusal:
            present = await _lock_users(cursor, joining[: limits.members])
            if await cursor.execute("SELECT 1 FROM chat_groups WHERE number = %s", (number,)):
                raise Duplicate(str(number))
            if await cursor.execute("SELECT 1 FROM chat_groups WHERE name = %s", (name,)):
                return GroupRefusal(GroupProblem.GROUP_EXISTS)
            if refusal := await _check(cursor, owner, 0, joining, present, limits):
                return refusal
            group = Group(number, name, owner, dict.fromkeys(joining, number))
            await _insert(cursor, group)
            return group

        return await self._transaction(change)

    async def add(
        self, number: int, by: str, users: Sequence[str], since: int, limits: GroupLimits
    ) -> Group | GroupRefusal:
        named = list(dict.fromkeys(users))

        async def change(cursor: aiomysql.Cursor) -> Group | GroupRefusal:
            # More users than the limit either do not fit or are members already, so their rows are not needed.
            present = await _lock_users(cursor, [by, *named[: limits.members]])
            group = await _lock_group(cursor, number)
            if group is None or by not in group.members:
                return GroupRefusal(GroupProblem.NO_SUCH_GROUP)
            joining = [user for user in named if user not in group.members]
            if not joining:
                return group
            if refusal := await _check(cursor, by, len(group.members), joining, present, limits):
                return refusal
            await _join(cursor, number, dict.fromkeys(joining, since))
            return add_members(group, joining, since)

        return await self._transaction(change)

    async def remove(self, number: int, by: str, user: str) -> Group | GroupRefusal:
        return await self._remove(number, lambda group: remove_member(group, by, user))

    async def delete(self, number: int, by: str) -> Group | GroupRefusal:
        return await self._remove(number, lambda group: remove_all_members(group, by))

    async def find(self, name: str) -> Group | None:
        _, rows = await self._execute(f"{_SELECT} WHERE name = %s", name)
        groups = _to_groups(rows)
        return groups[0] if groups else None

    async def get(self, numbers: Sequence[int]) -> list[Group]:
        groups: list[Group] = []
        for start in range(0, len(numbers), _CHUNK):
            chunk = numbers[start : start + _CHUNK]
            query = f"{_SELECT} WHERE g.number IN ({_marks(chunk)}) ORDER BY g.number"
            groups += _to_groups((await self._execute(query, *chunk))[1])
        return groups

    async def numbers_of(self, user: str) -> list[int]:
        _, rows = await self._execute("SELECT number FROM chat_members WHERE user = %s ORDER BY number", user)
        return [number for (number,) in rows]

    async def deleted(self, after: int, count: int) -> list[int]:
        query = "SELECT number FROM chat_groups WHERE name IS NULL AND number > %s ORDER BY number LIMIT %s"
        _, rows = await self._execute(query, after, count)
        return [number for (number,) in rows]

    async def forget(self, number: int) -> None:
        await self._execute("DELETE FROM chat_groups WHERE number = %s AND name IS NULL", number)

    async def pages(self, count: int) -> AsyncIterator[list[Group]]:
        after = 0
        while numbers := [number for (number,) in (await self._execute(_NUMBERS, after, count))[1]]:
            yield await self.get(numbers)
            after = numbers[-1]

    async def put(self, groups: Sequence[Group]) -> None:
        async def change(cursor: aiomysql.Cursor) -> None:
            for group in groups:
                if await cursor.execute("SELECT 1 FROM chat_groups WHERE number = %s", (group.number,)):
                    continue
                if await cursor.execute("SELECT 1 FROM chat_groups WHERE name = %s", (group.name,)):
                    raise Duplicate(group.name)
                await _insert(cursor, group)

        await self._transaction(change)

    async def _remove(self, number: int, removal: Removal) -> Group | GroupRefusal:
        """Delete the members that the group has lost after `removal`, and the group's name with the last of them."""

        async def change(cursor: aiomysql.Cursor) -> Group | GroupRefusal:
            group = await _lock_group(cursor, number)
            result = removal(group)
            if group and isinstance(result, Group):
                name = result.name if result.members else None
                update = "UPDATE chat_groups SET name = %s, owner = %s WHERE number = %s"
                await cursor.execute(update, (name, result.owner, number))
                removed = [user for user in group.members if user not in result.members]
                delete = f"DELETE FROM chat_members WHERE number = %s AND user IN ({_marks(removed)})"  # noqa: S608
                await cursor.execute(delete, (number, *removed))
            return result

        return await self._transaction(change)

    async def _transaction(self, change: Callable[[aiomysql.Cursor], Awaitable[T]]) -> T:
        """Run `change` in a transaction, again if the server ends it because of another one."""

        async def work(connection: aiomysql.Connection) -> T:
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    await connection.begin()
                    async with connection.cursor() as cursor:
                        result = await change(cursor)
                    await connection.commit()
                except pymysql.err.MySQLError as error:
                    if error.args[0] not in _REPEATED or attempt == ATTEMPTS:
                        raise
                    await connection.rollback()
                else:
                    return result
            raise AssertionError("unreachable")

        return await self._run(work)


async def _lock_users(cursor: aiomysql.Cursor, names: Sequence[str]) -> set[str]:
    """Lock the rows of users until the end of the transaction. Returns those that exist and are not removed."""
    await cursor.execute(_LOCK_USERS.format(_marks(names)), (*names, State.REMOVED.value))
    return {name for (name,) in await cursor.fetchall()}


async def _lock_group(cursor: aiomysql.Cursor, number: int) -> Group | None:
    """Lock a group until the end of the transaction, and return it."""
    if not await cursor.execute(_LOCK_GROUP, (number,)):
        return None
    name, owner = await cursor.fetchone()
    await cursor.execute("SELECT user, since FROM chat_members WHERE number = %s", (number,))
    members = {user.decode(): since for user, since in await cursor.fetchall()}
    return Group(number, name.decode(), owner.decode(), members)


async def _check(
    cursor: aiomysql.Cursor,
    by: str,
    members: int,
    joining: Sequence[str],
    present: set[str],
    limits: GroupLimits,
) -> GroupRefusal | None:
    """Return a refusal if `by` cannot add the users, some of them `present`, to a group of `members` members."""
    if refusal := check_size(members, joining, limits):
        return refusal
    marks = _marks(joining)
    blocks = f"SELECT user FROM chat_blocks WHERE blocked = %s AND user IN ({marks})"  # noqa: S608
    await cursor.execute(blocks, (by, *joining))
    blocking = {user.decode() for (user,) in await cursor.fetchall()}
    await cursor.execute(
        f"SELECT user, count(*) FROM chat_members WHERE user IN ({marks}) GROUP BY user",  # noqa: S608
        tuple(joining),
    )
    memberships = {user.decode(): count for user, count in await cursor.fetchall()}
    return check_joining(by, joining, JoinFacts(present, blocking, memberships), limits)


async def _insert(cursor: aiomysql.Cursor, group: Group) -> None:
    await cursor.execute(_INSERT, (group.number, group.name, group.owner))
    await _join(cursor, group.number, group.members)


async def _join(cursor: aiomysql.Cursor, number: int, members: Mapping[str, int]) -> None:
    rows = ", ".join(["(%s, %s, %s)"] * len(members))
    values = [value for user, since in members.items() for value in (number, user, since)]
    await cursor.execute(f"INSERT INTO chat_members (number, user, since) VALUES {rows}", values)  # noqa: S608


def _marks(values: Sequence[object]) -> str:
    return ", ".join(["%s"] * len(values))


def _to_groups(rows: Iterable[Sequence[Any]]) -> list[Group]:
    """Convert rows of _SELECT, one per member, to groups."""
    groups: dict[int, Group] = {}
    members: dict[int, dict[str, int]] = defaultdict(dict)
    for number, name, owner, user, since in rows:
        members[number][user.decode()] = since
        if number not in groups:
            groups[number] = Group(number, name.decode(), owner.decode(), members[number])
    return list(groups.values())
