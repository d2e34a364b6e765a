"""python run.py user: manages the users of a stopped or running server."""

import asyncio
import os
import pty
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest

from chat_server.model.groups import Group
from chat_server.model.messages import GroupKey, Message
from chat_server.model.users import User
from tests.e2e.commands import Deployment, check_wrong_password, message_texts
from tests.e2e.group_helpers import add, ask_members, create, members
from tests.e2e.http_helpers import check_refusal, is_valid_session, post, try_login
from tests.harness import CLEAN_ENVIRON, PASSWORD, ROOT, ChatClient, run_py, wait_until


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    return Deployment(tmp_path / "data")


# --- add, list, reset-password


async def test_an_added_user_can_log_in(deployment: Deployment) -> None:
    """Even with closed registration."""
    assert await deployment.run("user", "add", "anna", typed=f"{PASSWORD}\n") == "added anna\n"
    async with deployment.serving(Registration="closed") as server:
        await server.login("anna")
        assert await deployment.run("user", "add", "名字", typed=PASSWORD) == "added 名字\n"
        await server.login("名字")
        check_refusal(
            await post(server, "/user/register", user_name="ben", password=PASSWORD), 403, 41000, "registration_closed"
        )
        assert await deployment.run("user", "list") == "anna\tenabled\n名字\tenabled\n"


async def test_a_name_is_stored_in_its_normal_form(deployment: Deployment) -> None:
    await deployment.run("user", "add", "e\u0301", typed=PASSWORD)
    assert await deployment.run("user", "list") == "é\tenabled\n"
    assert "é already exists" in await deployment.run_failing("user", "add", "é", typed=PASSWORD)


@pytest.mark.parametrize("name", ["", "a b", "System", "a/b", "x" * 65])
async def test_an_invalid_name_is_refused(deployment: Deployment, name: str) -> None:
    assert "1 to 64 letters" in await deployment.run_failing("user", "add", name, typed=PASSWORD)


@pytest.mark.parametrize("password", ["", "short", "x" * 73, "a\0b" * 3])
async def test_an_invalid_password_is_refused_and_not_printed(deployment: Deployment, password: str) -> None:
    line = await deployment.run_failing("user", "add", "anna", typed=password + "\n")
    assert "6 to 72 bytes" in line
    assert not password or password not in line


@pytest.mark.parametrize("typed", ["\ufeff{}\n", "{}\r\n", "\ufeff{}\r\n", "{}\nsecond line\n"])
async def test_a_piped_password_is_only_the_first_line(deployment: Deployment, typed: str) -> None:
    """A byte order mark and line ends are not part of the password."""
    await deployment.run("user", "add", "anna", typed=typed.format(PASSWORD))
    async with deployment.serving() as server:
        await server.login("anna")


@pytest.mark.parametrize("typed", ["{} \n", " {}", "{}\t\r\n", "\ufeff {}", "{}\u00a0"])
async def test_spaces_around_a_piped_password_are_refused(deployment: Deployment, typed: str) -> None:
    """Such spaces are probably a mistake, and users would not type them at the login."""
    line = await deployment.run_failing("user", "add", "anna", typed=typed.format(PASSWORD))
    assert "without spaces" in line
    assert PASSWORD not in line


async def test_many_users_are_added_from_lines(deployment: Deployment) -> None:
    """A byte order mark, line ends and empty lines are ignored. A password may contain spaces."""
    typed = f"\ufeffanna\t{PASSWORD}\r\n\n名字\tpass word\nben\t{PASSWORD}"
    assert await deployment.run("user", "add", "--many", typed=typed) == "added anna\nadded 名字\nadded ben\n"
    async with deployment.serving() as server:
        for name, password in (("anna", PASSWORD), ("名字", "pass word"), ("ben", PASSWORD)):
            await server.login(name, password)


