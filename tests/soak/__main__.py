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
from tests.cluster.harness import FREEZE_SECONDS
from tests.servers import DatabaseServer
from tests.soak.checker import read_back
from tests.soak.cluster import disrupt_cluster
from tests.soak.disruptions import disrupt
from tests.soak.ledger import Ledger
from tests.soak.run import ClusterRun, ServerRun, measure

MIB = 2**20
MAX_GROWTH = 32  # MiB
# Connections to databases: pools do not shrink immediately after a load. MongoDB's driver has two more, for monitoring.
MAX_POOLED = mysql.POOL + mongodb.POOL + 2 + redis.POOL
WARM_UP = 5.0  # seconds of load before the first measurement
RELEASE_TIME = 5.0  # seconds after which the server has released everything of a closed client


async def soak(seed: int, seconds: float, folder: Path, databases: Sequence[DatabaseServer] = ()) -> Ledger:
    """Disrupt the server for `seconds`, measure it in a calm period, and read all data back."""
    run = ServerRun(seed, folder, databases)
    progress = asyncio.create_task(_print_progress(run.ledger))
    await disrupt(run, seconds)
    await calm(run, max(10, seconds / 10))
    await read_back(run)
    progress.cancel()
    log = (folder / "server.log").read_text()
    if "Traceback" in log:
        run.ledger.fault(f"the server's log has a traceback: {log[log.index('Traceback') :][:2000]}")
    return run.ledger


async def soak_cluster(seed: int, seconds: float, folder: Path, databases: Sequence[DatabaseServer]) -> Ledger:
    """Disrupt a cluster for `seconds`, and read all data back through a new one."""
    run = ClusterRun(seed, folder, databases)
    progress = asyncio.create_task(_print_progress(run.ledger))
    await disrupt_cluster(run, seconds)
    await asyncio.sleep(
        FREEZE_SECONDS
    )  # else the end of their leases is a gap, and this reader confirms what it brings
    await read_back(run)
    progress.cancel()
    return run.ledger


async def calm(run: ServerRun, seconds: float) -> None:
    """Check that an undisturbed server releases what it used for its clients when they close."""
    async with run.serving() as server:
        async with run.load():
            await asyncio.sleep(WARM_UP)
        await asyncio.sleep(RELEASE_TIME)
        before = await measure(server, run.databases)
        async with run.load():
            await asyncio.sleep(seconds)
        await asyncio.sleep(RELEASE_TIME)
        after = await measure(server, run.databases, before.files)
    growth = (after.memory - before.memory) / MIB
    run.ledger.counts |= {
        "KiB grown in the calm period": int(growth * 1024),
        "files open": after.files,
        "pooled": after.pooled,
    }
    if growth > MAX_GROWTH or after.files > before.files or after.pooled > MAX_POOLED:
        run.ledger.fault(f"the server did not release its resources: {before} before, {after} after")


async def _print_progress(ledger: Ledger) -> None:
    started = time.monotonic()
    while True:
        await asyncio.sleep(30)
        print(f"{time.monotonic() - started:.0f} s: {dict(ledger.counts)}", file=sys.stderr)


def main() -> int:
    """Run a soak test; return the exit code: 1 if it found a fault."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak", description="Disrupt a server under load, then check all data."
    )
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--stores", choices=("embedded", "servers", "cluster"), default="embedded")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="the seed of the run to repeat")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C, which ends all child processes
    print(f"make soak MINUTES={args.minutes:g} STORES={args.stores} SEED={args.seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="chat-soak-"))
    if args.stores != "embedded" and (missing := needs.missing("mariadbd", "redis-server")):
        parser.error(f"apt-get install {missing}")
    with ExitStack() as stack:
        databases = stack.enter_context(servers.running()) if args.stores != "embedded" else []
        test = soak_cluster if args.stores == "cluster" else soak
        ledger = asyncio.run(test(args.seed, args.minutes * 60, folder, databases))
    print(json.dumps({**vars(args), "folder": str(folder), **ledger.counts}))
    return 1 if ledger.counts["faults"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
