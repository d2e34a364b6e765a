"""The current code opens the data of every earlier schema completely (tests/fixtures)."""

import fcntl
import json
import os
import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.e2e.commands import Deployment, message_texts
from tests.harness import ROOT, ChatClient, Frame, ManualClock, serving

FIXTURES = ROOT / "tests" / "fixtures"
SCHEMAS = sorted(path.name for path in FIXTURES.glob("schema-*"))


@pytest.fixture(params=SCHEMAS)
def deployment(request: pytest.FixtureRequest, tmp_path: Path) -> Deployment:
    """A copy of the data of an earlier schema."""
    shutil.copytree(FIXTURES / request.param, tmp_path / "data")
    (tmp_path / "data").chmod(0o700)  # git does not keep this mode
    (tmp_path / "tokens.json").write_bytes((tmp_path / "data" / "tokens.json").read_bytes())
    (tmp_path / "data" / "tokens.json").unlink()
    return Deployment(tmp_path / "data")


def clock_of(folder: Path) -> ManualClock:
    """Return a clock that is just after the newest stored message."""
    clock = ManualClock()
    with closing(sqlite3.connect(f"{(folder / 'chat.db').as_uri()}?immutable=1", uri=True)) as database:
        [(newest,)] = database.execute("SELECT max(time) FROM messages")
    clock.shift = (newest - clock.now()) / 1e6 + 1
    return clock


async def conversations(chat: ChatClient) -> tuple[list[Frame], list[Frame]]:
    """Return the list of op 7: groups, which only later schemas contain, and users."""
    *listed, _ = await chat.ask(7, "-10")
    groups = [frame for frame in listed if frame["to"].startswith("#")]
    return groups, [frame for frame in listed if frame not in groups]


async def test_data_of_an_earlier_schema_is_complete(deployment: Deployment) -> None:
    tokens = json.loads((deployment.folder.parent / "tokens.json").read_text("utf-8"))
    for _ in range(2):  # before and after the upgrade
        async with serving(deployment.folder, clock_of(deployment.folder), StrangerLimit=2) as server:
            server.tokens = tokens
            async with server.chat("anna", to="ben") as anna, server.chat("ben", to="anna") as ben:
                assert await message_texts(anna) == ["hello", "hello", "message 0", "message 2"]
                unread = (await ben.ask(3))[:-1]
                assert [frame["id"] for frame in unread] == ["hello-anna-ben", "m2"]
                assert (await anna.send("m1\nmessage 1"))["op_type"] == 40018, (
                    "the id of a deleted message must stay used"
                )
                assert (await anna.send("m1\nanother"))["reason"] == "id_used"
                assert (await anna.send("once more", to="名字"))["op_type"] == 40020
                groups, peers = await conversations(anna)
                assert [(frame["to"], frame["unread"]) for frame in peers] == [("名字", 0), ("ben", 1)]
                assert [frame["content"] for frame in groups] in ([], ["m\nto the group"])
                # The messages that ben deleted in another conversation are in no list, but stay valid page markers.
                _, peers = await conversations(ben)
                assert [frame["to"] for frame in peers] == ["ben"]
    async with serving(deployment.folder) as server:
        for name in tokens:
            await server.login(name)


async def test_commands_open_an_earlier_schema_without_a_server(deployment: Deployment) -> None:
    copy = deployment.folder.parent / "copy.db"
    before = (deployment.folder / "chat.db").read_bytes()
    await deployment.run("backup", copy)
    assert (deployment.folder / "chat.db").read_bytes() == before
    assert re.search("sound; 3 users, [7-9] messages", await deployment.run("verify", copy))
    assert await deployment.run("user", "list") == "anna\tenabled\nben\tenabled\n名字\tenabled\n"


async def test_a_command_refuses_while_an_earlier_version_runs(deployment: Deployment) -> None:
    """It changes nothing."""
    before = (deployment.folder / "chat.db").read_bytes()
    lock = os.open(deployment.folder / "chat.lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the lock of such a server
        assert "of an earlier version" in await deployment.run_failing("user", "disable", "anna")
    finally:
        os.close(lock)
    assert (deployment.folder / "chat.db").read_bytes() == before


async def test_a_newer_schema_is_refused_and_unchanged(deployment: Deployment) -> None:
    with closing(sqlite3.connect(deployment.folder / "chat.db", isolation_level=None)) as database:
        database.execute("UPDATE schema_steps SET step = 1000 WHERE part = 'users'")
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    before = {path.name: path.read_bytes() for path in deployment.folder.iterdir()}
    for arguments in (["--check"], ["user", "list"], []):
        line = await deployment.run_failing(*arguments)
        assert "was made by a newer chat_server" in line
        assert "users 1000" in line
    after = {path.name: path.read_bytes() for path in deployment.folder.iterdir()}
    assert after.pop("chat.lock") == b""
    assert after == before
