"""The settings: config.ini, the environment, and the errors about invalid values."""

import configparser
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from chat_server.conf import ConfigError, Settings, load
from chat_server.conf.settings import SECTIONS
from tests.harness import ROOT

SHIPPED = ROOT / "config.ini"
ORIGIN = ROOT / "tests" / "data" / "origin.ini"
# The settings of [service] with their defaults.
DEFAULTS = {
    "AppMode": "debug",
    "HttpHost": "127.0.0.1",
    "HttpPort": "8081",
    "DataDir": "data",
    "Language": "zh",
    "PasswordCost": "12",
    "MinPasswordLength": "6",
    "SessionDays": "30",
    "MessageDays": "0",
    "StrangerLimit": "5",
    "StrangerWindow": "3",
    "HeartbeatSeconds": "30",
    "Processes": "one",
    "StartTimeout": "30",
    "StoreTimeout": "5",
    "MaxFrameBytes": "65536",
    "MaxTextBytes": "16384",
    "OutboxBytes": "1048576",
    "Registration": "open",
    "FramesPerSecond": "200",
    "FramesBurst": "1000",
    "BroadcastsPerMinute": "30",
    "GroupMembers": "200",
    "GroupsPerUser": "100",
    "SocketsPerUser": "32",
    "SocketsPerAddress": "0",
    "LoginFailures": "10",
    "LoginFailuresPerAddress": "300",
    "LoginWindow": "5",
    "RegistrationsPerHour": "1000",
    "PasswordWait": "10",
    "MetricsHost": "127.0.0.1",
    "MetricsPort": "0",
    "Compress": "no",
    "AllowedOrigins": "",
    "TrustedProxies": "",
    "RequestTimeout": "75",
}
SECRET = "hunter2-%-and-more"


def in_file(folder: Path, text: str) -> Settings:
    """Return the settings of a file with this text."""
    path = folder / "my.ini"
    path.write_text(text, "utf-8")
    return load(path, {})


def error_of(folder: Path, text: str) -> str:
    """Return the error about a file with this text: one line that names the file."""
    with pytest.raises(ConfigError) as error:
        in_file(folder, text)
    message = str(error.value)
    assert "\n" not in message
    assert str(folder / "my.ini") in message
    return message


def values(settings: Settings) -> dict[str, Any]:
    """Return all values except the source, and DataDir, which depends on it."""
    plain: dict[str, Any] = msgspec.to_builtins(
        msgspec.structs.replace(settings, source="", stores=msgspec.structs.replace(settings.stores, data_dir=Path())),
        enc_hook=str,
    )
    return plain


# --- the file as shipped


def shipped() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(SHIPPED, "utf-8")
    return parser


def test_the_shipped_file_has_exactly_the_known_settings() -> None:
    known = {
        section: {field.encode_name for group in groups.values() for field in msgspec.structs.fields(group)}
        for section, groups in SECTIONS.items()
    }
    assert {name: set(shipped().options(name)) for name in shipped().sections()} == known


def test_the_shipped_file_contains_the_defaults() -> None:
    assert values(load(SHIPPED, {})) == values(load(None, {}))


def test_defaults_are_those_of_the_contract() -> None:
    assert DEFAULTS.items() <= dict(shipped().items("service")).items()
    for section, key in (("mysql", "Db"), ("redis", "RedisDb"), ("MongoDB", "MongoDb")):
        assert shipped().get(section, key) == "embedded"


