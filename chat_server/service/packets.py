"""What server processes tell each other, as bytes for the backplane.

During an update, processes of two versions run together. So a new version may append fields, each with a default, to a
packet, which earlier versions ignore, and it may add kinds of packets. Earlier versions ignore these, too, and confirm
changes of a kind that they do not know: they cannot have the feature that the change is about.
"""

from functools import partial
from typing import TypeVar, get_args

import msgspec

from chat_server.model.messages import Message


class StoredMessage(msgspec.Struct, array_like=True, tag="m"):
    """A message that another process has stored, for its receivers and the other sync sockets of its sender."""

    message: tuple[str, str, str, str, int, int]  # sender, receiver, id, text, time, number of the group


class Notice(msgspec.Struct, array_like=True, tag="n"):
    """A frame for the sync sockets of users, or `to_all` sockets. An `optional` frame may be dropped.

    `group`: the number of a group; only its members may receive the frame.
    """

    frame: bytes
    to_all: bool
    optional: bool
    group: int = 0


class BroadcastMessage(msgspec.Struct, array_like=True, tag="b"):
    """A message to all online users (op 6); `time` in microseconds."""

    sender: str
    content: str
    time: int


class PresenceChanged(msgspec.Struct, array_like=True, tag="p"):
    """A user came online at a process, or went offline there."""

    node: str
    user: str
    online: bool


class SessionsEnded(msgspec.Struct, array_like=True, tag="s"):
    """The session `only`, or all sessions of the user except `keep`, have ended.

    Without both, a command has ended them. It may also have changed the user, with blocks and groups.
    """

    user: str
    only: bytes | None
    keep: bytes | None


class BlockChanged(msgspec.Struct, array_like=True, tag="k"):
    """A block was stored or deleted."""

    blocker: str
    blocked: str


class GroupChanged(msgspec.Struct, array_like=True, tag="g"):
    """A group was changed. `lines`: see protocol section 2, code 42011; `time`: new members may read what is later."""

    number: int
    name: str
    members: list[str]
    lines: list[str]
    time: int


Packet = StoredMessage | Notice | BroadcastMessage | PresenceChanged
Change = SessionsEnded | BlockChanged | GroupChanged

KINDS = {kind.__struct_config__.tag for kind in get_args(Packet | Change)}

encode = msgspec.msgpack.Encoder().encode
Decoded = TypeVar("Decoded")


def _decode(decoder: msgspec.msgpack.Decoder[Decoded], payload: bytes) -> Decoded | None:
    """Decode a payload; None if a later version added its kind. Raises msgspec.DecodeError."""
    try:
        return decoder.decode(payload)
    except msgspec.ValidationError:
        fields = msgspec.msgpack.decode(payload)
        if isinstance(fields, list) and fields and fields[0] not in KINDS:
            return None
        raise


decode_packet = partial(_decode, msgspec.msgpack.Decoder(Packet))
decode_change = partial(_decode, msgspec.msgpack.Decoder(Change))


def pack(message: Message, time: int) -> bytes:
    """Encode a stored message; `time` is the one under which it is stored."""
    fields = (message.sender, message.receiver, message.id, message.text, time, message.group)
    return encode(StoredMessage(fields))


def unpack(packet: StoredMessage) -> Message:
    """Return the message of a packet."""
    sender, receiver, id, text, time, group = packet.message
    return Message(sender, receiver, id, text, time, group=group)
