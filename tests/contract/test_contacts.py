"""ContactStore on every backend: the rule of cache.counters.decide, in atomic steps."""

import asyncio
import uuid
from itertools import accumulate

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chat_server.cache.contacts import ContactState, ContactStore, Decision, Permission, decide
from chat_server.utils.clock import MICROSECONDS
from chat_server.utils.errors import StoreUnavailable
from tests.contract.conftest import KEPT, LIMIT, WINDOW
from tests.harness import SEARCH, ManualClock

FREE, COUNTED, REFUSED, UNKNOWN = Permission.FREE, Permission.COUNTED, Permission.REFUSED, Permission.UNKNOWN
LAPSE, LIFE = int(WINDOW * MICROSECONDS), int(KEPT * MICROSECONDS)
NOTHING = ContactState()


def new() -> str:
    """Return the id of a new message."""
    return uuid.uuid4().hex


async def attempts(store: ContactStore, sender: str, receiver: str, now: int, count: int) -> list[Permission]:
    return [(await store.take(sender, receiver, new(), now + step, NOTHING)).permission for step in range(count)]


async def test_an_unknown_pair_is_unknown(strangers: ContactStore, clock: ManualClock) -> None:
    now = clock.now()
    for _ in range(LIMIT + 1):
        assert await strangers.take("1", "2", new(), now) == Decision(UNKNOWN)
    assert await attempts(strangers, "1", "2", now, LIMIT + 1) == [COUNTED] * LIMIT + [REFUSED]


async def test_a_rebuilt_state_does_not_replace_a_stored_one(strangers: ContactStore, clock: ManualClock) -> None:
    now = clock.now()
    rebuilt = ContactState(sender="1", count=LIMIT - 1, started=now - 10)
    assert (await strangers.take("1", "2", new(), now, rebuilt)).permission is COUNTED
    assert (await strangers.take("1", "2", new(), now + 1, NOTHING)).permission is REFUSED
    assert (await strangers.take("1", "2", new(), now + 2, ContactState(until=now + LAPSE))).permission is REFUSED
    assert (await strangers.take("1", "2", new(), now + 3)).permission is REFUSED


async def test_a_refusal_from_a_rebuilt_state_is_stored(strangers: ContactStore, clock: ManualClock) -> None:
    now = clock.now()
    rebuilt = ContactState(sender="1", count=LIMIT, started=now - 10)
    assert await strangers.take("1", "2", new(), now, rebuilt) == Decision(REFUSED)
    assert await strangers.take("2", "1", new(), now + 1) == Decision(FREE, unblocked=True)


async def test_a_rebuilt_free_state_applies_to_both_directions(strangers: ContactStore, clock: ManualClock) -> None:
    now = clock.now()
    assert await strangers.take("2", "1", new(), now, ContactState(until=now + 1)) == Decision(FREE)
    assert await attempts(strangers, "1", "2", now + 2, LIMIT + 1) == [FREE] * (LIMIT + 1)


async def test_allow_lets_both_write_freely_for_a_window(strangers: ContactStore, clock: ManualClock) -> None:
    now = clock.now()
    await attempts(strangers, "3", "1", now, LIMIT + 1)
    for one, other in (("1", "2"), ("1", "3")):  # an unknown and a known pair
        await strangers.allow(one, other, now)
        assert (await strangers.take(other, one, new(), now + 1)).permission is FREE
        assert await attempts(strangers, one, other, now + 2, LIMIT + 1) == [FREE] * (LIMIT + 1)
        assert (await strangers.take(one, other, new(), now + 2 * LAPSE)).permission is COUNTED
    assert (await strangers.take("2", "3", new(), now)).permission is UNKNOWN


async def test_an_answer_frees_both_and_unblocks_once(strangers: ContactStore, clock: ManualClock) -> None:
    now = clock.now()
    await attempts(strangers, "1", "2", now, LIMIT + 1)
    assert await strangers.take("2", "1", new(), now + 10) == Decision(FREE, unblocked=True)
    assert await strangers.take("2", "1", new(), now + 11) == Decision(FREE)
    assert await attempts(strangers, "1", "2", now + 12, LIMIT + 1) == [FREE] * (LIMIT + 1)


