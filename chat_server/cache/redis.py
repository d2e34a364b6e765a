"""Sessions, rates and contact states in Redis.

Each operation is one atomic script. The calls of one loop iteration go out as one pipeline.
"""

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

import msgspec
from redis import asyncio as aioredis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoScriptError, RedisError

from chat_server.cache.contacts import ContactRecord, ContactState, Decision, Permission
from chat_server.cache.rates import CLOCK_TOLERANCE, Rate
from chat_server.cache.sessions import MAX_SESSIONS, SessionRecord
from chat_server.conf import RedisSettings
from chat_server.utils.batch import Batcher
from chat_server.utils.clock import MICROSECONDS, Clock
from chat_server.utils.errors import StartError, StoreMisconfigured, StoreUnavailable, cause
from chat_server.utils.lease import Held, always
from chat_server.utils.metrics import NO_STORE_METRICS, StoreMetrics
from chat_server.utils.tls import permanent_tls_error

# What a call raises when Redis does not answer. uvloop raises RuntimeError for a write to a connection that was reset.
LOST = (RedisError, OSError, TimeoutError, RuntimeError)
# Connections at most. One carries the scripts; the others serve health checks and replace broken ones.
POOL = 8
# Scripts per pipeline, at most.
MAX_CALLS = 1024
# With these settings Redis keeps everything that it confirmed, even if it is killed.
DURABLE = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
# Error codes of a Redis that may do the work later. Errors of scripts contain the code inside their text.
_REFUSALS = {
    "READONLY": "it is a read-only replica",
    "OOM": "it is full (maxmemory)",
    "MISCONF": "it cannot save its data to its disk",
    "NOREPLICAS": "it has too few replicas to accept writes (min-replicas-to-write)",
    "LOADING": "it is loading its data",
    "MASTERDOWN": "it is a replica without its primary",
    "BUSY": "it is busy with another script",
    "max number of clients": "it has too many connections (maxclients)",
}
# The codes of a Redis that is not, or no longer, the primary.
_NOT_PRIMARY = {"READONLY", "MASTERDOWN", "LOADING"}
# Errors that Redis will return again until an operator changes something. A group captures the command.
_MISTAKES = {
    r"\bchannels?\b": "its user lacks the right to channels that begin with RedisPrefix",
    r"DB index is out of range": "it has no database of the number RedisDbName",
    r"cluster mode|^(?:MOVED|CROSSSLOT|CLUSTERDOWN)\b": "it is a cluster, and chat_server needs a single Redis",
    r"unknown command '?`?([\w|-]+)": "it does not know the command {}",
    r"command called from script.*\((\w+)\)": "it does not know the command {}",
    r"access (?:a key|the|one of|at least one of)": "its user lacks the right to keys that begin with RedisPrefix",
    r"run the '([\w|-]+)'": "its user lacks the right to the command {}",
    r"run this command.*\((\w+)\)": "its user lacks the right to the command {}",
}

_SCRIPTS = {
    path.name.removesuffix(".lua"): path.read_text("utf-8")
    for path in files("chat_server.cache").joinpath("lua").iterdir()
    if path.name.endswith(".lua")
}


class ScriptCall(msgspec.Struct, frozen=True):
    """A call of a script: its name, keys and arguments."""

    script: str
    keys: Sequence[str]
    arguments: Sequence[str | int | bytes]


