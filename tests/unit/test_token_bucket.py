"""TokenBucket: frames beyond the rate wait, and none is refused."""

from itertools import accumulate

from hypothesis import given
from hypothesis import strategies as st

from chat_server.utils.token_bucket import TokenBucket


def test_tokens_after_a_burst_wait_longer_and_longer() -> None:
    bucket = TokenBucket(rate=2, burst=3, now=0)
    assert [bucket.take(0) for _ in range(6)] == [0, 0, 0, 0.5, 1.0, 1.5]


def test_time_refills_the_bucket_up_to_the_burst() -> None:
    bucket = TokenBucket(rate=2, burst=3, now=0)
    for _ in range(3):
        bucket.take(0)
    assert not bucket.full(1)
    assert bucket.full(1.5)
    assert [bucket.take(1000) for _ in range(4)] == [0, 0, 0, 0.5]


@given(
    st.integers(1, 50),
    st.integers(1, 20),
    st.lists(st.integers(0, 1000), min_size=1, max_size=60),
)
def test_no_period_exceeds_the_burst_plus_the_rate(rate: int, burst: int, gaps: list[int]) -> None:
    bucket = TokenBucket(rate, burst, 0)
    times = [gap / 1000 for gap in accumulate(gaps)]
    passed = [now + bucket.take(now) for now in times]
    assert passed == sorted(passed)
    for first, start in enumerate(passed):
        for last, end in enumerate(passed[first:], first):
            assert last - first + 1 <= burst + rate * (end - start) + 1e-6


@given(st.integers(1, 50), st.integers(1, 20), st.integers(1, 60))
def test_a_sender_within_the_rate_never_waits(rate: int, burst: int, count: int) -> None:
    bucket = TokenBucket(rate, burst, 0)
    assert all(bucket.take((number + 1) / rate) < 1e-6 for number in range(count))
