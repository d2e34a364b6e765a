"""Exports all stored data of one user as JSON lines. Times are in milliseconds since the epoch, as on the wire."""

from collections.abc import AsyncIterator
from typing import Any, BinaryIO

import msgspec

from chat_server.backends import ExportableStores
from chat_server.migrate.record_pages import MAX_TIME, PAGE_SIZE, read_pages
from chat_server.model.groups import PAGE, Group
from chat_server.model.messages import GroupKey, Pair, Record
from chat_server.model.users import User

Line = dict[str, Any]


async def export(stores: ExportableStores, user: User, out: BinaryIO) -> None:
    """Write the data of `user` to `out`, a page at a time. Raises StoreUnavailable."""
    async for line in _lines(stores, user):
        out.write(msgspec.json.encode(line) + b"\n")
    out.flush()


async def _lines(stores: ExportableStores, user: User) -> AsyncIterator[Line]:
    yield {"kind": "user", "name": user.name, "state": user.state.name.lower(), "password_hash": user.password}
    for blocked in await stores.users.blocks.blocked_by(user.name):  # not the users who block this one
        yield {"kind": "block", "user": blocked}
    groups = await _groups_of(stores, user.name)
    for group in groups:
        since = group.members[user.name] // 1000
        yield {"kind": "membership", "group": group.name, "owner": group.owner == user.name, "since": since}
    sessions = {  # a dict, because a session may be read twice
        session.digest: session.expires
        async for page in stores.sessions.pages(PAGE_SIZE)
        for session in page
        if session.user == user.name
    }
    for digest, expires in sessions.items():
        yield {"kind": "session", "digest": digest.hex(), "expires": expires // 1000}
    async for peer in stores.messages.peers(user.name):
        async for records in read_pages(stores.messages, Pair(user.name, peer)):
            for record in records:
                yield _message(record, read=record.read)
    for group in groups:
        key, since = GroupKey(group.number, group.name), group.members[user.name]
        position = (await stores.messages.positions([group.number]))[group.number].get(user.name, since)
        async for records in read_pages(stores.messages, key, (since, MAX_TIME)):
            for record in records:
                yield _message(record, read=record.sender == user.name or record.time <= position)
    counters = {
        (record.one, record.other): record.state
        async for states in stores.contacts.pages(PAGE_SIZE)
        for record in states
        if user.name in (record.one, record.other)
    }
    for pair, state in counters.items():
        times = {"started": state.started // 1000, "until": state.until // 1000}
        yield {"kind": "counter", "between": pair, **msgspec.to_builtins(state), **times}


async def _groups_of(stores: ExportableStores, user: str) -> list[Group]:
    numbers = await stores.users.groups.numbers_of(user)
    groups = [
        group
        for start in range(0, len(numbers), PAGE)
        for group in await stores.users.groups.get(numbers[start : start + PAGE])
    ]
    return [group for group in groups if user in group.members]  # a running server may change them meanwhile


def _message(record: Record, *, read: bool) -> Line:
    """A message, or the rest of a deleted one: its digest instead of the text."""
    deleted = isinstance(record.text, bytes)
    text = {"digest": record.text.hex()} if isinstance(record.text, bytes) else {"text": record.text}
    return {
        "kind": "message",
        "from": record.sender,
        "to": record.receiver,
        "id": record.id,
        "time": record.time // 1000,
        "read": read,
        "deleted": deleted,
        **text,
    }
