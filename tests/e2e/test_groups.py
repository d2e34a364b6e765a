"""Groups over HTTP: create, add, remove, delete, members (docs/protocol.md section 1, Groups)."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from chat_server.model.sqlite.groups import SqliteGroups
from tests.e2e.group_helpers import add, ask_members, create, delete, members, remove
from tests.e2e.http_helpers import check_refusal, check_success, post, send_request, sql
from tests.harness import ServerHandle, serving, wait_until

NAMES = ("1", "2", "3", "4")


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ServerHandle]:
    """A server where any user may be added to groups."""
    async with serving(tmp_path, users=NAMES, StrangerLimit=0) as server:
        yield server


async def refuse(server: ServerHandle, user: str, endpoint: str, *expected: Any, **body: Any) -> None:
    """Send a request that must be refused with these codes."""
    check_refusal(await post(server, f"/group/{endpoint}", server.tokens[user], **body), *expected)


# --- create


async def test_the_creator_is_the_owner_and_all_join_at_once(server: ServerHandle) -> None:
    await create(server, "1", "#team", "2", "3", "2", "1")
    found = await members(server, "2", "#team")
    assert list(found) == ["1", "2", "3"]
    assert {name: member["owner"] for name, member in found.items()} == {"1": True, "2": False, "3": False}
    assert len({member["since"] for member in found.values()}) == 1
    assert found["1"]["since"] > 1_700_000_000_000
    assert not any(member["online"] for member in found.values())


async def test_a_group_may_have_one_member(server: ServerHandle) -> None:
    check_success(await post(server, "/group/create", server.tokens["1"], group="#alone"), 42001)
    assert list(await members(server, "1", "#alone")) == ["1"]


async def test_a_form_repeats_the_key_of_the_users(server: ServerHandle) -> None:
    headers = {
        "Authorization": f"Bearer {server.tokens['1']}",
        "Content-Type": "application/x-www-form-urlencoded",
    }
    for group, users in (("#form", ["2", "3"]), ("#one", ["2"]), ("#none", [])):
        body = urlencode([("group", group), *(("users", user) for user in users)])
        response = await send_request(server, "POST", "/group/create", content=body, headers=headers)
        check_success(response, 42001)
        assert list(await members(server, "1", group)) == ["1", *users]


@pytest.mark.parametrize("name", ["team", "#", "##", "# a", "#a b", "#a/b", "#\u200d", "#.", "#" + "a" * 64, "", "#a#"])
async def test_a_bad_name_is_refused(server: ServerHandle, name: str) -> None:
    await refuse(server, "1", "create", 400, 42000, "bad_name", "group", group=name, users=[])


async def test_names_are_compared_in_their_normal_form(server: ServerHandle) -> None:
    await create(server, "1", "#caf\u00e9")
    await refuse(server, "2", "create", 409, 42000, "group_exists", "group", group="#cafe\u0301")
    await create(server, "2", "#Caf\u00e9")
    await create(server, "2", "#\u56e2\u961f")
    assert list(await members(server, "1", "#cafe\u0301")) == ["1"]


async def test_a_taken_name_is_refused(server: ServerHandle) -> None:
    await create(server, "1", "#team")
    await refuse(server, "2", "create", 409, 42000, "group_exists", "group", group="#team", users=["3"])
    assert list(await members(server, "1", "#team")) == ["1"]


async def test_unknown_users_are_refused_and_none_is_added(server: ServerHandle) -> None:
    for name in ("unknown", "", "System", "#team", "x" * 5000):
        await refuse(server, "1", "create", 404, 41006, "no_such_user", "users", group="#team", users=["2", name])
        await refuse(server, "1", "create", 404, 41006, "no_such_user", "users", group="#team", users=[name, "2"])
    check_refusal(await ask_members(server, "1", "#team"), 404, 42008, "no_such_group", "group")
    await create(server, "1", "#team")
    await refuse(server, "1", "add", 404, 41006, "no_such_user", "users", group="#team", users=["2", "unknown"])
    assert list(await members(server, "1", "#team")) == ["1"]


@pytest.mark.parametrize("users", ["2", {"2": 1}, [2], [None], 1])
async def test_users_are_a_list_of_names(server: ServerHandle, users: Any) -> None:
    await refuse(server, "1", "create", 400, 42000, "bad_request", "users", group="#team", users=users)


async def test_groups_need_a_session(server: ServerHandle) -> None:
    for endpoint in ("create", "add", "remove", "delete"):
        check_refusal(await post(server, f"/group/{endpoint}", group="#team"), 401, 41012, "not_logged_in")
    check_refusal(await send_request(server, "GET", "/group/members?group=%23team"), 401, 41012, "not_logged_in")


# --- add


async def test_any_member_adds_users(server: ServerHandle) -> None:
    await create(server, "1", "#team", "2")
    assert await add(server, "2", "#team", "3", "1", "3", "2") == ["3"]
    assert await add(server, "2", "#team", "3") == []
    assert await add(server, "2", "#team") == []
    found = await members(server, "3", "#team")
    assert list(found) == ["1", "2", "3"]
    assert found["3"]["since"] >= found["1"]["since"]


async def test_only_users_who_have_written_are_added(tmp_path: Path) -> None:
    async with serving(tmp_path, users=NAMES, StrangerLimit=3) as server:
        async with server.chat("1", to="3") as one, server.chat("2", to="1") as two:
            await one.send("hello")  # to have written to the other is not enough
            await two.send("hello")
        refused = (403, 42000, "refused_by_limit", "users")
        await refuse(server, "1", "create", *refused, group="#team", users=["2", "3"])
        await create(server, "1", "#team", "2")
        await refuse(server, "1", "add", 403, 42002, "refused_by_limit", "users", group="#team", users=["3"])
        await refuse(server, "2", "add", 403, 42002, "refused_by_limit", "users", group="#team", users=["3"])
        async with server.chat("3", to="2") as three:
            await three.send("hello")
        assert await add(server, "2", "#team", "3") == ["3"]
        assert list(await members(server, "1", "#team")) == ["1", "2", "3"]


async def test_members_who_have_not_written_are_skipped(tmp_path: Path) -> None:
    async with serving(tmp_path, users=NAMES, StrangerLimit=3) as server:
        for user, to in (("2", "1"), ("3", "2"), ("4", "1")):
            async with server.chat(user, to=to) as chat:
                await chat.send("hello")
        await create(server, "1", "#team", "2")
        assert await add(server, "2", "#team", "3") == ["3"]
        assert await add(server, "1", "#team", "3", "4") == ["4"]


async def test_messages_in_groups_do_not_allow_additions(tmp_path: Path) -> None:
    async with serving(tmp_path, users=NAMES, StrangerLimit=3) as server:
        async with server.chat("2", to="1") as two, server.chat("3", to="1") as three:
            await two.send("hello")
            await three.send("hello")
        await create(server, "1", "#team", "2", "3")
        async with server.chat("3", to="#team") as three:
            assert (await three.send("hello"))["op_type"] in (40018, 40019)
        await refuse(server, "2", "create", 403, 42000, "refused_by_limit", "users", group="#other", users=["3"])


async def test_a_user_who_blocks_the_caller_is_not_added(server: ServerHandle, tmp_path: Path) -> None:
    await create(server, "1", "#team")
    check_success(await post(server, "/user/block", server.tokens["2"], user_name="1"), 43001)
    await refuse(server, "1", "add", 403, 42002, "refused_by_limit", "users", group="#team", users=["2"])
    check_success(await post(server, "/user/block", server.tokens["1"], user_name="3"), 43001)
    assert await add(server, "1", "#team", "3") == ["3"]
    assert await add(server, "3", "#team", "2") == ["2"]


async def test_a_blocked_caller_gets_the_refusal_of_a_stranger(tmp_path: Path) -> None:
    """The bytes of the answer are the same."""
    async with serving(tmp_path, users=NAMES, StrangerLimit=3) as server:
        body = {"group": "#team", "users": ["2"]}
        stranger = await post(server, "/group/create", server.tokens["1"], **body)
        async with server.chat("2", to="1") as two:
            await two.send("hello")
        check_success(await post(server, "/user/block", server.tokens["2"], user_name="1"), 43001)
        assert (await post(server, "/group/create", server.tokens["1"], **body)).content == stranger.content


async def test_a_group_has_a_maximum_of_members(tmp_path: Path) -> None:
    async with serving(tmp_path, users=NAMES, StrangerLimit=0, GroupMembers=3) as server:
        await refuse(server, "1", "create", 409, 42000, "group_full", group="#team", users=["2", "3", "4"])
        await create(server, "1", "#team", "2")
        await refuse(server, "1", "add", 409, 42002, "group_full", group="#team", users=["3", "4"])
        assert await add(server, "1", "#team", "3", "2") == ["3"]
        await refuse(server, "1", "add", 409, 42002, "group_full", group="#team", users=["4"])
        await remove(server, "1", "#team", "2")
        assert await add(server, "1", "#team", "4") == ["4"]


async def test_a_user_has_a_maximum_of_groups(tmp_path: Path) -> None:
    async with serving(tmp_path, users=NAMES, StrangerLimit=0, GroupsPerUser=2) as server:
        await create(server, "1", "#one")
        await create(server, "1", "#two", "2")
        await refuse(server, "1", "create", 429, 42000, "too_many", group="#three")
        await create(server, "3", "#three", "2")
        await refuse(server, "3", "create", 429, 42000, "too_many", group="#four", users=["2"])
        await refuse(server, "3", "add", 429, 42002, "too_many", group="#three", users=["4", "1"])
        await remove(server, "1", "#one", "1")
        assert await add(server, "3", "#three", "4", "1") == ["4", "1"]


async def test_simultaneous_additions_respect_the_maximum(tmp_path: Path) -> None:
    users = [f"u{number}" for number in range(12)]
    async with serving(tmp_path, users=("1", *users), StrangerLimit=0, GroupMembers=6) as server:
        await create(server, "1", "#team")
        body = {"group": "#team"}
        responses = await asyncio.gather(
            *(post(server, "/group/add", server.tokens["1"], **body, users=[user]) for user in users)
        )
        assert sorted(response.status_code for response in responses) == [200] * 5 + [409] * 7
        assert len(await members(server, "1", "#team")) == 6


# --- remove and delete


async def test_the_owner_removes_members_and_a_member_itself(server: ServerHandle) -> None:
    await create(server, "1", "#team", "2", "3", "4")
    await refuse(server, "2", "remove", 403, 42004, "not_yours", group="#team", user_name="3")
    await refuse(server, "2", "remove", 403, 42004, "not_yours", group="#team", user_name="1")
    await remove(server, "1", "#team", "2")
    await remove(server, "3", "#team", "3")
    assert list(await members(server, "1", "#team")) == ["1", "4"]
    await refuse(server, "1", "remove", 404, 41006, "no_such_user", "user_name", group="#team", user_name="2")
    await refuse(server, "2", "remove", 404, 42004, "no_such_group", "group", group="#team", user_name="2")


async def test_a_removal_is_completed_although_its_client_disconnects(
    server: ServerHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise it would be stored, but the server would still treat the user as a member."""
    await create(server, "1", "#team", "2")
    removed, go, remove_in_store = asyncio.Event(), asyncio.Event(), SqliteGroups.remove

    async def delayed(self: SqliteGroups, *arguments: Any) -> Any:
        result = await remove_in_store(self, *arguments)
        removed.set()
        await go.wait()
        return result

    monkeypatch.setattr(SqliteGroups, "remove", delayed)
    request = asyncio.create_task(remove(server, "1", "#team", "2"))
    await removed.wait()
    request.cancel()
    await asyncio.wait([request])
    await asyncio.sleep(0.2)  # until the server notices it
    go.set()
    check_refusal(await ask_members(server, "2", "#team"), 404, 42008, "no_such_group", "group")


