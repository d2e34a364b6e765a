"""Copies all that one set of stores holds to another, and compares.

A copy goes on where it stopped: whatever it finds in the target as it should be, it leaves alone. The target must
be empty or hold such an unfinished copy, so that two lots of users never become one.
"""

from collections.abc import AsyncIterator

import msgspec
from tqdm import tqdm

from chat_server.backends import ExportableStores
from chat_server.cache.contacts import ExportableContacts
from chat_server.cache.sessions import ExportableSessions, SessionRecord
from chat_server.migrate.checksum import LATEST, PAGE, Digest, Sum, stream
from chat_server.migrate.shared import Shared
from chat_server.migrate.work import progress, together
from chat_server.model.messages import ExportableMessages
from chat_server.model.users import ExportableUsers, User
from chat_server.utils.clock import MICROSECONDS, Clock
from chat_server.utils.errors import Duplicate, StartError

# What expires so soon may be gone before it is compared. In microseconds.
SOON = 60 * MICROSECONDS
EMPTY = "the target must be empty, or hold an earlier, unfinished copy of the same source"


class Move:
    """Copies `source` to `target`, but for what they share."""

    def __init__(self, source: ExportableStores, target: ExportableStores, shared: Shared) -> None:
        self._source = source
        self._target = target
        self._shared = shared

    async def run(self) -> None:
        """Copy, compare and print. Raises StartError where the sides differ in the end, StoreUnavailable."""
        source, target = self._source, self._target
        if not self._shared.users:
            print(await move_users(source.users, target.users))
        if not self._shared.messages:
            print(await _Messages(source.messages, target.messages).move())
        if not self._shared.cache:
            print(await _move_sessions(source.sessions, target.sessions))
            print(await _move_strangers(source.contacts, target.contacts))


# --- users


async def move_users(source: ExportableUsers, target: ExportableUsers) -> str:
    """Copy users; a sentence on it. Raises StartError if the target has others."""
    await _compare_users(source, target, finished=False)
    count = 0
    with progress("users", await source.count()) as bar:
        async for page in source.pages(PAGE):
            await target.put(page)
            count += len(page)
            bar.update(len(page))
    await _compare_users(source, target, finished=True)
    return f"users: {count}, the same on both sides"


async def _compare_users(source: ExportableUsers, target: ExportableUsers, *, finished: bool) -> None:
    """Raise StartError for a user whom the target has and the source has not, or, if finished, the reverse."""
    ours, theirs = _each(source), _each(target)
    wanted = await anext(ours, None)
    async for user in theirs:
        while wanted and wanted.name < user.name:
            if finished:
                raise StartError(f"user {wanted.name!r} is missing in the target")
            wanted = await anext(ours, None)
        if not wanted or wanted.name != user.name:
            raise StartError(f"user {user.name!r} is in the target, but not in the source: {EMPTY}")
        if wanted != user:
            what = "another password" if wanted.password != user.password else "another state"
            raise StartError(f"user {user.name!r} has {what} in the target: {EMPTY}")
        wanted = await anext(ours, None)
    if finished and wanted:
        raise StartError(f"user {wanted.name!r} is missing in the target")


async def _each(users: ExportableUsers) -> AsyncIterator[User]:
    async for page in users.pages(PAGE):
        for user in page:
            yield user


# --- messages


class _Messages:
    """Copies conversations, several at a time, each page by page, and compares each when it is done."""

    def __init__(self, source: ExportableMessages, target: ExportableMessages) -> None:
        self._source = source
        self._target = target
        self._sum = Sum()

    async def move(self) -> str:
        """Copy and compare all; a sentence on it. Raises StartError naming a conversation that differs."""
        await self._refuse_others()
        total = await self._source.count()
        with progress("messages", total) as bar:
            await together(self._source.pairs(), lambda pair: self._conversation(*pair, bar))
        count = self._sum.messages
        if await self._target.count() != count:
            await self._refuse_others()
        left = f"; {total - count} more seem to be of no conversation" if total > count else ""
        return (
            f"messages: {count} in {self._sum.conversations} conversations, the same on both sides "
            f"(digest {self._sum}){left}"
        )

    async def _refuse_others(self) -> None:
        """Raise StartError for a conversation that the target has and the source has not."""
        async for one, other in self._target.pairs():
            known = await self._source.records(one, other, 0, LATEST, 1)
            if not known and await self._target.records(one, other, 0, LATEST, 1):
                raise StartError(f"the conversation of {one!r} and {other!r} is not in the source: {EMPTY}")

    async def _conversation(self, one: str, other: str, bar: "tqdm[None]") -> None:
        digest, bounds = Digest(one, other), [0]
        async for page in stream(self._source, one, other, (0, LATEST)):
            there = {
                record.time: record
                for record in await self._target.records(one, other, bounds[-1], page[-1].time, PAGE)
            }
            if new := [record for record in page if there.get(record.time) != record]:
                try:
                    await self._target.put(new)
                except Duplicate as error:
                    what = f"the conversation of {one!r} and {other!r}: {error} is another message's in the target"
                    raise StartError(f"{what}; {EMPTY}") from error
            digest.add(page)
            bounds.append(page[-1].time)
            bar.update(len(page))
        if digest.count:
            await self._target.update_last(one, other)
        await self._compare(one, other, digest, bounds)

    async def _compare(self, one: str, other: str, digest: Digest, bounds: list[int]) -> None:
        """Read back what was written."""
        written = Digest(one, other)
        async for page in stream(self._target, one, other, [*bounds, LATEST]):
            written.add(page)
        if written.value() != digest.value():
            raise StartError(
                f"the conversation of {one!r} and {other!r} differs: {digest.count} messages in the source, "
                f"{written.count} in the target"
            )
        self._sum.add(written)


# --- what expires


async def _move_sessions(source: ExportableSessions, target: ExportableSessions) -> str:
    async for page in source.pages(PAGE):
        await target.put(page)
    count, soon = 0, Clock().now() + SOON
    async for page in source.pages(PAGE):
        lasting = [session for session in page if session.expires > soon]
        there = {_kept(session) for session in await target.peek([session.digest for session in lasting])}
        if any(_kept(session) not in there for session in lasting):
            raise StartError("a session is missing, or another's, in the target; run the same command again")
        count += len(page)
    return f"sessions: {count}, the same on both sides"


async def _move_strangers(source: ExportableContacts, target: ExportableContacts) -> str:
    async for page in source.pages(PAGE):
        await target.put(page)
    count, soon = 0, Clock().now() + SOON
    async for page in source.pages(PAGE):
        lasting = [record for record in page if record.expires > soon]
        found = await target.peek([(record.one, record.other) for record in lasting])
        there = {(record.one, record.other): record.state for record in found}
        if any(there.get((record.one, record.other)) != record.state for record in lasting):
            raise StartError("a counter is missing, or differs, in the target; run the same command again")
        count += len(page)
    return f"counters of strangers: {count}, the same on both sides"


def _kept(session: SessionRecord) -> SessionRecord:
    """A session as both backends can tell it: Redis knows milliseconds."""
    return msgspec.structs.replace(session, expires=session.expires // 1000)
