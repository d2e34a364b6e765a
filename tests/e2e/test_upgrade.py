"""Data of every earlier schema opens in today's code, with all that was in it (tests/fixtures)."""

import fcntl
import json
import os
import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.e2e.operating import Place, said
from tests.harness import ROOT, ManualClock, serving

FIXTURES = ROOT / "tests" / "fixtures"
SCHEMAS = sorted(path.name for path in FIXTURES.glob("schema-*"))


@pytest.fixture(params=SCHEMAS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """The data of an earlier schema."""
    shutil.copytree(FIXTURES / request.param, tmp_path / "data")
    (tmp_path / "data").chmod(0o700)  # which git does not keep
    (tmp_path / "tokens.json").write_bytes((tmp_path / "data" / "tokens.json").read_bytes())
    (tmp_path / "data" / "tokens.json").unlink()
    return Place(tmp_path / "data")


def then(folder: Path) -> ManualClock:
    """A clock that stands just after what is stored."""
    clock = ManualClock()
    with closing(sqlite3.connect(f"{(folder / 'chat.db').as_uri()}?immutable=1", uri=True)) as database:
        [(newest,)] = database.execute("SELECT max(time) FROM messages")
    clock.shift = (newest - clock.now()) / 1e6 + 1
    return clock


async def test_data_of_an_earlier_schema_is_all_there(place: Place) -> None:
    tokens = json.loads((place.folder.parent / "tokens.json").read_text("utf-8"))
    for _ in range(2):  # as it was, and once it was brought up to date
        async with serving(place.folder, then(place.folder), StrangerLimit=2) as server:
            server.tokens = tokens
            async with server.chat("anna", to="ben") as anna, server.chat("ben", to="anna") as ben:
                assert await said(anna) == ["hello", "hello", "message 0", "message 2"]
                unread = (await ben.ask(3))[:-1]
                assert [frame["id"] for frame in unread] == ["hello-anna-ben", "m2"]
                assert (await anna.send("m1\nmessage 1"))["op_type"] == 40018, "deleted, and its id still used"
                assert (await anna.send("m1\nanother"))["reason"] == "id_used"
                assert (await anna.send("once more", to="名字"))["op_type"] == 40020
                listed = await anna.ask(7, "-10")
                assert [(frame["to"], frame["unread"]) for frame in listed[:-1]] == [("名字", 0), ("ben", 1)]
                # What ben has deleted in another conversation is in no list; it stays a place to go on from.
                assert [frame["to"] for frame in (await ben.ask(7, "-10"))[:-1]] == ["ben"]
    async with serving(place.folder) as server:
        for name in tokens:
            await server.login(name)


async def test_commands_take_it_too_without_a_server(place: Place) -> None:
    copy = place.folder.parent / "copy.db"
    before = (place.folder / "chat.db").read_bytes()
    await place.does("backup", copy)
    assert (place.folder / "chat.db").read_bytes() == before
    assert re.search("sound; 3 users, [78] messages", await place.does("verify", copy))
    assert await place.does("user", "list") == "anna\tenabled\nben\tenabled\n名字\tenabled\n"


async def test_beside_a_server_of_an_earlier_version_a_command_changes_nothing(place: Place) -> None:
    before = (place.folder / "chat.db").read_bytes()
    lock = os.open(place.folder / "chat.lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as such a server holds it
        assert "of an earlier version" in await place.fails("user", "disable", "anna")
    finally:
        os.close(lock)
    assert (place.folder / "chat.db").read_bytes() == before


async def test_a_newer_schema_is_refused_and_stays_as_it_is(place: Place) -> None:
    with closing(sqlite3.connect(place.folder / "chat.db", isolation_level=None)) as database:
        database.execute("UPDATE schema_steps SET step = 1000 WHERE part = 'users'")
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    before = {path.name: path.read_bytes() for path in place.folder.iterdir()}
    for arguments in (["--check"], ["user", "list"], []):
        line = await place.fails(*arguments)
        assert "was made by a newer chat_server" in line
        assert "users 1000" in line
    after = {path.name: path.read_bytes() for path in place.folder.iterdir()}
    assert after.pop("chat.lock") == b""
    assert after == before
