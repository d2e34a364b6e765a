"""The bounded caches of a process: recent deliveries, and pairs of users without a contact limit."""

from hypothesis import given
from hypothesis import strategies as st

from chat_server.model.messages import Message
from chat_server.service.answers import RecentNumbers
from chat_server.service.contact_limit import DUE, FREE, UNKNOWN, ContactCache

WINDOW = 1000


@given(st.lists(st.integers(0, 50), max_size=100), st.integers(1, 8))
def test_recent_numbers_are_kept_and_bounded(numbers: list[int], least: int) -> None:
    recent = RecentNumbers(least)
    for count, number in enumerate(numbers, 1):
        recent.add(number)
        held = {number for number in range(51) if number in recent}
        assert set(numbers[max(0, count - least) : count]) <= held <= set(numbers[:count])
        assert len(held) <= 2 * least


def test_a_pair_without_messages_is_unknown() -> None:
    assert ContactCache(WINDOW, 10).lookup("1", "2", 0) is UNKNOWN


def test_a_free_pair_is_free_in_both_directions_only() -> None:
    cache = ContactCache(WINDOW, 10)
    cache.remember("1", "2", 0)
    assert cache.lookup("1", "2", 1) is FREE
    assert cache.lookup("2", "1", 2) is FREE
    assert cache.lookup("1", "3", 2) is UNKNOWN
    assert cache.lookup("12", "", 2) is UNKNOWN


def test_a_free_pair_becomes_due_regularly() -> None:
    """Otherwise the stored counters would expire, and the contact limit would apply again after a restart."""
    cache = ContactCache(WINDOW, 10)
    now = remembered = 0
    cache.remember("1", "2", now)
    while now < 5 * WINDOW:
        now += 1
        state = cache.lookup("1", "2", now)
        assert state is not UNKNOWN
        cache.renew([Message("1", "2", "m", "hello", now)])
        if state is DUE:
            cache.remember("1", "2", now)
            remembered = now
        assert now - remembered <= WINDOW // 10


def test_a_pair_stays_due_until_it_is_remembered_again() -> None:
    cache = ContactCache(WINDOW, 10)
    cache.remember("1", "2", 0)
    assert [cache.lookup("2", "1", 500) for _ in range(3)] == [DUE] * 3
    cache.remember("2", "1", 500)
    assert cache.lookup("1", "2", 501) is FREE


def test_the_least_recently_remembered_pair_is_dropped() -> None:
    cache = ContactCache(WINDOW, 2)
    cache.remember("1", "2", 0)
    cache.remember("1", "3", 1)
    cache.remember("1", "2", 2)  # again: now the most recent one
    cache.remember("1", "4", 3)
    assert [name for name in "234" if cache.lookup("1", name, 4)] == ["2", "4"]


@given(st.lists(st.tuples(st.sampled_from(("remember", "renew", "ask")), st.integers(0, 600)), max_size=40))
def test_a_pair_expires_a_window_after_its_last_message(steps: list[tuple[str, int]]) -> None:
    cache = ContactCache(WINDOW, 10)
    now, last = 0, -WINDOW
    for step, gap in steps:
        now += gap
        free = now < last + WINDOW
        assert (cache.lookup("1", "2", now) is not UNKNOWN) == free
        if step == "remember":
            cache.remember("2", "1", now)
        elif step == "renew" and free:
            cache.renew([Message("1", "2", "m", "hello", now)])
        if step == "remember" or (step == "renew" and free):
            last = now
