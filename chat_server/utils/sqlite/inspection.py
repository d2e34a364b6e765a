"""Look at a database without changing it, and describe what is wrong with it."""

import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from chat_server.utils.errors import StartError
from chat_server.utils.sqlite.files import exposure, inaccessible, is_locked, require_access
from chat_server.utils.sqlite.schema import Schema, missing_steps, recorded_steps
from chat_server.utils.sqlite.transactions import primary_code

# SQLite reports these for a file that it cannot use although nothing in it is damaged.
_NO_DAMAGE = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_READONLY,
    }
)


def examine(folder: Path, schemas: Sequence[Schema]) -> str:
    """Check the database of `folder` without changing anything, even while a server runs on it.

    Returns a sentence for the operator. Raises StartError for whatever would prevent a start.
    """
    path = folder / "chat.db"
    try:
        warning = f"; {why}" if (why := exposure(folder)) else ""
        if not path.exists():
            require_access(next(p for p in (folder, *folder.parents) if p.exists()), folder=True)
            return f"{path}: does not exist yet, the first start creates it{warning}"
        require_access(folder, folder=True)
        for file in sorted(folder.glob("chat.*")):
            require_access(file)
        with _unchanged(path) as connection:
            missing = missing_steps(recorded_steps(connection, schemas, path), schemas)
            check_pages(connection, path)
    except OSError as error:
        raise inaccessible(folder, error) from error
    except sqlite3.Error as error:
        raise unusable(path, error) from error
    state = f"{missing} schema steps to do at the next start" if missing else "schema up to date"
    return f"{path}: sound, {state}{warning}"


def check_pages(connection: sqlite3.Connection, path: Path) -> None:
    """Read every page. Raises StartError if one is damaged."""
    found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise StartError(f"{path}: is damaged ({found.splitlines()[-1]}); restore it from a backup")


def unusable(path: Path, error: sqlite3.Error) -> StartError:
    """The StartError for a file that SQLite cannot use."""
    no_damage = primary_code(error) in _NO_DAMAGE
    remedy = "check the disk, and who may access DataDir" if no_damage else "restore it from a backup"
    return StartError(f"{path}: {error}; {remedy}, or choose another DataDir")


@contextmanager
def _unchanged(path: Path) -> Iterator[sqlite3.Connection]:
    """A reading connection that creates and changes no file."""
    log = path.with_name(f"{path.name}-wal")
    with TemporaryDirectory() as folder:
        if not log.exists():
            mode = "immutable=1"  # no process has it open, so the file alone is complete
        elif is_locked(path.parent):
            mode = "mode=ro"
        else:  # a crash left the log, and reading it would repair it: read a copy
            mode = "mode=rw"
            for file in (path, log):
                shutil.copy(file, folder)
            path = Path(folder) / path.name
        uri = f"{path.absolute().as_uri()}?{mode}"
        with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection:
            yield connection
