"""The bytes of one socket: fragments, bad input, close codes, compression (protocol section 2; RFC 6455)."""

import asyncio
import json
import signal
import sqlite3
import zlib
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory

from tests import raw
from tests.harness import ServerHandle, serving, subprocess_server, wait_until

MAX_FRAME_BYTES = 65536  # the default of MaxFrameBytes


def padded(size: int, content: str = "m1\nhello") -> bytes:
    """Return a valid request of exactly `size` bytes."""
    text = json.dumps({"op_type": 1, "content": content}).encode()
    return text[:-1] + b" " * (size - len(text)) + text[-1:]


def fragments(text: bytes, *at: int) -> list[bytes]:
    """Return the frames of a message that is cut at these positions."""
    ends = (0, *at, len(text))
    parts = [text[start:end] for start, end in pairwise(ends)]
    last = len(parts) - 1
    return [raw.frame(part, raw.CONTINUATION if i else raw.TEXT, fin=i == last) for i, part in enumerate(parts)]


# --- fragments and partial frames


async def test_a_fragmented_message_is_one_message(server: ServerHandle) -> None:
    text = json.dumps({"op_type": 1, "content": "m1\n漢字 😀"}, ensure_ascii=False).encode()
    async with raw.chat(server, "1", to="2") as one:
        for frame in fragments(text, 0, 5, text.index("😀".encode()) + 2, len(text)):
            await one.write(frame)
        assert (await one.answer())["id"] == "m1"
    async with server.chat("2", to="1") as two:
        assert (await two.ask(3))[0]["content"] == "m1\n漢字 😀"


async def test_a_ping_between_fragments_is_answered_immediately(server: ServerHandle) -> None:
    first, second = fragments(padded(100), 50)
    async with raw.chat(server, "1", to="2") as one:
        await one.write(first + raw.frame(b"are you there", raw.PING))
        assert await one.pong() == b"are you there"
        await one.write(second)
        assert (await one.answer())["id"] == "m1"


async def test_frames_in_one_packet_are_answered_in_order(server: ServerHandle) -> None:
    await server.make_contacts("1", "2")
    async with raw.chat(server, "1", to="2") as one:
        await one.write(b"".join(raw.request(1, f"m{n}\nhello") for n in range(300)))
        assert [(await one.answer())["id"] for _ in range(300)] == [f"m{n}" for n in range(300)]


async def test_a_frame_may_arrive_byte_by_byte(server: ServerHandle) -> None:
    async with raw.chat(server, "1", to="2") as one:
        for byte in raw.request(1, "m1\nhello"):
            await one.write(bytes([byte]))
            await asyncio.sleep(0)
        assert (await one.answer())["id"] == "m1"


async def test_an_unmasked_frame_is_accepted(server: ServerHandle) -> None:
    # RFC 6455 section 5.1 requires the server to close the connection; aiohttp accepts the frame, which is harmless.
    async with raw.chat(server, "1", to="2") as one:
        await one.write(raw.frame(padded(100), mask=b""))
        assert (await one.answer())["id"] == "m1"
        assert (await one.ask(1, "m2\nhello"))["id"] == "m2"


async def test_frames_sent_with_the_upgrade_are_answered(server: ServerHandle) -> None:
    async with raw.chat(server, "1", to="2", early=raw.request(1, "m1\nhello")) as one:
        assert (await one.answer())["id"] == "m1"


# --- what closes a socket


async def assert_closes(server: ServerHandle, data: bytes, code: int) -> None:
    """Fail unless `data` closes the socket with `code` after an answered request and leaves other sockets alone."""
    async with raw.chat(server, "1", to="2") as one, server.chat("2", to="1") as two:
        await one.write(raw.request(1, "before\nhello") + data)  # the first call sends a message, later calls a retry
        assert (await one.answer())["id"] == "before"
        assert await one.wait_closed() == code, data[:60]
        assert (await two.answer(2, "-1"))["content"] == "1"


async def test_text_that_is_not_utf8_closes_with_1007(server: ServerHandle) -> None:
    for data in (
        raw.frame(b'{"op_type": 1, "content": "\xff"}'),
        raw.frame(b"\xed\xa0\x80"),  # a surrogate
        raw.frame(b"\xf0\x9f", fin=False) + raw.frame(b"\x98", raw.CONTINUATION),  # an incomplete character
    ):
        await assert_closes(server, data, 1007)


