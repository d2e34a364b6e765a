"""Groups when a change is stored although it seemed to fail, and when groups leave the cache meanwhile."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from chat_server.model.sqlite.blocks import SqliteBlocks
from chat_server.model.sqlite.groups import SqliteGroups
from chat_server.service import live_groups
from chat_server.utils.errors import StoreUnavailable
from tests.e2e.group_helpers import create, members
from tests.e2e.http_helpers import check_refusal, post
from tests.harness import serving, wait_until

NAMES = ("1", "2", "3")
TEAM = "#team"


def fail_once(monkeypatch: pytest.MonkeyPatch, store: type, name: str, *, stored: bool) -> None:
    """Let the next call of a method fail after it has changed the store, or without a change."""
    method = getattr(store, name)

    async def fail(*arguments: Any) -> None:
        monkeypatch.setattr(store, name, method)
        if stored:
            await method(*arguments)
        raise StoreUnavailable("the answer is lost")

    monkeypatch.setattr(store, name, fail)


async def test_a_new_group_replaces_one_whose_deletion_seemed_to_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path, users=NAMES, StrangerLimit=0, HeartbeatSeconds=3600) as server:
        await create(server, "1", TEAM, "2")
        async with server.chat("1", to=TEAM) as one, server.chat("2", to=TEAM, sync=True) as two:
            await one.send("old\nhello")
            assert (await two.receive())["id"] == "old"
            fail_once(monkeypatch, SqliteGroups, "delete", stored=True)
            response = await post(server, "/group/delete", server.tokens["1"], group=TEAM)
            check_refusal(response, 503, 44444, "store_away", None)
            await create(server, "1", TEAM, "3", "2")
            assert await two.receive_change() == (TEAM, ["-2"])
            assert await two.receive_change() == (TEAM, ["+1", "+3", "+2", "!1"])
            assert list(await members(server, "2", TEAM)) == ["1", "2", "3"]
            await one.send("new\nhello")
            assert (await two.receive())["id"] == "new"
            for chat in (one, two):
                assert [frame.get("id") for frame in await chat.ask(2, "-9")] == ["new", None]


async def test_a_removal_that_seemed_to_fail_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(tmp_path, users=NAMES, StrangerLimit=0, HeartbeatSeconds=1) as server:
        await create(server, "1", TEAM, "2", "3")
        async with server.chat("1", sync=True) as one, server.chat("2", to=TEAM, sync=True) as two:
            fail_once(monkeypatch, SqliteGroups, "remove", stored=True)
            response = await post(server, "/group/remove", server.tokens["1"], group=TEAM, user_name="1")
            check_refusal(response, 503, 44444, "store_away", None)
            assert await one.receive_change() == (TEAM, ["-1"])
            assert await two.receive_change() == (TEAM, ["-1", "!2"])


async def test_a_group_that_leaves_the_cache_is_not_announced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_groups, "CACHED_ENTRIES", 1)
    get, reading, go_on = SqliteGroups.get, asyncio.Event(), asyncio.Event()

    async def held(*arguments: Any) -> Any:
        reading.set()
        await go_on.wait()
        return await get(*arguments)

    async with serving(tmp_path, users=NAMES, StrangerLimit=0, HeartbeatSeconds=1) as server:
        await create(server, "1", "#old", "2")
        monkeypatch.setattr(SqliteGroups, "get", held)
        async with server.chat("2", sync=True) as two:
            await reading.wait()
            await create(server, "1", "#new", "3")
            go_on.set()
            await asyncio.sleep(0.2)  # more than one refresh
            await two.expect_no_change()


async def test_a_block_that_was_not_stored_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(tmp_path, users=NAMES, StrangerLimit=0, HeartbeatSeconds=1) as server:
        await create(server, "1", TEAM, "2")
        async with server.chat("1", to=TEAM) as one, server.chat("2"):
            fail_once(monkeypatch, SqliteBlocks, "block", stored=False)
            response = await post(server, "/user/block", server.tokens["2"], user_name="1")
            check_refusal(response, 503, 44444, "store_away", None)
            assert (await one.send("hello"))["op_type"] == 40019

            async def is_forgotten() -> bool:
                return bool((await one.send("hello"))["op_type"] == 40018)

            await wait_until(is_forgotten)
