"""The exceptions of the stores and of startup."""

import os


class StartError(Exception):
    """The server or a command cannot do its work. The text is one line: what is wrong, then what to do."""


class StoreUnavailable(Exception):  # noqa: N818 - a state of the store, not an error of the caller
    """A store failed; a retry may succeed. Whether the operation was done is unknown.

    The text names the store and the cause. It never contains secrets or the text of a driver's exception.
    """


class StoreMisconfigured(StoreUnavailable):
    """A store refuses until an operator changes a setting, an account or the store: a retry cannot succeed."""


class Duplicate(Exception):  # noqa: N818 - an answer, not an error of the caller
    """The new item already exists."""


def cause(error: BaseException) -> str:
    """The cause of a failed network call: the text of the operating system, else the type of the exception."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, TimeoutError):
            return "no answer in time"
        if isinstance(seen, OSError) and seen.errno is not None:
            # Name resolution has its own, negative error numbers; their texts come from the C library.
            return (os.strerror(seen.errno) if seen.errno > 0 else seen.strerror or "unknown name").lower()
        seen = seen.__cause__ or seen.__context__
    name = type(error).__name__
    return "the connection was lost" if name in ("ConnectionError", "IncompleteReadError", "RuntimeError") else name
