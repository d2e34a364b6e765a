"""The database servers under the server: real ones as the tests start them, or a MongoDB that answers at once."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from typing import Any, cast

import uvloop
from bson import BSON, Int64
from bson.codec_options import CodecOptions

from tests import servers

HEADER = 16  # bytes: length, request id, response to, opcode
OP_MSG = 2013


@contextmanager
def running(*, stub: bool) -> Iterator[dict[str, str]]:
    """Run MariaDB, Redis and secantusd (or the stub in its place); yield the environment variables that name them."""
    with ExitStack() as stack:
        mysql, redis = servers.mysql(), servers.redis()
        stack.callback(mysql.stop)
        stack.callback(redis.stop)
        if not stub:
            mongodb = servers.mongodb()
            stack.callback(mongodb.stop)
            yield servers.environ(mysql=mysql, mongodb=mongodb, redis=redis)
            return
        process = stack.enter_context(
            Popen(
                [sys.executable, "-m", "bench.databases"], stdin=DEVNULL, stdout=PIPE, cwd=Path(__file__).parent.parent
            )
        )
        stack.callback(process.terminate)
        assert process.stdout is not None
        port = process.stdout.readline().decode().strip()
        variables = servers.environ(mysql=mysql, redis=redis)
        yield variables | {
            "CHAT_MONGODB_MONGODB": "mongodb",
            "CHAT_MONGODB_MONGODBADDR": "127.0.0.1",
            "CHAT_MONGODB_MONGODBPORT": port,
        }


class Stub(asyncio.Protocol):
    """Speaks MongoDB's OP_MSG and forgets everything: a write has succeeded, a query finds little.

    What it costs the server is what its own code and its driver cost.
    """

    def __init__(self) -> None:
        self._received = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is not derived from it

    def data_received(self, data: bytes) -> None:
        """Answer every whole message."""
        self._received += data
        while len(self._received) >= HEADER and len(self._received) >= (size := _int(self._received, 0)):
            message = bytes(self._received[:size])
            del self._received[:size]
            self._answer(message)

    def _answer(self, message: bytes) -> None:
        legacy = _int(message, 12) != OP_MSG  # the driver's first hello is an OP_QUERY
        answer = BSON.encode(_HELLO if legacy else _reply(message))
        # OP_REPLY has flags, cursor, place and count before the document, OP_MSG has flags and the kind of section.
        body = (b"\0" * 16 + (1).to_bytes(4, "little") if legacy else b"\0" * 5) + answer
        header = (HEADER + len(body), 0, _int(message, 4), 1 if legacy else OP_MSG)
        self._transport.write(b"".join(number.to_bytes(4, "little") for number in header) + body)


_HELLO: dict[str, Any] = {
    "ok": 1.0,
    "helloOk": True,
    "isWritablePrimary": True,
    "ismaster": True,
    "maxBsonObjectSize": 16_777_216,
    "maxMessageSizeBytes": 48_000_000,
    "maxWriteBatchSize": 100_000,
    "minWireVersion": 0,
    "maxWireVersion": 21,
}


def _reply(message: bytes) -> dict[str, Any]:
    """Say what a server that has done it would."""
    size = _int(message, HEADER + 5)
    command: dict[str, Any] = BSON(message[HEADER + 5 : HEADER + 5 + size]).decode(CodecOptions())
    documents = _documents(message, HEADER + 5 + size)
    match next(iter(command)):
        case "hello" | "isMaster" | "ismaster":
            return _HELLO
        case "find":  # of the queries only that for marks, by the messages' own keys, has to find something
            times = command.get("filter", {}).get("_id", {})
            found = [{"_id": time} for time in times["$in"]] if "$in" in times else []
            return {"ok": 1.0, "cursor": {"id": Int64(0), "ns": "chat.chat_messages", "firstBatch": found}}
        case "listIndexes" | "listCollections":
            return {"ok": 1.0, "cursor": {"id": Int64(0), "ns": "chat.chat_messages", "firstBatch": []}}
        case "insert" | "update" | "delete":
            written = documents or len(command.get("documents", command.get("updates", command.get("deletes", []))))
            return {"ok": 1.0, "n": written, "nModified": written}
    return {"ok": 1.0, "n": 0}


def _documents(message: bytes, place: int) -> int:
    """Count the documents of the section (kind 1) that follows a command."""
    if place + 5 > len(message) or message[place] != 1:
        return 0
    end = place + 1 + _int(message, place + 1)
    place = message.index(b"\0", place + 5) + 1
    documents = 0
    while place < end:
        place += _int(message, place)
        documents += 1
    return documents


def _int(data: bytes | bytearray, place: int) -> int:
    return int.from_bytes(data[place : place + 4], "little")


async def _main() -> None:
    server = await asyncio.get_running_loop().create_server(Stub, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_main())
