"""decide and rebuild: the contact limit (protocol section 3, promise 4)."""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from chat_server.cache.contacts import ContactState, Decision, Permission, decide, rebuild

WINDOW = 100
FREE, COUNTED, REFUSED = Permission.FREE, Permission.COUNTED, Permission.REFUSED
Attempt = tuple[str, int]


class DecidedAttempt(NamedTuple):
    sender: str
    time: int
    decision: Decision


limits = st.integers(1, 5)
# Mostly short gaps, so that limits are reached; some of about half a window or a whole one, so that windows end.
gaps = st.one_of(st.integers(1, 12), st.integers(1, 12), st.integers(30, 60), st.integers(80, 120))
senders = st.one_of(st.just("1"), st.sampled_from("12"))
conversations = st.lists(st.tuples(senders, gaps), max_size=30).map(
    lambda steps: list(zip([sender for sender, _ in steps], accumulate(gap for _, gap in steps), strict=True))
)


def decide_all(attempts: Sequence[Attempt], limit: int) -> list[DecidedAttempt]:
    """Decide about attempts to send, beginning with the first message between two users."""
    state, decided = ContactState(), []
    for sender, now in attempts:
        state, decision = decide(state, sender, now, limit, WINDOW)
        decided.append(DecidedAttempt(sender, now, decision))
    return decided


def accepted(decided: Sequence[DecidedAttempt]) -> list[Attempt]:
    """Return the messages that are stored."""
    return [(sender, time) for sender, time, decision in decided if decision.permission is not REFUSED]


def state_after(messages: Sequence[Attempt], limit: int) -> ContactState:
    state = ContactState()
    for sender, now in messages:
        state, _ = decide(state, sender, now, limit, WINDOW)
    return state


def rebuilt_from(messages: Sequence[Attempt], limit: int, now: int | None = None) -> ContactState:
    """Rebuild the state from stored messages, with the query that the service uses."""
    recent = messages[: -limit - 2 : -1]
    other = {"1", "2"} - {sender for sender, _ in recent[:1]}
    answered = any(sender in other for sender, _ in messages)
    return rebuild(recent, answered, (recent[0][1] if recent else 0) if now is None else now, limit, WINDOW)


def count_allowed(state: ContactState, sender: str, now: int, limit: int) -> int:
    """Return the number of messages that `sender` may send at `now` without an answer."""
    for count in range(limit + 1):
        state, decision = decide(state, sender, now, limit, WINDOW)
        assert decision.permission is not FREE
        if decision.permission is REFUSED:
            return count
    raise AssertionError(f"more than {limit}")


@given(conversations, limits)
def test_no_window_has_more_unanswered_messages_than_the_limit(attempts: list[Attempt], limit: int) -> None:
    started, count, writer = 0, 0, ""
    for sender, time, decision in decide_all(attempts, limit):
        if decision.permission is FREE:
            writer = ""
        elif decision.permission is COUNTED:
            if sender != writer or time >= started + WINDOW:  # the first counted message starts the window
                started, count, writer = time, 0, sender
            count += 1
            assert count <= limit


@given(conversations, limits)
def test_no_message_is_refused_below_the_limit(attempts: list[Attempt], limit: int) -> None:
    decided = decide_all(attempts, limit)
    for index, (sender, time, decision) in enumerate(decided):
        if decision.permission is REFUSED:
            unanswered: list[int] = []
            for earlier in reversed(decided[:index]):
                if earlier.sender != sender or earlier.time <= time - WINDOW:
                    break
                if earlier.decision.permission is COUNTED:
                    unanswered.append(earlier.time)
            assert len(unanswered) >= limit


@given(conversations, limits)
def test_an_answer_frees_both_for_a_window_that_messages_renew(attempts: list[Attempt], limit: int) -> None:
    decided = decide_all(attempts, limit)
    for before, after in pairwise(decided):
        if before.decision.permission is FREE:
            assert (after.decision.permission is FREE) == (after.time < before.time + WINDOW)
        elif (
            before.decision.permission is COUNTED
            and before.sender != after.sender
            and after.time < before.time + WINDOW
        ):
            started = next(
                one.time
                for index, one in enumerate(decided)
                if one.sender == before.sender
                and one.decision.permission is COUNTED
                and before.time < one.time + WINDOW
                and all(other.decision.permission is not FREE for other in decided[index : decided.index(before)])
            )
            if after.time < started + WINDOW:
                assert after.decision.permission is FREE


@given(conversations, limits)
def test_only_a_refused_sender_is_unblocked(attempts: list[Attempt], limit: int) -> None:
    refused: set[str] = set()
    for sender, _, decision in decide_all(attempts, limit):
        if decision.permission is REFUSED:
            refused.add(sender)
        else:
            other = "2" if sender == "1" else "1"
            assert not decision.unblocked or other in refused
            if decision.permission is FREE:
                assert decision.unblocked == (other in refused)
            refused.clear()


def test_limit_and_window_are_exact() -> None:
    attempts = [("1", 0), ("1", 1), ("1", 2), ("1", WINDOW - 1), ("1", WINDOW), ("1", WINDOW + 1), ("1", WINDOW + 2)]
    permissions = [decision.permission for _, _, decision in decide_all(attempts, 2)]
    assert permissions == [COUNTED, COUNTED, REFUSED, REFUSED, COUNTED, COUNTED, REFUSED]


def test_an_answer_unblocks_once() -> None:
    decisions = [decision for _, _, decision in decide_all([("1", 0), ("1", 1), ("2", 2), ("2", 3), ("1", 4)], 1)]
    assert decisions == [
        Decision(COUNTED),
        Decision(REFUSED),
        Decision(FREE, unblocked=True),
        Decision(FREE),
        Decision(FREE),
    ]


@given(st.lists(senders, max_size=12), limits)
def test_rebuild_agrees_with_decide_within_one_window(sequence: list[str], limit: int) -> None:
    """`refused` does not follow from messages and is not rebuilt."""
    messages = accepted(decide_all([(sender, 1 + number) for number, sender in enumerate(sequence)], limit))
    assert rebuilt_from(messages, limit) == state_after(messages, limit)


@given(conversations, limits)
def test_rebuild_agrees_with_decide_if_it_sees_all_messages(attempts: list[Attempt], limit: int) -> None:
    """The query returns up to limit + 1 messages; if it returns fewer, there are no others."""
    messages = accepted(decide_all(attempts, limit))[:limit]
    assert rebuilt_from(messages, limit) == state_after(messages, limit)


@given(st.lists(gaps, max_size=12), limits, st.integers(1, 120))
def test_rebuild_never_allows_more_messages(between: list[int], limit: int, wait: int) -> None:
    """If the other user never wrote, a rebuilt state allows at most as many messages as the lost one."""
    messages = accepted(decide_all([("1", time) for time in accumulate(between)], limit))
    now = sum(between) + wait
    state, rebuilt = state_after(messages, limit), rebuilt_from(messages, limit, now)
    assert count_allowed(rebuilt, "1", now, limit) <= count_allowed(state, "1", now, limit)


@given(limits)
def test_rebuild_frees_a_pair_with_a_one_sided_recent_history(limit: int) -> None:
    """More unanswered messages than the limit mean that the pair is free, if the other user ever wrote."""
    recent = [("1", 50 - number) for number in range(limit + 1)]
    assert rebuild(recent, True, 50, limit, WINDOW) == ContactState(until=50 + WINDOW)
    assert rebuild(recent, False, 50, limit, WINDOW).sender == "1"


def test_rebuild_without_messages_returns_an_empty_state() -> None:
    assert rebuild([], False, 1, 5, WINDOW) == ContactState()
