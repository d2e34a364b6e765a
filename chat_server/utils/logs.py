"""Logging: one line per event, readable or JSON, without passwords, tokens and texts of messages.

The keys of an event are in `extra`. Of an exception only the type and the place are logged, because its text may
contain user input.

A log without a reader must not stop the server: a separate thread writes the lines, and lines that it cannot write are
dropped and counted. Repeated warnings and errors are logged once and then counted.
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
# Lines that may wait to be written; further lines are dropped.
MAX_LINES = 4096
# Seconds between two checks for counts to log.
NOTICE_SECONDS = 1.0
# Seconds during which a repeated warning is only counted.
REPEAT_SECONDS = 30.0
# Different warnings that are counted at the same time.
MAX_REPEATS = 256
# Seconds that the exit of the process waits for lines to be written.
DRAIN_SECONDS = 0.5

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class ReadableFormatter(logging.Formatter):
    """2026-11-24 08:15:30.123 INFO logged in user="1" address="127.0.0.1" """

    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        fields = " ".join(f"{key}={_json(value)}" for key, value in _fields(record).items())
        return f"{when}.{int(record.msecs):03d} {record.levelname} {_one_line(record)} {fields}".rstrip()


class JsonFormatter(logging.Formatter):
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
    """Writes lines to a file descriptor in a daemon thread, so that no caller waits for the reader.

    It does not use sys.stderr, because Python aborts at exit if a thread is using that. Once per second, `notices` may
    add lines; its argument is the number of lines dropped since the last notice was written.
    """

    def __init__(self, descriptor: int, notices: Callable[[int], list[str]] = lambda dropped: []) -> None:
        self._descriptor = descriptor
        self._notices = notices
        self._lines: queue.Queue[str | None] = queue.Queue(MAX_LINES)
        self._not_queued = self._not_written = self._reported = 0  # numbers of dropped lines
        self._last_notice = 0.0
        self._closed = False
        threading.Thread(target=self._run, name="line-writer", daemon=True).start()

    def put(self, line: str) -> None:
        """Queue a line. It is dropped if the queue is full."""
        if not self._closed:
            self._put(line)

    def drain(self) -> None:
        """Wait until all lines are written, at most DRAIN_SECONDS."""
        with self._lines.all_tasks_done:
            self._lines.all_tasks_done.wait_for(lambda: not self._lines.unfinished_tasks, DRAIN_SECONDS)

    def close(self) -> None:
        """Write the queued lines, for at most DRAIN_SECONDS, and stop the thread. Idempotent."""
        if not self._closed:
            self._closed = True
            self._put(None)
            self.drain()

    def _put(self, line: str | None) -> None:
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._not_queued += 1

    def _run(self) -> None:
        line: str | None = ""
        while line is not None:
            try:
                line = self._lines.get(timeout=NOTICE_SECONDS)
            except queue.Empty:
                self._write_notices()
                continue
            if line is not None and not self._write(line):
                self._not_written += 1
            elif line is None or time.monotonic() - self._last_notice >= NOTICE_SECONDS:
                self._write_notices()
            self._lines.task_done()

    def _write_notices(self) -> None:
        self._last_notice = time.monotonic()
        dropped = self._not_queued + self._not_written
        written = [self._write(notice) for notice in self._notices(dropped - self._reported)]
        if all(written):
            self._reported = dropped

    def _write(self, line: str) -> bool:
        try:
            data = f"{line}\n".encode("utf-8", "backslashreplace")
            while data:
                try:
                    data = data[os.write(self._descriptor, data) :]
                except BlockingIOError:  # another process made the shared pipe non-blocking
                    select.select([], [self._descriptor], [])
        except (OSError, MemoryError):  # the reader has closed the pipe, or the disk is full
            return False
        return True


class RepeatFilter:
    """Detects repeated warnings and errors: the same place in the code, cause and type of exception.

    The first one is logged. Later ones within REPEAT_SECONDS are counted, and then logged as one record.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: dict[
            Hashable, tuple[float, int, logging.LogRecord]
        ] = {}  # time, count of repetitions, first record

    def suppress(self, record: logging.LogRecord, now: float) -> bool:
        """Return whether the record repeats an earlier one, and count it."""
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
            elif len(self._seen) < MAX_REPEATS:  # a copy: the frames of the record's exception keep large objects alive
                self._seen[key] = (now, 0, event(record.getMessage(), record.levelno, **_fields(record)))
            return seen is not None

    def due(self, now: float, *, at_exit: bool = False) -> list[logging.LogRecord]:
        """The records to log now: a copy of each repeated record with the number of repetitions in `repeated`."""
        due = []
        with self._lock:
            for key, (since, count, first) in list(self._seen.items()):
                if now - since < REPEAT_SECONDS and not at_exit:
                    continue
                if count:
                    due.append(event(first.getMessage(), first.levelno, **_fields(first), repeated=count))
                    self._seen[key] = (now, 0, first)
                else:
                    del self._seen[key]
        return due


class BackgroundHandler(logging.Handler):
    """Logs through a LineWriter, filters repetitions, and reports the number of dropped lines."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._repeats = RepeatFilter()
        self._writer = LineWriter(descriptor, self._notices)

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the record."""
        try:
            if not self._repeats.suppress(record, time.monotonic()):
                self._writer.put(self.format(record))
        except Exception as error:
            with suppress(Exception):  # out of memory
                at = f"{record.pathname}:{record.lineno}"
                failure = event("log line failed", logging.ERROR, at=at, exception=type(error).__name__)
                self._writer.put(self.format(failure))

    def flush(self) -> None:
        """Write the queued lines and the counts, for at most DRAIN_SECONDS. Python calls this at exit."""
        self._put_counts()
        self._writer.drain()

    def close(self) -> None:
        """Write the queued lines and the counts, for at most DRAIN_SECONDS, and stop the thread."""
        super().close()
        self._put_counts()
        self._writer.close()

    def _put_counts(self) -> None:
        for record in self._repeats.due(time.monotonic(), at_exit=True):
            self._writer.put(self.format(record))

    def _notices(self, dropped: int) -> list[str]:
        records = self._repeats.due(time.monotonic())
        if dropped:
            records.append(event("log lines dropped", logging.WARNING, count=dropped))
        return [self.format(record) for record in records]


def event(text: str, level: int = logging.INFO, /, **keys: object) -> logging.LogRecord:
    """Create a log record without a logger."""
    record = logging.LogRecord(__name__, level, "", 0, text, None, None)
    vars(record).update(keys)
    return record


def set_up(app_mode: str) -> None:
    """Log to standard error: JSON lines in release mode, readable lines in debug mode."""
    handler = BackgroundHandler(STDERR)
    handler.setFormatter(JsonFormatter() if app_mode == "release" else ReadableFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("aiohttp").setLevel(logging.ERROR)  # its warnings contain up to 8 KB of client input


def flush() -> None:
    """Wait until all logged lines are written, at most DRAIN_SECONDS."""
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
