"""Reads config.ini and the environment. Every error names the key and its source."""

import configparser
import difflib
import re
import socket
from collections.abc import Mapping
from contextlib import suppress
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import msgspec

from chat_server.conf.origins import canonical
from chat_server.conf.settings import SECTIONS, Settings, SettingsGroup, StoreSettings

# The text of a value and its source: ("8081", "config.ini").
Entry = tuple[str, str]

# Errors never show the values of these keys, which may contain a password.
SECRET_KEYS = frozenset({"DbPassWord", "RedisPw", "RedisAddr", "MongoDBPwd", "MongoDBAddr"})
# The largest file for a single value, in bytes.
MAX_VALUE_FILE = 65536
# A probable comment: a # or ; at the beginning of a value or after a space.
COMMENT = re.compile(r"(?:^|\s)[#;]")
_ORIGIN = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:(?P<port>[1-9][0-9]{0,4}))?")
# Schemes that no Origin header contains: their pages have no origin, or the origin of another scheme.
_NO_ORIGIN = ("about", "blob", "data", "file", "javascript", "ws", "wss")


class ConfigError(Exception):
    """An invalid setting. The text names the key, its source and what to do."""


def load(path: Path | None, environ: Mapping[str, str]) -> Settings:
    """Load the settings from the file `path` (None: the defaults), overridden by the environment variables `environ`.

    A variable is named CHAT_SECTION_KEY in capitals: CHAT_SERVICE_HTTPPORT. With the suffix _FILE, its value is the
    path of a file that contains the value: CHAT_MYSQL_DBPASSWORD_FILE. Unknown CHAT_ variables only cause warnings,
    because Kubernetes and Docker set such variables for services with names like `chat` or `chat-redis`.
    Raises ConfigError for an unreadable file, an unknown section or key, and an invalid value.
    """
    entries = _from_file(path) if path else {section: {} for section in SECTIONS}
    # Config files of the Go server have no MongoDb key: their section [MongoDB] alone selects MongoDB.
    mongodb = entries["MongoDB"]
    if mongodb and "mongodb" not in mongodb:
        mongodb["mongodb"] = ("mongodb", f"{path}")
    from_environment, warnings = _from_environment(environ)
    for section, values in from_environment.items():
        entries[section].update(values)
    groups = {
        name: _load_group(section, group, entries[section], path)
        for section, parts in SECTIONS.items()
        for name, group in parts.items()
    }
    source = str(path) if path else "the defaults"
    settings = Settings(**groups, source=source, warnings=tuple(warnings))  # type: ignore[arg-type]
    if conflict := _conflict(settings):
        raise ConfigError(f"{source}: {conflict}")
    return settings


def _conflict(settings: Settings) -> str:
    """Describe the first two settings that exclude each other; empty if there are none."""
    # JSON needs up to 6 bytes for a byte of text, and up to 32 KiB of a page may be in the outbox before it.
    longest = settings.chat.max_text_bytes * 6 + 1024 + 32768
    if settings.sockets.outbox_bytes < longest:
        return (
            f"[service] OutboxBytes = {settings.sockets.outbox_bytes} is too small for a message of "
            f"MaxTextBytes = {settings.chat.max_text_bytes}; set at least {longest}"
        )
    server, mysql = settings.server, settings.mysql
    stores = {
        "[mysql] Db": mysql.db,
        "[redis] RedisDb": settings.redis.redis_db,
        "[MongoDB] MongoDb": settings.mongodb.mongodb,
    }
    embedded = [f"{key} = embedded" for key, value in stores.items() if value == "embedded"]
    if settings.stores.processes == "many" and embedded:
        return (
            f"[service] Processes = many, but {', '.join(embedded)}, which only one process can use; "
            "set Db = mysql, RedisDb = redis and MongoDb = mongodb, or Processes = one"
        )
    if server.metrics_port and server.metrics_port == server.http_port:
        return f"[service] MetricsPort = {server.metrics_port} is also HttpPort; choose another port"
    if mysql.db_tls == "off" and mysql.db_tls_ca:
        return "[mysql] DbTlsCa is set, but DbTls = off uses no TLS; set DbTls = verified, or remove DbTlsCa"
    if mysql.db_tls != "off" and mysql.db_host.startswith("/"):
        return f"[mysql] DbHost = {mysql.db_host} is a Unix socket, which needs no TLS; set DbTls = off"
    return ""


