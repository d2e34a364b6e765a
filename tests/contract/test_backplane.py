"""Backplane on Redis: items between nodes, the directory, confirmed changes and gaps."""

import asyncio
import socket
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from itertools import count
from typing import Any

import pytest
from redis import Redis
from redis.asyncio.client import PubSub

from chat_server import conf
from chat_server.cache import redis, redis_backplane, redis_changes, redis_nodes
from chat_server.cache.backplane import Item
from chat_server.cache.redis import Scripts
from chat_server.cache.redis_backplane import RedisBackplane
from chat_server.cache.redis_nodes import RedisNode, cluster_name
from chat_server.utils.clock import Clock, Timeline
from chat_server.utils.errors import StoreUnavailable
from chat_server.utils.tasks import cancel
from tests.cluster.relay import FaultyNetwork
from tests.contract.conftest import SHORT_LEASE, _server
from tests.harness import TIMEOUT, wait_until

# Confirms a change for a process that is no node.
Command = Callable[[bytes], Coroutine[Any, Any, None]]


class BackplaneProcess:
    """One process of a cluster, and what it received."""

    def __init__(self, node: RedisNode, backplane: RedisBackplane) -> None:
        self.node = node
        self.renewing = asyncio.create_task(node.keep(pytest.fail))
        self.backplane = backplane
        self.items: list[tuple[list[str], bytes]] = []
        self.applied: list[bytes] = []
        self.gaps: list[int] = []
        self.own_gaps: list[int] = []
        self.others: dict[str, set[str]] = {}  # the users of other nodes
        self.may_apply = asyncio.Event()
        self.may_apply.set()
        self.may_recover = asyncio.Event()
        self.may_recover.set()
        self.failures = 0  # recoveries that fail from now on

    async def received(self, users: Sequence[str], payload: bytes) -> None:
        if payload == b"bad":
            raise ValueError(payload)
        self.items.append((list(users), payload))

    async def apply(self, payload: bytes) -> None:
        await self.may_apply.wait()
        self.applied.append(payload)

    def appeared(self, node: str, users: Sequence[str]) -> None:
        self.others[node] = set(users)

    def vanished(self, node: str) -> None:
        self.others.pop(node, None)

    async def recover(self, since: int, *, own: bool) -> None:
        self.gaps.append(since)
        if own:
            self.own_gaps.append(since)
        await self.may_recover.wait()
        if self.failures:
            self.failures -= 1
            raise StoreUnavailable("the store is away")
        self.items.append(([], b"recovered"))


def _client(port: int, query: str = "") -> Any:
    return redis.client(conf.RedisSettings(redis_db="redis", redis_addr=f"redis://127.0.0.1:{port}{query}"), 5)


@pytest.fixture
def prefix() -> str:
    return f"{uuid.uuid4().hex}:"


@pytest.fixture
async def command(prefix: str) -> AsyncIterator[Command]:
    """Confirms a change as a command on the stores of `processes`."""
    client = _client(_server("redis").port)
    scripts = Scripts(client, prefix, 5)
    yield partial(redis_changes.confirm_as_command, client, scripts)
    await scripts.close()


@asynccontextmanager
async def _process(port: int, prefix: str, timeout: float = 5) -> AsyncIterator[BackplaneProcess]:
    async with AsyncExitStack() as stack:
        client = _client(port)
        scripts = Scripts(client, prefix, timeout)
        stack.push_async_callback(scripts.close)
        node = RedisNode(scripts, await cluster_name(scripts), "number", Clock(), Timeline(Clock()))
        await node.join()
        backplane = RedisBackplane(client, scripts, node, Clock(), timeout)
        await backplane.open()
        process = BackplaneProcess(node, backplane)
        backplane.start(process)
        stack.push_async_callback(backplane.close)
        stack.push_async_callback(cancel, process.renewing)
        yield process


@pytest.fixture
async def processes(
    prefix: str, lease: float, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[list[BackplaneProcess]]:
    monkeypatch.setattr(redis_nodes, "LEASE_SECONDS", lease)
    monkeypatch.setattr(redis_nodes, "RENEWAL_SECONDS", 0.1)
    monkeypatch.setattr(redis_backplane, "PROBE_SECONDS", 0.1)
    monkeypatch.setattr(redis_backplane, "PROBE_TIMEOUT", 20.0)  # no process notices that it was stopped
    monkeypatch.setattr(redis_changes, "SUBSCRIBE_SECONDS", 20.0)
    monkeypatch.setattr(redis_changes, "REPEAT_SECONDS", 0.2)
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(_process(_server("redis").port, prefix)) for _ in range(3)]


