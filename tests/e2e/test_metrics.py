"""What Prometheus sees: GET /metrics on MetricsPort."""

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
from tests.e2e.answers import ask, refused
from tests.harness import PASSWORD, ROOT, ServerHandle, run_py, serving, subprocess_server, wait_until
from tests.servers import free_port

DASHBOARD = ROOT / "docs" / "grafana.json"
MANUAL = ROOT / "docs" / "operations.md"
OPS = {*"1234567", "none"}
# A name nobody could mistake for anything else.
STRANGE = "Zanzibar"

Values = dict[tuple[str, ...], float]


class Scraped:
    """What one scrape told."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self.samples: dict[str, Values] = {}
        for family in self.families.values():
            for sample in family.samples:
                self.samples.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value

    def __call__(self, name: str, *labels: str) -> float:
        """The value of a sample, 0 where there is none."""
        return self.samples.get(name, {}).get(labels, 0)


async def scrape(port: int, accept: str = "") -> httpx.Response:
    """GET /metrics."""
    async with httpx.AsyncClient(trust_env=False) as client:
        return await client.get(f"http://127.0.0.1:{port}/metrics", headers={"Accept": accept} if accept else {})


async def scraped(port: int) -> Scraped:
    response = await scrape(port)
    assert response.status_code == 200
    assert response.headers["Content-Type"].startswith("text/plain; version=")
    return Scraped(response.text)


@pytest.fixture
def port() -> int:
    """Of the metrics."""
    return free_port()


@pytest.fixture
async def server(tmp_path: Path, port: int) -> AsyncIterator[ServerHandle]:
    async with serving(tmp_path, MetricsPort=port, StrangerLimit=2) as server:
        await server.add_users("1", "2")
        yield server


async def test_frames_are_counted_by_op_and_answer(server: ServerHandle, port: int) -> None:
    async with server.chat("1", to="2") as one, server.chat("2", to="1") as two:
        for id in "abc":
            await one.send(f"{id}\nhello")
        await two.send("d\nhello")
        assert [(await one.receive())["op_type"] for _ in range(2)] == [40021, 40011]  # no answers of one's own
        assert (await one.send("e\nhello", to="nobody"))["op_type"] == 40008
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
        await one.send_text('{"op_type": 8, "content": ""}')
        for _ in range(2):  # the answers to the last two
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


async def test_sockets_and_users_are_those_of_the_moment(server: ServerHandle, port: int) -> None:
    assert ((await scraped(port))("chat_sockets"), (await scraped(port))("chat_users_online")) == (0, 0)
    async with server.chat("1"), server.chat("1"), server.chat("2"):
        now = await scraped(port)
        assert (now("chat_sockets"), now("chat_users_online")) == (3, 2)

    async def gone() -> bool:
        now = await scraped(port)
        return (now("chat_sockets"), now("chat_users_online")) == (0, 0)

    await wait_until(gone)


async def test_a_store_is_measured_by_the_call_and_by_the_batch(server: ServerHandle, port: int) -> None:
    now = await scraped(port)
    calls, batches = now("chat_store_call_seconds_count", "embedded"), now("chat_batch_size_count", "embedded")
    assert 0 < batches < calls  # reads are no batches
    assert 0 < now("chat_store_call_seconds_sum", "embedded") < 60
    assert now("chat_batch_size_sum", "embedded") >= batches
    assert now("chat_store_failures_total", "embedded") == 0
    async with server.chat("1", to="2") as one:
        await one.send("a\nhello")
    after = await scraped(port)
    assert after("chat_store_call_seconds_count", "embedded") > calls
    assert after("chat_batch_size_count", "embedded") > batches


async def test_a_reader_that_was_too_slow_is_counted_and_what_waits_for_one_is_told(tmp_path: Path, port: int) -> None:
    # A heartbeat would cut the reader before it is too slow, where the machine is.
    settings: dict[str, Any] = {"OutboxBytes": 200_000, "StrangerLimit": 0, "HeartbeatSeconds": 600}
    async with serving(tmp_path, MetricsPort=port, **settings) as server:
        await server.add_users("1", "2")
        async with server.chat("1", to="2") as one, raw.chat(server, "2", buffer=4096):
            waited = [0.0]
            while not (now := await scraped(port))("chat_slow_readers_total"):
                waited.append(now("chat_outbox_bytes"))
                for _ in range(4):  # of the twelve that may wait
                    await one.send("x" * 16_000)
            assert now("chat_slow_readers_total") == 1
            assert 0 < max(waited) <= 200_000


async def test_the_loop_and_the_passwords_are_watched(server: ServerHandle, port: int) -> None:
    async def measured() -> bool:
        return (await scraped(port))("chat_loop_lag_seconds_count") > 0

    await wait_until(measured)
    now = await scraped(port)
    assert now("chat_loop_lag_seconds_sum") < 5
    assert now("chat_passwords_waiting") == 0
    assert now("process_resident_memory_bytes") > 10_000_000


async def test_passwords_that_wait_are_told(tmp_path: Path, port: int) -> None:
    async with serving(tmp_path, MetricsPort=port, PasswordCost=11, PasswordWait=1000) as server:
        body = {"user_name": "1", "password": PASSWORD}
        logins = [asyncio.create_task(server.post("/user/login", body)) for _ in range(9)]

        async def waiting() -> bool:
            return (await scraped(port))("chat_passwords_waiting") > 0

        await wait_until(waiting)
        await asyncio.gather(*logins)
        assert (await scraped(port))("chat_passwords_waiting") == 0


async def test_labels_are_few_and_name_nobody(server: ServerHandle, port: int) -> None:
    await server.add_users(STRANGE)
    async with server.chat(STRANGE, to="1") as one:
        await one.send(f"{STRANGE}\n{STRANGE}")
        await one.ask(2, STRANGE)
        for op in range(-50, 50):
            await one.answer(op, STRANGE)
    await ask(server, "GET", f"/{STRANGE}")
    now = await scraped(port)
    assert STRANGE not in now.text
    assert {op for op, _ in now.samples["chat_frames_total"]} <= OPS
    assert {status for _, status in now.samples["chat_frames_total"]} <= {str(int(status)) for status in Status}
    labels = {label for family in now.families.values() for sample in family.samples for label in sample.labels}
    assert labels == {"op", "status", "store", "le"}
    assert set(now.samples["chat_store_call_seconds_count"]) == {("embedded",)}


async def test_both_text_formats_are_spoken(server: ServerHandle, port: int) -> None:
    response = await scrape(port, "application/openmetrics-text; version=1.0.0")
    assert response.headers["Content-Type"].startswith("application/openmetrics-text")
    names = {family.name for family in openmetrics.text_string_to_metric_families(response.text)}  # type: ignore[no-untyped-call]
    assert "chat_sockets" in names


async def test_metrics_are_on_their_own_port_and_nothing_else_is(server: ServerHandle, port: int) -> None:
    refused(await ask(server, "GET", "/metrics"), 404, 404, "not_found")
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, verify=False) as there:
        for path in ("/", "/ping", "/health", "/chat/test"):
            refused(await there.get(path), 404, 404, "not_found")
        refused(await there.post("/metrics"), 405, 400, "method_not_allowed")


async def test_without_a_port_there_are_no_metrics(tmp_path: Path) -> None:
    """Nor is the library loaded."""
    async with subprocess_server(tmp_path / "data") as server:
        refused(await ask(server, "GET", "/metrics"), 404, 404, "not_found")
        loaded = Path(f"/proc/{server.process.pid}/maps").read_text()
        listening = _listening(server.process.pid)
    assert "prometheus" not in loaded
    assert listening == 1


async def test_a_port_that_is_taken_is_a_clear_start_error(server: ServerHandle, port: int, tmp_path: Path) -> None:
    environ = {"CHAT_SERVICE_METRICSPORT": str(port), "CHAT_SERVICE_HTTPPORT": "0"}
    environ |= {"CHAT_SERVICE_DATADIR": str(tmp_path / "other")}
    child = await run_py(environ=environ)
    _, errors = await child.communicate()
    assert child.returncode == 1
    assert f"MetricsPort {port}: cannot listen there" in errors.decode().splitlines()[-1]


async def test_every_metric_of_the_dashboard_exists(server: ServerHandle, port: int) -> None:
    """And every one of ours is on it."""
    async with server.chat("1", to="2") as one:
        await one.send("hello")
    text = DASHBOARD.read_text("utf-8")
    dashboard = json.loads(text)
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    told = {name for query in queries for name in re.findall(r"\b(?:chat|process)_\w+", query)}
    now = await scraped(port)
    assert told <= {*now.samples, *now.families}  # a gauge of what is not in use has no sample
    ours = {name for name in now.families if name.startswith("chat_") and not name.endswith("_created")}
    assert {name for name in ours if not any(one.startswith(name) for one in told)} == set()
    table = MANUAL.read_text("utf-8").partition("\n## Metrics\n")[2]
    manual = set(re.findall(r"^\| `(chat_\w+)` \|", table, re.MULTILINE))
    assert {name.removesuffix("_total") for name in manual} == ours


def _listening(pid: int) -> int:
    """How many sockets of that process listen."""
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        target = descriptor.readlink().name if descriptor.is_symlink() else ""
        inodes |= set(re.findall(r"socket:\[(\d+)\]", target))
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[3] == "0A" and row[9] in inodes for row in rows)
