"""python run.py migrate --from: from embedded stores to servers and back, interrupted, refused, compared."""

import asyncio
import os
import pty
import re
import signal
import sys
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from chat_server.backends import ExportableStores, open_exportable
from chat_server.cache.counters import ContactRecord, ContactState
from chat_server.cache.sessions import SessionRecord
from chat_server.model.messages import Message, Record
from chat_server.model.users import State, User
from chat_server.utils.clock import Clock
from chat_server.utils.digest import digest
from tests.e2e.moving import MOVING, Places, databases, held, migrate, moved, places, refused, settings
from tests.harness import ROOT, TIMEOUT, SubprocessServer, run_py, serving, short_lease, wait_until

__all__ = ["databases", "places"]  # fixtures

EVERYWHERE = "mysql mongodb redis"
HASH = "$2b$04$" + "a" * 53
# Names, ids and texts that a careless query, key or page would stumble over.
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
LEASE = 1.5  # of a move whose lease is short, in seconds


async def fill(path: Path, conversations: int = 3, messages: int = 8) -> None:
    """Users, conversations with read, unread and deleted messages, sessions and counters."""
    async with open_exportable([settings(path)], Clock(), print) as [stores]:
        await stores.users.put(
            [User(name, HASH[:-1] + "bcdefghijklmnopqrstuvwxyz"[i], State(i % 3)) for i, name in enumerate(NAMES)]
        )
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
            await stores.messages.delete(one, other, [[(run[4].sender, run[4].id)], [(run[-1].sender, run[-1].id)]])
        await only_deleted(stores, time)
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


async def only_deleted(stores: ExportableStores, time: int) -> None:
    """A conversation in which all was deleted."""
    await stores.messages.add([Message("a@b", "é", "gone", "gone", time + 1)])
    await stores.messages.delete("a@b", "é", [[("a@b", "gone")]])


def digest_said(out: str) -> str:
    """The digest in what the command said."""
    [found] = re.findall(r"digest (\w{32})\)", out)
    return str(found)


async def test_from_embedded_to_servers_and_back_everything_is_the_same(places: Places) -> None:
    source, servers_, back = places.ini("source"), places.ini("servers", EVERYWHERE), places.ini("back")
    await fill(source)
    before = await held(source)
    there = await moved(source, servers_)
    assert await held(servers_) == before
    home = await moved(servers_, back)
    assert await held(back) == before
    assert await held(source) == before
    assert digest_said(there) == digest_said(home)
    assert f"users: {len(NAMES)}" in there
    assert "messages: 25 in 4 conversations" in there
    assert f"sessions: {len(NAMES)}" in home
    assert "counters of strangers: 2" in home


@pytest.mark.parametrize("mixture", ["mysql", "mongodb", "redis", "mysql redis"])
async def test_any_mixture_also_within_one_folder(places: Places, mixture: str) -> None:
    source, target = places.ini("source", data="shared"), places.ini("target", mixture, data="shared")
    await fill(source)
    before = await held(source)
    await moved(source, target)
    assert await held(target) == before


async def test_a_second_move_changes_nothing(places: Places) -> None:
    source, target = places.ini("source"), places.ini("target", EVERYWHERE)
    await fill(source)
    first = await moved(source, target)
    assert await moved(source, target) == first
    assert await held(target) == await held(source)


async def test_what_changed_in_the_source_since_is_caught_up_with(places: Places) -> None:
    source, target = places.ini("source"), places.ini("target", EVERYWHERE)
    await fill(source)
    await moved(source, target)
    async with open_exportable([settings(source)], Clock(), print) as [stores]:
        await stores.messages.mark("1", "a", ["m.1", "m:1", "m-1"])
        await stores.messages.delete("1", "a", [[("1", "M-1")], [("1", "m:1")]])
        await stores.messages.add([Message("1", "a", "late", "late", T + 10**6)])
    await moved(source, target)
    assert await held(target) == await held(source)