def test_every_setting_can_be_set(tmp_path: Path) -> None:
    """Each setting gets a value that is not its default, so the test detects a key that is read into another field."""
    other = {
        "AppMode": "release",
        "HttpHost": "::1",
        "DataDir": "/elsewhere",
        "Language": "en",
        "Registration": "closed",
    }
    stores = "[mysql]\nDb = mysql\n[redis]\nRedisDb = redis\n[MongoDB]\nMongoDb = mongodb\n"
    other |= {
        "Processes": "many",
        "Compress": "yes",
        "AllowedOrigins": "https://a.example",
        "TrustedProxies": "10.0.0.0/8",
        "MetricsHost": "::1",
    }
    written = {
        key: other.get(key) or (str(int(default) + 1) if default.isdigit() else "") for key, default in DEFAULTS.items()
    }
    service = "".join(f"{key} = {value}\n" for key, value in written.items())
    settings = in_file(tmp_path, f"[service]\n{service}{stores}")
    before, after = values(load(None, {})), values(settings)
    changed = {
        field: (before[group][field], value)
        for group, fields in after.items()
        if isinstance(fields, dict) and group not in ("mysql", "redis", "mongodb")
        for field, value in fields.items()
        if value != before[group][field]
    }
    assert len(changed) == len(written) - len({"DataDir"})
    for field, (default, value) in changed.items():
        key = field.replace("_", "").lower()
        [text] = [text for name, text in written.items() if name.lower() == key]
        if isinstance(default, int | float) and not isinstance(default, bool):
            assert value == float(text), field


def listed_settings(page: str) -> dict[str, str]:
    """Return the settings in the tables of a page, with their defaults."""
    text = (ROOT / page).read_text("utf-8")
    return dict(re.findall(r"^\| `([A-Z]\w+)` \| (?:`([^`]*)`|[^|]*) \|", text, re.MULTILINE))


@pytest.mark.parametrize("page", ["docs/configuration.md", "docs/configuration.zh-CN.md"])
def test_the_page_has_every_setting_with_its_default(page: str) -> None:
    assert listed_settings(page) == {
        key: value for name in shipped().sections() for key, value in shipped().items(name)
    }


@pytest.mark.parametrize("readme", ["README.md", "README.zh-CN.md"])
def test_the_readme_has_common_settings_with_their_defaults(readme: str) -> None:
    found = listed_settings(readme)
    assert len(found) > 5
    assert found.items() <= dict(shipped().items("service")).items()


# --- the file of the Go server


def test_the_file_of_the_go_server_selects_its_databases() -> None:
    settings = load(ORIGIN, {})
    assert settings.server.app_mode == "debug"
    assert settings.server.http_port == 8081
    mysql, redis, mongodb = settings.mysql, settings.redis, settings.mongodb
    assert (mysql.db, mysql.db_host, mysql.db_port) == ("mysql", "127.0.0.1", 3306)
    assert (mysql.db_user, mysql.db_password, mysql.db_name) == ("test_root", "123456", "chat_demo")
    assert (redis.redis_db, redis.redis_addr, redis.redis_pw, redis.redis_db_name) == ("redis", "127.0.0.1:6379", "", 2)
    assert (mongodb.mongodb, mongodb.addr, mongodb.port) == ("mongodb", "localhost", 27017)
    assert (mongodb.user, mongodb.pwd, mongodb.name) == ("test_root", "123456", "chat_demo")


def test_the_file_of_the_go_server_may_select_embedded(tmp_path: Path) -> None:
    text = ORIGIN.read_text("utf-8").replace("[MongoDB]", "[MongoDB]\nMongoDb = embedded")
    assert in_file(tmp_path, text).mongodb.mongodb == "embedded"
    assert load(ORIGIN, {"CHAT_MONGODB_MONGODB": "embedded"}).mongodb.mongodb == "embedded"


# --- the syntax of values


def test_a_value_may_be_in_quotes(tmp_path: Path) -> None:
    for value in ('"0.0.0.0"', "'0.0.0.0'", "`0.0.0.0`", "  0.0.0.0  "):
        assert in_file(tmp_path, f"[service]\nHttpHost = {value}").server.http_host == "0.0.0.0"
    for value, meant in (('"a', '"a'), ("a'b", "a'b"), ('"it\'s"', "it's"), ('" a "', " a "), ('""', ""), ('"', '"')):
        assert in_file(tmp_path, f"[mysql]\nDbPassWord = {value}").mysql.db_password == meant
    assert load(None, {"CHAT_SERVICE_HTTPHOST": '"0.0.0.0"'}).server.http_host == "0.0.0.0"


def test_a_percent_sign_has_no_special_meaning(tmp_path: Path) -> None:
    for password in ("100%", "%s", "%(DbUser)s", "%%"):
        assert in_file(tmp_path, f"[mysql]\nDbPassWord = {password}").mysql.db_password == password


