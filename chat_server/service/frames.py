"""The records on the wire, decoded and encoded here and nowhere else (protocol section 2)."""

import re
from functools import lru_cache
from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType, field

from chat_server.model.messages import Conversation, Message
from chat_server.status import Reason, Refused, Status, text
from chat_server.utils.websocket import text_frame

SYSTEM = "System"
EVERYBODY = "ALL"
LIVE, STORED = 1, 2  # a frame's `type`

# The ops, by `op_type` (protocol section 2, Ops).
SEND, HISTORY, UNREAD, MARK_READ, DELETE, BROADCAST, CONVERSATIONS, TYPING = OPS = range(1, 9)

# Beginnings of frames that are cached: each has two names and takes about 300 bytes.
CACHED_HEADS = 8192

match_id = re.compile(r"[A-Za-z0-9_.:-]{1,64}").fullmatch  # of a valid message id


class Request(msgspec.Struct, frozen=True, gc=False):
    """A frame from a client. `op_type` is one of OPS; names are checked where they are used."""

    op_type: int
    sender: str = field(name="from", default="")
    to: str = ""
    type: Literal[1] = 1
    content: str = ""


class Frame(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A frame to a client. Keys that are UNSET are left out."""

    sender: str = field(name="from")
    to: str
    type: int = LIVE
    op_type: Status
    content: str
    msg: str
    id: str | UnsetType = UNSET
    time: int | UnsetType = UNSET
    read: bool | UnsetType = UNSET
    unread: int | UnsetType = UNSET
    online: bool | UnsetType = UNSET
    reason: Reason | UnsetType = UNSET


_decode = msgspec.json.Decoder(Request).decode
_json = msgspec.json.Encoder().encode


def _encode(record: Frame) -> bytes:
    return text_frame(_json(record))


def decode(data: str) -> Request | Refused:
    """The request in a text frame, or the refusal (40000) that says what is wrong with it.

    The refusal is not raised: its traceback would keep the frame, in a cycle, until the next collection.
    """
    try:
        request = _decode(data)
    except msgspec.ValidationError as error:
        return Refused(Status.FRAME_BAD, Reason.BAD_FRAME, str(error))
    except (ValueError, RecursionError) as error:
        why = f"not JSON: {error}" if isinstance(error, msgspec.DecodeError) else "not JSON"
        return Refused(Status.FRAME_BAD, Reason.BAD_JSON, why)
    if request.op_type not in OPS:
        why = f"unknown op_type: {request.op_type}"
        return Refused(Status.FRAME_BAD, Reason.UNKNOWN_OP, why, field="op_type")
    return request


def is_id(text: str) -> bool:
    """Whether `text` is a valid message id."""
    return match_id(text) is not None


def given_id(content: str) -> str:
    """The id in `ID\\nTEXT` if it is valid, otherwise an empty string."""
    id, _ = split(content)
    return id if is_id(id) else ""


def split(content: str) -> tuple[str, str]:
    """The id and the text of `ID\\nTEXT`. The id is not checked; it is empty if the server chooses it."""
    first, newline, rest = content.partition("\n")
    return (first, rest) if newline else ("", content)


class Frames:
    """Encodes the frames of the server for the wire, with texts in `language`."""

    def __init__(self, language: str) -> None:
        self._texts = {status: text(status, language) for status in Status}
        self._live_head = lru_cache(CACHED_HEADS)(self._make_live_head)
        self._ack_head = lru_cache(CACHED_HEADS)(self._make_ack_head)
        self._live_middle = b',"msg":%b,"id":"' % _json(self._texts[Status.RECEIVED])

    def answer(self, to: str, status: Status, content: str = "") -> bytes:
        """The server's answer to a socket of `to`."""
        return _encode(Frame(sender=SYSTEM, to=to, op_type=status, content=content, msg=self._texts[status]))

    def acknowledgement(self, to: str, status: Status, id: str, time: int) -> bytes:
        """The answer to a message that is stored; `time` in microseconds.

        There are two frames for each message, this one and `live`; so what repeats in them is encoded once. Tests
        compare them with what msgspec makes of a Frame.
        """
        return text_frame(b'%b%b","time":%d}' % (self._ack_head(to, status), id.encode(), time // 1000))

    def _make_ack_head(self, to: str, status: Status) -> bytes:
        frame = Frame(sender=SYSTEM, to=to, op_type=status, content="", msg=self._texts[status])
        return _json(frame)[:-1] + b',"id":"'

    def refusal(self, to: str, refused: Refused, id: str = "") -> bytes:
        """The answer to a refused request; `id` is that of its message."""
        return _encode(
            Frame(
                sender=SYSTEM,
                to=to,
                op_type=refused.status,
                content=refused.why,
                msg=self._texts[refused.status],
                id=id or UNSET,
                reason=refused.reason,
            )
        )

    def live(self, message: Message, time: int) -> bytes:
        """A message for its receiver's sockets and its sender's other ones; `time` in microseconds."""
        id = message.id.encode()
        content = _json(f"{message.id}\n{message.text}")
        head = self._live_head(message.sender, message.receiver)
        return text_frame(b'%b%b%b%b","time":%d}' % (head, content, self._live_middle, id, time // 1000))

    def _make_live_head(self, sender: str, receiver: str) -> bytes:
        frame = Frame(sender=sender, to=receiver, op_type=Status.RECEIVED, content="", msg="")
        return _json(frame).removesuffix(b'"","msg":""}')

    def stored(self, message: Message, *, read: bool | None = None) -> bytes:
        """A message of the history; `read` replaces what the message says."""
        return _encode(self._stored(message, Status.HISTORY, message.read if read is None else read))

    def conversation(self, conversation: Conversation, user: str, *, online: bool, read: bool) -> bytes:
        """A conversation of `user`: its last message, whether that is read, how many are unread, who is online."""
        if last := conversation.last:
            frame = self._stored(last, Status.CONVERSATIONS, read)
        else:
            frame = Frame(
                sender=user,
                to=conversation.peer,
                type=STORED,
                op_type=Status.CONVERSATIONS,
                content="",
                msg=self._texts[Status.CONVERSATIONS],
                time=conversation.time // 1000,
            )
        return _encode(msgspec.structs.replace(frame, unread=conversation.unread, online=online))

    def notice(self, sender: str, to: str, status: Status, lines: list[str]) -> bytes:
        """A change of messages by another device, with one id per line."""
        return _encode(
            Frame(
                sender=sender,
                to=to,
                type=STORED,
                op_type=status,
                content="\n".join(lines),
                msg=self._texts[status],
            )
        )

    def typing(self, sender: str, to: str, content: str) -> bytes:
        """Tell a receiver whether `sender` is typing."""
        return _encode(
            Frame(sender=sender, to=to, op_type=Status.TYPING, content=content, msg=self._texts[Status.TYPING])
        )

    def broadcast(self, sender: str, content: str, time: int) -> bytes:
        """A message to all online users; `time` in microseconds."""
        return _encode(
            Frame(
                sender=sender,
                to=EVERYBODY,
                op_type=Status.RECEIVED,
                content=content,
                msg=self._texts[Status.RECEIVED],
                time=time // 1000,
            )
        )

    def _stored(self, message: Message, status: Status, read: bool) -> Frame:
        return Frame(
            sender=message.sender,
            to=message.receiver,
            type=STORED,
            op_type=status,
            content=f"{message.id}\n{message.text}",
            msg=self._texts[status],
            id=message.id,
            time=message.time // 1000,
            read=read,
        )
