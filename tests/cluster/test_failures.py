"""Processes fail, miss notifications or have wrong clocks, under traffic (tests/cluster/traffic.py).

No acknowledged message is lost, duplicated or reordered; receivers get their messages without any action; no process
exits.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from chat_server.api.connection_manager import CLOSING_SECONDS
from chat_server.service.presence import GRACE_SECONDS
from tests import raw
from tests.cluster.harness import (
    FREEZE_SECONDS,
    Databases,
    ServerProcess,
    cluster,
    is_online,
    receive_ids,
    within,
)
from tests.cluster.traffic import LIVE_SECONDS, USERS, pairs_of, serving, traffic
from tests.e2e.http_helpers import check_success, post
from tests.e2e.test_blocks import block
from tests.faults.stores import history

# The program (run.py) of an earlier version that supports several processes.
OLD_VERSION = os.environ.get("CHAT_TEST_OLD_VERSION")


# --- a process


async def test_a_message_stored_but_not_published_arrives(databases: Databases, tmp_path: Path) -> None:
    """The process is killed in between. The receiver, on another process, does nothing for it."""
    async with (
        cluster(tmp_path, databases, 3, users=USERS, StrangerLimit=0) as three,
        three[1].chat("2", "1") as two,
        three[2].chat("1", "2") as witness,
    ):
        async with three[0].chat("1", "2") as one, three[0].redis.holding(b"unpublished") as held:
            await one.put(1, "m1\nunpublished")
            await held.wait()

            async def stored() -> bool:
                return "m1\nunpublished" in await history(witness)

            await within(5, "the message is stored", stored)
            await three[0].kill()
        async with asyncio.timeout(LIVE_SECONDS):
            assert await receive_ids(two, 1) == ["m1"]
        retry = await witness.send("m1\nunpublished")
        assert retry["op_type"] in (40018, 40019)
        await two.expect_nothing()
        assert (await history(witness)).count("m1\nunpublished") == 1


async def test_a_process_without_redis_is_killed(databases: Databases, tmp_path: Path) -> None:
    """It stores messages until its lease ends, but cannot publish them. It is killed before it reaches Redis again."""
    async with serving(databases, tmp_path) as three, three[1].chat("2", "1") as two:
        async with three[0].chat("1", "2") as one, three[0].redis.unreachable():
            await asyncio.sleep(3)  # the other processes have read again, because this one no longer listens
            assert (await one.send("m1\nunpublished"))["op_type"] == 40019
            await two.expect_nothing()
            await three[0].kill()
        async with asyncio.timeout(FREEZE_SECONDS + 2):
            assert await receive_ids(two, 1) == ["m1"]
        await three[0].start()


async def test_a_killed_process_loses_and_reorders_nothing(databases: Databases, tmp_path: Path) -> None:
    """One after the other is killed under traffic and started again."""
    async with serving(databases, tmp_path) as three, traffic(three, pairs_of(three, USERS)):
        for process in dict.fromkeys(three):
            await asyncio.sleep(1)
            await process.kill()
            await asyncio.sleep(2)
            await process.start()


async def test_a_frozen_process_loses_and_reorders_nothing(databases: Databases, tmp_path: Path) -> None:
    """For longer than a lease. What its sockets sent in the meantime is refused or stored, never both."""
    async with serving(databases, tmp_path) as three, traffic(three, pairs_of(three, USERS)):
        await asyncio.sleep(1)
        async with three[2].frozen():
            await asyncio.sleep(FREEZE_SECONDS + 2)


async def test_a_frozen_process_processes_no_buffered_frame(databases: Databases, tmp_path: Path) -> None:
    """It answers store_away to what arrived after its lease; the sockets stay open."""
    async with (
        serving(databases, tmp_path) as three,
        three[2].chat("1", "2") as one,
        three[0].chat("2", "1") as two,
    ):
        async with three[2].frozen():
            await asyncio.sleep(FREEZE_SECONDS)
            await one.put(1, "m1\nbuffered")
        answer = await one.receive()
        assert (answer["op_type"], answer.get("reason")) == (40008, "store_away")
        await two.expect_nothing()


async def test_a_message_checked_before_a_lapse_is_not_delivered(databases: Databases, tmp_path: Path) -> None:
    """Its receiver blocks the sender meanwhile, so it is refused, although it is stored after the lapse."""
    async with (
        serving(databases, tmp_path, StoreTimeout=60) as three,
        three[0].chat("1", "2") as one,
        three[0].chat("2", "1") as two,
    ):
        async with three[0].mongodb.holding(b"checked before") as held:
            await one.put(1, "m1\nchecked before")
            await held.wait()
            async with three[0].frozen():
                await asyncio.sleep(FREEZE_SECONDS)
                await block(three[1], "2", "1")

            async def joined() -> bool:
                return "node joined again" in three[0].log.read_text()

            await within(LIVE_SECONDS, "the process joins again", joined)
        answer = await one.receive()
        assert (answer["op_type"], answer.get("reason")) == (40008, "store_away")
        await two.expect_nothing()


@pytest.mark.parametrize(("op", "content"), [(2, "-200"), (3, "")])
async def test_a_page_in_progress_stops_at_a_lapse(databases: Databases, tmp_path: Path, op: int, content: str) -> None:
    """The process is frozen in the middle of a page that its client does not read. It sends no further message."""
    count = 200
    async with serving(databases, tmp_path, HeartbeatSeconds=60) as three:
        await raw.store_messages(three[0], "1", "2", count)
        async with raw.chat(three[2], "2", to="1", buffer=4096) as two:
            await two.put(op, content)
            await two.wait_stalled()
            async with three[2].frozen():
                await asyncio.sleep(FREEZE_SECONDS)
            frames = [await two.receive()]
            while frames[-1]["from"] != "System":
                frames.append(await two.receive())
            assert (frames[-1]["op_type"], frames[-1].get("reason")) == (40004, "store_away")
            assert len(frames) <= count


async def test_a_rolling_restart_loses_and_reorders_nothing(databases: Databases, tmp_path: Path) -> None:
    """From the version in CHAT_TEST_OLD_VERSION to this one, if it is set."""
    async with serving(databases, tmp_path) as three:
        if OLD_VERSION:
            await three.rolling_restart(Path(OLD_VERSION))
        async with traffic(three, pairs_of(three, USERS)):
            await asyncio.sleep(1)
            await three.rolling_restart()
            await asyncio.sleep(1)


# --- gaps


@asynccontextmanager
async def unable_to_read_again(process: ServerProcess) -> AsyncIterator[None]:
    """Let a process subscribe again, which is a gap, while it cannot reach MongoDB."""
    network = process.redis
    before = network.subscriptions()

    async def subscribed() -> bool:
        return bool(network.subscriptions()) and network.subscriptions() != before

    async with process.mongodb.unreachable():
        network.cut(before)
        await within(LIVE_SECONDS, "the process subscribes again", subscribed)
        await asyncio.sleep(1)
        yield


async def test_a_gap_while_mongodb_is_away(databases: Databases, tmp_path: Path) -> None:
    """Messages wait in order until MongoDB is back, also after a second gap. A logout does not wait."""
    async with (
        serving(databases, tmp_path) as three,
        three[0].chat("1", "2") as one,
        three[1].chat("2", "1") as two,
        three[1].chat("3", "1") as leaving,
    ):
        network = three[1].redis
        async with network.half_open(network.subscriptions()):
            assert (await one.send("m0\nhello"))["op_type"] == 40018  # accepted by a deaf process
            async with unable_to_read_again(three[1]):
                for number in range(1, 20):
                    assert (await one.send(f"m{number}\nhello"))["op_type"] == 40018
                network.cut(network.subscriptions())
                async with asyncio.timeout(5):
                    check_success(await post(three[0], "/user/logout", three.tokens["3"], user_name="3"), 41015)
                    assert await leaving.wait_closed() == 4001
                await two.expect_nothing()
            async with asyncio.timeout(LIVE_SECONDS):
                assert await receive_ids(two, 20) == [f"m{number}" for number in range(20)]
        await asyncio.sleep(2)
        await two.expect_nothing()


async def test_a_block_stops_messages_that_wait_for_a_gap(databases: Databases, tmp_path: Path) -> None:
    """After its answer, neither messages that are read again nor those that arrived meanwhile are delivered."""
    async with (
        serving(databases, tmp_path) as three,
        three[0].chat("1", "2") as one,
        three[0].chat("3", "2") as other,
        three[1].chat("2", "1") as two,
    ):
        network = three[1].redis
        async with network.half_open(network.subscriptions()):
            assert (await one.send("m0\nhello"))["op_type"] == 40018
            async with unable_to_read_again(three[1]):
                assert (await one.send("m1\nhello"))["op_type"] == 40018
                async with asyncio.timeout(5):
                    await block(three[0], "2", "1")
                assert (await other.send("m2\nhello"))["op_type"] == 40018
            assert await receive_ids(two, 1) == ["m2"]
        await two.expect_nothing()


async def test_messages_of_a_deaf_time_arrive_late(databases: Databases, tmp_path: Path) -> None:
    """While the receiver's process is deaf, a message is stored and acknowledged; it arrives without any action."""
    async with (
        serving(databases, tmp_path) as three,
        three[0].chat("1", "2") as one,
        three[1].chat("2", "1") as two,
    ):
        network = three[1].redis
        async with network.half_open(network.subscriptions()):
            for number in range(20):
                assert (await one.send(f"m{number}\nhello"))["op_type"] in (40018, 40019)
            async with asyncio.timeout(LIVE_SECONDS):
                assert await receive_ids(two, 20) == [f"m{number}" for number in range(20)]
        await asyncio.sleep(3)
        await two.expect_nothing()