async def test_a_window_starts_with_the_first_counted_message(strangers: ContactStore, clock: ManualClock) -> None:
    now = clock.now()
    await attempts(strangers, "1", "2", now, LIMIT)
    assert (await strangers.take("1", "2", new(), now + LAPSE - 1)).permission is REFUSED
    assert await attempts(strangers, "1", "2", now + LAPSE, LIMIT + 1) == [COUNTED] * LIMIT + [REFUSED]


async def test_a_free_state_ends_one_window_after_the_last_message(strangers: ContactStore, clock: ManualClock) -> None:
    now = clock.now()
    await strangers.take("1", "2", new(), now, NOTHING)
    await strangers.take("2", "1", new(), now + 1)
    last = now + 1
    for _ in range(3):
        last += LAPSE - 1
        assert (await strangers.take("1", "2", new(), last)).permission is FREE
    ended = last + LAPSE
    assert await attempts(strangers, "1", "2", ended, LIMIT + 1) == [COUNTED] * LIMIT + [REFUSED]


async def test_pairs_do_not_mix(strangers: ContactStore, clock: ManualClock) -> None:
    now = clock.now()
    names = ["1", "2", "12", "1.2", "a", "A", "b", "a.b", "a-b", "a_b", "a@b", "名", "אב", "𠀀", "ß", "ss"]
    pairs = [(one, other) for one in names for other in names if one < other]
    for number, (one, other) in enumerate(pairs):
        sender, receiver = (one, other) if number % 2 else (other, one)
        assert await attempts(strangers, sender, receiver, now, LIMIT + 1) == [COUNTED] * LIMIT + [REFUSED]


async def test_concurrent_attempts_do_not_exceed_the_limit(strangers: ContactStore, clock: ManualClock) -> None:
    now = clock.now()
    rulings = await asyncio.gather(*(strangers.take("1", "2", new(), now + step, NOTHING) for step in range(30)))
    assert [decision.permission for decision in rulings].count(COUNTED) == LIMIT
    assert [decision.permission for decision in rulings].count(REFUSED) == 30 - LIMIT


async def test_concurrent_messages_of_a_pair_count_as_an_answer(strangers: ContactStore, clock: ManualClock) -> None:
    now = clock.now()
    rulings = await asyncio.gather(
        *(strangers.take(*pair, new(), now + step, NOTHING) for step in range(10) for pair in (("1", "2"), ("2", "1")))
    )
    verdicts = [decision.permission for decision in rulings]
    assert verdicts.count(FREE) + verdicts.count(COUNTED) == 20
    assert 1 <= verdicts.count(COUNTED) <= LIMIT


async def test_a_counted_message_is_not_counted_again(strangers: ContactStore, clock: ManualClock) -> None:
    """A retry is allowed whatever was refused meanwhile, and is not counted twice."""
    now = clock.now()
    await strangers.take("1", "2", "one", now, NOTHING)
    for step in range(3):
        assert await strangers.take("1", "2", "one", now + 1 + step) == Decision(COUNTED)
    assert await attempts(strangers, "1", "2", now + 10, LIMIT) == [COUNTED] * (LIMIT - 1) + [REFUSED]
    assert await strangers.take("1", "2", "one", now + 20) == Decision(COUNTED)
    assert await strangers.take("2", "1", new(), now + 21) == Decision(FREE, unblocked=True)


async def test_a_refused_message_is_not_remembered(strangers: ContactStore, clock: ManualClock) -> None:
    now = clock.now()
    await attempts(strangers, "1", "2", now, LIMIT)
    for step in range(3):
        assert await strangers.take("1", "2", "one", now + 10 + step) == Decision(REFUSED)


