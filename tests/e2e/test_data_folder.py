"""DataDir: only its owner can access what is in it, what was deleted is gone, and who has no access is told so."""

import asyncio
import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from chat_server import app
from tests.e2e.operating import SOON, Place
from tests.harness import (
    PASSWORD,
    ManualClock,
    ServerHandle,
    SubprocessServer,
    run_py,
    serving,
    subprocess_server,
    wait_until,
)

DAY = 86400
# Root without the right to access everything; another user has no such right anyway.
POWERLESS = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search") if os.geteuid() == 0 else ()


def modes(folder: Path) -> dict[str, str]:
    """The modes of all files in a folder."""
    return {path.name: f"{stat.S_IMODE(path.stat().st_mode):o}" for path in folder.iterdir()}


@asynccontextmanager
async def with_umask(folder: Path, umask: str) -> AsyncIterator[SubprocessServer]:
    async with subprocess_server(folder, prefix=("sh", "-c", f'umask {umask}; exec "$@"', "sh")) as server:
        yield server


# --- modes


@pytest.mark.parametrize("umask", ["000", "022", "077", "777"])
async def test_only_the_owner_can_access_the_files(tmp_path: Path, umask: str) -> None:
    """In a folder that others can access, whose mode stays, and in one that the server makes."""
    open_, new = tmp_path / "open", tmp_path / "new"
    open_.mkdir()
    open_.chmod(0o777)
    async with with_umask(open_, umask) as server:
        await server.add_users("1")
        assert set(modes(open_)) >= {"chat.db", "chat.db-wal", "chat.db-shm", "chat.lock"}
        assert set(modes(open_).values()) == {"600"}
    assert stat.S_IMODE(open_.stat().st_mode) == 0o777
    async with with_umask(new, umask):
        assert set(modes(new).values()) == {"600"}
    assert stat.S_IMODE(new.stat().st_mode) == 0o700


async def test_files_that_others_could_access_are_closed_to_them(tmp_path: Path) -> None:
    """As an earlier version made them; a log that a killed server left is one of them."""
    folder = tmp_path / "data"
    async with subprocess_server(folder) as server:
        await server.add_users("1")
        server.kill()
        await server.wait()
    for path in folder.iterdir():
        path.chmod(0o666)
    async with subprocess_server(folder) as server:
        await server.login("1")
        assert set(modes(folder).values()) == {"600"}


async def test_copies_can_be_accessed_by_their_owner_alone(tmp_path: Path) -> None:
    place = Place(tmp_path / "data")
    await place.does("user", "add", "anna", typed=PASSWORD)
    copy, restored = tmp_path / "copy.db", tmp_path / "restored"
    restored.mkdir(mode=0o777)
    for arguments in (["backup", str(copy)], ["restore", str(copy)]):
        folder = restored if arguments[0] == "restore" else place.folder
        child = await run_py(
            *arguments,
            prefix=("sh", "-c", 'umask 000; exec "$@"', "sh"),
            environ=place.environ | {"CHAT_SERVICE_DATADIR": str(folder)},
        )
        await child.communicate()
        assert child.returncode == 0
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert set(modes(restored).values()) == {"600"}


async def test_a_folder_that_others_can_access_is_told(tmp_path: Path) -> None:
    """At the start, and by --check, which changes nothing."""
    place = Place(tmp_path / "data")
    place.folder.mkdir()
    for mode in (0o755, 0o750, 0o701):
        place.folder.chmod(mode)
        told = f"other users can access {place.folder} (mode {mode:04o})"
        assert told in await place.does("--check")
        async with subprocess_server(place.folder) as server:
            await wait_until(lambda told=told: told in server.log.read_text())
            server.log.unlink()
        assert told in await place.does("--check")
    place.folder.chmod(0o700)
    assert "other users" not in await place.does("--check")
    async with subprocess_server(place.folder) as server:
        await server.add_users("2")
        assert "other users" not in server.log.read_text()


# --- who has no access