async def test_the_longest_standing_member_becomes_the_owner(server: ServerHandle) -> None:
    await create(server, "3", "#team")
    await add(server, "3", "#team", "4")
    await add(server, "3", "#team", "1", "2")
    await remove(server, "3", "#team", "3")
    assert [name for name, member in (await members(server, "1", "#team")).items() if member["owner"]] == ["4"]
    await remove(server, "4", "#team", "4")
    assert [name for name, member in (await members(server, "1", "#team")).items() if member["owner"]] == ["1"]


async def test_the_last_member_takes_the_group_along(server: ServerHandle) -> None:
    await create(server, "1", "#team", "2")
    await remove(server, "1", "#team", "1")
    await remove(server, "2", "#team", "2")
    check_refusal(await ask_members(server, "2", "#team"), 404, 42008, "no_such_group", "group")
    await create(server, "3", "#team")


async def test_only_the_owner_deletes_a_group(server: ServerHandle) -> None:
    await create(server, "1", "#team", "2")
    await refuse(server, "2", "delete", 403, 42006, "not_yours", group="#team")
    await delete(server, "1", "#team")
    for user in ("1", "2"):
        check_refusal(await ask_members(server, user, "#team"), 404, 42008, "no_such_group", "group")
        await refuse(server, user, "delete", 404, 42006, "no_such_group", "group", group="#team")


