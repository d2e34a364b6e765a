"""python run.py: options, startup, startup errors and shutdown."""

import asyncio
import logging
import os
import re
import resource
import shutil
import signal
import socket
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path

import pytest
import websockets

from chat_server import __version__
from chat_server.cli import main
from tests.e2e.http_helpers import check_success, is_valid_session, send_request
from tests.harness import ROOT, TIMEOUT, SubprocessServer, run_command, run_py, serving, shell, subprocess_server

# The maximum duration, in seconds, of a shutdown by SIGTERM or SIGINT (docs/architecture.md).
MAX_SHUTDOWN_SECONDS = 10
PAGE = 4096
SECRET = "hunter2-and-more"
UNREACHABLE = {"CHAT_MYSQL_DBPORT": "1", "CHAT_REDIS_REDISADDR": "127.0.0.1:1", "CHAT_MONGODB_MONGODBPORT": "1"}


def settings(folder: Path, **values: object) -> dict[str, str]:
    """Return the environment of a server with its data in `folder`."""
    values = {"DataDir": folder, "HttpPort": 0, **values}
    return {f"CHAT_SERVICE_{key.upper()}": str(value) for key, value in values.items()}


async def failed_start(*arguments: str, environ: Mapping[str, str] | None = None) -> str:
    """Start a server, which must fail; return its last error line."""
    result = await run_command(*arguments, environ=environ)
    assert result.code == 1, result
    assert "ready" not in result.out, result
    assert "Traceback" not in result.err, result
    *waiting, line = result.err.splitlines()
    assert all("store not ready" in text for text in waiting)
    assert line.startswith("chat-server: ")
    return line