class Scripts:
    """Runs scripts. `prefix` precedes every key; `timeout` in seconds bounds each pipeline.

    `name` identifies the Redis server for people. `held` returns whether this process still holds the lease on Redis;
    without it, nothing counts as done.
    Raises StoreMisconfigured if Redis will refuse again, and StoreUnavailable if it may accept later.
    """

    def __init__(
        self,
        redis: "aioredis.Redis",
        prefix: str,
        timeout: float,
        held: Held = always,
        watch: StoreMetrics = NO_STORE_METRICS,
    ) -> None:
        self._held = held
        self._watch = watch
        self.prefix = prefix
        self._redis = redis
        self.name = f"Redis at {_address(redis.connection_pool.connection_kwargs)}"
        self._timeout = timeout
        self._digests = {name: hashlib.sha1(text.encode()).hexdigest() for name, text in _SCRIPTS.items()}  # noqa: S324
        self._calls: Batcher[ScriptCall, Any] = Batcher(
            lambda calls: watch.time_call(self._run_together(calls)),
            most=MAX_CALLS,
            timeout=timeout,
            watch=watch,
            name=self.name,
        )

    async def run(self, script: str, keys: Sequence[str], arguments: Sequence[str | int | bytes] = ()) -> Any:
        """Run a script and return its result. Raises StoreUnavailable; the script may have run nevertheless."""
        return await self._calls.submit(ScriptCall(script, [self.prefix + key for key in keys], arguments))

    async def reach(self) -> None:
        """Return if Redis answers and permits reading."""
        await self.run("session_peek", ["probe"])

    async def ping(self) -> None:
        """Return if Redis permits all commands that the scripts use and has memory left."""
        await self.run("probe", ["probe"], [2**53])

    async def volatile_settings(self) -> list[str]:
        """Return the settings, as `name value`, with which Redis may lose what it confirmed; empty if unknown."""
        try:
            async with asyncio.timeout(self._timeout):
                answers = [await self._redis.config_get(name) for name in DURABLE]
        except LOST:  # many hosted Redis services forbid CONFIG
            return []
        values = {name: value for answer in answers for name, value in answer.items()}
        return [f"{name} {values[name]}" for name, durable in DURABLE.items() if values.get(name, durable) != durable]

    async def keys(self, start: str, count: int) -> AsyncIterator[list[str]]:
        """Iterate over the keys that begin with `start`, about `count` at a time; a key may occur twice."""
        start = self.prefix + start
        pattern = "".join(f"\\{char}" if char in "*?[]\\" else char for char in start) + "*"
        answer: Any = (None, [])
        while answer[0] != 0:
            try:
                async with asyncio.timeout(self._timeout):
                    answer = await self._redis.scan(answer[0] or 0, pattern, count)
            except LOST as error:
                raise self.failure(error) from error
            if found := answer[1]:
                yield [key.decode().removeprefix(start) for key in found]

    async def flush(self) -> None:
        """Finish the submitted calls."""
        await self._calls.flush()

    async def close(self) -> None:
        """Finish the submitted calls and close the connections."""
        await self.flush()
        with suppress(*LOST):  # over TLS, it waits for the server to close, too
            await self._redis.aclose()

    async def _run_together(self, calls: list[ScriptCall]) -> Sequence[Any]:
        try:
            async with asyncio.timeout(self._timeout):
                results = await self._pipeline(calls)
                if missing := [index for index, result in enumerate(results) if isinstance(result, NoScriptError)]:
                    for script in {calls[index].script for index in missing}:
                        await self._redis.script_load(_SCRIPTS[script])
                    again = await self._pipeline([calls[index] for index in missing])
                    for index, result in zip(missing, again, strict=True):
                        results[index] = result
        except LOST as error:
            await self._drop_connections()
            raise self.failure(error) from error
        if refused := [result for result in results if isinstance(result, RedisError)]:
            self._watch.add_failure()
            if not _NOT_PRIMARY.isdisjoint(map(_refusal, refused)):
                await self._drop_connections()
        if not await self._held():
            raise StoreUnavailable(f"{self.name}: the lease was not renewed in time")
        return [self.failure(result) if isinstance(result, RedisError) else result for result in results]

    async def _drop_connections(self) -> None:
        """Close idle connections: the next call resolves the name again and finds the primary after a failover.

        Otherwise each call would fail on one more broken connection. And a primary that becomes a replica does not
        close its connections.
        """
        await self._redis.connection_pool.disconnect(inuse_connections=False)

    def failure(self, error: Exception) -> StoreUnavailable:
        """Translate an error of the driver. Redis's texts may repeat arguments, so none of them is passed on."""
        if isinstance(error, AuthenticationError):
            return StoreMisconfigured(f"{self.name}: RedisPw is wrong, or the user in RedisAddr")
        if why := permanent_tls_error(error):
            return StoreMisconfigured(f"{self.name}: no TLS ({why}); see RedisAddr")
        if code := _refusal(error):
            return StoreUnavailable(f"{self.name}: {_REFUSALS[code]}")
        for pattern, mistake in _MISTAKES.items():
            if found := re.search(pattern, str(error)):
                return StoreMisconfigured(f"{self.name}: {mistake.format(*(name.lower() for name in found.groups()))}")
        return StoreUnavailable(f"{self.name}: {cause(error)}")

    async def _pipeline(self, calls: Sequence[ScriptCall]) -> list[Any]:
        async with self._redis.pipeline(transaction=False) as pipeline:
            for call in calls:
                pipeline.evalsha(self._digests[call.script], len(call.keys), *call.keys, *call.arguments)
            return await pipeline.execute(raise_on_error=False)


