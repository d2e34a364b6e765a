"""File descriptors: each connection is one, and a process has only so many."""

import logging
import resource

log = logging.getLogger(__name__)

# Fewer than so many left are few: the stores want some, too.
FEW = 32


class Descriptors:
    """Says in the log when few are left. With none the loop cuts new connections, and says nothing."""

    def __init__(self) -> None:
        self._few = False

    def taken(self, number: int) -> None:
        """A connection has got that descriptor: the system gives the lowest that is free."""
        most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if not self._few and number >= most - FEW:
            self._few = True
            log.warning("descriptors low", extra={"limit": most})
        elif self._few and number < most - 2 * FEW:
            self._few = False
            log.warning("descriptors available", extra={"limit": most})
