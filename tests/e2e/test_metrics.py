"""The Prometheus metrics: GET /metrics on MetricsPort."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from chat_server.status import Status
from tests import raw
from tests.e2e.http_helpers import check_refusal, send_request
from tests.harness import PASSWORD, ROOT, ServerHandle, run_py, serving, subprocess_server, wait_until
from tests.servers import free_port

DASHBOARD = ROOT / "docs" / "grafana.json"
MANUAL = ROOT / "docs" / "operations.md"
OPS = {*"12345678", "none"}
# A user name that cannot occur in a metric by chance.
STRANGE = "Zanzibar"

Values = dict[tuple[str, ...], float]


class Scraped:
    """The samples of one scrape."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self.samples: dict[str, Values] = {}
        for family in self.families.values():
            for sample in family.samples:
                self.samples.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value

    def __call__(self, name: str, *labels: str) -> float:
        """Return the value of a sample, or 0 if it does not exist."""
        return self.samples.get(name, {}).get(labels, 0)


async def scrape(port: int, accept: str = "") -> httpx.Response:
    """Request /metrics in the format `accept`."""
    async with httpx.AsyncClient(trust_env=False) as client:
        return await client.get(f"http://127.0.0.1:{port}/metrics", headers={"Accept": accept} if accept else {})


async def scraped(port: int) -> Scraped:
    response = await scrape(port)
    assert response.status_code == 200
    assert response.headers["Content-Type"].startswith("text/plain; version=")
    return Scraped(response.text)


@pytest.fixture
def port() -> int:
    """Return a free port for the metrics."""
    return free_port()


@pytest.fixture
async def server(tmp_path: Path, port: int) -> AsyncIterator[ServerHandle]:
    async with serving(tmp_path, users=("1", "2"), MetricsPort=port, StrangerLimit=2) as server:
        yield server


async def test_frames_are_counted_by_op_and_answer(server: ServerHandle, port: int) -> None:
    async with server.chat("1", to="2") as one, server.chat("2", to="1") as two:
        for id in "abc":
            await one.send(f"{id}\nhello")
        await two.send("d\nhello")
        assert [(await one.receive())["op_type"] for _ in range(2)] == [40021, 40011]  # frames that are not answers
        assert (await one.send("e\nhello", to="unknown"))["op_type"] == 40008
        await one.ask(2, "-10")
        await one.ask(2, "many")
        await one.ask(3)
        await one.ask(4, "nothing")
        await two.ask(4, "a\nb")
        await one.ask(5, "a")
        await one.ask(6, "everybody")
        await one.ask(7, "-10")
        await one.ask(7, "-1")
        await one.send_text("no JSON")
        await one.send_text('{"op_type": 9, "content": ""}')
        for _ in range(2):  # the answers to the last two requests
            assert (await one.receive())["op_type"] == 40000
        counts = (await scraped(port)).samples["chat_frames_total"]
    assert counts == {
        ("1", "40018"): 3,
        ("1", "40020"): 1,
        ("1", "40008"): 1,
        ("2", "40005"): 1,
        ("2", "40004"): 1,
        ("3", "40005"): 1,
        ("4", "40006"): 1,
        ("4", "40007"): 1,
        ("5", "40013"): 1,
        ("6", "40009"): 1,
        ("7", "40023"): 2,
        ("none", "40000"): 2,
    }


async def test_every_message_of_a_burst_is_counted(server: ServerHandle, port: int) -> None:
    await server.make_contacts("1", "2")
    before = (await scraped(port))("chat_frames_total", "1", "40019")
    async with server.chat("1", to="2") as one:
        for number in range(300):
            await one.put(1, f"m{number}\nhello")
        for _ in range(300):
            assert (await one.receive())["op_type"] == 40019
    now = await scraped(port)
    assert now("chat_frames_total", "1", "40019") == before + 300


async def test_socket_and_user_gauges_follow_the_connections(server: ServerHandle, port: int) -> None:
    assert ((await scraped(port))("chat_sockets"), (await scraped(port))("chat_users_online")) == (0, 0)
    async with server.chat("1"), server.chat("1"), server.chat("2"):
        now = await scraped(port)
        assert (now("chat_sockets"), now("chat_users_online")) == (3, 2)

    async def all_closed() -> bool:
        now = await scraped(port)
        return (now("chat_sockets"), now("chat_users_online")) == (0, 0)

    await wait_until(all_closed)


async def test_store_calls_and_batches_are_measured(server: ServerHandle, port: int) -> None:
    now = await scraped(port)
    calls, batches = now("chat_store_call_seconds_count", "embedded"), now("chat_batch_size_count", "embedded")
    assert 0 < batches < calls  # reads are not batched
    assert 0 < now("chat_store_call_seconds_sum", "embedded") < 60
    assert now("chat_batch_size_sum", "embedded") >= batches
    assert now("chat_store_failures_total", "embedded") == 0
    async with server.chat("1", to="2") as one:
        await one.send("a\nhello")
    after = await scraped(port)
    assert after("chat_store_call_seconds_count", "embedded") > calls
    assert after("chat_batch_size_count", "embedded") > batches


async def test_slow_readers_and_waiting_bytes_are_measured(tmp_path: Path, port: int) -> None:
    # No heartbeat: on a slow machine it would close the socket before the outbox is full.
    settings: dict[str, Any] = {"OutboxBytes": 200_000, "StrangerLimit": 0, "HeartbeatSeconds": 600}
    async with (
        serving(tmp_path, users=("1", "2"), MetricsPort=port, **settings) as server,
        server.chat("1", to="2") as one,
        raw.chat(server, "2", buffer=4096),
    ):
        waited = [0.0]
        while not (now := await scraped(port))("chat_slow_readers_total"):
            waited.append(now("chat_outbox_bytes"))
            for _ in range(4):  # up to twelve may wait
                await one.send("x" * 16_000)
        assert now("chat_slow_readers_total") == 1
        assert 0 < max(waited) <= 200_000


