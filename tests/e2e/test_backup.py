"""python run.py backup, verify and restore: copies of the embedded database, also of a running server."""

import asyncio
import shutil
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.e2e.answers import lives
from tests.e2e.operating import Place, said
from tests.e2e.test_cli import SPOILT, snapshot
from tests.harness import serving, subprocess_server


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "data")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a server's data."""
    folder = tmp_path_factory.mktemp("made")

    async def make() -> None:
        place = Place(folder / "data")
        async with place.serving() as server:
            await server.add_users("1", "2")
            await server.make_contacts("1", "2")
            await place.does("backup", folder / "copy.db")

    asyncio.run(make())
    return folder / "copy.db"


@pytest.fixture
def copy(tmp_path: Path, made: Path) -> Path:
    """One that a test may spoil."""
    return Path(shutil.copy(made, tmp_path / "copy.db"))


def texts(path: Path) -> list[str]:
    """The texts in a copy, in order."""
    with closing(sqlite3.connect(f"{path.as_uri()}?immutable=1", uri=True)) as database:
        return [text for (text,) in database.execute("SELECT text FROM messages ORDER BY time")]


# --- backup


async def test_a_backup_of_a_busy_server_ends_and_holds_all_that_was_acknowledged_before(place: Place) -> None:
    """In order, without a gap; nobody who sends meanwhile waits for it."""
    file = place.folder.parent / "copy.db"
    async with place.serving(StrangerLimit=0) as server:
        await server.add_users("1", "2")
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
        said_ = await place.does("backup", file)
        after = len(acked)
        backing.set()
        await sending
    assert after > before
    held = texts(file)
    assert before <= len(held) <= after + 1
    assert held == acked[: len(held)]
    assert f"2 users, {len(held)} messages in 1 conversations, 2 sessions" in said_
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert {path.name for path in file.parent.iterdir()} == {"data", "copy.db"}
    assert "sound; 2 users" in await place.does("verify", file)


async def test_a_backup_of_what_a_killed_server_left_holds_all(tmp_path: Path) -> None:
    place = Place(tmp_path / "data")
    async with subprocess_server(tmp_path / "data") as server:
        await server.add_users("1", "2")
        async with server.chat("1", to="2") as chat:
            await chat.send("hello")
        server.kill()
        await server.wait()
    await place.does("backup", tmp_path / "copy.db")
    assert texts(tmp_path / "copy.db") == ["hello"]


async def test_a_backup_takes_no_other_file_s_place(place: Place, copy: Path) -> None:
    before = copy.read_bytes()
    await place.does("restore", copy)
    for file in (copy, copy.parent):
        assert "exists already" in await place.fails("backup", file)
    assert copy.read_bytes() == before
    assert "cannot be written" in await place.fails("backup", copy.parent / "nowhere" / "copy.db")
    assert {path.name for path in copy.parent.iterdir()} == {"data", "copy.db"}


async def test_there_must_be_something_to_back_up(place: Place) -> None:
    line = await place.fails("backup", place.folder.parent / "copy.db")
    assert "check DataDir" in line
    assert not place.folder.exists()


async def test_what_is_kept_in_servers_is_named(place: Place, copy: Path) -> None:
    await place.does("restore", copy)
    place.stores["CHAT_MONGODB_MONGODB"] = "mongodb"
    said_ = await place.does("backup", copy.with_name("again.db"))
    assert "NOT in this copy: messages are in MongoDB (mongodump)" in said_
    place.stores |= {"CHAT_MYSQL_DB": "mysql", "CHAT_REDIS_REDISDB": "redis"}
    line = await place.fails("backup", copy.with_name("more.db"))
    for word in ("mysqldump", "mongodump", "dump.rdb"):
        assert word in line
    assert not copy.with_name("more.db").exists()


# --- verify


@pytest.mark.parametrize("spoil", SPOILT)
async def test_a_copy_that_is_not_sound_is_told_and_not_touched(
    place: Place, copy: Path, spoil: Callable[[Path], None]
) -> None:
    spoil(copy)
    before = copy.read_bytes()
    for command in ("verify", "restore"):
        assert str(copy) in await place.fails(command, copy)
    assert copy.read_bytes() == before
    assert not place.folder.exists()


async def test_what_a_server_uses_is_no_copy(place: Place, tmp_path: Path) -> None:
    async with place.serving() as server:
        await server.add_users("1")
        assert "a server uses it" in await place.fails("verify", place.folder / "chat.db")
    assert "no such file" in await place.fails("verify", tmp_path / "nothing.db")
    (tmp_path / "empty.db").touch()
    assert "is empty" in await place.fails("verify", tmp_path / "empty.db")


# --- restore


async def test_a_restored_server_has_all_of_it_and_ends_the_sessions_of_then(place: Place, copy: Path) -> None:
    said_ = await place.does("restore", copy)
    assert "2 users, 2 messages in 1 conversations" in said_
    assert "2 sessions ended: everybody logs in again" in said_
    assert stat.S_IMODE(place.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((place.folder / "chat.db").stat().st_mode) == 0o600
    async with place.serving() as server:
        token = await server.login("1")
        async with server.chat("1", to="2", token=token) as chat:
            assert await said(chat) == ["hello", "hello"]
            assert (await chat.send("again"))["op_type"] == 40019


async def test_sessions_can_be_kept(place: Place, copy: Path, tmp_path: Path) -> None:
    async with place.serving() as server:
        await server.add_users("1")
        await place.does("backup", tmp_path / "mine.db")
    other = Place(tmp_path / "other")
    await other.does("restore", tmp_path / "mine.db", "--keep-sessions")
    async with serving(other.folder) as again:
        assert await lives(again, server.tokens["1"])


async def test_nothing_is_restored_over_anything(place: Place, copy: Path) -> None:
    async with place.serving() as server:
        await server.add_users("1")
        assert "is running on it" in await place.fails("restore", copy)
    for left in ("chat.db", "chat.db-wal"):
        before = snapshot(place.folder)
        assert f"{place.folder / left} already exists" in await place.fails("restore", copy)
        assert snapshot(place.folder) == before
        (place.folder / "chat.db").unlink(missing_ok=True)
        (place.folder / "chat.db-wal").touch()
