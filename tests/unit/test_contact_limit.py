"""decide and rebuild: how much a stranger may send (protocol section 3, promise 4)."""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from chat_server.cache.contacts import ContactState, Decision, Permission, decide, rebuild

WINDOW = 100
FREE, COUNTED, REFUSED = Permission.FREE, Permission.COUNTED, Permission.REFUSED
Attempt = tuple[str, int]


class Ruled(NamedTuple):
    sender: str
    time: int
    decision: Decision


limits = st.integers(1, 5)
# Mostly short gaps, so that limits are reached; some of half a window or a whole one, so that it ends.
gaps = st.one_of(st.integers(1, 12), st.integers(1, 12), st.integers(30, 60), st.integers(80, 120))
senders = st.one_of(st.just("1"), st.sampled_from("12"))
talks = st.lists(st.tuples(senders, gaps), max_size=30).map(
    lambda talk: list(zip([who for who, _ in talk], accumulate(gap for _, gap in talk), strict=True))
)


def judge(attempts: Sequence[Attempt], limit: int) -> list[Ruled]:
    """What becomes of attempts to send, from the first message between the two on."""
    state, ruled = ContactState(), []
    for sender, now in attempts:
        state, decision = decide(state, sender, now, limit, WINDOW)
        ruled.append(Ruled(sender, now, decision))
    return ruled


def accepted(ruled: Sequence[Ruled]) -> list[Attempt]:
    """The messages that are stored."""
    return [(sender, time) for sender, time, decision in ruled if decision.permission is not REFUSED]


def state_after(messages: Sequence[Attempt], limit: int) -> ContactState:
    state = ContactState()
    for sender, now in messages:
        state, _ = decide(state, sender, now, limit, WINDOW)
    return state


def rebuilt_from(messages: Sequence[Attempt], limit: int, now: int | None = None) -> ContactState:
    """The state that the stored messages tell of, by the look-up that the service makes."""
    recent = messages[: -limit - 2 : -1]
    silent = {"1", "2"} - {sender for sender, _ in recent[:1]}
    answered = any(sender in silent for sender, _ in messages)
    return rebuild(recent, answered, (recent[0][1] if recent else 0) if now is None else now, limit, WINDOW)


def rule(state: ContactState, sender: str, now: int, limit: int) -> Permission:
    return decide(state, sender, now, limit, WINDOW)[1].permission


def let_through(state: ContactState, sender: str, now: int, limit: int) -> int:
    """How many messages of a stranger get through at `now`."""
    for count in range(limit + 1):
        state, decision = decide(state, sender, now, limit, WINDOW)
        assert decision.permission is not FREE
        if decision.permission is REFUSED:
            return count
    raise AssertionError(f"more than {limit}")


@given(talks, limits)
def test_a_stranger_never_has_more_than_the_limit_unanswered_in_a_window(attempts: list[Attempt], limit: int) -> None:
    begun, count, writer = 0, 0, ""
    for sender, time, decision in judge(attempts, limit):
        if decision.permission is FREE:
            writer = ""
        elif decision.permission is COUNTED:
            if sender != writer or time >= begun + WINDOW:  # the window begins with the first that counts
                begun, count, writer = time, 0, sender
            count += 1
            assert count <= limit


@given(talks, limits)
def test_nobody_is_refused_who_has_less_than_the_limit_unanswered(attempts: list[Attempt], limit: int) -> None:
    ruled = judge(attempts, limit)
    for index, (sender, time, decision) in enumerate(ruled):
        if decision.permission is REFUSED:
            unanswered: list[int] = []
            for earlier in reversed(ruled[:index]):
                if earlier.sender != sender or earlier.time <= time - WINDOW:
                    break
                if earlier.decision.permission is COUNTED:
                    unanswered.append(earlier.time)
            assert len(unanswered) >= limit


