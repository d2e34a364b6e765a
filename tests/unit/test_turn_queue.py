"""TurnQueue: one in each turn of the loop, in order."""

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from chat_server.utils.turn_queue import TurnQueue


@given(st.lists(st.booleans(), max_size=30))
@settings(deadline=None)
def test_calls_are_made_in_order_and_one_in_a_turn_whatever_they_raise(fail: list[bool]) -> None:
    """The calls hand over others in their turn, too."""
    made: list[tuple[int, int]] = []  # the number of a call, and in which turn of the loop

    async def go() -> None:
        loop, turn = asyncio.get_running_loop(), 0
        failed: list[object] = []
        loop.set_exception_handler(lambda _, context: failed.append(context["exception"]))
        pace = TurnQueue()

        def call(number: int) -> None:
            made.append((number, turn))
            if number < len(fail):
                pace.call(lambda: made.append((number + len(fail), turn)))
                if fail[number]:
                    raise ValueError(number)

        for number in range(len(fail)):
            pace.call(lambda number=number: call(number))  # type: ignore[misc]
        while len(made) < 2 * len(fail):
            await asyncio.sleep(0)
            turn += 1
        assert [str(error) for error in failed] == [str(number) for number, one in enumerate(fail) if one]

    asyncio.run(go())
    assert [number for number, _ in made] == list(range(2 * len(fail)))
    turns = [turn for _, turn in made]
    assert len(set(turns)) == len(turns)
