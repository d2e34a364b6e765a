"""python run.py migrate --from: embedded stores to servers and back, interruptions, refusals, comparisons."""

import asyncio
import os
import pty
import re
import signal
import sys
import termios
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from chat_server.backends import ExportableStores, open_exportable
from chat_server.cache.contacts import ContactRecord, ContactState
from chat_server.cache.sessions import SessionRecord
from chat_server.model.groups import Group
from chat_server.model.messages import GroupKey, Message, Pair, Record
from chat_server.model.users import State, User
from chat_server.utils.clock import Clock
from chat_server.utils.digest import digest
from tests.cluster.relay import FaultyNetwork
from tests.e2e.migration import (
    MIGRATION_TIMEOUT,
    ConfigFiles,
    configs,
    databases,
    load_settings,
    migrate,
    migrate_successfully,
    refused_migration,
    stored_data,
)
from tests.harness import ROOT, TIMEOUT, SubprocessServer, run_py, serving, short_lease, wait_until

__all__ = ["configs", "databases"]  # fixtures

EVERYWHERE = "mysql mongodb redis"
HASH = "$2b$04$" + "a" * 53
# Names, ids and texts that break careless queries, keys and pages.
NAMES = ["1", "A", "a", "a.b", "a-b", "a@b", "é", "ａ", "שלום", "𐐀𐐁", "pSEPp", "n" * 64, "𠮷" * 64]
TEXTS = [
    "",
    'it\'s "quoted" `here` \\',
    "$where: {$gt: ''}; a.b.c % %s {0}",
    "before\0after",
    "\u202eright to left\u202c مرحبا",
    "🙂👩‍👩‍👧",
    "line\nline\r\n\n",
    "x" * 16384,
]
IDS = ["m.1", "m:1", "m-1", "M-1", "_", "9" * 64, "a..b", "-"]
T = 1_700_000_000_000_000
GROUPS = [
    Group(T - 9, "#a", "1", dict.fromkeys(NAMES, T - 9) | {"a": T - 5}),
    Group(T - 8, "#" + "𠮷" * 63, "é", {"é": T - 8, "𠮷" * 64: T - 4}),
    Group(T - 7, "#A", "A", {"A": T - 7}),
]
LEASE = 1.5  # seconds: the lease of a migration with a short lease
HELD = "a text that a held migration cannot write"


async def fill(path: Path, conversations: int = 3, messages: int = 8) -> None:
    """Write users, sessions, counters, and conversations with read, unread and deleted messages."""
    async with open_exportable([load_settings(path)], Clock(), print) as [stores]:
        await stores.users.put(
            [User(name, HASH[:-1] + "bcdefghijklmnopqrstuvwxyz"[i], State(i % 3)) for i, name in enumerate(NAMES)]
        )
        await stores.users.blocks.put([(one, other) for one in NAMES for other in NAMES if one < other])
        await stores.users.groups.put(GROUPS)
        time = T
        for number in range(conversations):
            one, other = NAMES[number % len(NAMES)], NAMES[(number * 3 + 2) % len(NAMES)]
            run = []
            for index in range(messages):
                sender, receiver = (one, other) if index % 3 else (other, one)
                id = IDS[index] if index < len(IDS) else f"m{index}"
                run.append(Message(sender, receiver, id, TEXTS[index % len(TEXTS)], time := time + 1))
            await stores.messages.add(run)
            await stores.messages.mark(one, other, [message.id for message in run[2:5]])
            await stores.messages.delete(
                Pair(one, other), [[(run[4].sender, run[4].id)], [(run[-1].sender, run[-1].id)]]
            )
        await only_deleted(stores, time)
        await fill_groups(stores, time + 10)
        now = Clock().now()
        await stores.sessions.put(
            [SessionRecord(bytes([i]) * 32, n, now + 10**9 * (i + 1)) for i, n in enumerate(NAMES)]
        )
        await stores.contacts.put(
            [
                ContactRecord("1", "𐐀𐐁", ContactState("𐐀𐐁", 3, now - 10, refused=True), now + 10**9),
                ContactRecord("A", "a", ContactState(until=now + 10**9), now + 10**10),
            ]
        )