def _from_file(path: Path) -> dict[str, dict[str, Entry]]:
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(path.read_text("utf-8-sig"), source=str(path))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); name another file with --config") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text; save it as UTF-8") from error
    except configparser.Error as error:
        raise ConfigError(
            f"{path}: {_describe(error)}"
        ) from None  # the cause repeats lines, which may contain passwords
    if parser.defaults():
        raise ConfigError(f"{path}: unknown section [DEFAULT]; known: {_names(SECTIONS)}")
    by_lower = {section.lower(): section for section in SECTIONS}
    entries: dict[str, dict[str, Entry]] = {section: {} for section in SECTIONS}
    headings: dict[str, str] = {}
    for given in parser.sections():
        section = by_lower.get(given.lower())
        if section is None:
            raise ConfigError(f"{path}: unknown section [{given}]; known: {_names(SECTIONS)}")
        if section in headings:
            raise ConfigError(f"{path}: [{headings[section]}] and [{given}] are the same section; merge them")
        headings[section] = given
        known = _keys(section)
        for key, value in parser.items(given):
            if key not in known:
                raise ConfigError(f"{path}: unknown key {key} in [{given}]; known: {_names(known.values())}")
            text = _unquoted(value)
            if text == value and COMMENT.search(text):
                raise ConfigError(
                    f"{path}: [{section}] {known[key]}: the value seems to end with a comment; move the comment to a "
                    "separate line, or put the whole value in quotes"
                )
            entries[section][key] = (text, str(path))
    return entries


def _from_environment(environ: Mapping[str, str]) -> tuple[dict[str, dict[str, Entry]], list[str]]:
    """The entries of the variables, by section and key, and a warning for each variable that names no setting."""
    known = {f"CHAT_{section}_{key}".upper(): (section, key) for section in SECTIONS for key in _keys(section)}
    entries: dict[str, dict[str, Entry]] = {section: {} for section in SECTIONS}
    used: dict[str, str] = {}
    warnings = []
    for variable, value in environ.items():
        name = variable.upper()
        setting = name.removesuffix("_FILE")
        if not name.startswith("CHAT_"):
            continue
        if setting not in known:
            warnings.append(_unknown_variable(variable, known))
            continue
        if setting in used:
            raise ConfigError(f"environment: {used[setting]} and {variable} set the same key; unset one of them")
        used[setting] = variable
        section, key = known[setting]
        text = _unquoted(value) if setting == name else _from_value_file(variable, value)
        entries[section][key] = (text, f"environment variable {variable}")
    return entries, warnings


def _unknown_variable(variable: str, known: Mapping[str, tuple[str, str]]) -> str:
    nearest = difflib.get_close_matches(variable[:100].upper(), known, n=1)
    return f"{variable} names no setting" + (f"; did you mean {nearest[0]}?" if nearest else "")


def _from_value_file(variable: str, path: str) -> str:
    """Read a file that contains one value, such as a password. The line break at its end is removed."""
    where = f"environment variable {variable}: {path or 'the path is empty'}"
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_VALUE_FILE + 1)
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read ({error.strerror}); name a file that contains the value") from error
    except UnicodeDecodeError:
        raise ConfigError(f"{where}: is not UTF-8 text; save it as UTF-8") from None  # the cause repeats the content
    if len(content) > MAX_VALUE_FILE:
        raise ConfigError(f"{where}: is longer than {MAX_VALUE_FILE} bytes; name a file that contains only the value")
    return text.removesuffix("\n").removesuffix("\r")


def _keys(section: str) -> dict[str, str]:
    """The keys of a section: in lower case -> as in the documentation."""
    return {
        field.encode_name.lower(): field.encode_name
        for group in SECTIONS[section].values()
        for field in msgspec.structs.fields(group)
    }


def _load_group(
    section: str, group: type[SettingsGroup], entries: Mapping[str, Entry], path: Path | None
) -> SettingsGroup:
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(group):
        if (entry := entries.get(field.encode_name.lower())) is not None:
            text, source = entry
            if not _is_utf8(text):
                raise ConfigError(f"{source}: is not UTF-8; write it as UTF-8")  # the value may be a password
            try:
                values[field.name] = _parse(field.encode_name, field.type, text)
            except ValueError as error:
                shown = "" if field.encode_name in SECRET_KEYS else f" = {text!r}"
                raise ConfigError(f"{source}: [{section}] {field.encode_name}{shown}: {error}") from error
    if group is StoreSettings:
        data_dir = values.get("data_dir", StoreSettings().data_dir)
        from_file = "datadir" not in entries or entries["datadir"][1] == str(path)
        values["data_dir"] = (path.parent if path and from_file else Path.cwd()) / data_dir
    return group(**values)


def _parse(key: str, kind: Any, text: str) -> Any:
    """Convert `text` to the type of the field. Raises ValueError with what is expected."""
    if "\0" in text:
        raise ValueError("contains a NUL character")
    if "\n" in text and key not in ("AllowedOrigins", "TrustedProxies"):
        raise ValueError("has more than one line; an indented line continues the line before it")
    if get_origin(kind) is Literal:
        if text not in get_args(kind):
            raise ValueError(f"expected {' or '.join(get_args(kind))}")
        return text
    if kind is bool:
        return _parse_bool(text)
    if kind is Path:
        return _parse_folder(text)
    if key in ("HttpHost", "MetricsHost"):
        return _parse_host(text)
    if key == "AllowedOrigins":
        return tuple(_parse_origin(origin) for origin in text.replace(",", " ").split())
    if key == "TrustedProxies":
        return tuple(_parse_network(network) for network in text.replace(",", " ").split())
    value = _convert(text, kind)
    if key == "MessageDays" and 0 < value < 0.001:
        raise ValueError("expected 0, or at least 0.001")
    return value