async def test_killed_in_the_middle_and_run_again_it_finishes_and_doubles_nothing(places: Places) -> None:
    source, target = places.ini("source"), places.ini("target", EVERYWHERE)
    await fill(source, conversations=8, messages=400)
    child = await run_py("migrate", "--from", str(source), "--config", str(target))
    try:
        with places.mongodb() as database:
            await wait_until(lambda: database["chat_messages"].count_documents({}) > 500, "some messages")
            child.kill()
            await child.wait()
            stored = database["chat_messages"].count_documents({})
    finally:
        if child.returncode is None:
            child.kill()
        await child.communicate()
    assert child.returncode == -9
    assert 500 < stored < 8 * 400
    await moved(source, target)
    assert await held(target, 500) == await held(source, 500)


async def test_interrupted_by_a_signal_it_says_how_to_go_on(places: Places) -> None:
    source, target = places.ini("source"), places.ini("target", EVERYWHERE)
    await fill(source, conversations=8, messages=400)
    child = await run_py("migrate", "--from", str(source), "--config", str(target))
    try:
        with places.mongodb() as database:
            await wait_until(lambda: database["chat_messages"].count_documents({}) > 0, "some messages")
    finally:
        child.terminate()
        _, err = await child.communicate()
    assert child.returncode == 1
    assert err.decode() == "chat-server: interrupted; the same command goes on where it stopped\n"


async def test_a_server_that_dies_ends_the_move_with_one_line_and_loses_nothing(places: Places) -> None:
    source, target = places.ini("source"), places.ini("target", EVERYWHERE)
    hasty = places.ini("hasty", EVERYWHERE, data="target-data", StartTimeout=5, StoreTimeout=5)
    await fill(source, conversations=8, messages=400)
    if places.mongodb_server is None:
        pytest.skip("the mongod that CHAT_TEST_MONGODB names is not ours to kill")
    moving = asyncio.create_task(migrate("--from", source, "--config", hasty))
    try:
        with places.mongodb() as database:
            await wait_until(lambda: database["chat_messages"].count_documents({}) > 500, "some messages")
        places.mongodb_server.kill()
        ran = await moving
    finally:
        moving.cancel()
        places.mongodb_server.kill()
        places.mongodb_server.start()  # for the tests that come
    assert ran.code == 1
    assert "Traceback" not in ran.err
    last = ran.err.splitlines()[-1]
    assert last.startswith("chat-server: MongoDB")
    assert last.endswith("; the same command goes on where it stopped")
    await moved(source, target)
    assert await held(target, 500) == await held(source, 500)


async def test_a_store_that_is_slow_for_longer_than_a_lease_does_not_end_the_move(places: Places) -> None:
    source, target = places.ini("source"), places.ini("target", EVERYWHERE)
    await fill(source, conversations=8, messages=400)
    if places.mongodb_server is None:
        pytest.skip("the mongod that CHAT_TEST_MONGODB names is not ours to stop")
    child = await started(source, target)
    with places.mongodb() as database:
        await wait_until(lambda: database["chat_messages"].count_documents({}) > 500, "some messages")
    places.mongodb_server.send(signal.SIGSTOP)
    await asyncio.sleep(LEASE * 2)  # the lease runs out: only time does that
    places.mongodb_server.send(signal.SIGCONT)
    async with asyncio.timeout(MOVING):
        _, err = await child.communicate()
    assert child.returncode == 0, err
    assert await held(target, 500) == await held(source, 500)


async def test_a_move_that_was_frozen_while_another_took_its_place_ends_with_one_line(places: Places) -> None:
    source, target = places.ini("source"), places.ini("target", EVERYWHERE)
    await fill(source, conversations=8, messages=400)
    child = await started(source, target)
    with places.mongodb() as database:
        await wait_until(lambda: database["chat_messages"].count_documents({}) > 500, "some messages")
        child.send_signal(signal.SIGSTOP)
        await asyncio.sleep(LEASE * 1.2)
        elsewhere = {"holder": b'{"host":"elsewhere","boot":"other","pid":1,"started":"1"}', "until": 2.0**40}
        assert database["chat_leases"].update_one({"_id": "server"}, {"$set": elsewhere}).modified_count == 1
        child.send_signal(signal.SIGCONT)
        async with asyncio.timeout(MOVING):
            _, err = await child.communicate()
        assert database["chat_leases"].delete_one({"_id": "server"}).deleted_count == 1
    assert child.returncode == 1
    last = err.decode().splitlines()[-1]
    assert "another chat_server (host elsewhere, process 1) took this one's place; the same command" in last
    await moved(source, target)