async def test_a_counted_try_lasts_as_long_as_its_window(strangers: ContactStore, clock: ManualClock) -> None:
    now = clock.now()
    await strangers.take("1", "2", "one", now, NOTHING)
    assert await attempts(strangers, "1", "2", now + LAPSE, LIMIT) == [COUNTED] * LIMIT
    assert await strangers.take("1", "2", "one", now + LAPSE + 10) == Decision(REFUSED)
    await strangers.take("3", "4", "one", now, NOTHING)
    await strangers.take("4", "3", new(), now + 1)  # an answer ends the window too
    ended = now + 1 + LAPSE
    assert await attempts(strangers, "3", "4", ended, LIMIT) == [COUNTED] * LIMIT
    assert await strangers.take("3", "4", "one", ended + 10) == Decision(REFUSED)


async def test_a_counted_try_is_kept_for_the_lifetime_of_messages(strangers: ContactStore, clock: ManualClock) -> None:
    """After the message has expired, sending it again counts like any other message."""
    now = clock.now()
    await strangers.take("1", "2", "one", now, NOTHING)
    assert await strangers.take("1", "2", "one", now + LIFE - 1) == Decision(COUNTED)
    for step in range(3):
        assert await strangers.take("1", "2", "one", now + LIFE + step) == Decision(COUNTED)
    assert await attempts(strangers, "1", "2", now + LIFE + 10, LIMIT) == [COUNTED] * (LIMIT - 2) + [REFUSED] * 2
    assert await strangers.take("1", "2", "one", now + LIFE + 20) == Decision(COUNTED)
    assert await strangers.take("1", "2", "one", now + 2 * LIFE) == Decision(REFUSED)


async def test_a_forgotten_pair_is_unknown(strangers: ContactStore, clock: ManualClock) -> None:
    now = clock.now()
    await strangers.allow("2", "1", now)
    await attempts(strangers, "1", "11", now, LIMIT)
    await attempts(strangers, "11", "2", now, LIMIT)
    await strangers.forget("1", "2")
    await strangers.forget("11", "1")
    await strangers.forget("1", "3")
    assert (await strangers.take("1", "2", new(), now + 5)).permission is UNKNOWN
    assert (await strangers.take("11", "1", new(), now + 5)).permission is UNKNOWN
    assert (await strangers.take("11", "2", new(), now + 5)).permission is REFUSED


async def test_cancelling_a_caller_does_not_affect_others(strangers: ContactStore, clock: ManualClock) -> None:
    now = clock.now()
    tasks = [asyncio.create_task(strangers.take("1", str(2 + number), new(), now, NOTHING)) for number in range(10)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    rulings = await asyncio.gather(*tasks, return_exceptions=True)
    assert rulings[1::2] == [Decision(COUNTED)] * 5


pairs_of_users = (f"u{number}" for number in range(10**9))


steps = st.tuples(st.sampled_from("112"), st.sampled_from("abcdef"), st.sampled_from([1, 10, LIFE, LAPSE // 2, LAPSE]))


@given(st.lists(steps, max_size=15))
@settings(max_examples=30 * SEARCH, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_take_follows_the_rule(
    strangers: ContactStore, clock: ManualClock, talk: list[tuple[str, str, int]]
) -> None:
    one, other = next(pairs_of_users), next(pairs_of_users)
    names = {"1": (one, other), "2": (other, one)}
    state = NOTHING
    for (who, id, _), now in zip(talk, accumulate((gap for *_, gap in talk), initial=clock.now()), strict=False):
        sender, receiver = names[who]
        state, decision = decide(state, sender, now, LIMIT, LAPSE, id, LIFE)
        assert await strangers.take(sender, receiver, id, now, NOTHING) == decision


async def test_an_unavailable_store_raises_store_unavailable(strangers_away: ContactStore) -> None:
    for asked in (
        strangers_away.take("1", "2", new(), 1, NOTHING),
        strangers_away.allow("1", "2", 1),
        strangers_away.forget("1", "2"),
    ):
        with pytest.raises(StoreUnavailable):
            await asked
