"""TurnQueue: one call per loop iteration, in order."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from chat_server.utils.turn_queue import TurnQueue


@given(st.lists(st.booleans(), max_size=30))
def test_calls_run_in_order_one_per_loop_iteration(fail: list[bool]) -> None:
    """This also holds if calls raise errors and submit other calls."""
    made: list[tuple[int, int]] = []  # the number of each call, and its loop iteration

    async def go() -> None:
        loop, turn = asyncio.get_running_loop(), 0
        failed: list[object] = []
        loop.set_exception_handler(lambda _, context: failed.append(context["exception"]))
        queue = TurnQueue()

        def call(number: int) -> None:
            made.append((number, turn))
            if number < len(fail):
                queue.call(lambda: made.append((number + len(fail), turn)))
                if fail[number]:
                    raise ValueError(number)

        for number in range(len(fail)):
            queue.call(lambda number=number: call(number))  # type: ignore[misc]
        while len(made) < 2 * len(fail):
            await asyncio.sleep(0)
            turn += 1
        assert [str(error) for error in failed] == [str(number) for number, one in enumerate(fail) if one]

    asyncio.run(go())
    assert [number for number, _ in made] == list(range(2 * len(fail)))
    turns = [turn for _, turn in made]
    assert len(set(turns)) == len(turns)