async def test_loop_lag_passwords_and_memory_are_measured(server: ServerHandle, port: int) -> None:
    async def measured() -> bool:
        return (await scraped(port))("chat_loop_lag_seconds_count") > 0

    await wait_until(measured)
    now = await scraped(port)
    assert now("chat_loop_lag_seconds_sum") < 30
    assert now("chat_passwords_waiting") == 0
    assert now("process_resident_memory_bytes") > 10_000_000


async def test_waiting_passwords_are_measured(tmp_path: Path, port: int) -> None:
    async with serving(tmp_path, MetricsPort=port, PasswordCost=11, PasswordWait=1000) as server:
        body = {"user_name": "1", "password": PASSWORD}
        logins = [asyncio.create_task(server.post("/user/login", body)) for _ in range(9)]

        async def waiting() -> bool:
            return (await scraped(port))("chat_passwords_waiting") > 0

        await wait_until(waiting)
        await asyncio.gather(*logins)
        assert (await scraped(port))("chat_passwords_waiting") == 0


async def test_labels_are_few_and_contain_no_user(server: ServerHandle, port: int) -> None:
    await server.add_users(STRANGE)
    async with server.chat(STRANGE, to="1") as one:
        await one.send(f"{STRANGE}\n{STRANGE}")
        await one.ask(2, STRANGE)
        for op in range(-50, 50):
            await one.answer(op, STRANGE)
    await send_request(server, "GET", f"/{STRANGE}")
    now = await scraped(port)
    assert STRANGE not in now.text
    assert {op for op, _ in now.samples["chat_frames_total"]} <= OPS
    assert {status for _, status in now.samples["chat_frames_total"]} <= {str(int(status)) for status in Status}
    labels = {label for family in now.families.values() for sample in family.samples for label in sample.labels}
    assert labels == {"op", "status", "store", "le"}
    assert set(now.samples["chat_store_call_seconds_count"]) == {("embedded",)}


async def test_both_text_formats_are_supported(server: ServerHandle, port: int) -> None:
    response = await scrape(port, "application/openmetrics-text; version=1.0.0")
    assert response.headers["Content-Type"].startswith("application/openmetrics-text")
    names = {family.name for family in openmetrics.text_string_to_metric_families(response.text)}  # type: ignore[no-untyped-call]
    assert "chat_sockets" in names


async def test_the_metrics_port_serves_only_metrics(server: ServerHandle, port: int) -> None:
    check_refusal(await send_request(server, "GET", "/metrics"), 404, 404, "not_found")
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, verify=False) as there:
        for path in ("/", "/ping", "/health", "/chat/test"):
            check_refusal(await there.get(path), 404, 404, "not_found")
        check_refusal(await there.post("/metrics"), 405, 400, "method_not_allowed")


async def test_without_a_port_there_are_no_metrics(tmp_path: Path) -> None:
    """The client library is not even loaded."""
    async with subprocess_server(tmp_path / "data") as server:
        check_refusal(await send_request(server, "GET", "/metrics"), 404, 404, "not_found")
        for pid in server.pids:
            assert "prometheus" not in Path(f"/proc/{pid}/maps").read_text()
            assert _listening(pid) == 1


async def test_a_metrics_port_in_use_is_a_clear_startup_error(server: ServerHandle, port: int, tmp_path: Path) -> None:
    environ = {"CHAT_SERVICE_METRICSPORT": str(port), "CHAT_SERVICE_HTTPPORT": "0"}
    environ |= {"CHAT_SERVICE_DATADIR": str(tmp_path / "other")}
    child = await run_py(environ=environ)
    _, errors = await child.communicate()
    assert child.returncode == 1
    assert f"MetricsPort {port}: cannot listen there" in errors.decode().splitlines()[-1]


def check_documented(now: Scraped, *, several_processes: bool) -> None:
    """Fail unless the metrics, those of the dashboard and those of the manual are the same.

    Without `several_processes`, those of a cluster must not exist.
    """
    dashboard = json.loads(DASHBOARD.read_text("utf-8"))
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    on_dashboard = {name for query in queries for name in re.findall(r"\b(?:chat|process)_\w+", query)}
    table = MANUAL.read_text("utf-8").partition("\n## Metrics\n")[2]
    manual = set(re.findall(r"^\| `(chat_\w+)` \|", table, re.MULTILINE))
    if not several_processes:
        on_dashboard, manual = ({name for name in names if "cluster" not in name} for names in (on_dashboard, manual))
    assert on_dashboard <= {*now.samples, *now.families}  # a gauge of an unused feature has no sample
    exported = {name for name in now.families if name.startswith("chat_") and not name.endswith("_created")}
    assert {name for name in exported if not any(one.startswith(name) for one in on_dashboard)} == set()
    assert {name.removesuffix("_total") for name in manual} == exported


async def test_every_metric_of_the_dashboard_exists(server: ServerHandle, port: int) -> None:
    """The dashboard also contains every metric of the server."""
    async with server.chat("1", to="2") as one:
        await one.send("hello")
    check_documented(await scraped(port), several_processes=False)


def _listening(pid: int) -> int:
    """Return the number of listening sockets of the process."""
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        target = descriptor.readlink().name if descriptor.is_symlink() else ""
        inodes |= set(re.findall(r"socket:\[(\d+)\]", target))
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[3] == "0A" and row[9] in inodes for row in rows)