async def fill_groups(stores: ExportableStores, time: int) -> None:
    """Write messages of members and a former member into the first two groups, some of them deleted, and positions."""
    for group in GROUPS[:2]:
        senders = [*group.members, "unknown"]
        sent = [
            Message(
                senders[n % len(senders)],
                group.name,
                IDS[n % 8] + str(n // 8),
                text,
                time := time + 1,
                False,
                group.number,
            )
            for n, text in enumerate(TEXTS * 5)
        ]
        await stores.messages.add(sent)
        await stores.messages.delete(
            GroupKey(group.number, group.name), [[(message.sender, message.id)] for message in sent[::7]]
        )
        await stores.messages.put_positions(group.number, {group.owner: sent[3].time, "unknown": sent[9].time})


async def only_deleted(stores: ExportableStores, time: int) -> None:
    """Write a conversation with deleted messages only."""
    await stores.messages.add([Message("a@b", "é", "gone", "gone", time + 1)])
    await stores.messages.delete(Pair("a@b", "é"), [[("a@b", "gone")]])


async def large_source(configs: ConfigFiles) -> tuple[Path, Path]:
    """Return the files of an embedded source with 3,200 messages and HELD, and of an empty target on servers."""
    source, target = configs.write_ini("source"), configs.write_ini("target", EVERYWHERE)
    await fill(source, conversations=8, messages=400)
    async with open_exportable([load_settings(source)], Clock(), print) as [stores]:
        await stores.messages.add([Message("a-b", "a@b", "held", HELD, T)])
    return source, target


@asynccontextmanager
async def held_network(configs: ConfigFiles) -> AsyncIterator[tuple[FaultyNetwork, dict[str, str]]]:
    """Yield a network before MongoDB and the environment of migrations that use it.

    While it holds HELD, a migration copies all other messages and cannot end, even if the test stops for a while.
    """
    async with FaultyNetwork(lambda: configs.mongodb_port).running() as network:
        yield network, {"CHAT_MONGODB_MONGODBADDR": f"mongodb://127.0.0.1:{network.port}/?directConnection=true"}


async def wait_copied(database: Any, count: int) -> None:
    """Wait until the MongoDB database contains more than `count` messages."""
    await wait_until(lambda: bool(database["chat_messages"].count_documents({}) > count))


def printed_digests(out: str) -> list[str]:
    """Return the digests of blocks, groups and messages in the output of the command."""
    found = re.findall(r"digest (?:of \w+ )?(\w{32})\)", out)
    assert len(found) == 3
    return found


async def test_a_migration_to_servers_and_back_changes_nothing(configs: ConfigFiles) -> None:
    source, servers_, back = (
        configs.write_ini("source"),
        configs.write_ini("servers", EVERYWHERE),
        configs.write_ini("back"),
    )
    await fill(source)
    before = await stored_data(source)
    output = await migrate_successfully(source, servers_)
    assert await stored_data(servers_) == before
    reverse_output = await migrate_successfully(servers_, back)
    assert await stored_data(back) == before
    assert await stored_data(source) == before
    assert printed_digests(output) == printed_digests(reverse_output)
    assert f"users: {len(NAMES)}" in output
    assert "blocks: 78, the same on both sides" in output
    assert "groups: 3, the same on both sides" in output
    assert "messages: 105 in 6 conversations" in output
    assert f"sessions: {len(NAMES)}" in reverse_output
    assert "contact limits: 2" in reverse_output


@pytest.mark.parametrize("mixture", ["mysql", "mongodb", "redis", "mysql redis"])
async def test_stores_migrate_in_any_combination(configs: ConfigFiles, mixture: str) -> None:
    source, target = configs.write_ini("source", data="shared"), configs.write_ini("target", mixture, data="shared")
    await fill(source)
    before = await stored_data(source)
    await migrate_successfully(source, target)
    assert await stored_data(target) == before


async def test_a_second_migration_changes_nothing(configs: ConfigFiles) -> None:
    source, target = configs.write_ini("source"), configs.write_ini("target", EVERYWHERE)
    await fill(source)
    first = await migrate_successfully(source, target)
    assert await migrate_successfully(source, target) == first
    assert await stored_data(target) == await stored_data(source)


async def test_a_second_migration_copies_changes_of_the_source(configs: ConfigFiles) -> None:
    source, target = configs.write_ini("source"), configs.write_ini("target", EVERYWHERE)
    await fill(source)
    await migrate_successfully(source, target)
    async with open_exportable([load_settings(source)], Clock(), print) as [stores]:
        await stores.messages.mark("1", "a", ["m.1", "m:1", "m-1"])
        await stores.messages.delete(Pair("1", "a"), [[("1", "M-1")], [("1", "m:1")]])
        await stores.messages.add([Message("1", "a", "late", "late", T + 10**6)])
    await migrate_successfully(source, target)
    assert await stored_data(target) == await stored_data(source)


async def test_a_killed_migration_can_be_completed(configs: ConfigFiles) -> None:
    """The second run completes it without duplicates."""
    source, target = await large_source(configs)
    async with held_network(configs) as (network, environ), network.holding(HELD.encode()):
        child = await run_py("migrate", "--from", str(source), "--config", str(target), environ=environ)
        try:
            with configs.mongodb() as database:
                await wait_copied(database, 500)
                child.kill()
                await child.wait()
                stored = database["chat_messages"].count_documents({})
        finally:
            if child.returncode is None:
                child.kill()
            await child.communicate()
    assert child.returncode == -9
    await migrate_successfully(source, target)
    with configs.mongodb() as database:
        assert 500 < stored < database["chat_messages"].count_documents({})
    assert await stored_data(target, 500) == await stored_data(source, 500)


async def test_an_interrupted_migration_says_how_to_continue(configs: ConfigFiles) -> None:
    source, target = await large_source(configs)
    async with held_network(configs) as (network, environ):
        async with network.holding(HELD.encode()):
            child = await run_py("migrate", "--from", str(source), "--config", str(target), environ=environ)
            try:
                with configs.mongodb() as database:
                    await wait_copied(database, 0)
            finally:
                child.terminate()
        _, err = await child.communicate()
    assert child.returncode == 1
    assert err.decode() == "chat-server: interrupted; run the same command again to continue\n"


async def test_a_killed_database_ends_the_migration_with_one_line(configs: ConfigFiles) -> None:
    """A second run completes the migration without loss."""
    source, target = await large_source(configs)
    impatient = configs.write_ini("impatient", EVERYWHERE, data="target-data", StartTimeout=5, StoreTimeout=5)
    if configs.mongodb_server is None:
        pytest.skip("the mongod that CHAT_TEST_MONGODB names must not be killed")
    async with held_network(configs) as (network, environ):
        moving = asyncio.create_task(migrate("--from", source, "--config", impatient, environ=environ))
        try:
            async with network.holding(HELD.encode()):
                with configs.mongodb() as database:
                    await wait_copied(database, 500)
                configs.mongodb_server.kill()
            result = await moving
        finally:
            moving.cancel()
            configs.mongodb_server.kill()
            configs.mongodb_server.start()  # for the following tests
    assert result.code == 1
    assert "Traceback" not in result.err
    last = result.err.splitlines()[-1]
    assert last.startswith("chat-server: MongoDB")
    assert last.endswith("; run the same command again to continue")
    await migrate_successfully(source, target)
    assert await stored_data(target, 500) == await stored_data(source, 500)


async def test_a_store_slower_than_the_lease_only_delays_migration(configs: ConfigFiles) -> None:
    """The migration waits until its lease is renewed, and finishes."""
    source, target = await large_source(configs)
    if configs.mongodb_server is None:
        pytest.skip("the mongod that CHAT_TEST_MONGODB names must not be stopped")
    child = await start_migration(source, target)
    with configs.mongodb() as database:
        await wait_copied(database, 500)
    configs.mongodb_server.send(signal.SIGSTOP)
    await asyncio.sleep(LEASE * 2)  # until the lease expires; only time can do that
    configs.mongodb_server.send(signal.SIGCONT)
    async with asyncio.timeout(MIGRATION_TIMEOUT):
        _, err = await child.communicate()
    assert child.returncode == 0, err
    assert await stored_data(target, 500) == await stored_data(source, 500)


async def test_a_frozen_and_replaced_migration_ends_with_one_line(configs: ConfigFiles) -> None:
    """Another process took its lease. The migration can be run again."""
    source, target = await large_source(configs)
    async with held_network(configs) as (network, environ):
        with configs.mongodb() as database:
            async with network.holding(HELD.encode()):
                child = await start_migration(source, target, environ)
                await wait_copied(database, 500)
                child.send_signal(signal.SIGSTOP)
                await asyncio.sleep(LEASE * 1.2)
                elsewhere = {"holder": b'{"host":"elsewhere","boot":"other","pid":1,"started":"1"}', "until": 2.0**40}
                assert database["chat_leases"].update_one({"_id": "server"}, {"$set": elsewhere}).modified_count == 1
            child.send_signal(signal.SIGCONT)
            async with asyncio.timeout(MIGRATION_TIMEOUT):
                _, err = await child.communicate()
            assert database["chat_leases"].delete_one({"_id": "server"}).deleted_count == 1
    assert child.returncode == 1
    last = err.decode().splitlines()[-1]
    assert "another chat_server (host elsewhere, process 1) took this one's place; run the same command" in last
    await migrate_successfully(source, target)


async def start_migration(
    source: Path, target: Path, environ: Mapping[str, str] | None = None
) -> asyncio.subprocess.Process:
    """Start a migration with a short lease. The caller must wait for the process or kill it."""
    command = ("migrate", "--from", str(source), "--config", str(target))
    return await run_py(*command, prefix=short_lease(source.parent, LEASE), environ=environ)


# --- refusals


@asynccontextmanager
async def running_server(path: Path) -> AsyncIterator[None]:
    """Run a server with this configuration file, as an operator does."""
    child = await run_py("--config", str(path))
    try:
        assert child.stdout
        async with asyncio.timeout(TIMEOUT):
            assert b"is ready" in await child.stdout.readline()
        yield
    finally:
        child.terminate()
        await child.communicate()


@pytest.mark.parametrize(("source", "target"), [("", EVERYWHERE), (EVERYWHERE, ""), ("mysql redis", "")])
async def test_a_migration_refuses_while_a_server_runs(configs: ConfigFiles, source: str, target: str) -> None:
    """On the source or on the target."""
    one, other = configs.write_ini("source", source), configs.write_ini("target", target)
    for path in (one, other):
        async with running_server(path):
            pass  # creates the data
    for path in (one, other):
        async with running_server(path):
            line = await refused_migration("--from", one, "--config", other)
            assert "another chat_server" in line
            assert "is running on it; stop that one" in line
    await migrate_successfully(one, other)


async def test_no_server_starts_during_a_migration(configs: ConfigFiles) -> None:
    source, target = configs.write_ini("source"), configs.write_ini("target", EVERYWHERE)
    async with open_exportable([load_settings(source), load_settings(target)], Clock(), print):
        for path in (source, target):
            child = await run_py("--config", str(path))
            _, err = await child.communicate()
            assert child.returncode == 1
            assert b"another chat_server" in err


async def test_identical_source_and_target_stores_are_refused(tmp_path: Path) -> None:
    one, other = tmp_path / "one.ini", tmp_path / "other.ini"
    for path in (one, other):
        path.write_text("[service]\nDataDir = data\n")
    assert "name the same stores" in await refused_migration("--from", one, "--config", other)


async def test_a_missing_source_is_not_created(tmp_path: Path) -> None:
    one, other = tmp_path / "one.ini", tmp_path / "other.ini"
    one.write_text("[service]\nDataDir = nowhere\n")
    other.write_text("[service]\nDataDir = data\n")
    assert "check DataDir" in await refused_migration("--from", one, "--config", other)
    assert not (tmp_path / "nowhere").exists()
    assert "cannot be read" in await refused_migration("--from", tmp_path / "none.ini", "--config", other)


async def embedded_stores(folder: Path, name: str, user: str = "", *records: Record) -> Path:
    """Create embedded stores with a user and messages; return their configuration file."""
    path = folder / f"{name}.ini"
    path.write_text(f"[service]\nDataDir = {name}\n")
    async with open_exportable([load_settings(path)], Clock(), print) as [stores]:
        if user:
            await stores.users.put([User(user, HASH)])
        for record in records:
            await stores.messages.put([record])
            await stores.messages.update_last(Pair(record.sender, record.receiver))
    return path


async def test_a_target_with_other_users_is_refused(tmp_path: Path) -> None:
    source = await embedded_stores(tmp_path, "source", "1")
    other = await embedded_stores(tmp_path, "other", "2")
    before = await stored_data(other)
    assert "user '2' is in the target, but not in the source" in await refused_migration(
        "--from", source, "--config", other
    )
    assert await stored_data(other) == before
    async with open_exportable([load_settings(other)], Clock(), print) as [stores]:
        await stores.users.put([User("1", HASH.replace("a", "b"))])
    async with open_exportable([load_settings(source)], Clock(), print) as [stores]:
        await stores.users.put([User("2", HASH)])
    assert "user '1' has another password in the target" in await refused_migration("--from", source, "--config", other)


def record(one: str, other: str, id: str, time: int, text: str | bytes = "text") -> Record:
    return Record(one, other, id, text, time, isinstance(text, bytes))


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        ([record("3", "4", "m", T + 9)], "the conversation of '3' and '4' is not in the source"),
        ([record("1", "2", "m", T + 9)], "the conversation of '1' and '2': an id is already used by another message"),
        ([record("2", "1", "m", T)], "the conversation of '1' and '2': a time is already used by another message"),
        ([record("2", "1", "more", T + 9)], "the conversation of '1' and '2' differs: 2 messages in the source, 3 in"),
        ([record("2", "1", "more", T + 1)], "the conversation of '1' and '2' differs: 2 messages in the source, 3 in"),
    ],
)
async def test_a_target_with_other_messages_is_refused(tmp_path: Path, records: list[Record], reason: str) -> None:
    """The error names the conversation."""
    source = await embedded_stores(
        tmp_path, "source", "1", record("1", "2", "m", T), record("2", "1", "n", T + 2, digest("n"))
    )
    other = await embedded_stores(tmp_path, "other", "1", *records)
    assert reason in await refused_migration("--from", source, "--config", other)