def test_punctuation_within_a_value_is_kept(tmp_path: Path) -> None:
    for password in ("a=b:c", "a;b#c", "[x]", "'a # b'", '"#1"', "日本"):
        assert in_file(tmp_path, f"[mysql]\nDbPassWord = {password}").mysql.db_password == password.strip("'\"")


@pytest.mark.parametrize("value", ["data # x", "data ; x", "# x", "; x", '"data" # x', "data\t#x"])
def test_a_comment_after_a_value_is_refused(tmp_path: Path, value: str) -> None:
    """It would become part of the value. A password that contains a # after a space must be in quotes."""
    assert "comment" in error_of(tmp_path, f"[service]\nDataDir = {value}")
    message = error_of(tmp_path, f"[mysql]\nDbPassWord = {SECRET} {value}")
    assert "quotes" in message
    assert SECRET not in message


def test_a_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "my.ini"
    path.write_bytes(b"\xef\xbb\xbf[service]\r\nHttpPort = 9000\r\n")
    assert load(path, {}).server.http_port == 9000


def test_keys_and_sections_ignore_case(tmp_path: Path) -> None:
    settings = in_file(tmp_path, "[Service]\nhttpport = 9000\n[mongodb]\nMONGODB = embedded")
    assert (settings.server.http_port, settings.mongodb.mongodb) == (9000, "embedded")


def test_lists_are_separated_by_spaces_or_commas(tmp_path: Path) -> None:
    settings = in_file(
        tmp_path,
        """[service]
        AllowedOrigins = https://a.example, http://B.example:8080
        TrustedProxies = 127.0.0.1 10.0.0.0/8,::1""".replace("  ", ""),
    )
    assert settings.server.allowed_origins == ("https://a.example", "http://b.example:8080")
    assert settings.server.trusted_proxies == ("127.0.0.1/32", "10.0.0.0/8", "::1/128")


# --- the environment


def test_the_environment_overrides_any_key(tmp_path: Path) -> None:
    path = tmp_path / "my.ini"
    path.write_text("[service]\nHttpPort = 9000\nLanguage = en\n[mysql]\nDbHost = a.example")
    environ = {
        "CHAT_SERVICE_HTTPPORT": "9001",
        "CHAT_MYSQL_DBPASSWORD": SECRET,
        "CHAT_MONGODB_MONGODBPORT": "1",
        "PATH": "x",
    }
    settings = load(path, environ)
    assert (settings.server.http_port, settings.server.language) == (9001, "en")
    assert (settings.mysql.db_host, settings.mysql.db_password) == ("a.example", SECRET)
    assert settings.mongodb.port == 1
    assert load(None, environ).server.http_port == 9001


@pytest.mark.parametrize(
    ("variable", "nearest"),
    [
        ("CHAT_SERVICE_HTTPPROT", "CHAT_SERVICE_HTTPPORT"),
        ("CHAT_MYSQL_PASSWORD", "CHAT_MYSQL_DBPASSWORD"),
        ("CHAT_MYSQL_DBPASWORD_FILE", "CHAT_MYSQL_DBPASSWORD"),
        ("CHAT_MONGODB_PORT", "CHAT_MONGODB_MONGODBPORT"),
        ("CHAT_SERVCE_HTTPPORT", "CHAT_SERVICE_HTTPPORT"),
        ("chat_service_httphots", "CHAT_SERVICE_HTTPHOST"),
    ],
)
def test_an_unknown_variable_causes_a_warning_with_a_hint(variable: str, nearest: str) -> None:
    [warning] = load(None, {variable: SECRET}).warnings
    assert variable in warning
    assert f"did you mean {nearest}?" in warning
    assert SECRET not in warning


# What Kubernetes injects for each service of a namespace, and Docker for each link; {} is the service's name.
INJECTED = (
    *("{}_SERVICE_HOST", "{}_SERVICE_PORT", "{}_SERVICE_PORT_HTTP", "{}_PORT", "{}_PORT_8081_TCP", "{}_NAME"),
    *("{}_PORT_8081_TCP_PROTO", "{}_PORT_8081_TCP_PORT", "{}_PORT_8081_TCP_ADDR", "{}_ENV_DB", "{}_PORT_8081_UDP"),
)


