"""The data folder: its lock, and who can access its files."""

import errno
import fcntl
import os
import stat
from contextlib import suppress
from pathlib import Path

from chat_server.utils.errors import StartError


def make_folder(folder: Path) -> None:
    """Create a folder that only this user can access, whatever the umask. An existing folder keeps its mode."""
    if not folder.is_dir():
        folder.mkdir(mode=0o700, parents=True)
        folder.chmod(0o700)


def lock_folder(folder: Path) -> int:
    """Lock a data folder and return the descriptor; closing it unlocks the folder.

    Raises BlockingIOError if another process holds the lock.
    """
    lock = open_private(folder / "chat.lock")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(lock)
        raise
    return lock


def is_locked(folder: Path) -> bool:
    """Whether a server holds the lock of a data folder."""
    try:
        lock = os.open(folder / "chat.lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(lock)


def open_private(path: Path) -> int:
    """Open a file, or create it, and restrict it to its owner, whatever the umask. Returns a descriptor."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if stat.S_IMODE(os.fstat(descriptor).st_mode) != 0o600:
        with suppress(PermissionError):  # the file belongs to another user, who gave this one access
            os.fchmod(descriptor, 0o600)
    return descriptor


def protect_database(path: Path) -> None:
    """Restrict the database and its log to their owner. SQLite gives new -wal and -shm files the database's mode.

    No connection may be open: closing any descriptor of a file releases all POSIX locks of the process on it.
    """
    log, index = (path.with_name(f"{path.name}{suffix}") for suffix in ("-wal", "-shm"))
    for file in (path, *filter(Path.exists, (log, index))):
        os.close(open_private(file))


def exposure(folder: Path) -> str:
    """Return a warning if other users can access the folder, else an empty string."""
    mode = stat.S_IMODE(folder.stat().st_mode) if folder.exists() else 0
    return f"other users can access {folder} (mode {mode:04o}): chmod 700" if mode & 0o077 else ""


def require_access(path: Path, *, folder: bool = False) -> None:
    """Raise OSError unless this process can read and write the file, or create files in the folder."""
    if folder and not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    if not os.access(path, os.R_OK | os.W_OK | (os.X_OK if folder else 0)):
        code = errno.EROFS if os.statvfs(path).f_flag & os.ST_RDONLY else errno.EACCES
        raise OSError(code, os.strerror(code), str(path))


def inaccessible(folder: Path, error: OSError) -> StartError:
    """The StartError for a data folder that this process cannot use."""
    where = f": {error.filename}" if error.filename and str(error.filename) != str(folder) else ""
    return StartError(
        f"DataDir {folder}: cannot be written ({error.strerror}){where}; give this user access to read and write it, "
        "or choose another DataDir"
    )
