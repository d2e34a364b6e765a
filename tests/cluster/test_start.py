"""The setting Processes: what it requires, and which servers may run next to each other."""

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from tests import servers
from tests.cluster.harness import Databases, cluster
from tests.faults.stores import start_error
from tests.harness import one_process_server, run_command


def environ(databases: Databases, folder: Path) -> dict[str, str]:
    """Return the environment of a server on databases of this test."""
    return databases.environ("s" + hashlib.sha256(os.fsencode(folder)).hexdigest()[:16])


@pytest.mark.parametrize("missing", ["mysql", "mongodb", "redis"])
async def test_many_requires_all_three_stores(databases: Databases, tmp_path: Path, missing: str) -> None:
    stores = servers.environ(**{name: server for name, server in databases._asdict().items() if name != missing})
    line, _ = await start_error(tmp_path / "data", stores, Processes="many")
    assert "Processes" in line


async def test_an_unknown_value_of_processes_is_refused(tmp_path: Path) -> None:
    line, _ = await start_error(tmp_path / "data", {}, Processes="two")
    assert "Processes" in line


@pytest.mark.parametrize("first", ["one", "many"])
@pytest.mark.parametrize("second", ["one", "many"])
async def test_only_many_starts_next_to_many(databases: Databases, tmp_path: Path, first: str, second: str) -> None:
    stores = environ(databases, tmp_path)
    async with one_process_server(tmp_path / "a" / "data", stores=stores, **parents(tmp_path / "a"), Processes=first):
        if first == second == "many":
            async with one_process_server(
                tmp_path / "b" / "data", stores=stores, **parents(tmp_path / "b"), Processes=second
            ) as server:
                await server.add_users("1")
        else:
            line, _ = await start_error(tmp_path / "other", stores, Processes=second)
            assert "another chat_server" in line


def parents(folder: Path) -> dict[str, Any]:
    """Make the folder of a server; no further options."""
    folder.mkdir()
    return {}


async def test_data_stays_from_one_to_many_and_back(databases: Databases, tmp_path: Path) -> None:
    """Users, sessions and messages. Each change waits until the other kind of server has ended."""
    stores, tokens = environ(databases, tmp_path), dict[str, str]()
    ids = list[str]()
    for number, kind in enumerate(["one", "many", "one", "many"]):
        folder = tmp_path / str(number)
        async with one_process_server(
            folder / "data", stores=stores, **parents(folder), Processes=kind, StartTimeout=30
        ) as server:
            if not tokens:
                await server.add_users("1", "2")
                tokens = server.tokens
            server.tokens = tokens
            async with server.chat("1", to="2") as one, server.chat("2", to="1") as two:
                for chat in (one, two):
                    assert (await chat.send(f"{len(ids)}\nhello"))["op_type"] == 40018
                    ids.append(str(len(ids)))
                page = [frame for frame in await one.ask(2, "-50") if frame["op_type"] == 40005]
                assert [frame["id"] for frame in page[:-1]] == ids
            server.process.terminate()
            assert await server.wait() == 0


async def test_a_process_with_another_redis_is_refused(databases: Databases, tmp_path: Path) -> None:
    """The record in MongoDB names the Redis of the cluster."""
    stores = environ(databases, tmp_path)
    (tmp_path / "a").mkdir()
    other = servers.redis()
    try:
        async with one_process_server(tmp_path / "a" / "data", stores=stores, Processes="many"):
            different = stores | {"CHAT_REDIS_REDISADDR": f"127.0.0.1:{other.port}"}
            line, _ = await start_error(tmp_path / "b", different, Processes="many")
            assert "Redis" in line
    finally:
        other.stop()


async def test_a_process_with_another_mongodb_is_refused(databases: Databases, tmp_path: Path) -> None:
    """The lease in Redis names the MongoDB of the cluster."""
    stores = environ(databases, tmp_path)
    (tmp_path / "a").mkdir()
    async with one_process_server(tmp_path / "a" / "data", stores=stores, Processes="many"):
        different = stores | {"CHAT_MONGODB_MONGODBNAME": stores["CHAT_MONGODB_MONGODBNAME"] + "b"}
        line, _ = await start_error(tmp_path / "b", different, Processes="many")
        assert "another chat_server (cluster" in line
        assert "MongoDB" in line


async def test_a_stopped_process_frees_its_slot_at_once(databases: Databases, tmp_path: Path) -> None:
    """More starts than slots (64), one after the other, also after kill -9."""
    async with cluster(tmp_path, databases, 2, users=("1",)) as two:
        for number in range(6):
            await (two[1].stop() if number % 2 else two[1].kill())
            await two[1].start()
        async with two[1].chat("1"):
            pass


async def test_an_embedded_server_does_not_import_redis(tmp_path: Path) -> None:
    """The default, `one`, stays as it was: it runs although the drivers of the other stores cannot be imported."""
    for driver in ("redis", "motor", "pymongo", "aiomysql"):
        (tmp_path / f"{driver}.py").write_text("raise AssertionError")
    async with one_process_server(tmp_path / "data", coverage=False, stores={"PYTHONPATH": str(tmp_path)}) as server:
        await server.add_users("1", "2")
        async with server.chat("1", to="2") as one, server.chat("2", to="1") as two:
            await one.send("m1\nhello")
            assert (await two.receive())["content"] == "m1\nhello"
    code, _, err = await run_command("--check", environ={"PYTHONPATH": str(tmp_path), "CHAT_REDIS_REDISDB": "redis"})
    assert (code, "redis.py:1 <module>" in err) == (1, True)  # the trap works
