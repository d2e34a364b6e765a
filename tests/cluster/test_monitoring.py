"""What an operator of several processes sees: GET /health, GET /ready and the metrics of each process."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.cluster.harness import Databases, ProcessGroup, ServerProcess, cluster, within
from tests.e2e.http_helpers import check_refusal, check_success, send_request
from tests.e2e.test_metrics import Scraped, check_documented, scraped


@pytest.fixture
async def two(databases: Databases, tmp_path: Path) -> AsyncIterator[ProcessGroup]:
    async with cluster(tmp_path, databases, 2, users=("1", "2"), MetricsPort=1, StrangerLimit=0) as processes:
        yield processes


async def health(process: ServerProcess) -> dict[str, str]:
    """Return the state of each store, and of the connection to the other processes."""
    answer = await send_request(process, "GET", "/health")
    states = {name: store["state"] for name, store in answer.json()["data"].items() if isinstance(store, dict)}
    assert (answer.status_code == 200) == (set(states.values()) == {"up"})
    return states


async def metrics(process: ServerProcess) -> Scraped:
    return await scraped(process.metrics_port)


async def test_only_the_process_without_redis_is_not_ready(two: ProcessGroup) -> None:
    """Its sockets stay open. It is ready again by itself."""
    lost, other = two

    async def cluster_is(state: str) -> bool:
        return (await health(lost))["cluster"] == state

    async with lost.chat("1") as one:
        assert set(await health(lost)) == {"users", "messages", "cache", "cluster"}
        async with lost.redis.unreachable():
            await within(11, "the process is not ready", lambda: cluster_is("away"))
            check_refusal(await send_request(lost, "GET", "/ready"), 503, 44444, "store_away")
            check_success(await send_request(lost, "GET", "/ping"), 200)
            assert (await metrics(lost))("chat_cluster_ready") == 0
            check_success(await send_request(other, "GET", "/ready"), 200)
            assert set((await health(other)).values()) == {"up"}
        await within(10, "the process is ready", lambda: cluster_is("up"))
        check_success(await send_request(lost, "GET", "/ready"), 200)
        assert (await one.ask(2, "-1"))[-1]["op_type"] in (40004, 40005)


async def test_a_process_without_its_databases_stays_ready(two: ProcessGroup) -> None:
    """All processes lack them at once: a balancer that removed all would serve nothing."""
    async with two[0].mongodb.unreachable():

        async def away() -> bool:
            return (await health(two[0]))["messages"] == "away"

        await within(15, "MongoDB is away", away)
        check_success(await send_request(two[0], "GET", "/ready"), 200)


async def test_the_metrics_of_a_process_describe_its_cluster(two: ProcessGroup) -> None:
    first, second = two

    async def has_peer() -> bool:
        return (await metrics(first))("chat_cluster_peers") == 1

    await within(5, "the first process sees the second", has_peer)
    before = await metrics(first)
    assert before("chat_cluster_ready") == 1
    assert before("chat_cluster_own_gaps_total") == 0
    async with first.chat("1", to="2") as one, second.chat("2", to="1") as receiver:
        for number in range(10):
            assert (await one.send(f"m{number}\n{'x' * 100}"))["op_type"] == 40018
            await receiver.receive()
        after = await metrics(first)
    assert after("chat_cluster_published_total") - before("chat_cluster_published_total") >= 10
    assert after("chat_cluster_published_bytes_total") - before("chat_cluster_published_bytes_total") > 1000
    for idle in ("queue", "waiting_bytes", "changes_waiting", "slow_changes_total", "recovering_seconds"):
        assert after(f"chat_cluster_{idle}") == 0, idle
    assert after("chat_lease_seconds", "redis") > 5
    assert after("chat_store_call_seconds_count", "redis") > before("chat_store_call_seconds_count", "redis")
    check_documented(after, several_processes=True)


async def test_a_lost_subscription_is_counted_with_its_recovery(two: ProcessGroup) -> None:
    process = two[0]
    process.redis.cut(process.redis.subscriptions())

    async def recovered() -> bool:
        return (await metrics(process))("chat_cluster_own_gaps_total") == 1

    await within(10, "the process has recovered", recovered)
    now = await metrics(process)
    assert now("chat_cluster_gaps_total") >= 1
    assert now("chat_cluster_recovery_seconds_total") > 0


async def test_a_frozen_process_makes_changes_slow(two: ProcessGroup) -> None:
    first, second = two
    async with second.frozen():
        headers = {"Authorization": f"Bearer {first.tokens['1']}"}
        assert (await first.post("/user/block", {"user_name": "2"}, headers=headers)).status_code == 200
    assert (await metrics(first))("chat_cluster_slow_changes_total") >= 1
    assert (await metrics(first))("chat_cluster_changes_waiting") == 0


async def test_conflicting_inserts_are_counted(databases: Databases, tmp_path: Path) -> None:
    """Both processes know the newest message of the conversation, and one of them is late."""
    users = ("1", "2")
    async with (  # with time for the held request
        cluster(tmp_path, databases, 2, users=users, MetricsPort=1, StrangerLimit=0, StoreTimeout=20) as two,
        two[0].chat("1", to="2") as one,
        two[1].chat("2", to="1") as other,
    ):
        await one.send("a\nfirst")
        assert (await other.receive())["id"] == "a"
        async with two[0].mongodb.holding(b"held back") as held:
            await one.put(1, "b\nheld back")
            await held.wait()
            assert (await other.send("c\nin between"))["op_type"] == 40018
        while (await one.receive())["op_type"] not in (40018, 40019):
            pass
        assert (await metrics(two[0]))("chat_cluster_insert_conflicts_total") == 1
