"""Memory that CPython keeps for reuse."""

import gc


def clear_free_lists() -> None:
    """Release the tuples, lists and other objects that CPython keeps for reuse, thousands of each size.

    After a peak these objects lie scattered, and each keeps the memory arena around it allocated. Only a full garbage
    collection releases them. Freezing all objects first excludes them from this collection, so it is short.
    """
    gc.freeze()
    gc.collect()
    gc.unfreeze()
