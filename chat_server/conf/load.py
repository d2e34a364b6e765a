"""Reading config.ini and the environment. Whatever is wrong is told with the key and where it came from."""

import configparser
from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Literal, get_args, get_origin
from urllib.parse import urlsplit

import msgspec

from chat_server.conf.settings import SECTIONS, Group, Settings, Stores

# A value as it was written, and where: ("8081", "config.ini").
Written = tuple[str, str]


class ConfigError(Exception):
    """A setting that cannot be used; the text names the key, its source and what to do."""


def load(path: Path | None, environ: Mapping[str, str]) -> Settings:
    """The settings of the file `path` (None: the defaults), overridden by `environ`.

    An environment variable is CHAT_SECTION_KEY in capitals: CHAT_SERVICE_HTTPPORT.
    Raises ConfigError for a file that cannot be read, an unknown section or key, a value out of range.
    """
    written = _from_file(path) if path else {section: {} for section in SECTIONS}
    # The original's file has no MongoDb key: there a [MongoDB] section means that MongoDB is wanted.
    mongodb = written["MongoDB"]
    if mongodb and "mongodb" not in mongodb:
        mongodb["mongodb"] = ("mongodb", f"{path}")
    for section, values in _from_environment(environ).items():
        written[section].update(values)
    groups = {
        name: _group(section, group, written[section], path)
        for section, parts in SECTIONS.items()
        for name, group in parts.items()
    }
    settings = Settings(**groups, source=str(path) if path else "the defaults")  # type: ignore[arg-type]
    # In JSON a byte of text becomes up to six; before it a page leaves up to 32 KiB waiting.
    longest = settings.chat.max_text_bytes * 6 + 1024 + 32768
    if settings.sockets.outbox_bytes < longest:
        raise ConfigError(
            f"{settings.source}: [service] OutboxBytes = {settings.sockets.outbox_bytes} is too small for a message of "
            f"MaxTextBytes = {settings.chat.max_text_bytes}: at least {longest}"
        )
    return settings


def _from_file(path: Path) -> dict[str, dict[str, Written]]:
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(path.read_text("utf-8-sig"), source=str(path))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); name another file with --config") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text; save it as UTF-8") from error
    except configparser.Error as error:
        raise ConfigError(f"{path}: {_what_is_wrong(error)}") from None  # its text repeats lines: passwords, perhaps
    if parser.defaults():
        raise ConfigError(f"{path}: unknown section [DEFAULT]; known: {_names(SECTIONS)}")
    by_lower = {section.lower(): section for section in SECTIONS}
    written: dict[str, dict[str, Written]] = {section: {} for section in SECTIONS}
    for given in parser.sections():
        section = by_lower.get(given.lower())
        if section is None:
            raise ConfigError(f"{path}: unknown section [{given}]; known: {_names(SECTIONS)}")
        known = _keys(section)
        for key, value in parser.items(given):
            if key not in known:
                raise ConfigError(f"{path}: unknown key {key} in [{given}]; known: {_names(known.values())}")
            written[section][key] = (_unquoted(value), str(path))
    return written


def _from_environment(environ: Mapping[str, str]) -> dict[str, dict[str, Written]]:
    written: dict[str, dict[str, Written]] = {section: {} for section in SECTIONS}
    for variable, value in environ.items():
        for section in SECTIONS:
            prefix = f"CHAT_{section.upper()}_"
            if variable.upper().startswith(prefix):
                key = variable[len(prefix) :].lower()
                if key not in _keys(section):
                    known = _names(_keys(section).values())
                    raise ConfigError(f"environment: {variable} names no key of [{section}]; known: {known}")
                written[section][key] = (_unquoted(value), f"environment variable {variable}")
    return written


def _keys(section: str) -> dict[str, str]:
    """The keys of a section: in lower case -> as they are written."""
    return {
        field.encode_name.lower(): field.encode_name
        for group in SECTIONS[section].values()
        for field in msgspec.structs.fields(group)
    }


def _group(section: str, group: type[Group], written: Mapping[str, Written], path: Path | None) -> Group:
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(group):
        if (entry := written.get(field.encode_name.lower())) is not None:
            text, source = entry
            try:
                values[field.name] = _value(field.encode_name, field.type, text)
            except ValueError as error:  # msgspec.ValidationError is one
                # A password is never repeated, not even a wrong one: such keys take any text and cannot fail.
                raise ConfigError(f"{source}: [{section}] {field.encode_name} = {text!r}: {error}") from error
    if group is Stores:
        data_dir = values.get("data_dir", Stores().data_dir)
        from_file = "datadir" not in written or written["datadir"][1] == str(path)
        values["data_dir"] = (path.parent if path and from_file else Path.cwd()) / data_dir
    return group(**values)


def _value(key: str, kind: Any, text: str) -> Any:
    if kind is bool:
        states = configparser.ConfigParser.BOOLEAN_STATES
        if text.lower() not in states:
            raise ValueError("expected yes or no")
        return states[text.lower()]
    if kind is Path:
        if not text:
            raise ValueError("expected a folder")
        return Path(text).expanduser()
    if get_origin(kind) is Literal:
        if text not in get_args(kind):
            raise ValueError(f"expected {' or '.join(get_args(kind))}")
        return text
    if key == "AllowedOrigins":
        return tuple(_origin(origin) for origin in text.replace(",", " ").split())
    if key == "TrustedProxies":
        return tuple(str(ip_network(network)) for network in text.replace(",", " ").split())
    return msgspec.convert(text, kind, strict=False)


def _origin(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.netloc or text != f"{parts.scheme}://{parts.netloc}":
        raise ValueError(f"{text!r} is not an origin such as https://chat.example.org")
    return text.lower()


def _unquoted(value: str) -> str:
    value = value.strip()
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'`":
        return value[1:-1]
    return value


def _what_is_wrong(error: configparser.Error) -> str:
    match error:
        case configparser.DuplicateOptionError():
            return f"line {error.lineno}: {error.option} is there twice in [{error.section}]"
        case configparser.DuplicateSectionError():
            return f"line {error.lineno}: [{error.section}] is there twice"
        case configparser.MissingSectionHeaderError():
            return f"line {error.lineno}: stands before the first [section]"
        case configparser.ParsingError():
            return f"line {error.errors[0][0]}: is no `Key = value`"
    return "cannot be understood"


def _names(names: Any) -> str:
    return ", ".join(sorted(names))
