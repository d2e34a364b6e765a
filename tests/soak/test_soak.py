"""A short soak, and its checker: it finds nothing, until somebody tampers with the data."""

import sqlite3
from collections import defaultdict
from contextlib import closing
from pathlib import Path

from tests.soak.checker import read_back
from tests.soak.ledger import Said
from tests.soak.storm import stormy
from tests.soak.world import World


async def test_nothing_is_lost_in_a_short_soak_and_what_was_tampered_with_is_found(tmp_path: Path) -> None:
    world = World(1, tmp_path)
    await stormy(world, 4)
    await read_back(world)
    ledger = world.ledger
    assert ledger.faults == []
    assert ledger.counts["acknowledged"] > 100
    assert ledger.counts["kill"]

    there = [said for said in ledger.said.values() if said.time and not said.may_be_gone and not said.stranger]
    lost, changed, *there = there
    early, late = two_that_follow(there)
    shown, hidden = await unread_and_read(world)
    tamper(tmp_path / "data", lost, changed, early, late, shown, hidden)
    await read_back(world)
    for fault in (
        f"{lost} is lost",
        f"received what nobody sent: {{'from': '{changed.sender}', 'to': '{changed.receiver}'",
        f"{late} stands before {early}",
        f"{shown} is read, although nobody marked it",
        f"{hidden} was marked as read, and is unread",
    ):
        assert any(fault in found for found in ledger.faults), (fault, ledger.faults)


async def unread_and_read(world: World) -> tuple[Said, Said]:
    """Two more messages, sent while the receiver is away; then he marks the second."""
    device = world.devices[0]
    unread, read = (device.new(device.peers[0]) for _ in range(2))
    async with world.life() as server:
        async with server.chat(device.user) as chat:
            for said in (unread, read):
                world.ledger.acknowledged(said, (await chat.send(said.content, to=said.receiver))["time"])
        async with server.chat(read.receiver, read.sender) as chat:
            await chat.ask(4, read.id)
    read.may_be_read = read.read = True
    return unread, read


def two_that_follow(messages: list[Said]) -> list[Said]:
    """Two messages of one device to one receiver, in order."""
    talks: dict[tuple[str, str], list[Said]] = defaultdict(list)
    for said in messages:
        talks[said.device, said.receiver].append(said)
    return max(talks.values(), key=len)[:2]


def tamper(data: Path, lost: Said, changed: Said, early: Said, late: Said, shown: Said, hidden: Said) -> None:
    """Behind the server's back: one message goes, one says something else, two change places, two change marks."""
    with closing(sqlite3.connect(data / "chat.db")) as database, database:

        def update(said: Said, what: str) -> None:
            assert database.execute(f"UPDATE messages SET {what} WHERE id = ?", (said.id,)).rowcount == 1

        [(first,), (second,)] = database.execute(
            "SELECT time FROM messages WHERE id IN (?, ?) ORDER BY time", (early.id, late.id)
        ).fetchall()
        database.execute("DELETE FROM messages WHERE id = ?", (lost.id,))
        update(changed, "text = 'something else'")
        update(early, "time = 1")
        update(late, f"time = {first}")
        update(early, f"time = {second}")
        update(shown, "read = 1")
        update(hidden, "read = 0")
