"""Brings in what the Go original stored: users, and messages with new times within their seconds."""

import asyncio
import hashlib
import math
from collections.abc import Iterable, Sequence

import msgspec
from tqdm import tqdm

from chat_server.backends import ExportableStores
from chat_server.conf import Settings
from chat_server.migrate.checksum import PAGE, Digest, Sum, stream
from chat_server.migrate.skip_report import SkipReport
from chat_server.migrate.spool import Draft, MessageSpool, UserSpool
from chat_server.migrate.work import listed, progress, together
from chat_server.model.go_source import SEPARATOR, GoMessage, GoSource
from chat_server.model.messages import Message, Record
from chat_server.model.users import User
from chat_server.service.frames import is_id
from chat_server.service.names import is_name, normal
from chat_server.utils.clock import MICROSECONDS, Clock
from chat_server.utils.errors import Duplicate, StartError

DAY = 86400
# Within a second, the messages of different conversations begin in different places of its first half.
SPREAD = MICROSECONDS // 2

Pair = tuple[str, str]


class Import:
    """Brings in what `original` names. Texts longer than `longest` bytes stay out, for no socket could carry them.

    With `unregistered`, conversations whose users are not all registered come too.
    """

    def __init__(self, original: Settings, target: ExportableStores, longest: int, *, unregistered: bool) -> None:
        self._settings = original
        self._target = target
        self._longest = longest
        self._unregistered = unregistered
        self._users = UserSpool()
        self._left = SkipReport()
        self._notes = SkipReport()
        self._sum = Sum()
        self._there = 0
        self._writing = asyncio.Lock()  # times are looked for and used by one at a time
        self._latest = Clock().now() // MICROSECONDS + DAY

    async def run(self) -> None:
        """Copy, compare and print. Raises StartError where something differs in the end, StoreUnavailable."""
        self._original = GoSource(self._settings)
        try:
            print(await self._bring_users())
            print(await self._bring_messages())
        finally:
            self._users.close()
            await self._original.close()
        for line in self._notes.lines():
            print(f"changed: {line}")
        for line in self._left.lines():
            print(f"left out: {line}")

    # --- users

    async def _bring_users(self) -> str:
        if deleted := await self._original.deleted():
            self._left.add("deleted users", count=deleted)
        async for page in self._original.users(PAGE):
            for row in page:
                self._take_user(row.name, row.password)
        async for users in self._users.pages(PAGE):
            await self._put_users(users)
        return f"users: {await self._users.count()}, in the target as in the original"

    def _take_user(self, name: str, password: str) -> None:
        ours = normal(name)
        if not is_name(ours):
            self._left.add("users whose names are not valid here", name)
        elif not password.startswith("$2") or len(password) != 60:
            self._left.add("users whose passwords are no bcrypt hashes", name)
        elif not self._users.add(name, User(ours, password)):
            self._left.add("further rows of a name; the first is the user, as it was for the original", name)
        elif ours != name:
            self._notes.add("names that are written in NFC now", name)

    async def _put_users(self, users: Sequence[User]) -> None:
        await self._target.users.put(users)
        found = await asyncio.gather(*(self._target.users.get(user.name) for user in users))
        for user, there in zip(users, found, strict=True):
            if there != user:
                raise StartError(
                    f"user {user.name!r} has another password in the target: that may be somebody else; "
                    "use stores that do not have this user"
                )

    # --- which collection is whose

    async def _bring_messages(self) -> str:
        owned: dict[Pair, list[tuple[str, Pair]]] = {}
        total = 0
        for collection in await self._original.collections():
            count = await self._original.count(collection)
            if owner := self._owner(collection, count):
                low, high = sorted(owner)
                owned.setdefault((low, high), []).append((collection, owner))
                total += count
        with progress("messages", total) as bar:
            await together(listed(sorted(owned)), lambda pair: self._conversation(pair, owned[pair], bar))
        new, all_ = self._sum.messages, self._sum.messages + self._there
        return f"messages: {all_} in {len(owned)} conversations; {new} new (digest {self._sum}), read back and equal"

    def _owner(self, collection: str, count: int) -> Pair | None:
        """Who wrote to whom what is in a collection; None, and a note of it, if that is not known."""
        body = collection[1:-1]
        cuts = [at for at in range(len(body)) if body.startswith(SEPARATOR, at)]
        splits = [(body[:at], body[at + len(SEPARATOR) :]) for at in cuts]
        users = [
            (one, other)
            for sender, receiver in splits
            if (one := self._users.known(sender)) and (other := self._users.known(receiver))
        ]
        if not users and self._unregistered and len(splits) == 1:
            users = [(normal(sender), normal(receiver)) for sender, receiver in splits]
            users = [pair for pair in users if is_name(pair[0]) and is_name(pair[1])]
        named = f"{collection} ({count})"
        if len(users) == 1 and users[0][0] != users[0][1]:
            return users[0]
        if len(users) == 1:
            self._left.add("collections of somebody's messages to himself", named)
        elif users:
            self._left.add("collections that may be of several pairs of users", named)
        else:
            self._left.add("collections of names that are not both users", named)
        return None

    # --- a conversation

    async def _conversation(self, pair: Pair, collections: Iterable[tuple[str, Pair]], bar: "tqdm[None]") -> None:
        spool = MessageSpool()
        try:
            for collection, (sender, receiver) in collections:
                async for page in self._original.documents(collection, PAGE):
                    for document in page:
                        self._spool(spool, collection, sender, receiver, document)
                    bar.update(len(page))
            read, written, last = Digest(*pair), Digest(*pair), 0
            for drafts in spool.pages():
                last = await self._page(pair, drafts, last, read, written)
        finally:
            spool.close()
        if not last:
            return
        await self._target.messages.update_last(*pair)
        if read.value() != written.value():
            raise StartError(f"the conversation of {pair[0]!r} and {pair[1]!r} differs from the original")
        self._sum.add(written)

    def _spool(self, spool: MessageSpool, collection: str, sender: str, receiver: str, document: GoMessage) -> None:
        """Put a document into its place, or note why not."""
        named = f"{document.id} in {collection}"
        if document.ghost:
            self._left.add("ghosts without content")
            return
        text = _text(document)
        created = document.created
        if wrong := document.wrong or self._wrong(created, text):
            self._left.add(f"documents: {wrong}", named)
            return
        id = document.id
        if not is_id(id):
            id = _substitute(document)
            self._notes.add("ids that are not valid here, replaced by their digests", named)
        draft = Draft(sender, receiver, id, text, int(created or 0), document.read)
        if not spool.add(draft, document.order):
            self._notes.add("ids that two messages had, one replaced by its digest", named)
            spool.add(msgspec.structs.replace(draft, id=_substitute(document)), document.order)

    def _wrong(self, created: float | None, text: str) -> str:
        if created is None or not math.isfinite(created):
            return "without the time they were created"
        if not 1 <= created <= self._latest:
            return "created before 1970, or in the future"
        if len(text.encode()) > self._longest:
            return f"their text is longer than MaxTextBytes = {self._longest}"
        return ""

    async def _page(self, pair: Pair, drafts: Sequence[Draft], last: int, read: Digest, written: Digest) -> int:
        """Store what is not there yet, after the time `last`, and read it back. Returns the last time."""
        messages = self._target.messages
        found = await messages.stored(
            [Message(draft.sender, draft.receiver, draft.id, draft.text, 0) for draft in drafts]
        )
        for draft, there in zip(drafts, found, strict=True):
            if there and not there.same:
                raise StartError(
                    f"the conversation of {pair[0]!r} and {pair[1]!r}: message {draft.id} is in the target "
                    "with another text"
                )
        self._there += sum(there is not None for there in found)
        async with self._writing:
            times = await self._times(pair, drafts, [there.time if there else 0 for there in found], last)
            new = [
                Record(draft.sender, draft.receiver, draft.id, draft.text, time, draft.read)
                for draft, time, there in zip(drafts, times, found, strict=True)
                if not there
            ]
            if new:
                try:
                    await messages.put(new)
                except Duplicate as error:
                    raise StartError(f"the conversation of {pair[0]!r} and {pair[1]!r}: {error} is taken") from error
        if new:
            read.add(new)
            wanted = {record.time for record in new}
            async for page in stream(messages, *pair, (new[0].time - 1, new[-1].time)):
                written.add(record for record in page if record.time in wanted)
        return max(last, *times)

    async def _times(self, pair: Pair, drafts: Sequence[Draft], known: Sequence[int], last: int) -> list[int]:
        """A time for each message, in order, that no other message has; `known` are those of messages already there."""
        start = int.from_bytes(hashlib.sha256("/".join(pair).encode()).digest()[:4], "big") % SPREAD
        taken: set[int] = set()
        while True:
            times, newest = [], last
            for draft, there in zip(drafts, known, strict=True):
                time = there or max(newest + 1, draft.created * MICROSECONDS + start)
                while not there and time in taken:
                    time += 1
                times.append(time)
                newest = max(newest, time)
            new = [time for time, there in zip(times, known, strict=True) if not there]
            now_taken = await self._target.messages.used_times(new) if new else set()
            if not now_taken:
                return times
            taken |= now_taken


def _text(document: GoMessage) -> str:
    """The text of a message: its content, without a first line that is its id."""
    first, _, rest = document.content.partition("\n")
    return rest if first == document.id else document.content


def _substitute(document: GoMessage) -> str:
    return "go-" + hashlib.sha256(document.order).hexdigest()[:32]