async def test_invalid_lines_are_named_and_the_others_added(deployment: Deployment) -> None:
    await deployment.run("user", "add", "anna", typed=PASSWORD)
    lines = [f"anna\t{PASSWORD}", "only-one-word", f"a b\t{PASSWORD}", "ben\tshort", f"carl\t{PASSWORD} ", ""]
    lines += [f"dora\t{PASSWORD}", f"dora\t{PASSWORD}"]
    code, out, err = await deployment.command("user", "add", "--many", typed="\n".join(lines))
    assert (code, out) == (1, "added dora\n")
    errors = dict(line.split(": ", 1) for line in err.splitlines())
    assert errors.keys() == {"line 1", "line 2", "line 3", "line 4", "line 5", "line 8", "chat-server"}
    assert "anna already exists" in errors["line 1"]
    assert "a name, a tab and a password" in errors["line 2"]
    assert "1 to 64 letters" in errors["line 3"]
    assert "6 to 72 bytes" in errors["line 4"]
    assert "without spaces" in errors["line 5"]
    assert "dora already exists" in errors["line 8"]
    assert "6 of 7 lines failed" in errors["chat-server"]
    for secret in (PASSWORD, "short", "only-one-word"):
        assert secret not in err
    assert await deployment.run("user", "list") == "anna\tenabled\ndora\tenabled\n"


async def test_very_many_users_are_added_in_order(deployment: Deployment) -> None:
    names = [f"user{number:03d}" for number in range(150)]
    typed = "".join(f"{name}\t{PASSWORD}\n" for name in names)
    async with deployment.serving():  # while a server is running
        assert await deployment.run("user", "add", "--many", typed=typed) == "".join(
            f"added {name}\n" for name in names
        )


async def test_input_that_is_not_utf_8_adds_nothing(deployment: Deployment) -> None:
    child = await run_py("user", "add", "--many", environ=deployment.environ, stdin=asyncio.subprocess.PIPE)
    out, err = await child.communicate(f"anna\t{PASSWORD}\nben\t\xff{PASSWORD}\n".encode("latin-1"))
    assert (child.returncode, out) == (1, b"")
    assert err == b"chat-server: line 2: is not UTF-8 text; no user was added; save the file as UTF-8\n"


async def test_add_takes_a_name_or_many(deployment: Deployment) -> None:
    for arguments in ([], ["anna", "--many"]):
        code, _, err = await deployment.command("user", "add", *arguments)
        assert code == 2
        assert "--many" in err


async def test_a_password_on_the_command_line_is_refused(deployment: Deployment) -> None:
    code, _, err = await deployment.command("user", "add", "anna", PASSWORD)
    assert code == 2
    assert "usage" in err


async def test_a_terminal_asks_twice_for_a_hidden_password(deployment: Deployment) -> None:
    for again, code in (("another1", 1), (PASSWORD, 0)):
        terminal, other = pty.openpty()
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, str(ROOT / "run.py"), "user", "add", "anna"),
            stdin=other,
            stdout=other,
            stderr=other,
            env={**CLEAN_ENVIRON, **deployment.environ},
            start_new_session=True,
        )
        os.close(other)
        shown = b""
        for typed, prompt in ((PASSWORD, b"password: "), (again, b"password again: ")):
            while prompt not in shown:
                shown += await asyncio.to_thread(os.read, terminal, 1024)
            os.write(terminal, typed.encode() + b"\n")
        assert await child.wait() == code
        os.close(terminal)
        assert PASSWORD.encode() not in shown
    assert await deployment.run("user", "list") == "anna\tenabled\n"


async def test_a_password_reset_ends_all_sessions(deployment: Deployment) -> None:
    """The old password no longer works."""
    async with deployment.serving(users=("1", "2")) as server:
        async with server.chat("1", to="2") as one, server.chat("2", to="1") as two:
            assert "1 sessions ended" in await deployment.run("user", "reset-password", "1", typed="another1")
            assert await one.wait_closed() == 4001
            await two.expect_nothing()
        check_wrong_password(await try_login(server, "1", PASSWORD))
        await server.login("1", "another1")
        assert await is_valid_session(server, server.tokens["2"])


async def test_only_add_creates_a_missing_data_folder(deployment: Deployment) -> None:
    for arguments in (["list"], ["disable", "anna"], ["remove", "anna", "--messages", "keep"]):
        assert "check DataDir" in await deployment.run_failing("user", *arguments)
    assert not deployment.folder.exists()


async def test_an_unknown_user_is_reported(deployment: Deployment) -> None:
    await deployment.run("user", "add", "anna", typed=PASSWORD)
    for arguments in (["disable"], ["enable"], ["export"], ["remove", "--messages", "keep"]):
        assert "there is no user ghost" in await deployment.run_failing("user", *arguments, "ghost")
    assert "there is no user ghost" in await deployment.run_failing("user", "reset-password", "ghost", typed=PASSWORD)


