"""Users who write to each other all the time, as docs/clients.md requires, and a check that nothing was lost.

A sender has one message in flight and repeats it with the same id until it is acknowledged, on another process if its
socket ends. So the messages of a sender are stored and delivered in the order of their numbers, whatever happens.
A receiver only reads. It calls op 3 after it has opened a socket, and otherwise asks for nothing.
"""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import websockets

from tests.cluster.harness import Databases, ProcessGroup, cluster
from tests.faults.stores import history
from tests.harness import ChatClient, ServerHandle, wait_until

ACKNOWLEDGED = (40018, 40019)
USERS = ("1", "2", "3", "4", "5", "6")
LIVE_SECONDS = 10.0  # after a gap, receivers have their messages within this time
PAUSE = 0.02  # seconds between two messages of a sender


@asynccontextmanager
async def serving(databases: Databases, folder: Path, **options: Any) -> AsyncIterator[ProcessGroup]:
    """Run three processes, and check at the end that none has exited or logged an unexpected error."""
    settings: dict[str, Any] = {"StrangerLimit": 0, "StoreTimeout": 2, "HeartbeatSeconds": 5}
    async with cluster(folder, databases, 3, users=USERS, patient=False, **{**settings, **options}) as three:
        yield three
        for process in three:
            assert process.server.process.returncode is None, process.log.read_text()[-2000:]
            assert "exception=" not in process.log.read_text()


class TrafficPair(NamedTuple):
    """A sender and a receiver, each with the process on which its first socket is."""

    sender: str
    receiver: str
    sends_on: ServerHandle
    receives_on: ServerHandle


class PairTraffic:
    """The messages of one pair."""

    def __init__(self, cluster: ProcessGroup, pair: TrafficPair) -> None:
        self.pair = pair
        self.acknowledged: list[str] = []
        self.received: set[str] = set()
        self.live: list[list[str]] = []  # per socket: what arrived first without a request, after the end of op 3
        self.refusals = 0
        self.reconnects = 0
        self.stopping = False
        self._cluster = cluster

    async def send(self) -> None:
        """Send until `stopping` is set and the last message is acknowledged."""
        ids = (f"m{number}" for number in itertools.count(1))
        waiting: str | None = None
        server = self.pair.sends_on
        while not self.stopping or waiting:
            try:
                async with server.chat(self.pair.sender, self.pair.receiver) as chat:
                    while not self.stopping or waiting:
                        waiting = waiting or next(ids)
                        await self._send_once(chat, waiting)
                        waiting = None
                        await asyncio.sleep(PAUSE)
            except (OSError, websockets.WebSocketException, EOFError):
                self.reconnects += 1
                server = self._cluster
                await asyncio.sleep(0.2)

    async def _send_once(self, chat: ChatClient, id: str) -> None:
        while (answer := await chat.send(f"{id}\nto {self.pair.receiver}"))["op_type"] not in ACKNOWLEDGED:
            assert (answer["op_type"], answer["reason"]) == (40008, "store_away"), answer
            self.refusals += 1
            await asyncio.sleep(0.1)
        self.acknowledged.append(id)

    async def receive(self) -> None:
        """Receive until cancelled."""
        server = self.pair.receives_on
        while True:
            try:
                async with server.chat(self.pair.receiver, self.pair.sender) as chat:
                    await chat.put(3)
                    await self._read(chat)
            except (OSError, websockets.WebSocketException, EOFError):
                self.reconnects += 1
                server = self._cluster
                await asyncio.sleep(0.2)

    async def _read(self, chat: ChatClient) -> None:
        """Note what arrives on one socket.

        A process that reads again after a gap delivers unread messages that the socket may have from op 3. So only
        messages that are new to the socket must be in order.
        """
        known: set[str] = set()
        live: list[str] | None = None
        while True:
            frame = json.loads(await chat.connection.recv(decode=True))
            if frame["op_type"] == 40004:  # a store is away
                await asyncio.sleep(0.2)
                await chat.put(3)
            elif frame["from"] == "System" and frame["op_type"] == 40005:
                self.live.append(live := [])
            elif frame["from"] == self.pair.sender and frame["op_type"] in (40011, 40005):
                if live is not None and frame["id"] not in known:
                    live.append(frame["id"])
                known.add(frame["id"])
                self.received.add(frame["id"])

    def is_complete(self) -> bool:
        """Whether every acknowledged message has arrived."""
        return self.received.issuperset(self.acknowledged)

    async def check(self) -> None:
        """Fail unless each socket received the messages in order, and all are stored once, in order."""
        for live in self.live:
            numbers = [int(id[1:]) for id in live]
            assert numbers == sorted(numbers), "received out of order"
        async with self._cluster.chat(self.pair.receiver, self.pair.sender) as chat:
            stored = [content.partition("\n")[0] for content in await history(chat)]
        assert stored == self.acknowledged


@asynccontextmanager
async def traffic(
    cluster: ProcessGroup, pairs: Sequence[TrafficPair], patience: float = 20
) -> AsyncIterator[list[PairTraffic]]:
    """Let all pairs write until the end, and then ten messages more.

    Fail unless every acknowledged message arrives within another `patience` seconds.

    The users must be able to write without a limit.
    """
    conversations = [PairTraffic(cluster, pair) for pair in pairs]
    async with asyncio.TaskGroup() as group:
        receivers = [group.create_task(one.receive()) for one in conversations]
        senders = [group.create_task(one.send()) for one in conversations]
        yield conversations
        before = [len(one.acknowledged) for one in conversations]
        await wait_until(
            lambda: all(len(one.acknowledged) >= count + 10 for one, count in zip(conversations, before, strict=True)),
            "ten more messages of each sender",
        )
        for one in conversations:
            one.stopping = True
        await asyncio.wait_for(asyncio.gather(*senders), 60)
        async with asyncio.timeout(patience):
            await wait_until(lambda: all(one.is_complete() for one in conversations), "every acknowledged message")
        for task in receivers:
            task.cancel()
    for one in conversations:
        await one.check()


def pairs_of(cluster: ProcessGroup, users: Sequence[str]) -> list[TrafficPair]:
    """Let the first user write to the second, the third to the fourth, and so on, each on another process.

    No user has a second socket, whose pongs would confirm messages that the receiver did not read.
    """
    count = len(cluster)
    return [
        TrafficPair(sender, receiver, cluster[n % count], cluster[(n + 1) % count])
        for n, (sender, receiver) in enumerate(zip(users[::2], users[1::2], strict=True))
    ]
