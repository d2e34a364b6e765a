"""Clock and Timeline: times that order messages."""

import time
from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from chat_server.utils.clock import Clock, Timeline

moments = st.integers(0, 10**16)


class Scripted(Clock):
    """Shows these times, one after the other, then the last for ever."""

    def __init__(self, times: Iterable[int]) -> None:
        self._times = list(times)

    def now(self) -> int:
        return self._times.pop(0) if len(self._times) > 1 else self._times[0]


def test_the_clock_is_the_machine_s() -> None:
    clock = Clock()
    before = time.time_ns() // 1000
    assert before <= clock.now() <= time.time_ns() // 1000
    assert time.monotonic() <= clock.monotonic() <= time.monotonic()


@given(st.lists(moments, min_size=1, max_size=30), moments)
def test_each_time_is_later_than_any_before_and_not_before_the_clock(clock: list[int], newest: int) -> None:
    timeline = Timeline(Scripted(clock), newest)
    last = newest
    for now in clock:
        time = timeline.next()
        assert time > last
        assert time >= now
        last = time


@given(moments, st.integers(1, 20))
def test_a_clock_that_stands_still_or_was_set_back_only_makes_it_count(newest: int, count: int) -> None:
    timeline = Timeline(Scripted([newest // 2]), newest)
    assert [timeline.next() for _ in range(count)] == list(range(newest + 1, newest + count + 1))


def test_a_clock_that_goes_on_is_followed() -> None:
    timeline = Timeline(Scripted([10, 20, 20, 5, 21]))
    assert [timeline.next() for _ in range(5)] == [10, 20, 21, 22, 23]


@given(moments, moments)
def test_ahead_says_by_how_much_the_last_time_is_ahead_of_the_clock(now: int, newest: int) -> None:
    assert Timeline(Scripted([now]), newest).ahead() == newest - now
