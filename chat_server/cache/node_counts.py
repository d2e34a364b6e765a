"""What a node counts for its metrics."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class NodeCounts:
    """Counts since the start. Counting costs an addition; the metrics read the attributes at each scrape."""

    def __init__(self) -> None:
        self.published = self.published_bytes = 0  # items, and their bytes without the names of users
        self.slow_changes = 0  # changes that another process had not applied when they were published again
        self.gaps = self.own_gaps = 0  # recoveries that have ended, and those of them after a gap of this node
        self.recovery_seconds = 0.0  # of the recoveries that have ended
        self._recovering_since: float | None = None

    def recovering_seconds(self) -> float:
        """Return the duration so far of the recovery in progress; 0 without one."""
        return time.monotonic() - self._recovering_since if self._recovering_since is not None else 0.0

    @contextmanager
    def recovery(self, *, own: bool) -> Iterator[None]:
        """Measure a recovery; `own`: this node did not receive something."""
        began = self._recovering_since = time.monotonic()
        try:
            yield
        finally:
            self._recovering_since = None
            self.recovery_seconds += time.monotonic() - began
            self.gaps += 1
            self.own_gaps += own
