"""Logins per second, at the server and with bcrypt alone."""

from __future__ import annotations

import asyncio
import os
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import aiohttp
import bcrypt

from bench.client import PASSWORD, TIMEOUT, BenchError, log_in

CONCURRENCY = 32  # logins at a time


async def logins_per_second(url: str, seconds: float) -> float:
    """Log in CONCURRENCY users again and again for `seconds`."""
    names = [f"l{i}" for i in range(CONCURRENCY)]
    await log_in(url, names, concurrency=4)
    done = 0
    async with aiohttp.ClientSession(url) as http, asyncio.timeout(seconds + TIMEOUT):

        async def worker(name: str) -> None:
            nonlocal done
            while time.monotonic() < end:
                async with http.post("/user/login", json={"user_name": name, "password": PASSWORD}) as response:
                    if response.status != 200:
                        raise BenchError(f"a login got status {response.status}: {await response.text()}")
                done += time.monotonic() < end

        end = time.monotonic() + seconds
        await asyncio.gather(*map(worker, names))
    return done / seconds


def bcrypt_checks_per_second(seconds: float, cost: int) -> float:
    """Check passwords for `seconds`, in the number of threads that the server uses for passwords."""
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
