"""The disruptions of the server and its databases during a soak test."""

import asyncio
import random
import signal
import time
from contextlib import AsyncExitStack

from tests.harness import SubprocessServer
from tests.servers import DatabaseServer
from tests.soak.run import ServerRun

# Relative frequencies.
DISRUPTIONS = {"kill": 8, "stop": 1, "freeze": 2, "cut": 2}
WITH_DATABASES = {**DISRUPTIONS, "kill database": 5}


async def disrupt(run: ServerRun, seconds: float) -> None:
    """Disrupt the server under load for `seconds`; then let the clients send the rest of their messages."""
    await run.prepare()
    async with AsyncExitStack() as last, run.load():
        rng = random.Random(f"{run.seed} storm")
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            async with run.serving() as server:
                while server.process.returncode is None:
                    await asyncio.sleep(rng.uniform(0.05, 1))
                    await _disrupt_once(run, server, rng)
        await last.enter_async_context(run.serving())  # until the load has ended


async def _disrupt_once(run: ServerRun, server: SubprocessServer, rng: random.Random) -> None:
    disruptions = WITH_DATABASES if run.databases else DISRUPTIONS
    [kind] = rng.choices(list(disruptions), list(disruptions.values()))
    if server.process.returncode is not None:
        run.ledger.fault(f"the server ended by itself with {server.process.returncode}")
        return
    run.ledger.counts[kind] += 1
    if kind == "kill":
        server.kill()
        await server.wait()
    elif kind == "stop":
        server.process.send_signal(signal.SIGTERM)
        if code := await server.wait():
            run.ledger.fault(f"after SIGTERM the server ended with {code}")
    elif kind == "freeze":
        server.process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(rng.uniform(0.05, 0.8))
        server.process.send_signal(signal.SIGCONT)
    elif kind == "cut":
        for device in run.devices:
            device.reset()
    else:
        await _kill(rng.choice(run.databases), rng.uniform(0, 2))


async def _kill(database: DatabaseServer, seconds: float) -> None:
    """Kill a database and start it again after `seconds`."""
    await asyncio.to_thread(database.kill)
    await asyncio.sleep(seconds)
    await asyncio.to_thread(database.start)
