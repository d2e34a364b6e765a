"""Servers that start in a tenth of the time, for tests that start many: they are forked from a process that has already
imported the server.
"""

import asyncio
import atexit
import logging
import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Mapping
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Self

_CONTEXT = multiprocessing.get_context("forkserver")
# Everything that `run.py` imports with all stores on database servers.
_CONTEXT.set_forkserver_preload(
    [
        "chat_server.cli",
        "chat_server.app",
        "chat_server.cache.redis_backplane",
        "chat_server.model.mongodb",
        "chat_server.model.mysql",
    ]
)
# Seconds between two looks whether a process has ended.
INTERVAL = 0.01


class ForkedProcess:
    """`python PROGRAM ARGUMENTS`, with the methods of asyncio.subprocess.Process that tests use."""

    def __init__(self, process: ForkServerProcess, stdout: asyncio.StreamReader) -> None:
        assert process.pid
        self.pid: int = process.pid
        self.stdout = stdout
        self._process = process

    @classmethod
    async def start(cls, program: Path, *arguments: str, environ: Mapping[str, str], errors: Path) -> Self:
        """Start the program. Its standard error is appended to the file `errors`."""
        errors.touch()
        output, child_output = _CONTEXT.Pipe(duplex=False)
        with output, child_output:
            process = _CONTEXT.Process(
                target=_run, args=(program, arguments, dict(environ), child_output, errors), daemon=True
            )
            process.start()
            pipe = os.fdopen(os.dup(output.fileno()), "rb")
        stdout = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stdout), pipe)
        return cls(process, stdout)

    @property
    def returncode(self) -> int | None:
        """The exit code, or the negative number of the signal that ended the process; None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal unless the process has ended."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    async def wait(self) -> int:
        """Wait until the process ends; return `returncode`."""
        while (code := self.returncode) is None:
            await asyncio.sleep(INTERVAL)
        return code


def _run(program: Path, arguments: tuple[str, ...], environ: dict[str, str], output: Connection, errors: Path) -> None:
    """Run the program in the forked process."""
    with output, errors.open("ab") as log:
        os.dup2(output.fileno(), 1)
        os.dup2(log.fileno(), 2)
    # The old objects cache the positions of other files.
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    os.environ.clear()
    os.environ.update(environ)
    sys.argv = [str(program), *arguments]
    atexit.register(logging.shutdown)  # since Python 3.13, multiprocessing removes the handlers of its parent
    try:
        runpy.run_path(str(program), run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # multiprocessing ends its processes without them