async def test_a_binary_frame_closes_with_1003(server: ServerHandle) -> None:
    for data in (
        raw.frame(padded(100), raw.BINARY),
        raw.frame(b"", raw.BINARY),
        raw.frame(b"a", raw.BINARY, fin=False) + raw.frame(b"b", raw.CONTINUATION),
    ):
        await assert_closes(server, data, 1003)


async def test_a_frame_over_max_frame_bytes_closes_with_1009(server: ServerHandle) -> None:
    for data in (
        raw.frame(padded(MAX_FRAME_BYTES + 1)),
        raw.header(MAX_FRAME_BYTES + 1),
        raw.header(2**40),
        raw.header(2**63 - 1),
        raw.header(2**64 - 1),
        b"".join(fragments(padded(MAX_FRAME_BYTES + 1), 1000, 40000)),
        raw.frame(b" " * MAX_FRAME_BYTES, fin=False) + raw.frame(b" ", raw.CONTINUATION, fin=False),
    ):
        await assert_closes(server, data, 1009)


async def test_a_frame_of_max_frame_bytes_is_accepted(server: ServerHandle) -> None:
    """It may be one frame or several fragments."""
    async with raw.chat(server, "1", to="2") as one:
        await one.write(raw.frame(padded(MAX_FRAME_BYTES)))
        assert (await one.answer())["id"] == "m1"
        await one.write(b"".join(fragments(padded(MAX_FRAME_BYTES, "m2\nhello"), 1, 60000)))
        assert (await one.answer())["id"] == "m2"


@pytest.mark.parametrize("size", [256, 5000])
async def test_max_frame_bytes_is_configurable(tmp_path: Path, size: int) -> None:
    async with serving(tmp_path, users=("1", "2"), MaxFrameBytes=size) as server:
        async with raw.chat(server, "1", to="2") as one:
            await one.write(raw.frame(padded(size)))
            assert (await one.answer())["id"] == "m1"
        await assert_closes(server, raw.frame(padded(size + 1)), 1009)


async def test_a_websocket_protocol_error_closes_with_1002(server: ServerHandle) -> None:
    for data in (
        *(raw.frame(padded(100), rsv=rsv) for rsv in (1, 2, 4)),
        *(raw.frame(b"", opcode) for opcode in (3, 7, 11, 15)),  # reserved opcodes
        raw.frame(b"", raw.PING, fin=False),
        raw.frame(b"x" * 126, raw.PING),
        raw.frame(b"more", raw.CONTINUATION),  # without a first fragment
        raw.frame(b"begun", fin=False) + raw.frame(padded(100)),  # without a last fragment
        raw.frame(b"\x03", raw.CLOSE),  # half a close code
        raw.close(1004),
        raw.close(999),
        raw.close(1005),
        raw.close(1006),
        raw.close(5000),
        raw.close(65535),
    ):
        await assert_closes(server, data, 1002)


async def test_a_hundred_bad_frames_at_once_close_with_1008(server: ServerHandle) -> None:
    """Each of them is answered first."""
    async with raw.chat(server, "1", to="2") as one:
        await one.write(raw.frame(b"bad") * 100)
        assert [(await one.answer())["op_type"] for _ in range(100)] == [40000] * 100
        assert await one.wait_closed() == 1008


async def test_a_hundred_bad_frames_in_sequence_close_with_1008(server: ServerHandle) -> None:
    """Each of them is answered first."""
    async with raw.chat(server, "1", to="2") as one:
        for _ in range(100):
            await one.write(raw.frame(b"bad"))
            assert (await one.answer())["op_type"] == 40000
        assert await one.wait_closed() == 1008


async def test_a_good_frame_resets_the_count_of_bad_frames(server: ServerHandle) -> None:
    async with raw.chat(server, "1", to="2") as one:
        for n in range(3):
            await one.write(raw.frame(b"bad") * 99 + raw.request(1, f"m{n}\nhello"))
            assert [(await one.answer())["op_type"] for _ in range(100)] == [40000] * 99 + [40019]
        # A refused request counts as a good frame.
        await one.write(raw.frame(b"bad") * 99 + raw.request(2, "no page") + raw.frame(b"bad") * 99)
        assert [(await one.answer())["op_type"] for _ in range(199)] == [40000] * 99 + [40004] + [40000] * 99


# --- bad input that leaves the socket open


