"""Moving: `python -m bench.migrate` copies 1,000,000 messages from embedded stores to servers and back.

The servers are those of the tests (tests/servers.py): MariaDB, Redis, and secantusd in place of mongod, or the
mongod that CHAT_TEST_MONGODB names. Exit code 1: a move failed, or the digests are not equal.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from chat_server.backends import open_exportable
from chat_server.cache.sessions import SessionRecord
from chat_server.conf import load
from chat_server.model.messages import Record
from chat_server.model.users import User
from chat_server.utils.clock import MICROSECONDS, Clock
from tests import needs, servers

ROOT = Path(__file__).resolve().parent.parent
START = 1_700_000_000 * MICROSECONDS
TEXT = "a line of chat as people write it, some sixty letters or so"
# One conversation is long; of the others, half the messages are in long ones, half in short ones.
LONGEST, LONG, SHORT = 20_000, 1000, 100
DATABASE = "bench_migrate"


class Moved(NamedTuple):
    """One move: how long it took, the most memory it had, and what it said."""

    seconds: float
    mebibytes: float
    said: str


def main() -> None:
    """Fill, move, move back, and print both."""
    parser = argparse.ArgumentParser(prog="python -m bench.migrate", description=__doc__)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--data", type=Path, help="where the temporary folder is made")
    args = parser.parse_args()
    if missing := needs.missing("mariadbd", "redis-server"):
        sys.exit(f"bench: apt-get install {missing}")
    with tempfile.TemporaryDirectory(dir=args.data, prefix="bench-migrate-") as folder:
        sys.exit(_run(Path(folder), args.messages))


def _run(folder: Path, messages: int) -> int:
    source, back = _ini(folder, "source"), _ini(folder, "back")
    started = time.monotonic()
    asyncio.run(_fill(source, messages))
    print(f"filled in {time.monotonic() - started:.0f} s", flush=True)
    mysql, redis = servers.mysql(), servers.redis()
    mongodb = None if "CHAT_TEST_MONGODB" in os.environ else servers.mongodb()
    try:
        address = os.environ.get("CHAT_TEST_MONGODB", "") or f"mongodb://127.0.0.1:{mongodb.port if mongodb else 0}"
        middle = _ini(
            folder,
            "servers",
            f"[mysql]\nDb = mysql\nDbPort = {mysql.port}\nDbUser = chat\nDbPassWord = secret\n"
            f"[redis]\nRedisDb = redis\nRedisAddr = 127.0.0.1:{redis.port}\n"
            f"[MongoDB]\nMongoDb = mongodb\nMongoDBName = {DATABASE}\nMongoDBAddr = {address}\n",
        )
        digests = {_report("embedded -> servers", _move(source, middle), messages)}
        digests.add(_report("servers -> embedded", _move(middle, back), messages))
    finally:
        for server in filter(None, (mysql, redis, mongodb)):
            server.stop()
    print(f"digests: {' '.join(digests)}: {'equal' if len(digests) == 1 else 'NOT EQUAL'}")
    return len(digests) - 1


def _ini(folder: Path, name: str, rest: str = "") -> Path:
    path = folder / f"{name}.ini"
    path.write_text(f"[service]\nDataDir = {name}\nAppMode = release\nStartTimeout = 120\n{rest}")
    return path


def _move(source: Path, target: Path) -> Moved:
    started = time.monotonic()
    command = [sys.executable, str(ROOT / "run.py"), "migrate", "--from", str(source), "--config", str(target)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout
    said = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"bench: the move ended with exit code {child.returncode}")
    return Moved(time.monotonic() - started, usage.ru_maxrss / 1024, said)


def _report(what: str, moved: Moved, messages: int) -> str:
    rate = messages / moved.seconds
    print(
        f"{what}: {moved.seconds:.0f} s, {rate:,.0f} messages/s, peak {moved.mebibytes:.0f} MiB\n{moved.said}",
        flush=True,
    )
    [digest] = re.findall(r"digest (\w+)", moved.said)
    return str(digest)


async def _fill(path: Path, messages: int) -> None:
    async with open_exportable([load(path, {})], Clock(), print) as [stores]:
        first, now = START, Clock().now()
        for number, size in enumerate(_sizes(messages)):
            one, other = f"user{2 * number}", f"user{2 * number + 1}"
            await stores.users.put([User(name, "$2b$12$" + "x" * 53) for name in (one, other)])
            await stores.sessions.put([SessionRecord(number.to_bytes(32, "big"), one, now + 86400 * MICROSECONDS)])
            for begin in range(0, size, LONG):
                await stores.messages.put(_records(one, other, first, begin, min(size, begin + LONG)))
            await stores.messages.settle(one, other)
            first += size


def _records(one: str, other: str, first: int, begin: int, end: int) -> list[Record]:
    return [
        Record(*((one, other) if n % 2 else (other, one)), f"m{n:08}", f"{TEXT} {n}", first + n, n % 10 < 9)
        for n in range(begin, end)
    ]


def _sizes(messages: int) -> Iterator[int]:
    """How long each conversation is; all together `messages`."""
    sizes = (LONGEST, *(LONG for _ in range(messages // 2 // LONG)))
    left = messages
    for size in sizes:
        if left >= size:
            yield size
            left -= size
    while left:
        yield min(left, SHORT)
        left -= min(left, SHORT)


if __name__ == "__main__":
    main()