async def test_the_messages_of_a_deleted_group_are_erased(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chat_server.app.SWEEP_SECONDS", 0.05)
    monkeypatch.setattr("chat_server.service.erasure.CHUNK", 7)
    async with serving(tmp_path, users=NAMES, StrangerLimit=0) as server:
        for name in ("#kept", "#team"):
            await create(server, "1", name, "2")
            async with server.chat("1", to=name) as one:
                for number in range(20):
                    await one.send(f"m{number}\nhello")
                await one.answer(4, "*")
        await delete(server, "1", "#team")
        while sql(tmp_path, "SELECT count(*) FROM groups") != [(1,)]:
            await asyncio.sleep(0.05)
        assert sql(tmp_path, "SELECT count(*) FROM messages") == [(20,)]
        assert sql(tmp_path, "SELECT count(*) FROM group_positions") == [(1,)]
        async with server.chat("2", to="#kept") as two:
            assert (await two.answer(2, "0-200"))["content"] == "20"


async def test_many_deleted_groups_do_not_delay_an_erasure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chat_server.app.SWEEP_SECONDS", 1.0)
    monkeypatch.setattr("chat_server.service.erasure.PAGE", 2)
    async with serving(tmp_path, users=NAMES, StrangerLimit=0) as server:
        for _ in range(20):
            await create(server, "1", "#team")
            await delete(server, "1", "#team")
        async with asyncio.timeout(10):  # two erasures take two seconds, those of pairs of groups 20
            while sql(tmp_path, "SELECT count(*) FROM groups") != [(0,)]:
                await asyncio.sleep(0.05)


async def test_a_new_group_with_an_old_name_has_no_messages(server: ServerHandle) -> None:
    await create(server, "1", "#team", "2")
    async with server.chat("1", to="#team") as one:
        await one.send("m\nhello")
        await delete(server, "1", "#team")
        await create(server, "2", "#team", "1")
        assert [frame["content"] for frame in await one.ask(2, "0-9")] == ["0"]
        assert (await one.send("m\nother text"))["op_type"] == 40019


# --- to others a group does not exist


async def test_a_group_does_not_exist_for_others(server: ServerHandle) -> None:
    """Every answer is byte for byte that for a name without a group."""
    await create(server, "1", "#team", "2")
    await delete(server, "1", "#team")
    await create(server, "1", "#secret", "2")

    async def answers(group: str) -> list[bytes]:
        token = server.tokens["3"]
        return [
            (await post(server, "/group/add", token, group=group, users=["4"])).content,
            (await post(server, "/group/remove", token, group=group, user_name="3")).content,
            (await post(server, "/group/remove", token, group=group, user_name="1")).content,
            (await post(server, "/group/delete", token, group=group)).content,
            (await ask_members(server, "3", group)).content,
        ]

    assert await answers("#secret") == await answers("#nothing") == await answers("#team")
    check_refusal(await ask_members(server, "3", "#secret"), 404, 42008, "no_such_group", "group")
    for name in ("", "secret", "#" + "x" * 5000, "#a b"):
        check_refusal(await ask_members(server, "3", name), 404, 42008, "no_such_group", "group")


async def test_members_are_online_unless_they_block_the_viewer(server: ServerHandle) -> None:
    await create(server, "1", "#team", "2", "3")
    check_success(await post(server, "/user/block", server.tokens["2"], user_name="1"), 43001)

    async def online(viewer: str) -> set[str]:
        return {name for name, one in (await members(server, viewer, "#team")).items() if one["online"]}

    async def both_online() -> bool:
        return [await online("3") for _ in range(2)] == [{"2", "3"}] * 2  # with two processes, one answer of each

    async with server.chat("2"), server.chat("3"):
        await wait_until(both_online)
        assert await online("1") == {"3"}


async def test_groups_survive_a_restart(tmp_path: Path) -> None:
    async with serving(tmp_path, users=NAMES, StrangerLimit=0) as server:
        await create(server, "1", "#team", "2")
        found = await members(server, "1", "#team")
    async with serving(tmp_path, StrangerLimit=0) as restarted:
        restarted.tokens = server.tokens
        assert await members(restarted, "2", "#team") == found