BAD = (
    (b"", "bad_json"),
    (b"hello", "bad_json"),
    (b"{", "bad_json"),
    (b'{"op_type": 1}{"op_type": 1}', "bad_json"),
    (b"{'op_type': 1}", "bad_json"),
    (b'{"op_type": NaN}', "bad_json"),
    (b'{"op_type": 1, "content": "\n"}', "bad_json"),
    (b'{"op_type": 1, "content": "\\ud800"}', "bad_json"),
    (b'{"op_type": 1, "content": "\\udc00\\ud800"}', "bad_json"),
    (b'{"op_type": 1, "key": ' + b"[" * 60000, "bad_json"),
    (b'{"op_type": 1, "key": ' + b'{"":' * 15000, "bad_json"),
    (b"null", "bad_frame"),  # crashed the Go server
    (b"[]", "bad_frame"),
    (b"1", "bad_frame"),
    (b'"hello"', "bad_frame"),
    (b"{}", "bad_frame"),
    (b'{"op_type": null}', "bad_frame"),
    (b'{"op_type": true}', "bad_frame"),
    (b'{"op_type": "1"}', "bad_frame"),
    (b'{"op_type": 1.5}', "bad_frame"),
    (b'{"op_type": 1e999}', "bad_frame"),
    (b'{"op_type": ' + b"9" * 60000 + b"}", "bad_frame"),
    (b'{"op_type": 1, "content": 1}', "bad_frame"),
    (b'{"op_type": 1, "content": null}', "bad_frame"),
    (b'{"op_type": 1, "from": 1}', "bad_frame"),
    (b'{"op_type": 1, "to": ["2"]}', "bad_frame"),
    (b'{"op_type": 1, "type": 2}', "bad_frame"),
    (b'{"op_type": 1, "type": "1"}', "bad_frame"),
    (b'{"op_type": 0}', "unknown_op"),
    (b'{"op_type": -1}', "unknown_op"),
    (b'{"op_type": 9}', "unknown_op"),
    (b'{"op_type": 1180591620717411303424}', "unknown_op"),
)


async def test_a_bad_frame_gets_40000_and_leaves_the_socket_open(server: ServerHandle) -> None:
    """The answer contains the reason."""
    await server.make_contacts("1", "2")
    async with raw.chat(server, "1", to="2") as one:
        for data, reason in BAD:
            await one.write(raw.frame(data))
            answer = await one.answer()
            fields = (answer["op_type"], answer["from"], answer["to"], answer["reason"], bool(answer["content"]))
            assert fields == (40000, "System", "1", reason, True), data[:60]
            assert (await one.ask(1, "hello"))["op_type"] == 40019


async def test_answers_to_bad_frames_keep_their_order(server: ServerHandle) -> None:
    requests = {
        40019: raw.request(1, "hello"),
        40000: raw.frame(b"bad"),
        40004: raw.request(2, "no page"),
        40008: raw.request(1, ""),
        40005: raw.request(2, "0-1"),
        40023: raw.request(7, "-1"),
        40009: raw.request(6, "all"),
    }
    order = [*requests, *reversed(requests), *requests] * 10
    await server.make_contacts("1", "2")
    async with raw.chat(server, "1", to="2") as one:
        await one.write(b"".join(requests[code] for code in order))
        assert [(await one.answer())["op_type"] for _ in order] == order


# --- closing


async def test_a_close_frame_is_answered_with_the_same_code(server: ServerHandle) -> None:
    for payload, code in (
        (b"", 1000),
        (b"\x03\xe8", 1000),
        (b"\x03\xe9going away", 1001),
        (b"\x0f\xa0", 4000),
        (b"\x13\x87" + "再見".encode(), 4999),
    ):
        async with raw.chat(server, "1", to="2") as one:
            await one.write(raw.frame(payload, raw.CLOSE))
            assert await one.wait_closed() == code
            with pytest.raises(raw.ConnectionCut):  # the server then ends the connection
                await one.read_bytes()


async def test_only_requests_before_a_close_frame_are_answered(
    server: ServerHandle,
) -> None:
    async with raw.chat(server, "1", to="2") as one:
        sends = b"".join(raw.request(1, f"m{n}\nhello") for n in range(5))
        await one.write(sends + raw.frame(b"bad") + raw.close(1000) + raw.request(1, "late\nhello"))
        assert [(await one.answer())["op_type"] for _ in range(6)] == [40019] * 5 + [40000]
        assert (await one.read()).opcode == raw.CLOSE
        assert await one.read_to_end() == []
    async with server.chat("2", to="1") as two:
        assert [frame["id"] for frame in (await two.ask(3))[:-1]] == [f"m{n}" for n in range(5)]


