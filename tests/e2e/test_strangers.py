"""Harassment interception (protocol section 3, promise 4)."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, closing
from pathlib import Path

import pytest

from tests import raw
from tests.e2e.answers import sql
from tests.harness import ChatClient, Frame, ManualClock, ServerHandle, serving, wait_until

LIMIT = 3
DAY = 86400.0  # the window, in seconds

Lose = Callable[[Path], None]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def server(tmp_path: Path, clock: ManualClock) -> AsyncIterator[ServerHandle]:
    """A server with the users 1 to 3, LIMIT messages to a stranger, and a window of a day."""
    async with serving(tmp_path, clock, StrangerLimit=LIMIT, StrangerWindow=1) as server:
        await server.add_users("1", "2", "3")
        yield server


async def codes(chat: ChatClient, count: int, **keys: str) -> list[int]:
    """The answers to so many messages; live frames are passed over."""
    return [(await chat.send("hello", **keys))["op_type"] for _ in range(count)]


async def through(chat: ChatClient, most: int = LIMIT + 3) -> int:
    """How many messages get through, of `most`."""
    return sum(code in (40018, 40019) for code in await codes(chat, most))


async def stored(chat: ChatClient) -> list[str]:
    frames = await chat.ask(2, "0-200")
    return [frame["id"] for frame in frames if frame["type"] == 2]


async def answers(chat: ChatClient, count: int) -> list[Frame]:
    """The answers to so many messages; passes over live frames and 40021, which may come at any time."""
    found: list[Frame] = []
    while len(found) < count:
        frame = await chat.receive()
        if frame["from"] == "System" and frame["op_type"] != 40021:
            found.append(frame)
    return found


# --- the limit


async def test_a_stranger_gets_limit_messages_through_and_the_next_is_refused(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one, server.chat("2", to="1") as two:
        for number in range(LIMIT):
            assert (await one.send(f"m{number}\nhello"))["op_type"] == 40018
            assert (await two.receive())["id"] == f"m{number}"
        for id in ("next", "next", "another"):
            refusal = await one.send(f"{id}\nhello")
            assert {key: refusal.get(key) for key in ("from", "to", "op_type", "content", "id", "reason")} == {
                "from": "System",
                "to": "1",
                "op_type": 40020,
                "content": "2",
                "id": id,
                "reason": "refused_by_limit",
            }
            assert "time" not in refusal
        await two.expect_nothing()
        assert await stored(two) == [f"m{number}" for number in range(LIMIT)]


async def test_the_limit_is_between_two_and_concerns_no_third(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one, server.chat("3", to="2") as three:
        assert await codes(one, LIMIT + 1) == [40019] * LIMIT + [40020]
        assert await codes(one, LIMIT + 1, to="3") == [40018] * LIMIT + [40020]
        assert await codes(three, LIMIT + 1) == [40019] * LIMIT + [40020]


async def test_five_messages_get_through_unless_it_is_set_otherwise(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        await server.add_users("1", "2")
        async with server.chat("1", to="2") as one:
            assert await codes(one, 7) == [40019] * 5 + [40020] * 2


async def test_a_limit_of_0_turns_it_off(tmp_path: Path) -> None:
    async with serving(tmp_path, StrangerLimit=0) as server:
        await server.add_users("1", "2")
        async with server.chat("1", to="2") as one:
            assert await codes(one, 50) == [40019] * 50


async def test_an_answer_frees_both(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one, server.chat("2", to="1") as two:
        await one.send("hello")
        assert await codes(two, 2 * LIMIT) == [40018] * 2 * LIMIT
        assert await codes(one, 2 * LIMIT) == [40018] * 2 * LIMIT


async def test_the_id_of_a_refused_message_was_not_used(server: ServerHandle) -> None:
    """It was neither stored nor delivered."""
    async with server.chat("1", to="2") as one, server.chat("2", to="1") as two:
        await codes(one, LIMIT)
        assert (await one.send("m1\nrefused"))["op_type"] == 40020
        await two.send("answer")
        assert {(await one.receive())["op_type"] for _ in range(2)} == {40011, 40021}
        assert (await one.send("m1\nanother text"))["op_type"] == 40018
        assert "m1" in await stored(one)


# --- what counts


async def test_refused_messages_and_retries_do_not_count(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one:
        for number in range(LIMIT):
            for _ in range(3):
                assert (await one.send(f"m{number}\nhello"))["op_type"] == 40019
            assert (await one.send(f"m{number}\nanother text"))["reason"] == "id_used"
            for content in ("", "no id!\nhello", "x" * 16385):
                assert (await one.send(content))["op_type"] == 40008
            assert (await one.send("hello", **{"from": "3"}))["op_type"] == 40008
        assert (await one.send("next\nhello"))["op_type"] == 40020
        assert (await one.send("m0\nhello"))["op_type"] == 40019  # a retry is never counted as harassment


async def test_a_message_that_could_not_be_stored_does_not_count_twice_nor_its_retry(tmp_path: Path) -> None:
    async with serving(tmp_path, StoreTimeout=0.3, StrangerLimit=LIMIT) as server:
        await server.add_users("1", "2")
        async with server.chat("1", to="2") as one:
            with closing(sqlite3.connect(tmp_path / "chat.db", isolation_level=None)) as database:
                database.execute("BEGIN IMMEDIATE")  # nobody else can write
                assert (await one.send("m1\nhello"))["reason"] == "store_away"
                database.execute("ROLLBACK")

            async def retried() -> bool:
                return bool((await one.send("m1\nhello"))["op_type"] == 40019)

            await wait_until(retried)
            assert await codes(one, LIMIT) == [40019] * (LIMIT - 1) + [40020]
            assert len(await stored(one)) == LIMIT


async def test_deleting_messages_gives_no_places_back(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one, server.chat("2", to="1") as two:
        for number in range(LIMIT):
            await one.send(f"m{number}\nhello")
        await one.answer(5, "m0\nm1")
        assert (await one.send("next\nhello"))["op_type"] == 40020
        await two.ask(5, "m2")
        assert (await one.send("next\nhello"))["op_type"] == 40020
        assert await stored(one) == []


async def test_a_deleted_message_was_an_answer_all_the_same(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one, server.chat("2", to="1") as two:
        await codes(one, LIMIT)
        await two.send("answer\nhello")
        await two.ask(5, "answer")
        assert await codes(one, 2 * LIMIT) == [40018] * 2 * LIMIT


# --- 40021


async def test_who_had_been_refused_is_told_on_every_socket_that_he_may_write_again(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one, server.chat("2", to="1") as two, server.chat("3") as three:
        await codes(one, LIMIT + 1)
        async with server.chat("1") as other:
            await two.send("answer\nhello")
            for chat in (one, other):
                frames = [await chat.receive() for _ in range(2)]
                assert {frame["op_type"] for frame in frames} == {40011, 40021}
                [again] = [frame for frame in frames if frame["op_type"] == 40021]
                assert (again["from"], again["to"], again["content"]) == ("System", "1", "2")
            await two.send("and again")
            for chat in (one, other):
                assert (await chat.receive())["op_type"] == 40011
                await chat.expect_nothing()
        await three.expect_nothing()


async def test_who_had_not_been_refused_is_told_nothing(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one, server.chat("2", to="1") as two:
        await codes(one, LIMIT)
        await two.send("answer")
        assert (await one.receive())["op_type"] == 40011
        await one.expect_nothing()


async def test_who_is_offline_when_the_answer_comes_is_told_nothing_later(server: ServerHandle) -> None:
    async with server.chat("2", to="1") as two:
        async with server.chat("1", to="2") as one:
            await codes(one, LIMIT + 1)

        async def gone() -> bool:
            [frame] = (await two.ask(7, "-1"))[-2:-1]
            return not frame["online"]

        await wait_until(gone)
        await two.send("answer")
        async with server.chat("1", to="2") as one:
            await one.expect_nothing()
            assert await codes(one, 1) == [40018]


# --- the window


async def test_the_window_begins_with_the_first_message_that_counts(server: ServerHandle, clock: ManualClock) -> None:
    async with server.chat("1", to="2") as one:
        assert await codes(one, 1) == [40019]
        clock.shift += DAY / 2
        assert await codes(one, LIMIT) == [40019] * (LIMIT - 1) + [40020]
        clock.shift += DAY / 2 - 60
        assert await codes(one, 1) == [40020]
        clock.shift += 61
        assert await codes(one, LIMIT + 1) == [40019] * LIMIT + [40020]
        clock.shift += DAY - 60
        assert await codes(one, 1) == [40020]


async def test_neither_a_refused_message_nor_a_retry_begins_a_window(server: ServerHandle, clock: ManualClock) -> None:
    async with server.chat("1", to="2") as one:
        await one.send("m0\nhello")
        clock.shift += DAY + 1
        assert (await one.send("m0\nhello"))["op_type"] == 40019
        assert (await one.send(""))["op_type"] == 40008
        clock.shift += DAY / 2
        assert await codes(one, LIMIT + 1) == [40019] * LIMIT + [40020]
        clock.shift += DAY / 2 + 1
        assert await codes(one, 1) == [40020]


async def test_freedom_lasts_for_a_window_that_each_message_renews(server: ServerHandle, clock: ManualClock) -> None:
    async with server.chat("1", to="2") as one, server.chat("2", to="1") as two:
        await one.send("hello")
        await two.send("answer")
        for _ in range(3):
            clock.shift += DAY - 60
            assert await codes(one, LIMIT + 1) == [40018] * (LIMIT + 1)
        clock.shift += DAY - 60
        assert await codes(two, LIMIT + 1) == [40018] * (LIMIT + 1)


async def test_after_a_window_of_silence_both_are_strangers_again(server: ServerHandle, clock: ManualClock) -> None:
    async with server.chat("1", to="2") as one, server.chat("2", to="1") as two:
        await one.send("hello")
        await two.send("answer")
        clock.shift += DAY + 1
        assert await codes(one, LIMIT + 1) == [40018] * LIMIT + [40020]
        assert await codes(two, LIMIT + 1) == [40018] * (LIMIT + 1)


async def test_freedom_that_many_messages_renewed_outlasts_a_silence_shorter_than_the_window(
    server: ServerHandle, clock: ManualClock
) -> None:
    async with server.chat("1", to="2") as one, server.chat("2", to="1", max_queue=None) as two:
        await one.send("hello")
        await two.send("answer")
        for _ in range(30):
            clock.shift += DAY / 20
            assert await codes(one, 1) == [40018]
        clock.shift += DAY / 2
        assert await codes(one, LIMIT + 1) == [40018] * (LIMIT + 1)


async def test_freedom_is_renewed_also_by_messages_that_come_in_a_run_with_others(
    server: ServerHandle, clock: ManualClock
) -> None:
    for friend in ("2", "3"):
        await server.make_contacts("1", friend)
    async with raw.chat(server, "1") as one:
        for _ in range(30):
            clock.shift += DAY / 20
            await one.write(raw.request(1, "hello", to="2") + raw.request(1, "hello", to="3"))
            assert [(await one.answer())["op_type"] for _ in range(2)] == [40019] * 2
        clock.shift += DAY / 2
        for friend in ("2", "3"):
            sent = [(await one.ask(1, "hello", to=friend))["op_type"] for _ in range(LIMIT + 1)]
            assert sent == [40019] * (LIMIT + 1)


# --- no race


async def test_no_race_of_parallel_sockets_and_retries_gets_one_more_through(server: ServerHandle) -> None:
    async with AsyncExitStack() as stack:
        devices = [await stack.enter_async_context(server.chat("1", to="2")) for _ in range(16)]
        two = await stack.enter_async_context(server.chat("2", to="1"))
        for number, device in enumerate(devices):
            for attempt in (number, number, number + 1, number):  # each id from two sockets, several times
                await device.put(1, f"m{attempt}\nhello")
        answered = [frame for device in devices for frame in await answers(device, 4)]
        acknowledged = {frame["id"] for frame in answered if frame["op_type"] == 40018}
        assert {frame["op_type"] for frame in answered} == {40018, 40020}
        assert len(acknowledged) == LIMIT
        assert {(await two.receive())["id"] for _ in range(LIMIT)} == acknowledged
        await two.expect_nothing()
        assert set(await stored(two)) == acknowledged


async def test_a_burst_gets_no_more_through(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one:
        for number in range(50):
            await one.put(1, f"m{number}\nhello")
        sent = [frame["op_type"] for frame in await answers(one, 50)]
        assert sent == [40019] * LIMIT + [40020] * (50 - LIMIT)


async def test_when_both_begin_at_once_one_is_the_other_s_answer(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one, server.chat("2", to="1") as two:
        first = await asyncio.gather(*(chat.send("hello") for chat in (one, two)))
        assert [frame["op_type"] for frame in first] == [40018, 40018]
        both = await asyncio.gather(*(codes(chat, 2 * LIMIT) for chat in (one, two)))
        assert both == [[40018] * 2 * LIMIT] * 2


async def test_in_a_storm_of_both_sides_nobody_is_refused_for_long(server: ServerHandle) -> None:
    """As soon as the other side sends a message, both talk freely."""
    async with server.chat("1", to="2") as one, server.chat("2", to="1") as two:
        for number in range(20):
            for chat in (one, two):
                await chat.put(1, f"m{number}\nhello")
        for chat in (one, two):
            await answers(chat, 20)
        for chat in (one, two):
            for number in range(LIMIT + 1):
                await chat.put(1, f"later{number}\nhello")
            assert [frame["op_type"] for frame in await answers(chat, LIMIT + 1)] == [40018] * (LIMIT + 1)


# --- a restart, and counters that were lost


def lose_nothing(folder: Path) -> None:
    """The counters are there after a restart."""


def lose_counters(folder: Path) -> None:
    """The counters are gone after a restart."""
    assert sql(folder, "SELECT count(*) FROM strangers") != [(0,)]
    sql(folder, "DELETE FROM strangers")


async def around_a_restart(
    folder: Path,
    before: Callable[[ServerHandle], Awaitable[None]],
    lose: Lose,
    after: Callable[[ServerHandle], Awaitable[None]],
    clock: ManualClock,
) -> None:
    async with serving(folder, clock, StrangerLimit=LIMIT, StrangerWindow=1) as server:
        await server.add_users("1", "2")
        await before(server)
    lose(folder)
    async with serving(folder, clock, StrangerLimit=LIMIT, StrangerWindow=1) as later:
        later.tokens = server.tokens
        await after(later)


either = pytest.mark.parametrize("lose", [lose_nothing, lose_counters])


@either
@pytest.mark.parametrize("used", [1, LIMIT])
async def test_a_stranger_gets_no_more_through_after_a_restart(
    tmp_path: Path, clock: ManualClock, lose: Lose, used: int
) -> None:
    async def before(server: ServerHandle) -> None:
        async with server.chat("1", to="2") as one:
            assert await codes(one, used) == [40019] * used
        clock.shift += DAY / 2

    async def after(server: ServerHandle) -> None:
        async with server.chat("1", to="2") as one:
            assert await through(one) == LIMIT - used
            clock.shift += DAY / 2 - 60
            assert await through(one) == 0
            clock.shift += 61
            assert await through(one) == LIMIT

    await around_a_restart(tmp_path, before, lose, after, clock)


@either
async def test_friends_stay_free_after_a_restart(tmp_path: Path, clock: ManualClock, lose: Lose) -> None:
    async def before(server: ServerHandle) -> None:
        await server.make_contacts("1", "2")
        clock.shift += DAY / 2

    async def after(server: ServerHandle) -> None:
        async with server.chat("1", to="2") as one, server.chat("2", to="1") as two:
            assert await codes(one, 2 * LIMIT) == [40018] * 2 * LIMIT
            assert await codes(two, 2 * LIMIT) == [40018] * 2 * LIMIT

    await around_a_restart(tmp_path, before, lose, after, clock)


@either
async def test_friends_of_whom_one_wrote_much_stay_free_after_a_restart(
    tmp_path: Path, clock: ManualClock, lose: Lose
) -> None:
    async def before(server: ServerHandle) -> None:
        await server.make_contacts("1", "2")
        async with server.chat("1", to="2") as one:
            assert await codes(one, 3 * LIMIT) == [40019] * 3 * LIMIT

    async def after(server: ServerHandle) -> None:
        async with server.chat("1", to="2") as one:
            assert await codes(one, 2 * LIMIT) == [40019] * 2 * LIMIT

    await around_a_restart(tmp_path, before, lose, after, clock)


@either
async def test_friends_of_whom_one_wrote_alone_of_late_stay_free_after_a_restart(
    tmp_path: Path, clock: ManualClock, lose: Lose
) -> None:
    """Within the window, renewed by each message."""

    async def before(server: ServerHandle) -> None:
        await server.make_contacts("1", "2")
        async with server.chat("1", to="2") as one:
            for _ in range(2):
                clock.shift += 0.6 * DAY
                assert await codes(one, 1) == [40019]

    async def after(server: ServerHandle) -> None:
        async with server.chat("1", to="2") as one:
            assert await codes(one, LIMIT + 1) == [40019] * (LIMIT + 1)

    await around_a_restart(tmp_path, before, lose, after, clock)


@either
async def test_freedom_that_was_renewed_lasts_after_a_restart(tmp_path: Path, clock: ManualClock, lose: Lose) -> None:
    """A window from the last message on, not from one of those before it."""

    async def before(server: ServerHandle) -> None:
        await server.make_contacts("1", "2")
        async with server.chat("1", to="2") as one, server.chat("2", to="1") as two:
            clock.shift += 0.08 * DAY
            await one.send("hello")
            await two.send("hello")

    async def after(server: ServerHandle) -> None:
        async with server.chat("1", to="2") as one:
            clock.shift += 0.97 * DAY
            assert await codes(one, LIMIT + 1) == [40019] * (LIMIT + 1)

    await around_a_restart(tmp_path, before, lose, after, clock)


@either
async def test_deleted_messages_count_after_a_restart(tmp_path: Path, clock: ManualClock, lose: Lose) -> None:
    async def before(server: ServerHandle) -> None:
        async with server.chat("1", to="2") as one:
            for number in range(LIMIT):
                await one.send(f"m{number}\nhello")
            await one.answer(5, "\n".join(f"m{number}" for number in range(LIMIT)))

    async def after(server: ServerHandle) -> None:
        async with server.chat("1", to="2") as one:
            assert await through(one) == 0

    await around_a_restart(tmp_path, before, lose, after, clock)


@either
async def test_an_answer_after_a_restart_frees_both(tmp_path: Path, clock: ManualClock, lose: Lose) -> None:
    async def before(server: ServerHandle) -> None:
        async with server.chat("1", to="2") as one:
            await codes(one, LIMIT)

    async def after(server: ServerHandle) -> None:
        async with server.chat("1", to="2") as one, server.chat("2", to="1") as two:
            assert await codes(one, 1) == [40020]
            assert await codes(two, LIMIT + 1) == [40018] * (LIMIT + 1)
            while (frame := await one.receive())["op_type"] != 40021:
                assert frame["op_type"] == 40011
            assert frame["content"] == "2"
            assert await codes(one, LIMIT + 1) == [40018] * (LIMIT + 1)

    await around_a_restart(tmp_path, before, lose, after, clock)


async def test_who_had_been_refused_before_a_restart_is_told(tmp_path: Path, clock: ManualClock) -> None:
    """A sender that had been refused gets 40021 on the sockets it then has."""

    async def before(server: ServerHandle) -> None:
        async with server.chat("1", to="2") as one:
            await codes(one, LIMIT + 1)

    async def after(server: ServerHandle) -> None:
        async with server.chat("1", to="2") as one, server.chat("2", to="1") as two:
            await two.send("answer")
            assert {(await one.receive())["op_type"] for _ in range(2)} == {40011, 40021}

    await around_a_restart(tmp_path, before, lose_nothing, after, clock)


@either
async def test_strangers_again_after_a_window_of_silence_and_a_restart(
    tmp_path: Path, clock: ManualClock, lose: Lose
) -> None:
    async def before(server: ServerHandle) -> None:
        await server.make_contacts("1", "2")
        clock.shift += DAY + 1

    async def after(server: ServerHandle) -> None:
        async with server.chat("1", to="2") as one:
            assert await through(one) == LIMIT

    await around_a_restart(tmp_path, before, lose, after, clock)


async def test_no_race_gets_one_more_through_while_lost_counters_are_rebuilt(
    tmp_path: Path, clock: ManualClock
) -> None:
    async def before(server: ServerHandle) -> None:
        async with server.chat("1", to="2") as one:
            await codes(one, 1)

    async def after(server: ServerHandle) -> None:
        async with AsyncExitStack() as stack:
            devices = [await stack.enter_async_context(server.chat("1", to="2")) for _ in range(10)]
            sent = await asyncio.gather(*(codes(device, 2) for device in devices))
            assert sum(each.count(40019) for each in sent) == LIMIT - 1
            assert len(await stored(devices[0])) == LIMIT

    await around_a_restart(tmp_path, before, lose_counters, after, clock)
