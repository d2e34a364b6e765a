"""What two sides of a move compare: a digest of each conversation, and one of them all."""

import hashlib
import itertools
from collections.abc import AsyncIterator, Iterable, Sequence

import msgspec

from chat_server.model.messages import ExportableMessages, Record

# So many records are in memory at a time, for each conversation that is being copied.
PAGE = 1000
LATEST = 2**62  # no message's time
_encode = msgspec.msgpack.Encoder().encode


class Digest:
    """Of one conversation: its users, and every message as it is kept, in order."""

    def __init__(self, one: str, other: str) -> None:
        self.count = 0
        self._hash = hashlib.sha256(_encode((one, other)))

    def add(self, records: Iterable[Record]) -> None:
        """Take in what comes next."""
        for record in records:
            self._hash.update(_encode(record))
            self.count += 1

    def value(self) -> bytes:
        """The digest so far."""
        return self._hash.digest()


class Sum:
    """Of many conversations, in any order: how many, of how many messages, and a digest of their digests."""

    def __init__(self) -> None:
        self.conversations = 0
        self.messages = 0
        self._sum = 0

    def add(self, digest: Digest) -> None:
        """Take in a conversation; one without a message is none."""
        if digest.count:
            self.conversations += 1
            self.messages += digest.count
            self._sum = (self._sum + int.from_bytes(digest.value(), "big")) % 2**256

    def __str__(self) -> str:
        return f"{self._sum:064x}"[:32]


async def stream(
    messages: ExportableMessages, one: str, other: str, bounds: Sequence[int]
) -> AsyncIterator[list[Record]]:
    """The records after the first of `bounds` and up to the last, a page at a time; each bound ends a page.

    So one side is read in the other's steps: a range with two ends costs no store more than what is in it.
    """
    for after, until in itertools.pairwise(bounds):
        start = after
        while page := await messages.records(one, other, start, until, PAGE):
            yield page
            start = page[-1].time
            if len(page) < PAGE:
                break
