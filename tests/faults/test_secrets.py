"""Passwords of databases: any text works, and no password is logged or printed after any error."""

import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import pymysql
import pytest
from redis import Redis

from tests import servers
from tests.harness import run_py, subprocess_server
from tests.servers import DatabaseServer

# Latin-1, other scripts, characters that a URI must quote, quotes, control characters.
PASSWORDS = ("pässwörd-é", "пароль-密码-🔑", "p@ss:w/o?r#d%41", "quo'ted\"\\path`", "tab\tand\x01control\x7f")
# All libraries log at their lowest level to standard error, with the texts of exceptions.
DEBUG_LAUNCHER = """
import logging, sys
sys.path.insert(0, {root!r})
from chat_server import cli
from chat_server.utils import logs
logs.set_up = lambda mode: logging.basicConfig(level=logging.DEBUG, force=True)
sys.exit(cli.main(sys.argv[3:]))
"""


def debug_prefix(folder: Path) -> tuple[str, ...]:
    """Return a prefix that runs run.py with all loggers at their lowest level and with complete tracebacks."""
    launcher = folder / "debug.py"
    launcher.write_text(DEBUG_LAUNCHER.format(root=str(Path(__file__).resolve().parents[2])))
    return sys.executable, str(launcher)


def spellings(secret: str) -> set[str]:
    """Return the forms in which a secret may appear."""
    return {
        secret,
        quote(secret, safe="", errors="surrogateescape"),
        quote(secret, errors="surrogateescape"),
        repr(secret)[1:-1],
        ascii(secret)[1:-1],
        secret.encode(errors="surrogateescape").hex(),
        secret.encode(errors="surrogateescape").decode("latin-1"),
    }


def check_harmless(text: str, secret: str) -> None:
    """Fail if the text contains the secret in any form, or a traceback."""
    for form in spellings(secret):
        assert form not in text
    assert "Traceback" not in text


async def start_failure(folder: Path, environ: Mapping[str, str], secret: str) -> str:
    """Return the error of a start, which also --check reports; fail if any output contains the secret."""
    values = {"CHAT_SERVICE_DATADIR": str(folder / "data"), "CHAT_SERVICE_HTTPPORT": "0"}
    values |= {"CHAT_SERVICE_STORETIMEOUT": "2", "CHAT_SERVICE_STARTTIMEOUT": "2"}
    lines = []
    for arguments in ((), ("--check",)):
        child = await run_py(*arguments, prefix=debug_prefix(folder), environ=values | dict(environ))
        out, err = await child.communicate()
        assert (child.returncode, out) == (1, b""), (out, err)
        check_harmless(err.decode(), secret)
        lines += [line for line in err.decode().splitlines() if line.startswith("chat-server: ")]
    assert len(lines) == 2  # one each, among the lines of the libraries
    return lines[0]


async def start_and_stop(folder: Path, environ: Mapping[str, str], secret: str) -> None:
    """Start a server and stop it; fail if its log contains the secret."""
    async with subprocess_server(folder / "data", stores=environ, prefix=debug_prefix(folder)) as server:
        server.process.terminate()
        assert await server.wait() == 0
    check_harmless(server.log.read_text(), secret)