def _convert(text: str, kind: Any) -> Any:
    """Convert `text` to a number in range, or to a text. Raises ValueError with what is expected."""
    try:
        return msgspec.convert(text, kind, strict=False)
    except msgspec.ValidationError as error:  # "Expected `int`, got `str`", "Expected `float` >= 0.001"
        why = str(error).removesuffix(", got `str`")
        for name, words in (
            ("Expected", "expected"),
            ("`int`", "a whole number"),
            ("`float`", "a number"),
            ("`str`", "a text"),
        ):
            why = why.replace(name, words)
        raise ValueError(why) from error


def _parse_bool(text: str) -> bool:
    states = configparser.ConfigParser.BOOLEAN_STATES
    if text.lower() not in states:
        raise ValueError("expected yes or no")
    return states[text.lower()]


def _parse_folder(text: str) -> Path:
    if not text.strip():
        raise ValueError("expected a folder")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError("this home directory does not exist") from error


def _parse_host(text: str) -> str:
    """Parse an address or a host name to listen on. Empty text and short forms such as 0 would mean all addresses."""
    try:
        ip_address(text)
    except ValueError:
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", text) or _is_ipv4_short_form(text):
            raise ValueError("expected an IP address or a host name; 0.0.0.0 is all IPv4 addresses") from None
    return text


def _is_ipv4_short_form(text: str) -> bool:
    """Whether the system reads the text as an IPv4 address: 0 and 0x0 are 0.0.0.0, 127.1 is 127.0.0.1."""
    try:
        socket.inet_aton(text)
    except OSError:
        return False
    return True


def _parse_origin(text: str) -> str:
    """Parse an entry of AllowedOrigins. Raises ValueError, with the correct form, if no browser sends it."""
    origin = canonical(text)
    if not _is_origin(origin):
        raise ValueError(f"{text!r} is not an origin that a browser sends; {_suggestion(text)}")
    return origin


def _is_origin(text: str) -> bool:
    match = _ORIGIN.fullmatch(text)
    return match is not None and match["scheme"] not in _NO_ORIGIN and int(match["port"] or 0) <= 65535


def _suggestion(text: str) -> str:
    scheme, _, rest = text.lower().rpartition("://")
    scheme = {"": "https", "ws": "http", "wss": "https"}.get(scheme, scheme)  # a page's origin is never ws or wss
    host = re.split(r"[/?#\\]", rest, maxsplit=1)[0].rpartition("@")[2]
    with suppress(UnicodeError):
        # Python has IDNA 2003. If it loses letters such as the German ß, the correct form is uncertain: no suggestion.
        encoded = host.encode("idna")
        host = encoded.decode() if encoded.decode("idna") == host else host
    origin = canonical(f"{scheme}://{host}")
    if _is_origin(origin) and ("." in host or "://" in text):
        return f"write {origin}"
    return "list each origin in full, in ASCII, such as https://chat.example.org https://xn--mnchen-3ya.example"


def _parse_network(text: str) -> str:
    """Parse an entry of TrustedProxies, an address or a network."""
    network = ip_network(text, strict=False)
    if text != str(network) and text.partition("/")[2] not in ("", "32", "128"):
        raise ValueError(
            f"{text!r} is an address with a prefix length; write the network {network}, or only the address"
        )
    if getattr(network.network_address, "ipv4_mapped", None):
        raise ValueError(f"{text!r} is an IPv4-mapped IPv6 address; write it as IPv4, such as 10.0.0.0/8")
    if not network.prefixlen:
        raise ValueError(f"{text!r} would let every client choose its own address; write the address of the proxy")
    return str(network)


def _is_utf8(text: str) -> bool:
    """Whether `text` can be encoded. Python turns other bytes of environment variables into lone surrogates."""
    return not any("\ud800" <= char <= "\udfff" for char in text)


def _unquoted(value: str) -> str:
    value = value.strip()
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'`":
        return value[1:-1]
    return value


def _describe(error: configparser.Error) -> str:
    match error:
        case configparser.DuplicateOptionError():
            return f"line {error.lineno}: {error.option} appears twice in [{error.section}]; remove one"
        case configparser.DuplicateSectionError():
            return f"line {error.lineno}: [{error.section}] appears twice; merge the sections"
        case configparser.MissingSectionHeaderError():
            return f"line {error.lineno}: is before the first [section]; move it into a section"
        case configparser.ParsingError():
            return f"line {error.errors[0][0]}: is not `Key = value`; correct it"
    return "is not a valid INI file"


def _names(names: Any) -> str:
    return ", ".join(sorted(names))
