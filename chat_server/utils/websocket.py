"""Frames as RFC 6455 section 5.2 has them; from a server they bear no mask."""

import struct
import zlib
from functools import lru_cache

TEXT, CLOSE, PING, PONG = 0x81, 0x88, 0x89, 0x8A
COMPRESSED = 0x40
# Shorter texts are not worth compressing. In bytes.
COMPRESS_FROM = 256


def frame(opcode: int, payload: bytes) -> bytes:
    """One whole frame; `opcode` with the FIN bit."""
    size = len(payload)
    if size < 126:
        return struct.pack("!BB", opcode, size) + payload
    if size < 65536:
        return struct.pack("!BBH", opcode, 126, size) + payload
    return struct.pack("!BBQ", opcode, 127, size) + payload


@lru_cache(maxsize=8)
def deflated(text_frame: bytes, window: int) -> bytes:
    """A text frame compressed on its own (RFC 7692 section 7.2.1), so that one fan-out compresses it once.

    `window` is the bits of the window that was agreed on.
    """
    flag = text_frame[1]
    payload = text_frame[2 if flag < 126 else 4 if flag == 126 else 10 :]
    if len(payload) < COMPRESS_FROM:
        return text_frame
    deflate = zlib.compressobj(wbits=-max(window, 9))
    compressed = (deflate.compress(payload) + deflate.flush(zlib.Z_SYNC_FLUSH))[:-4]
    return frame(text_frame[0] | COMPRESSED, compressed)