async def test_answers_of_the_same_moment_precede_the_close_frame(server: ServerHandle) -> None:
    for end, code in ((raw.close(1000), 1000), (raw.frame(b"x", raw.BINARY), 1003)):
        async with raw.chat(server, "1", to="2") as one:
            await one.write(raw.frame(b"p", raw.PING) + end)  # one packet: the pong still waits when the socket closes
            received = [await one.read() for _ in range(2)]
            assert [read.opcode for read in received] == [raw.PONG, raw.CLOSE]
            assert int.from_bytes(received[1].payload[:2], "big") == code


async def test_a_client_can_close_normally(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one:
        await one.send("hello")
        await one.connection.close(4321, "bye")
        assert one.connection.close_code == 4321
        assert one.connection.protocol.close_rcvd is not None
        assert one.connection.protocol.close_rcvd.code == 4321


async def test_sigterm_closes_every_socket_with_1001(tmp_path: Path) -> None:
    async with subprocess_server(tmp_path / "data", users=("1", "2")) as server:
        async with server.chat("1") as one, server.chat("2") as two, server.chat("2") as other:
            server.send_signal(signal.SIGTERM)
            assert [await one.wait_closed(), await two.wait_closed(), await other.wait_closed()] == [1001] * 3
        assert await server.wait() == 0


async def test_a_stopped_reader_is_closed_with_1013(
    tmp_path: Path,
) -> None:
    """Its messages stay unread, and other users continue to chat."""
    async with serving(tmp_path, users=("1", "2", "3"), StrangerLimit=0, OutboxBytes=262144) as server:
        async with (
            raw.chat(server, "2", to="1", buffer=4096) as slow,
            server.chat("1", to="2") as one,
            server.chat("3", to="1") as three,
        ):
            sent, online = 0, True
            while online:
                for n in range(sent, sent + 20):
                    await one.put(1, f"m{n}\n{'x' * 16000}")
                acks = [await one.receive() for _ in range(20)]
                assert [ack["id"] for ack in acks] == [f"m{n}" for n in range(sent, sent + 20)]
                sent += 20
                assert (await three.send(f"between {sent}"))["op_type"] == 40018
                assert (await one.receive())["from"] == "3"
                online = acks[-1]["op_type"] == 40018
            live = 0
            while (read := await slow.read()).opcode != raw.CLOSE:
                live += read.opcode == raw.TEXT
            assert read.payload[:2] == (1013).to_bytes(2, "big")
            assert 0 < live < sent
        async with server.chat("2", to="1", max_size=None) as two:
            assert [frame["id"] for frame in (await two.ask(3))[:-1]] == [f"m{n}" for n in range(sent)]


async def test_a_deleted_session_closes_its_sockets_with_4001(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, users=("1", "2"), HeartbeatSeconds=0.2) as server,
        server.chat("1") as one,
        server.chat("1") as other,
        server.chat("2") as two,
    ):
        with closing(sqlite3.connect(tmp_path / "chat.db")) as database, database:
            database.execute("DELETE FROM sessions WHERE user = '1'")
        assert [await one.wait_closed(), await other.wait_closed()] == [4001, 4001]
        await two.expect_nothing()


