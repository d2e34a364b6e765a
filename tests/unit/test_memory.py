"""What a process remembers has bounds: recent deliveries, and pairs that are free of the contact limit."""

from hypothesis import given
from hypothesis import strategies as st

from chat_server.service.answers import RecentNumbers
from chat_server.service.contact_limit import DUE, FREE, UNKNOWN, ContactCache

WINDOW = 1000


@given(st.lists(st.integers(0, 50), max_size=100), st.integers(1, 8))
def test_the_newest_are_remembered_and_at_most_twice_as_many(numbers: list[int], least: int) -> None:
    recent = RecentNumbers(least)
    for count, number in enumerate(numbers, 1):
        recent.add(number)
        held = {number for number in range(51) if number in recent}
        assert set(numbers[max(0, count - least) : count]) <= held <= set(numbers[:count])
        assert len(held) <= 2 * least


def test_nothing_is_known_of_those_who_never_met() -> None:
    assert ContactCache(WINDOW, 10).lookup("1", "2", 0) is UNKNOWN


def test_friends_are_friends_whoever_writes_and_nobody_else() -> None:
    friends = ContactCache(WINDOW, 10)
    friends.remember("1", "2", 0)
    assert friends.lookup("1", "2", 1) is FREE
    assert friends.lookup("2", "1", 2) is FREE
    assert friends.lookup("1", "3", 2) is UNKNOWN
    assert friends.lookup("12", "", 2) is UNKNOWN


def test_the_counters_are_due_to_hear_of_friends_again_and_again() -> None:
    """Whoever writes, and however often: else they would take them for strangers after a restart."""
    friends = ContactCache(WINDOW, 10)
    now = told = 0
    friends.remember("1", "2", now)
    while now < 5 * WINDOW:
        now += 1
        talk = friends.lookup("1", "2", now)
        assert talk is not UNKNOWN
        if talk is DUE:
            friends.remember("1", "2", now)
            told = now
        assert now - told <= WINDOW // 10


def test_friends_stay_due_until_the_counters_were_told() -> None:
    friends = ContactCache(WINDOW, 10)
    friends.remember("1", "2", 0)
    assert [friends.lookup("2", "1", 500) for _ in range(3)] == [DUE] * 3
    friends.remember("2", "1", 500)
    assert friends.lookup("1", "2", 501) is FREE


def test_the_oldest_acquaintance_makes_room() -> None:
    friends = ContactCache(WINDOW, 2)
    friends.remember("1", "2", 0)
    friends.remember("1", "3", 1)
    friends.remember("1", "2", 2)  # again: now the youngest
    friends.remember("1", "4", 3)
    assert [name for name in "234" if friends.lookup("1", name, 4)] == ["2", "4"]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 600)), max_size=40))
def test_nobody_is_a_friend_a_window_after_the_last_message(steps: list[tuple[bool, int]]) -> None:
    friends = ContactCache(WINDOW, 10)
    now, last = 0, -WINDOW
    for meet, gap in steps:
        now += gap
        assert (friends.lookup("1", "2", now) is not UNKNOWN) == (now < last + WINDOW)
        if now < last + WINDOW:
            last = now
        if meet:
            friends.remember("1", "2", now)
            last = now