async def test_a_target_with_another_block_is_refused(tmp_path: Path) -> None:
    """The error names both users."""
    source, target = [await embedded_stores(tmp_path, name, "1") for name in ("source", "target")]
    async with open_exportable([load_settings(target)], Clock(), print) as [stores]:
        await stores.users.blocks.put([("1", "2")])
    assert "in the target, '1' blocks '2'" in await refused_migration("--from", source, "--config", target)


@pytest.mark.parametrize(
    ("group", "reason"),
    [
        (Group(T + 1, "#b", "1", {"1": T}), "the group '#b' of the target is missing in the source"),
        (Group(T + 1, "#a", "1", {"1": T}), "the group '#a' of the target is missing in the source"),
        (Group(T, "#b", "1", {"1": T}), "the group '#b' of the target has another name, owner or members"),
        (Group(T, "#a", "1", {"1": T, "2": T}), "the group '#a' of the target has another name, owner or members"),
    ],
)
async def test_a_target_with_another_group_is_refused(tmp_path: Path, group: Group, reason: str) -> None:
    """The error names the group. A deleted one is refused too."""
    source, target = [await embedded_stores(tmp_path, name, "1") for name in ("source", "target")]
    async with open_exportable([load_settings(source), load_settings(target)], Clock(), print) as [one, other]:
        await one.users.groups.put([Group(T, "#a", "1", {"1": T})])
        await other.users.groups.put([group])
    assert reason in await refused_migration("--from", source, "--config", target)
    async with open_exportable([load_settings(target)], Clock(), print) as [other]:
        await other.users.groups.delete(group.number, "1")
    assert "the target has a deleted group" in await refused_migration("--from", source, "--config", target)


