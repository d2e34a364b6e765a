"""The nodes of a cluster in Redis: slots, leases, and servers that share with none."""

import asyncio
import uuid
from collections.abc import AsyncIterator

import pytest

from chat_server import conf
from chat_server.cache import redis, redis_nodes
from chat_server.cache.redis import RedisLease, Scripts
from chat_server.cache.redis_nodes import RedisNode, cluster_name
from chat_server.model import mongodb
from chat_server.utils.clock import MICROSECONDS, Clock, Timeline
from chat_server.utils.errors import StartError
from chat_server.utils.lease import Lease
from tests import servers
from tests.contract.conftest import SHORT_LEASE, _server
from tests.harness import wait_until


class OffsetClock(Clock):
    """The clock of a host that differs by `seconds`."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def now(self) -> int:
        return super().now() + int(self.seconds * MICROSECONDS)


@pytest.fixture
async def scripts(lease: float, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scripts]:
    monkeypatch.setattr(redis_nodes, "LEASE_SECONDS", lease)
    monkeypatch.setattr(redis_nodes, "RENEWAL_SECONDS", 0.05)
    config = conf.RedisSettings(redis_db="redis", redis_addr=f"127.0.0.1:{_server('redis').port}")
    scripts = Scripts(redis.client(config, 5), f"{uuid.uuid4().hex}:", 5)
    yield scripts
    await scripts.close()


async def joined(scripts: Scripts, clock: Clock | None = None) -> RedisNode:
    node = RedisNode(scripts, await cluster_name(scripts), "number", clock or Clock(), Timeline(Clock()))
    await node.join()
    return node


async def test_nodes_have_different_slots(scripts: Scripts) -> None:
    nodes = [await joined(scripts) for _ in range(3)]
    assert [node.slot for node in nodes] == [0, 1, 2]
    await nodes[1].leave()
    assert (await joined(scripts)).slot == 1


async def test_a_single_server_is_refused_next_to_a_node(scripts: Scripts) -> None:
    node = await joined(scripts)
    held_by = await RedisLease(scripts).take(b"single", 15, None)
    assert held_by == node.holder
    await node.leave()
    assert await RedisLease(scripts).take(b"single", 15, None) == b"single"


@SHORT_LEASE
async def test_a_node_is_refused_next_to_a_single_server(scripts: Scripts) -> None:
    await Lease(RedisLease(scripts), "Redis", 0).take()
    node = RedisNode(scripts, await cluster_name(scripts), "number", Clock(), Timeline(Clock()))
    with pytest.raises(StartError, match=r"another chat_server \(host .*Processes = many"):
        await node.join()


async def test_all_nodes_of_a_redis_have_one_cluster_name(scripts: Scripts) -> None:
    names = {await cluster_name(scripts) for _ in range(3)}
    assert len(names) == 1
    assert scripts.name in names.pop()


@SHORT_LEASE
async def test_a_renewed_node_sees_all_live_nodes(scripts: Scripts) -> None:
    one, two = await joined(scripts), await joined(scripts)
    keeping = asyncio.create_task(one.keep(pytest.fail))
    await wait_until(lambda: one.live == {one.name, two.name})
    await wait_until(lambda: one.live == {one.name})  # the lease of the other ends
    assert not one.lapsed()
    assert two.lapsed()
    keeping.cancel()


@SHORT_LEASE
async def test_a_node_whose_lease_ended_joins_under_another_name(scripts: Scripts, lease: float) -> None:
    node = await joined(scripts)
    before, lapsed_meanwhile = node.name, []

    async def rejoined() -> None:
        lapsed_meanwhile.append(node.lapsed())

    node.rejoined = rejoined
    await asyncio.sleep(lease)
    assert node.lapsed()
    keeping = asyncio.create_task(node.keep(pytest.fail))
    await wait_until(lambda: not node.lapsed())
    assert node.name != before
    assert lapsed_meanwhile == [True]
    keeping.cancel()


async def test_nodes_survive_a_flush_under_the_same_cluster_name(scripts: Scripts) -> None:
    node = await joined(scripts)
    name = await cluster_name(scripts)
    for key in ("lease", "nodes", "cluster"):
        await scripts.run("forget", [key])
    keeping = asyncio.create_task(node.keep(pytest.fail))
    await wait_until(lambda: node.left() > 0 and not node.lapsed() and node.live != frozenset())
    await asyncio.sleep(0.2)
    assert await cluster_name(scripts) == name
    keeping.cancel()


@pytest.mark.parametrize("seconds", [-60, 60])
async def test_a_node_with_a_wrong_clock_does_not_start(scripts: Scripts, seconds: float) -> None:
    with pytest.raises(StartError, match="clocks"):
        await joined(scripts, OffsetClock(seconds))
    assert (await joined(scripts)).slot == 0  # the slot is free again


@SHORT_LEASE
async def test_a_node_whose_clock_jumps_loses_its_lease(scripts: Scripts) -> None:
    clock = OffsetClock(0)
    node = await joined(scripts, clock)
    keeping = asyncio.create_task(node.keep(pytest.fail))
    clock.seconds = 60
    await wait_until(node.lapsed)
    clock.seconds = 0
    await wait_until(lambda: not node.lapsed())
    keeping.cancel()


async def test_nodes_that_start_together_all_take_the_shared_lease() -> None:
    config = servers.mongodb_config(_server("mongodb"), f"t{uuid.uuid4().hex}")
    client = mongodb.client(config, 20)
    lease = mongodb.MongoLease(client[config.name], 20)
    assert await asyncio.gather(*(lease.take(b"shared", 15, None) for _ in range(8))) == [b"shared"] * 8
    await client.drop_database(config.name)
    client.close()
