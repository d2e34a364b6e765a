"""Warns when the process is running out of file descriptors. Each connection needs one."""

import logging
import resource

log = logging.getLogger(__name__)

# Warn when fewer than this many are free: the stores need some, too.
LOW = 32


class Descriptors:
    """Logs when descriptors are low. Without free descriptors, the event loop drops new connections silently."""

    def __init__(self) -> None:
        self._low = False

    def connection_opened(self, number: int) -> None:
        """Check the descriptor of a new connection: the system assigns the lowest free number."""
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if not self._low and number >= limit - LOW:
            self._low = True
            log.warning("descriptors low", extra={"limit": limit})
        elif self._low and number < limit - 2 * LOW:
            self._low = False
            log.warning("descriptors available", extra={"limit": limit})
