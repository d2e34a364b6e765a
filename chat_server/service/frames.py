"""The records that travel on the wire, decoded and encoded here and nowhere else (protocol section 2)."""

import re
from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType, field

from chat_server.model.messages import Conversation, Message
from chat_server.status import Reason, Refused, Status, text
from chat_server.utils.websocket import TEXT, frame

SYSTEM = "System"
EVERYBODY = "ALL"
LIVE, STORED = 1, 2  # a frame's `type`

_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


class Request(msgspec.Struct, frozen=True, gc=False):
    """A frame from a client. `op_type` is checked against the op table, names where they are used."""

    op_type: int
    sender: str = field(name="from", default="")
    to: str = ""
    type: Literal[1] = 1
    content: str = ""


class Frame(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A frame to a client; what is UNSET has no meaning in it and is left out."""

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


_decoder = msgspec.json.Decoder(Request)
_encoder = msgspec.json.Encoder()


def _encode(record: Frame) -> bytes:
    return frame(TEXT, _encoder.encode(record))


def decode(data: str) -> Request | Refused:
    """The request in a text frame, or the refusal (40000) that says what is wrong with it.

    It is not raised: with its traceback it would hold the frame, in a cycle, until the next collection.
    """
    try:
        return _decoder.decode(data)
    except msgspec.ValidationError as error:
        return Refused(Status.FRAME_BAD, Reason.BAD_FRAME, str(error))
    except (ValueError, RecursionError) as error:
        why = f"not JSON: {error}" if isinstance(error, msgspec.DecodeError) else "not JSON"
        return Refused(Status.FRAME_BAD, Reason.BAD_JSON, why)


def is_id(text: str) -> bool:
    """Whether `text` may be a message's id."""
    return _ID.fullmatch(text) is not None


def given_id(content: str) -> str:
    """The id in `ID\\nTEXT`, if it is a valid one, else nothing."""
    id, _ = split(content)
    return id if is_id(id) else ""


def split(content: str) -> tuple[str, str]:
    """The id and the text of `ID\\nTEXT`; an id left to the server is empty. The id is not checked here."""
    first, newline, rest = content.partition("\n")
    return (first, rest) if newline else ("", content)


class Frames:
    """Makes the frames that the server sends, each encoded once, ready for the wire, with texts in `language`."""

    def __init__(self, language: str) -> None:
        self._texts = {status: text(status, language) for status in Status}
        # Looked up once: before Python 3.12 each look at an enum's member is a call.
        self._received = Status.RECEIVED

    def answer(
        self,
        to: str,
        status: Status,
        content: str = "",
        *,
        id: str | UnsetType = UNSET,
        time: int | UnsetType = UNSET,
    ) -> bytes:
        """The server's answer to a socket of `to`; `time` in microseconds."""
        return _encode(
            Frame(
                sender=SYSTEM,
                to=to,
                op_type=status,
                content=content,
                msg=self._texts[status],
                id=id,
                time=time if time is UNSET else time // 1000,
            )
        )

    def refusal(self, to: str, refused: Refused, id: str = "") -> bytes:
        """The answer that says why not; `id` is that of the message it is about."""
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

    def live(self, message: Message) -> bytes:
        """A message on its way to its receiver's sockets, and to its sender's others."""
        return _encode(
            Frame(
                sender=message.sender,
                to=message.receiver,
                op_type=self._received,
                content=f"{message.id}\n{message.text}",
                msg=self._texts[self._received],
                id=message.id,
                time=message.time // 1000,
            )
        )

    def stored(self, message: Message) -> bytes:
        """A message out of the history."""
        return _encode(self._stored(message, Status.HISTORY))

    def conversation(self, conversation: Conversation, online: bool) -> bytes:
        """A conversation: its last message, how many are unread, and whether the other is online."""
        last = self._stored(conversation.last, Status.CONVERSATIONS)
        return _encode(msgspec.structs.replace(last, unread=conversation.unread, online=online))

    def notice(self, sender: str, to: str, status: Status, lines: list[str]) -> bytes:
        """What happened to messages on another device: one id a line."""
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

    def broadcast(self, sender: str, content: str, time: int) -> bytes:
        """A message to everybody online; `time` in microseconds."""
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

    def _stored(self, message: Message, status: Status) -> Frame:
        return Frame(
            sender=message.sender,
            to=message.receiver,
            type=STORED,
            op_type=status,
            content=f"{message.id}\n{message.text}",
            msg=self._texts[status],
            id=message.id,
            time=message.time // 1000,
            read=message.read,
        )
