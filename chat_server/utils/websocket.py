"""WebSocket frames of a server, which have no mask (RFC 6455 section 5.2)."""

import struct
import zlib
from collections.abc import Iterator
from functools import lru_cache

TEXT, CLOSE, PING, PONG = 0x81, 0x88, 0x89, 0x8A
COMPRESSED = 0x40
# Shorter texts hardly shrink. In bytes.
COMPRESS_FROM = 256


def text_frame(payload: bytes) -> bytes:
    """A whole text frame. Most are of this length, so it is written out: every message makes two frames."""
    size = len(payload)
    return b"\x81\x7e%c%c%b" % (size >> 8, size & 255, payload) if 126 <= size < 65536 else frame(TEXT, payload)


def frame(opcode: int, payload: bytes) -> bytes:
    """A whole frame; `opcode` with the FIN bit."""
    size = len(payload)
    if size < 126:
        return struct.pack("!BB", opcode, size) + payload
    if size < 65536:
        return struct.pack("!BBH", opcode, 126, size) + payload
    return struct.pack("!BBQ", opcode, 127, size) + payload


@lru_cache(maxsize=8)
def deflated(frames: bytes, window: int) -> bytes:
    """Data frames, each compressed by itself (RFC 7692 section 7.2.1), so that several receivers share the result.

    `window`: the negotiated size of the window, in bits.
    """
    return b"".join([_deflated(opcode, payload, window) for opcode, payload in _parts(frames)])


def _parts(frames: bytes) -> Iterator[tuple[int, bytes]]:
    """Iterate over the opcodes (with the FIN bit) and payloads of whole frames without masks."""
    start = 0
    while start < len(frames):
        opcode, size = frames[start], frames[start + 1]
        start += 2
        if size >= 126:
            bytes_ = 2 if size == 126 else 8
            size = int.from_bytes(frames[start : start + bytes_], "big")
            start += bytes_
        yield opcode, frames[start : start + size]
        start += size


def _deflated(opcode: int, payload: bytes, window: int) -> bytes:
    if len(payload) < COMPRESS_FROM:
        return frame(opcode, payload)
    deflate = zlib.compressobj(wbits=-max(window, 9))
    return frame(opcode | COMPRESSED, (deflate.compress(payload) + deflate.flush(zlib.Z_SYNC_FLUSH))[:-4])
