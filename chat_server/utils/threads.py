"""What threads have in common."""

import os
import sys
import threading


def lower_priority() -> None:
    """Let the event loop and all other threads go before this one, where a thread has a priority of its own."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
