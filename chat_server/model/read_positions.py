"""How confirmed deliveries move the read positions of the members of a group; the same rule for every backend."""

from bisect import bisect_right
from collections.abc import Awaitable, Callable, Mapping, Sequence, Set
from typing import NamedTuple

from chat_server.model.messages import Confirmed

# If a user wrote many messages after the position, the rest of the walk reads this many messages at a time.
PAGE = 1000


class Range(NamedTuple):
    """The messages of a group with times greater than `after`, up to and including `until`."""

    after: int
    until: int


class Move(NamedTuple):
    """The new position of a user, and the last confirmed message that it passed (0: only the user's own)."""

    position: int
    confirmed: int


Row = tuple[int, str]  # the time and the sender of a message that is not deleted
# Returns at most a number of rows at the beginning of each range, in order of time.
ReadRanges = Callable[[Sequence[Range], int], Awaitable[Sequence[Sequence[Row]]]]


async def find_moves(
    confirmed: Mapping[str, Confirmed], stored: Mapping[str, int], read: ReadRanges
) -> dict[str, Move]:
    """Return the move of each user whose position changes. `stored` has the positions of the users that have one.

    Users with the same position share one range. The first read is just long enough for the confirmed messages, so a
    user with an earlier unread message costs little. A user's own messages are passed once and never read again.
    """
    starts = {user: max(stored.get(user, 0), one.since) for user, one in confirmed.items()}
    positions = dict(starts)
    walking = {user for user, one in confirmed.items() if one.times and one.times[-1] > starts[user]}
    times = {user: set(confirmed[user].times) for user in walking}
    limit = 1 + max(map(len, times.values()), default=0)
    while walking:
        ends: dict[int, int] = {}
        for user in walking:
            ends[positions[user]] = max(ends.get(positions[user], 0), confirmed[user].times[-1])
        found = dict(zip(ends, await read([Range(*bounds) for bounds in ends.items()], limit), strict=True))
        for user in list(walking):
            rows, until = found[positions[user]], confirmed[user].times[-1]
            positions[user], ended = walk(rows, positions[user], user, times[user], until)
            if not ended and len(rows) < limit:  # there are no other messages up to `until`
                positions[user], ended = until, True
            if ended:
                walking.remove(user)
        limit = PAGE
    return {
        user: Move(position, _last_passed(confirmed[user].times, starts[user], position))
        for user, position in positions.items()
        if position > starts[user]
    }


def walk(rows: Sequence[Row], position: int, user: str, confirmed: Set[int], until: int) -> tuple[int, bool]:
    """Move `position` over the rows after it: the user's own and the confirmed ones, up to `until`.

    Returns the new position, and whether the walk is over. It ends before the first other message.
    """
    for time, sender in rows:
        if time > until:
            return until, True
        if sender != user and time not in confirmed:
            return position, True
        position = time
    return position, False


def _last_passed(times: Sequence[int], start: int, end: int) -> int:
    """Return the last of the ordered `times` after `start` and up to `end`, 0 if there is none."""
    passed = bisect_right(times, end)
    return times[passed - 1] if passed and times[passed - 1] > start else 0