Command = Callable[..., str]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """Run a failing command in this process; return its single error line."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def fail_in_process(*arguments: str, environ: Mapping[str, str] | None = None) -> str:
        for name, value in (environ or {}).items():
            monkeypatch.setenv(name, value)
        assert main(list(arguments)) == 1
        out, err = capsys.readouterr()
        assert "ready" not in out
        [line] = err.splitlines()
        assert line.startswith("chat-server: ")
        return str(line)

    yield fail_in_process
    for handler in set(root.handlers) - set(handlers):
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)


def snapshot(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Return the current time, size and mode of everything below a folder."""
    return {
        str(path.relative_to(folder)): (stat.st_mtime_ns, stat.st_size, stat.st_mode)
        for path in (folder, *folder.rglob("*"))
        if (stat := path.stat())
    }


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create the data folder of a stopped server with users, messages and sessions."""
    folder = tmp_path_factory.mktemp("template") / "data"

    async def live() -> None:
        async with serving(folder, users=("1", "2")) as server, server.chat("1", to="2") as chat:
            await chat.send("hello")
            await chat.send("x" * 16_000)

    asyncio.run(live())
    return folder


@pytest.fixture
def data(tmp_path: Path, template: Path) -> Path:
    """Return a copy of the template that the test may change."""
    return Path(shutil.copytree(template, tmp_path / "data"))


# --- version, help and options


async def test_version_and_help() -> None:
    version, help_ = await asyncio.gather(run_command("--version"), run_command("--help"))
    assert version == (0, f"chat-server {__version__}\n", "")
    assert (help_.code, help_.err) == (0, "")
    for option in ("--config FILE", "--check", "--version", "--help"):
        assert option in help_.out


async def test_an_error_names_an_unknown_option() -> None:
    result = await run_command("--chekc")
    assert result.code == 2
    assert "--chekc" in result.err


# --- --check


async def test_check_does_not_create_a_missing_folder(tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    result = await run_command("--check", environ=settings(tmp_path / "deep" / "data"))
    assert (result.code, result.err) == (0, "")
    assert "does not exist yet" in result.out
    assert snapshot(tmp_path) == before


async def test_check_reports_its_findings_and_changes_nothing(tmp_path: Path, data: Path) -> None:
    config = tmp_path / "my.ini"
    config.write_text("[service]\nDataDir = data\nHttpPort = 0")
    before = snapshot(tmp_path)
    result = await run_command("--check", "--config", str(config))
    assert (result.code, result.err) == (0, "")
    assert str(config) in result.out
    assert str(data / "chat.db") in result.out
    assert "sound" in result.out
    assert snapshot(tmp_path) == before


async def test_check_does_not_affect_a_running_server(tmp_path: Path) -> None:
    """Between the snapshots the server is frozen, so that it does not change its files itself.

    The time of chat.db-shm may change: each SQLite reader marks in this shared memory which part of the log it uses.
    """
    folder = tmp_path / "data"

    def files() -> dict[str, tuple[int, ...]]:
        return {name: stat[name == "chat.db-shm" :] for name, stat in snapshot(folder).items()}

    async with subprocess_server(folder, users=("1", "2")) as server, server.chat("1", to="2") as chat:
        server.process.send_signal(signal.SIGSTOP)
        before = files()
        assert {"chat.db", "chat.db-wal", "chat.db-shm"} <= before.keys()
        result = await run_command("--check", "--config", str(tmp_path / "server.ini"))
        assert (result.code, result.err) == (0, "")
        assert "sound" in result.out
        assert files() == before
        server.process.send_signal(signal.SIGCONT)
        assert (await chat.send("hello"))["op_type"] == 40019


async def test_check_after_a_kill_changes_nothing(tmp_path: Path) -> None:
    """It opens the stores read-only: it takes no lock, creates nothing and migrates nothing."""
    whole, part = tmp_path / "data", tmp_path / "part"
    async with subprocess_server(whole, users=("1",)) as server:
        server.kill()
        await server.wait()
    assert (whole / "chat.db-wal").stat().st_size
    shutil.copytree(whole, part, ignore=shutil.ignore_patterns("*-shm"))
    before = snapshot(tmp_path)
    for result in await asyncio.gather(*(run_command("--check", environ=settings(folder)) for folder in (whole, part))):
        assert (result.code, result.err) == (0, "")
    assert snapshot(tmp_path) == before


async def test_check_of_an_older_schema_migrates_nothing(tmp_path: Path) -> None:
    tmp_path.joinpath("chat.db").touch()
    before = snapshot(tmp_path)
    result = await run_command("--check", environ=settings(tmp_path))
    assert (result.code, result.err) == (0, "")
    assert "next start" in result.out
    assert snapshot(tmp_path) == before


# --- unusable databases: --check and startup report them


def garbage(path: Path) -> None:
    path.write_bytes(b"this is no database " * 1000)


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def overwritten(path: Path, page: int) -> None:
    with path.open("r+b") as file:
        file.seek((page - 1) * PAGE)
        file.write(b"\xaa" * PAGE)


def first_page(path: Path) -> None:
    overwritten(path, 1)


def page_of_users(path: Path) -> None:
    overwritten(path, root_page(path, "users"))


def page_of_messages(path: Path) -> None:
    overwritten(path, root_page(path, "messages"))


def page_of_sessions(path: Path) -> None:
    overwritten(path, root_page(path, "sessions"))


def page_of_an_index(path: Path) -> None:
    overwritten(path, root_page(path, "messages_by_time"))


def page_of_steps(path: Path) -> None:
    overwritten(path, root_page(path, "sqlite_autoindex_schema_steps_1"))


def of_another_program(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE something (else_)")


def of_a_newer_release(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("UPDATE schema_steps SET step = 1000 WHERE part = 'messages'")


def root_page(path: Path, name: str) -> int:
    with closing(sqlite3.connect(path)) as database:
        page: int = database.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (name,)).fetchone()[0]
    return page


DAMAGES: list[Callable[[Path], None]] = [
    garbage,
    truncated,
    first_page,
    page_of_steps,
    page_of_messages,
    page_of_users,
    page_of_sessions,
    page_of_an_index,
    of_another_program,
    of_a_newer_release,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_check_reports_an_unusable_database(data: Path, command: Command, damage: Callable[[Path], None]) -> None:
    path = data / "chat.db"
    damage(path)
    before = snapshot(data)
    line = command("--check", environ=settings(data))
    assert str(path) in line
    assert "backup" in line or "another DataDir" in line
    assert snapshot(data) == before


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_unusable_database_is_a_startup_error(data: Path, command: Command, damage: Callable[[Path], None]) -> None:
    path = data / "chat.db"
    damage(path)
    content = path.read_bytes()
    # The port is in use, so a server that overlooks the damage ends with a different error.
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        line = command(environ=settings(data, HttpPort=listener.getsockname()[1]))
    assert str(path) in line or "the embedded database failed" in line
    assert "backup" in line or "another DataDir" in line
    if damage in (of_another_program, of_a_newer_release):
        assert path.read_bytes() == content


async def test_a_process_reports_an_unusable_database(data: Path) -> None:
    garbage(data / "chat.db")
    environ = settings(data)
    for line in await asyncio.gather(failed_start("--check", environ=environ), failed_start(environ=environ)):
        assert str(data / "chat.db") in line
        assert "backup" in line


# --- other startup errors


async def test_a_port_in_use_is_a_startup_error(tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
        line = await failed_start(environ=settings(tmp_path, HttpPort=port))
    assert f"HttpPort {port}" in line
    assert "in use" in line


async def test_an_address_of_another_machine_is_a_startup_error(tmp_path: Path) -> None:
    assert "HttpHost 192.0.2.1" in await failed_start(environ=settings(tmp_path, HttpHost="192.0.2.1"))


async def test_an_unwritable_data_dir_is_a_startup_error(tmp_path: Path) -> None:
    """The parent is a file: not even root can create a folder there."""
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file" / "data", tmp_path / "file"):
        environ = settings(folder)
        for line in await asyncio.gather(failed_start("--check", environ=environ), failed_start(environ=environ)):
            assert f"DataDir {folder}" in line
            assert "another DataDir" in line
    assert (tmp_path / "file").read_bytes() == b""


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="/proc, where not even root can create a folder, is missing")
def test_a_data_dir_in_proc_is_a_startup_error(command: Command) -> None:
    assert "DataDir /proc/data" in command(environ=settings(Path("/proc/data")))


async def test_a_second_process_on_the_same_data_is_refused(tmp_path: Path) -> None:
    """The first process continues to work."""
    folder = tmp_path / "data"
    async with subprocess_server(folder) as first:
        await first.add_users("1", "2")
        async with first.chat("1", to="2") as one, first.chat("2", to="1") as two:
            line = await failed_start(environ=settings(folder))
            assert f"DataDir {folder}" in line
            assert "another chat_server is running" in line
            assert (await one.send("m\nhello"))["op_type"] == 40018
            assert (await two.receive())["id"] == "m"
        first.kill()
        await first.wait()
    async with subprocess_server(folder) as again:  # the lock of a killed server does not remain
        assert await is_valid_session(again, first.tokens["1"])


async def test_an_error_names_the_wrong_setting_and_its_file(tmp_path: Path) -> None:
    config = tmp_path / "my.ini"
    for text, named in (("[service]\nHttpProt = 8081", "httpprot"), ("[service]\nHttpPort = 808100", "HttpPort")):
        config.write_text(text)
        for line in await asyncio.gather(
            failed_start("--config", str(config)), failed_start("--config", str(config), "--check")
        ):
            assert str(config) in line
            assert named in line


def test_an_error_names_the_wrong_environment_variable(command: Command) -> None:
    assert "CHAT_SERVICE_HTTPPORT" in command(environ={"CHAT_SERVICE_HTTPPORT": "many"})


async def test_a_missing_config_file_is_a_startup_error(tmp_path: Path, command: Command) -> None:
    assert f"{tmp_path}/missing.ini" in await failed_start("--config", f"{tmp_path}/missing.ini")
    assert f"{tmp_path}: " in command("--config", str(tmp_path))


def test_config_ini_in_the_current_folder_is_the_default(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command that `pip install` creates has no config.ini next to it."""
    (tmp_path / "config.ini").write_text("[service]\nHttpPort = many")
    monkeypatch.chdir(tmp_path)
    assert f"{tmp_path}/config.ini: [service] HttpPort" in command()


