"""GET /health during outages of real databases."""

import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chat_server.utils.lease import LEASE_SECONDS
from tests import servers
from tests.e2e.http_helpers import check_success, envelope, send_request
from tests.e2e.test_metrics import scraped
from tests.harness import ServerHandle, serving, wait_until

TIMEOUT = 2.5  # StoreTimeout
STORES = {"users": servers.mysql, "messages": servers.mongodb, "cache": servers.redis}
METRICS = {"users": "mysql", "messages": "mongodb", "cache": "redis"}  # the names of the stores in metrics
SECRETS = ("secret", "127.0.0.1", "chat_demo")


@pytest.fixture(scope="module")
def databases() -> Iterator[dict[str, servers.DatabaseServer]]:
    started: dict[str, servers.DatabaseServer] = {}
    try:
        for name, start in STORES.items():
            started[name] = start()
        yield started
    finally:
        for server in started.values():
            server.stop()


@pytest.fixture
def port() -> int:
    """Return the port of the metrics."""
    return servers.free_port()


@pytest.fixture
async def server(
    databases: dict[str, servers.DatabaseServer], tmp_path: Path, port: int
) -> AsyncIterator[ServerHandle]:
    stores = servers.environ(mysql=databases["users"], mongodb=databases["messages"], redis=databases["cache"])
    async with serving(tmp_path, stores=stores, StoreTimeout=TIMEOUT, MetricsPort=port) as server:
        yield server


async def health(server: ServerHandle) -> tuple[int, dict[str, Any]]:
    """Return the HTTP code, and the state of each store."""
    response = await send_request(server, "GET", "/health")
    body = envelope(response)
    assert not any(secret in response.text for secret in SECRETS)
    return response.status_code, {name: body["data"][name] for name in STORES}


def states(seen: dict[str, Any]) -> dict[str, str]:
    return {name: store["state"] for name, store in seen.items()}


async def test_health_is_200_while_all_stores_are_up(server: ServerHandle, port: int) -> None:
    data = check_success(await send_request(server, "GET", "/health"), 200)
    assert set(data) == set(STORES)
    assert states(data) == dict.fromkeys(STORES, "up")
    assert all(0 < store["took_ms"] < 1000 * TIMEOUT for store in data.values())
    await server.add_users(f"user-{port}")
    calls = (await scraped(port)).samples["chat_store_call_seconds_count"]
    assert all(calls[store,] > 0 for store in ("mysql", "mongodb", "redis"))


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_health_reports_a_store_that_is_away(
    server: ServerHandle, databases: dict[str, servers.DatabaseServer], port: int, store: str, how: str
) -> None:
    """The answer takes at most StoreTimeout, and the states of the other stores stay correct."""
    _, before = await health(server)
    database = databases[store]
    stop, restore = _outage(database, how)
    stop()
    try:

        async def away() -> bool:
            return (await health(server))[0] == 503

        await wait_until(away)
        started = time.monotonic()
        code, seen = await health(server)
        assert time.monotonic() - started < TIMEOUT * 2
        assert (code, states(seen)) == (503, dict.fromkeys(STORES, "up") | {store: "away"})
        assert seen[store]["since"] > before[store]["since"]
        for other in STORES.keys() - {store}:
            assert seen[other]["since"] == before[other]["since"]
            assert seen[other]["took_ms"] < 1000 * TIMEOUT
        samples = (await scraped(port)).samples
        reported = {name: samples["chat_store_up"][METRICS[name],] for name in STORES}
        assert reported == {name: name != store for name in STORES}
        failures = samples["chat_store_failures_total"]
        assert {name for (name,), count in failures.items() if count} == {METRICS[store]}
    finally:
        restore()

    async def up() -> bool:
        return (await health(server))[0] == 200

    await wait_until(up)
    _, after = await health(server)
    assert states(after) == dict.fromkeys(STORES, "up")
    assert after[store]["since"] > seen[store]["since"]


async def test_metrics_report_stores_without_health_requests(
    server: ServerHandle, databases: dict[str, servers.DatabaseServer], port: int
) -> None:
    async def redis_is(up: bool) -> bool:
        return bool((await scraped(port)).samples["chat_store_up"]["redis",]) == up

    left = (await scraped(port)).samples["chat_lease_seconds"]
    assert set(left) == {("mongodb",), ("redis",)}
    assert all(0 < seconds <= LEASE_SECONDS for seconds in left.values())
    databases["cache"].kill()
    await wait_until(lambda: redis_is(False))
    databases["cache"].start()
    await wait_until(lambda: redis_is(True))


def _outage(database: servers.DatabaseServer, how: str) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return functions that begin and end the outage."""
    if how == "killed":
        return database.kill, database.start
    return lambda: database.send(signal.SIGSTOP), lambda: database.send(signal.SIGCONT)