async def started(source: Path, target: Path) -> asyncio.subprocess.Process:
    """A move whose lease is short; whoever waits for the process ends it."""
    command = ("migrate", "--from", str(source), "--config", str(target))
    return await run_py(*command, prefix=short_lease(source.parent, LEASE))


# --- refused


@asynccontextmanager
async def running(path: Path) -> AsyncIterator[None]:
    """A server of that file, run as people run it."""
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
async def test_a_server_that_runs_on_either_side_is_in_the_way(places: Places, source: str, target: str) -> None:
    one, other = places.ini("source", source), places.ini("target", target)
    for path in (one, other):
        async with running(path):
            pass  # makes both
    for path in (one, other):
        async with running(path):
            line = await refused("--from", one, "--config", other)
            assert "another chat_server" in line
            assert "is running on it; stop that one" in line
    await moved(one, other)


async def test_no_server_starts_while_a_move_is_under_way(places: Places) -> None:
    source, target = places.ini("source"), places.ini("target", EVERYWHERE)
    async with open_exportable([settings(source), settings(target)], Clock(), print):
        for path in (source, target):
            child = await run_py("--config", str(path))
            _, err = await child.communicate()
            assert child.returncode == 1
            assert b"another chat_server" in err


async def test_the_same_stores_on_both_sides_are_refused(tmp_path: Path) -> None:
    one, other = tmp_path / "one.ini", tmp_path / "other.ini"
    for path in (one, other):
        path.write_text("[service]\nDataDir = data\n")
    assert "name the same stores" in await refused("--from", one, "--config", other)


async def test_a_source_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    one, other = tmp_path / "one.ini", tmp_path / "other.ini"
    one.write_text("[service]\nDataDir = nowhere\n")
    other.write_text("[service]\nDataDir = data\n")
    assert "check DataDir" in await refused("--from", one, "--config", other)
    assert not (tmp_path / "nowhere").exists()
    assert "cannot be read" in await refused("--from", tmp_path / "none.ini", "--config", other)


async def embedded(folder: Path, name: str, user: str = "", *records: Record) -> Path:
    """A file of embedded stores with a user and some messages."""
    path = folder / f"{name}.ini"
    path.write_text(f"[service]\nDataDir = {name}\n")
    async with open_exportable([settings(path)], Clock(), print) as [stores]:
        if user:
            await stores.users.put([User(user, HASH)])
        for record in records:
            await stores.messages.put([record])
            await stores.messages.update_last(record.sender, record.receiver)
    return path


async def test_a_target_with_users_of_its_own_is_refused(tmp_path: Path) -> None:
    source = await embedded(tmp_path, "source", "1")
    other = await embedded(tmp_path, "other", "2")
    before = await held(other)
    assert "user '2' is in the target, but not in the source" in await refused("--from", source, "--config", other)
    assert await held(other) == before
    async with open_exportable([settings(other)], Clock(), print) as [stores]:
        await stores.users.put([User("1", HASH.replace("a", "b"))])
    async with open_exportable([settings(source)], Clock(), print) as [stores]:
        await stores.users.put([User("2", HASH)])
    assert "user '1' has another password in the target" in await refused("--from", source, "--config", other)


def record(one: str, other: str, id: str, time: int, text: str | bytes = "text") -> Record:
    return Record(one, other, id, text, time, isinstance(text, bytes))


