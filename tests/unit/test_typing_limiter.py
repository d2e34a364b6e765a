"""The bound on typing frames of one socket."""

import random

from chat_server.service.typing_indicator import INTERVAL, TRACKED, TypingLimiter


def test_one_start_passes_in_an_interval() -> None:
    limiter = TypingLimiter()
    passed = [now / 10 for now in range(100) if limiter.allows("a", "1", now / 10)]
    assert passed == [0, 2, 4, 6, 8]


def test_one_stop_passes_after_each_start_that_passed() -> None:
    limiter = TypingLimiter()
    assert not limiter.allows("a", "0", 0)
    assert limiter.allows("a", "1", 0)
    assert not limiter.allows("a", "1", 0.1)
    assert limiter.allows("a", "0", 0.1)
    assert not limiter.allows("a", "0", 0.2)
    assert not limiter.allows("a", "1", 0.3)
    assert not limiter.allows("a", "0", 0.4)
    assert limiter.allows("a", "1", INTERVAL)
    assert limiter.allows("a", "0", 10 * INTERVAL)


def test_conversations_are_independent_up_to_the_bound() -> None:
    limiter = TypingLimiter()
    names = [str(number) for number in range(TRACKED)]
    assert all(limiter.allows(name, "1", 0) for name in names)
    assert not limiter.allows("more", "1", 1)
    assert not limiter.allows("more", "0", 1)
    assert all(limiter.allows(name, "0", 1) for name in names)
    assert limiter.allows("more", "1", INTERVAL)
    assert not limiter.allows("0", "0", INTERVAL)  # the oldest one was forgotten


def test_no_order_of_frames_exceeds_the_bounds() -> None:
    for seed in range(50):
        chance = random.Random(seed)
        limiter, now, starts = TypingLimiter(), 0.0, [("", -INTERVAL)]
        typing: set[str] = set()
        for _ in range(500):
            now += chance.choice((0, 1 / 64, 1 / 8, INTERVAL / 2))  # exact in binary
            name, content = str(chance.randrange(TRACKED + 4)), chance.choice("01")
            if not limiter.allows(name, content, now):
                continue
            if content == "0":
                typing.remove(name)
                continue
            recent = [one for one, time in starts if now - time < INTERVAL]
            assert name not in recent
            assert len(recent) < TRACKED
            starts.append((name, now))
            typing.add(name)
