"""compose.yaml and the Dockerfile: every setting exists, no secret is written down, nothing is open without need."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import yaml

from chat_server.conf import load
from tests.harness import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
# ${NAME:-default}
VARIABLE = re.compile(r"\$\{\w+:-([^}]*)\}")


def image_environment() -> dict[str, str]:
    """The settings in the image."""
    return dict(re.findall(r"\b(CHAT_\w+)=(\S+)", DOCKERFILE))


def server_environment(secrets: Path) -> dict[str, str]:
    """The settings of the server in compose.yaml, with its secrets in that folder."""
    given = {key: VARIABLE.sub(r"\1", str(value)) for key, value in SERVICES["server"]["environment"].items()}
    return image_environment() | {key: value.replace("/run/secrets", str(secrets)) for key, value in given.items()}


def printed_commands() -> list[str]:
    """The commands in the first comment of compose.yaml."""
    comment = (ROOT / "compose.yaml").read_text("utf-8").partition("\nname:")[0]
    return [line.removeprefix("#   ") for line in comment.splitlines() if line.startswith("#   ")]


def make_secrets(folder: Path) -> Path:
    """The folder that the printed commands make, all but the last one."""
    *commands, last = printed_commands()
    assert last == "docker compose up --build --detach"
    subprocess.run(["/bin/sh", "-euc", "umask 077\n" + "\n".join(commands)], cwd=folder, check=True)
    return folder / "secrets"


def test_every_setting_in_the_dockerfile_exists() -> None:
    settings = load(None, image_environment())
    assert settings.server.http_host == "0.0.0.0"
    assert settings.server.app_mode == "release"
    assert str(settings.stores.data_dir) == "/data"


def test_every_setting_in_compose_exists_and_names_a_service(tmp_path: Path) -> None:
    secrets = make_secrets(tmp_path)
    settings = load(None, server_environment(secrets))
    assert (settings.mysql.db, settings.mongodb.mongodb, settings.redis.redis_db) == ("mysql", "mongodb", "redis")
    passwords = (settings.mysql.db_password, settings.mongodb.pwd, settings.redis.redis_pw)
    assert passwords == tuple((secrets / name).read_text() for name in ("mysql", "mongodb", "redis"))
    addresses = {settings.mysql.db_host, settings.mongodb.addr, "redis"}
    assert settings.redis.redis_addr == "redis://chat@redis:6379/0"
    assert {*SERVICES} == {"server", "server2"} | addresses


def test_printed_commands_make_every_secret_and_differ(tmp_path: Path) -> None:
    """Only the owner enters the folder; the users of the containers can read the files."""
    secrets = make_secrets(tmp_path)
    assert secrets.stat().st_mode & 0o777 == 0o700
    values = {file.name: file.read_text() for file in secrets.iterdir()}
    assert {f"./secrets/{name}" for name in values} == {secret["file"] for secret in COMPOSE["secrets"].values()}
    assert all(re.fullmatch("[0-9a-f]{48}", value) for value in values.values())
    assert len({*values.values()}) == len(values)
    assert {file.stat().st_mode & 0o777 for file in secrets.iterdir()} == {0o444}


def test_both_readmes_print_the_commands_of_compose() -> None:
    for name in ("README.md", "README.zh-CN.md"):
        assert "```sh\n" + "\n".join(printed_commands()) + "\n```" in (ROOT / name).read_text("utf-8")


def test_no_service_has_a_password_in_its_environment() -> None:
    for service in SERVICES.values():
        for key, value in service.get("environment", {}).items():
            if re.search(r"PASSWORD|PWD|PW\b|AUTH", key):
                assert key.endswith("_FILE")
                assert str(value).removeprefix("/run/secrets/") in service["secrets"]


def test_no_service_uses_the_root_account_of_a_database() -> None:
    server = SERVICES["server"]
    assert {*server["secrets"]} == {"mysql", "mongodb", "redis"}
    assert {server["environment"][key] for key in ("CHAT_MYSQL_DBUSER", "CHAT_MONGODB_MONGODBUSER")} == {"chat"}
    # MYSQL_RANDOM_ROOT_PASSWORD writes the password to the log.
    assert "RANDOM" not in json.dumps(SERVICES["mysql"]["environment"])


def test_every_service_limits_logs_memory_and_rights() -> None:
    for service in SERVICES.values():
        assert {"max-size", "max-file"} <= {*service["logging"]["options"]}
        assert service["mem_limit"]
        assert "no-new-privileges:true" in service["security_opt"]


def test_the_second_server_differs_only_in_its_port() -> None:
    """It starts only with Processes = many."""
    first, second = (dict(SERVICES[name]) for name in ("server", "server2"))
    assert second.pop("profiles") == ["many"]
    assert first.pop("ports") != second.pop("ports")
    assert first == second
    assert first["environment"]["CHAT_SERVICE_PROCESSES"] == "${CHAT_PROCESSES:-one}"


def test_only_the_servers_are_published_and_on_loopback_only() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {
        "server": ["127.0.0.1:${CHAT_PORT:-8081}:8081"],
        "server2": ["127.0.0.1:${CHAT_PORT2:-8082}:8081"],
    }
    assert COMPOSE["networks"]["stores"] == {"internal": True}
    assert {tuple(service["networks"]) for name, service in SERVICES.items() if "ports" not in service} == {("stores",)}


def test_every_mounted_file_exists() -> None:
    mounts = [mount for service in SERVICES.values() for mount in service.get("volumes", ()) if mount.startswith("./")]
    assert len(mounts) == 3
    assert all((ROOT / mount.split(":")[0]).is_file() and mount.endswith(":ro") for mount in mounts)


def test_the_image_has_an_ordinary_user_and_only_needed_files() -> None:
    assert re.search(r"^USER [1-9]\d+$", DOCKERFILE, re.MULTILINE)
    ignored = (ROOT / ".dockerignore").read_text("utf-8").split()
    copied = {
        word.strip("./")
        for line in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE)
        for word in line.split()
    }
    assert copied == {name[1:] for name in ignored if name.startswith("!")}
    assert "*" in ignored