@pytest.mark.parametrize(
    ("there", "why"),
    [
        ([record("3", "4", "m", T + 9)], "the conversation of '3' and '4' is not in the source"),
        ([record("1", "2", "m", T + 9)], "the conversation of '1' and '2': an id is another message's"),
        ([record("2", "1", "m", T)], "the conversation of '1' and '2': a time is another message's"),
        ([record("2", "1", "more", T + 9)], "the conversation of '1' and '2' differs: 2 messages in the source, 3 in"),
        ([record("2", "1", "more", T + 1)], "the conversation of '1' and '2' differs: 2 messages in the source, 3 in"),
    ],
)
async def test_a_target_with_other_messages_is_refused_and_the_conversation_named(
    tmp_path: Path, there: list[Record], why: str
) -> None:
    source = await embedded(
        tmp_path, "source", "1", record("1", "2", "m", T), record("2", "1", "n", T + 2, digest("n"))
    )
    other = await embedded(tmp_path, "other", "1", *there)
    assert why in await refused("--from", source, "--config", other)


@pytest.mark.parametrize("key", ["mysql", "mongodb", "redis"])
async def test_a_server_that_is_away_is_one_line(tmp_path: Path, key: str) -> None:
    source = await embedded(tmp_path, "source", "1")
    target = tmp_path / "target.ini"
    sections = {
        "mysql": "[mysql]\nDb = mysql\nDbPort = 1",
        "mongodb": "[MongoDB]\nMongoDb = mongodb\nMongoDBPort = 1",
        "redis": "[redis]\nRedisDb = redis\nRedisAddr = 127.0.0.1:1",
    }
    target.write_text(f"[service]\nDataDir = target\nStartTimeout = 1\nStoreTimeout = 1\n{sections[key]}\n")
    ran = await migrate("--from", source, "--config", target)
    assert ran.code == 1
    assert re.search(r": connection refused.*; gave up after 1 s", ran.err.splitlines()[-1])
    assert "Traceback" not in ran.err


async def test_options_that_make_no_sense_are_named() -> None:
    neither, both = await migrate(), await migrate("--from", "a", "--from-go", "b")
    assert (neither.code, both.code) == (2, 2)
    assert "--from --from-go is required" in neither.err
    assert "not allowed with" in both.err


# --- what people see


async def test_the_environment_speaks_of_the_target_alone(tmp_path: Path) -> None:
    source = await embedded(tmp_path, "source", "1")
    ran = await migrate("--from", source, environ={"CHAT_SERVICE_DATADIR": str(tmp_path / "target")})
    assert ran.code == 0, ran
    assert (tmp_path / "target" / "chat.db").exists()


async def test_a_terminal_shows_how_far_it_is(tmp_path: Path) -> None:
    source = await embedded(tmp_path, "source", "1", *(record("1", "2", f"m{n}", T + n) for n in range(5)))
    target = await embedded(tmp_path, "target")
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


async def test_people_go_on_where_they_were(places: Places) -> None:
    """Sessions, history, what is unread and how often a stranger may write: as if nothing had happened."""
    source, target = places.ini("source"), places.ini("target", EVERYWHERE, StrangerLimit=2)
    async with serving(places.folder / "source-data", StrangerLimit=2) as server:
        await server.add_users("1", "2")
        tokens = server.tokens
        async with server.chat("1", to="2") as one:
            for number in range(2):
                await one.send(f"m{number}\ntext {number}")
            assert (await one.send("m2\nrefused"))["op_type"] == 40020
    await moved(source, target)
    child = await run_py("--config", str(target))
    assert child.stdout
    try:
        async with asyncio.timeout(TIMEOUT):
            ready = (await child.stdout.readline()).decode()
        host, _, port = ready.rsplit("/", 1)[1].strip().rpartition(":")
        again = SubprocessServer(host, int(port), child, places.folder)
        again.tokens = tokens
        async with again.chat("1", to="2") as one:
            assert (await one.send("m2\nstill refused"))["op_type"] == 40020
        async with again.chat("2", to="1") as two:
            *unread, last = await two.ask(3)
            assert [frame["content"] for frame in unread] == ["m0\ntext 0", "m1\ntext 1"], last
    finally:
        child.terminate()
        await child.communicate()
