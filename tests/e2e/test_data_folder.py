"""DataDir: file modes, errors about missing access, and the removal of deleted texts from the disk."""

import asyncio
import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from chat_server import app
from tests import needs
from tests.e2e.commands import SHORT_TIMES, Deployment
from tests.harness import (
    PASSWORD,
    ManualClock,
    ServerHandle,
    SubprocessServer,
    run_py,
    serving,
    shell,
    subprocess_server,
    wait_until,
)

DAY = 86400
# Run as root without the right to bypass file modes. Other users do not have this right.
POWERLESS = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search") if os.geteuid() == 0 else ()


def modes(folder: Path) -> dict[str, str]:
    """Return the modes of all files in a folder."""
    return {path.name: f"{stat.S_IMODE(path.stat().st_mode):o}" for path in folder.iterdir()}


@asynccontextmanager
async def with_umask(folder: Path, umask: str) -> AsyncIterator[SubprocessServer]:
    async with subprocess_server(folder, prefix=shell(f'umask {umask}; exec "$@"')) as server:
        yield server


# --- modes


@pytest.mark.parametrize("umask", ["000", "022", "077", "777"])
async def test_only_the_owner_can_access_the_files(tmp_path: Path, umask: str) -> None:
    """This holds in a folder that others can access (its mode stays) and in a folder that the server creates."""
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


async def test_files_that_others_can_access_become_private(tmp_path: Path) -> None:
    """Earlier versions created such files; the WAL of a killed server is one of them."""
    folder = tmp_path / "data"
    async with subprocess_server(folder, users=("1",)) as server:
        server.kill()
        await server.wait()
    for path in folder.iterdir():
        path.chmod(0o666)
    async with subprocess_server(folder) as server:
        await server.login("1")
        assert set(modes(folder).values()) == {"600"}


async def test_only_the_owner_can_access_backups(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path / "data")
    await deployment.run("user", "add", "anna", typed=PASSWORD)
    copy, restored = tmp_path / "copy.db", tmp_path / "restored"
    restored.mkdir(mode=0o777)
    for arguments in (["backup", str(copy)], ["restore", str(copy)]):
        folder = restored if arguments[0] == "restore" else deployment.folder
        child = await run_py(
            *arguments,
            prefix=shell('umask 000; exec "$@"'),
            environ=deployment.environ | {"CHAT_SERVICE_DATADIR": str(folder)},
        )
        await child.communicate()
        assert child.returncode == 0
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert set(modes(restored).values()) == {"600"}


async def test_a_folder_that_others_can_access_is_reported(tmp_path: Path) -> None:
    """The server warns at startup and in --check, which changes nothing."""
    deployment = Deployment(tmp_path / "data")
    deployment.folder.mkdir()
    for mode in (0o755, 0o750, 0o701):
        deployment.folder.chmod(mode)
        warning = f"other users can access {deployment.folder} (mode {mode:04o})"
        assert warning in await deployment.run("--check")
        async with subprocess_server(deployment.folder) as server:
            await wait_until(lambda warning=warning: warning in server.log.read_text())
            server.log.unlink()
        assert warning in await deployment.run("--check")
    deployment.folder.chmod(0o700)
    assert "other users" not in await deployment.run("--check")
    async with subprocess_server(deployment.folder, users=("2",)) as server:
        assert "other users" not in server.log.read_text()


# --- missing access


@pytest.mark.parametrize("spoilt", ["folder", "file", "log", "read-only folder"])
async def test_missing_access_to_the_folder_is_reported(tmp_path: Path, spoilt: str) -> None:
    """The error must not report damage, because a backup would not help."""
    if POWERLESS:
        needs.program(POWERLESS[0])
    deployment = Deployment(tmp_path / "data")
    async with subprocess_server(deployment.folder, users=("1",)) as server:
        server.kill()
        await server.wait()
    path = deployment.folder / {"file": "chat.db", "log": "chat.db-wal"}.get(spoilt, "")
    path.chmod(0o500 if spoilt == "read-only folder" else 0)
    try:
        for arguments in ([], ["--check"], ["user", "list"]):
            child = await run_py(*arguments, prefix=POWERLESS, environ=deployment.environ)
            out, err = await child.communicate()
            [line] = err.decode().splitlines()
            assert (child.returncode, out) == (1, b"")
            assert "Permission denied" in line
            assert "backup" not in line
            assert str(path) in line
        if spoilt != "read-only folder":
            child = await run_py("backup", str(tmp_path / "copy.db"), prefix=POWERLESS, environ=deployment.environ)
            _, err = await child.communicate()
            assert child.returncode == 1
            assert str(deployment.folder) in err.decode()
            assert len(err.decode().splitlines()) == 1
    finally:
        path.chmod(0o700)


