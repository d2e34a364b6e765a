"""Imports users and messages of the Go server. The Go server knew seconds: messages get exact times within them."""

import asyncio
import hashlib
import math
from collections.abc import Iterable, Sequence

import msgspec
from tqdm import tqdm

from chat_server.backends import ExportableStores
from chat_server.conf import Settings
from chat_server.migrate.advice import RETRY
from chat_server.migrate.checksum import ConversationDigest, TotalDigest
from chat_server.migrate.go_source import SEPARATOR, GoDocument, GoSource
from chat_server.migrate.jobs import as_async, for_each, progress_bar
from chat_server.migrate.record_pages import PAGE_SIZE, read_pages
from chat_server.migrate.skip_report import SkipReport
from chat_server.migrate.spool import GoMessage, MessageSpool, UserSpool
from chat_server.model.messages import Message, Pair, Record
from chat_server.model.users import User
from chat_server.service.frames import is_id
from chat_server.service.names import is_name, normal
from chat_server.utils.clock import MICROSECONDS, Clock
from chat_server.utils.errors import Duplicate, StartError

DAY = 86400
# The messages of a second start at an offset that depends on the conversation, in the first half of the second.
SPREAD = MICROSECONDS // 2


class GoImport:
    """Imports the data of the Go server that `source` names. Texts longer than `max_text` bytes are skipped.

    `unregistered`: also import conversations of names that are not registered.
    """

    def __init__(self, source: Settings, target: ExportableStores, max_text: int, *, unregistered: bool) -> None:
        self._settings = source
        self._target = target
        self._max_text = max_text
        self._unregistered = unregistered
        self._users = UserSpool()
        self._skipped = SkipReport()
        self._changed = SkipReport()
        self._digest = TotalDigest()
        self._already_stored = 0
        self._assigning = asyncio.Lock()  # held from the choice of times until they are stored
        self._max_created = Clock().now() // MICROSECONDS + DAY

    async def run(self) -> None:
        """Import, compare and print. Raises StoreUnavailable, and StartError if source and target differ."""
        self._source = GoSource(self._settings)
        try:
            print(await self._import_users())
            print(await self._import_messages())
        finally:
            self._users.close()
            await self._source.close()
        for line in self._changed.lines():
            print(f"changed: {line}")
        for line in self._skipped.lines():
            print(f"skipped: {line}")

    # --- users

    async def _import_users(self) -> str:
        if deleted := await self._source.count_deleted_users():
            self._skipped.add("deleted users", count=deleted)
        async for page in self._source.users(PAGE_SIZE):
            for user in page:
                self._spool_user(user.name, user.password)
        async for users in self._users.pages(PAGE_SIZE):
            await self._store_users(users)
        return f"users: {await self._users.count()}, the same in the Go database and in the target"

    def _spool_user(self, go_name: str, password: str) -> None:
        name = normal(go_name)
        if not is_name(name):
            self._skipped.add("users with invalid names", go_name)
        elif not password.startswith("$2") or len(password) != 60:
            self._skipped.add("users without a bcrypt password hash", go_name)
        elif not self._users.add(go_name, User(name, password)):
            self._skipped.add("further rows of the same name; the Go server used the first one", go_name)
        elif name != go_name:
            self._changed.add("names that are now in NFC", go_name)

    async def _store_users(self, users: Sequence[User]) -> None:
        await self._target.users.put(users)
        found = await asyncio.gather(*(self._target.users.get(user.name) for user in users))
        for user, stored in zip(users, found, strict=True):
            if stored != user:
                raise StartError(
                    f"user {user.name!r} has another password in the target and may be another person; "
                    "use stores without this user"
                )

    # --- messages

    async def _import_messages(self) -> str:
        owned: dict[Pair, list[tuple[str, Pair]]] = {}
        total = 0
        for collection in await self._source.collections():
            count = await self._source.count_documents(collection)
            if owner := self._find_owner(collection, count):
                low, high = sorted(owner)
                owned.setdefault(Pair(low, high), []).append((collection, owner))
                total += count
        with progress_bar("messages", total) as bar:
            await for_each(as_async(sorted(owned)), lambda pair: self._import_conversation(pair, owned[pair], bar))
        new = self._digest.messages
        return (
            f"messages: {new + self._already_stored} in {len(owned)} conversations; {new} new, read back and compared "
            f"(digest {self._digest})"
        )

    def _find_owner(self, collection: str, count: int) -> Pair | None:
        """Sender and receiver of a collection; None, with an entry in the report, if they are not certain."""
        body = collection[1:-1]
        cuts = [at for at in range(len(body)) if body.startswith(SEPARATOR, at)]
        splits = [(body[:at], body[at + len(SEPARATOR) :]) for at in cuts]
        owners = [
            Pair(one, other)
            for sender, receiver in splits
            if (one := self._users.find(sender)) and (other := self._users.find(receiver))
        ]
        if not owners and self._unregistered and len(splits) == 1:
            owners = [Pair(normal(sender), normal(receiver)) for sender, receiver in splits]
            owners = [pair for pair in owners if is_name(pair[0]) and is_name(pair[1])]
        label = f"{collection} ({count})"
        if len(owners) == 1 and owners[0][0] != owners[0][1]:
            return owners[0]
        if len(owners) == 1:
            self._skipped.add("collections of messages from a user to the same user", label)
        elif owners:
            self._skipped.add("collections that may belong to several pairs of users", label)
        else:
            self._skipped.add("collections of names that are not registered", label)
        return None

    async def _import_conversation(
        self, pair: Pair, collections: Iterable[tuple[str, Pair]], bar: "tqdm[None]"
    ) -> None:
        spool = MessageSpool()
        try:
            for collection, (sender, receiver) in collections:
                async for page in self._source.documents(collection, PAGE_SIZE):
                    for document in page:
                        self._spool_message(spool, collection, sender, receiver, document)
                    bar.update(len(page))
            expected, stored, last = ConversationDigest(pair), ConversationDigest(pair), 0
            for messages in spool.pages():
                last = await self._store_page(pair, messages, last, expected, stored)
        finally:
            spool.close()
        if not last:
            return
        await self._target.messages.update_last(pair)
        if expected.value() != stored.value():
            raise StartError(f"the conversation of {pair[0]!r} and {pair[1]!r} differs from the Go database; {RETRY}")
        self._digest.add(stored)

    def _spool_message(
        self, spool: MessageSpool, collection: str, sender: str, receiver: str, document: GoDocument
    ) -> None:
        """Add a document to the spool, or to the report of skipped ones."""
        label = f"{document.id} in {collection}"
        if document.ghost:
            self._skipped.add("ghosts without content")
            return
        text = _text(document)
        created = document.created
        if invalid := document.invalid or self._check(created, text):
            self._skipped.add(f"documents: {invalid}", label)
            return
        id = document.id
        if not is_id(id):
            id = _substitute_id(document)
            self._changed.add("invalid ids, replaced by their digests", label)
        message = GoMessage(sender, receiver, id, text, int(created or 0), document.read)
        if not spool.add(message, document.position):
            self._changed.add("ids of two messages, one replaced by its digest", label)
            spool.add(msgspec.structs.replace(message, id=_substitute_id(document)), document.position)

    def _check(self, created: float | None, text: str) -> str:
        """Why a message cannot be imported; empty if it can."""
        if created is None or not math.isfinite(created):
            return "no time of creation"
        if not 1 <= created <= self._max_created:
            return "created before 1970, or in the future"
        if len(text.encode()) > self._max_text:
            return f"a text longer than MaxTextBytes = {self._max_text}"
        return ""

    async def _store_page(
        self,
        pair: Pair,
        page: Sequence[GoMessage],
        last: int,
        expected: ConversationDigest,
        stored: ConversationDigest,
    ) -> int:
        """Store the new messages of a page with times after `last`, and read them back. Returns the last time."""
        messages = self._target.messages
        found = await messages.stored(
            [Message(message.sender, message.receiver, message.id, message.text, 0) for message in page]
        )
        for message, there in zip(page, found, strict=True):
            if there and not there.same:
                raise StartError(
                    f"the conversation of {pair[0]!r} and {pair[1]!r}: message {message.id} has another text "
                    "in the target; use other stores"
                )
        self._already_stored += sum(there is not None for there in found)
        async with self._assigning:
            times = await self._assign_times(pair, page, [there.time if there else 0 for there in found], last)
            new = [
                Record(message.sender, message.receiver, message.id, message.text, time, message.read)
                for message, time, there in zip(page, times, found, strict=True)
                if not there
            ]
            if new:
                try:
                    await messages.put(new)
                except Duplicate as error:
                    where = f"the conversation of {pair[0]!r} and {pair[1]!r}"
                    raise StartError(
                        f"{where}: {error} is already used by another message in the target; use other stores"
                    ) from error
        if new:
            expected.add(new)
            new_times = {record.time for record in new}
            async for records in read_pages(messages, pair, (new[0].time - 1, new[-1].time)):
                stored.add(record for record in records if record.time in new_times)
        return max(last, *times)

    async def _assign_times(
        self, pair: Pair, page: Sequence[GoMessage], stored_times: Sequence[int], last: int
    ) -> list[int]:
        """Increasing, unused times after `last`. `stored_times` has the time of each stored message, 0 for new ones."""
        offset = int.from_bytes(hashlib.sha256("/".join(pair).encode()).digest()[:4], "big") % SPREAD
        taken: set[int] = set()
        while True:
            times, newest = [], last
            for message, stored_time in zip(page, stored_times, strict=True):
                time = stored_time or max(newest + 1, message.created * MICROSECONDS + offset)
                while not stored_time and time in taken:
                    time += 1
                times.append(time)
                newest = max(newest, time)
            new = [time for time, stored_time in zip(times, stored_times, strict=True) if not stored_time]
            now_taken = await self._target.messages.used_times(new) if new else set()
            if not now_taken:
                return times
            taken |= now_taken


def _text(document: GoDocument) -> str:
    """The text of a message: its content without the first line, if that is its id."""
    first, _, rest = document.content.partition("\n")
    return rest if first == document.id else document.content


def _substitute_id(document: GoDocument) -> str:
    return "go-" + hashlib.sha256(document.position).hexdigest()[:32]