def kill_subscriptions() -> None:
    with Redis(port=_server("redis").port) as admin:
        admin.client_kill_filter(_type="pubsub")


async def until(condition: Callable[[], object]) -> None:
    await wait_until(lambda: bool(condition()))


async def test_an_item_reaches_the_processes_of_its_users(processes: list[BackplaneProcess]) -> None:
    one, two, three = processes
    await two.backplane.set_sockets("bob", 1)
    await three.backplane.set_sockets("bob", 2)
    await three.backplane.set_sockets("cid", 1)
    accepted = await one.backplane.publish(
        [Item(["bob", "ann"], b"first"), Item(["cid"], b"\0second"), Item(["x"], b"")]
    )
    assert accepted == [2, 1, 0]
    await until(lambda: len(three.items) == 2)
    assert two.items == [(["bob"], b"first")]
    assert three.items == [(["bob"], b"first"), (["cid"], b"\0second")]
    assert one.items == []


async def test_processes_with_other_users_of_an_item_do_not_count(processes: list[BackplaneProcess]) -> None:
    one, two, three = processes
    await two.backplane.set_sockets("bob", 1)
    await three.backplane.set_sockets("ann", 1)
    accepted = await one.backplane.publish([Item(["bob"], b"first", ["ann"]), Item([], b"second", ["ann"])])
    assert accepted == [1, 0]
    await until(lambda: len(three.items) == 2)
    assert two.items == [(["bob"], b"first")]
    assert three.items == [(["ann"], b"first"), (["ann"], b"second")]


async def test_an_item_may_have_more_users_than_a_lookup(processes: list[BackplaneProcess]) -> None:
    one, two, _ = processes
    names = [f"user{number:060}" for number in range(1500)]
    await asyncio.gather(*(two.backplane.set_sockets(name, 1) for name in names))
    assert await one.backplane.publish([Item(names, b"1"), Item([names[0], "x"], b"2", names[1:])]) == [1, 1]
    await until(lambda: len(two.items) == 2)
    assert two.items == [(names, b"1"), (names, b"2")]


async def test_many_calls_without_a_result_are_a_congestion(processes: list[BackplaneProcess]) -> None:
    one, two, _ = processes
    await two.backplane.set_sockets("bob", 1)
    publishing = [one.backplane.publish([Item(["bob"], b"item")] * 2) for _ in range(300)]
    assert one.backplane.congested()
    assert await asyncio.gather(*publishing) == [[1, 1]] * 300
    assert not one.backplane.congested()


async def test_items_arrive_in_the_order_of_the_calls(processes: list[BackplaneProcess]) -> None:
    one, two, _ = processes
    await two.backplane.set_sockets("bob", 1)
    await asyncio.gather(*(one.backplane.publish([Item(["bob"], b"%d" % n)]) for n in range(1000)))
    await until(lambda: len(two.items) == 1000)
    assert [payload for _, payload in two.items] == [b"%d" % n for n in range(1000)]


async def test_an_item_for_everyone_reaches_every_other_process(processes: list[BackplaneProcess]) -> None:
    assert await processes[0].backplane.publish([Item(None, b"all")]) == [2]
    await until(lambda: processes[1].items and processes[2].items)
    assert processes[1].items == processes[2].items == [([], b"all")]


async def test_a_limit_counts_the_sockets_at_all_processes(processes: list[BackplaneProcess]) -> None:
    one, two, three = processes
    assert await two.backplane.set_sockets("bob", 3, limit=3)
    assert not await three.backplane.set_sockets("bob", 1, limit=3)
    assert await three.backplane.set_sockets("bob", 2)
    assert not await one.backplane.set_sockets("bob", 1, limit=5)
    assert await one.backplane.set_sockets("bob", 1, limit=6)
    assert await one.backplane.count_users() == 1
    for process in processes:
        await process.backplane.set_sockets("bob", 0)
    assert await two.backplane.count_users() == 0


