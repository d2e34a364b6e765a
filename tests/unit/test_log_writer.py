"""Logging never blocks: lines for a full pipe are dropped and counted, and equal warnings are counted."""

import logging
import os
import select
from collections.abc import Iterator
from contextlib import suppress

import pytest

from chat_server.utils import logs
from chat_server.utils.logs import MAX_LINES, MAX_REPEATS, REPEAT_SECONDS, BackgroundHandler, LineWriter, RepeatFilter
from tests.harness import TIMEOUT, wait_until


class Pipe:
    """A pipe for a LineWriter, which writes to `writing`."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        self._text = ""

    def lines(self) -> list[str]:
        """Return all complete lines so far."""
        while select.select([self.reading], [], [], 0)[0]:
            self._text += os.read(self.reading, 65536).decode()
        return self._text[: self._text.rfind("\n") + 1].splitlines()

    def close(self) -> None:
        for descriptor in (self.reading, self.writing):
            with suppress(OSError):
                os.close(descriptor)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


async def test_lines_for_a_full_pipe_are_dropped_and_counted(pipe: Pipe) -> None:
    """`put` and `drain` return although the pipe is not read. Every line is either written or counted."""
    writer = LineWriter(pipe.writing, lambda dropped: [f"dropped {dropped}"] if dropped else [])
    count = MAX_LINES + 3000
    for number in range(count):
        writer.put(f"{number:0100d}")
    writer.drain()

    def written_and_dropped() -> tuple[list[int], int]:
        lines = pipe.lines()
        dropped = sum(int(line.split()[1]) for line in lines if line.startswith("dropped"))
        return [int(line) for line in lines if not line.startswith("dropped")], dropped

    await wait_until(lambda: len(written_and_dropped()[0]) + written_and_dropped()[1] == count)
    written, dropped = written_and_dropped()
    assert dropped > 0
    assert written == sorted(written)
    writer.close()


async def test_lines_for_a_closed_pipe_are_dropped_and_counted(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread continues: when the pipe is writable again, it logs the number of lost lines."""
    monkeypatch.setattr(logs, "DRAIN_SECONDS", TIMEOUT)
    writer = LineWriter(pipe.writing, lambda dropped: [f"dropped {dropped}"] if dropped else [])
    os.close(pipe.reading)
    for _ in range(10):
        writer.put("lost")
    writer.drain()
    reading, writing = os.pipe()
    os.dup2(writing, pipe.writing)
    os.close(writing)
    pipe.reading = reading
    writer.put("heard")
    await wait_until(lambda: "dropped 10" in pipe.lines())
    assert sorted(pipe.lines()) == ["dropped 10", "heard"]
    writer.close()


async def test_a_pipe_that_became_non_blocking_loses_nothing(pipe: Pipe) -> None:
    os.set_blocking(pipe.writing, False)
    writer = LineWriter(pipe.writing)
    for number in range(3000):
        writer.put(f"{number:0100d}")
    await wait_until(lambda: len(pipe.lines()) == 3000)
    assert [int(line) for line in pipe.lines()] == list(range(3000))
    writer.close()


async def test_a_line_that_cannot_be_formatted_is_reported(pipe: Pipe) -> None:
    handler = BackgroundHandler(pipe.writing)
    for level in (logging.INFO, logging.ERROR, logging.ERROR):
        handler.handle(logging.LogRecord("x", level, "file.py", 7, "two %s and %s", ("one",), None))
    handler.close()
    await wait_until(lambda: len(pipe.lines()) == 3)
    assert all("log line failed" in line for line in pipe.lines())


# --- equal warnings


def record(
    level: int = logging.WARNING, line: int = 1, why: str = "it is away", error: Exception | None = None
) -> logging.LogRecord:
    exc_info = (type(error), error, None) if error else None
    made = logging.LogRecord("x", level, "file.py", line, "a store is %s", ("away",), exc_info)
    vars(made)["why"] = why
    return made


def test_equal_warnings_are_logged_once_and_then_counted() -> None:
    repeats = RepeatFilter()
    assert [repeats.suppress(record(), now) for now in range(5)] == [False, True, True, True, True]
    assert repeats.due(REPEAT_SECONDS - 1) == []
    [counted] = repeats.due(REPEAT_SECONDS)
    assert (counted.getMessage(), counted.levelno) == ("a store is away", logging.WARNING)
    assert (vars(counted)["why"], vars(counted)["repeated"]) == ("it is away", 4)
    assert repeats.suppress(record(), REPEAT_SECONDS + 1)
    assert [vars(one)["repeated"] for one in repeats.due(2 * REPEAT_SECONDS)] == [1]
    assert repeats.due(3 * REPEAT_SECONDS) == []
    assert not repeats.suppress(record(), 3 * REPEAT_SECONDS)


def test_different_warnings_are_all_logged() -> None:
    """Warnings from another line, with another cause or exception, and records that are not warnings."""
    repeats = RepeatFilter()
    others = [record(line=2), record(why="it is full"), record(error=ValueError()), record(error=KeyError())]
    for one in (record(), *others, record(level=logging.ERROR)):
        assert not repeats.suppress(one, 0)
    for _ in range(3):
        assert not repeats.suppress(record(level=logging.INFO), 0)
    assert repeats.suppress(record(error=KeyError("another text")), 0)
    [counted] = repeats.due(REPEAT_SECONDS)
    assert vars(counted)["exception"] == "KeyError"
    assert counted.exc_info is None


def test_the_table_of_warnings_is_bounded() -> None:
    """Warnings that do not fit into the table are logged."""
    repeats = RepeatFilter()
    for number in range(MAX_REPEATS + 100):
        assert not repeats.suppress(record(why=str(number)), 0)
    assert repeats.suppress(record(why="0"), 0)
    assert not repeats.suppress(record(why=str(MAX_REPEATS + 1)), 0)


async def test_the_handler_writes_counts_at_its_end(pipe: Pipe) -> None:
    handler = BackgroundHandler(pipe.writing)
    for _ in range(5):
        handler.handle(record())
    handler.close()
    await wait_until(lambda: len(pipe.lines()) == 2)
    assert pipe.lines() == ["a store is away", "a store is away"]
