"""One server on one store: a lease that is renewed, and without which nothing in that store counts as done.

Each lease protects the store that holds it, and no other: MongoDB's the messages, Redis's the sessions and counters.
So a store that is away does not stop the work of the others.
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

# Says whether this process may count something as stored: whether it still has the lease of that store.
Held = Callable[[], Awaitable[bool]]

# A lease ends so many seconds after it was last renewed, and is renewed three times as often.
LEASE_SECONDS = 15.0
# Who waits for a lease to be certain again looks so often. In seconds.
LOOK = 0.1


async def always() -> bool:
    """The `Held` of stores that need no lease."""
    return True


class Holder(msgspec.Struct, frozen=True):
    """Who holds a lease: a process, told from another of the same number by when it started."""

    host: str
    boot: str  # of the host: told from another of that name
    pid: int
    started: str

    def here(self) -> bool:
        """Whether it runs, or ran, on this host."""
        return (self.host, self.boot) == (socket.gethostname(), _boot())

    def gone(self) -> bool:
        """Whether it is certain that this process has ended: it ran on this host, and is no more."""
        return self.here() and _started(self.pid) != self.started

    def __str__(self) -> str:
        return f"host {self.host}, process {self.pid}"


def _decoded(holder: bytes) -> Holder:
    try:
        return msgspec.json.decode(holder, type=Holder)
    except (msgspec.DecodeError, UnicodeDecodeError):  # written by another program, or a later version
        return Holder("unknown", "-", 0, "")


class LeaseStore(Protocol):
    """A store that can hold a lease. Raises StoreUnavailable."""

    async def take(self, holder: bytes, seconds: float, instead_of: bytes | None) -> bytes:
        """Take or renew the lease in one atomic step; returns who holds it now.

        It is free if nobody holds it, its time is over, or its holder is `holder` or `instead_of`.
        """
        ...

    async def release(self, holder: bytes) -> None:
        """Give it up, if `holder` has it."""
        ...


class Lease:
    """This process's hold on a store; `name` says which, for people. `patience` in seconds, see `held`."""

    def __init__(self, store: LeaseStore, name: str, patience: float) -> None:
        self._store = store
        self._name = name
        self._patience = patience
        self._me = msgspec.json.encode(Holder(socket.gethostname(), _boot(), os.getpid(), _started(os.getpid())))
        self._until = 0.0

    async def held(self) -> bool:
        """Whether it is certain that nobody else has it: a process that was frozen learns here that it may not.

        While it is not, for at most `patience`, this waits for a renewal, which finds out.
        """
        deadline = _now() + self._patience
        while (now := _now()) >= self._until:
            if now >= deadline:
                return False
            await asyncio.sleep(LOOK)
        return True

    def left(self) -> float:
        """Seconds until it runs out, unless it is renewed; 0 if it has run out."""
        return max(0.0, self._until - _now())

    async def take(self) -> None:
        """Take it. Raises StartError if another server has it, StoreUnavailable if the store fails."""
        deadline = time.monotonic() + LEASE_SECONDS + 1
        instead_of = None
        while True:
            holder = await self._renew(instead_of)
            if holder is None:
                return
            known = _decoded(holder)
            if known.gone():
                instead_of = holder
                continue
            if known.here() or time.monotonic() > deadline:
                raise StartError(
                    f"{self._name}: another chat_server ({known}) is running on it; "
                    "stop that one, or choose another database"
                )
            log.warning("lease held elsewhere", extra={"store": self._name, "holder": str(known)})
            await asyncio.sleep(1)

    async def keep(self, lost: Callable[[str], None]) -> None:
        """Renew it for ever; `lost` is told if another server took it."""
        failing = False
        while True:
            # A store that is back waits for nothing but this.
            await asyncio.sleep(LEASE_SECONDS / (15 if failing else 3))
            before, failing = failing, True
            try:
                holder = await self._renew(None)
                failing = False
            except StoreUnavailable as error:
                if not before:
                    log.warning("lease not renewed", extra={"store": self._name, "error": str(error)})
                continue
            except Exception:  # a fault of ours must not end the renewals unseen
                log.exception("lease renewal failed", extra={"store": self._name})
                continue
            if holder is not None:
                lost(f"{self._name}: another chat_server ({_decoded(holder)}) took this one's place")
            elif before:
                log.info("lease renewed", extra={"store": self._name})

    async def release(self) -> None:
        """Give it up, so that the next server need not wait."""
        self._until = 0.0
        try:
            await self._store.release(self._me)
        except StoreUnavailable as error:
            log.warning("lease not released", extra={"store": self._name, "error": str(error)})

    async def _renew(self, instead_of: bytes | None) -> bytes | None:
        """None if it is ours now, else who holds it."""
        asked = _now()
        holder = await self._store.take(self._me, LEASE_SECONDS, instead_of)
        if holder != self._me:
            return holder
        self._until = asked + LEASE_SECONDS
        return None


def _now() -> float:
    """Seconds on a clock that goes on while the machine sleeps: the lease runs out in the store meanwhile."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _boot() -> str:
    """What tells the processes that we can see (of this boot, in this container) from all others.

    Empty where the system does not say.
    """
    try:
        return (
            f"{Path('/proc/sys/kernel/random/boot_id').read_text('ascii').strip()} {os.readlink('/proc/self/ns/pid')}"
        )
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When that process of this host started, in clock ticks since the boot; empty if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[19]
    except OSError:
        return ""
