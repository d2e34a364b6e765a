"""Copies all data from one set of stores to another, and compares them.

An interrupted copy can be repeated: data that the target already has is not written again. The target must be empty or
contain an unfinished copy of the same source, so that the users of two servers are never mixed.
"""

from collections.abc import AsyncIterator

import msgspec
from tqdm import tqdm

from chat_server.backends import ExportableStores
from chat_server.cache.contacts import ExportableContacts
from chat_server.cache.sessions import ExportableSessions, SessionRecord
from chat_server.migrate.advice import NOT_EMPTY, RETRY
from chat_server.migrate.blocks import copy_blocks
from chat_server.migrate.checksum import ConversationDigest, TotalDigest
from chat_server.migrate.groups import copy_groups
from chat_server.migrate.jobs import for_each, progress_bar
from chat_server.migrate.record_pages import MAX_TIME, PAGE_SIZE, read_pages
from chat_server.migrate.shared import SharedStores
from chat_server.model.groups import PAGE, ExportableGroups
from chat_server.model.messages import ConversationKey, ExportableMessages, GroupKey
from chat_server.model.users import ExportableUsers, User
from chat_server.utils.clock import MICROSECONDS, Clock
from chat_server.utils.errors import Duplicate, StartError

# Data that expires within this time is not compared, because it may expire meanwhile. In microseconds.
SOON = 60 * MICROSECONDS


class StoreCopy:
    """Copies `source` to `target`, except the stores that they share."""

    def __init__(self, source: ExportableStores, target: ExportableStores, shared: SharedStores) -> None:
        self._source = source
        self._target = target
        self._shared = shared

    async def run(self) -> None:
        """Copy, compare and print. Raises StoreUnavailable, and StartError if source and target differ."""
        source, target = self._source, self._target
        if not self._shared.users:
            print(await _copy_users(source.users, target.users))
            print(await copy_blocks(source.users.blocks, target.users.blocks))
            print(await copy_groups(source.users.groups, target.users.groups))
        if not self._shared.messages:
            print(await _MessageCopy(source.messages, target.messages, source.users.groups).run())
        if not self._shared.cache:
            print(await _copy_sessions(source.sessions, target.sessions))
            print(await _copy_contacts(source.contacts, target.contacts))


# --- users


async def _copy_users(source: ExportableUsers, target: ExportableUsers) -> str:
    """Copy the users and return a summary. Raises StartError if the target has other users."""
    await _compare_users(source, target, finished=False)
    count = 0
    with progress_bar("users", await source.count()) as bar:
        async for page in source.pages(PAGE_SIZE):
            await target.put(page)
            count += len(page)
            bar.update(len(page))
    await _compare_users(source, target, finished=True)
    return f"users: {count}, the same on both sides"


async def _compare_users(source: ExportableUsers, target: ExportableUsers, *, finished: bool) -> None:
    """Raise StartError for a user that only the target has; if `finished`, also for one that only the source has."""
    source_users, target_users = _each(source), _each(target)
    expected = await anext(source_users, None)
    async for user in target_users:
        while expected and expected.name < user.name:
            if finished:
                raise StartError(f"user {expected.name!r} is missing in the target; {RETRY}")
            expected = await anext(source_users, None)
        if not expected or expected.name != user.name:
            raise StartError(f"user {user.name!r} is in the target, but not in the source: {NOT_EMPTY}")
        if expected != user:
            what = "another password" if expected.password != user.password else "another state"
            raise StartError(f"user {user.name!r} has {what} in the target: {NOT_EMPTY}")
        expected = await anext(source_users, None)
    if finished and expected:
        raise StartError(f"user {expected.name!r} is missing in the target; {RETRY}")


async def _each(users: ExportableUsers) -> AsyncIterator[User]:
    async for page in users.pages(PAGE_SIZE):
        for user in page:
            yield user


# --- messages


