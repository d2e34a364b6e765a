"""python -m tests.soak --minutes 30 --stores embedded --seed 7"""

import argparse
import asyncio
import json
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from chat_server.cache import redis
from chat_server.model import mongodb, mysql
from tests import needs, servers
from tests.servers import DatabaseServer
from tests.soak.checker import read_back
from tests.soak.ledger import Ledger
from tests.soak.storm import stormy
from tests.soak.world import World, size

MIB = 2**20
MOST_GROWN = 32  # MiB
# Connections to databases: pools do not shrink as soon as a load ends. MongoDB's driver has two more, to watch it.
MOST_POOLED = mysql.POOL + mongodb.POOL + 2 + redis.POOL
WARM = 5.0  # seconds of load before the server is measured for the first time
REST = 5.0  # seconds after which nothing of a client that left may be there


async def soak(seed: int, seconds: float, folder: Path, databases: Sequence[DatabaseServer] = ()) -> Ledger:
    """So many seconds of storm, then a calm in which the server is measured; then everything is read back."""
    world = World(seed, folder, databases)
    telling = asyncio.create_task(_tell(world.ledger))
    await stormy(world, seconds)
    await calm(world, max(10, seconds / 10))
    await read_back(world)
    telling.cancel()
    log = (folder / "server.log").read_text()
    if "Traceback" in log:
        world.ledger.blame(f"the server's log has a traceback: {log[log.index('Traceback') :][:2000]}")
    return world.ledger


async def calm(world: World, seconds: float) -> None:
    """Nothing happens to the server while it works: what it used for its clients, it gives back when they go."""
    async with world.life() as server:
        async with world.load():
            await asyncio.sleep(WARM)
        await asyncio.sleep(REST)
        before = await size(server, world.databases)
        async with world.load():
            await asyncio.sleep(seconds)
        await asyncio.sleep(REST)
        after = await size(server, world.databases, before.files)
    grown = (after.memory - before.memory) / MIB
    world.ledger.counts |= {
        "KiB grown in the calm": int(grown * 1024),
        "files open": after.files,
        "pooled": after.pooled,
    }
    if grown > MOST_GROWN or after.files > before.files or after.pooled > MOST_POOLED:
        world.ledger.blame(f"the server did not give back what it used: {before} before, {after} after")


async def _tell(ledger: Ledger) -> None:
    began = time.monotonic()
    while True:
        await asyncio.sleep(30)
        print(f"{time.monotonic() - began:.0f} s: {dict(ledger.counts)}", file=sys.stderr)


def main() -> int:
    """Run a soak; the exit code says whether all was well."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description="A long walk, and a checker at its end.")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--stores", choices=("embedded", "servers"), default="embedded")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of the run that is to be repeated")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: nothing that was started goes on
    print(f"make soak MINUTES={args.minutes:g} STORES={args.stores} SEED={args.seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="chat-soak-"))
    if args.stores == "servers" and (missing := needs.missing("mariadbd", "redis-server")):
        parser.error(f"apt-get install {missing}")
    with ExitStack() as stack:
        databases = stack.enter_context(servers.running()) if args.stores == "servers" else []
        ledger = asyncio.run(soak(args.seed, args.minutes * 60, folder, databases))
    for fault in ledger.faults:
        print(f"FAULT: {fault}")
    print(json.dumps({**vars(args), "folder": str(folder), **ledger.counts}))
    return 1 if ledger.counts["faults"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
