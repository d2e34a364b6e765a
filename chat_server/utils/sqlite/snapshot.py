"""Copies of the embedded database: taken while a server writes, fully checked, visible only when complete."""

import os
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from tempfile import mkstemp
from typing import NamedTuple

from chat_server.utils.errors import StartError
from chat_server.utils.sqlite.files import lock_folder, make_folder
from chat_server.utils.sqlite.schema import Schema, recorded_steps


class Contents(NamedTuple):
    """What a copy contains: the number of schema steps of each part and the number of rows of each table."""

    steps: dict[str, int]
    rows: dict[str, int]


def backup(folder: Path, target: Path, schemas: Sequence[Schema]) -> Contents:
    """Copy the database of `folder`, as it is at one moment, to the new file `target`. Raises StartError.

    SQLite's backup API copies everything in one step, in one read transaction. So no writer waits for it, and no
    writer can make it start again (https://www.sqlite.org/c3ref/backup_finish.html). The log grows meanwhile.
    """
    source = folder / "chat.db"
    if not source.exists():
        raise StartError(f"there is no {source}; check DataDir")
    with _read_only(source) as running, _new_file(target) as part:
        with closing(_connect(part, "mode=rw")) as copy:
            running.backup(copy)
        return verify(part, schemas)


def verify(path: Path, schemas: Sequence[Schema]) -> Contents:
    """Read all of a copy without changing it. Raises StartError unless it is sound and this version can use it."""
    if not path.is_file():
        raise StartError(f"{path}: there is no such file")
    log = path.with_name(f"{path.name}-wal")
    if log.exists():
        raise StartError(f"{path}: a server uses it, or left {log.name} next to it; make a copy with backup first")
    try:
        with closing(_connect(path, "immutable=1")) as copy:
            steps = recorded_steps(copy, schemas, path)
            if not steps:
                raise StartError(f"{path}: is empty")
            found = copy.execute("PRAGMA integrity_check(1)").fetchone()[0]
            if found != "ok":
                raise StartError(f"{path}: is damaged ({found.splitlines()[-1]}); take another copy")
            tables = [name for (name,) in copy.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
            rows = {name: copy.execute(f"SELECT count(*) FROM {_quoted(name)}").fetchone()[0] for name in tables}  # noqa: S608
    except sqlite3.Error as error:
        raise StartError(f"{path}: {error}; take another copy") from error
    return Contents(steps, rows)


def restore(copy: Path, folder: Path, schemas: Sequence[Schema], without: Sequence[str]) -> Contents:
    """Make a copy the database of `folder`, which must have none, and empty the tables `without`.

    Returns the contents of the copy. Raises StartError.
    """
    contents = verify(copy, schemas)
    lock = None
    try:
        make_folder(folder)
        lock = lock_folder(folder)
        if existing := sorted(folder.glob("chat.db*")):
            raise StartError(f"{existing[0]} already exists; move the folder {folder} away first")
        with _new_file(folder / "chat.db") as part:
            shutil.copyfile(copy, part)
            with closing(_connect(part, "mode=rw")) as database:
                database.execute("PRAGMA secure_delete = ON")
                for table in without:
                    database.execute(f"DELETE FROM {_quoted(table)}")  # noqa: S608
    except BlockingIOError as error:
        raise StartError(f"DataDir {folder}: a chat_server is running on it; choose another DataDir") from error
    except OSError as error:
        raise StartError(f"DataDir {folder}: cannot be written ({error.strerror})") from error
    finally:
        if lock is not None:
            os.close(lock)
    return contents


@contextmanager
def _read_only(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that only reads a database. Raises StartError if it cannot."""
    with ExitStack() as stack:
        try:
            connection = stack.enter_context(closing(_connect(path, "mode=rw")))
            connection.execute("PRAGMA query_only = ON")
            connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()  # opens the log as well
        except sqlite3.Error as error:
            why = f"{path}: cannot be read ({error}); run --check, as the server's user"
            raise StartError(why) from error
        yield connection


@contextmanager
def _new_file(path: Path) -> Iterator[Path]:
    """A temporary file that only this user can read. At the end it is synced and becomes `path`. Raises StartError."""
    if path.exists():
        raise StartError(f"{path} exists already; nothing is overwritten")
    try:
        descriptor, name = mkstemp(".part", f".{path.name}.", path.parent)
        part = Path(name)
        try:
            os.fchmod(descriptor, 0o600)  # the umask may have removed rights
            yield part
            os.fsync(descriptor)
            _rename(part, path)
        finally:
            os.close(descriptor)
            part.unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except FileExistsError as error:
        raise StartError(f"{path} exists already; nothing is overwritten") from error
    except (OSError, sqlite3.Error) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise StartError(f"{path}: cannot be written ({why})") from error


def _rename(part: Path, path: Path) -> None:
    try:
        os.link(part, path)  # unlike a rename, a link never replaces a file
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        part.rename(path)


def _quoted(name: str) -> str:
    """A table's name as an SQL identifier, whatever characters it contains."""
    return '"' + name.replace('"', '""') + '"'


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True, isolation_level=None, timeout=30)
