"""Packets of a later version of the server, which may run next to this one during an update."""

import msgspec
import pytest

from chat_server.model.messages import Message
from chat_server.service.packets import SessionsEnded, StoredMessage, decode_change, decode_packet, encode, pack, unpack

MESSAGE = Message("ann", "bob", "m1", "hello", 1)


def with_field(payload: bytes) -> bytes:
    """Append a field to a packet."""
    return msgspec.msgpack.encode([*msgspec.msgpack.decode(payload), "later"])


def test_a_field_of_a_later_version_is_ignored() -> None:
    packet = decode_packet(with_field(pack(MESSAGE, 2)))
    assert isinstance(packet, StoredMessage)
    assert unpack(packet) == msgspec.structs.replace(MESSAGE, time=2)
    change = SessionsEnded("ann", None, None)
    assert decode_change(with_field(encode(change))) == change


def test_a_kind_of_a_later_version_is_none() -> None:
    payload = msgspec.msgpack.encode(["later", 1])
    assert decode_packet(payload) is None
    assert decode_change(payload) is None


@pytest.mark.parametrize("payload", [b"", b"\xc1", msgspec.msgpack.encode(["m", 1]), msgspec.msgpack.encode({}), b"\1"])
def test_damaged_packets_are_errors(payload: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_packet(payload)