class RedisSessions:
    """SessionStore on Redis; `lifetime` in seconds."""

    def __init__(self, scripts: Scripts, lifetime: float, clock: Clock) -> None:
        self._scripts = scripts
        self._lifetime = int(lifetime * 1000)
        self._clock = clock

    async def add(self, digest: bytes, user: str) -> None:
        keys = [_session(digest), f"sessions:{user}"]
        sessions = f"{self._scripts.prefix}session:"
        await self._scripts.run(
            "session_add", keys, [user, digest.hex(), self._lifetime, self._now(), sessions, MAX_SESSIONS]
        )

    async def use(self, digests: Sequence[bytes]) -> dict[bytes, str]:
        index, now = f"{self._scripts.prefix}sessions:", self._now()
        users = await asyncio.gather(
            *(
                self._scripts.run("session_use", [_session(digest)], [index, digest.hex(), self._lifetime, now])
                for digest in digests
            )
        )
        return {digest: user.decode() for digest, user in zip(digests, users, strict=True) if user}

    async def end(self, digest: bytes) -> None:
        index = f"{self._scripts.prefix}sessions:"
        await self._scripts.run("session_end", [_session(digest)], [index, digest.hex()])

    async def end_others(self, user: str, keep: bytes = b"") -> int:
        sessions = f"{self._scripts.prefix}session:"
        return int(await self._scripts.run("session_end_others", [f"sessions:{user}"], [sessions, keep.hex()]))

    async def ping(self) -> None:
        await self._scripts.ping()

    async def pages(self, count: int) -> AsyncIterator[list[SessionRecord]]:
        async for page in self._scripts.keys("session:", count):
            yield await self.peek([bytes.fromhex(digest) for digest in page])

    async def peek(self, digests: Sequence[bytes]) -> list[SessionRecord]:
        found = await asyncio.gather(*(self._scripts.run("session_peek", [_session(digest)]) for digest in digests))
        return [
            SessionRecord(digest, session[0].decode(), int(session[1]) * 1000)
            for digest, session in zip(digests, found, strict=True)
            if session
        ]

    async def put(self, sessions: Sequence[SessionRecord]) -> None:
        now = self._now()
        puts = (
            self._scripts.run(
                "session_put",
                [_session(session.digest), f"sessions:{session.user}"],
                [session.user, session.digest.hex(), session.expires // 1000, now],
            )
            for session in sessions
        )
        await asyncio.gather(*puts)

    def _now(self) -> int:
        return self._clock.now() // 1000


class RedisRates:
    """RateStore on Redis: fixed windows."""

    def __init__(self, scripts: Scripts, clock: Clock) -> None:
        self._scripts = scripts
        self._clock = clock

    async def take(self, rates: Sequence[Rate]) -> float:
        limits = [number for rate in rates for number in (rate.limit, _milliseconds(rate.window))]
        arguments = [self._clock.now() // 1000, _milliseconds(CLOCK_TOLERANCE), *limits]
        wait = await self._scripts.run("rates_take", [_rate(rate) for rate in rates], arguments)
        return float(wait) / 1000

    async def count(self, rate: Rate) -> int:
        arguments = [self._clock.now() // 1000, _milliseconds(rate.window + CLOCK_TOLERANCE)]
        return int(await self._scripts.run("rates_count", [_rate(rate)], arguments))

    async def give_back(self, rates: Sequence[Rate], age: float) -> None:
        taken = self._clock.now() // 1000 - int(age * 1000)
        arguments = [taken + _milliseconds(rate.window) for rate in rates]
        await self._scripts.run("rates_give_back", [_rate(rate) for rate in rates], arguments)

    async def forget(self, rate: Rate) -> None:
        await self._scripts.run("forget", [_rate(rate)])

    async def ping(self) -> None:
        await self._scripts.ping()


class RedisContacts:
    """ContactStore on Redis. `window`, and `kept`, the lifetime of messages, in seconds."""

    def __init__(self, scripts: Scripts, limit: int, window: float, kept: float) -> None:
        self._scripts = scripts
        self._limit = limit
        self._window = int(window * MICROSECONDS)
        self._kept = int(kept * MICROSECONDS)

    async def take(
        self, sender: str, receiver: str, id: str, now: int, rebuilt: ContactState | None = None
    ) -> Decision:
        arguments: list[str | int] = [sender, id, now, self._limit, self._window, self._kept]
        if rebuilt:
            arguments += _fields(rebuilt)
        verdict, unblocked = await self._scripts.run("contact_take", [_pair(sender, receiver)], arguments)
        return Decision(Permission[verdict.decode()], bool(unblocked))

    async def allow(self, one: str, other: str, now: int) -> None:
        await self._scripts.run("contact_allow", [_pair(one, other)], [now + self._window, 2 * self._window // 1000])

    async def forget(self, one: str, other: str) -> None:
        await self._scripts.run("forget", [_pair(one, other)])

    async def pages(self, count: int) -> AsyncIterator[list[ContactRecord]]:
        async for page in self._scripts.keys("stranger:", count):
            names = [key.partition("/") for key in page]
            yield await self.peek([(one, other) for one, _, other in names])

    async def peek(self, pairs: Sequence[tuple[str, str]]) -> list[ContactRecord]:
        found = await asyncio.gather(*(self._scripts.run("contact_peek", [_pair(*pair)]) for pair in pairs))
        return [
            ContactRecord(*pair, _contact_state(*state[:5]), state[5] * 1000)
            for pair, state in zip(pairs, found, strict=True)
            if state
        ]

    async def put(self, states: Sequence[ContactRecord]) -> None:
        puts = (
            self._scripts.run(
                "contact_put", [_pair(record.one, record.other)], [*_fields(record.state), record.expires // 1000]
            )
            for record in states
        )
        await asyncio.gather(*puts)


class RedisLease:
    """LeaseStore on Redis."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts

    async def take(self, holder: bytes, seconds: float, instead_of: bytes | None) -> bytes:
        arguments: list[str | int | bytes] = [holder, int(seconds * 1000), instead_of or holder]
        current: bytes = await self._scripts.run("lease_take", ["lease"], arguments)
        return current

    async def release(self, holder: bytes) -> None:
        await self._scripts.run("lease_release", ["lease"], [holder])


def client(config: RedisSettings, timeout: float) -> "aioredis.Redis":
    """Create the client. Raises StartError for an address that is not valid."""
    try:
        pool = _pool(config, timeout)
        pool.make_connection()  # type: ignore[no-untyped-call]  # parses the options; it connects later
    except (ValueError, TypeError):  # the text may repeat a password
        raise StartError(
            "[redis] RedisAddr is neither host:port nor a URI that Redis knows; "
            "in a URI write the special characters of user and password as %40"
        ) from None
    return aioredis.Redis.from_pool(pool)


def _address(options: Mapping[str, Any]) -> str:
    """Return Redis's address for people."""
    return options.get("path") or f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"


def _refusal(error: Exception) -> str:
    """Return the code of a refusal that may pass; empty for any other error."""
    words = f"{getattr(error, 'status_code', None) or ''} {error}"
    return next((code for code in _REFUSALS if re.search(rf"\b{code}\b", words)), "")


def _pool(config: RedisSettings, timeout: float) -> "aioredis.ConnectionPool":
    """Create the connections. They have no timeout for calls; each use of them sets its own.

    The driver must not repeat a call, because a script that counts would count twice.
    """
    is_uri = "://" in config.redis_addr
    uri = config.redis_addr if is_uri else f"redis://{config.redis_addr}"
    parts = urlsplit(uri)
    if "@" in f"{parts.path}{parts.query}{parts.fragment}":
        raise ValueError("a password that contains / ? or # would move a part of it into the host")
    pool = aioredis.BlockingConnectionPool.from_url(
        uri,
        **({} if is_uri else {"db": config.redis_db_name}),
        **({"password": config.redis_pw} if config.redis_pw else {}),
        max_connections=POOL,
        timeout=timeout,
        socket_connect_timeout=timeout,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
    )
    # redis-py would use asyncio.wait_for, which can lose a cancellation. The URI may not change that.
    pool.connection_kwargs["socket_timeout"] = None
    return pool


async def probe(config: RedisSettings, timeout: float) -> str:
    """Try what the server's work needs, and return a sentence for --check. Raises StoreUnavailable."""
    scripts = Scripts(client(config, timeout), config.redis_prefix, timeout)
    try:
        await scripts.ping()
        if settings := await scripts.volatile_settings():
            return f"answers, but may lose what it confirmed, by {', '.join(settings)} (docs/operations.md)"
        return "answers"
    finally:
        await scripts.close()


def _session(digest: bytes) -> str:
    return f"session:{digest.hex()}"


def _rate(rate: Rate) -> str:
    return f"rate:{msgspec.json.encode(rate.key).decode()}"


def _milliseconds(window: float) -> int:
    return max(1, int(window * 1000))


def _fields(state: ContactState) -> list[str | int]:
    return [state.sender, state.count, state.started, int(state.refused), state.until]


def _contact_state(sender: bytes, count: bytes, started: bytes, refused: bytes, until: bytes) -> ContactState:
    return ContactState(sender.decode(), int(count), int(started), refused == b"1", int(until))


def _pair(one: str, other: str) -> str:
    """Return the key of a pair. It is unique, because no name contains a slash (service.names.is_name)."""
    return f"stranger:{min(one, other)}/{max(one, other)}"