def test_variables_of_other_services_change_nothing() -> None:
    """Whatever the names of these services: no setting has such a name."""
    services = ["CHAT"]
    for section in SECTIONS:
        services += [f"CHAT_{section}", *(f"CHAT_{section}_{field}" for field in _fields(section))]
    environ = {name.format(service).upper(): "tcp://10.0.0.1:8081" for service in services for name in INJECTED}
    settings = load(None, environ)
    assert values(msgspec.structs.replace(settings, warnings=())) == values(load(None, {}))
    assert len(settings.warnings) == len(environ)


def _fields(section: str) -> list[str]:
    return [field.encode_name for group in SECTIONS[section].values() for field in msgspec.structs.fields(group)]


def test_variables_of_other_programs_cause_no_warning() -> None:
    environ = {"PATH": "x", "CHATTER": "x", "CHAT": "x", "chat_service_httpport": "9000"}
    settings = load(None, environ)
    assert settings.warnings == ()
    assert settings.server.http_port == 9000


def test_one_key_set_by_two_variables_is_refused() -> None:
    for other in ("chat_mysql_dbpassword", "CHAT_MYSQL_DBPASSWORD_FILE"):
        with pytest.raises(ConfigError, match=f"CHAT_MYSQL_DBPASSWORD and {other}") as error:
            load(None, {"CHAT_MYSQL_DBPASSWORD": SECRET, other: SECRET})
        assert SECRET not in str(error.value)


# --- values from files


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (SECRET, SECRET),
        (f"{SECRET}\n", SECRET),
        (f"{SECRET}\r\n", SECRET),
        (f"\ufeff{SECRET}\n", SECRET),
        (f"{SECRET} \n", f"{SECRET} "),
        (f'"{SECRET}" # x', f'"{SECRET}" # x'),
        ("", ""),
    ],
)
def test_a_file_variable_names_a_file_with_the_value(tmp_path: Path, content: str, value: str) -> None:
    """The value is the whole file except the line break at its end."""
    path = tmp_path / "secret"
    path.write_bytes(content.encode())
    assert load(None, {"CHAT_MYSQL_DBPASSWORD_FILE": str(path)}).mysql.db_password == value


def test_any_key_can_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "port"
    path.write_text("9000\n")
    config = tmp_path / "my.ini"
    config.write_text("[service]\nHttpPort = 8000")
    assert load(config, {"CHAT_SERVICE_HTTPPORT_FILE": str(path)}).server.http_port == 9000


@pytest.mark.parametrize("content", [f"{SECRET}\xff".encode("latin-1"), f"{SECRET}\0".encode(), b"x" * 70_000])
def test_an_unusable_file_is_named_but_not_quoted(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "secret"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"variable CHAT_REDIS_REDISPW_FILE") as error:
        load(None, {"CHAT_REDIS_REDISPW_FILE": str(path)})
    assert SECRET not in str(error.value)
    assert len(str(error.value)) < 300


def test_a_file_that_cannot_be_read_names_the_variable(tmp_path: Path) -> None:
    for path in (f"{tmp_path}/missing", str(tmp_path), ""):
        with pytest.raises(ConfigError, match=f"variable CHAT_REDIS_REDISPW_FILE: {path}"):
            load(None, {"CHAT_REDIS_REDISPW_FILE": path})


def test_an_invalid_value_is_reported_with_its_variable() -> None:
    with pytest.raises(ConfigError, match=r"CHAT_SERVICE_HTTPPORT.*HttpPort.*many"):
        load(None, {"CHAT_SERVICE_HTTPPORT": "many"})


# --- DataDir


