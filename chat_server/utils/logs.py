"""One line per event: readable, or JSON. Never a password, a token or a message's text.

What an event tells stands in `extra`. Of an exception only its type and where it came from are written:
its text may repeat what somebody typed.
"""

import json
import logging
import time
import traceback
from typing import Any

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class Readable(logging.Formatter):
    """2026-11-24 08:15:30.123 INFO logged in user="1" address="127.0.0.1" """

    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        fields = " ".join(f"{key}={_json(value)}" for key, value in _fields(record).items())
        return f"{when}.{int(record.msecs):03d} {record.levelname} {_one_line(record)} {fields}".rstrip()


class JsonLines(logging.Formatter):
    """{"time": "2026-11-24T08:15:30.123Z", "level": "INFO", "event": "logged in", "user": "1"}"""

    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        event = {
            "time": f"{when}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "event": _one_line(record),
        }
        return _json({**event, **_fields(record)})


def set_up(app_mode: str) -> None:
    """Log to standard error: JSON lines in release mode, readable lines in debug mode."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if app_mode == "release" else Readable())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


def _one_line(record: logging.LogRecord) -> str:
    return " ".join(record.getMessage().split())


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields = {key: value for key, value in vars(record).items() if key not in _STANDARD}
    if record.exc_info and record.exc_info[1]:
        error = record.exc_info[1]
        frames = traceback.extract_tb(error.__traceback__)
        fields["exception"] = type(error).__name__
        fields["at"] = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
    return fields


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