async def test_an_unreachable_database_server_is_a_startup_error(tmp_path: Path) -> None:
    """No server listens on port 1. (A release without the backend reports an error, too.)"""
    words = {"CHAT_MYSQL_DB": "mysql", "CHAT_REDIS_REDISDB": "redis", "CHAT_MONGODB_MONGODB": "mongodb"}
    timeouts = {"StartTimeout": 0.5, "StoreTimeout": 0.5}
    starts = (
        failed_start(environ=UNREACHABLE | settings(tmp_path / word, **timeouts) | {variable: word})
        for variable, word in words.items()
    )
    for word, line in zip(words.values(), await asyncio.gather(*starts), strict=True):
        assert word in line.lower()


async def test_errors_never_contain_a_database_password(tmp_path: Path) -> None:
    passwords = {"CHAT_MYSQL_DBPASSWORD": SECRET, "CHAT_REDIS_REDISPW": SECRET, "CHAT_MONGODB_MONGODBPWD": SECRET}
    servers = [
        {"CHAT_MYSQL_DB": "mysql", "CHAT_MYSQL_DBUSER": "root"},
        {"CHAT_REDIS_REDISDB": "redis"},
        {"CHAT_REDIS_REDISDB": "redis", "CHAT_REDIS_REDISADDR": f"redis://user:{SECRET}@127.0.0.1:1/0"},
        {"CHAT_REDIS_REDISDB": "redis", "CHAT_REDIS_REDISADDR": f"nonsense://user:{SECRET}@127.0.0.1:1/0"},
        {"CHAT_MONGODB_MONGODB": "mongodb", "CHAT_MONGODB_MONGODBUSER": "root"},
        {"CHAT_MONGODB_MONGODB": "mongodb", "CHAT_MONGODB_MONGODBADDR": f"mongodb://user:{SECRET}@127.0.0.1:1/"},
        {"CHAT_MONGODB_MONGODB": "mongodb", "CHAT_MONGODB_MONGODBADDR": f"nonsense://user:{SECRET}@127.0.0.1:1/"},
        {"CHAT_MONGODB_MONGODB": "mongodb", "CHAT_MONGODB_MONGODBADDR": f"mongodb://us:er:{SECRET}@127.0.0.1:many/"},
    ]
    timeouts = {"StartTimeout": 0.5, "StoreTimeout": 0.5}
    starts = [
        run_command(environ=UNREACHABLE | passwords | settings(tmp_path / str(number), **timeouts) | server)
        for number, server in enumerate(servers)
    ]
    for result in await asyncio.gather(*starts):
        assert result.code == 1, result
        assert SECRET not in result.out + result.err


