"""The relay of relay.py on picows instead of aiohttp, to compare WebSocket libraries. It has no accounts.

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

from bench.relay import RelayFrame, RelayRequest

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(RelayRequest).decode
_users: defaultdict[str, set[WSTransport]] = defaultdict(set)


class PicowsSocket(WSListener):
    """One socket; every frame is one write."""

    def __init__(self, uid: str) -> None:
        self._uid = uid

    def on_ws_connected(self, transport: WSTransport) -> None:
        """Register the socket and send 40003."""
        _users[self._uid].add(transport)
        transport.send(WSMsgType.TEXT, _encode(RelayFrame("System", self._uid, 40003, "", "connected")))

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        """Unregister the socket."""
        _users[self._uid].discard(transport)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """Deliver a message and acknowledge it."""
        if frame.msg_type == WSMsgType.CLOSE:
            transport.disconnect()
        if frame.msg_type != WSMsgType.TEXT:
            return
        message = _decode(frame.get_payload_as_memoryview())
        message_id = message.content.partition("\n")[0]
        now = time.time_ns() // 1_000_000
        payload = _encode(
            RelayFrame(self._uid, message.to, 40011, message.content, "message received", message_id, now)
        )
        for receiver in _users[message.to]:
            receiver.send(WSMsgType.TEXT, payload)
        transport.send(
            WSMsgType.TEXT, _encode(RelayFrame("System", self._uid, 40018, "", "receiver online", message_id, now))
        )


def _listener(request: WSUpgradeRequest) -> WSUpgradeResponseWithListener | PicowsSocket:
    path = request.path.decode()
    if path.startswith("/ping"):
        return WSUpgradeResponseWithListener(WSUpgradeResponse.create_ok_response(b"ok"), None)
    return PicowsSocket(path.partition("uid=")[2].partition("&")[0])


async def _serve(port: int) -> None:
    server = await ws_create_server(_listener, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


def main() -> None:
    """Serve on loopback until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--port", type=int, required=True)
    asyncio.Runner(loop_factory=uvloop.new_event_loop).run(_serve(parser.parse_args().port))


if __name__ == "__main__":
    main()
