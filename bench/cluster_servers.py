"""The server processes of a cluster for `bench.cluster`, their Redis, and users on their stores."""

from __future__ import annotations

import hashlib
import secrets
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from redis import Redis

from bench.databases import run_databases
from bench.seed_users import DAY
from bench.server_process import BenchServer, serving
from chat_server.backends import open_exportable
from chat_server.cache.sessions import SessionRecord
from chat_server.conf import Settings, load
from chat_server.model.users import User
from chat_server.utils.clock import MICROSECONDS, SLOTS, Clock

PAGE = 1000
NODE_SECONDS = 60  # the lease of a node that is only entered into Redis


class BenchStores(NamedTuple):
    """The stores of a cluster: MariaDB, Redis and the MongoDB stub. `environ` has their addresses."""

    environ: Mapping[str, str]
    redis: Redis

    def settings(self) -> Settings:
        """Return the settings of a process on these stores."""
        return load(None, self.environ)

    async def seed_users(self, names: Sequence[str]) -> dict[str, str]:
        """Create users with a session each while no server runs; return their tokens by name."""
        tokens = {name: secrets.token_urlsafe(16) for name in names}
        clock = Clock()
        expires = clock.now() + 30 * DAY * MICROSECONDS
        users = [User(name, "not a hash: no password matches") for name in tokens]
        sessions = [
            SessionRecord(hashlib.sha256(token.encode()).digest(), name, expires) for name, token in tokens.items()
        ]
        async with open_exportable([self.settings()], clock, print) as [stores]:
            for start in range(0, len(users), PAGE):
                await stores.users.put(users[start : start + PAGE])
                await stores.sessions.put(sessions[start : start + PAGE])
        return tokens


@contextmanager
def cluster_stores() -> Iterator[BenchStores]:
    """Run the stores of a cluster until the end of the block."""
    with run_databases(stub=True) as environ:
        host, port = environ["CHAT_REDIS_REDISADDR"].split(":")
        with Redis(host=host, port=int(port)) as redis:
            yield BenchStores(environ, redis)


@contextmanager
def cluster_servers(
    stores: BenchStores, count: int, data: Path, settings: Mapping[str, str]
) -> Iterator[list[BenchServer]]:
    """Run `count` server processes until the end of the block; one of them has `Processes = one`."""
    processes = {"Processes": "many" if count > 1 else "one"}
    with ExitStack() as stack:
        servers = []
        for _ in range(count):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chat-bench-", dir=data)))
            running = serving("server", folder, settings={**settings, **processes}, environ=stores.environ)
            servers.append(stack.enter_context(running))
        yield servers


@contextmanager
def node_with_users(stores: BenchStores, names: Sequence[str]) -> Iterator[str]:
    """Enter a node with one socket of each user into Redis (docs/decisions/0002), until the end of the block.

    Yields the key of its directory.
    """
    prefix, node = stores.settings().redis.redis_prefix, f"{SLOTS - 1}:bench"
    directory = f"{prefix}sockets:{node}"
    with stores.redis.pubsub() as subscription:  # type: ignore[no-untyped-call]
        subscription.subscribe(f"{prefix}0:node:{node}")
        for start in range(0, len(names), PAGE):
            stores.redis.hset(directory, mapping=dict.fromkeys(names[start : start + PAGE], 1))
        stores.redis.zadd(f"{prefix}nodes", {node: (time.time() + NODE_SECONDS) * 1000})
        yield directory


class RedisUsage:
    """The work of Redis between the start and the end of a `with` block."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._before: dict[str, float] = {}
        self._used: dict[str, float] = {}

    def __enter__(self) -> RedisUsage:
        self._before = self._read()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        now = self._read()
        self._used = {label: now[label] - self._before.get(label, 0.0) for label in now}

    def per(self, unit: str, count: float) -> dict[str, float]:
        """Return the figures per message or delivery; the block had `count` of them."""
        return {f"Redis {label}/{unit}": used / (count or float("nan")) for label, used in self._used.items()}

    def _read(self) -> dict[str, float]:
        info: dict[str, Any] = self._redis.info("everything")
        calls = {name.removeprefix("cmdstat_"): value["calls"] for name, value in info.items() if "cmdstat_" in name}
        return {
            "scripts": calls.get("evalsha", 0),
            "commands": sum(calls.values()),  # those of the scripts included
            "published": calls.get("publish", 0),
            "CPU µs": (info["used_cpu_user"] + info["used_cpu_sys"]) * 1e6,
            "bytes in": info["total_net_input_bytes"],
            "bytes out": info["total_net_output_bytes"],
        }
