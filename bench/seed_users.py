"""Create users, sessions and groups by the thousand directly in the database, without hashing passwords."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from chat_server.backends import SCHEMAS
from chat_server.cache.sessions import SessionRecord
from chat_server.cache.sqlite import SqliteSessions
from chat_server.model.groups import PAGE, Group
from chat_server.model.sqlite import SqliteUsers
from chat_server.model.users import User
from chat_server.utils.clock import MICROSECONDS, Clock, Timeline
from chat_server.utils.sqlite import Database

DAY = 86400  # seconds


def seed_users(data_dir: Path, names: Iterable[str]) -> dict[str, str]:
    """Create users with a session each in the data folder of a stopped server; return their tokens by name."""
    tokens = {name: secrets.token_urlsafe(16) for name in names}
    asyncio.run(_seed(data_dir, tokens))
    return tokens


async def _seed(data_dir: Path, tokens: dict[str, str]) -> None:
    database, clock = Database(data_dir, timeout=60), Clock()
    await database.open(SCHEMAS)
    try:
        expires = clock.now() + 30 * DAY * MICROSECONDS
        sessions = [
            SessionRecord(hashlib.sha256(token.encode()).digest(), name, expires) for name, token in tokens.items()
        ]
        await SqliteUsers(database).put([User(name, "not a hash: no password matches") for name in tokens])
        await SqliteSessions(database, 30 * DAY, clock).put(sessions)
    finally:
        await database.close()


def seed_groups(data_dir: Path, groups: Mapping[str, Sequence[str]]) -> list[Group]:
    """Create groups (name -> members, the owner first) in the data folder of a stopped server, and return them."""
    numbers = Timeline(Clock()).take(len(groups))
    seeded = [
        Group(number, name, members[0], dict.fromkeys(members, number))
        for number, (name, members) in zip(numbers, groups.items(), strict=True)
    ]
    asyncio.run(_seed_groups(data_dir, seeded))
    return seeded


async def _seed_groups(data_dir: Path, groups: Sequence[Group]) -> None:
    database = Database(data_dir, timeout=60)
    await database.open(SCHEMAS)
    try:
        for start in range(0, len(groups), PAGE):
            await SqliteUsers(database).groups.put(groups[start : start + PAGE])
    finally:
        await database.close()
