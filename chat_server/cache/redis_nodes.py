"""The nodes of a cluster in Redis: each server process of `Processes = many` renews a lease on its slot."""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Coroutine, Set
from typing import Any

from chat_server.cache.redis import Scripts
from chat_server.utils.clock import MICROSECONDS, SLOTS, Clock, Timeline
from chat_server.utils.errors import StartError, StoreUnavailable
from chat_server.utils.lease import boot_time, decode_holder, shared_holder
from chat_server.utils.tasks import cancel

log = logging.getLogger(__name__)

# Seconds from the last renewal of a lease to its end: the longest that other nodes wait for a silent node.
LEASE_SECONDS = 10.0
RENEWAL_SECONDS = 1.0
# The directory of a node ends this many seconds after its last renewal: never before the lease, which counts.
DIRECTORY_SECONDS = 60.0
# Differences between the clock of this host and that of Redis, in seconds: the first is logged, the second stops work.
SKEW_WARNING, MAX_SKEW = 1.0, 5.0
SETTING = "[redis] RedisAddr"


class RedisNode:
    """This process among the nodes. `scripts` without a lease.

    `cluster`, the name from `cluster_name`, and `database`, the number of MongoDB's database, identify the cluster.
    The node's slot also makes the times of `timeline` unique.

    A node whose lease ended joins again under a new name, and is not `held` before `rejoined` has returned.
    """

    def __init__(self, scripts: Scripts, cluster: str, database: str, clock: Clock, timeline: Timeline) -> None:
        self._scripts = scripts
        self._cluster = cluster
        self.holder = shared_holder(f"{cluster}, MongoDB {database}")
        self._clock = clock
        self._timeline = timeline
        self._until = 0.0
        self._rejoining = False
        self._skewed = False
        self.rejoined: Callable[[], Coroutine[Any, Any, None]] = _nothing
        self.name = ""  # SLOT:ID
        self.live: Set[str] = frozenset()  # the names of all nodes with a lease, this one included

    @property
    def slot(self) -> int:
        """The number of this node, which no other live node has: 0 to SLOTS - 1."""
        return int(self.name.partition(":")[0])

    def lapsed(self) -> bool:
        """Whether the lease may have ended, or the node has not yet recovered. A frozen node detects it here."""
        return self._rejoining or boot_time() >= self._until

    async def held(self) -> bool:
        """`Held` of the stores: whether the lease certainly exists."""
        return boot_time() < self._until

    def left(self) -> float:
        """Return the seconds until the lease ends unless it is renewed; 0 if it has ended."""
        return max(0.0, self._until - boot_time())

    async def join(self) -> None:
        """Take a slot. Raises StartError if another server uses this Redis, StoreUnavailable if Redis fails."""
        deadline = time.monotonic() + LEASE_SECONDS + 1
        while True:
            requested, sent = boot_time(), self._clock.now()
            arguments: list[str | int | bytes] = [secrets.token_hex(8), self.holder, _milliseconds(), SLOTS]
            holder, name, now = await self._scripts.run("node_join", ["lease", "nodes"], arguments)
            if holder == self.holder:
                break
            known = decode_holder(holder)
            if time.monotonic() > deadline:
                raise StartError(
                    f"{SETTING}: another chat_server ({known}) is running on it; "
                    "stop that one, or set Processes = many and the same stores for all"
                )
            log.warning("lease held elsewhere", extra={"store": SETTING, "holder": str(known)})
            await asyncio.sleep(1)
        if not name:
            raise StartError(f"{SETTING}: {SLOTS} server processes are running on it, which is the maximum")
        if self._differs(sent, int(now)):
            await self._scripts.run("node_leave", ["lease", "nodes", f"sockets:{name.decode()}"], [name, self.holder])
            raise StartError(
                f"the clocks of this host and of {self._scripts.name} differ by more than {MAX_SKEW:g} s; set them"
            )
        self.name, self._until = name.decode(), requested + LEASE_SECONDS
        self._timeline.use_slot(self.slot)

    async def keep(self, lost: Callable[[str], None]) -> None:
        """Renew the lease until cancelled. If it had ended, join again and call `rejoined`.

        Calls `lost` with a sentence if a server that shares with none took over Redis.
        """
        failing = False
        while True:
            await asyncio.sleep(RENEWAL_SECONDS)
            before, failing = failing, True
            try:
                if self._rejoining or not await self._renew(lost):
                    await self._join_again(lost)
                failing = False
            except (StoreUnavailable, StartError) as error:
                if not before:
                    log.warning("lease not renewed", extra={"store": SETTING, "error": str(error)})
            except Exception:  # a bug must not end the renewals silently
                log.exception("lease renewal failed", extra={"store": SETTING})

    async def _join_again(self, lost: Callable[[str], None]) -> None:
        """Take a slot under another name. The node does nothing else until it has recovered."""
        self._rejoining = True
        await self.join()
        recovering = asyncio.create_task(self.rejoined())
        try:
            while not (await asyncio.wait((recovering,), timeout=RENEWAL_SECONDS))[0]:
                if not await self._renew(lost):
                    raise StoreUnavailable("the lease ended during the recovery")
            await recovering
        finally:
            await cancel(recovering)
        self._rejoining = False
        log.info("node joined again", extra={"node": self.name})

    async def leave(self) -> None:
        """Give the slot back."""
        self._until = 0.0
        try:
            await self._scripts.run("node_leave", ["lease", "nodes", f"sockets:{self.name}"], [self.name, self.holder])
        except StoreUnavailable as error:
            log.warning("lease not released", extra={"store": SETTING, "error": str(error)})

    async def _renew(self, lost: Callable[[str], None]) -> bool:
        """Renew the lease. Returns whether it had not ended."""
        requested, sent = boot_time(), self._clock.now()
        holder, now, live = await self._scripts.run(
            "node_renew",
            ["lease", "nodes", "cluster", f"sockets:{self.name}"],
            [self.name, self.holder, _milliseconds(), self._cluster, int(DIRECTORY_SECONDS * 1000)],
        )
        if holder != self.holder:
            lost(f"{SETTING}: another chat_server ({decode_holder(holder)}) took this one's place")
        self.live = frozenset(name.decode() for name in live)
        if self.name not in self.live or not await self.held():
            return False
        if not self._differs(sent, int(now)):
            self._until = requested + LEASE_SECONDS
        return True

    def _differs(self, sent: int, now: int) -> bool:
        """Whether the clocks certainly differ by more than MAX_SKEW. Redis read `now` after `sent`, in microseconds."""
        received = self._clock.now()
        difference = max(sent - now, now - received, 0) / MICROSECONDS
        if difference > SKEW_WARNING and not self._skewed:
            log.warning("clocks differ", extra={"store": self._scripts.name, "seconds": round(difference, 1)})
        self._skewed = difference > SKEW_WARNING
        return difference > MAX_SKEW


async def cluster_name(scripts: Scripts) -> str:
    """Return the name of the cluster of this Redis: a number, and the address that its first node used."""
    proposal = f"{secrets.token_hex(4)} on {scripts.name}"
    name: bytes = await scripts.run("cluster_name", ["cluster"], [proposal])
    return name.decode()


async def _nothing() -> None:
    pass


def _milliseconds() -> int:
    return int(LEASE_SECONDS * 1000)
