"""The command: opens both sides, so that no server can, has one copied to the other, and says what was done."""

import argparse
import asyncio
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import uvloop

from chat_server.backends import open_exportable
from chat_server.conf import Settings, load
from chat_server.migrate.shared import Shared, shared
from chat_server.utils.clock import Clock
from chat_server.utils.errors import StartError, StoreUnavailable

AGAIN = "the same command goes on where it stopped"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `migrate`; --config names the target."""
    parser.description = "Copy users, messages, sessions and counters to the stores that --config names."
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--from", dest="source", type=Path, metavar="FILE", help="the settings that name the source")
    source.add_argument("--from-go", type=Path, metavar="FILE", help="the settings of the Go original; it is only read")
    parser.add_argument(
        "--unregistered",
        action="store_true",
        help="with --from-go: also messages of names that are no users (whoever registers such a name reads them)",
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", default=argparse.SUPPRESS, help="the settings that name the target"
    )


def run(options: argparse.Namespace, target: Settings) -> None:
    """Do what the options say, and print what was done. Raises StartError and ConfigError."""

    def work(lost: Callable[[str], None]) -> Coroutine[Any, Any, None]:
        # The environment is the target's: it would make both sides one.
        if options.from_go:
            return _import(load(options.from_go, {}), target, lost, unregistered=options.unregistered)
        return _move(load(options.source, {}), target, lost)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_until_stopped(work))


async def _move(source: Settings, target: Settings, lost: Callable[[str], None]) -> None:
    from chat_server.migrate.stores import Move  # noqa: PLC0415 - the server's start need not import it

    same = shared(source, target)
    if same == Shared(users=True, messages=True, cache=True):
        raise StartError(f"--from {source.source} and {target.source} name the same stores: there is nothing to move")
    stores = source.stores
    if "embedded" in (source.mysql.db, source.mongodb.mongodb, source.redis.redis_db):
        database = stores.data_dir / "chat.db"
        if not database.exists():
            raise StartError(f"--from {source.source}: there is no {database}; check DataDir")
    async with open_exportable((source, target), Clock(), lost) as (before, after):
        await Move(before, after, same).run()


async def _import(original: Settings, target: Settings, lost: Callable[[str], None], *, unregistered: bool) -> None:
    from chat_server.migrate.go_import import Import  # noqa: PLC0415 - likewise, and it imports drivers

    if (original.mysql.db, original.mongodb.mongodb) != ("mysql", "mongodb"):
        raise StartError(f"--from-go {original.source}: must name a [mysql] with Db = mysql, and a [MongoDB]")
    async with open_exportable((target,), Clock(), lost) as (after,):
        await Import(original, after, target.chat.max_text_bytes, unregistered=unregistered).run()


async def _until_stopped(work: Callable[[Callable[[str], None]], Coroutine[Any, Any, None]]) -> None:
    """Run `work` to its end, a signal's, or that of a lease. Raises StartError for all but the first."""
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
        raise StartError(f"{reasons[0]}; {AGAIN}" if reasons else "cancelled") from None
    except StoreUnavailable as error:
        raise StartError(f"{error}; {AGAIN}") from error