def test_a_relative_data_dir_starts_at_the_file_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    monkeypatch.chdir(here)
    for text, data_dir in (
        ("[service]\nDataDir = kept", there / "kept"),
        ("[service]\nDataDir = ../kept", there / "../kept"),
        ("[service]\nDataDir = /var/kept", Path("/var/kept")),
        ("[service]\nHttpPort = 1", there / "data"),
    ):
        assert in_file(there, text).stores.data_dir == data_dir
    assert load(Path("../there/my.ini"), {}).stores.data_dir.resolve() == there / "data"
    assert load(there / "my.ini", {"CHAT_SERVICE_DATADIR": "kept"}).stores.data_dir == here / "kept"
    assert load(None, {"CHAT_SERVICE_DATADIR": "/var/kept"}).stores.data_dir == Path("/var/kept")
    assert load(None, {}).stores.data_dir == here / "data"


# --- invalid values


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("AppMode", "production"),
        ("HttpPort", "65536"),
        ("HttpPort", "-1"),
        ("HttpPort", "many"),
        ("HttpPort", ""),
        ("HttpPort", "80.5"),
        ("DataDir", ""),
        ("Language", "fr"),
        ("PasswordCost", "3"),
        ("PasswordCost", "17"),
        ("MinPasswordLength", "0"),
        ("MinPasswordLength", "73"),
        ("SessionDays", "0"),
        ("SessionDays", "nan"),
        ("MessageDays", "-1"),
        ("StrangerLimit", "-1"),
        ("StrangerWindow", "0"),
        ("HeartbeatSeconds", "0"),
        ("StartTimeout", "0"),
        ("StoreTimeout", "inf"),
        ("MaxFrameBytes", "0"),
        ("MaxTextBytes", "0"),
        ("OutboxBytes", "0"),
        ("Registration", "maybe"),
        ("FramesPerSecond", "-1"),
        ("FramesBurst", "0"),
        ("BroadcastsPerMinute", "-1"),
        ("SocketsPerUser", "0"),
        ("SocketsPerAddress", "-1"),
        ("LoginFailures", "0"),
        ("LoginFailuresPerAddress", "0"),
        ("LoginWindow", "0"),
        ("LoginWindow", "0.001"),
        ("LoginWindow", "nan"),
        ("RegistrationsPerHour", "-1"),
        ("PasswordWait", "0"),
        ("MetricsPort", "65536"),
        ("Compress", "maybe"),
        ("AllowedOrigins", "chat.example"),
        ("AllowedOrigins", "*"),
        ("AllowedOrigins", "https://chat.example/path"),
        ("AllowedOrigins", "null"),
        ("TrustedProxies", "proxy.example"),
        ("AllowedOrigins", "https://a.example *"),
        ("AllowedOrigins", "file://a.example"),
        ("AllowedOrigins", "https://a.example:65536"),
        ("TrustedProxies", "10.0.0.1/8"),
        ("TrustedProxies", "0.0.0.0/0"),
        ("TrustedProxies", "::/0"),
        ("TrustedProxies", "127.0.0.1 *"),
        ("TrustedProxies", "::ffff:127.0.0.1"),
        ("RequestTimeout", "0"),
        ("MessageDays", "1e-300"),
        ("LoginWindow", "1e-300"),
        ("StrangerWindow", "1e-300"),
    ],
)
def test_an_invalid_value_is_reported_with_key_and_source(tmp_path: Path, key: str, value: str) -> None:
    message = error_of(tmp_path, f"[service]\n{key} = {value}")
    assert f"[service] {key} = {value!r}" in message


@pytest.mark.parametrize(
    "origin",
    [
        "capacitor://localhost",
        "tauri://localhost",
        f"chrome-extension://{'abcdefgh' * 4}",
        "https://[::1]:8443",
        "app://.",
    ],
)
def test_origins_of_app_shells_are_allowed(tmp_path: Path, origin: str) -> None:
    assert in_file(tmp_path, f"[service]\nAllowedOrigins = {origin}").server.allowed_origins == (origin,)