@pytest.mark.parametrize("key", ["mysql", "mongodb", "redis"])
async def test_an_unavailable_database_server_is_one_error_line(tmp_path: Path, key: str) -> None:
    source = await embedded_stores(tmp_path, "source", "1")
    target = tmp_path / "target.ini"
    sections = {
        "mysql": "[mysql]\nDb = mysql\nDbPort = 1",
        "mongodb": "[MongoDB]\nMongoDb = mongodb\nMongoDBPort = 1",
        "redis": "[redis]\nRedisDb = redis\nRedisAddr = 127.0.0.1:1",
    }
    target.write_text(f"[service]\nDataDir = target\nStartTimeout = 1\nStoreTimeout = 1\n{sections[key]}\n")
    result = await migrate("--from", source, "--config", target)
    assert result.code == 1
    assert re.search(r": connection refused.*; gave up after 1 s", result.err.splitlines()[-1])
    assert "Traceback" not in result.err


async def test_errors_name_invalid_options() -> None:
    neither, both = await migrate(), await migrate("--from", "a", "--from-go", "b")
    assert (neither.code, both.code) == (2, 2)
    assert "--from --from-go is required" in neither.err
    assert "not allowed with" in both.err


# --- what operators and users see


async def test_the_environment_applies_only_to_the_target(tmp_path: Path) -> None:
    source = await embedded_stores(tmp_path, "source", "1")
    result = await migrate("--from", source, environ={"CHAT_SERVICE_DATADIR": str(tmp_path / "target")})
    assert result.code == 0, result
    assert (tmp_path / "target" / "chat.db").exists()


