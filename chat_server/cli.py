"""The command line: python run.py, or chat-server."""

import argparse
import asyncio
import gc
import io
import logging
import os
import resource
import select
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import uvloop

from chat_server import __version__, migrate
from chat_server.app import serving
from chat_server.backends import check
from chat_server.commands import backup, users
from chat_server.conf import ConfigError, Settings, load
from chat_server.utils import logs
from chat_server.utils.errors import StartError

# The collector of cycles looks at new objects after so many more of them, every second time at those that it left then,
# and hardly ever at all there are, which stops everything for 0.3 s where 10,000 sockets are open: what an open socket
# leaves behind has no cycles. (Python's thresholds are 700, 10, 10.)
COLLECTED_AFTER = (5000, 1, 1000)
# A thread that wants the interpreter waits so many seconds for another that does not let go. A statement of the
# database wants it several times: at Python's 5 ms a busy loop made each message wait for some 0.1 s.
SWITCH_INTERVAL = 0.0001

log = logging.getLogger(__name__)

Run = Callable[[argparse.Namespace, Settings], None]


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code: 0, or 1 after one line that says what was wrong."""
    _complete_standard_streams()
    try:
        try:
            return _run(_parser().parse_args(arguments))
        finally:
            sys.stdout.flush()  # here, where its failure is caught, and not at the end of Python
    except (ConfigError, StartError) as error:
        _print_error(str(error))
    except KeyboardInterrupt:  # of a command; a server ends by itself
        _print_error("interrupted")
    except BrokenPipeError:  # the reader of the output wanted no more: `| head`
        _discard_output()
    except OSError as error:
        _discard_output()
        _print_error(f"failed: {error}")
    except Exception:  # its text may hold a secret, so it is logged without
        log.critical("command failed", exc_info=True)
    return 1


def _run(options: argparse.Namespace) -> int:
    settings = load(_config_file(options.config), os.environ)
    logs.set_up(settings.server.app_mode)
    for warning in settings.warnings:
        log.warning("variable ignored", extra={"why": warning})
    if options.check:
        print("\n".join((f"settings: {settings.source}", *check(settings))))
    elif options.command:
        options.run(options, settings)
    else:
        try:
            _run_server(settings)
        except StartError as error:
            if settings.server.app_mode != "release":
                raise
            log.critical("server failed", extra={"why": str(error)})
            return 1
    return 0


def _complete_standard_streams() -> None:
    """Open /dev/null for standard streams that are closed. Else a socket gets their number, and libuv aborts."""
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, mode, closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal's encoding lacks is written as \\u65e5
            stream.reconfigure(errors="backslashreplace")


def _discard_output() -> None:
    """Let Python's last flush of what could not be written go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _print_error(why: str) -> None:
    logs.flush()  # what was logged comes first
    if _is_writable(2):
        with suppress(OSError):  # nobody reads it
            print(f"chat-server: {why}", file=sys.stderr)


def _is_writable(descriptor: int) -> bool:
    """Whether a short line can be written at once: a pipe that is full would hold up the end for ever."""
    return bool(select.select([], [descriptor], [], 1)[1])


def _run_server(settings: Settings) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(_serve(settings))
        except MemoryError:  # the loop itself had none, and stopped: what waits in it would be waited for for ever
            try:
                if _is_writable(2):
                    os.write(2, b"chat-server: no memory was left, start it again; what was acknowledged is stored\n")
            finally:
                os._exit(1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="chat-server", description="An instant-messaging server.")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="the settings; default: config.ini, if there is one"
    )
    parser.add_argument(
        "--check", action="store_true", help="look at the settings and the stores, change nothing, and end"
    )
    parser.add_argument("--version", action="version", version=f"chat-server {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)  # --config may also stand behind the command
    common.add_argument("--config", type=Path, metavar="FILE", default=argparse.SUPPRESS, help="the settings")

    def command(run: Run, name: str, what: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.", parents=parents)
        one.set_defaults(run=run)
        return one

    users.add_options(command(users.run, "user", "add, list, disable, export or remove users"), common)
    named = argparse.ArgumentParser(add_help=False, parents=[common])
    named.add_argument("file", type=Path, metavar="FILE", help="the copy")
    command(backup.backup, "backup", "copy the embedded database to a new file, also while a server runs", named)
    command(backup.verify, "verify", "read all of such a copy and say what it holds", named)
    restore = command(backup.restore, "restore", "make such a copy the data of a server that has none yet", named)
    restore.add_argument("--keep-sessions", action="store_true", help="do not end those that were open then")
    migrate.add_options(command(migrate.run, "migrate", "copy what other stores hold to those of --config"))
    return parser


def _config_file(named: Path | None) -> Path | None:
    """The file of settings: the one named, or config.ini beside run.py or in the current folder, or none."""
    if named:
        return named
    beside = Path(sys.argv[0]).resolve().parent
    return next((path for folder in (beside, Path.cwd()) if (path := folder / "config.ini").is_file()), None)


async def _serve(settings: Settings) -> None:
    stop = asyncio.Event()
    failures: list[str] = []

    def lost(why: str) -> None:
        failures.append(why)
        stop.set()

    _allow_many_files()
    sys.setswitchinterval(SWITCH_INTERVAL)
    gc.set_threshold(*COLLECTED_AFTER)
    loop = asyncio.get_running_loop()
    signals = (signal.SIGINT, signal.SIGTERM)
    for signal_ in signals:
        loop.add_signal_handler(signal_, stop.set)
    loop.add_signal_handler(signal.SIGHUP, _ignore_hangup)
    announcements = Announcements(settings.server.app_mode)
    try:
        async with serving(settings, lost=lost) as (host, port):
            url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
            ready = logs.event("server ready", url=url, version=__version__)
            announcements.say(f"chat-server {__version__} is ready on {url}", ready)
            await stop.wait()
            for signal_ in signals:  # a second one ends it at once
                loop.remove_signal_handler(signal_)
                signal.signal(signal_, signal.SIG_DFL)
            announcements.say("chat-server is ending", logs.event("server ending"))
    finally:
        announcements.close()
    if failures:
        raise StartError(failures[0])


def _ignore_hangup() -> None:
    log.info(
        "signal ignored", extra={"signal": "SIGHUP", "why": "settings are read only at startup; restart the server"}
    )


class Announcements:
    """Lines on standard output, for people or, in release mode, as JSON. They never wait for a reader."""

    def __init__(self, app_mode: str) -> None:
        self._json = app_mode == "release"
        self._writer = logs.LineWriter(1)

    def say(self, text: str, event: logging.LogRecord) -> None:
        """Write `text`, or in release mode the event."""
        self._writer.put(logs.JsonLines().format(event) if self._json else text)

    def close(self) -> None:
        """Wait for the lines to be written, but not for long."""
        self._writer.close()


def _allow_many_files() -> None:
    """Open as many files as we may: a socket is one, and the usual limit is 1024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # a system whose own limit is less says so here
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