async def test_a_message_read_elsewhere_arrives_after_a_gap(databases: Databases, tmp_path: Path) -> None:
    """Another device confirms it meanwhile. A socket that opened later got it from the history, and gets it no more."""
    async with (
        serving(databases, tmp_path) as three,
        three[0].chat("1", "2") as one,
        three[0].chat("2", "1") as device,
        three[1].chat("2", "1") as deaf,
    ):
        network = three[1].redis
        async with network.half_open(network.subscriptions()):
            assert (await one.send("m1\nhello"))["op_type"] == 40018
            assert await receive_ids(device, 1) == ["m1"]

            async def read() -> bool:
                return bool((await one.ask(2, "-1"))[0]["read"])

            await within(2, "the message is read", read)
            async with three[1].chat("2", "1") as later:
                assert await receive_ids(deaf, 1) == ["m1"]
                assert (await one.send("m2\nhello"))["op_type"] == 40018
                assert (await receive_ids(later, 1))[-1] in ("m1", "m2")


async def test_sync_sockets_are_closed_after_a_gap(databases: Databases, tmp_path: Path) -> None:
    """With 1001, because marks and deletions have no log; plain sockets of the same user stay open."""
    async with (
        serving(databases, tmp_path) as three,
        three[1].chat("1", sync=True) as sync,
        three[1].chat("1", "2") as plain,
    ):
        network = three[1].redis
        network.cut(network.subscriptions())
        async with asyncio.timeout(LIVE_SECONDS):
            assert await sync.wait_closed() == 1001
        await (await plain.connection.ping())
        async with three[1].chat("1", sync=True) as again:  # it has missed nothing
            await asyncio.sleep(CLOSING_SECONDS + 1)
            await again.expect_nothing()