async def test_an_unavailable_store_closes_no_socket(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(tmp_path, users=("1", "2"), HeartbeatSeconds=0.2) as server, server.chat("1", to="2") as one:
        with closing(sqlite3.connect(tmp_path / "chat.db")) as database:
            database.execute("ALTER TABLE sessions RENAME TO away")
            await wait_until(lambda: caplog.text.count("sessions not renewed") >= 3)
            assert (await one.send("m1\nhello"))["op_type"] == 40019
            database.execute("ALTER TABLE away RENAME TO sessions")
        async with server.chat("1", to="2"):
            assert (await one.send("m2\nhello"))["op_type"] == 40019


async def test_a_client_that_still_sends_gets_the_close_frame(server: ServerHandle) -> None:
    for data, code in ((raw.frame(b"", raw.BINARY), 1003), (raw.header(2**40), 1009)):
        async with raw.chat(server, "1", to="2") as one:
            await one.write(data)
            for _ in range(50):  # the server reads these, so no RST overtakes the close frame
                await one.write(raw.frame(b"x" * 60000))
                await asyncio.sleep(0.001)
            assert await one.wait_closed() == code


async def test_a_client_with_unread_data_gets_the_close_frame(tmp_path: Path) -> None:
    async with serving(tmp_path, users=("1", "2"), StrangerLimit=0) as server:
        await raw.store_messages(server, "1", "2", raw.MAX_KERNEL_BYTES // 16000 + 100)
        async with raw.chat(server, "2", to="1", buffer=4096) as two:
            await two.put(3)
            await two.wait_stalled()
            response = await server.post(
                "/user/logout", {"user_name": "2"}, headers={"Authorization": f"Bearer {server.tokens['2']}"}
            )
            assert response.json()["status"] == 41015
            assert await two.wait_closed() == 4001


# --- compression

LONG_PERIOD_TEXT = "".join(map(chr, range(0x4E00, 0x4E00 + 2500))) * 2  # repeats only beyond a small window


async def check_compression(server: ServerHandle, **options: Any) -> None:
    """Exchange small and large messages in both directions, live and from the history, with compression."""
    async with server.chat("1", to="2", **options) as one, server.chat("2", to="1", **options) as two:
        assert one.connection.protocol.extensions
        assert one.connection.response
        assert "permessage-deflate" in one.connection.response.headers["Sec-WebSocket-Extensions"]
        for n, text in enumerate(["hello", "x" * 16000, "漢字 😀 " * 1000, LONG_PERIOD_TEXT] * 3):
            assert (await one.send(f"m{n}\n{text}"))["op_type"] == 40018
            assert (await two.receive())["content"] == f"m{n}\n{text}"
        assert len(await two.ask(2, "0-200")) == 13


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"server_no_context_takeover": True, "client_no_context_takeover": True},
        {"server_max_window_bits": 9},
        {"client_max_window_bits": 9},
    ],
)
async def test_compress_compresses_both_directions(tmp_path: Path, parameters: dict[str, Any]) -> None:
    async with serving(tmp_path, users=("1", "2"), Compress="yes", StrangerLimit=0) as server:
        await check_compression(server, compression=None, extensions=[ClientPerMessageDeflateFactory(**parameters)])


async def test_compress_makes_large_frames_smaller(
    tmp_path: Path,
) -> None:
    """A client without the extension still gets plain text."""
    async with (
        serving(tmp_path, users=("1", "2"), Compress="yes", StrangerLimit=0) as server,
        raw.chat(server, "2", extensions="permessage-deflate") as packed,
        raw.chat(server, "2") as plain,
        server.chat("1", to="2") as one,
    ):
        assert b"permessage-deflate" in packed.response
        assert b"permessage-deflate" not in plain.response
        await one.send("m1\n" + "x" * 10000)
        small, large = await packed.read(), await plain.read()
        assert (small.rsv, large.rsv) == (4, 0)
        assert len(small.payload) < 1000 < len(large.payload)


async def test_compress_respects_the_negotiated_window(tmp_path: Path) -> None:
    async with serving(tmp_path, users=("1", "2"), Compress="yes", StrangerLimit=0) as server:
        offer = "permessage-deflate; server_max_window_bits=9"
        async with raw.chat(server, "2", extensions=offer) as two, server.chat("1", to="2") as one:
            assert b"server_max_window_bits=9" in two.response
            await one.send("m1\n" + LONG_PERIOD_TEXT)
            packed = (await two.read()).payload + b"\0\0\xff\xff"
            inflate = zlib.decompressobj(wbits=-9)  # in pieces: zlib may refer to all output of one call
            text = b"".join(inflate.decompress(packed[start : start + 100]) for start in range(0, len(packed), 100))
            assert json.loads(text)["content"] == "m1\n" + LONG_PERIOD_TEXT


async def test_a_message_too_large_after_inflation_closes_with_1009(tmp_path: Path) -> None:
    async with serving(tmp_path, users=("1", "2"), Compress="yes") as server, server.chat("1", to="2") as one:
        await one.send_text("x" * 5_000_000)
        assert await one.wait_closed() == 1009


async def test_compression_is_off_by_default(server: ServerHandle) -> None:
    async with raw.chat(server, "1", to="2", extensions="permessage-deflate; client_max_window_bits") as one:
        assert b"sec-websocket-extensions" not in one.response.lower()
    async with server.chat("1", to="2", compression="deflate") as polite:
        assert polite.connection.protocol.extensions == []