# --- disable, enable


async def test_a_disabled_user_cannot_log_in(deployment: Deployment) -> None:
    """The answer is that of a wrong password, and messages wait."""
    async with deployment.serving(users=("1", "2")) as server:
        await server.make_contacts("1", "2")
        async with server.chat("1", to="2") as one, server.chat("2", to="1") as two:
            assert "1 sessions ended" in await deployment.run("user", "disable", "2")
            assert await two.wait_closed() == 4001
            assert not await is_valid_session(server, server.tokens["2"])
            right, wrong_, unknown = [
                await try_login(server, *who) for who in (("2", PASSWORD), ("2", "another1"), ("ghost", PASSWORD))
            ]
            check_wrong_password(right)
            assert right.json() == wrong_.json() == unknown.json()
            assert (await one.send("m\nare you there?"))["op_type"] == 40019
            assert await deployment.run("user", "list") == "1\tenabled\n2\tdisabled\n"
            assert await deployment.run("user", "enable", "2") == "enabled 2\n"
        token = await server.login("2")
        async with server.chat("2", to="1", token=token) as two:
            assert [frame["id"] for frame in (await two.ask(3))[:-1]] == ["hello-1-2", "m"]


async def test_a_login_that_races_with_disabling_leaves_no_session(deployment: Deployment) -> None:
    async with deployment.serving(users=("1",)) as server:
        disabling = asyncio.create_task(deployment.run("user", "disable", "1"))
        tokens = []
        while not disabling.done():
            response = await try_login(server, "1", PASSWORD)
            tokens += [response.json()["data"]["token"]] if response.status_code == 200 else []
        await disabling
        assert tokens
        assert [await is_valid_session(server, token) for token in tokens] == [False] * len(tokens)


# --- remove


async def test_a_removed_user_with_messages_leaves_nothing(deployment: Deployment) -> None:
    """A new user with the same name gets nothing."""
    async with deployment.serving(users=("1", "2", "3"), StrangerLimit=1) as server:
        await server.make_contacts("1", "2")
        async with server.chat("2", to="1") as two, server.chat("1", to="2") as one, server.chat("3", to="2") as three:
            for number in range(3):
                await one.send(f"m{number}\nsecret of 1")
            await three.send("m\nothers")
            removing = asyncio.create_task(deployment.command("user", "remove", "1", "--messages", "delete"))
            assert await one.wait_closed() == 4001
            refused_ = None
            while not removing.done():  # messages that arrive during the removal are removed, too
                refused_ = await two.send("late\nto 1")
                await asyncio.sleep(0.01)
            code, out, _ = await removing
            assert code == 0
            assert "deleted" in out
            assert "in 1 conversations and 1 contact limits; the name is free" in out
            assert refused_
            assert refused_["reason"] == "no_such_user"
            assert await message_texts(three) == ["others"]
        await server.add_users("1")
        async with server.chat("1", to="2") as one:
            assert await message_texts(one) == []
            assert (await one.answer(7, "-10"))["content"] == "0"
            assert (await one.send("a\nhello"))["op_type"] == 40019
            assert (await one.send("b\nhello"))["op_type"] == 40020, "the contact limit must apply to the new user 1"
    assert b"secret of 1" not in (deployment.folder / "chat.db").read_bytes()


async def test_a_removed_user_with_kept_messages_keeps_the_name(deployment: Deployment) -> None:
    async with deployment.serving(users=("1", "2", "3")) as server:
        await server.make_contacts("1", "2")
        async with server.chat("2", to="1") as two, server.chat("3", to="1") as three:
            assert (await three.send("hello"))["op_type"] == 40019
            out = await deployment.run("user", "remove", "1", "--messages", "keep")
            assert "kept 3 messages in 2 conversations" in out
            await wait_until(lambda: _refuses(three))
            assert (await two.send("hello"))["reason"] == "no_such_user"
            assert await message_texts(two) == ["hello", "hello"]
            assert (await two.answer(5, "hello-2-1"))["op_type"] == 40013
        async with server.chat("2", to="1") as two:
            assert await message_texts(two) == ["hello"]
        check_wrong_password(await try_login(server, "1", PASSWORD))
        check_wrong_password(await try_login(server, "1", ""))
        again = await post(server, "/user/register", user_name="1", password=PASSWORD)
        check_refusal(again, 409, 41007, "user_exists", "user_name")
        assert "exists" in await deployment.run_failing("user", "add", "1", typed=PASSWORD)
        for arguments in (["enable", "1"], ["disable", "1"]):
            assert "was removed" in await deployment.run_failing("user", *arguments)
        assert "was removed" in await deployment.run_failing("user", "reset-password", "1", typed=PASSWORD)
        assert await deployment.run("user", "list") == "1\tremoved\n2\tenabled\n3\tenabled\n"
    assert "conversations and 2 contact limits; the name is free" in await deployment.run(
        "user", "remove", "1", "--messages", "delete"
    )
    await deployment.run("user", "add", "1", typed=PASSWORD)