async def test_a_lapse_closes_sync_sockets_of_its_process(databases: Databases, tmp_path: Path) -> None:
    """Those of the other processes stay open: they have missed only what the frozen process did not publish."""
    async with (
        serving(databases, tmp_path) as three,
        three[1].chat("1", sync=True) as sync,
        three[1].chat("2", "1") as plain,
        three[0].chat("3", sync=True) as other,
    ):
        async with three[1].frozen():
            await asyncio.sleep(FREEZE_SECONDS)
        async with asyncio.timeout(LIVE_SECONDS):
            assert await sync.wait_closed() == 1001
        await asyncio.sleep(CLOSING_SECONDS)
        await plain.expect_nothing()
        await other.expect_nothing()


async def test_a_user_who_returns_after_a_gap_is_online(databases: Databases, tmp_path: Path) -> None:
    """At their process, a user who is away for a moment stays online; another one reads meanwhile that they left."""
    async with serving(databases, tmp_path) as three, three[0].chat("1", "2") as one:
        await three.make_contacts("1", "2")
        await asyncio.sleep(GRACE_SECONDS + 1)  # then both are offline

        async def offline() -> bool:
            return not await is_online(one, "2")

        async def online() -> bool:
            return await is_online(one, "2")

        async with three[1].chat("2", "1"):
            await within(1, "the user is online", online)
        network = three[0].redis
        network.cut(network.subscriptions())
        await within(GRACE_SECONDS + 1, "the user is offline", offline)
        async with three[1].chat("2", "1"):
            await within(1, "the user is online again", online)


