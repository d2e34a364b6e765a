"""The command line, `python run.py` or `chat-server`: run the server or a command, and set the exit code."""

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
from contextlib import suppress
from pathlib import Path

import uvloop

from chat_server import __version__, arguments
from chat_server.backends import check_stores
from chat_server.conf import ConfigError, Settings, load
from chat_server.utils import logs
from chat_server.utils.errors import StartError

# Thresholds of the garbage collector: collect the youngest generation after 5,000 new objects, the middle one every
# second time, the oldest almost never. A full collection stops the process for 0.3 s with 10,000 open sockets, and a
# closed socket leaves no reference cycles behind. (Python's defaults are 700, 10, 10.)
GC_THRESHOLDS = (5000, 1, 1000)
# Seconds after which Python asks the running thread to release the GIL. A database statement needs the GIL several
# times: with Python's 5 ms and a busy event loop, each message waited for about 0.1 s.
SWITCH_INTERVAL = 0.0001

log = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> int:
    """Run the server or a command. Returns the exit code: 0, or 1 after one line that says what is wrong."""
    _open_standard_streams()
    try:
        try:
            return _run(arguments.parser().parse_args(argv))
        finally:
            sys.stdout.flush()  # an error here is handled below; an error when Python exits is not
    except (ConfigError, StartError) as error:
        _print_error(str(error))
    except KeyboardInterrupt:  # in a command; the server has its own signal handlers
        _print_error("interrupted")
    except BrokenPipeError:  # the reader of standard output has closed it, as `| head` does
        _discard_output()
    except OSError as error:
        _discard_output()
        _print_error(f"failed: {error}")
    except ModuleNotFoundError:  # run.py says how to install the package
        raise
    except Exception:  # the log has its type and place only: its text may contain a secret
        log.critical("command failed", exc_info=True)
    return 1


def _run(options: argparse.Namespace) -> int:
    settings = load(_config_file(options.config), os.environ)
    logs.set_up(settings.server.app_mode)
    for warning in settings.warnings:
        log.warning("variable ignored", extra={"why": warning})
    if options.check:
        print("\n".join((f"settings: {settings.source}", *check_stores(settings))))
    elif options.command:
        _run_command(options, settings)
    else:
        try:
            _run_server(settings)
        except StartError as error:
            if settings.server.app_mode != "release":
                raise
            log.critical("server failed", extra={"why": str(error)})
            return 1
    return 0


def _run_command(options: argparse.Namespace, settings: Settings) -> None:
    """Run a command. Its modules are imported here, because the server does not need them."""
    match options.command:
        case "user":
            from chat_server.commands import user  # noqa: PLC0415

            user.run(options, settings)
        case "migrate":
            from chat_server.migrate import command  # noqa: PLC0415

            command.run(options, settings)
        case name:
            from chat_server.commands import backup  # noqa: PLC0415

            {"backup": backup.backup, "verify": backup.verify, "restore": backup.restore}[name](options, settings)


def _open_standard_streams() -> None:
    """Open /dev/null for closed standard streams. Otherwise a socket gets such a number, and libuv aborts."""
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is `descriptor`
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, mode, closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # print \\u65e5 if the terminal's encoding lacks a character
            stream.reconfigure(errors="backslashreplace")


def _discard_output() -> None:
    """Point standard output to /dev/null, so that Python's last flush does not fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _print_error(why: str) -> None:
    logs.flush()  # log lines come before the last line
    if _is_writable(2):
        with suppress(OSError):  # standard error has no reader
            print(f"chat-server: {why}", file=sys.stderr)


def _is_writable(descriptor: int) -> bool:
    """Whether a short line can be written within a second. A write to a full pipe could block the exit forever."""
    return bool(select.select([], [descriptor], [], 1)[1])


def _run_server(settings: Settings) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(_serve(settings))
        except (
            MemoryError
        ):  # the loop itself ran out of memory and stopped: closing it would wait forever for its tasks
            try:
                if _is_writable(2):
                    os.write(2, b"chat-server: out of memory; start it again, acknowledged messages are stored\n")
            finally:
                os._exit(1)


def _config_file(named: Path | None) -> Path | None:
    """The settings file: the named one, else config.ini in the folder of run.py or in the current folder, else None."""
    if named:
        return named
    folders = (Path(sys.argv[0]).resolve().parent, Path.cwd())
    return next((path for folder in folders if (path := folder / "config.ini").is_file()), None)


async def _serve(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM, which also end a start. Raises StartError, also if a store is taken over."""
    from chat_server.app import serving  # noqa: PLC0415 - commands do not need it, and aiohttp takes as long as they do

    loop, stop, starting = asyncio.get_running_loop(), asyncio.Event(), asyncio.current_task()
    signals = (signal.SIGINT, signal.SIGTERM)
    failures: list[str] = []
    announcements = Announcements(settings.server.app_mode)

    def end() -> None:
        if not stop.is_set():
            announcements.announce("chat-server is ending", logs.event("server ending"))
            stop.set()
            if starting:
                starting.cancel()

    def on_signal() -> None:
        for signal_ in signals:  # a second signal ends the process immediately
            loop.remove_signal_handler(signal_)
            signal.signal(signal_, signal.SIG_DFL)
        end()

    def on_takeover(why: str) -> None:
        failures.append(why)
        end()

    _raise_file_limit()
    sys.setswitchinterval(SWITCH_INTERVAL)
    gc.set_threshold(*GC_THRESHOLDS)
    for signal_ in signals:
        loop.add_signal_handler(signal_, on_signal)
    loop.add_signal_handler(signal.SIGHUP, _ignore_hangup)
    try:
        async with serving(settings, on_takeover=on_takeover) as (host, port):
            starting = None
            url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
            ready = logs.event("server ready", url=url, version=__version__)
            announcements.announce(f"chat-server {__version__} is ready on {url}", ready)
            await stop.wait()
    except asyncio.CancelledError:
        if not stop.is_set():
            raise
    finally:
        announcements.close()
    if failures:
        raise StartError(failures[0])


def _ignore_hangup() -> None:
    log.info(
        "signal ignored", extra={"signal": "SIGHUP", "why": "settings are read only at startup; restart the server"}
    )


class Announcements:
    """Prints lines to standard output: text, or JSON in release mode. The caller never waits for a reader."""

    def __init__(self, app_mode: str) -> None:
        self._json = app_mode == "release"
        self._writer = logs.LineWriter(1)

    def announce(self, text: str, event: logging.LogRecord) -> None:
        """Print `text`, or `event` in release mode."""
        self._writer.put(logs.JsonFormatter().format(event) if self._json else text)

    def close(self) -> None:
        """Wait for the lines to be written, at most logs.DRAIN_SECONDS."""
        self._writer.close()


def _raise_file_limit() -> None:
    """Raise the limit of open files to the hard limit: each socket is a file, and the default limit is often 1024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # some systems have a lower limit of their own
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