@pytest.mark.parametrize(
    ("written", "correct"),
    [
        ("https://a.example/", "write https://a.example"),
        ("https://a.example/chat?x#y", "write https://a.example"),
        ("https://user:pw@A.example:8443", "write https://a.example:8443"),
        ("a.example:8443", "write https://a.example:8443"),
        ("wss://a.example", "write https://a.example"),
        ("ws://a.example:8080/x", "write http://a.example:8080"),
        ("https://m\u00fcnchen.example", "write https://xn--mnchen-3ya.example"),
        ("capacitor://localhost/", "write capacitor://localhost"),
        ("https://*.a.example", "list each origin"),
        ("null", "list each origin"),
        ("https://stra\u00dfe.example", "list each origin"),  # strasse.example may be another site
    ],
)
def test_an_origin_that_no_browser_sends_gets_a_suggestion(tmp_path: Path, written: str, correct: str) -> None:
    assert f"that a browser sends; {correct}" in error_of(tmp_path, f"[service]\nAllowedOrigins = {written}")


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("mysql", "Db", "sqlite"),
        ("mysql", "DbPort", "x"),
        ("redis", "RedisDb", "memcached"),
        ("redis", "RedisDbName", "-1"),
        ("MongoDB", "MongoDb", "yes"),
        ("MongoDB", "MongoDBPort", "65536"),
    ],
)
def test_an_invalid_backend_value_is_reported_with_its_source(
    tmp_path: Path, section: str, key: str, value: str
) -> None:
    assert f"[{section}] {key} = {value!r}" in error_of(tmp_path, f"[{section}]\n{key} = {value}")


# Values that result from an empty variable, a mistake in a shell script or a typing error.
MISTAKES = ("", " ", '""', "''", '" "', "nan", "inf", "-inf", "1e999", "-1", "none", "null", "*")
# Keys with an empty default, which is the strictest value or means "no user".
MAY_BE_EMPTY = {
    "AllowedOrigins": (),
    "TrustedProxies": (),
    **dict.fromkeys(("DbUser", "DbPassWord", "DbTlsCa", "RedisPw", "MongoDBUser", "MongoDBPwd"), ""),
}
ADDRESSES = ("HttpHost", "MetricsHost")


@pytest.mark.parametrize("key", [f"{section}_{key}" for section in SECTIONS for key in _fields(section)])
def test_no_empty_or_absurd_value_weakens_a_setting(key: str) -> None:
    """The value is an error or the default. Text keys accept any text except an empty one."""
    section, _, name = key.partition("_")
    [(group, field)] = [
        (group, field)
        for group, struct in SECTIONS[section].items()
        for field in msgspec.structs.fields(struct)
        if field.encode_name == name
    ]
    for value in MISTAKES:
        with suppress(ConfigError):
            value_read = getattr(getattr(load(None, {f"CHAT_{key}".upper(): value}), group), field.name)
            assert value_read == MAY_BE_EMPTY.get(name) or (value_read and isinstance(value_read, str | Path)), value


@pytest.mark.parametrize("key", ADDRESSES)
@pytest.mark.parametrize("value", ["0", "00", "0x0", "0.0", "000.0.0.0", "127.1", "[::1]", "a b", "1.2.3.4:80", "/x"])
def test_an_incomplete_address_is_refused(key: str, value: str) -> None:
    """The system takes 0 as every address."""
    with pytest.raises(ConfigError, match=r"0\.0\.0\.0 is all IPv4 addresses"):
        load(None, {f"CHAT_SERVICE_{key.upper()}": value})


@pytest.mark.parametrize(
    "value", ["0.0.0.0", "::", "::1", "127.0.0.1", "fe80::1%eth0", "localhost", "chat.example.org"]
)
def test_an_address_or_a_host_name_is_accepted(value: str) -> None:
    assert load(None, {"CHAT_SERVICE_HTTPHOST": value}).server.http_host == value


def test_one_port_cannot_serve_chat_and_metrics(tmp_path: Path) -> None:
    assert "MetricsPort = 9000" in error_of(tmp_path, "[service]\nHttpPort = 9000\nMetricsPort = 9000")
    in_file(tmp_path, "[service]\nHttpPort = 0\nMetricsPort = 0")


def test_several_processes_need_database_servers(tmp_path: Path) -> None:
    text = "[service]\nProcesses = many\n[redis]\nRedisDb = redis\n"
    error = error_of(tmp_path, text)
    assert "[mysql] Db = embedded, [MongoDB] MongoDb = embedded" in error
    assert "RedisDb = embedded" not in error
    settings = in_file(tmp_path, f"{text}[mysql]\nDb = mysql\n[MongoDB]\nMongoDb = mongodb\n")
    assert settings.stores.processes == "many"