async def test_numbers_of_sockets_are_entered_in_order(processes: list[BackplaneProcess]) -> None:
    """Whatever is awaited first: an older number, entered later, would let a user exceed the limit."""
    one, two, _ = processes
    older, newer = two.backplane.set_sockets("bob", 1), two.backplane.set_sockets("bob", 2)
    await newer
    await older
    assert not await one.backplane.set_sockets("bob", 1, limit=2)


async def test_a_change_is_confirmed_when_all_have_applied_it(processes: list[BackplaneProcess]) -> None:
    one, two, three = processes
    three.may_apply.clear()
    confirming = asyncio.create_task(one.backplane.confirm(b"change"))
    await until(lambda: two.applied)
    await asyncio.sleep(0.1)
    assert not confirming.done()
    three.may_apply.set()
    await asyncio.wait_for(confirming, TIMEOUT)
    assert three.applied == [b"change"]


@SHORT_LEASE
async def test_a_change_waits_for_a_lease_at_most(processes: list[BackplaneProcess]) -> None:
    one, two, three = processes
    two.may_apply.clear()
    two.renewing.cancel()
    await asyncio.wait_for(one.backplane.confirm(b"change"), TIMEOUT)
    assert two.node.lapsed()
    assert three.applied == [b"change"]
    assert two.applied == []


async def test_a_command_waits_until_all_have_applied_its_change(
    processes: list[BackplaneProcess], command: Command
) -> None:
    processes[2].may_apply.clear()
    confirming = asyncio.create_task(command(b"change"))
    await until(lambda: processes[0].applied and processes[1].applied)
    await asyncio.sleep(0.3)
    assert not confirming.done()
    processes[2].may_apply.set()
    await asyncio.wait_for(confirming, TIMEOUT)
    assert [process.applied for process in processes] == [[b"change"]] * 3


@SHORT_LEASE
async def test_a_command_waits_for_a_lease_at_most(processes: list[BackplaneProcess], command: Command) -> None:
    processes[1].may_apply.clear()
    processes[1].renewing.cancel()
    await asyncio.wait_for(command(b"change"), TIMEOUT)
    assert processes[1].node.lapsed()
    assert processes[0].applied == processes[2].applied == [b"change"]


async def test_a_command_without_processes_returns(command: Command) -> None:
    await asyncio.wait_for(command(b"change"), TIMEOUT)


async def test_a_command_does_not_wait_for_ever(
    processes: list[BackplaneProcess], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_changes, "CHANGE_SECONDS", 0.5)
    processes[1].may_apply.clear()
    with pytest.raises(StoreUnavailable, match="has not confirmed"):
        await asyncio.wait_for(command(b"change"), TIMEOUT)


async def test_a_command_notices_the_end_of_its_subscription(
    processes: list[BackplaneProcess], command: Command
) -> None:
    """It fails, or subscribes again."""
    processes[1].may_apply.clear()
    confirming = asyncio.create_task(command(b"change"))
    await until(lambda: processes[0].applied)
    kill_subscriptions()
    await asyncio.sleep(0.3)
    processes[1].may_apply.set()
    with suppress(StoreUnavailable):
        await asyncio.wait_for(confirming, TIMEOUT)


