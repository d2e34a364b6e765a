"""The database servers for the benchmarks: real ones, as in the tests, or a MongoDB stub that stores nothing."""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from typing import Any, cast

import uvloop
from bson import BSON, Int64
from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument

from tests import servers

HEADER = 16  # bytes: length, request id, response to, opcode
OP_MSG = 2013


@contextmanager
def run_databases(*, stub: bool) -> Iterator[dict[str, str]]:
    """Run MariaDB, Redis, and secantusd or the stub. Yields the environment variables with their addresses."""
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


class MongoStub(asyncio.Protocol):
    """A server for MongoDB's OP_MSG protocol that stores nothing: writes succeed, queries find almost nothing.

    With it, a measurement shows the cost of the server's own code and of its driver. It only remembers the newest
    messages, for the scan by which a process of a cluster recovers from a gap.
    """

    def __init__(self) -> None:
        self._received = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's transports do not inherit from it

    def data_received(self, data: bytes) -> None:
        """Answer every complete message."""
        self._received += data
        while len(self._received) >= HEADER and len(self._received) >= (size := _int(self._received, 0)):
            message = bytes(self._received[:size])
            del self._received[:size]
            self._answer(message)

    def _answer(self, message: bytes) -> None:
        legacy = _int(message, 12) != OP_MSG  # the driver sends its first hello as OP_QUERY
        answer = BSON.encode(_HELLO if legacy else _reply(message))
        # Before the document, OP_REPLY has flags, cursor id, position and count; OP_MSG has flags and the section kind.
        body = (b"\0" * 16 + (1).to_bytes(4, "little") if legacy else b"\0" * 5) + answer
        header = (HEADER + len(body), 0, _int(message, 4), 1 if legacy else OP_MSG)
        self._transport.write(b"".join(number.to_bytes(4, "little") for number in header) + body)


# The newest documents that were inserted, with their times.
_newest: deque[tuple[int, bytes]] = deque(maxlen=20_000)
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
    """Return the reply of a server that has executed the command."""
    size = _int(message, HEADER + 5)
    command: dict[str, Any] = BSON(message[HEADER + 5 : HEADER + 5 + size]).decode(CodecOptions())
    documents = list(_documents(message, HEADER + 5 + size))
    match name := next(iter(command)):
        case "hello" | "isMaster" | "ismaster":
            return _HELLO
        case "find":
            found = _find(command["filter"], command.get("limit", 0))
            return {"ok": 1.0, "cursor": {"id": Int64(0), "ns": "chat.chat_messages", "firstBatch": found}}
        case "listIndexes" | "listCollections":
            return {"ok": 1.0, "cursor": {"id": Int64(0), "ns": "chat.chat_messages", "firstBatch": []}}
        case "findAndModify" if command["query"]["_id"] == "number":  # the number of this database
            return {"ok": 1.0, "value": {"_id": "number", "number": "1"}}
        case "findAndModify":  # the lease of chat_server, which the caller gets
            holder = command["update"][0]["$set"]["holder"]["$cond"][1]["$literal"]
            return {"ok": 1.0, "value": {"_id": "server", "holder": holder}}
        case "insert" | "update" | "delete":
            if command[name] == "chat_messages" and name == "insert":
                _newest.extend(
                    (int.from_bytes(one[9:17], "little", signed=True), one) for one in documents
                )  # _id is its first field
            written = len(documents) or len(command.get(f"{name}s", command.get("documents", [])))
            if name == "update" and len(documents) == 1:  # delivered marks are one update of many documents
                query = BSON(documents[0]).decode(CodecOptions())["q"]
                written = len(query["_id"].get("$in", [0])) if isinstance(query.get("_id"), dict) else 1
            return {"ok": 1.0, "n": written, "nModified": written}
    return {"ok": 1.0, "n": 0}


def _find(query: dict[str, Any], limit: int) -> Sequence[dict[str, Any] | RawBSONDocument]:
    """Find what the server needs: the documents of delivered marks, by primary keys, and all messages after a time."""
    times = query.get("_id", {})
    if not isinstance(times, dict):
        return []
    if "$in" in times:
        return [{"_id": time} for time in times["$in"]]
    if query.keys() == {"_id"} and "$gt" in times:
        return [RawBSONDocument(one) for time, one in sorted(_newest) if time > times["$gt"]][:limit]
    return []


def _documents(message: bytes, position: int) -> Iterator[bytes]:
    """Yield the documents of the section (kind 1) that follows a command."""
    if position + 5 > len(message) or message[position] != 1:
        return
    end = position + 1 + _int(message, position + 1)
    position = message.index(b"\0", position + 5) + 1
    while position < end:
        size = _int(message, position)
        yield message[position : position + size]
        position += size


def _int(data: bytes | bytearray, position: int) -> int:
    return int.from_bytes(data[position : position + 4], "little")


async def _main() -> None:
    server = await asyncio.get_running_loop().create_server(MongoStub, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_main())