def test_a_certificate_authority_without_tls_is_refused(tmp_path: Path) -> None:
    assert "DbTls = verified" in error_of(tmp_path, "[mysql]\nDbTlsCa = /etc/ssl/ours.pem")


def test_a_unix_socket_with_tls_is_refused(tmp_path: Path) -> None:
    assert "Unix socket" in error_of(tmp_path, "[mysql]\nDbHost = /run/mysqld/mysqld.sock\nDbTls = verified")


def test_an_unknown_home_directory_is_reported(tmp_path: Path) -> None:
    assert "home directory" in error_of(tmp_path, "[service]\nDataDir = ~unknown-of-this-name/data")


def test_an_indented_line_continues_lists_only(tmp_path: Path) -> None:
    """Elsewhere it would silently become part of the previous value."""
    origins = in_file(tmp_path, "[service]\nAllowedOrigins =\n  https://a.example\n  https://b.example")
    assert origins.server.allowed_origins == ("https://a.example", "https://b.example")
    message = error_of(tmp_path, f"[mysql]\nDbPassWord = {SECRET}\n  DbPort = 3307")
    assert "indented" in message
    assert SECRET not in message


def test_a_variable_that_is_not_utf_8_is_not_quoted() -> None:
    with pytest.raises(ConfigError, match="not UTF-8") as error:
        load(None, {"CHAT_MYSQL_DBPASSWORD": f"{SECRET}\udcff"})
    assert SECRET not in str(error.value)


def test_a_repeated_section_is_refused_in_any_case(tmp_path: Path) -> None:
    message = error_of(tmp_path, "[service]\nHttpPort = 1\n[SERVICE]\nHttpPort = 2")
    assert "[service]" in message
    assert "[SERVICE]" in message


def test_an_unknown_section_is_named(tmp_path: Path) -> None:
    assert "[servce]" in error_of(tmp_path, "[servce]\nHttpPort = 1")
    assert "[DEFAULT]" in error_of(tmp_path, "[DEFAULT]\nHttpPort = 1")


def test_an_unknown_key_is_named(tmp_path: Path) -> None:
    message = error_of(tmp_path, "[service]\nHttpProt = 1")
    assert "httpprot" in message.lower()
    assert "[service]" in message
    assert "HttpPort" in message  # one of the known keys
    error_of(tmp_path, "[mysql]\nRedisDb = redis")


def test_a_file_that_is_not_an_ini_file_is_named(tmp_path: Path) -> None:
    for text in (
        "HttpPort = 1",
        "[service]\nHttpPort",
        "[service]\nHttpPort = 1\nHttpPort = 2",
        "[service\nx = 1",
        "\0",
    ):
        error_of(tmp_path, text)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin1.ini").write_bytes("[mysql]\nDbPassWord = \xe9".encode("latin-1"))
    for name in ("missing.ini", "", "latin1.ini", "latin1.ini/x"):
        with pytest.raises(ConfigError, match=re.escape(f"{tmp_path / name}: ")) as error:
            load(tmp_path / name, {})
        assert "\n" not in str(error.value)


# --- secrets


@pytest.mark.parametrize(
    "text",
    [
        f"[mysql]\nDbPassWord {SECRET}",
        f"DbPassWord = {SECRET}",
        f"[mysql]\nDbPassWord = x\nDbPassWord = {SECRET}",
        f"[mysql]\nPassword = {SECRET}",
        f"[mysql]\nDbPassWord = {SECRET}\nDbPort = x",
        f"[mysql\nDbPassWord = {SECRET}",
        f"[redis]\nRedisPw = x\n  {SECRET} and more\nDbPort = x",
        f"[mysql]\n= {SECRET}",
    ],
    ids=["no equals sign", "no section", "twice", "unknown key", "other key", "open section", "two lines", "no key"],
)
def test_no_error_quotes_a_password(tmp_path: Path, text: str) -> None:
    assert SECRET not in error_of(tmp_path, text)
