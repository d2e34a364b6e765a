"""Servers under test: each a process of its own on a free loopback port, measured from outside.

Linux only: a process's CPU clock and /proc tell what it uses.
"""

from __future__ import annotations

import functools
import http.client
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from configparser import ConfigParser
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
TARGETS = ("relay", "gather", "server")

# The settings of the real server that a load would run into, and nothing else: all checks stay on,
# every message is durable before its ack.
LIFTED = {
    "FramesPerSecond": "0",
    "BroadcastsPerMinute": "0",
    "RegistrationsPerHour": "0",
    "SocketsPerAddress": "0",
    "PasswordCost": "4",
}
START_SECONDS = 60.0
STOP_SECONDS = 10.0


class NotRunningError(Exception):
    """A server under test did not start, or ended by itself."""


class Server(NamedTuple):
    """A server under test that answers: its address, its process, and the seconds its start took."""

    url: str
    pid: int
    started_in: float

    def cpu_seconds(self) -> float:
        """Return the CPU time of all its threads so far, user and system."""
        return time.clock_gettime((~self.pid << 3) | 2)  # Linux's id of that clock: clock_getcpuclockid(3)

    def rss(self) -> int:
        """Return its resident memory in bytes."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def forget_peak(self) -> None:
        """Let `peak` begin anew."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def peak(self) -> int:
        """Return the most resident memory it had since `forget_peak`, in bytes."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024


@contextmanager
def serving(
    target: str,
    folder: Path,
    *,
    on_uvloop: bool = True,
    settings: Mapping[str, str] = LIFTED,
    environ: Mapping[str, str] = MappingProxyType({}),
    profile: Path | None = None,
) -> Iterator[Server]:
    """Run one of TARGETS, or the relay on picows, with its data and log in `folder`, until the end of the block.

    `on_uvloop` is for the relays, the server chooses its loop itself; `settings` and `environ` are for the server.
    With `profile`, one of TARGETS runs under bench.calls, which writes the calls that it counts to this file.
    A folder used before is gone on with: what was stored in it is there again.
    """
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = _command(target, folder, port, on_uvloop, settings)
    if profile:
        command[1:1] = ["-m", "bench.calls", str(profile)]
    log = folder / "log.txt"
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | environ,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            process_group=0,
        )
    try:
        yield _wait_until_up(process, port)
    finally:
        if process.poll() is not None:
            raise NotRunningError(f"{command} ended with code {process.returncode}:\n{_tail(log)}")
        if not _stop(process):
            print(f"process {process.pid} ignored SIGTERM: killed; its log:\n{_tail(log)}", file=sys.stderr)


def _command(target: str, folder: Path, port: int, on_uvloop: bool, settings: Mapping[str, str]) -> list[str]:
    """Return the command line of a target, writing the real server's configuration where that is it."""
    if target == "picows":
        return [sys.executable, "-m", "bench.relay_picows", f"--port={port}"]
    if target != "server":
        options = [f"--port={port}", *["--gather"] * (target == "gather"), *["--uvloop"] * on_uvloop]
        return [sys.executable, str(ROOT / "bench" / "relay.py"), *options]
    config = ConfigParser(interpolation=None)
    config.optionxform = str  # type: ignore[assignment,method-assign]  # keep the keys' capitals
    config["service"] = {
        "HttpHost": "127.0.0.1",
        "HttpPort": str(port),
        "DataDir": str(folder / "data"),
        "AppMode": "release",
        **settings,
    }
    with (folder / "config.ini").open("w", encoding="utf-8") as file:
        config.write(file)
    return [sys.executable, str(ROOT / "run.py"), "--config", str(folder / "config.ini")]


def _wait_until_up(process: subprocess.Popen[bytes], port: int) -> Server:
    """Wait until GET /ping is answered with 200, or the process has ended."""
    began = time.monotonic()
    while time.monotonic() - began < START_SECONDS:
        if process.poll() is not None:
            break
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
        try:
            connection.request("GET", "/ping")
            if connection.getresponse().status == 200:
                return Server(f"http://127.0.0.1:{port}", process.pid, time.monotonic() - began)
        except OSError:
            time.sleep(0.01)
        finally:
            connection.close()
    raise NotRunningError(f"{process.args!r} did not answer GET /ping")


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-10:])


def _stop(process: subprocess.Popen[bytes]) -> bool:
    """End a process politely, and after STOP_SECONDS at once; say whether the former was enough."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return False
    return True


class Meter:
    """What a server uses between the start and the end of a `with` block."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._perf: subprocess.Popen[str] | None = None
        self.cpu_seconds = 0.0  # of all threads, user and system
        self.machine_seconds = 0.0  # CPU time of everything on this machine
        self.rss_start = self.rss_end = 0  # bytes
        self.instructions: int | None = None  # of all threads; None where the machine cannot count

    def __enter__(self) -> Meter:
        if counts_instructions():
            command = ["perf", "stat", "-x,", "-e", "instructions", "-p", str(self._server.pid)]
            self._perf = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.rss_start = self._server.rss()
        self.machine_seconds = -machine_seconds()
        self.cpu_seconds = -self._server.cpu_seconds()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.cpu_seconds += self._server.cpu_seconds()
            self.machine_seconds += machine_seconds()
            self.rss_end = self._server.rss()
        finally:
            if self._perf is not None:
                self._perf.send_signal(signal.SIGINT)
                self.instructions = _counted(self._perf.communicate(timeout=10)[1])


def allow_many_sockets() -> None:
    """Let this process, and those that it starts, have as many files open as the system allows at all."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def machine_seconds() -> float:
    """Return the CPU time that this machine has used so far, what its host took away included."""
    with open("/proc/stat", encoding="ascii") as file:
        user, nice, system, _idle, _waiting, *others = (int(ticks) for ticks in file.readline().split()[1:9])
    return (user + nice + system + sum(others)) / os.sysconf("SC_CLK_TCK")


@functools.cache
def counts_instructions() -> bool:
    """Say whether `perf stat -e instructions` works on this machine."""
    if shutil.which("perf") is None:
        return False
    command = ["perf", "stat", "-x,", "-e", "instructions", "true"]
    return _counted(subprocess.run(command, capture_output=True, text=True, check=False).stderr) is not None


def _counted(output: str) -> int | None:
    """Take the count out of what `perf stat -x,` printed, where there is one."""
    for line in output.splitlines():
        count, *_ = line.split(",")
        if "instructions" in line and count.isdigit():
            return int(count)
    return None
