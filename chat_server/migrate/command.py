"""The command `migrate`: open source and target, which locks out servers, then copy or import."""

import argparse
import asyncio
import signal
from collections.abc import Callable, Coroutine
from typing import Any

import uvloop

from chat_server.backends import open_exportable
from chat_server.conf import Settings, load
from chat_server.migrate.advice import RETRY
from chat_server.migrate.go_import import GoImport
from chat_server.migrate.shared import SharedStores, shared_stores
from chat_server.migrate.store_copy import StoreCopy
from chat_server.utils.clock import Clock
from chat_server.utils.errors import StartError, StoreUnavailable

CONTINUE = f"{RETRY} to continue"


def run(options: argparse.Namespace, target: Settings) -> None:
    """Copy or import, as `options` say, and print a summary. Raises StartError and ConfigError."""

    def migrate(on_takeover: Callable[[str], None]) -> Coroutine[Any, Any, None]:
        # The environment overrides only the target: applied to both, it would make them the same stores.
        if options.from_go:
            return _import(load(options.from_go, {}), target, on_takeover, unregistered=options.unregistered)
        return _copy(load(options.source, {}), target, on_takeover)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_until_stopped(migrate))


async def _copy(source: Settings, target: Settings, on_takeover: Callable[[str], None]) -> None:
    shared = shared_stores(source, target)
    if shared == SharedStores(users=True, messages=True, cache=True):
        raise StartError(f"--from {source.source} and {target.source} name the same stores; there is nothing to copy")
    if "embedded" in (source.mysql.db, source.mongodb.mongodb, source.redis.redis_db):
        database = source.stores.data_dir / "chat.db"
        if not database.exists():
            raise StartError(f"--from {source.source}: there is no {database}; check DataDir")
    async with open_exportable((source, target), Clock(), on_takeover) as (source_stores, target_stores):
        await StoreCopy(source_stores, target_stores, shared).run()


async def _import(
    source: Settings, target: Settings, on_takeover: Callable[[str], None], *, unregistered: bool
) -> None:
    if (source.mysql.db, source.mongodb.mongodb) != ("mysql", "mongodb"):
        raise StartError(f"--from-go {source.source}: needs a section [mysql] with Db = mysql, and a section [MongoDB]")
    async with open_exportable((target,), Clock(), on_takeover) as (target_stores,):
        await GoImport(source, target_stores, target.chat.max_text_bytes, unregistered=unregistered).run()


async def _until_stopped(work: Callable[[Callable[[str], None]], Coroutine[Any, Any, None]]) -> None:
    """Run `work` to its end. Raises StartError if a signal or another server stops it, or a store fails."""
    reasons: list[str] = []

    def stop(why: str) -> None:
        reasons.append(why)
        task.cancel()

    task = asyncio.create_task(work(stop))
    for signal_ in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signal_, stop, "interrupted")
    try:
        await task
    except asyncio.CancelledError:
        raise StartError(f"{reasons[0]}; {CONTINUE}" if reasons else "cancelled") from None
    except StoreUnavailable as error:
        raise StartError(f"{error}; {CONTINUE}") from error