# --- deleted texts


def disk_bytes(folder: Path) -> bytes:
    """Return all bytes of the database and of its WAL, if it exists."""
    return b"".join(path.read_bytes() for path in (folder / "chat.db", folder / "chat.db-wal") if path.exists())


@pytest.fixture
def immediate_cleanup(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the cleanup at once instead of twice a minute."""
    monkeypatch.setattr(app, "SWEEP_SECONDS", 0.2)


async def send_texts(server: ServerHandle, *texts: str) -> None:
    """Let user 1 send these texts to user 2."""
    async with server.chat("1", to="2") as one:
        for number, text in enumerate(texts):
            await one.send(f"m{number}\n{text}")


async def wait_erased(folder: Path, *texts: str) -> None:
    await wait_until(lambda: not any(text.encode() in disk_bytes(folder) for text in texts))


# One text that shares a database page with others, and one that fills several pages.
TEXTS = ("attack at dawn 4711", "attack at noon 0815 " * 800)


@pytest.mark.usefixtures("immediate_cleanup")
async def test_a_deleted_text_is_erased_from_the_disk(tmp_path: Path) -> None:
    async with serving(tmp_path, users=("1", "2"), StrangerLimit=0) as server:
        await send_texts(server, *TEXTS)
        assert all(text[:18].encode() in disk_bytes(tmp_path) for text in TEXTS)
        async with server.chat("1", to="2") as one:
            for number in range(len(TEXTS)):
                assert (await one.answer(5, f"m{number}"))["op_type"] == 40013
        await wait_erased(tmp_path, *(text[:18] for text in TEXTS))


@pytest.mark.usefixtures("immediate_cleanup")
async def test_texts_of_a_removed_user_are_erased_from_the_disk(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path, StrangerLimit=0)
    async with deployment.serving(users=("1", "2")) as server:
        await send_texts(server, *TEXTS)
        await deployment.run("user", "remove", "2", "--messages", "delete")
        await wait_erased(tmp_path, *(text[:18] for text in TEXTS))


async def test_texts_of_a_user_removed_offline_are_erased(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path, StrangerLimit=0)
    async with deployment.serving(users=("1", "2")) as server:
        await send_texts(server, *TEXTS)
    await deployment.run("user", "remove", "2", "--messages", "delete")
    assert not any(text[:18].encode() in disk_bytes(tmp_path) for text in TEXTS)


@pytest.mark.usefixtures("immediate_cleanup")
async def test_expired_texts_are_erased_from_the_disk(tmp_path: Path) -> None:
    clock = ManualClock()
    async with serving(tmp_path, clock, users=("1", "2"), StrangerLimit=0, MessageDays=1, **SHORT_TIMES) as server:
        await send_texts(server, *TEXTS)
        clock.shift = 2 * DAY
        await wait_erased(tmp_path, *(text[:18] for text in TEXTS))
        await send_texts(server, "still here")
        assert b"still here" in disk_bytes(tmp_path)


@pytest.mark.usefixtures("immediate_cleanup")
async def test_a_deleted_text_is_erased_during_reads_and_writes(tmp_path: Path) -> None:
    """The WAL cannot be truncated while readers use it, so the server waits and tries again."""
    async with serving(tmp_path, users=("1", "2"), StrangerLimit=0) as server:
        await send_texts(server, *TEXTS)
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
        await wait_erased(tmp_path, *(text[:18] for text in TEXTS))
        done.set()
        await asyncio.gather(*others)
