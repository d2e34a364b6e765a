"""Digests by which source and target are compared: one of each conversation, and one of all conversations."""

import hashlib
from collections.abc import Iterable, Mapping

import msgspec

from chat_server.model.messages import ConversationKey, Record

_encode = msgspec.msgpack.Encoder().encode


class ConversationDigest:
    """A digest of one conversation: its key, every stored record in order of time, and a group's read positions."""

    def __init__(self, key: ConversationKey) -> None:
        self.count = 0
        self._hash = hashlib.sha256(_encode(key))

    def add(self, records: Iterable[Record]) -> None:
        """Add the next records."""
        for record in records:
            self._hash.update(_encode(record))
            self.count += 1

    def add_positions(self, positions: Mapping[str, int]) -> None:
        """Add the read positions of a group, after its records."""
        self._hash.update(_encode(sorted(positions.items())))

    def value(self) -> bytes:
        """The digest of everything so far."""
        return self._hash.digest()


class TotalDigest:
    """A digest of many conversations, in any order, with the numbers of conversations and messages."""

    def __init__(self) -> None:
        self.conversations = 0
        self.messages = 0
        self._sum = 0

    def add(self, digest: ConversationDigest) -> None:
        """Add a conversation. One without messages does not count."""
        if digest.count:
            self.conversations += 1
            self.messages += digest.count
            self._sum = (self._sum + int.from_bytes(digest.value(), "big")) % 2**256

    def __str__(self) -> str:
        return f"{self._sum:064x}"[:32]
