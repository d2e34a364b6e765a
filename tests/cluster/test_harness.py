"""The harness itself: a balancer before two listeners, a faulty network before a real Redis, one process of a cluster.

These tests need no server that supports several processes.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from tests import raw
from tests.cluster import suite
from tests.cluster.harness import Databases, cluster, within
from tests.cluster.relay import Balancer, FaultyNetwork
from tests.harness import ROOT


@asynccontextmanager
async def naming_listeners(count: int) -> AsyncIterator[list[int]]:
    """Listen on ports, answer each connection with the port, and echo what follows."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            writer.write(b"%d\n" % writer.get_extra_info("sockname")[1])
            while data := await reader.read(1000):
                writer.write(data)
            writer.write(b"end")
        writer.close()

    async with AsyncExitStack() as stack:
        listeners = [await asyncio.start_server(echo, "127.0.0.1", 0) for _ in range(count)]
        for listener in listeners:
            await stack.enter_async_context(listener)
        yield [listener.sockets[0].getsockname()[1] for listener in listeners]


async def test_the_balancer_takes_the_next_port_each_time() -> None:
    """It knows the port of every connection, passes on a FIN and skips a port without a listener."""
    async with naming_listeners(2) as ports, Balancer([*ports, 1]).running() as balancer:
        found = []
        for _ in range(4):
            reader, writer = await asyncio.open_connection("127.0.0.1", balancer.port)
            found.append(int(await reader.readline()))
            assert balancer.target_port(writer.get_extra_info("sockname")[1]) == found[-1]
            writer.write(b"hello")
            writer.write_eof()
            assert await reader.read() == b"helloend"
            writer.close()
        assert set(found) == set(ports)
        assert found[0] != found[1]


async def test_the_balancer_resets_a_client_without_a_server() -> None:
    async with Balancer([1]).running() as balancer:
        reader, writer = await asyncio.open_connection("127.0.0.1", balancer.port)
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
        with suppress(ConnectionResetError):
            await writer.wait_closed()


@asynccontextmanager
async def subscribed(databases: Databases) -> AsyncIterator[tuple[FaultyNetwork, Redis, Any]]:
    """Subscribe to a channel of Redis through a faulty network; also yield a direct client."""
    async with (
        FaultyNetwork(lambda: databases.redis.port).running() as network,
        Redis(port=network.port) as distant,
        Redis(port=databases.redis.port) as direct,
        distant.pubsub() as subscription,
    ):
        await subscription.subscribe("channel")
        assert (await subscription.get_message(timeout=5))["type"] == "subscribe"
        assert await distant.ping()
        assert (len(network.subscriptions()), len(network.links)) == (1, 2)
        yield network, direct, subscription


async def test_a_half_open_subscription_is_deaf_without_an_error(databases: Databases) -> None:
    async with subscribed(databases) as (network, direct, subscription):
        async with network.half_open(network.subscriptions()):
            assert await direct.publish("channel", "lost") == 1
            assert await subscription.get_message(timeout=0.2) is None

        async def closed() -> bool:
            return bool(await direct.publish("channel", "lost") == 0)

        await within(5, "Redis closes the subscription", closed)


async def test_an_unread_subscription_exceeds_its_output_buffer(databases: Databases) -> None:
    async with subscribed(databases) as (network, direct, _):
        await direct.config_set("client-output-buffer-limit", "pubsub 100000 0 0")
        async with network.unread(network.subscriptions()):

            async def closed() -> bool:
                return bool(await direct.publish("channel", "x" * 100_000) == 0)

            await within(20, "Redis closes the subscription", closed)


async def test_held_requests_are_late_or_lost(databases: Databases) -> None:
    async with FaultyNetwork(lambda: databases.redis.port).running() as network, Redis(port=network.port) as client:
        async with network.holding(b"late") as held:
            late = asyncio.ensure_future(client.get("late"))
            await held.wait()
            assert await client.get("other") is None
            assert not late.done()
        assert await late is None
        async with network.holding(b"lost") as held:
            lost = asyncio.ensure_future(client.set("lost", "1"))
            await held.wait()
            async with network.unreachable():
                with pytest.raises((RedisError, OSError)):
                    await lost
        assert await client.get("lost") is None


async def test_a_network_delay_applies_to_both_directions(databases: Databases) -> None:
    async with FaultyNetwork(lambda: databases.redis.port).running() as network, Redis(port=network.port) as client:
        await client.ping()
        network.delay = 0.2
        started = time.monotonic()
        await client.ping()
        assert time.monotonic() - started > 0.4


async def test_a_process_is_killed_frozen_and_started_again(databases: Databases, tmp_path: Path) -> None:
    """A message held back before MongoDB is lost with the process; a frozen process answers nothing."""
    async with cluster(tmp_path, databases, 1, users=("1", "2"), StrangerLimit=0, clocks=True) as processes:
        [process] = processes
        async with raw.chat(processes, "1", "2") as one, process.mongodb.holding(b"held back") as held:
            await one.put(1, "m1\nheld back")
            await held.wait()
            await process.kill()
            assert await one.wait_closed() is None
        await process.start()
        async with processes.chat("1", "2") as one:
            assert processes.process_of(one) is process
            assert [frame["op_type"] for frame in await one.ask(2, "-5")] == [40005]
            async with process.frozen():
                await one.put(1, "m2\nhello")
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.3):
                        await one.receive()
            first = await one.receive()
            assert first["id"] == "m2"
            assert process.clock
            process.clock.move(3600)
            assert (await one.send("m3\nhello"))["time"] - first["time"] > 3_000_000
        await processes.rolling_restart()
        async with processes.chat("1", "2") as one:
            assert len(await one.ask(2, "-5")) == 3


def test_every_test_listed_for_one_process_exists() -> None:
    for key, reason in suite.ONE_PROCESS.items():
        file, _, test = key.partition("::")
        text = (ROOT / "tests" / "e2e" / file).read_text("utf-8")
        assert not test or f"def {test}(" in text, key
        assert reason
