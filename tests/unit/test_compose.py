"""compose.yaml and the Dockerfile name settings that exist, and leave no door open."""

import re

from chat_server.conf import load
from tests.harness import ROOT

COMPOSE = (ROOT / "compose.yaml").read_text("utf-8")
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
# ${NAME}, ${NAME:-default} and ${NAME:?what is missing}
VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


def image() -> dict[str, str]:
    """The settings that the image has."""
    return dict(re.findall(r"\b(CHAT_\w+)=(\S+)", DOCKERFILE))


def composed(**given: str) -> dict[str, str]:
    """The settings that compose.yaml gives the server, on top of the image's."""

    def value(match: re.Match[str]) -> str:
        name, kind, default = match.groups()
        if name in given:
            return given[name]
        assert kind == "-", f"{name} has no default"
        return default or ""

    told = re.findall(r"^ +(CHAT_\w+): *(.*)$", COMPOSE, re.MULTILINE)
    return image() | {key: VARIABLE.sub(value, text.strip('"')) for key, text in told}


def test_every_setting_in_the_dockerfile_exists() -> None:
    settings = load(None, image())
    assert settings.server.http_host == "0.0.0.0"
    assert settings.server.app_mode == "release"
    assert str(settings.stores.data_dir) == "/data"


def test_every_setting_in_compose_exists_and_names_the_three_servers() -> None:
    passwords = {"MYSQL_PASSWORD": "a", "MONGODB_PASSWORD": "b", "REDIS_PASSWORD": "c"}
    settings = load(None, composed(**passwords))
    assert (settings.mysql.db, settings.mongodb.mongodb, settings.redis.redis_db) == ("mysql", "mongodb", "redis")
    assert (settings.mysql.db_password, settings.mongodb.pwd, settings.redis.redis_pw) == ("a", "b", "c")
    services = re.findall(r"^  (\w+):$", COMPOSE.split("\nservices:\n")[1].split("\nnetworks:\n")[0], re.MULTILINE)
    addresses = {settings.mysql.db_host, settings.mongodb.addr, settings.redis.redis_addr.split(":")[0]}
    assert {*services} == {"server"} | addresses


def test_every_password_is_required_and_none_is_written_down() -> None:
    for line in COMPOSE.splitlines():
        if re.search(r"PASSWORD: |DBPWD: |REDISPW: |REDISCLI_AUTH: ", line) and "RANDOM" not in line:
            assert re.search(r": \$\{\w+_PASSWORD:\?[^}]+\}$", line), line
    variables = [(name, kind) for name, kind, _ in VARIABLE.findall(COMPOSE) if "PASSWORD" in name]
    assert {kind for _, kind in variables} == {"?"}


def test_only_the_server_is_published_and_on_loopback_only() -> None:
    published = re.findall(r"^ +- \"?([^\"\n]*:\d+)\"?$", COMPOSE, re.MULTILINE)
    assert published == ["127.0.0.1:${CHAT_PORT:-8081}:8081"]
    assert COMPOSE.count("ports:") == 1
    assert re.search(r"^  stores:\n    internal: true$", COMPOSE, re.MULTILINE)


def test_the_image_runs_as_nobody_special_and_holds_nothing_it_need_not() -> None:
    assert re.search(r"^USER [1-9]\d+$", DOCKERFILE, re.MULTILINE)
    ignored = (ROOT / ".dockerignore").read_text("utf-8").split()
    copied = {
        word.strip("./")
        for line in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE)
        for word in line.split()
    }
    assert copied == {name[1:] for name in ignored if name.startswith("!")}
    assert "*" in ignored
