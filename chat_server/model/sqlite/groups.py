"""Groups in the embedded database."""

import sqlite3
from collections.abc import AsyncIterator, Iterable, Sequence

import msgspec

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
from chat_server.model.users import State
from chat_server.utils.errors import Duplicate
from chat_server.utils.sqlite import Database, to_json

_INSERT = "INSERT INTO groups (number, name, owner) VALUES (?, ?, ?)"
_JOIN = "INSERT INTO members (number, user, since) VALUES (?, ?, ?)"
_SELECT = """SELECT number, name, owner,
    (SELECT json_group_object(user, since) FROM members WHERE members.number = groups.number)
    FROM groups WHERE name IS NOT NULL AND """
_PRESENT = "SELECT name FROM users WHERE name IN (SELECT value FROM json_each(?)) AND state != ?"
_BLOCKING = "SELECT user FROM blocks WHERE user IN (SELECT value FROM json_each(?)) AND blocked = ?"
_MEMBERSHIPS = "SELECT user, count(*) FROM members WHERE user IN (SELECT value FROM json_each(?)) GROUP BY user"


class SqliteGroups:
    """GroupStore on the embedded database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def newest(self) -> int:
        [[newest]] = await self._database.fetch("SELECT max(since) FROM members", ())
        return newest or 0

    async def create(
        self, number: int, name: str, owner: str, users: Sequence[str], limits: GroupLimits
    ) -> Group | GroupRefusal:
        joining = list(dict.fromkeys((owner, *users)))

        def job(tx: sqlite3.Connection) -> Group | GroupRefusal:
            if tx.execute("SELECT 1 FROM groups WHERE number = ?", (number,)).fetchone():
                raise Duplicate(str(number))
            if tx.execute("SELECT 1 FROM groups WHERE name = ?", (name,)).fetchone():
                return GroupRefusal(GroupProblem.GROUP_EXISTS)
            if refusal := _check(tx, owner, 0, joining, limits):
                return refusal
            group = Group(number, name, owner, dict.fromkeys(joining, number))
            _insert(tx, [group])
            return group

        return await self._database.write(job)

    async def add(
        self, number: int, by: str, users: Sequence[str], since: int, limits: GroupLimits
    ) -> Group | GroupRefusal:
        def job(tx: sqlite3.Connection) -> Group | GroupRefusal:
            group = _load(tx, number)
            if group is None or by not in group.members:
                return GroupRefusal(GroupProblem.NO_SUCH_GROUP)
            joining = [user for user in dict.fromkeys(users) if user not in group.members]
            if not joining:
                return group
            if refusal := _check(tx, by, len(group.members), joining, limits):
                return refusal
            tx.executemany(_JOIN, [(number, user, since) for user in joining])
            return add_members(group, joining, since)

        return await self._database.write(job)

    async def remove(self, number: int, by: str, user: str) -> Group | GroupRefusal:
        return await self._remove(number, lambda group: remove_member(group, by, user))

    async def delete(self, number: int, by: str) -> Group | GroupRefusal:
        return await self._remove(number, lambda group: remove_all_members(group, by))

    async def find(self, name: str) -> Group | None:
        found = await self._database.fetch(f"{_SELECT} name = ?", (name,))
        return _to_group(found[0]) if found else None

    async def get(self, numbers: Sequence[int]) -> list[Group]:
        query = f"{_SELECT} number IN (SELECT value FROM json_each(?))"  # noqa: S608 - constants only
        return [_to_group(row) for row in await self._database.fetch(query, (to_json(numbers),))]

    async def numbers_of(self, user: str) -> list[int]:
        found = await self._database.fetch("SELECT number FROM members WHERE user = ? ORDER BY number", (user,))
        return [number for (number,) in found]

    async def deleted(self, after: int, count: int) -> list[int]:
        query = "SELECT number FROM groups WHERE name IS NULL AND number > ? ORDER BY number LIMIT ?"
        found = await self._database.fetch(query, (after, count))
        return [number for (number,) in found]

    async def forget(self, number: int) -> None:
        delete = "DELETE FROM groups WHERE number = ? AND name IS NULL"
        await self._database.write(lambda tx: tx.execute(delete, (number,)).rowcount)

    async def pages(self, count: int) -> AsyncIterator[list[Group]]:
        query = f"{_SELECT} number > ? ORDER BY number LIMIT ?"
        after = 0
        while page := [_to_group(row) for row in await self._database.fetch(query, (after, count))]:
            yield page
            after = page[-1].number

    async def put(self, groups: Sequence[Group]) -> None:
        def job(tx: sqlite3.Connection) -> None:
            query = "SELECT number FROM groups WHERE number IN (SELECT value FROM json_each(?))"
            used = {number for (number,) in tx.execute(query, (to_json([group.number for group in groups]),))}
            try:
                _insert(tx, [group for group in groups if group.number not in used])
            except sqlite3.IntegrityError as error:
                raise Duplicate("the name of a group") from error

        await self._database.write(job)

    async def _remove(self, number: int, removal: Removal) -> Group | GroupRefusal:
        """Delete the members that the group has lost after `removal`, and the group's name with the last of them."""

        def job(tx: sqlite3.Connection) -> Group | GroupRefusal:
            group = _load(tx, number)
            result = removal(group)
            if group and isinstance(result, Group):
                removed = [(number, user) for user in group.members if user not in result.members]
                tx.executemany("DELETE FROM members WHERE number = ? AND user = ?", removed)
                name = result.name if result.members else None
                tx.execute("UPDATE groups SET name = ?, owner = ? WHERE number = ?", (name, result.owner, number))
            return result

        return await self._database.write(job)


def _check(
    tx: sqlite3.Connection, by: str, members: int, joining: Sequence[str], limits: GroupLimits
) -> GroupRefusal | None:
    """Return a refusal if `by` cannot add the users to a group of `members` members."""
    if refusal := check_size(members, joining, limits):
        return refusal
    users = to_json(joining)
    present = tx.execute(_PRESENT, (to_json((by, *joining)), State.REMOVED))
    blocking = tx.execute(_BLOCKING, (users, by))
    memberships = dict(tx.execute(_MEMBERSHIPS, (users,)))
    facts = JoinFacts({name for (name,) in present}, {name for (name,) in blocking}, memberships)
    return check_joining(by, joining, facts, limits)


def _insert(tx: sqlite3.Connection, groups: Iterable[Group]) -> None:
    for group in groups:
        tx.execute(_INSERT, (group.number, group.name, group.owner))
        tx.executemany(_JOIN, [(group.number, user, since) for user, since in group.members.items()])


def _load(tx: sqlite3.Connection, number: int) -> Group | None:
    row = tx.execute(f"{_SELECT} number = ?", (number,)).fetchone()
    return _to_group(row) if row else None


def _to_group(row: tuple[int, str, str, str]) -> Group:
    number, name, owner, members = row
    return Group(number, name, owner, msgspec.json.decode(members))