async def test_a_command_notices_a_half_open_subscription(
    processes: list[BackplaneProcess], prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The confirmations get lost, but the command hangs as little as it claims success."""
    ping, pings = PubSub.ping, list[PubSub]()

    def note(self: PubSub) -> Awaitable[bool]:
        pings.append(self)
        return ping(self)

    monkeypatch.setattr(PubSub, "ping", note)
    monkeypatch.setattr(redis_changes, "SUBSCRIBE_SECONDS", 3)
    processes[1].may_apply.clear()
    async with FaultyNetwork(lambda: _server("redis").port).running() as network:
        client = _client(network.port)
        scripts = Scripts(client, prefix, 5)
        confirming = asyncio.create_task(redis_changes.confirm_as_command(client, scripts, b"change"))
        await until(lambda: processes[0].applied)
        await until(lambda: len(pings) == 2)  # Redis has answered the first
        assert not confirming.done()
        async with network.half_open(network.subscriptions()):
            processes[1].may_apply.set()
            with pytest.raises(StoreUnavailable, match="no answer in time"):
                await asyncio.wait_for(confirming, TIMEOUT)
        await scripts.close()


async def test_items_before_a_confirmation_arrive_before_it(processes: list[BackplaneProcess]) -> None:
    """What a process published before it applied a change arrives before the change is confirmed."""
    one, two, three = processes
    await three.backplane.set_sockets("cid", 1)
    publishing: list[asyncio.Future[list[int]]] = []

    async def apply(payload: bytes) -> None:
        publishing.extend(two.backplane.publish([Item(["cid"], b"item")]) for _ in range(50))
        await asyncio.sleep(0)

    two.apply = apply  # type: ignore[method-assign]
    await one.backplane.confirm(b"change")
    await one.backplane.publish([Item(["cid"], b"after")])
    await until(lambda: len(three.items) == 51)
    assert three.items[-1] == (["cid"], b"after")


async def test_a_killed_subscription_is_a_gap(processes: list[BackplaneProcess]) -> None:
    one, two, _ = processes
    await two.backplane.set_sockets("bob", 1)
    before = two.gaps, two.backplane._probed
    kill_subscriptions()
    await until(lambda: all(process.own_gaps for process in processes))
    assert two.own_gaps[0] < before[1]
    assert await one.backplane.publish([Item(["bob"], b"again")]) == [1]
    await until(lambda: (["bob"], b"again") in two.items)


async def test_a_node_survives_errors_of_its_connection(
    processes: list[BackplaneProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    """uvloop raises RuntimeError for a connection that was reset, also while the node subscribes again."""
    one, two, _ = processes
    await two.backplane.set_sockets("bob", 1)
    failures, get_message = Counter[bytes](), PubSub.get_message

    async def fail(self: PubSub, *args: Any, **options: Any) -> Any:
        (channel,) = self.channels
        failures[channel] += 1
        if failures[channel] <= 2:
            raise RuntimeError("the handler is closed")
        return await get_message(self, *args, **options)

    monkeypatch.setattr(PubSub, "get_message", fail)
    await until(lambda: all(process.own_gaps for process in processes))
    assert len(failures) == 3
    assert await one.backplane.publish([Item(["bob"], b"again")]) == [1]
    await until(lambda: (["bob"], b"again") in two.items)


async def test_a_reconnection_without_an_answer_is_given_up(
    processes: list[BackplaneProcess], prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frozen Redis still accepts connections, and the driver reconnects a subscription that ended."""
    async with AsyncExitStack() as stack:
        network = await stack.enter_async_context(FaultyNetwork(lambda: _server("redis").port).running())
        with socket.create_server(("127.0.0.1", 0)) as frozen, monkeypatch.context() as patch:
            patch.setattr(redis_backplane, "PROBE_TIMEOUT", 0.5)
            process = await stack.enter_async_context(_process(network.port, prefix))
            network.redirect_to(frozen.getsockname()[1])
            network.cut(network.subscriptions())
            patch.setattr(redis_changes, "SUBSCRIBE_SECONDS", 0.5)
            await until(lambda: not process.backplane._subscribed)
        network.redirect_to(_server("redis").port)
        await until(lambda: process.backplane._subscribed and process.own_gaps)
        await process.backplane.set_sockets("dan", 1)
        assert await processes[0].backplane.publish([Item(["dan"], b"again")]) == [1]
        await until(lambda: (["dan"], b"again") in process.items)


async def test_items_after_a_gap_wait_for_the_recovery(processes: list[BackplaneProcess]) -> None:
    """In order, also if there is a second gap meanwhile, and if the recovery fails twice."""
    one, two, _ = processes
    await two.backplane.set_sockets("bob", 1)
    two.may_recover.clear()
    two.failures = 2
    two.backplane._note_gap(own=True)
    await until(lambda: two.own_gaps)
    assert await one.backplane.publish([Item(["bob"], b"first")]) == [1]
    kill_subscriptions()
    await until(lambda: two.backplane._gap and two.backplane._gap.own)
    assert await one.backplane.publish([Item(["bob"], b"second")]) == [1]
    await asyncio.sleep(0.3)
    assert two.items == []
    two.may_recover.set()
    await until(lambda: (["bob"], b"second") in two.items)
    payloads = [payload for _, payload in two.items]
    assert [payload for payload in payloads if payload != b"recovered"] == [b"first", b"second"]
    assert payloads[:2] == [b"recovered"] * 2
    assert len(two.own_gaps) >= 4


async def test_one_recovery_closes_all_gaps_that_were_noted_before(processes: list[BackplaneProcess]) -> None:
    one, two, three = processes
    await two.backplane.set_sockets("bob", 1)
    two.may_recover.clear()
    three.backplane._lost_since = 54321
    await until(lambda: two.gaps == [54321])
    began = two.backplane._clock.now()
    closed = [two.backplane._note_gap(own=True) for _ in range(3)]
    for since in (23456, 12345, 34567):
        one.backplane._lost_since = since
        await one.backplane.publish([Item(["bob"], b"item")])
    await until(lambda: sum(b"item" in arrived.message for arrived in waiting(two)) == 3)
    two.may_recover.set()
    await until(lambda: len(two.items) == 5)
    assert all(event.is_set() for event in closed)
    assert (two.gaps, two.own_gaps) == ([54321, 12345], [12345])
    assert two.items[1:] == [([], b"recovered"), *[(["bob"], b"item")] * 3]

    await two.backplane._note_gap(own=True).wait()
    assert two.own_gaps[1] > began - redis_backplane.PUBLISHED_WITHIN  # what was read again is not read once more


async def test_a_change_does_not_wait_for_a_recovery(processes: list[BackplaneProcess]) -> None:
    """Neither at a process that recovers, nor if the process that makes the change recovers."""
    one, two, _ = processes
    for process in processes:
        process.may_recover.clear()
    kill_subscriptions()
    await until(lambda: one.gaps and two.gaps)
    await asyncio.wait_for(one.backplane.confirm(b"change"), TIMEOUT)
    assert two.applied == [b"change"]
    assert (two.items, one.items) == ([], [])


async def test_a_full_queue_is_a_gap(processes: list[BackplaneProcess], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_backplane, "MAX_WAITING", 1000)
    one, two, _ = processes
    await two.backplane.set_sockets("bob", 1)
    two.may_recover.clear()
    two.backplane._note_gap(own=True)
    await until(lambda: two.own_gaps)
    for _ in range(3):
        await one.backplane.publish([Item(["bob"], b"x" * 500)])
    await until(lambda: two.backplane._gap and two.backplane._gap.own)
    assert two.backplane._waiting_bytes < 1000
    two.may_recover.set()
    await until(lambda: len(two.own_gaps) >= 2)
    await one.backplane.publish([Item(["bob"], b"after")])
    await until(lambda: (["bob"], b"after") in two.items)


async def test_a_failing_item_does_not_drop_the_next_ones(processes: list[BackplaneProcess]) -> None:
    """Neither does an item of a kind that only a later version knows."""
    one, two, _ = processes
    await two.backplane.set_sockets("bob", 1)
    message = redis_changes.header("later") + redis_changes.record(b"~later") + redis_changes.record(b"iitem")
    await one.backplane._scripts.run("publish_to", [], [two.backplane._channels + two.node.name, message])
    await one.backplane.publish([Item(["bob"], payload) for payload in (b"bad", b"good")])
    await until(lambda: len(two.items) == 2)
    assert two.items == [([], b"item"), (["bob"], b"good")]


async def test_a_failed_publication_is_a_gap_for_the_others(
    processes: list[BackplaneProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, three = processes
    one.backplane._lost_since = 12345
    await until(lambda: two.gaps and three.gaps)
    assert two.gaps == three.gaps == [12345]
    assert two.own_gaps == three.own_gaps == []
    assert one.gaps == []
    await until(lambda: not one.backplane._lost_since)


async def test_a_gap_noted_during_a_publication_is_told(
    processes: list[BackplaneProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The publication in flight does not tell it, so its success ends nothing."""
    one, two, _ = processes
    run, held, go = Scripts.run, asyncio.Event(), asyncio.Event()

    async def hold(self: Scripts, name: str, *arguments: Any) -> Any:
        if name == "publish":
            held.set()
            await go.wait()
        return await run(self, name, *arguments)

    monkeypatch.setattr(Scripts, "run", hold)
    publishing = one.backplane.publish([Item(None, b"earlier")])
    await held.wait()
    one.backplane._lost_since = 12345
    go.set()
    await publishing
    await until(lambda: two.gaps == [12345])


async def test_a_change_that_is_not_confirmed_is_a_gap_for_the_others(
    processes: list[BackplaneProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is stored: they find it when they read again."""
    monkeypatch.setattr(redis_changes, "CHANGE_SECONDS", 0.5)
    one, two, three = processes
    two.may_apply.clear()
    with pytest.raises(StoreUnavailable, match=r"has not confirmed within 0\.5 s"):
        await one.backplane.confirm(b"change")
    await until(lambda: two.gaps and three.gaps)
    assert one.gaps == []


async def test_a_lapsed_node_handles_nothing(
    processes: list[BackplaneProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What arrived before it notices the lapse may be outdated; afterwards it reads again."""
    one, two, _ = processes
    await two.backplane.set_sockets("bob", 1)
    monkeypatch.setattr(two.backplane, "lapsed", lambda: True)
    handled = list[bytes]()
    handle = two.backplane._handle

    async def note(arrived: Any) -> None:
        await handle(arrived)
        handled.append(arrived.message)

    monkeypatch.setattr(two.backplane, "_handle", note)
    assert await one.backplane.publish([Item(["bob"], b"item")]) == [1]
    await until(lambda: any(b"item" in message for message in handled))
    assert two.items == []


async def test_a_flushed_redis_gets_nodes_and_directory_back(processes: list[BackplaneProcess]) -> None:
    one, two, _ = processes
    await two.backplane.set_sockets("bob", 1)
    names = {process.node.name for process in processes}
    with Redis(port=_server("redis").port) as admin:
        admin.flushall()
    await until(lambda: not names & {process.node.name for process in processes})
    await until(lambda: not any(process.backplane.lapsed() for process in processes))
    assert await one.backplane.publish([Item(["bob"], b"again")]) == [1]
    assert two.own_gaps


async def test_the_users_of_a_node_arrive_in_the_order_of_its_channel(processes: list[BackplaneProcess]) -> None:
    """So they are neither older nor newer than what is handled before and after them."""
    one, two, three = processes
    await until(lambda: set(one.others) == {two.node.name, three.node.name})
    await two.backplane.set_sockets("bob", 1)
    await three.backplane.set_sockets("cid", 1)
    one.may_recover.clear()
    one.backplane._note_gap(own=True)
    await until(lambda: sum(b"cid" in arrived.message or b"bob" in arrived.message for arrived in waiting(one)) == 2)
    assert list(one.others.values()) == [set(), set()]
    two.backplane._reading.cancel()
    await until(lambda: two.node.name not in one.others)
    one.may_recover.set()
    await until(lambda: one.others.get(three.node.name) == {"cid"})
    assert two.node.name not in one.others  # it has ended meanwhile


async def test_users_are_asked_for_once_in_a_recovery(processes: list[BackplaneProcess]) -> None:
    """However often it fails: the answers wait in memory."""
    one, two, three = processes
    await until(lambda: set(one.others) == {two.node.name, three.node.name})
    one.failures = 1_000_000
    one.backplane._note_gap(own=True)
    nodes = [process.node.name.encode() for process in (two, three)]

    def answers() -> list[int]:
        return [sum(name in arrived.message for arrived in waiting(one)) for name in nodes]

    await until(lambda: all(answers()))
    tried = len(one.gaps)
    await until(lambda: len(one.gaps) > tried + 3)
    assert answers() == [1, 1]


def waiting(process: BackplaneProcess) -> Sequence[Any]:
    """What has arrived at a process and waits for a recovery."""
    return tuple(process.backplane._waiting)


@pytest.mark.parametrize("loss", ["subscription", "lease"])
async def test_a_node_listens_again_once_its_directory_is_complete(
    processes: list[BackplaneProcess], monkeypatch: pytest.MonkeyPatch, loss: str
) -> None:
    one, two, _ = processes
    await until(lambda: two.node.name in one.others)
    await two.backplane.set_sockets("bob", 1)
    before, may_write, write_all = two.node.name, asyncio.Event(), two.backplane._directory.write_all

    async def write_later() -> None:
        await may_write.wait()
        await write_all()

    monkeypatch.setattr(two.backplane._directory, "write_all", write_later)
    with Redis(port=_server("redis").port) as admin:
        admin.flushall()
    if loss == "subscription":
        kill_subscriptions()
    await until(lambda: before not in one.others)
    await until(lambda: one.own_gaps and not one.backplane.lapsed())
    await asyncio.sleep(0.5)
    assert two.node.name not in one.others
    may_write.set()
    await until(lambda: one.others.get(two.node.name) == {"bob"})
    await until(lambda: two.others)
    await asyncio.sleep(0.5)
    assert len(two.own_gaps) == 1  # it has subscribed once


async def test_a_subscription_can_be_cancelled_at_any_moment(prefix: str) -> None:
    """On Python 3.11, asyncio.wait_for loses a cancellation at the moment at which its own work is done.

    The driver uses it for a `socket_timeout`, which therefore has no effect.
    """
    client = _client(_server("redis").port, "?socket_timeout=5")
    scripts = Scripts(client, prefix, 5)
    for turns in count():
        subscribing = asyncio.create_task(redis_changes.subscribe(client, f"{prefix}node", scripts))
        for _ in range(turns):
            await asyncio.sleep(0)
        if not subscribing.cancel():
            await redis_changes.close(subscribing.result())
            break
        await asyncio.wait((subscribing,))
        assert subscribing.cancelled(), f"cancelled after {turns} turns of the loop"
    await scripts.close()


async def test_a_process_ends_although_redis_does_not_answer(prefix: str) -> None:
    """It does not wait a second for each part of what it has to publish."""
    port = _server("redis").port
    async with FaultyNetwork(lambda: port).running() as network:
        async with _process(network.port, prefix, timeout=1) as process:
            network.delay = 3600
            publishing = [process.backplane.publish([Item([], b"")]) for _ in range(20_000)]
            async with asyncio.timeout(TIMEOUT / 2):
                await process.backplane.close()
        assert not all(future.done() for future in publishing)


async def test_a_lock_is_free_after_a_caller_that_was_cancelled(processes: list[BackplaneProcess]) -> None:
    one, two, _ = processes

    async def take() -> None:
        async with one.backplane.lock("group"):
            await asyncio.sleep(3600)

    taking = asyncio.create_task(take())
    await asyncio.sleep(0)
    await cancel(taking)  # the script is on its way
    async with asyncio.timeout(10), two.backplane.lock("group"):
        pass


async def test_an_entry_that_was_not_deleted_is_deleted_later(
    processes: list[BackplaneProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other nodes that have read it meanwhile read the directory again."""
    one, two, _ = processes
    await two.backplane.set_sockets("bob", 1)
    run = Scripts.run

    async def fail(self: Scripts, name: str, *arguments: Any) -> Any:
        if name == "sockets_set":
            raise StoreUnavailable("Redis is away")
        return await run(self, name, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Scripts, "run", fail)
        with pytest.raises(StoreUnavailable):
            await two.backplane.set_sockets("bob", 0)
        one.backplane._note_gap(own=True)
        await until(lambda: one.others.get(two.node.name) == {"bob"})
    await until(lambda: one.others.get(two.node.name) == set())
    assert await one.backplane.publish([Item(["bob"], b"late")]) == [0]


async def test_the_end_of_a_subscription_is_seen_at_once(processes: list[BackplaneProcess]) -> None:
    one, two, three = processes
    await two.backplane.set_sockets("bob", 1)
    await until(lambda: set(one.others) == {two.node.name, three.node.name})
    two.backplane._reading.cancel()
    await until(lambda: set(one.others) == {three.node.name})
    await until(lambda: one.gaps)  # it may have stored something that it did not publish
    assert one.own_gaps == []
    assert await one.backplane.count_users() == 0
    assert await one.backplane.publish([Item(["bob"], b"lost")]) == [0]
    await two.backplane.open()
    await until(lambda: one.others.get(two.node.name) == {"bob"})


@SHORT_LEASE
async def test_the_end_of_a_lease_is_a_second_gap(processes: list[BackplaneProcess]) -> None:
    """A node without a subscription can store, but perhaps not publish, until its lease ends."""
    one, two, three = processes
    await until(lambda: set(one.others) == {two.node.name, three.node.name})
    two.backplane._reading.cancel()
    await until(lambda: len(one.gaps) == 1)
    await asyncio.sleep(0.5)
    assert len(one.gaps) == 1
    two.renewing.cancel()
    await until(lambda: len(one.gaps) == 2)
    assert one.own_gaps == []