async def test_the_config_of_the_go_server_is_a_startup_error(tmp_path: Path) -> None:
    """The error names the database that the file selects."""
    config = tmp_path / "config.ini"
    config.write_bytes((ROOT / "tests" / "data" / "origin.ini").read_bytes())
    line = await failed_start(
        "--config", str(config), environ=UNREACHABLE | settings(tmp_path, StartTimeout=0.5, StoreTimeout=0.5)
    )
    assert re.search("mysql|redis|mongodb", line.lower())
    assert "123456" not in line


async def test_an_error_names_a_missing_package(tmp_path: Path) -> None:
    """A module of the same name raises the error that Python raises for a missing module."""

    async def without(package: str) -> None:
        folder = tmp_path / package
        folder.mkdir()
        (folder / f"{package}.py").write_text(f"raise ModuleNotFoundError('No module', name={package!r})")
        line = await failed_start(environ={"PYTHONPATH": str(folder)})
        assert f" {package} " in line
        assert "make run" in line

    await asyncio.gather(*map(without, ("aiohttp", "bcrypt", "msgspec", "uvloop")))


# --- ready


@pytest.mark.parametrize(("host", "shown"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")])
async def test_the_ready_line_contains_the_address(tmp_path: Path, host: str, shown: str) -> None:
    try:
        socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError:
        pytest.skip(f"this machine has no {host}")
    child = await run_py(environ=settings(tmp_path, HttpHost=host))
    try:
        assert child.stdout
        async with asyncio.timeout(TIMEOUT):
            line = (await child.stdout.readline()).decode()
        match = re.fullmatch(
            rf"chat-server {re.escape(__version__)} is ready on http://{re.escape(shown)}:(\d+)\n", line
        )
        assert match
        _, writer = await asyncio.open_connection(host, int(match[1]))
        writer.close()
        await writer.wait_closed()
    finally:
        child.kill()
        out, err = await child.communicate()
    assert (out, err) == (b"", b"")


async def test_the_server_raises_its_limit_of_open_files(tmp_path: Path) -> None:
    async with subprocess_server(
        tmp_path / "data", prefix=shell('ulimit -Sn 100 && ulimit -Hn 3000 && exec "$@"')
    ) as server:
        assert resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE) == (3000, 3000)


# --- shutdown


@asynccontextmanager
async def slow_connections(server: SubprocessServer) -> AsyncIterator[None]:
    """Open connections that delay a shutdown: one idle, one with half a request, one that never reads."""
    requests = [
        b"",
        b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /ping HTTP/1.1\r\nHo",
        b"POST /user/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{",
        b"GET /chat/test?uid=1&to_uid=2&token=%s HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        % server.tokens["1"].encode(),
    ]
    writers = []
    for request in requests:
        reader, writer = await asyncio.open_connection(server.host, server.port)
        writers.append(writer)
        writer.write(request)
        if request.endswith(b"\r\n\r\n"):
            async with asyncio.timeout(TIMEOUT):
                await reader.readuntil(b"\r\n\r\n")
    try:
        yield
    finally:
        for writer in writers:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "store", [{"CHAT_MYSQL_DB": "mysql"}, {"CHAT_REDIS_REDISDB": "redis"}, {"CHAT_MONGODB_MONGODB": "mongodb"}]
)
async def test_a_signal_ends_a_start_that_waits_for_a_store(
    tmp_path: Path, store: dict[str, str], signal_: signal.Signals
) -> None:
    server = await run_py(environ=UNREACHABLE | settings(tmp_path, StartTimeout=3600) | store)
    assert server.stdout
    assert server.stderr
    async with asyncio.timeout(TIMEOUT):
        assert b"store not ready" in await server.stderr.readline()
    server.send_signal(signal_)
    async with asyncio.timeout(TIMEOUT):
        out, err = await server.communicate()
    assert (server.returncode, out) == (0, b"chat-server is ending\n")
    assert all(b"store not ready" in line for line in err.splitlines())


