"""The relay of relay.py on picows in place of aiohttp: what the edge could cost. It knows no accounts at all.

python -m bench.relay_picows --port 8091
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import defaultdict

import msgspec
import uvloop
from picows import (
    WSFrame,
    WSListener,
    WSMsgType,
    WSTransport,
    WSUpgradeRequest,
    WSUpgradeResponse,
    WSUpgradeResponseWithListener,
    ws_create_server,
)

from bench.relay import Said, Told

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Said).decode
_users: defaultdict[str, set[WSTransport]] = defaultdict(set)


class Link(WSListener):
    """One socket; every frame is a write of its own."""

    def __init__(self, uid: str) -> None:
        self._uid = uid

    def on_ws_connected(self, transport: WSTransport) -> None:
        """Greet."""
        _users[self._uid].add(transport)
        transport.send(WSMsgType.TEXT, _encode(Told("System", self._uid, 40003, "", "connected")))

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        """Forget it."""
        _users[self._uid].discard(transport)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """Pass a message on and acknowledge it."""
        if frame.msg_type == WSMsgType.CLOSE:
            transport.disconnect()
        if frame.msg_type != WSMsgType.TEXT:
            return
        said = _decode(frame.get_payload_as_memoryview())
        message_id = said.content.partition("\n")[0]
        now = time.time_ns() // 1_000_000
        payload = _encode(Told(self._uid, said.to, 40011, said.content, "message received", message_id, now))
        for other in _users[said.to]:
            other.send(WSMsgType.TEXT, payload)
        transport.send(
            WSMsgType.TEXT, _encode(Told("System", self._uid, 40018, "", "receiver online", message_id, now))
        )


def _listener(request: WSUpgradeRequest) -> WSUpgradeResponseWithListener | Link:
    path = request.path.decode()
    if path.startswith("/ping"):
        return WSUpgradeResponseWithListener(WSUpgradeResponse.create_ok_response(b"ok"), None)
    return Link(path.partition("uid=")[2].partition("&")[0])


async def _serve(port: int) -> None:
    server = await ws_create_server(_listener, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


def main() -> None:
    """Serve on loopback until a signal ends it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--port", type=int, required=True)
    asyncio.Runner(loop_factory=uvloop.new_event_loop).run(_serve(parser.parse_args().port))


if __name__ == "__main__":
    main()