async def test_a_terminal_shows_the_progress(tmp_path: Path) -> None:
    source = await embedded_stores(tmp_path, "source", "1", *(record("1", "2", f"m{n}", T + n) for n in range(5)))
    target = await embedded_stores(tmp_path, "target")
    mine, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    command = [sys.executable, str(ROOT / "run.py"), "migrate", "--from", str(source), "--config", str(target)]
    child = await asyncio.create_subprocess_exec(*command, stdout=theirs, stderr=theirs)
    os.close(theirs)
    async with asyncio.timeout(TIMEOUT):
        assert await child.wait() == 0
    shown = os.read(mine, 65536).decode()
    os.close(mine)
    assert "messages: 100%" in shown
    assert "5.00/5.00" in shown


async def test_users_continue_unchanged_after_a_migration(configs: ConfigFiles) -> None:
    """Sessions, history, unread messages and the contact limit continue unchanged."""
    source, target = configs.write_ini("source"), configs.write_ini("target", EVERYWHERE, StrangerLimit=2)
    async with serving(configs.folder / "source-data", users=("1", "2"), StrangerLimit=2) as server:
        tokens = server.tokens
        async with server.chat("1", to="2") as one:
            for number in range(2):
                await one.send(f"m{number}\ntext {number}")
            assert (await one.send("m2\nrefused"))["op_type"] == 40020
    await migrate_successfully(source, target)
    child = await run_py("--config", str(target))
    assert child.stdout
    try:
        async with asyncio.timeout(TIMEOUT):
            ready = (await child.stdout.readline()).decode()
        host, _, port = ready.rsplit("/", 1)[1].strip().rpartition(":")
        again = SubprocessServer(host, int(port), child, configs.folder)
        again.tokens = tokens
        async with again.chat("1", to="2") as one:
            assert (await one.send("m2\nstill refused"))["op_type"] == 40020
        async with again.chat("2", to="1") as two:
            *unread, last = await two.ask(3)
            assert [frame["content"] for frame in unread] == ["m0\ntext 0", "m1\ntext 1"], last
    finally:
        child.terminate()
        await child.communicate()
