"""One line per event: readable, or JSON. Never a password, a token or a message's text.

What an event tells stands in `extra`. Of an exception only its type and where it came from are written:
its text may repeat what somebody typed.

A log that nobody reads must not stop the server: a thread of its own writes the lines, and lines it cannot write are
dropped and counted. Equal warnings and errors are logged once, and then counted.
"""

import json
import logging
import os
import queue
import select
import threading
import time
import traceback
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any

STDERR = 2
# Lines that wait to be written; further ones are dropped.
MAX_LINES = 4096
# The writer looks for counts to be logged every so many seconds, and an equal warning is logged again after so many.
NOTICE_SECONDS = 1.0
REPEAT_SECONDS = 30.0
# Different warnings that are counted at a time.
MAX_REPEATS = 256
# The end of the process waits so many seconds for lines to be written.
DRAIN_SECONDS = 0.5

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


class LineWriter:
    """Writes lines to a descriptor from a daemon thread, so that no caller ever waits for a reader.

    It writes to the descriptor itself: at the end of the process Python aborts if a thread is inside of sys.stderr.
    Every second, `notices` may add lines of its own; it is told how many lines were dropped since it last was.
    """

    def __init__(self, descriptor: int, notices: Callable[[int], list[str]] = lambda dropped: []) -> None:
        self._descriptor = descriptor
        self._notices = notices
        self._lines: queue.Queue[str | None] = queue.Queue(MAX_LINES)
        self._refused = self._lost = self._reported = 0  # lines: by callers, by the thread, told to `notices`
        self._noticed = 0.0
        self._closed = False
        threading.Thread(target=self._run, name="line-writer", daemon=True).start()

    def put(self, line: str) -> None:
        """Have a line written. It is dropped if too many wait."""
        if not self._closed:
            self._put(line)

    def drain(self) -> None:
        """Wait until all lines are written, but not for long."""
        with self._lines.all_tasks_done:
            self._lines.all_tasks_done.wait_for(lambda: not self._lines.unfinished_tasks, DRAIN_SECONDS)

    def close(self) -> None:
        """Write what is left, but not for long, and end the thread. Idempotent."""
        if not self._closed:
            self._closed = True
            self._put(None)
            self.drain()

    def _put(self, line: str | None) -> None:
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._refused += 1

    def _run(self) -> None:
        line: str | None = ""
        while line is not None:
            try:
                line = self._lines.get(timeout=NOTICE_SECONDS)
            except queue.Empty:
                self._write_notices()
                continue
            if line is not None and not self._write(line):
                self._lost += 1
            elif line is None or time.monotonic() - self._noticed >= NOTICE_SECONDS:
                self._write_notices()
            self._lines.task_done()

    def _write_notices(self) -> None:
        self._noticed = time.monotonic()
        dropped = self._refused + self._lost
        written = [self._write(notice) for notice in self._notices(dropped - self._reported)]
        if all(written):
            self._reported = dropped

    def _write(self, line: str) -> bool:
        try:
            data = f"{line}\n".encode("utf-8", "backslashreplace")
            while data:
                try:
                    data = data[os.write(self._descriptor, data) :]
                except BlockingIOError:  # another process has made the pipe that both write to non-blocking
                    select.select([], [self._descriptor], [])
        except (OSError, MemoryError):  # the reader is gone, the disk is full
            return False
        return True


class Repeats:
    """Finds warnings and errors that say the same again: the same place in the code, cause and kind of exception.

    The first is logged at once. Those that follow within REPEAT_SECONDS are counted, and then logged as one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: dict[Hashable, tuple[float, int, logging.LogRecord]] = {}  # since when, how many more, the first

    def suppress(self, record: logging.LogRecord, now: float) -> bool:
        """Count a record that says again what was logged; returns whether it is one."""
        if record.levelno < logging.WARNING:
            return False
        error = record.exc_info[0] if record.exc_info else None
        key = (
            record.pathname,
            record.lineno,
            record.levelno,
            str(getattr(record, "error", getattr(record, "why", ""))),
            error,
        )
        with self._lock:
            if seen := self._seen.get(key):
                since, count, first = seen
                self._seen[key] = (since, count + 1, first)
            elif len(self._seen) < MAX_REPEATS:  # not the record itself, whose frames hold on to large objects
                self._seen[key] = (now, 0, event(record.getMessage(), record.levelno, **_fields(record)))
            return seen is not None

    def due(self, now: float, *, early: bool = False) -> list[logging.LogRecord]:
        """For each warning that was repeated, a record as the first one, with the number of `repeated` ones."""
        due = []
        with self._lock:
            for key, (since, count, first) in list(self._seen.items()):
                if now - since < REPEAT_SECONDS and not early:
                    continue
                if count:
                    due.append(event(first.getMessage(), first.levelno, **_fields(first), repeated=count))
                    self._seen[key] = (now, 0, first)
                else:
                    del self._seen[key]
        return due


class BackgroundHandler(logging.Handler):
    """Logs through a LineWriter, without repetitions, and says how many lines were dropped."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._repeats = Repeats()
        self._writer = LineWriter(descriptor, self._notices)

    def emit(self, record: logging.LogRecord) -> None:
        """Hand the record over."""
        try:
            if not self._repeats.suppress(record, time.monotonic()):
                self._writer.put(self.format(record))
        except Exception as error:
            with suppress(Exception):  # no memory is left
                at = f"{record.pathname}:{record.lineno}"
                failure = event("log line failed", logging.ERROR, at=at, exception=type(error).__name__)
                self._writer.put(self.format(failure))

    def flush(self) -> None:
        """Write what is left, counts included, but not for long. The end of the process calls it."""
        self._put_counts()
        self._writer.drain()

    def close(self) -> None:
        """Write what is left, but not for long, and end the thread."""
        super().close()
        self._put_counts()
        self._writer.close()

    def _put_counts(self) -> None:
        for record in self._repeats.due(time.monotonic(), early=True):
            self._writer.put(self.format(record))

    def _notices(self, dropped: int) -> list[str]:
        records = self._repeats.due(time.monotonic())
        if dropped:
            records.append(event("log lines dropped", logging.WARNING, count=dropped))
        return [self.format(record) for record in records]


def event(text: str, level: int = logging.INFO, /, **keys: object) -> logging.LogRecord:
    """A record that did not come from a logger."""
    record = logging.LogRecord(__name__, level, "", 0, text, None, None)
    vars(record).update(keys)
    return record


def set_up(app_mode: str) -> None:
    """Log to standard error: JSON lines in release mode, readable lines in debug mode."""
    handler = BackgroundHandler(STDERR)
    handler.setFormatter(JsonLines() if app_mode == "release" else Readable())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("aiohttp").setLevel(logging.ERROR)  # its warnings repeat up to 8 KB of what a client sent


def flush() -> None:
    """Wait for the lines that were logged to be written, but not for long."""
    for handler in logging.getLogger().handlers:
        handler.flush()


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
