"""What is done to the server of a soak, and to its databases, while its clients are at work."""

import asyncio
import random
import signal
import time
from contextlib import AsyncExitStack

from tests.harness import SubprocessServer
from tests.servers import DatabaseServer
from tests.soak.world import World

# What is done, and how often in comparison.
DEEDS = {"kill": 8, "stop": 1, "freeze": 2, "cut": 2}
WITH_DATABASES = {**DEEDS, "kill database": 5}


async def stormy(world: World, seconds: float) -> None:
    """So many seconds in which the server is started again and again; then all that is left is sent."""
    await world.settle()
    async with AsyncExitStack() as last, world.load():
        chance = random.Random(f"{world.seed} storm")
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            async with world.life() as server:
                while server.process.returncode is None:
                    await asyncio.sleep(chance.uniform(0.05, 1))
                    await _strike(world, server, chance)
        await last.enter_async_context(world.life())  # to the end of the load


async def _strike(world: World, server: SubprocessServer, chance: random.Random) -> None:
    deeds = WITH_DATABASES if world.databases else DEEDS
    [deed] = chance.choices(list(deeds), list(deeds.values()))
    if server.process.returncode is not None:
        world.ledger.blame(f"the server ended by itself with {server.process.returncode}")
        return
    world.ledger.counts[deed] += 1
    if deed == "kill":
        server.kill()
        await server.wait()
    elif deed == "stop":
        server.process.send_signal(signal.SIGTERM)
        if code := await server.wait():
            world.ledger.blame(f"after SIGTERM the server ended with {code}")
    elif deed == "freeze":
        server.process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(chance.uniform(0.05, 0.8))
        server.process.send_signal(signal.SIGCONT)
    elif deed == "cut":
        for device in world.devices:
            device.reset()
    else:
        await _kill(chance.choice(world.databases), chance.uniform(0, 2))


async def _kill(database: DatabaseServer, seconds: float) -> None:
    """It is killed, and away for so long."""
    await asyncio.to_thread(database.kill)
    await asyncio.sleep(seconds)
    await asyncio.to_thread(database.start)
