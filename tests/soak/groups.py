"""The keeper of a soak test adds guests to groups and removes them."""

import asyncio
import random
import time
from collections.abc import Sequence

import httpx

from tests.harness import ServerHandle
from tests.soak.ledger import Ledger, SoakGroup


def now() -> float:
    """Return the time in milliseconds."""
    return time.time() * 1000


class Keeper:
    """Adds and removes guests, one after another, and repeats a request until it is answered."""

    def __init__(self, ledger: Ledger, server: ServerHandle, seed: int, groups: Sequence[SoakGroup]) -> None:
        self.draining = False
        self._ledger = ledger
        self._server = server
        self._groups = groups
        self._random = random.Random(f"{seed} keeper")
        self._present: set[tuple[str, str]] = set()  # group, guest

    async def create(self) -> None:
        """Create the groups, without guests."""
        for group in self._groups:
            headers = {"Authorization": f"Bearer {self._server.tokens[group.owner]}"}
            body = {"group": group.name, "users": group.members}
            response = await self._server.post("/group/create", body, headers=headers)
            assert response.status_code == 200, response.text

    async def run(self) -> None:
        """Let guests come and go until `draining` is set."""
        while not self.draining:
            group = self._random.choice(self._groups)
            guest = self._random.choice(group.guests)
            if (group.name, guest) in self._present:
                await self._remove(group, guest)
            else:
                await self._add(group, guest)
            await asyncio.sleep(self._random.uniform(0, 0.2))

    async def _add(self, group: SoakGroup, guest: str) -> None:
        group.absent[guest][-1][1] = now()
        if await self._ask("add", group, users=[guest]):
            group.added[guest] = now()
            self._present.add((group.name, guest))
            self._ledger.counts["guests added"] += 1

    async def _remove(self, group: SoakGroup, guest: str) -> None:
        if await self._ask("remove", group, user_name=guest):
            group.absent[guest].append([now(), float("inf")])
            self._present.discard((group.name, guest))
            self._ledger.counts["guests removed"] += 1

    async def _ask(self, path: str, group: SoakGroup, **body: object) -> bool:
        """Repeat a request until it is answered; return whether it was."""
        headers = {"Authorization": f"Bearer {self._server.tokens[group.owner]}"}
        tries = 0
        while not self.draining or tries:
            tries += 1
            try:
                response = await self._server.post(f"/group/{path}", {"group": group.name, **body}, headers=headers)
            except httpx.TransportError:
                await asyncio.sleep(0.1)
                continue
            if response.status_code == 200:
                return True
            if path == "remove" and tries > 1 and response.json()["data"]["reason"] == "no_such_user":
                return True  # an earlier try was stored
            if response.status_code != 503 or self._ledger.steady:
                self._ledger.fault(f"{path} of {body} in {group.name} was answered with {response.text}")
                return False
            await asyncio.sleep(0.1)
        return False
