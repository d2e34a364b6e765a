"""Real database servers for the tests. Each listens on a free port and keeps its data in a temporary folder.

MariaDB and Redis are system packages. A test that needs a missing one is skipped (tests/needs.py). secantusd (PyPI:
SecantusDB) replaces mongod, which no package registry offers; CHAT_TEST_MONGODB is the URI of a real mongod.
"""

import atexit
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from chat_server import conf
from tests import needs

TIMEOUT = 60.0  # seconds
# Coverage would measure each Python process that inherits its variables, secantusd too, and slow it down.
UNCOUNTED_ENVIRON = {key: value for key, value in os.environ.items() if not key.startswith("COVERAGE_")}


class DatabaseServer:
    """A database server on `port`. A test can kill it, freeze it and start it again with the same data."""

    def __init__(self, name: str, folder: Path, command: Callable[["DatabaseServer"], Sequence[str]]) -> None:
        self.name = name
        self.folder = folder
        self.port = free_port()
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server and wait until it accepts connections."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command(self),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=UNCOUNTED_ENVIRON,
                process_group=0,
            )
        deadline = time.monotonic() + TIMEOUT
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.port), 1):
                    return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(
                        f"{self.name} did not start: {(self.folder / 'log').read_text()[-2000:]}"
                    ) from None
                time.sleep(0.05)

    def send(self, signal_: signal.Signals) -> None:
        """Send a signal to the server."""
        if self._process:
            self._process.send_signal(signal_)

    def kill(self) -> None:
        """Kill the server (SIGKILL) and wait until it ends."""
        if self._process and self._process.poll() is None:
            self._process.kill()
            self._process.wait(TIMEOUT)

    def stop(self) -> None:
        """Kill the server and remove its data."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def redis(*options: str) -> DatabaseServer:
    """Start a Redis server without persistence. `options` are command-line options."""
    program = needs.program("redis-server")
    return _started(
        "redis",
        lambda server: [
            *(program, "--port", str(server.port), "--bind", "127.0.0.1"),
            *("--save", "", "--appendonly", "no", "--dir", str(server.folder)),
            *options,
        ],
    )


def mysql(*options: str) -> DatabaseServer:
    """Start a MariaDB server with the database chat_demo for the account chat. `options` are command-line options."""
    install, program = needs.program("mariadb-install-db"), needs.program("mariadbd")

    def command(server: DatabaseServer) -> Sequence[str]:
        data, init, temporary = server.folder / "data", server.folder / "init.sql", server.folder / "tmp"
        tmpdir = f"--tmpdir={temporary}"  # a start deletes the temporary tables there, also those of other servers
        temporary.mkdir(exist_ok=True)
        if not data.exists():
            installed = subprocess.run(
                [
                    *(install, "--no-defaults", f"--datadir={data}", tmpdir),
                    "--auth-root-authentication-method=normal",
                ],
                check=False,
                capture_output=True,
                text=True,
            )
            assert not installed.returncode, installed.stdout + installed.stderr
            init.write_text(
                "CREATE DATABASE IF NOT EXISTS chat_demo;\n"
                "CREATE USER IF NOT EXISTS 'chat'@'127.0.0.1' IDENTIFIED BY 'secret';\n"
                "GRANT ALL ON chat_demo.* TO 'chat'@'127.0.0.1';"
            )
        return [
            *(program, "--no-defaults", "--user=root", f"--datadir={data}", f"--port={server.port}"),
            *(
                "--bind-address=127.0.0.1",
                f"--socket={server.folder}/socket",
                f"--init-file={init}",
                "--skip-name-resolve",
                tmpdir,
                *options,
            ),
        ]

    return _started("mysql", command)


def mongodb() -> DatabaseServer:
    """Start a secantusd that syncs to disk before it answers."""
    return _secantusd("--sync-on-commit")


def _secantusd(*options: str) -> DatabaseServer:
    return _started(
        "mongodb",
        lambda server: [
            *(str(Path(sys.executable).with_name("secantusd-py")), "--port", str(server.port), "--host", "127.0.0.1"),
            *("--storage-path", str(server.folder / "data"), *options),
        ],
    )


@contextmanager
def running(*, durable: bool = True) -> Iterator[list[DatabaseServer]]:
    """Run MySQL, MongoDB and a Redis that syncs every write, as docs/operations.md recommends.

    Without `durable`, MySQL and MongoDB do not sync, for tests that never kill them.
    """
    unsynced = [] if durable else ["--innodb-flush-method=nosync", "--innodb-flush-log-at-trx-commit=0"]
    started: list[DatabaseServer] = []
    try:
        started.append(mysql(*unsynced))
        started.append(mongodb() if durable else _secantusd())
        started.append(redis("--appendonly", "yes", "--appendfsync", "always"))
        yield started
    finally:
        for server in started:
            server.stop()


def mysql_config(server: DatabaseServer) -> conf.MySQLSettings:
    """Return the settings for this MySQL server."""
    return conf.MySQLSettings(db="mysql", db_port=server.port, db_user="chat", db_password="secret")


def mongodb_config(server: DatabaseServer | None, name: str) -> conf.MongoDBSettings:
    """Return the settings for this MongoDB server (None: the one in CHAT_TEST_MONGODB) and the database `name`."""
    if server is None:
        return conf.MongoDBSettings(mongodb="mongodb", addr=os.environ["CHAT_TEST_MONGODB"], name=name)
    return conf.MongoDBSettings(mongodb="mongodb", addr="127.0.0.1", port=server.port, name=name)


def redis_config(server: DatabaseServer, prefix: str = "chat_server:") -> conf.RedisSettings:
    """Return the settings for this Redis server."""
    return conf.RedisSettings(redis_db="redis", redis_addr=f"127.0.0.1:{server.port}", redis_prefix=prefix)


def environ(
    *, mysql: DatabaseServer | None = None, mongodb: DatabaseServer | None = None, redis: DatabaseServer | None = None
) -> dict[str, str]:
    """Return the environment variables that select these servers."""
    variables: dict[str, str] = {}
    if mysql:
        variables |= {"CHAT_MYSQL_DB": "mysql", "CHAT_MYSQL_DBPORT": str(mysql.port)}
        variables |= {"CHAT_MYSQL_DBUSER": "chat", "CHAT_MYSQL_DBPASSWORD": "secret"}
    if mongodb:
        variables |= {"CHAT_MONGODB_MONGODB": "mongodb", "CHAT_MONGODB_MONGODBADDR": "127.0.0.1"}
        variables |= {"CHAT_MONGODB_MONGODBPORT": str(mongodb.port)}
    if redis:
        variables |= {"CHAT_REDIS_REDISDB": "redis", "CHAT_REDIS_REDISADDR": f"127.0.0.1:{redis.port}"}
    return variables


def _started(name: str, command: Callable[[DatabaseServer], Sequence[str]]) -> DatabaseServer:
    server = DatabaseServer(name, Path(tempfile.mkdtemp(prefix=f"chat-{name}-")), command)
    try:
        server.start()
    except BaseException:
        server.stop()
        raise
    return server


def claim() -> int:
    """Return a number below 10,000 that no other test process on this machine gets while this process runs.

    A bound but unused UDP port reserves the number.
    """
    while True:
        number = secrets.randbelow(10_000)
        holder = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            holder.bind(("127.0.0.1", 22_000 + number))
        except OSError:
            holder.close()
        else:
            atexit.register(holder.close)
            return number


def free_port() -> int:
    """Return a free port of 127.0.0.1.

    It is below the range of ephemeral ports, so it stays free between the end and the restart of a killed server.
    """
    while True:
        port = 12_000 + claim()
        with suppress(OSError):
            socket.create_server(("127.0.0.1", port)).close()
            return port
