"""A short soak test finds no fault, and its checker finds manipulated data."""

import sqlite3
from collections import defaultdict
from contextlib import closing
from pathlib import Path

import pytest

from tests.soak.checker import read_back
from tests.soak.disruptions import disrupt
from tests.soak.ledger import SentMessage, SoakGroup
from tests.soak.run import ServerRun


async def test_soak_loses_nothing_and_finds_manipulated_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.soak.ledger.MAX_FAULTS", 10_000)  # keep all kinds
    run = ServerRun(1, tmp_path)
    await disrupt(run, 4)
    await read_back(run)
    ledger = run.ledger
    assert ledger.faults == []
    assert ledger.counts["acknowledged"] > 100
    assert ledger.counts["kill"]
    assert ledger.counts["guests added"]
    assert any(one.group and one.time for one in ledger.sent.values())

    acknowledged = [one for one in ledger.sent.values() if one.time and not one.may_be_deleted and not one.limited]
    stored = [one for one in acknowledged if not one.group]
    lost, changed, *stored = stored
    lost_in_group = next(one for one in acknowledged if one.group)
    group, guest = next(
        (group, guest)
        for group in ledger.groups.values()
        for guest in group.guests
        if group.absent[guest][-1][1] == float("inf")
    )
    early, late = two_in_a_row(stored)
    unread, read = await send_unread_and_read(run, group)
    manipulate(tmp_path / "data", lost, changed, early, late, unread, read)
    manipulate_groups(tmp_path / "data", lost_in_group, group, guest)
    await read_back(run)
    for fault in (
        f"{lost} is lost",
        f"{lost_in_group} is lost",
        " is read by u",  # but was neither marked nor confirmed
        f"{guest} is in {group.name}, but was removed",
        f"received a message that no client sent: {{'from': '{changed.sender}', 'to': '{changed.receiver}'",
        f"{late} is stored before u",  # early, or one between them that the test cannot use
        f"{unread} is read, but was neither marked nor confirmed",
        f"{read} was marked as read, but is unread",
    ):
        assert any(fault in found for found in ledger.faults), (fault, ledger.faults)


def manipulate_groups(data: Path, lost: SentMessage, group: SoakGroup, guest: str) -> None:
    """Delete a message of a group, move its read positions to the end, and make a guest a member."""
    with closing(sqlite3.connect(data / "chat.db")) as database, database:
        assert database.execute("DELETE FROM messages WHERE id = ?", (lost.id,)).rowcount == 1
        [(number,)] = database.execute("SELECT number FROM groups WHERE name = ?", (group.name,)).fetchall()
        moved = database.execute("UPDATE group_positions SET position = ? WHERE conv = ?", (2**62, -number))
        assert moved.rowcount
        database.execute("INSERT INTO members (number, user, since) VALUES (?, ?, ?)", (number, guest, number))


async def send_unread_and_read(run: ServerRun, group: SoakGroup) -> tuple[SentMessage, SentMessage]:
    """Send two more messages while the receiver is offline, and one to the group; then mark the second."""
    device = next(device for device in run.devices if device.user == group.owner)
    unread, read = (device.new(device.peers[0]) for _ in range(2))
    async with run.serving() as server:
        async with server.chat(device.user) as chat:
            for message in (unread, read, device.new(group.name)):
                run.ledger.acknowledge(message, (await chat.send(message.content, to=message.receiver))["time"])
        async with server.chat(read.receiver, read.sender) as chat:
            await chat.ask(4, read.id)
    read.may_be_read = read.read = True
    return unread, read


def two_in_a_row(messages: list[SentMessage]) -> list[SentMessage]:
    """Return two messages of one device to one receiver, in order."""
    found: dict[tuple[str, str], list[SentMessage]] = defaultdict(list)
    for message in messages:
        found[message.device, message.receiver].append(message)
    return max(found.values(), key=len)[:2]


def manipulate(
    data: Path,
    lost: SentMessage,
    changed: SentMessage,
    early: SentMessage,
    late: SentMessage,
    unread: SentMessage,
    read: SentMessage,
) -> None:
    """Change the database directly: delete one message, change a text, swap two messages, invert two marks."""
    with closing(sqlite3.connect(data / "chat.db")) as database, database:

        def update(message: SentMessage, what: str) -> None:
            assert database.execute(f"UPDATE messages SET {what} WHERE id = ?", (message.id,)).rowcount == 1

        [(first,), (second,)] = database.execute(
            "SELECT time FROM messages WHERE id IN (?, ?) ORDER BY time", (early.id, late.id)
        ).fetchall()
        database.execute("DELETE FROM messages WHERE id = ?", (lost.id,))
        update(changed, "text = 'something else'")
        update(early, "time = 1")
        update(late, f"time = {first}")
        update(early, f"time = {second}")
        update(unread, "read = 1")
        update(read, "read = 0")
