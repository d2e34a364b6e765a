"""Flood control without refusals: a user that sends too fast is read more slowly."""


class TokenBucket:
    """Allows `rate` per second after a burst of `burst`. Times are seconds of a monotonic clock."""

    __slots__ = ("_burst", "_rate", "_tokens", "_when")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._when = now

    def take(self, now: float, count: int = 1) -> float:
        """Take `count` tokens. Returns the seconds to wait before they may be used."""
        self._refill(now)
        self._tokens -= count
        return -self._tokens / self._rate if self._tokens < 0 else 0.0

    def full(self, now: float) -> bool:
        """Whether it is in the same state as a new one, which can replace it."""
        self._refill(now)
        return self._tokens >= self._burst

    def _refill(self, now: float) -> None:
        self._tokens = min(self._burst, self._tokens + (now - self._when) * self._rate)
        self._when = now
