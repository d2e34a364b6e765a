"""What Python keeps of memory that is free."""

import gc


def clear_free_lists() -> None:
    """Let go of the tuples, lists and others that Python keeps for the next who needs one, thousands of each size.

    Where many were in use at once they lie scattered, and each holds on to the MiB that it lies in. Only a look at all
    objects, in search of cycles, lets go of them; frozen objects are left out of it, so this one is short.
    """
    gc.freeze()
    gc.collect()
    gc.unfreeze()
