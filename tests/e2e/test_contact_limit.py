"""The contact limit: harassment interception (protocol section 3, promise 4)."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path

import pytest

from tests import raw
from tests.e2e.http_helpers import sql
from tests.harness import ChatClient, Frame, ManualClock, ServerHandle, serving, wait_until

LIMIT = 3
DAY = 86400.0  # the window in seconds

DropCounters = Callable[[Path], None]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def server(tmp_path: Path, clock: ManualClock) -> AsyncIterator[ServerHandle]:
    """A server with the users 1 to 3, a contact limit of LIMIT messages and a window of one day."""
    async with serving(tmp_path, clock, users=("1", "2", "3"), StrangerLimit=LIMIT, StrangerWindow=1) as server:
        yield server


async def codes(chat: ChatClient, count: int, **keys: str) -> list[int]:
    """Send `count` messages; return the codes of the answers without live frames."""
    return [(await chat.send("hello", **keys))["op_type"] for _ in range(count)]


async def accepted(chat: ChatClient, count: int = LIMIT + 3) -> int:
    """Send `count` messages; return how many are accepted."""
    return sum(code in (40018, 40019) for code in await codes(chat, count))


async def stored(chat: ChatClient) -> list[str]:
    frames = await chat.ask(2, "0-200")
    return [frame["id"] for frame in frames if frame["type"] == 2]


async def answers(chat: ChatClient, count: int) -> list[Frame]:
    """Send `count` messages; return the answers without live frames and without 40021, which may arrive at any time."""
    found: list[Frame] = []
    while len(found) < count:
        frame = await chat.receive()
        if frame["from"] == "System" and frame["op_type"] != 40021:
            found.append(frame)
    return found


# --- the limit


async def test_a_stranger_may_send_limit_messages(server: ServerHandle) -> None:
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


async def test_the_limit_applies_per_pair_of_users(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one, server.chat("3", to="2") as three:
        assert await codes(one, LIMIT + 1) == [40019] * LIMIT + [40020]
        assert await codes(one, LIMIT + 1, to="3") == [40018] * LIMIT + [40020]
        assert await codes(three, LIMIT + 1) == [40019] * LIMIT + [40020]


async def test_the_default_limit_is_five_messages(tmp_path: Path) -> None:
    async with serving(tmp_path, users=("1", "2")) as server, server.chat("1", to="2") as one:
        assert await codes(one, 7) == [40019] * 5 + [40020] * 2


async def test_a_limit_of_0_turns_it_off(tmp_path: Path) -> None:
    async with serving(tmp_path, users=("1", "2"), StrangerLimit=0) as server, server.chat("1", to="2") as one:
        assert await codes(one, 50) == [40019] * 50


async def test_an_answer_lifts_the_limit_for_both(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one, server.chat("2", to="1") as two:
        await one.send("hello")
        assert await codes(two, 2 * LIMIT) == [40018] * 2 * LIMIT
        assert await codes(one, 2 * LIMIT) == [40018] * 2 * LIMIT


async def test_a_refused_message_does_not_use_its_id(server: ServerHandle) -> None:
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
        assert (await one.send("m0\nhello"))["op_type"] == 40019  # a retry never counts


async def test_a_message_that_was_not_stored_counts_once(tmp_path: Path) -> None:
    """Its retry does not count again."""
    async with (
        serving(tmp_path, users=("1", "2"), StoreTimeout=3, StrangerLimit=LIMIT) as server,
        server.chat("1", to="2") as one,
    ):
        with closing(sqlite3.connect(tmp_path / "chat.db", isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")  # blocks all other writers
            assert (await one.send("m1\nhello"))["reason"] == "store_away"
            database.execute("ROLLBACK")

        async def retried() -> bool:
            return bool((await one.send("m1\nhello"))["op_type"] == 40019)

        await wait_until(retried)
        assert await codes(one, LIMIT) == [40019] * (LIMIT - 1) + [40020]
        assert len(await stored(one)) == LIMIT


async def test_deleting_messages_does_not_reset_the_count(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one, server.chat("2", to="1") as two:
        for number in range(LIMIT):
            await one.send(f"m{number}\nhello")
        await one.answer(5, "m0\nm1")
        assert (await one.send("next\nhello"))["op_type"] == 40020
        await two.ask(5, "m2")
        assert (await one.send("next\nhello"))["op_type"] == 40020
        assert await stored(one) == []


async def test_a_deleted_message_still_counts_as_an_answer(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one, server.chat("2", to="1") as two:
        await codes(one, LIMIT)
        await two.send("answer\nhello")
        await two.ask(5, "answer")
        assert await codes(one, 2 * LIMIT) == [40018] * 2 * LIMIT


# --- 40021


async def test_a_refused_sender_gets_40021_on_every_socket(server: ServerHandle) -> None:
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


async def test_a_sender_that_was_not_refused_gets_no_40021(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one, server.chat("2", to="1") as two:
        await codes(one, LIMIT)
        await two.send("answer")
        assert (await one.receive())["op_type"] == 40011
        await one.expect_nothing()


async def test_an_offline_sender_gets_no_40021_later(server: ServerHandle) -> None:
    async with server.chat("2", to="1") as two:
        async with server.chat("1", to="2") as one:
            await codes(one, LIMIT + 1)

        async def offline() -> bool:
            [frame] = (await two.ask(7, "-1"))[-2:-1]
            return not frame["online"]

        await wait_until(offline)
        await two.send("answer")
        async with server.chat("1", to="2") as one:
            await one.expect_nothing()
            assert await codes(one, 1) == [40018]


# --- the window


async def test_the_window_begins_with_the_first_counted_message(server: ServerHandle, clock: ManualClock) -> None:
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


async def test_refused_messages_and_retries_begin_no_window(server: ServerHandle, clock: ManualClock) -> None:
    async with server.chat("1", to="2") as one:
        await one.send("m0\nhello")
        clock.shift += DAY + 1
        assert (await one.send("m0\nhello"))["op_type"] == 40019
        assert (await one.send(""))["op_type"] == 40008
        clock.shift += DAY / 2
        assert await codes(one, LIMIT + 1) == [40019] * LIMIT + [40020]
        clock.shift += DAY / 2 + 1
        assert await codes(one, 1) == [40020]


async def test_each_message_of_contacts_renews_their_window(server: ServerHandle, clock: ManualClock) -> None:
    async with server.chat("1", to="2") as one, server.chat("2", to="1") as two:
        await one.send("hello")
        await two.send("answer")
        for _ in range(3):
            clock.shift += DAY - 60
            assert await codes(one, LIMIT + 1) == [40018] * (LIMIT + 1)
        clock.shift += DAY - 60
        assert await codes(two, LIMIT + 1) == [40018] * (LIMIT + 1)


async def test_refused_messages_and_retries_renew_no_window(server: ServerHandle, clock: ManualClock) -> None:
    async with server.chat("1", to="2") as one, server.chat("2", to="1") as two:
        await one.send("hello")
        await two.send("answer")
        assert (await one.send("m0\nhello"))["op_type"] == 40018
        clock.shift += DAY / 2
        assert (await one.send("m0\nhello"))["op_type"] == 40018
        assert (await one.send("m0\nother"))["reason"] == "id_used"
        assert (await one.send(""))["reason"] == "empty"
        clock.shift += DAY / 2 + 1
        assert await codes(one, LIMIT + 1) == [40018] * LIMIT + [40020]


async def test_contacts_become_strangers_after_a_silent_window(server: ServerHandle, clock: ManualClock) -> None:
    async with server.chat("1", to="2") as one, server.chat("2", to="1") as two:
        await one.send("hello")
        await two.send("answer")
        clock.shift += DAY + 1
        assert await codes(one, LIMIT + 1) == [40018] * LIMIT + [40020]
        assert await codes(two, LIMIT + 1) == [40018] * (LIMIT + 1)


async def test_contacts_stay_contacts_after_a_short_silence(server: ServerHandle, clock: ManualClock) -> None:
    """The silence is shorter than the window, and many messages renewed the window before."""
    async with server.chat("1", to="2") as one, server.chat("2", to="1", max_queue=None) as two:
        await one.send("hello")
        await two.send("answer")
        for _ in range(30):
            clock.shift += DAY / 20
            assert await codes(one, 1) == [40018]
        clock.shift += DAY / 2
        assert await codes(one, LIMIT + 1) == [40018] * (LIMIT + 1)


async def test_messages_in_a_mixed_batch_renew_the_window(server: ServerHandle, clock: ManualClock) -> None:
    for contact in ("2", "3"):
        await server.make_contacts("1", contact)
    async with raw.chat(server, "1") as one:
        for _ in range(30):
            clock.shift += DAY / 20
            await one.write(raw.request(1, "hello", to="2") + raw.request(1, "hello", to="3"))
            assert [(await one.answer())["op_type"] for _ in range(2)] == [40019] * 2
        clock.shift += DAY / 2
        for contact in ("2", "3"):
            sent = [(await one.ask(1, "hello", to=contact))["op_type"] for _ in range(LIMIT + 1)]
            assert sent == [40019] * (LIMIT + 1)


# --- no race


async def test_parallel_sends_and_retries_do_not_exceed_the_limit(server: ServerHandle) -> None:
    async with AsyncExitStack() as stack:
        devices = [await stack.enter_async_context(server.chat("1", to="2")) for _ in range(16)]
        two = await stack.enter_async_context(server.chat("2", to="1"))
        for number, device in enumerate(devices):
            for attempt in (number, number, number + 1, number):  # two sockets send each id several times
                await device.put(1, f"m{attempt}\nhello")
        answered = [frame for device in devices for frame in await answers(device, 4)]
        acknowledged = {frame["id"] for frame in answered if frame["op_type"] == 40018}
        assert {frame["op_type"] for frame in answered} == {40018, 40020}
        assert len(acknowledged) == LIMIT
        assert {(await two.receive())["id"] for _ in range(LIMIT)} == acknowledged
        await two.expect_nothing()
        assert set(await stored(two)) == acknowledged


async def test_a_burst_does_not_exceed_the_limit(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one:
        for number in range(50):
            await one.put(1, f"m{number}\nhello")
        sent = [frame["op_type"] for frame in await answers(one, 50)]
        assert sent == [40019] * LIMIT + [40020] * (50 - LIMIT)


async def test_simultaneous_first_messages_answer_each_other(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one, server.chat("2", to="1") as two:
        first = await asyncio.gather(*(chat.send("hello") for chat in (one, two)))
        assert [frame["op_type"] for frame in first] == [40018, 40018]
        both = await asyncio.gather(*(codes(chat, 2 * LIMIT) for chat in (one, two)))
        assert both == [[40018] * 2 * LIMIT] * 2


async def test_no_user_stays_refused_when_both_send_many_messages(server: ServerHandle) -> None:
    """As soon as both users have sent a message, the limit no longer applies to them."""
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


# --- restarts and lost counters


def keep_counters(folder: Path) -> None:
    """Keep the counters over the restart."""


def drop_counters(folder: Path) -> None:
    """Delete the counters, so that the server must rebuild them from the messages."""
    assert sql(folder, "SELECT count(*) FROM strangers") != [(0,)]
    sql(folder, "DELETE FROM strangers")


@asynccontextmanager
async def limited_server(
    folder: Path, clock: ManualClock, tokens: Mapping[str, str] | None = None
) -> AsyncIterator[ServerHandle]:
    """Run a server with the users 1 and 2 and the contact limit. After a restart, `tokens` are their sessions."""
    users = () if tokens else ("1", "2")
    async with serving(folder, clock, users=users, StrangerLimit=LIMIT, StrangerWindow=1) as server:
        server.tokens |= tokens or {}
        yield server


with_and_without_counters = pytest.mark.parametrize("drop", [keep_counters, drop_counters])


@with_and_without_counters
@pytest.mark.parametrize("used", [1, LIMIT])
async def test_the_contact_limit_holds_after_a_restart(
    tmp_path: Path, clock: ManualClock, drop: DropCounters, used: int
) -> None:
    async with limited_server(tmp_path, clock) as server:
        async with server.chat("1", to="2") as one:
            assert await codes(one, used) == [40019] * used
        clock.shift += DAY / 2
    drop(tmp_path)
    async with limited_server(tmp_path, clock, server.tokens) as server, server.chat("1", to="2") as one:
        assert await accepted(one) == LIMIT - used
        clock.shift += DAY / 2 - 60
        assert await accepted(one) == 0
        clock.shift += 61
        assert await accepted(one) == LIMIT


@with_and_without_counters
async def test_contacts_stay_contacts_after_a_restart(tmp_path: Path, clock: ManualClock, drop: DropCounters) -> None:
    async with limited_server(tmp_path, clock) as server:
        await server.make_contacts("1", "2")
        clock.shift += DAY / 2
    drop(tmp_path)
    async with (
        limited_server(tmp_path, clock, server.tokens) as server,
        server.chat("1", to="2") as one,
        server.chat("2", to="1") as two,
    ):
        assert await codes(one, 2 * LIMIT) == [40018] * 2 * LIMIT
        assert await codes(two, 2 * LIMIT) == [40018] * 2 * LIMIT


@with_and_without_counters
async def test_a_restart_keeps_contacts_with_one_busy_sender(
    tmp_path: Path, clock: ManualClock, drop: DropCounters
) -> None:
    async with limited_server(tmp_path, clock) as server:
        await server.make_contacts("1", "2")
        async with server.chat("1", to="2") as one:
            assert await codes(one, 3 * LIMIT) == [40019] * 3 * LIMIT
    drop(tmp_path)
    async with limited_server(tmp_path, clock, server.tokens) as server, server.chat("1", to="2") as one:
        assert await codes(one, 2 * LIMIT) == [40019] * 2 * LIMIT


@with_and_without_counters
async def test_a_restart_keeps_contacts_with_one_recent_sender(
    tmp_path: Path, clock: ManualClock, drop: DropCounters
) -> None:
    """Each message renews the window."""

    async with limited_server(tmp_path, clock) as server:
        await server.make_contacts("1", "2")
        async with server.chat("1", to="2") as one:
            for _ in range(2):
                clock.shift += 0.6 * DAY
                assert await codes(one, 1) == [40019]
    drop(tmp_path)
    async with limited_server(tmp_path, clock, server.tokens) as server, server.chat("1", to="2") as one:
        assert await codes(one, LIMIT + 1) == [40019] * (LIMIT + 1)


@with_and_without_counters
async def test_a_restart_keeps_the_renewed_window(tmp_path: Path, clock: ManualClock, drop: DropCounters) -> None:
    """The window begins with the last message, not with an earlier one."""

    async with limited_server(tmp_path, clock) as server:
        await server.make_contacts("1", "2")
        async with server.chat("1", to="2") as one, server.chat("2", to="1") as two:
            clock.shift += 0.08 * DAY
            await one.send("hello")
            await two.send("hello")
    drop(tmp_path)
    async with limited_server(tmp_path, clock, server.tokens) as server, server.chat("1", to="2") as one:
        clock.shift += 0.97 * DAY
        assert await codes(one, LIMIT + 1) == [40019] * (LIMIT + 1)


@with_and_without_counters
async def test_deleted_messages_count_after_a_restart(tmp_path: Path, clock: ManualClock, drop: DropCounters) -> None:
    async with limited_server(tmp_path, clock) as server, server.chat("1", to="2") as one:
        for number in range(LIMIT):
            await one.send(f"m{number}\nhello")
        await one.answer(5, "\n".join(f"m{number}" for number in range(LIMIT)))
    drop(tmp_path)
    async with limited_server(tmp_path, clock, server.tokens) as server, server.chat("1", to="2") as one:
        assert await accepted(one) == 0


@with_and_without_counters
async def test_an_answer_after_a_restart_lifts_the_limit(
    tmp_path: Path, clock: ManualClock, drop: DropCounters
) -> None:
    async with limited_server(tmp_path, clock) as server, server.chat("1", to="2") as one:
        await codes(one, LIMIT)
    drop(tmp_path)
    async with (
        limited_server(tmp_path, clock, server.tokens) as server,
        server.chat("1", to="2") as one,
        server.chat("2", to="1") as two,
    ):
        assert await codes(one, 1) == [40020]
        assert await codes(two, LIMIT + 1) == [40018] * (LIMIT + 1)
        while (frame := await one.receive())["op_type"] != 40021:
            assert frame["op_type"] == 40011
        assert frame["content"] == "2"
        assert await codes(one, LIMIT + 1) == [40018] * (LIMIT + 1)


async def test_a_sender_refused_before_a_restart_gets_40021(tmp_path: Path, clock: ManualClock) -> None:
    """A refused sender gets 40021 on its current sockets."""

    async with limited_server(tmp_path, clock) as server, server.chat("1", to="2") as one:
        await codes(one, LIMIT + 1)
    keep_counters(tmp_path)
    async with (
        limited_server(tmp_path, clock, server.tokens) as server,
        server.chat("1", to="2") as one,
        server.chat("2", to="1") as two,
    ):
        await two.send("answer")
        assert {(await one.receive())["op_type"] for _ in range(2)} == {40011, 40021}


@with_and_without_counters
async def test_a_silent_window_and_a_restart_make_strangers(
    tmp_path: Path, clock: ManualClock, drop: DropCounters
) -> None:
    async with limited_server(tmp_path, clock) as server:
        await server.make_contacts("1", "2")
        clock.shift += DAY + 1
    drop(tmp_path)
    async with limited_server(tmp_path, clock, server.tokens) as server, server.chat("1", to="2") as one:
        assert await accepted(one) == LIMIT


async def test_the_limit_holds_while_counters_are_rebuilt(tmp_path: Path, clock: ManualClock) -> None:
    async with limited_server(tmp_path, clock) as server, server.chat("1", to="2") as one:
        await codes(one, 1)
    drop_counters(tmp_path)
    async with limited_server(tmp_path, clock, server.tokens) as server, AsyncExitStack() as stack:
        devices = [await stack.enter_async_context(server.chat("1", to="2")) for _ in range(10)]
        sent = await asyncio.gather(*(codes(device, 2) for device in devices))
        assert sum(each.count(40019) for each in sent) == LIMIT - 1
        assert len(await stored(devices[0])) == LIMIT
