"""Start, stop and measure a server under test: a process on a free loopback port.

Linux only: CPU time and memory come from the CPU clock of the process and from /proc.
"""

from __future__ import annotations

import argparse
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
RELAYS = ("relay", "gather", "picows")

# Settings that remove only the limits that a load would exceed. All checks stay on, and every message is durable
# before its acknowledgement.
UNLIMITED = {
    "FramesPerSecond": "0",
    "BroadcastsPerMinute": "0",
    "RegistrationsPerHour": "0",
    "SocketsPerAddress": "0",
    "PasswordCost": "4",
}
START_SECONDS = 60.0
STOP_SECONDS = 10.0


class NotRunningError(Exception):
    """A server under test did not start, or ended during the test."""


class BenchServer(NamedTuple):
    """A running server under test. `started_in`: seconds from the start of the process to the first answer."""

    url: str
    pid: int
    started_in: float

    def cpu_seconds(self) -> float:
        """Return the CPU time of all threads so far, user and system."""
        return time.clock_gettime((~self.pid << 3) | 2)  # the Linux id of that clock, see clock_getcpuclockid(3)

    def rss(self) -> int:
        """Return the resident memory in bytes."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def reset_peak(self) -> None:
        """Restart the measurement of `peak`."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def peak(self) -> int:
        """Return the highest resident memory since `reset_peak`, in bytes."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024


@contextmanager
def serving(
    target: str,
    folder: Path,
    *,
    on_uvloop: bool = True,
    settings: Mapping[str, str] = UNLIMITED,
    environ: Mapping[str, str] = MappingProxyType({}),
    profile: Path | None = None,
) -> Iterator[BenchServer]:
    """Run one of TARGETS, `picows`, or the server of another checkout, until the end of the block.

    Its data and log are in `folder`. The target of another checkout is the path of its folder.
    `on_uvloop` applies to the relays; the server always runs on uvloop. `settings` and `environ` apply to the server.
    With `profile`, one of TARGETS, or another checkout, runs under bench.calls, which writes its profile to this file.
    A folder from an earlier run keeps its data. Raises NotRunningError.
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
            cwd=ROOT if target in RELAYS else _checkout(target),  # a checkout imports its own packages
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
            raise NotRunningError(f"{command} ended with exit code {process.returncode}:\n{_tail(log)}")
        if not _stop(process):
            print(f"killed process {process.pid}, which ignored SIGTERM; its log:\n{_tail(log)}", file=sys.stderr)


def _command(target: str, folder: Path, port: int, on_uvloop: bool, settings: Mapping[str, str]) -> list[str]:
    """Return the command line of a target. For the server, write its configuration file."""
    if target == "picows":
        return [sys.executable, "-m", "bench.relay_picows", f"--port={port}"]
    if target in RELAYS:
        options = [f"--port={port}", *["--gather"] * (target == "gather"), *["--uvloop"] * on_uvloop]
        return [sys.executable, str(ROOT / "bench" / "relay.py"), *options]
    config = ConfigParser(interpolation=None)
    config.optionxform = str  # type: ignore[assignment,method-assign]  # keep upper case in keys
    config["service"] = {
        "HttpHost": "127.0.0.1",
        "HttpPort": str(port),
        "DataDir": str(folder / "data"),
        "AppMode": "release",
        **settings,
    }
    with (folder / "config.ini").open("w", encoding="utf-8") as file:
        config.write(file)
    return [sys.executable, str(_checkout(target) / "run.py"), "--config", str(folder / "config.ini")]


def _checkout(target: str) -> Path:
    """Return the folder of the program of a server."""
    return ROOT if target == "server" else Path(target).resolve()


def target_name(text: str) -> str:
    """Return the name of a target on the command line. Raises ArgumentTypeError if there is none of this name."""
    if text not in (*RELAYS, "server") and not Path(text, "run.py").exists():
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join((*RELAYS, 'server'))}, and has no run.py")
    return text


def _wait_until_up(process: subprocess.Popen[bytes], port: int) -> BenchServer:
    """Wait until the process answers GET /ping with 200. Raises NotRunningError if it ends or takes too long."""
    began = time.monotonic()
    while time.monotonic() - began < START_SECONDS:
        if process.poll() is not None:
            break
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
        try:
            connection.request("GET", "/ping")
            if connection.getresponse().status == 200:
                return BenchServer(f"http://127.0.0.1:{port}", process.pid, time.monotonic() - began)
        except OSError:
            time.sleep(0.01)
        finally:
            connection.close()
    raise NotRunningError(f"{process.args!r} did not answer GET /ping")


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-10:])


def _stop(process: subprocess.Popen[bytes]) -> bool:
    """Send SIGTERM, and SIGKILL after STOP_SECONDS; return whether SIGTERM was enough."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return False
    return True


class ResourceUsage:
    """The CPU time and memory of servers, all together, between the start and the end of a `with` block."""

    def __init__(self, *servers: BenchServer) -> None:
        self._servers = servers
        self._perf: subprocess.Popen[str] | None = None
        self.cpu_seconds = 0.0  # of all threads, user and system
        self.machine_seconds = 0.0  # CPU time of all processes on this machine
        self.rss_start = self.rss_end = 0  # bytes
        self.instructions: int | None = None  # of all threads; None if `perf stat` cannot count them

    def __enter__(self) -> ResourceUsage:
        if counts_instructions():
            command = [
                "perf",
                "stat",
                "-x,",
                "-e",
                "instructions",
                "-p",
                ",".join(str(one.pid) for one in self._servers),
            ]
            self._perf = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.rss_start = sum(server.rss() for server in self._servers)
        self.machine_seconds = -machine_seconds()
        self.cpu_seconds = -self._cpu_seconds()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.cpu_seconds += self._cpu_seconds()
            self.machine_seconds += machine_seconds()
            self.rss_end = sum(server.rss() for server in self._servers)
        finally:
            if self._perf is not None:
                self._perf.send_signal(signal.SIGINT)
                self.instructions = _instructions(self._perf.communicate(timeout=10)[1])

    def _cpu_seconds(self) -> float:
        return sum(server.cpu_seconds() for server in self._servers)


def allow_many_sockets() -> None:
    """Raise the limit of open files to the hard limit, for this process and its children."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def machine_seconds() -> float:
    """Return the CPU time that this machine has used so far, including time stolen by its host."""
    with open("/proc/stat", encoding="ascii") as file:
        user, nice, system, _idle, _iowait, *others = (int(ticks) for ticks in file.readline().split()[1:9])
    return (user + nice + system + sum(others)) / os.sysconf("SC_CLK_TCK")


@functools.cache
def counts_instructions() -> bool:
    """Return whether `perf stat -e instructions` works on this machine."""
    if shutil.which("perf") is None:
        return False
    command = ["perf", "stat", "-x,", "-e", "instructions", "true"]
    return _instructions(subprocess.run(command, capture_output=True, text=True, check=False).stderr) is not None


def _instructions(output: str) -> int | None:
    """Return the count in the output of `perf stat -x,`, or None."""
    for line in output.splitlines():
        count, *_ = line.split(",")
        if "instructions" in line and count.isdigit():
            return int(count)
    return None