async def test_sigterm_ends_the_server_despite_slow_connections(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    async with subprocess_server(folder, users=("1", "2")) as server:
        await server.make_contacts("1", "2")
        async with slow_connections(server), server.chat("1", to="2") as one, server.chat("2", to="1") as two:
            sent = [f"m{number}" for number in range(200)]
            for id in sent:
                await one.put(1, f"{id}\nhello")
            first = await one.receive()
            server.send_signal(signal.SIGTERM)
            acked = [first["id"]]
            with suppress(websockets.ConnectionClosed):
                while True:
                    acked.append((await one.receive())["id"])
            assert await one.wait_closed() == 1001
            assert await two.wait_closed() == 1001
            async with asyncio.timeout(MAX_SHUTDOWN_SECONDS):
                assert await server.wait() == 0
        assert [await server.next_output(), await server.next_output()] == ["chat-server is ending\n", ""]
        assert "Traceback" not in server.log.read_text()
    assert not (folder / "chat.db-wal").exists()  # its contents are in chat.db
    assert acked == sent[: len(acked)]
    async with serving(folder) as server_again, server_again.chat("1", to="2", token=server.tokens["1"]) as one:
        stored = [frame["id"] for frame in await one.ask(2, "-200") if frame["from"] != "System"]
    assert set(acked) <= set(stored)


async def test_sigint_ends_the_server(tmp_path: Path) -> None:
    async with subprocess_server(tmp_path / "data", users=("1",)) as server:
        server.send_signal(signal.SIGINT)
        async with asyncio.timeout(MAX_SHUTDOWN_SECONDS):
            assert await server.wait() == 0
        assert "Traceback" not in server.log.read_text()


async def test_a_second_signal_ends_the_server_immediately(tmp_path: Path) -> None:
    async with (
        subprocess_server(tmp_path / "data", users=("1", "2"), StoreTimeout=60) as server,
        slow_connections(server),
        server.chat("1", to="2") as one,
    ):
        with closing(sqlite3.connect(tmp_path / "data" / "chat.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")  # the server waits for the message, so its shutdown takes long
            await one.put(1, "m1\nhello")
            await (await one.connection.ping())  # the pong follows the message
            server.send_signal(signal.SIGTERM)
            assert await server.next_output() == "chat-server is ending\n"
            server.send_signal(signal.SIGTERM)
            assert await server.wait() == -signal.SIGTERM
    async with subprocess_server(tmp_path / "data") as again:
        check_success(await send_request(again, "GET", "/health"), 200)
        assert await is_valid_session(again, server.tokens["1"])
