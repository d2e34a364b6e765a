"""Clock and Timeline: the times of messages, which strictly increase."""

import time
from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from chat_server.utils.clock import Clock, Timeline

moments = st.integers(0, 10**16)


class ScriptedClock(Clock):
    """Returns the given times in order, then the last one forever."""

    def __init__(self, times: Iterable[int]) -> None:
        self._times = list(times)

    def now(self) -> int:
        return self._times.pop(0) if len(self._times) > 1 else self._times[0]


def test_the_clock_shows_the_system_time() -> None:
    clock = Clock()
    before = time.time_ns() // 1000
    assert before <= clock.now() <= time.time_ns() // 1000
    assert time.monotonic() <= clock.monotonic() <= time.monotonic()


@given(st.lists(moments, min_size=1, max_size=30), moments)
def test_times_increase_and_are_not_behind_the_clock(clock: list[int], newest: int) -> None:
    timeline = Timeline(ScriptedClock(clock), newest)
    last = newest
    for now in clock:
        time = timeline.next()
        assert time > last
        assert time >= now
        last = time


@given(moments, st.integers(1, 20))
def test_times_count_up_while_the_clock_is_behind(newest: int, count: int) -> None:
    timeline = Timeline(ScriptedClock([newest // 2]), newest)
    assert [timeline.next() for _ in range(count)] == list(range(newest + 1, newest + count + 1))


def test_times_follow_a_clock_that_advances() -> None:
    timeline = Timeline(ScriptedClock([10, 20, 20, 5, 21]))
    assert [timeline.next() for _ in range(5)] == [10, 20, 21, 22, 23]


@given(moments, moments)
def test_ahead_is_the_lead_of_the_last_time_over_the_clock(now: int, newest: int) -> None:
    assert Timeline(ScriptedClock([now]), newest).ahead() == newest - now