async def test_users_of_a_process_that_ends_during_a_gap_are_offline(databases: Databases, tmp_path: Path) -> None:
    """What it published waits for the end of the recovery."""
    async with (
        cluster(tmp_path, databases, 3, users=USERS, StrangerLimit=0) as three,
        three[0].chat("1", "3") as one,
        three[2].chat("3", "1") as other,
    ):
        await three.make_contacts("2", "1")
        assert await receive_ids(one, 1)
        await asyncio.sleep(GRACE_SECONDS + 1)  # then 2 is offline
        async with unable_to_read_again(three[0]):
            async with three[1].chat("2", "1") as two:
                assert (await two.send("m1\nhello"))["op_type"] == 40018
                await three[1].kill()
            await asyncio.sleep(3)  # the others notice it
            assert (await other.send("m2\nhello"))["op_type"] == 40018
        assert sorted(await receive_ids(one, 2)) == ["m1", "m2"]
        assert not await is_online(one, "2")


# --- clocks


async def test_clocks_two_seconds_apart_reorder_nothing(databases: Databases, tmp_path: Path) -> None:
    """A reply is later than the message it answers, whichever clock is ahead."""
    async with serving(databases, tmp_path, clocks=True, StoreTimeout=20) as three:
        for process, seconds in zip(three, (-1.0, 0.0, 1.0), strict=True):
            assert process.clock
            process.clock.move(seconds)
        async with traffic(three, pairs_of(three, USERS)):
            await asyncio.sleep(3)
        async with three[2].chat("1", "2") as one, three[0].chat("2", "1") as two:
            times: list[int] = []
            for number in range(10):
                times.append((await one.send(f"question{number}\nhello"))["time"])
                assert (await receive_ids(two, 1))[-1] == f"question{number}"
                times.append((await two.send(f"answer{number}\nhello"))["time"])
                assert (await receive_ids(one, 1))[-1] == f"answer{number}"
            assert times == sorted(times)
            texts = [text for text in await history(two) if text.startswith(("question", "answer"))]
            assert texts == [f"{kind}{n}\nhello" for n in range(10) for kind in ("question", "answer")]


async def test_a_clock_six_seconds_off_stops_a_start(databases: Databases, tmp_path: Path) -> None:
    async with serving(databases, tmp_path, clocks=True) as three:
        await three[2].stop()
        clock = three[2].clock
        assert clock
        clock.move(6)
        with pytest.raises(AssertionError, match="clock"):
            await three[2].start()
        clock.move(0)
        await three[2].start()


async def test_a_clock_that_jumps_six_seconds_is_refused(databases: Databases, tmp_path: Path) -> None:
    """The process acknowledges nothing while its clock is wrong."""
    async with serving(databases, tmp_path, clocks=True) as three:
        await three.make_contacts("1", "2")
        async with three[2].chat("1", "2") as one:
            clock = three[2].clock
            assert clock
            clock.move(6)

            async def refused() -> bool:
                return bool((await one.send("hello")).get("reason") == "store_away")

            await within(FREEZE_SECONDS, "store_away with a wrong clock", refused)
            clock.move(0)

            async def accepted() -> bool:
                return not await refused()

            await within(FREEZE_SECONDS, "messages with a right clock", accepted)