async def _refuses(chat: ChatClient) -> bool:
    return (await chat.send("x")).get("reason") == "no_such_user"


@pytest.mark.parametrize("messages", ["keep", "delete"])
async def test_a_removed_user_leaves_all_groups(deployment: Deployment, messages: str) -> None:
    """The owner is succeeded; a group without other members is deleted."""
    async with deployment.open_stores() as stores:
        await stores.users.put([User(name, "hash") for name in ("1", "2", "3")])
        groups = [Group(1, "#own", "1", {"1": 1, "2": 5, "3": 4}), Group(2, "#alone", "1", {"1": 2})]
        await stores.users.groups.put([*groups, Group(3, "#member", "2", {"2": 3, "1": 3})])
    out = await deployment.run("user", "remove", "1", "--messages", messages)
    assert "; left 3 groups; " in out
    async with deployment.open_stores() as stores:
        left = [Group(1, "#own", "3", {"2": 5, "3": 4}), Group(3, "#member", "2", {"2": 3})]
        assert await stores.users.groups.get([1, 2, 3]) == left
        assert await stores.users.groups.deleted(0, 10) == [2]


async def test_messages_in_groups_are_erased_on_request(deployment: Deployment) -> None:
    """Those of the user, also in a group that the user has left; those of other users stay."""
    async with deployment.open_stores() as stores:
        await stores.users.put([User(name, "hash") for name in ("1", "2")])
        groups = [Group(1, "#one", "2", {"1": 1, "2": 1}), Group(2, "#left", "2", {"2": 2})]
        await stores.users.groups.put(groups)
        sent = [(sender, group, str(n)) for n in range(600) for sender in "12" for group in groups]
        await stores.messages.add(
            [Message(by, to.name, id, "secret", time, group=to.number) for time, (by, to, id) in enumerate(sent, 10)]
        )
        await stores.messages.delete(GroupKey(1, "#one"), [[("1", "5")]])
        await stores.messages.put_positions(1, {"1": 50, "2": 60})
    out = await deployment.run("user", "remove", "1", "--messages", "keep")
    assert "; left 1 groups; kept 0 messages in 0 conversations; " in out
    assert "deleted 1200 messages in 2 conversations" in await deployment.run(
        "user", "remove", "1", "--messages", "delete"
    )
    async with deployment.open_stores() as stores:
        for group in groups:
            records = await stores.messages.records(GroupKey(group.number, group.name), 0, 2**62, 2000)
            assert [(record.sender, record.id) for record in records] == [("2", str(n)) for n in range(600)]
        assert await stores.messages.positions([1]) == {1: {"2": 60}}


async def test_a_running_server_learns_of_the_members_left(deployment: Deployment) -> None:
    """The next owner of the name is no member, and finds none of the old messages."""
    async with deployment.serving(users=("1", "2", "3"), StrangerLimit=0) as server:
        await create(server, "1", "#team", "2", "3")
        async with server.chat("2", to="#team", sync=True) as two, server.chat("1", to="#team") as one:
            await one.send("m\nsecret of 1")
            assert (await two.receive())["content"] == "m\nsecret of 1"
            out = await deployment.run("user", "remove", "1", "--messages", "delete")
            assert "; left 1 groups; deleted 1 messages in 1 conversations" in out
            assert await two.receive_change() == ("#team", ["-1", "!2"])
            assert await message_texts(two) == []
            await two.send("m\nto the others")
        assert set(await members(server, "2", "#team")) == {"2", "3"}
        await server.add_users("1")
        assert (await ask_members(server, "1", "#team")).status_code == 404
        assert await add(server, "2", "#team", "1") == ["1"]
        async with server.chat("1", to="#team") as one:
            assert await message_texts(one) == []
            assert (await one.send("m\na new message with an old id"))["op_type"] == 40019


