"""The errors by which a store tells the layers above that it cannot do its work."""

import os


class StartError(Exception):
    """The server cannot start. The text is one line: what is wrong, and what to do."""


class StoreUnavailable(Exception):  # noqa: N818 - a state of the store, and not a fault of the caller
    """A store did not do what was asked; try again later. Whether it did it all the same is not known.

    The text names the store and the cause. It holds no secret and never the text of a driver's error.
    """


class StoreMisconfigured(StoreUnavailable):
    """The store refuses, and will go on refusing until an operator changes a setting, an account or the store."""


class Duplicate(Exception):  # noqa: N818 - likewise
    """What was to be added is there already."""


def cause(error: BaseException) -> str:
    """Why a call over the network failed: the system's words for it, or else the type of the error."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, TimeoutError):
            return "no answer in time"
        if isinstance(seen, OSError) and seen.errno is not None:
            # Resolving a name has error numbers of its own, which are negative; those texts are the C library's.
            return (os.strerror(seen.errno) if seen.errno > 0 else seen.strerror or "unknown name").lower()
        seen = seen.__cause__ or seen.__context__
    name = type(error).__name__
    return "the connection was lost" if name in ("ConnectionError", "IncompleteReadError") else name
