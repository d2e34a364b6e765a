"""python -m tests.soak --minutes 30 --stores embedded --seed 7"""

import argparse
import asyncio
import json
import math
import random
import signal
import sys
import tempfile
import time
from collections import Counter
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
# secantusd, which represents MongoDB, reads all messages for each insert. So a longer test of a cluster consists of
# several with new databases, each with the next seed.
CLUSTER_MINUTES = 4
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
    # Until the leases have ended: otherwise that is a gap, and this reader confirms what is delivered again.
    await asyncio.sleep(FREEZE_SECONDS)
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
    """Run soak tests; return the exit code: 1 if one found a fault."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak", description="Disrupt a server under load, then check all data."
    )
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--stores", choices=("embedded", "servers", "cluster"), default="embedded")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="the seed of the run to repeat")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C, which ends all child processes
    if args.stores != "embedded" and (missing := needs.missing("mariadbd", "redis-server")):
        parser.error(f"apt-get install {missing}")
    rounds = math.ceil(args.minutes / CLUSTER_MINUTES) if args.stores == "cluster" else 1
    counts = [_run(args.seed + number, args.minutes / rounds, args.stores) for number in range(rounds)]
    if rounds > 1:
        print(json.dumps(sum(counts, Counter())))
    return 1 if any(each["faults"] for each in counts) else 0


def _run(seed: int, minutes: float, stores: str) -> Counter[str]:
    """Run one soak test with new data; return what it counted."""
    print(f"make soak MINUTES={minutes:g} STORES={stores} SEED={seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="chat-soak-"))
    with ExitStack() as stack:
        databases = stack.enter_context(servers.running()) if stores != "embedded" else []
        test = soak_cluster if stores == "cluster" else soak
        ledger = asyncio.run(test(seed, minutes * 60, folder, databases))
    print(json.dumps({"folder": str(folder), **ledger.counts}), flush=True)
    return ledger.counts


if __name__ == "__main__":
    raise SystemExit(main())