class _MessageCopy:
    """Copies conversations, several at the same time, each page by page, and compares each after its last page.

    `groups` contains the groups of both sides: `copy_groups` has made sure that the target has no others.
    """

    def __init__(self, source: ExportableMessages, target: ExportableMessages, groups: ExportableGroups) -> None:
        self._source = source
        self._target = target
        self._groups = groups
        self._digest = TotalDigest()

    async def run(self) -> str:
        """Copy and compare all conversations, and return a summary. Raises StartError for one that differs."""
        await self._refuse_other_conversations()
        total = await self._source.count()
        with progress_bar("messages", total) as bar:
            await for_each(self._keys(), lambda key: self._copy_conversation(key, bar))
        count = self._digest.messages
        if await self._target.count() != count:
            await self._refuse_other_conversations()
        rest = f"; {total - count} more seem to belong to no conversation" if total > count else ""
        return (
            f"messages: {count} in {self._digest.conversations} conversations, the same on both sides "
            f"(digest {self._digest}){rest}"
        )

    async def _keys(self) -> AsyncIterator[ConversationKey]:
        async for pair in self._source.pairs():
            yield pair
        async for page in self._groups.pages(PAGE):
            for group in page:
                yield GroupKey(group.number, group.name)

    async def _refuse_other_conversations(self) -> None:
        """Raise StartError for a conversation that only the target has."""
        async for pair in self._target.pairs():
            in_source = await self._source.records(pair, 0, MAX_TIME, 1)
            if not in_source and await self._target.records(pair, 0, MAX_TIME, 1):
                raise StartError(f"{_describe(pair)} is not in the source: {NOT_EMPTY}")

    async def _copy_conversation(self, key: ConversationKey, bar: "tqdm[None]") -> None:
        digest, bounds = ConversationDigest(key), [0]
        async for page in read_pages(self._source, key):
            stored = {
                record.time: record for record in await self._target.records(key, bounds[-1], page[-1].time, PAGE_SIZE)
            }
            if new := [record for record in page if stored.get(record.time) != record]:
                try:
                    await self._target.put(new)
                except Duplicate as error:
                    raise StartError(
                        f"{_describe(key)}: {error} is already used by another message in the target; {NOT_EMPTY}"
                    ) from error
            digest.add(page)
            bounds.append(page[-1].time)
            bar.update(len(page))
        if isinstance(key, GroupKey):
            await self._copy_positions(key.number, digest)
        elif digest.count:
            await self._target.update_last(key)
        await self._compare(key, digest, bounds)

    async def _copy_positions(self, number: int, digest: ConversationDigest) -> None:
        positions = (await self._source.positions([number]))[number]
        if positions:
            await self._target.put_positions(number, positions)
        digest.add_positions(positions)

    async def _compare(self, key: ConversationKey, digest: ConversationDigest, bounds: list[int]) -> None:
        """Read the conversation back from the target and compare it."""
        written = ConversationDigest(key)
        async for page in read_pages(self._target, key, [*bounds, MAX_TIME]):
            written.add(page)
        if isinstance(key, GroupKey):
            written.add_positions((await self._target.positions([key.number]))[key.number])
        if written.value() != digest.value():
            raise StartError(
                f"{_describe(key)} differs: {digest.count} messages in the source, "
                f"{written.count} in the target; {RETRY}"
            )
        self._digest.add(written)


def _describe(key: ConversationKey) -> str:
    if isinstance(key, GroupKey):
        return f"the conversation of the group {key.name!r}"
    return f"the conversation of {key.one!r} and {key.other!r}"


# --- sessions and contacts


async def _copy_sessions(source: ExportableSessions, target: ExportableSessions) -> str:
    async for page in source.pages(PAGE_SIZE):
        await target.put(page)
    count, soon = 0, Clock().now() + SOON
    async for page in source.pages(PAGE_SIZE):
        lasting = [session for session in page if session.expires > soon]
        there = {_rounded(session) for session in await target.peek([session.digest for session in lasting])}
        if any(_rounded(session) not in there for session in lasting):
            raise StartError(f"a session is missing or differs in the target; {RETRY}")
        count += len(page)
    return f"sessions: {count}, the same on both sides"


async def _copy_contacts(source: ExportableContacts, target: ExportableContacts) -> str:
    async for page in source.pages(PAGE_SIZE):
        await target.put(page)
    count, soon = 0, Clock().now() + SOON
    async for page in source.pages(PAGE_SIZE):
        lasting = [record for record in page if record.expires > soon]
        found = await target.peek([(record.one, record.other) for record in lasting])
        there = {(record.one, record.other): record.state for record in found}
        if any(there.get((record.one, record.other)) != record.state for record in lasting):
            raise StartError(f"a contact limit is missing or differs in the target; {RETRY}")
        count += len(page)
    return f"contact limits: {count}, the same on both sides"


def _rounded(session: SessionRecord) -> SessionRecord:
    """A session with its expiry in milliseconds, because Redis stores no microseconds."""
    return msgspec.structs.replace(session, expires=session.expires // 1000)
