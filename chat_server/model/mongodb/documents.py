"""The collections, and messages as their documents."""

from datetime import UTC, datetime
from typing import Any

from bson import Binary, Int64

from chat_server.model.messages import Added, ConversationKey, GroupKey, Message, Record
from chat_server.utils.clock import MICROSECONDS
from chat_server.utils.digest import is_text_of

Document = dict[str, Any]

# These names differ from those of the Go original, so its data may lie in the same database.
MESSAGES, CONVERSATIONS, POSITIONS = "chat_messages", "chat_conversations", "chat_positions"
LEASES = "chat_leases"
PROBE = "chat_probe"  # exists only while --check probes an empty database
EARLIEST, LATEST = Int64(0), Int64(2**62)  # no message has these times: every range query has two bounds
LAST_KEY = "\U0010ffff"  # greater than every name, and every key that begins with one


def pair_key(one: str, other: str) -> str:
    """Return the key of two users' conversation. It is unique: no name contains a slash (service.names.is_name)."""
    return f"{one}/{other}" if one < other else f"{other}/{one}"


def group_key(number: int) -> str:
    """Return the key of the conversation of a group. No name of a user begins with #."""
    return f"#{number}"


def conversation_key(key: ConversationKey) -> str:
    """Return the key of a conversation."""
    return group_key(key.number) if isinstance(key, GroupKey) else pair_key(*key)


def conversation_of(message: Message | Record) -> str:
    """Return the key of the conversation that contains the message."""
    return group_key(message.group) if message.group else pair_key(message.sender, message.receiver)


def position_key(number: int, user: str) -> str:
    """Return the key of the read position of a user in a group."""
    return f"{number}/{user}"


def inbox_key(user: str, peer: str) -> str:
    """Return the key of a conversation as `user` sees it."""
    return f"{user}/{peer}"


def unread_messages(sender: str, receiver: str) -> Document:
    """Return the query for the unread messages from `sender` to `receiver`."""
    return {"to": receiver, "conv": pair_key(sender, receiver), "read": False}


def to_document(message: Message | Record) -> Document:
    """Return the document of a message. A Message is new: neither read nor deleted.

    Messages of groups are stored as read, so that the index of unread messages does not contain them.
    """
    group: Document = {"group": True} if message.group else {}
    text: Document = {"text": message.text, "deleted": False}
    if isinstance(message.text, bytes):
        text = {"digest": Binary(message.text), "deleted": True}
    return {
        "_id": Int64(message.time),
        "conv": conversation_of(message),
        "from": message.sender,
        "to": message.receiver,
        "mid": message.id,
        **text,
        "read": message.read or bool(message.group),
        **group,
        "at": datetime.fromtimestamp(message.time / MICROSECONDS, UTC),
    }


def to_message(document: Document) -> Message:
    """Return the message of a document that is not deleted."""
    return Message(*_names(document), document["text"], *_state(document))


def to_record(document: Document) -> Record:
    """Return a document's message as it is stored."""
    return Record(*_names(document), _text(document), *_state(document))


def earlier_message(document: Document | None, message: Message) -> Added | None:
    """Return what another message stored under the id of `message`; None if there is none, or it is this one."""
    if document is None or document["_id"] == message.time:
        return None
    same = is_text_of(_text(document), message.text)
    unread = not document["deleted" if message.group else "read"]
    return Added(int(document["_id"]), new=False, same=same, unread=unread)


def _names(document: Document) -> tuple[str, str, str]:
    return document["from"], document["to"], document["mid"]


def _state(document: Document) -> tuple[int, bool, int]:
    """Return the time of a message, whether it is read, and the number of its group."""
    group = int(document["conv"][1:]) if "group" in document else 0
    return int(document["_id"]), document["read"] and not group, group


def _text(document: Document) -> str | bytes:
    return bytes(document["digest"]) if document["deleted"] else document["text"]