@given(talks, limits)
def test_who_is_answered_talks_freely_for_a_window_that_each_message_renews(
    attempts: list[Attempt], limit: int
) -> None:
    ruled = judge(attempts, limit)
    for before, after in pairwise(ruled):
        if before.decision.permission is FREE:
            assert (after.decision.permission is FREE) == (after.time < before.time + WINDOW)
        elif (
            before.decision.permission is COUNTED
            and before.sender != after.sender
            and after.time < before.time + WINDOW
        ):
            begun = next(
                one.time
                for index, one in enumerate(ruled)
                if one.sender == before.sender
                and one.decision.permission is COUNTED
                and before.time < one.time + WINDOW
                and all(other.decision.permission is not FREE for other in ruled[index : ruled.index(before)])
            )
            if after.time < begun + WINDOW:
                assert after.decision.permission is FREE


@given(talks, limits)
def test_it_is_lifted_for_those_who_were_refused_and_for_nobody_else(attempts: list[Attempt], limit: int) -> None:
    refused: set[str] = set()
    for sender, _, decision in judge(attempts, limit):
        if decision.permission is REFUSED:
            refused.add(sender)
        else:
            other = "2" if sender == "1" else "1"
            assert not decision.unblocked or other in refused
            if decision.permission is FREE:
                assert decision.unblocked == (other in refused)
            refused.clear()


def test_the_limit_to_the_message_and_the_window_to_the_microsecond() -> None:
    attempts = [("1", 0), ("1", 1), ("1", 2), ("1", WINDOW - 1), ("1", WINDOW), ("1", WINDOW + 1), ("1", WINDOW + 2)]
    verdicts = [decision.permission for _, _, decision in judge(attempts, 2)]
    assert verdicts == [COUNTED, COUNTED, REFUSED, REFUSED, COUNTED, COUNTED, REFUSED]


def test_the_answer_lifts_it_and_says_so_once() -> None:
    rulings = [decision for _, _, decision in judge([("1", 0), ("1", 1), ("2", 2), ("2", 3), ("1", 4)], 1)]
    assert rulings == [
        Decision(COUNTED),
        Decision(REFUSED),
        Decision(FREE, unblocked=True),
        Decision(FREE),
        Decision(FREE),
    ]


@given(st.lists(senders, max_size=12), limits)
def test_rebuild_agrees_with_decide_over_messages_of_one_window(who: list[str], limit: int) -> None:
    """`refused` is told by no message, and is not rebuilt."""
    messages = accepted(judge([(sender, 1 + number) for number, sender in enumerate(who)], limit))
    assert rebuilt_from(messages, limit) == state_after(messages, limit)


@given(talks, limits)
def test_rebuild_agrees_with_decide_over_all_messages_if_one_look_up_shows_them(
    attempts: list[Attempt], limit: int
) -> None:
    """It shows limit + 1: where it finds fewer, none is hidden."""
    messages = accepted(judge(attempts, limit))[:limit]
    assert rebuilt_from(messages, limit) == state_after(messages, limit)


@given(st.lists(gaps, max_size=12), limits, st.integers(1, 120))
def test_rebuild_never_gives_a_stranger_more(between: list[int], limit: int, wait: int) -> None:
    """As long as the other side never wrote, no more get through than if the counters had not been lost."""
    messages = accepted(judge([("1", time) for time in accumulate(between)], limit))
    now = sum(between) + wait
    state, rebuilt = state_after(messages, limit), rebuilt_from(messages, limit, now)
    assert let_through(rebuilt, "1", now, limit) <= let_through(state, "1", now, limit)


@given(limits)
def test_rebuild_knows_friends_of_whom_one_wrote_alone_of_late(limit: int) -> None:
    """More unanswered messages than a stranger might have sent are a friend's, if the other ever wrote."""
    recent = [("1", 50 - number) for number in range(limit + 1)]
    assert rebuild(recent, True, 50, limit, WINDOW) == ContactState(until=50 + WINDOW)
    assert rebuild(recent, False, 50, limit, WINDOW).sender == "1"


def test_rebuild_of_nothing_is_nothing() -> None:
    assert rebuild([], False, 1, 5, WINDOW) == ContactState()
