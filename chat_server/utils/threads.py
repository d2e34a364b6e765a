"""Priorities of threads."""

import os
import sys
import threading


def lower_priority() -> None:
    """Let all other threads, such as the event loop's, run before this one. Only Linux has priorities of threads."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
