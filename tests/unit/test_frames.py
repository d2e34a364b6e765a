"""Frames: any input is a request or a refusal, and any output is JSON as the protocol describes it."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chat_server.model.messages import Conversation, Message
from chat_server.service.frames import OPS, Frame, Frames, Request, decode, is_id, split
from chat_server.status import LANGUAGES, Reason, Refused, Status, text
from chat_server.utils.websocket import deflated, frame, text_frame

ID_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-.:"

texts = st.text(st.characters(codec="utf-8"))
ids = st.text(ID_LETTERS, min_size=1, max_size=64)
names = st.text(st.characters(categories=("L", "M", "N")), min_size=1, max_size=64)
statuses = st.sampled_from(Status)
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
keys = st.sampled_from(["from", "to", "type", "op_type", "content", "id"]) | texts
near_frames = st.dictionaries(keys, values, max_size=6).map(json.dumps)
messages = st.builds(Message, names, names, ids, texts, st.integers(0, 2**53), st.booleans())


def encoded(data: bytes) -> dict[str, Any]:
    """Return the record in an unmasked text frame (RFC 6455 section 5.2)."""
    start, size = {126: (4, data[2:4]), 127: (10, data[2:10])}.get(data[1], (2, data[1:2]))
    assert data[0] == 0x81
    assert len(data) == start + int.from_bytes(size, "big")
    record = json.loads(data[start:].decode())
    assert isinstance(record, dict)
    return record


@given(texts | st.text() | near_frames | values.map(json.dumps))
@example("null")
@example("")
@example("{")
@example("[" * 100_000)
@example('{"op_type": 1, "content": "\\ud800"}')
@example('{"op_type": 1, "content": "\ud800"}')
@example('{"op_type": 1, "op_type": "1"}')
@example('{"op_type": 1e400}')
@example('{"op_type": 1.0}')
@example('{"op_type": true}')
@example('{"op_type": ' + "9" * 5000 + "}")
@example('\ufeff{"op_type": 1}')
def test_any_text_is_a_request_or_is_refused(data: str) -> None:
    request = decode(data)
    if isinstance(request, Refused):
        assert request.status is Status.FRAME_BAD
        assert request.reason in (Reason.BAD_JSON, Reason.BAD_FRAME, Reason.UNKNOWN_OP)
        assert request.why
        request.why.encode()  # raises an error if it cannot be sent
        return
    frame = json.loads(data)
    assert isinstance(frame, dict)
    assert (request.op_type, type(request.op_type)) == (frame["op_type"], int)
    assert (request.sender, request.to) == (frame.get("from", ""), frame.get("to", ""))
    assert (request.type, request.content) == (frame.get("type", 1), frame.get("content", ""))
    "".join((request.sender, request.to, request.content)).encode()  # raises an error if it cannot be sent


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("null", Reason.BAD_FRAME),
        ("[]", Reason.BAD_FRAME),
        ('"text"', Reason.BAD_FRAME),
        ("{}", Reason.BAD_FRAME),
        ('{"op_type": null}', Reason.BAD_FRAME),
        ('{"op_type": "1"}', Reason.BAD_FRAME),
        ('{"op_type": true}', Reason.BAD_FRAME),
        ('{"op_type": 1.5}', Reason.BAD_FRAME),
        ('{"op_type": 1, "type": 2}', Reason.BAD_FRAME),
        ('{"op_type": 1, "from": 1}', Reason.BAD_FRAME),
        ('{"op_type": 1, "to": ["2"]}', Reason.BAD_FRAME),
        ('{"op_type": 1, "content": null}', Reason.BAD_FRAME),
        ("", Reason.BAD_JSON),
        ("hello", Reason.BAD_JSON),
        ('{"op_type": 1', Reason.BAD_JSON),
        ('{"op_type": 1} {}', Reason.BAD_JSON),
        ('{"op_type": 1, "content": "\\ud800"}', Reason.BAD_JSON),
    ],
)
def test_invalid_json_and_invalid_frames_have_different_reasons(data: str, reason: Reason) -> None:
    refused = decode(data)
    assert isinstance(refused, Refused)
    assert refused.reason is reason


def test_a_wrong_key_is_named() -> None:
    assert "content" in str(decode('{"op_type": 1, "content": 5}'))
    assert "op_type" in str(decode("{}"))


@given(names, names, texts, st.sampled_from(OPS))
def test_a_request_is_decoded_unchanged(sender: str, to: str, content: str, op_type: int) -> None:
    frame = {"from": sender, "to": to, "type": 1, "op_type": op_type, "content": content, "more": {"a": [1]}}
    assert decode(json.dumps(frame)) == Request(op_type, sender, to, 1, content)
    assert decode(json.dumps(frame, ensure_ascii=False)) == Request(op_type, sender, to, 1, content)


@given(st.text() | ids)
def test_an_id_has_1_to_64_allowed_letters(text: str) -> None:
    assert is_id(text) == (1 <= len(text) <= 64 and all(char in ID_LETTERS for char in text))


@given(ids, texts)
def test_the_first_line_is_the_id(id: str, text: str) -> None:
    assert split(f"{id}\n{text}") == (id, text)
    assert split(f"\n{text}") == ("", text)
    assert split(id) == ("", id)


@given(messages, st.sampled_from(LANGUAGES), st.integers(0, 2**53))
def test_live_frame_equals_its_msgspec_encoding(message: Message, language: str, time: int) -> None:
    frame = Frame(
        sender=message.sender,
        to=message.receiver,
        op_type=Status.RECEIVED,
        content=f"{message.id}\n{message.text}",
        msg=text(Status.RECEIVED, language),
        id=message.id,
        time=time // 1000,
    )
    frames = Frames(language)
    for _ in range(2):  # the second time, its beginning is cached
        assert frames.live(message, time) == text_frame(msgspec.json.encode(frame))


@given(names, statuses, ids, st.integers(0, 2**53), st.sampled_from(LANGUAGES))
def test_acknowledgement_equals_its_msgspec_encoding(
    to: str, status: Status, id: str, time: int, language: str
) -> None:
    texts = text(status, language)
    frame = Frame(sender="System", to=to, op_type=status, content="", msg=texts, id=id, time=time // 1000)
    frames = Frames(language)
    for _ in range(2):
        assert frames.acknowledgement(to, status, id, time) == text_frame(msgspec.json.encode(frame))


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 70000])
def test_text_frame_has_the_header_of_its_length(size: int) -> None:
    payload = b"x" * size
    assert text_frame(payload) == frame(0x81, payload)


@given(messages, st.sampled_from(LANGUAGES))
def test_a_stored_message_has_these_keys(message: Message, language: str) -> None:
    assert encoded(Frames(language).stored(message)) == {
        "from": message.sender,
        "to": message.receiver,
        "type": 2,
        "op_type": 40005,
        "content": f"{message.id}\n{message.text}",
        "msg": text(Status.HISTORY, language),
        "id": message.id,
        "time": message.time // 1000,
        "read": message.read,
    }


@given(messages, st.integers(0, 1000), st.booleans())
def test_a_conversation_extends_its_last_message(message: Message, unread: int, online: bool) -> None:
    frames = Frames("en")
    expected = encoded(frames.stored(message)) | {
        "op_type": 40023,
        "msg": text(Status.CONVERSATIONS, "en"),
        "unread": unread,
        "online": online,
    }
    conversation = Conversation("2", message, unread, message.time)
    assert encoded(frames.conversation(conversation, "1", online=online, read=message.read)) == expected


@given(names, statuses, texts)
def test_an_answer_is_from_system(to: str, status: Status, content: str) -> None:
    bare = {"from": "System", "to": to, "type": 1, "op_type": status, "content": content, "msg": text(status, "zh")}
    assert encoded(Frames("zh").answer(to, status, content)) == bare


@given(names, statuses, st.sampled_from(Reason), texts, ids)
def test_a_refusal_has_a_reason_and_the_id_of_its_message(
    to: str, status: Status, reason: Reason, why: str, id: str
) -> None:
    frames = Frames("en")
    refused = Refused(status, reason, why)
    bare = {"from": "System", "to": to, "type": 1, "op_type": status, "content": why, "msg": text(status, "en")}
    assert encoded(frames.refusal(to, refused)) == bare | {"reason": reason.value}
    assert encoded(frames.refusal(to, refused, id)) == bare | {"reason": reason.value, "id": id}


@given(names, names, st.lists(ids, min_size=1, max_size=5))
def test_a_notice_lists_one_id_per_line(sender: str, to: str, lines: list[str]) -> None:
    assert encoded(Frames("en").notice(sender, to, Status.MARKED_READ, lines)) == {
        "from": sender,
        "to": to,
        "type": 2,
        "op_type": 40007,
        "content": "\n".join(lines),
        "msg": text(Status.MARKED_READ, "en"),
    }


@given(names, texts, st.integers(0, 2**53))
def test_a_broadcast_has_these_keys(sender: str, content: str, time: int) -> None:
    assert encoded(Frames("en").broadcast(sender, content, time)) == {
        "from": sender,
        "to": "ALL",
        "type": 1,
        "op_type": 40011,
        "content": content,
        "msg": text(Status.RECEIVED, "en"),
        "time": time // 1000,
    }


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_status_has_a_text_in_every_language(language: str) -> None:
    assert all(text(status, language) for status in Status)


@given(st.lists(st.sampled_from([0, 1, 125, 126, 255, 256, 65535, 65536]), max_size=5), st.integers(8, 15))
def test_frames_are_compressed_one_by_one(sizes: list[int], window: int) -> None:
    packed = [text_frame(b"x" * size) for size in sizes]
    assert deflated(b"".join(packed), window) == b"".join(deflated(one, window) for one in packed)
