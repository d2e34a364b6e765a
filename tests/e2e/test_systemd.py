"""The units in docs/systemd are valid, and their commands work as printed."""

import asyncio
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

from chat_server.conf import load
from tests import needs
from tests.harness import CLEAN_ENVIRON, ROOT, TIMEOUT, ServerHandle

UNITS = ROOT / "docs" / "systemd"
FOLDER = re.compile(r"/var/lib/chat-server(?![-\w])")


def unit(name: str, folder: Path) -> str:
    """Return a unit with its paths below `folder` and with this Python interpreter."""
    text = (UNITS / name).read_text("utf-8")
    text = text.replace("/opt/chat-server/.venv/bin/python", sys.executable).replace("/opt/chat-server", str(ROOT))
    text = text.replace("/etc/chat-server/config.ini", str(folder / "config.ini"))
    return text.replace("/var/lib/chat-server-backup", str(folder / "backup"))


def command(text: str, key: str) -> list[str]:
    """Return the command of a unit as systemd parses it."""
    [line] = re.findall(rf"^{key}=(.*)$", text, re.MULTILINE)
    environ = dict(re.findall(r"^Environment=(\w+)=(.*)$", text, re.MULTILINE))
    words = [word.replace("%%", "%") for word in shlex.split(line)]
    return [re.sub(r"\$\{?(\w+)\}?", lambda match: environ.get(match[1], match[0]), word) for word in words]


def config(folder: Path) -> None:
    """Write the settings in docs/operations.md with the data in `folder` and a free port."""
    page = (ROOT / "docs" / "operations.md").read_text("utf-8")
    [printed] = re.findall(r"```ini\n(\[service\]\n.*?)```", page, re.DOTALL)
    assert FOLDER.search(printed)
    (folder / "config.ini").write_text(FOLDER.sub(str(folder / "data"), printed) + "HttpPort = 0\n")
    for name in ("data", "backup"):
        (folder / name).mkdir(mode=0o700)


def test_units_are_valid(tmp_path: Path) -> None:
    analyze = needs.program("systemd-analyze")
    names = sorted(path.name for path in UNITS.iterdir())
    for name in names:
        (tmp_path / name).write_text(unit(name, tmp_path))
    checked = subprocess.run(
        [analyze, "verify", "--man=no", "--recursive-errors=no", *(str(tmp_path / name) for name in names)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (checked.returncode, checked.stderr) == (0, "")


def test_the_template_of_several_processes_is_valid(tmp_path: Path) -> None:
    """It is the unit of one process, with the settings in docs/operations.md."""
    analyze = needs.program("systemd-analyze")
    page = (ROOT / "docs" / "operations.md").read_text("utf-8")
    [drop_in] = re.findall(r"```ini\n(\[Service\]\nEnvironment=.*?)```", page, re.DOTALL)
    text = unit("chat-server.service", tmp_path)
    assert "\nEnvironment=" not in text
    (tmp_path / "chat-server@.service").write_text(text.replace("[Service]\n", drop_in))
    instance = tmp_path / "chat-server@8081.service"
    instance.symlink_to("chat-server@.service")
    checked = subprocess.run(
        [analyze, "verify", "--man=no", "--recursive-errors=no", str(instance)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (checked.returncode, checked.stderr) == (0, "")
    environ = dict(re.findall(r"(CHAT_\w+)=(\S+)", drop_in.replace("%i", "8081")))
    server = load(None, environ).server
    assert (server.http_port, server.metrics_port) == (8081, 18081)


def test_credentials_name_settings_that_exist() -> None:
    text = (UNITS / "chat-server.service").read_text("utf-8")
    loaded = re.findall(r"^#LoadCredential=(\w+):/etc/chat-server/\1$", text, re.MULTILINE)
    variables = re.findall(r"^#Environment=(CHAT_\w+)_FILE=%d/(\w+)$", text, re.MULTILINE)
    assert [name for _, name in variables] == loaded == ["mysql", "redis", "mongodb"]
    settings = load(None, dict(variables))
    assert (settings.mysql.db_password, settings.redis.redis_pw, settings.mongodb.pwd) == ("mysql", "redis", "mongodb")


async def test_the_service_starts_chats_and_ends_in_time(tmp_path: Path) -> None:
    config(tmp_path)
    text = unit("chat-server.service", tmp_path)
    [timeout] = re.findall(r"^TimeoutStopSec=(\d+)s$", text, re.MULTILINE)
    child = await asyncio.create_subprocess_exec(
        *command(text, "ExecStart"), env=CLEAN_ENVIRON, umask=0o077, stdout=asyncio.subprocess.PIPE
    )
    assert child.stdout
    try:
        async with asyncio.timeout(TIMEOUT):
            ready = (await child.stdout.readline()).decode()
        [port] = re.findall(r"http://127\.0\.0\.1:(\d+)", ready)
        server = ServerHandle("127.0.0.1", int(port))
        await server.add_users("1", "2")
        async with server.chat("1", "2") as chat:
            assert (await chat.send("hello"))["op_type"] == 40019
            child.terminate()
            async with asyncio.timeout(float(timeout)):
                assert await child.wait() == 0
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()
    assert [path.name for path in (tmp_path / "data").iterdir() if path.stat().st_mode & 0o077] == []


async def test_the_backup_unit_deletes_only_old_backups(tmp_path: Path) -> None:
    config(tmp_path)
    add = [*command(unit("chat-server.service", tmp_path), "ExecStart"), "user", "add", "1"]
    subprocess.run(add, check=True, env=CLEAN_ENVIRON, input=b"secret1\n")
    text, days = unit("chat-server-backup.service", tmp_path), 24 * 60 * 60
    for name, age in (("chat-old.db", 16), ("chat-recent.db", 13), ("other.db", 16)):
        file = tmp_path / "backup" / name
        file.touch()
        os.utime(file, (time.time() - age * days,) * 2)
    for key in ("ExecStart", "ExecStartPost"):
        subprocess.run(command(text, key), check=True, env=CLEAN_ENVIRON, umask=0o077)
    copies = {path.name: path for path in (tmp_path / "backup").iterdir()}
    [created] = copies.keys() - {"chat-recent.db", "other.db"}
    assert re.fullmatch(r"chat-\d{4}-\d\d-\d\dT\d{6}Z\.db", created)
    assert copies[created].stat().st_mode & 0o777 == 0o600
