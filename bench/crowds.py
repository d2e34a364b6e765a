"""Many sockets: what they cost busy pairs beside them, what a million messages leave behind; and logins."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import aiohttp
import bcrypt

from bench import load
from bench.client import PATIENCE, BenchError, each, log_in
from bench.flows import Flow, Ledger
from bench.harness import Meter, Server

PASSWORD = "correct horse"
WORKERS = 32  # logins at a time


async def beside(
    url: str, idle: Mapping[str, str], window: Meter, then: Meter, **pace: Any
) -> tuple[load.Outcome, load.Outcome]:
    """Let 10 pairs write, first alone and then beside one silent socket of each user of `idle`."""
    alone = await load.pairs(url, pairs=10, in_flight=16, window=window, **pace)
    async with load.opened(url, idle):
        await asyncio.sleep(2)  # what opening has left to do is not idleness
        return alone, await load.pairs(url, pairs=10, in_flight=16, window=then, **pace)


async def through(server: Server, tokens: Mapping[str, str], few: int, many: int) -> tuple[int, int, float]:
    """Send `many` messages through one socket of each user; return RSS after `few` and after all, and the seconds."""
    names = list(tokens)
    pairs = list(zip(names[::2], names[1::2], strict=True))
    ledger = Ledger()
    async with load.opened(server.url, tokens, dict(pairs) | {b: a for a, b in pairs}) as peers:
        await each(lambda pair: load.befriend(peers[pair[0]], peers[pair[1]]), pairs, 16)
        began, sizes = time.monotonic(), []
        for total in (few, many - few):
            flows = [Flow(ledger, peers[a], peers[b], limit=total // len(pairs)) for a, b in pairs]
            for flow in flows:
                flow.start(4)
            await _done(flows, ledger)
            sizes.append(server.rss())
    return sizes[0], sizes[1], time.monotonic() - began


async def _done(flows: list[Flow], ledger: Ledger) -> None:
    done, since = -1, time.monotonic()
    while any(flow.open for flow in flows) or not done:
        await asyncio.sleep(0.1)
        if (now := sum(flow.done for flow in flows)) > done:
            done, since = now, time.monotonic()
        if ledger.errors or time.monotonic() - since > PATIENCE:
            raise BenchError(f"stopped after {done} messages: {ledger.problems}")


async def logins(url: str, seconds: float) -> float:
    """Log in WORKERS users again and again; return logins per second."""
    names = [f"l{i}" for i in range(WORKERS)]
    await log_in(url, names, at_once=4)
    done = 0
    async with aiohttp.ClientSession(url) as http, asyncio.timeout(seconds + PATIENCE):

        async def worker(name: str) -> None:
            nonlocal done
            while time.monotonic() < end:
                async with http.post("/user/login", json={"user_name": name, "password": PASSWORD}) as response:
                    if response.status != 200:
                        raise BenchError(f"a login was answered {response.status}: {await response.text()}")
                done += time.monotonic() < end

        end = time.monotonic() + seconds
        await asyncio.gather(*map(worker, names))
    return done / seconds


def bcrypt_alone(seconds: float, cost: int) -> float:
    """Check passwords in as many threads as the server has for it, and do nothing else; return how many a second."""
    threads = max(1, min(4, (os.cpu_count() or 2) - 1))
    hashed = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(cost))
    end = time.monotonic() + seconds

    def work(_: int) -> int:
        for done in count():
            bcrypt.checkpw(PASSWORD.encode(), hashed)
            if time.monotonic() >= end:
                return done
        raise AssertionError

    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(work, range(threads))) / seconds
