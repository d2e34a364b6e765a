"""The collections, and messages as their documents."""

from datetime import UTC, datetime
from typing import Any

from bson import Binary, Int64

from chat_server.model.messages import Added, ConversationKey, Message, Pair, Record
from chat_server.utils.clock import MICROSECONDS
from chat_server.utils.digest import is_text_of

Document = dict[str, Any]

# These names differ from those of the Go original, so its data may lie in the same database.
MESSAGES, CONVERSATIONS, LEASES = "chat_messages", "chat_conversations", "chat_leases"
PROBE = "chat_probe"  # exists only while --check probes an empty database
EARLIEST, LATEST = Int64(0), Int64(2**62)  # no message has these times: every range query has two bounds


def conversation_key(key: ConversationKey) -> str:
    """Return the key of a conversation. It is unique, because no name contains a slash (service.names.is_name)."""
    if not isinstance(key, Pair):
        raise NotImplementedError("messages of groups")
    one, other = key
    return f"{one}/{other}" if one < other else f"{other}/{one}"


def inbox_key(user: str, peer: str) -> str:
    """Return the key of a conversation as `user` sees it."""
    return f"{user}/{peer}"


def unread_messages(sender: str, receiver: str) -> Document:
    """Return the query for the unread messages from `sender` to `receiver`."""
    return {"to": receiver, "conv": conversation_key(Pair(sender, receiver)), "read": False}


def to_document(message: Message | Record) -> Document:
    """Return the document of a message. A Message is new: neither read nor deleted."""
    text: Document = {"text": message.text, "deleted": False}
    if isinstance(message.text, bytes):
        text = {"digest": Binary(message.text), "deleted": True}
    return {
        "_id": Int64(message.time),
        "conv": conversation_key(Pair(message.sender, message.receiver)),
        "from": message.sender,
        "to": message.receiver,
        "mid": message.id,
        **text,
        "read": message.read,
        "at": datetime.fromtimestamp(message.time / MICROSECONDS, UTC),
    }


def to_message(document: Document) -> Message:
    """Return the message of a document that is not deleted."""
    return Message(
        document["from"], document["to"], document["mid"], document["text"], int(document["_id"]), document["read"]
    )


def to_record(document: Document) -> Record:
    """Return a document's message as it is stored."""
    return Record(
        document["from"],
        document["to"],
        document["mid"],
        _text(document),
        int(document["_id"]),
        document["read"],
    )


def earlier_message(document: Document | None, message: Message) -> Added | None:
    """Return what another message stored under the id of `message`; None if there is none, or it is this one."""
    if document is None or document["_id"] == message.time:
        return None
    same = is_text_of(_text(document), message.text)
    return Added(int(document["_id"]), new=False, same=same, unread=not document["read"])


def _text(document: Document) -> str | bytes:
    return bytes(document["digest"]) if document["deleted"] else document["text"]
