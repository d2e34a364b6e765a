"""python run.py backup, verify and restore: copies of the embedded database, with and without a running server."""

import asyncio
import shutil
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.e2e.commands import Deployment, message_texts
from tests.e2e.http_helpers import is_valid_session
from tests.e2e.test_cli import DAMAGES, snapshot
from tests.harness import serving, subprocess_server


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    return Deployment(tmp_path / "data")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create one backup of a server's data for all tests of this module."""
    folder = tmp_path_factory.mktemp("made")

    async def make() -> None:
        deployment = Deployment(folder / "data")
        async with deployment.serving(users=("1", "2")) as server:
            await server.make_contacts("1", "2")
            await deployment.run("backup", folder / "copy.db")

    asyncio.run(make())
    return folder / "copy.db"


@pytest.fixture
def copy(tmp_path: Path, template: Path) -> Path:
    """Return a copy of the backup that the test may damage."""
    return Path(shutil.copy(template, tmp_path / "copy.db"))


def texts(path: Path) -> list[str]:
    """Return the message texts in a backup, in order."""
    with closing(sqlite3.connect(f"{path.as_uri()}?immutable=1", uri=True)) as database:
        return [text for (text,) in database.execute("SELECT text FROM messages ORDER BY time")]


# --- backup


async def test_a_backup_of_a_busy_server_is_complete(deployment: Deployment) -> None:
    """It contains all messages that were acknowledged before it began, in order; senders do not wait for it."""
    file = deployment.folder.parent / "copy.db"
    async with deployment.serving(users=("1", "2"), StrangerLimit=0) as server:
        acked: list[str] = []
        backing = asyncio.Event()

        async def send() -> None:
            async with server.chat("1", to="2") as chat:
                while not backing.is_set() or len(acked) < 500:
                    text = f"message {len(acked)} " + "x" * 2000
                    answer = await chat.send(text)
                    assert answer["op_type"] == 40019
                    acked.append(text)

        sending = asyncio.create_task(send())
        while len(acked) < 300:
            await asyncio.sleep(0.01)
        before = len(acked)
        output = await deployment.run("backup", file)
        after = len(acked)
        backing.set()
        await sending
    assert after > before
    held = texts(file)
    assert before <= len(held) <= after + 1
    assert held == acked[: len(held)]
    assert f"2 users, {len(held)} messages in 1 conversations and 0 groups, 2 sessions" in output
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert {path.name for path in file.parent.iterdir()} == {"data", "copy.db"}
    assert "sound; 2 users" in await deployment.run("verify", file)


async def test_a_backup_after_a_kill_is_complete(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path / "data")
    async with subprocess_server(tmp_path / "data", users=("1", "2")) as server:
        async with server.chat("1", to="2") as chat:
            await chat.send("hello")
        server.kill()
        await server.wait()
    await deployment.run("backup", tmp_path / "copy.db")
    assert texts(tmp_path / "copy.db") == ["hello"]


async def test_a_backup_replaces_no_existing_file(deployment: Deployment, copy: Path) -> None:
    before = copy.read_bytes()
    await deployment.run("restore", copy)
    for file in (copy, copy.parent):
        assert "exists already" in await deployment.run_failing("backup", file)
    assert copy.read_bytes() == before
    assert "cannot be written" in await deployment.run_failing("backup", copy.parent / "nowhere" / "copy.db")
    assert {path.name for path in copy.parent.iterdir()} == {"data", "copy.db"}


async def test_a_backup_without_data_is_an_error(deployment: Deployment) -> None:
    line = await deployment.run_failing("backup", deployment.folder.parent / "copy.db")
    assert "check DataDir" in line
    assert not deployment.folder.exists()


async def test_a_backup_names_the_data_in_database_servers(deployment: Deployment, copy: Path) -> None:
    await deployment.run("restore", copy)
    deployment.stores["CHAT_MONGODB_MONGODB"] = "mongodb"
    output = await deployment.run("backup", copy.with_name("again.db"))
    assert "NOT in this backup: messages are in MongoDB (mongodump)" in output
    deployment.stores |= {"CHAT_MYSQL_DB": "mysql", "CHAT_REDIS_REDISDB": "redis"}
    line = await deployment.run_failing("backup", copy.with_name("more.db"))
    for word in ("mysqldump", "mongodump", "dump.rdb"):
        assert word in line
    assert not copy.with_name("more.db").exists()


# --- verify


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_damaged_copy_is_reported_and_not_changed(
    deployment: Deployment, copy: Path, damage: Callable[[Path], None]
) -> None:
    damage(copy)
    before = copy.read_bytes()
    for command in ("verify", "restore"):
        assert str(copy) in await deployment.run_failing(command, copy)
    assert copy.read_bytes() == before
    assert not deployment.folder.exists()


async def test_verify_refuses_missing_empty_and_open_files(deployment: Deployment, tmp_path: Path) -> None:
    async with deployment.serving(users=("1",)):
        assert "a server uses it" in await deployment.run_failing("verify", deployment.folder / "chat.db")
    assert "no such file" in await deployment.run_failing("verify", tmp_path / "nothing.db")
    (tmp_path / "empty.db").touch()
    assert "is empty" in await deployment.run_failing("verify", tmp_path / "empty.db")


# --- restore


async def test_restore_brings_back_all_data_and_ends_sessions(deployment: Deployment, copy: Path) -> None:
    output = await deployment.run("restore", copy)
    assert "2 users, 2 messages in 1 conversations" in output
    assert "2 sessions ended: all users must log in again" in output
    assert stat.S_IMODE(deployment.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((deployment.folder / "chat.db").stat().st_mode) == 0o600
    async with deployment.serving() as server:
        token = await server.login("1")
        async with server.chat("1", to="2", token=token) as chat:
            assert await message_texts(chat) == ["hello", "hello"]
            assert (await chat.send("again"))["op_type"] == 40019


async def test_sessions_can_be_kept(deployment: Deployment, copy: Path, tmp_path: Path) -> None:
    async with deployment.serving(users=("1",)) as server:
        await deployment.run("backup", tmp_path / "mine.db")
    other = Deployment(tmp_path / "other")
    await other.run("restore", tmp_path / "mine.db", "--keep-sessions")
    async with serving(other.folder) as again:
        assert await is_valid_session(again, server.tokens["1"])


async def test_restore_overwrites_no_data(deployment: Deployment, copy: Path) -> None:
    async with deployment.serving(users=("1",)):
        assert "is running on it" in await deployment.run_failing("restore", copy)
    for left in ("chat.db", "chat.db-wal"):
        before = snapshot(deployment.folder)
        assert f"{deployment.folder / left} already exists" in await deployment.run_failing("restore", copy)
        assert snapshot(deployment.folder) == before
        (deployment.folder / "chat.db").unlink(missing_ok=True)
        (deployment.folder / "chat.db-wal").touch()
