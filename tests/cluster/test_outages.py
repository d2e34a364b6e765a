"""Redis and MongoDB fail under traffic (tests/cluster/traffic.py).

No acknowledged message is lost, duplicated or reordered; receivers get their messages without any action; no process
exits.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
from redis.asyncio import Redis

from chat_server.cache.redis_backplane import PROBE_TIMEOUT
from chat_server.cache.redis_changes import CHANGE, ITEM, NUMBER, header, record
from chat_server.utils.lease import LEASE_SECONDS
from tests import servers
from tests.cluster.harness import (
    FREEZE_SECONDS,
    Databases,
    ProcessGroup,
    receive_ids,
    within,
)
from tests.cluster.traffic import LIVE_SECONDS, USERS, pairs_of, serving, traffic
from tests.faults.stores import history, unavailable
from tests.harness import ChatClient

# A process without Redis answers store_away after its lease of 10 s. By default, the outage lasts three leases.
OUTAGE_SECONDS = float(os.environ.get("CHAT_TEST_OUTAGE", "32"))
Disruption = Callable[[ProcessGroup, Databases], Awaitable[None]]


# --- the subscription


async def subscribe_again(redis: Redis, count: int) -> None:
    """Wait until Redis has at least this many subscribed clients."""

    async def subscribed() -> bool:
        return len(await redis.client_list(_type="pubsub")) >= count

    await within(LIVE_SECONDS, f"{count} processes are subscribed", subscribed)


async def kill_subscriptions(three: ProcessGroup, databases: Databases) -> None:
    async with Redis(port=databases.redis.port) as redis:
        for _ in range(3):
            assert await redis.client_kill_filter(_type="pubsub") > 0
            await asyncio.sleep(1)
            await subscribe_again(redis, len(three))


async def break_half_open(three: ProcessGroup, databases: Databases) -> None:
    """The process notices by itself that its subscription is deaf, and opens another one."""
    network = three[1].redis
    before = network.subscriptions()
    assert before
    async with network.half_open(before):

        async def replaced() -> bool:
            return any(link not in before for link in network.subscriptions())

        await within(PROBE_TIMEOUT + 1, "the process subscribes again", replaced)
        await asyncio.sleep(1)


async def overflow_output_buffer(three: ProcessGroup, databases: Databases) -> None:
    """Redis closes a subscription whose reader is too slow, before the process notices that nothing arrives.

    What fills the buffer are packets of a later version, which the process ignores.
    """
    network = three[1].redis
    [link] = network.subscriptions()
    async with Redis(port=databases.redis.port) as redis:
        await redis.config_set("client-output-buffer-limit", "pubsub 8388608 0 0")
        try:
            async with network.unread([link]), asyncio.timeout(PROBE_TIMEOUT):
                while await redis.publish(link.channel, newer_message(b"x" * 1_000_000)):
                    pass
            await subscribe_again(redis, len(three))
        finally:
            await redis.config_set("client-output-buffer-limit", "pubsub 33554432 8388608 60")


def newer_message(text: bytes) -> bytes:
    """A message with packets of kinds that only a later version knows."""
    return (
        header("later version")
        + record(ITEM + msgspec.msgpack.encode(["later", text]))
        + record(b"~" + text)
        + record(ITEM + msgspec.msgpack.encode(["m", ["1", "2", "later", "hello", 1, 0], False, "later"]))
    )


# --- Redis


async def restart_redis(three: ProcessGroup, databases: Databases) -> None:
    await asyncio.to_thread(databases.redis.kill)
    await asyncio.to_thread(databases.redis.start)


async def freeze_redis(three: ProcessGroup, databases: Databases) -> None:
    async with unavailable(databases.redis, "frozen"):
        await asyncio.sleep(5)


async def cut_redis_from_one_process(three: ProcessGroup, databases: Databases) -> None:
    """For longer than the lease: the sockets of this process stay open, and every frame gets store_away."""
    async with three[1].redis.unreachable():
        await asyncio.sleep(FREEZE_SECONDS + 4)


async def delay_redis(three: ProcessGroup, databases: Databases) -> None:
    three[1].redis.delay = 0.3
    await asyncio.sleep(5)
    three[1].redis.delay = 0


async def kill_mongodb(three: ProcessGroup, databases: Databases) -> None:
    async with unavailable(databases.mongodb, "killed"):
        await asyncio.sleep(3)


async def kill_mongodb_beyond_its_lease(three: ProcessGroup, databases: Databases) -> None:
    async with unavailable(databases.mongodb, "killed"):
        await asyncio.sleep(LEASE_SECONDS + 2)


async def cut_mongodb_from_one_process(three: ProcessGroup, databases: Databases) -> None:
    async with three[1].mongodb.unreachable():
        await asyncio.sleep(5)


@pytest.mark.parametrize(
    "disrupt",
    [
        kill_subscriptions,
        break_half_open,
        overflow_output_buffer,
        restart_redis,
        freeze_redis,
        cut_redis_from_one_process,
        delay_redis,
        kill_mongodb,
        kill_mongodb_beyond_its_lease,
        cut_mongodb_from_one_process,
    ],
)
async def test_a_disruption_loses_and_reorders_nothing(
    databases: Databases, tmp_path: Path, disrupt: Disruption
) -> None:
    """After each, an idle receiver on every process also gets a new message live."""
    async with serving(databases, tmp_path) as three:
        async with traffic(three, pairs_of(three, USERS)):
            await asyncio.sleep(1)
            await disrupt(three, databases)
            await asyncio.sleep(2)
        await check_delivery(three)


async def check_delivery(three: ProcessGroup) -> None:
    """Fail unless a message on one process arrives live on each other one."""
    for number, process in enumerate(three):
        async with three[0].chat("1", "2") as one, process.chat("2", "1") as two:
            answer = await one.send(f"live{number}\nhello")
            assert answer["op_type"] == 40018, answer
            repeated = {f"live{earlier}" for earlier in range(number)}  # unread messages may arrive again
            while (ids := await receive_ids(two, 1)) != [f"live{number}"]:
                assert ids[0] in repeated


async def test_packets_of_a_later_version_are_ignored(databases: Databases, tmp_path: Path) -> None:
    """Also fields that it appends. A change of an unknown kind is confirmed, because its sender waits for that."""
    async with (
        serving(databases, tmp_path) as three,
        three[0].chat("1", "2") as one,
        three[1].chat("2", "1") as two,
        Redis(port=databases.redis.port) as redis,
        redis.pubsub() as replies,
    ):
        [link] = three[1].redis.subscriptions()
        channels, _, _ = link.channel.rpartition(b"node:")
        await replies.subscribe(channels + b"node:later version")
        change = record(CHANGE + NUMBER.pack(1) + msgspec.msgpack.encode(["later", "change"]))
        await redis.publish(link.channel, newer_message(b"text"))
        await redis.publish(link.channel, header("later version") + change)
        async with asyncio.timeout(5):
            while (reply := await replies.get_message(timeout=5)) is None or reply["type"] != "message":
                pass
        assert (await one.send("m1\nhello"))["op_type"] == 40018
        assert await receive_ids(two, 1) == ["m1"]
        await two.expect_nothing()


async def test_a_flushed_redis_ends_sessions_and_loses_nothing(databases: Databases, tmp_path: Path) -> None:
    """After a new login, everything works again on all processes."""
    async with serving(databases, tmp_path, HeartbeatSeconds=1) as three:
        async with three[0].chat("1", "2") as one, three[1].chat("2", "1") as two:
            await one.send("m1\nhello")
            assert await receive_ids(two, 1) == ["m1"]
            async with Redis(port=databases.redis.port) as redis:
                await redis.flushall()
            assert await one.wait_closed() == 4001
            assert await two.wait_closed() == 4001
        for user in ("1", "2"):
            three.tokens[user] = await three.login(user)
        await check_delivery(three)
        async with three[2].chat("2", "1") as two:
            assert "m1\nhello" in await history(two)


async def test_a_failover_of_redis_loses_and_reorders_nothing(databases: Databases, tmp_path: Path) -> None:
    """A replica takes over behind the same address, and the old Redis becomes its replica."""
    replica = await asyncio.to_thread(servers.redis, "--replicaof", "127.0.0.1", str(databases.redis.port))
    try:
        async with Redis(port=replica.port) as new, Redis(port=databases.redis.port) as old:

            async def replicated() -> bool:
                return bool((await new.info("replication"))["master_link_status"] == "up")

            await within(20, "the replica is synchronised", replicated)
            async with serving(databases, tmp_path) as three:
                async with traffic(three, pairs_of(three, USERS)):
                    await asyncio.sleep(1)
                    await new.replicaof("NO", "ONE")
                    await old.replicaof("127.0.0.1", str(replica.port))
                    for process in three:
                        process.redis.redirect_to(replica.port)
                    await asyncio.sleep(5)
                await check_delivery(three)
    finally:
        async with Redis(port=databases.redis.port) as old:
            await old.replicaof("NO", "ONE")
        replica.stop()


@pytest.mark.timeout(OUTAGE_SECONDS * 2 + 240)
async def test_a_long_outage_of_redis_keeps_sockets_open(databases: Databases, tmp_path: Path) -> None:
    """Every frame is refused with the failure code of its op and store_away, also between contacts."""
    async with serving(databases, tmp_path, StrangerLimit=5) as three:
        await three.make_contacts("1", "2")
        async with three[0].chat("1", "2") as one, three[1].chat("2", "1") as two:
            await two.answer(4, "*")
            async with unavailable(databases.redis, "killed"):
                await asyncio.sleep(FREEZE_SECONDS)
                await expect_refusals(one)
                await asyncio.sleep(OUTAGE_SECONDS - FREEZE_SECONDS)
                await expect_refusals(one)

            async def accepted() -> bool:
                return bool((await one.send("after\nthe outage"))["op_type"] == 40018)

            await within(LIVE_SECONDS, "messages are accepted", accepted)
            assert await receive_ids(two, 1) == ["after"]


async def expect_refusals(chat: ChatClient) -> None:
    """Fail unless every op is refused with store_away."""
    requests = {1: ("hello", 40008), 2: ("-1", 40004), 3: ("", 40004), 4: ("*", 40006), 5: ("m1", 40012)}
    requests |= {6: ("hello", 40008), 7: ("-1", 40022)}
    for op_type, (content, failure) in requests.items():
        answer = await chat.answer(op_type, content)
        assert (answer["op_type"], answer.get("reason")) == (failure, "store_away"), answer
