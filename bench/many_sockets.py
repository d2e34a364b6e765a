"""The cost of many sockets: busy pairs with idle sockets, and memory after a million messages."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from bench import load
from bench.client import TIMEOUT, BenchError, for_each
from bench.senders import PairSender, Recorder
from bench.server_process import BenchServer, ResourceUsage


async def pairs_with_idle_sockets(
    url: str, idle: Mapping[str, str], alone: ResourceUsage, with_idle: ResourceUsage, **timing: Any
) -> tuple[load.LoadResult, load.LoadResult]:
    """Let 10 pairs write, first alone and then with one silent socket of each user of `idle` (name -> token)."""
    first = await load.pairs(url, pairs=10, in_flight=16, window=alone, **timing)
    async with load.open_sockets(url, idle):
        await asyncio.sleep(2)  # so that work left over from opening is not measured
        return first, await load.pairs(url, pairs=10, in_flight=16, window=with_idle, **timing)


async def memory_after_messages(
    server: BenchServer, tokens: Mapping[str, str], few: int, many: int
) -> tuple[int, int, float]:
    """Send `many` messages through one socket of each user.

    Returns RSS in bytes after `few` messages and after all of them, and the seconds that all of them took.
    """
    names = list(tokens)
    pairs = list(zip(names[::2], names[1::2], strict=True))
    recorder = Recorder()
    partners = dict(pairs) | {b: a for a, b in pairs}
    async with load.open_sockets(server.url, tokens, partners) as sockets:
        await for_each(lambda pair: load.greet(sockets[pair[0]], sockets[pair[1]]), pairs, 16)
        began, sizes = time.monotonic(), []
        for total in (few, many - few):
            senders = [PairSender(recorder, sockets[a], sockets[b], limit=total // len(pairs)) for a, b in pairs]
            for sender in senders:
                sender.start(4)
            await _wait_until_done(senders, recorder)
            sizes.append(server.rss())
    return sizes[0], sizes[1], time.monotonic() - began


async def _wait_until_done(senders: list[PairSender], recorder: Recorder) -> None:
    """Wait for all messages. Raises BenchError at the first error, or without progress for TIMEOUT seconds."""
    done, since = -1, time.monotonic()
    while any(sender.open for sender in senders) or not done:
        await asyncio.sleep(0.1)
        if (now := sum(sender.done for sender in senders)) > done:
            done, since = now, time.monotonic()
        if recorder.errors or time.monotonic() - since > TIMEOUT:
            raise BenchError(f"stopped after {done} messages: {recorder.problems}")
