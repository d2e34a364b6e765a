"""Measure `chat-server migrate`: copy 1,000,000 messages from the embedded stores to database servers and back.

The servers are those of the tests (tests/servers.py): MariaDB, Redis, and secantusd instead of mongod, or the mongod
at CHAT_TEST_MONGODB. Exit code 1: a migration failed, or the digests differ.
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
from chat_server.model.messages import Pair, Record
from chat_server.model.users import User
from chat_server.utils.clock import MICROSECONDS, Clock
from tests import needs, servers

ROOT = Path(__file__).resolve().parent.parent
START = 1_700_000_000 * MICROSECONDS
TEXT = "a line of chat as people write it, some sixty letters or so"
# Conversation lengths in messages: one longest conversation; half of all messages in long ones, the rest in short ones.
LONGEST, LONG, SHORT = 20_000, 1000, 100
DATABASE = "bench_migrate"


class MigrationRun(NamedTuple):
    """The duration, the peak memory and the output of one migration."""

    seconds: float
    mebibytes: float
    output: str


def main() -> None:
    """Fill the embedded stores, migrate to servers, migrate back, and print both results."""
    parser = argparse.ArgumentParser(prog="python -m bench.migrate", description=__doc__)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--data", type=Path, help="parent of the temporary folder")
    args = parser.parse_args()
    if missing := needs.missing("mariadbd", "redis-server"):
        sys.exit(f"bench: {missing} is missing; install it with apt-get install {missing}")
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
        digests = {_print_run("embedded -> servers", _migrate(source, middle), messages)}
        digests.add(_print_run("servers -> embedded", _migrate(middle, back), messages))
    finally:
        for server in filter(None, (mysql, redis, mongodb)):
            server.stop()
    print(f"digests: {' '.join(digests)}: {'equal' if len(digests) == 1 else 'DIFFERENT'}")
    return len(digests) - 1


def _ini(folder: Path, name: str, rest: str = "") -> Path:
    path = folder / f"{name}.ini"
    path.write_text(f"[service]\nDataDir = {name}\nAppMode = release\nStartTimeout = 120\n{rest}")
    return path


def _migrate(source: Path, target: Path) -> MigrationRun:
    started = time.monotonic()
    command = [sys.executable, str(ROOT / "run.py"), "migrate", "--from", str(source), "--config", str(target)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout
    output = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"bench: the migration failed with exit code {child.returncode}")
    return MigrationRun(time.monotonic() - started, usage.ru_maxrss / 1024, output)


def _print_run(direction: str, run: MigrationRun, messages: int) -> str:
    """Print the figures of a migration; return the digest that it printed."""
    rate = messages / run.seconds
    print(
        f"{direction}: {run.seconds:.0f} s, {rate:,.0f} messages/s, peak {run.mebibytes:.0f} MiB\n{run.output}",
        flush=True,
    )
    [digest] = re.findall(r"digest (\w+)", run.output)
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
            await stores.messages.update_last(Pair(one, other))
            first += size


def _records(one: str, other: str, first: int, begin: int, end: int) -> list[Record]:
    return [
        Record(*((one, other) if n % 2 else (other, one)), f"m{n:08}", f"{TEXT} {n}", first + n, n % 10 < 9)
        for n in range(begin, end)
    ]


def _sizes(messages: int) -> Iterator[int]:
    """Yield the length of each conversation; the sum is `messages`."""
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
