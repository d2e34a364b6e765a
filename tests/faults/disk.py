"""A disk that fails on request, and its contents after a power cut.

`disk.c` is preloaded into the server. It records each write, truncation, sync and removal in the data folder and makes
the requested calls fail. From the record, `write_surviving_files` builds the files as they may be after a power cut:
synced data is present, each other sector may be present or not. A write whose sync failed stays uncertain forever: as
on Linux, a later sync does not cover it (https://lwn.net/Articles/752063/).
"""

import errno
import random
import struct
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests import needs
from tests.harness import ChatClient, SubprocessServer, subprocess_server

SOURCE = Path(__file__).with_name("disk.c")
WRITE, TRUNCATE, SYNC, UNLINK = range(1, 5)
SECTOR = 512
_RECORD = struct.Struct("=IIQQ40s")


class SystemCall(NamedTuple):
    """A call of the server. `offset` is the new size of a truncation; `end` is the position in the record."""

    kind: int
    failed: bool
    file: str
    offset: int
    data: bytes
    end: int


class Disk:
    """The data folder of consecutive servers, and the record of their calls."""

    def __init__(self, parent: Path) -> None:
        self.folder = parent / "data"
        self._journal = parent / "journal"
        self._faults = parent / "faults"
        self._library = parent / "disk.so"
        self._faults.mkdir()
        self._journal.touch()
        compiler = needs.program("gcc")
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", self._library, SOURCE, "-ldl"], check=True)

    @asynccontextmanager
    async def server(self, **settings: Any) -> AsyncIterator[SubprocessServer]:
        """Run a server on this disk."""
        variables = {
            "LD_PRELOAD": self._library,
            "DISK_FOLDER": self.folder,
            "DISK_JOURNAL": self._journal,
            "DISK_FAULTS": self._faults,
        }
        prefix = ("env", *(f"{name}={value}" for name, value in variables.items()))
        async with subprocess_server(self.folder, prefix=prefix, **{"StrangerLimit": 0, **settings}) as server:
            yield server

    @contextmanager
    def failing(self, call: str, file: str, error: int = errno.EIO) -> Iterator[None]:
        """Make a call (write, truncate, sync, unlink) on a file of the folder fail."""
        fault = self._faults / f"{call} {file}"
        fault.write_text(str(error))
        yield
        fault.unlink()

    def now(self) -> int:
        """Return the current end of the record."""
        return self._journal.stat().st_size

    def calls(self) -> list[SystemCall]:
        """Return all calls so far."""
        record, place, found = self._journal.read_bytes(), 0, []
        while place < len(record):
            kind, failed, offset, size, name = _RECORD.unpack_from(record, place)
            start, place = place + _RECORD.size, place + _RECORD.size + size
            call = SystemCall(kind, bool(failed), name.rstrip(b"\0").decode(), offset, record[start:place], place)
            found.append(call)
        return found


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    """A disk for one test."""
    return Disk(tmp_path)


def write_surviving_files(calls: Sequence[SystemCall], chance: float, folder: Path) -> None:
    """Build the files in `folder` as they may be after a power cut that follows `calls`.

    Each unsynced sector reached the disk with the probability `chance`.
    """
    dice = random.Random(len(calls))

    def keep() -> bool:
        return dice.random() < chance

    files: dict[str, bytearray] = {}
    kept: set[str] = set()  # files whose removal was lost
    for call, sure in zip(calls, _sure(calls), strict=True):
        if call.failed or call.kind == SYNC or call.file in kept:
            continue
        content = files.setdefault(call.file, bytearray())
        if call.kind == WRITE:
            whole = sure or chance in (0, 1)  # all of its sectors, or none
            for start, piece in [(call.offset, call.data)] if whole else _sectors(call):
                if sure or keep():
                    content.extend(bytes(max(0, start - len(content))))
                    content[start : start + len(piece)] = piece
        elif not sure and not keep():
            kept |= {call.file} if call.kind == UNLINK else set()
        elif call.kind == TRUNCATE:
            content[call.offset :] = bytes(max(0, call.offset - len(content)))
        else:
            del files[call.file]
    folder.mkdir()
    for name, content in files.items():
        if not name.endswith("-shm"):  # shared memory is lost
            (folder / name).write_bytes(content)


def _sure(calls: Sequence[SystemCall]) -> list[bool]:
    """Return for each call whether the next sync of its file succeeded; for a removal, of the folder."""
    synced: dict[str, bool] = {}
    sure = []
    for call in reversed(calls):
        if call.kind == SYNC:
            synced[call.file] = not call.failed
        sure.append(synced.get("." if call.kind == UNLINK else call.file, False))
    return sure[::-1]


def _sectors(call: SystemCall) -> Iterator[tuple[int, bytes]]:
    start, end = call.offset, call.offset + len(call.data)
    while start < end:
        after = min(end, (start // SECTOR + 1) * SECTOR)
        yield start, call.data[start - call.offset : after - call.offset]
        start = after


async def send_acknowledged(chat: ChatClient, numbers: range, code: int, text: str = "hello") -> None:
    """Send messages and check that all are acknowledged."""
    for n in numbers:
        await chat.put(1, f"m{n}\n{text}")
    for n in numbers:
        ack = await chat.receive()
        assert (ack["op_type"], ack["id"]) == (code, f"m{n}"), ack


async def send_refused(chat: ChatClient, numbers: range, text: str = "hello") -> None:
    """Send messages and check that all are refused with store_away."""
    for n in numbers:
        await chat.put(1, f"m{n}\n{text}")
    for n in numbers:
        answer = await chat.receive()
        assert (answer["op_type"], answer["reason"], answer["id"]) == (40008, "store_away", f"m{n}"), answer