@pytest.mark.parametrize("spoilt", ["folder", "file", "log", "read-only folder"])
async def test_a_folder_without_access_is_told_as_that(tmp_path: Path, spoilt: str) -> None:
    """Not as damage, against which a backup would help."""
    place = Place(tmp_path / "data")
    async with subprocess_server(place.folder) as server:
        await server.add_users("1")
        server.kill()
        await server.wait()
    path = place.folder / {"file": "chat.db", "log": "chat.db-wal"}.get(spoilt, "")
    path.chmod(0o500 if spoilt == "read-only folder" else 0)
    try:
        for arguments in ([], ["--check"], ["user", "list"]):
            child = await run_py(*arguments, prefix=POWERLESS, environ=place.environ)
            out, err = await child.communicate()
            [line] = err.decode().splitlines()
            assert (child.returncode, out) == (1, b"")
            assert "Permission denied" in line
            assert "backup" not in line
            assert str(path) in line
        if spoilt != "read-only folder":
            child = await run_py("backup", str(tmp_path / "copy.db"), prefix=POWERLESS, environ=place.environ)
            _, err = await child.communicate()
            assert child.returncode == 1
            assert str(place.folder) in err.decode()
            assert len(err.decode().splitlines()) == 1
    finally:
        path.chmod(0o700)


# --- what was deleted


def raw(folder: Path) -> bytes:
    """All bytes of the database and, if there is one, its log."""
    return b"".join(path.read_bytes() for path in (folder / "chat.db", folder / "chat.db-wal") if path.exists())


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done twice a minute is done at once."""
    monkeypatch.setattr(app, "SWEEP_SECONDS", 0.2)


async def say(server: ServerHandle, *texts: str) -> None:
    """User 1 says this to user 2."""
    async with server.chat("1", to="2") as one:
        for number, text in enumerate(texts):
            await one.send(f"m{number}\n{text}")


async def gone(folder: Path, *texts: str) -> None:
    await wait_until(lambda: not any(text.encode() in raw(folder) for text in texts))


# One that fits beside others on a page, and one that needs pages of its own.
TEXTS = ("attack at dawn 4711", "attack at noon 0815 " * 800)


@pytest.mark.usefixtures("soon")
async def test_a_deleted_text_is_gone_from_the_disk(tmp_path: Path) -> None:
    async with serving(tmp_path, StrangerLimit=0) as server:
        await server.add_users("1", "2")
        await say(server, *TEXTS)
        assert all(text[:18].encode() in raw(tmp_path) for text in TEXTS)
        async with server.chat("1", to="2") as one:
            for number in range(len(TEXTS)):
                assert (await one.answer(5, f"m{number}"))["op_type"] == 40013
        await gone(tmp_path, *(text[:18] for text in TEXTS))


@pytest.mark.usefixtures("soon")
async def test_texts_of_a_removed_user_are_gone_from_the_disk(tmp_path: Path) -> None:
    place = Place(tmp_path, StrangerLimit=0)
    async with place.serving() as server:
        await server.add_users("1", "2")
        await say(server, *TEXTS)
        await place.does("user", "remove", "2", "--messages", "delete")
        await gone(tmp_path, *(text[:18] for text in TEXTS))


async def test_texts_of_a_user_removed_without_a_server_are_gone(tmp_path: Path) -> None:
    place = Place(tmp_path, StrangerLimit=0)
    async with place.serving() as server:
        await server.add_users("1", "2")
        await say(server, *TEXTS)
    await place.does("user", "remove", "2", "--messages", "delete")
    assert not any(text[:18].encode() in raw(tmp_path) for text in TEXTS)


@pytest.mark.usefixtures("soon")
async def test_expired_texts_are_gone_from_the_disk(tmp_path: Path) -> None:
    clock = ManualClock()
    async with serving(tmp_path, clock, StrangerLimit=0, MessageDays=1, **SOON) as server:
        await server.add_users("1", "2")
        await say(server, *TEXTS)
        clock.shift = 2 * DAY
        await gone(tmp_path, *(text[:18] for text in TEXTS))
        await say(server, "still here")
        assert b"still here" in raw(tmp_path)


@pytest.mark.usefixtures("soon")
async def test_a_deleted_text_is_gone_although_others_read_and_write(tmp_path: Path) -> None:
    """A log that readers use cannot be emptied: the server waits for them, and tries again."""
    async with serving(tmp_path, StrangerLimit=0) as server:
        await server.add_users("1", "2")
        await say(server, *TEXTS)
        done = asyncio.Event()

        async def busy(number: int) -> None:
            async with server.chat("2", to="1") as two:
                while not done.is_set():
                    await two.ask(2, "-200")
                    await two.send(f"r{number}-{os.urandom(8).hex()}\nx")

        others = [asyncio.create_task(busy(number)) for number in range(8)]
        async with server.chat("1", to="2") as one:
            await one.ask(5, "m0")
            await one.ask(5, "m1")
        await gone(tmp_path, *(text[:18] for text in TEXTS))
        done.set()
        await asyncio.gather(*others)
