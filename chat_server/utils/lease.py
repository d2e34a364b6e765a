"""One server, or one cluster, per store: it renews a lease in the store; without it nothing there counts as done.

Each lease protects only the store that holds it: MongoDB's the messages, Redis's the sessions and counters. So an
unavailable store does not stop work that needs only the others.
"""

import asyncio
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

import msgspec

from chat_server.utils.errors import StartError, StoreUnavailable

log = logging.getLogger(__name__)

# Returns whether this process still holds the lease of a store, so that it may count something as stored.
Held = Callable[[], Awaitable[bool]]

# A lease ends this many seconds after its last renewal. It is renewed three times as often.
LEASE_SECONDS = 15.0
# Instead of the `boot` of a holder: several processes share the lease.
SHARED = "several processes"
# Interval at which `held` checks for a renewal, in seconds.
CHECK_INTERVAL = 0.1


async def always() -> bool:
    """The `Held` of a store without a lease."""
    return True


def both(one: Held, other: Held) -> Held:
    """Return whether two leases are held."""

    async def held() -> bool:
        return await one() and await other()

    return held


class Holder(msgspec.Struct, frozen=True):
    """The process that holds a lease. The start time distinguishes it from another process with the same id."""

    host: str
    boot: str  # distinguishes hosts with the same name
    pid: int
    started: str

    def is_local(self) -> bool:
        """Whether it runs, or ran, on this host."""
        return (self.host, self.boot) == (socket.gethostname(), _boot_id())

    def has_ended(self) -> bool:
        """Whether the process has certainly ended: it ran on this host and no longer exists."""
        return self.is_local() and _start_time(self.pid) != self.started

    def __str__(self) -> str:
        return self.host if self.boot == SHARED else f"host {self.host}, process {self.pid}"


def shared_holder(cluster: str) -> bytes:
    """Return the holder that all processes of a cluster have in common. It never ends on its own."""
    return msgspec.json.encode(Holder(f"cluster {cluster}", SHARED, 0, ""))


def decode_holder(holder: bytes) -> Holder:
    """Return the holder that another process stored."""
    try:
        return msgspec.json.decode(holder, type=Holder)
    except (msgspec.DecodeError, UnicodeDecodeError):  # another program or a later version wrote it
        return Holder("unknown", "-", 0, "")


class LeaseStore(Protocol):
    """A store that can hold a lease. Raises StoreUnavailable."""

    async def take(self, holder: bytes, seconds: float, instead_of: bytes | None) -> bytes:
        """Take or renew the lease in one atomic step. Returns the current holder.

        The lease is free if it has no holder, has expired, or its holder is `holder` or `instead_of`.
        """
        ...

    async def release(self, holder: bytes) -> None:
        """Release the lease if `holder` holds it."""
        ...


class Lease:
    """A lease on a store, which `name` identifies for people. `timeout` in seconds: see `held`.

    It is this process's own, or that of all processes with the same `shared` holder; the latter ends only by expiring.
    """

    def __init__(self, store: LeaseStore, name: str, timeout: float, shared: bytes | None = None) -> None:
        self._store = store
        self._name = name
        self._timeout = timeout
        self._shared = shared
        self._me = shared or msgspec.json.encode(
            Holder(socket.gethostname(), _boot_id(), os.getpid(), _start_time(os.getpid()))
        )
        self._until = 0.0

    async def held(self) -> bool:
        """Whether certainly no other process holds the lease. A process that was frozen detects here that it may not.

        If the lease has expired, wait up to `timeout` for a renewal, which settles the question.
        """
        deadline = boot_time() + self._timeout
        while (now := boot_time()) >= self._until:
            if now >= deadline:
                return False
            await asyncio.sleep(CHECK_INTERVAL)
        return True

    def left(self) -> float:
        """Return the seconds until the lease expires unless it is renewed; 0 if it has expired."""
        return max(0.0, self._until - boot_time())

    async def take(self) -> None:
        """Take the lease. Raises StartError if another server holds it, StoreUnavailable if the store fails."""
        deadline = time.monotonic() + LEASE_SECONDS + 1
        instead_of = None
        while True:
            holder = await self._renew(instead_of)
            if holder is None:
                return
            known = decode_holder(holder)
            if known.has_ended():
                instead_of = holder
                continue
            if known.is_local() or time.monotonic() > deadline:
                raise StartError(
                    f"{self._name}: another chat_server ({known}) is running on it; "
                    "stop that one, or choose another database"
                )
            log.warning("lease held elsewhere", extra={"store": self._name, "holder": str(known)})
            await asyncio.sleep(1)

    async def keep(self, lost: Callable[[str], None]) -> None:
        """Renew the lease until cancelled. Calls `lost` with a sentence if another server took it."""
        failing = False
        while True:
            # After an outage everything waits for the renewal, so it is tried more often.
            await asyncio.sleep(LEASE_SECONDS / (15 if failing else 3))
            before, failing = failing, True
            try:
                holder = await self._renew(None)
                failing = False
            except StoreUnavailable as error:
                if not before:
                    log.warning("lease not renewed", extra={"store": self._name, "error": str(error)})
                continue
            except Exception:  # a bug must not end the renewals silently
                log.exception("lease renewal failed", extra={"store": self._name})
                continue
            if holder is not None:
                lost(f"{self._name}: another chat_server ({decode_holder(holder)}) took this one's place")
            elif before:
                log.info("lease renewed", extra={"store": self._name})

    async def release(self) -> None:
        """Release the lease, so that the next server need not wait. Another process may still need a shared one."""
        self._until = 0.0
        if self._shared:
            return
        try:
            await self._store.release(self._me)
        except StoreUnavailable as error:
            log.warning("lease not released", extra={"store": self._name, "error": str(error)})

    async def _renew(self, instead_of: bytes | None) -> bytes | None:
        """Return None if this process holds the lease now, else the holder."""
        requested = boot_time()
        holder = await self._store.take(self._me, LEASE_SECONDS, instead_of)
        if holder != self._me:
            return holder
        self._until = requested + LEASE_SECONDS
        return None


def boot_time() -> float:
    """Return seconds on a clock that also runs while the machine sleeps, because the lease expires meanwhile."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _boot_id() -> str:
    """Identify the processes that this one can see: those of the same boot and the same container.

    Empty if the system does not provide it.
    """
    try:
        return (
            f"{Path('/proc/sys/kernel/random/boot_id').read_text('ascii').strip()} {os.readlink('/proc/self/ns/pid')}"
        )
    except OSError:
        return ""


def _start_time(pid: int) -> str:
    """Return when a process of this host started, in clock ticks since boot; empty if it does not exist."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[19]
    except OSError:
        return ""