@pytest.mark.parametrize("password", PASSWORDS, ids=range(len(PASSWORDS)))
async def test_mysql_accepts_any_password_and_none_is_logged(
    mysql: DatabaseServer, tmp_path: Path, password: str
) -> None:
    stores = servers.environ(mysql=mysql) | {"CHAT_MYSQL_DBUSER": "guarded", "CHAT_MYSQL_DBPASSWORD": password}
    with (
        closing(pymysql.connect(host="127.0.0.1", port=mysql.port, user="root", charset="utf8mb4")) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("DROP USER IF EXISTS 'guarded'@'127.0.0.1'")
        assert "DbUser or DbPassWord is wrong" in await start_failure(tmp_path, stores, password)
        cursor.execute("CREATE USER 'guarded'@'127.0.0.1' IDENTIFIED BY %s", password)
        cursor.execute("GRANT ALL ON chat_demo.* TO 'guarded'@'127.0.0.1'")
        await start_and_stop(tmp_path, stores, password)


@pytest.mark.parametrize("password", PASSWORDS, ids=range(len(PASSWORDS)))
async def test_redis_accepts_any_password_and_none_is_logged(
    redis: DatabaseServer, tmp_path: Path, password: str
) -> None:
    address = {"CHAT_REDIS_REDISADDR": f"redis://guarded:{quote(password, safe='')}@127.0.0.1:{redis.port}/0"}
    stores = servers.environ(redis=redis) | address
    with Redis(port=redis.port) as admin:
        admin.execute_command("ACL", "SETUSER", "guarded", "reset", "on", ">another", "~*", "+@all")
        assert "RedisPw is wrong" in await start_failure(tmp_path, stores, password)
        admin.execute_command("ACL", "SETUSER", "guarded", f">{password}")
        await start_and_stop(tmp_path, stores, password)
        setting = {"CHAT_REDIS_REDISADDR": f"redis://guarded@127.0.0.1:{redis.port}", "CHAT_REDIS_REDISPW": password}
        await start_and_stop(tmp_path, stores | setting, password)


SECRET = "5ecret"


@pytest.mark.parametrize(
    "address",
    [
        f"redis://chat:{SECRET}@127.0.0.1:port",
        f"redis://:12/{SECRET}@127.0.0.1",
        f"redis://:12?{SECRET}@127.0.0.1",
        f"redis://:12#{SECRET}@127.0.0.1",
        f"{SECRET}/{SECRET}@127.0.0.1",
        f"redis://[::1:{SECRET}@x",
        f"redis://127.0.0.1?socket_timeout={SECRET}",
        f"redis://127.0.0.1?ssl_cert_reqs={SECRET}",
        f"ftp://chat:{SECRET}@127.0.0.1",
        f"redis://chat:{SECRET}@nosuch.invalid",
        f"rediss://chat:{SECRET}@127.0.0.1:1",
    ],
)
async def test_no_secret_in_a_redis_address_is_logged(tmp_path: Path, address: str) -> None:
    line = await start_failure(tmp_path, {"CHAT_REDIS_REDISDB": "redis", "CHAT_REDIS_REDISADDR": address}, SECRET)
    assert "RedisAddr" in line or "Redis at " in line


@pytest.mark.parametrize(
    "address",
    [
        f"mongodb://chat:{SECRET}@127.0.0.1:port",
        f"mongodb://chat:12/{SECRET}@127.0.0.1",
        f"mongodb://chat:{SECRET}@x@127.0.0.1",
        f"mongodb://chat:{SECRET}%ZZ@127.0.0.1:1",
        f"mongodb://chat:{SECRET}@127.0.0.1:1/?authMechanism={SECRET}",
        f"mongodb://chat:{SECRET}@127.0.0.1:1/?tls={SECRET}",
        f"mongodb://chat:{SECRET}@127.0.0.1:1",
        f"mongodb://chat:{SECRET}@nosuch.invalid",
        f"chat:{SECRET}@127.0.0.1",
    ],
)
async def test_no_secret_in_a_mongodb_address_is_logged(tmp_path: Path, address: str) -> None:
    stores = {"CHAT_MONGODB_MONGODB": "mongodb", "CHAT_MONGODB_MONGODBADDR": address}
    line = await start_failure(tmp_path, stores, SECRET)
    assert "MongoDBAddr" in line or "MongoDB at " in line


async def test_an_impossible_mongodb_password_is_reported_immediately(mongodb: DatabaseServer, tmp_path: Path) -> None:
    password = "contr\x01ol"
    user = {"CHAT_MONGODB_MONGODBUSER": "chat", "CHAT_MONGODB_MONGODBPWD": password}
    line = await start_failure(tmp_path, servers.environ(mongodb=mongodb) | user, password)
    assert "MongoDBPwd holds characters that no password can have" in line


@pytest.mark.parametrize("key", ["CHAT_MYSQL_DBPASSWORD", "CHAT_REDIS_REDISPW", "CHAT_MONGODB_MONGODBPWD"])
async def test_a_database_password_that_is_not_utf_8_is_reported(tmp_path: Path, key: str) -> None:
    password = "5ecret\udcff"
    line = await start_failure(tmp_path, {key: password}, password)
    assert f"environment variable {key}: is not UTF-8" in line