async def test_remove_needs_a_decision_about_the_messages(deployment: Deployment) -> None:
    code, _, err = await deployment.command("user", "remove", "1")
    assert code == 2
    assert "--messages" in err


async def test_removing_many_messages_does_not_block_the_chat(deployment: Deployment) -> None:
    async with deployment.serving(users=("1", "2", "3"), StrangerLimit=0) as server:
        async with server.chat("1", to="2") as one:
            for number in range(1700):
                await one.put(1, f"m{number}\nhello")
            while (await one.receive())["id"] != "m1699":
                pass
        async with server.chat("3", to="2") as three, server.chat("2", to="3") as two:
            removing = asyncio.create_task(deployment.run("user", "remove", "1", "--messages", "delete"))
            while not removing.done():
                assert (await three.send("hello"))["op_type"] == 40018
                await two.receive()
            assert "deleted 1700 messages in 1 conversations" in await removing


# --- export


async def test_an_export_contains_all_data_of_only_this_user(deployment: Deployment) -> None:
    async with deployment.serving(users=("1", "2", "3")) as server:
        await server.make_contacts("1", "2")
        async with server.chat("1", to="2") as one, server.chat("2", to="3") as two:
            await one.send("m\nto be deleted")
            await one.answer(5, "m")
            await two.send("m\nnone of 1's business")
        await post(server, "/user/block", server.tokens["1"], user_name="3")
        await post(server, "/user/block", server.tokens["3"], user_name="1")
    async with deployment.open_stores() as stores:
        group = Group(5_000_001, "#team", "1", {"1": 5_000_001, "2": 6_000_000})
        other = Group(7_000_000, "#other", "2", {"2": 7_000_000, "1": 8_000_000})
        await stores.users.groups.put([group, other, Group(9_000_000, "#foreign", "2", {"2": 9_000_000})])
        sent = [("2", 7_000_000, "early"), ("2", 9_000_000, "foreign"), *[("2", 7_000_000, id) for id in "ab"]]
        sent += [("1", 7_000_000, "mine"), ("2", 7_000_000, "gone")]
        names = {7_000_000: "#other", 9_000_000: "#foreign"}
        times = [7_500_000, 9_500_000, 9_600_000, 9_700_000, 9_800_000, 9_900_000]
        await stores.messages.add(
            [Message(by, names[to], id, id, at, group=to) for (by, to, id), at in zip(sent, times, strict=True)]
        )
        await stores.messages.delete(GroupKey(7_000_000, "#other"), [[("2", "gone")]])
        await stores.messages.move_position(7_000_000, "1", 9_600_000)
    async with deployment.serving():
        lines = await deployment.export_user("1")
    kinds = [line["kind"] for line in lines]
    assert kinds == ["user", "block", *["membership"] * 2, "session", *["message"] * 7, "counter"]
    in_group = [(line["from"], line["to"], line["id"], line["time"], line["read"]) for line in lines[8:12]]
    assert in_group == [
        ("2", "#other", "a", 9600, True),
        ("2", "#other", "b", 9700, False),
        ("1", "#other", "mine", 9800, True),
        ("2", "#other", "gone", 9900, False),
    ]
    assert [line["deleted"] for line in lines[8:12]] == [False, False, False, True]
    del lines[8:12]
    assert lines.pop(1) == {"kind": "block", "user": "3"}
    assert lines.pop(1) == {"kind": "membership", "group": "#team", "owner": True, "since": 5000}
    assert lines.pop(1) == {"kind": "membership", "group": "#other", "owner": False, "since": 8000}
    assert lines[0] | {"password_hash": ""} == {"kind": "user", "name": "1", "state": "enabled", "password_hash": ""}
    hello = {"kind": "message", "from": "1", "to": "2", "id": "hello-1-2", "read": False, "deleted": False}
    assert lines[2] | {"time": 0} == {**hello, "text": "hello", "time": 0}
    assert lines[3]["from"] == "2"
    assert lines[4]["deleted"]
    assert "text" not in lines[4]
    assert lines[5]["between"] == ["1", "2"]
    with closing(sqlite3.connect(deployment.folder / "chat.db")) as database:
        [(digest,)] = database.execute("SELECT hex(digest) FROM sessions WHERE user = '1'")
    assert lines[1]["digest"] == digest.lower()
