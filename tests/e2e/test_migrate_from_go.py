"""python run.py migrate --from-go: imports the data of the Go server and only reads it.

The tests write the data by hand as the Go server stores it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import bcrypt
import pytest
from bson import ObjectId

from chat_server.backends import open_exportable
from chat_server.model.messages import Message, Pair
from chat_server.utils.clock import MICROSECONDS, Clock
from tests.e2e.migration import ConfigFiles, configs, databases, load_settings, migrate, refused_migration, stored_data
from tests.harness import PASSWORD, serving

__all__ = ["configs", "databases"]  # fixtures

T = 1_700_000_000  # seconds
GO_HASH = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).replace(b"$2b$", b"$2a$", 1).decode()
OTHER_HASH = "$2a$12$" + "o" * 53
TABLE = """CREATE TABLE chat_demo_user (
    id BIGINT UNSIGNED AUTO_INCREMENT PRIMARY KEY, created_at DATETIME(3) NULL, updated_at DATETIME(3) NULL,
    deleted_at DATETIME(3) NULL, user_name LONGTEXT, password LONGTEXT, INDEX idx_deleted_at (deleted_at)
) DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci"""
FIRST, SECOND, THIRD = (ObjectId(f"{T:08x}{number:016x}") for number in (1, 2, 3))

Documents = Mapping[str, Sequence[Mapping[str, Any]]]


def doc(id: Any, content: Any = "", created: Any = T, read: int = 0, **more: Any) -> dict[str, Any]:
    """Return a document as the Go server writes it."""
    return {"_id": id, "content": content, "created": created, "endTime": created, "read": read, **more}


def write_go_data(
    configs: ConfigFiles, users: Sequence[str | tuple[str, str]], documents: Documents, deleted: Sequence[str] = ()
) -> Path:
    """Write the data of a Go server; return its configuration file."""
    with configs.mysql() as cursor:
        cursor.execute(TABLE)
        insert = "INSERT INTO chat_demo_user (deleted_at, user_name, password) VALUES (%s, %s, %s)"
        rows = [(None, *((user, GO_HASH) if isinstance(user, str) else user)) for user in users]
        cursor.executemany(insert, [*rows, *(("2024-01-02 03:04:05", name, GO_HASH) for name in deleted)])
    with configs.mongodb() as database:
        for name, found in documents.items():
            database[name].insert_many(found)
    return configs.write_ini("original", "mysql mongodb")


def go_data(configs: ConfigFiles) -> Any:
    """Return the current data of the Go server."""
    with configs.mysql() as cursor, configs.mongodb() as database:
        cursor.execute("SELECT * FROM chat_demo_user ORDER BY id")
        names = [name for name in database.list_collection_names() if name.startswith("p")]
        return cursor.fetchall(), {name: list(database[name].find()) for name in sorted(names)}


async def import_go(source: Path, target: Path, *more: str) -> str:
    """Import the data of the Go server, which must succeed; return the output."""
    result = await migrate("--from-go", source, "--config", target, *more)
    assert (result.code, result.err) == (0, ""), result
    return result.out


async def texts(path: Path, one: str, other: str) -> list[tuple[str, str, str, bool]]:
    """Return sender, id, text and read mark of each message of a conversation in order."""
    messages = (await stored_data(path))["messages"].get((one, other), [])
    return [(record.sender, record.id, record.text, record.read) for record in messages]


@pytest.mark.parametrize("stores", ["", "mysql mongodb redis"], ids=["embedded", "the same servers"])
async def test_users_and_messages_are_imported(configs: ConfigFiles, stores: str) -> None:
    """The data of the Go server stays unchanged."""
    source = write_go_data(
        configs,
        ["1", "2", "שלום", "a.b"],
        {
            "p1SEP2p": [
                doc(SECOND, "second of the first second"),
                doc("m1", "m1\nhello", T + 5, read=1),
                doc("m2", "m1\nnot its own id", T + 6),
                doc("ghost", None, None) | {"content": None},
                {"_id": "another ghost", "read": 1},
            ],
            "p2SEP1p": [
                doc(FIRST, f"{FIRST}\nfirst"),
                doc("a", "before ObjectIds", T),
                doc("m1", "m1", T + 7),
                doc("m9", "", T + 7),
            ],
            "pשלוםSEPa.bp": [doc("quotes", 'quotes\nit\'s "$where" \0 \u202e 🙂\nmore')],
            "posts": [{"_id": 1}],
        },
        deleted=["gone"],
    )
    target = configs.write_ini("target", stores)
    before = go_data(configs)
    output = await import_go(source, target)
    assert go_data(configs) == before
    assert await texts(target, "1", "2") == [
        ("2", "a", "before ObjectIds", False),
        ("2", str(FIRST), "first", False),
        ("1", str(SECOND), "second of the first second", False),
        ("1", "m1", "hello", True),
        ("1", "m2", "m1\nnot its own id", False),
        ("2", "m1", "", False),
        ("2", "m9", "", False),
    ]
    assert await texts(target, "a.b", "שלום") == [("שלום", "quotes", 'it\'s "$where" \0 \u202e 🙂\nmore', False)]
    users = (await stored_data(target))["users"]
    assert [(user.name, user.password) for user in users] == [(name, GO_HASH) for name in ("1", "2", "a.b", "שלום")]
    assert "users: 4" in output
    assert "messages: 8 in 2 conversations; 8 new" in output
    assert "skipped: 2 ghosts without content\n" in output
    assert "skipped: 1 deleted users\n" in output
    times = [record.time // MICROSECONDS - T for record in (await stored_data(target))["messages"]["1", "2"]]
    assert times == [0, 0, 0, 5, 6, 7, 7]


async def test_imported_users_keep_their_passwords_and_messages(configs: ConfigFiles) -> None:
    documents = {"p1SEP2p": [doc(f"m{n}", f"m{n}\ntext {n}", T + n) for n in range(30)]}
    target = configs.write_ini("target")
    await import_go(write_go_data(configs, ["1", "2"], documents), target)
    async with serving(configs.folder / "target-data") as server:
        server.tokens = {name: await server.login(name) for name in ("1", "2")}
        async with server.chat("2", to="1") as two:
            frames = await two.ask(2, "0-50")
    contents = [frame["content"] for frame in frames if frame["from"] == "1"]
    assert contents == [f"m{n}\ntext {n}" for n in range(30)]


async def test_a_second_import_adds_only_new_data(configs: ConfigFiles) -> None:
    source = write_go_data(configs, ["1", "2"], {"p1SEP2p": [doc("m1", "one"), doc("m3", "three", T + 3)]})
    target = configs.write_ini("target", "mysql mongodb redis")
    await import_go(source, target)
    first = await stored_data(target)
    assert "messages: 2 in 1 conversations; 0 new" in await import_go(source, target)
    assert await stored_data(target) == first
    with configs.mongodb() as database:
        database["p1SEP2p"].insert_one(doc("m4", "four", T + 4))
    async with open_exportable([load_settings(target)], Clock(), print) as [stores]:
        await stores.messages.delete(Pair("1", "2"), [[("1", "m1")]])
        await stores.messages.add([Message("2", "1", "new", "written here", Clock().now())])
    assert "messages: 3 in 1 conversations; 1 new" in await import_go(source, target)
    assert [id for _, id, _, _ in await texts(target, "1", "2")] == ["m1", "m3", "m4", "new"]
    assert isinstance((await texts(target, "1", "2"))[0][2], bytes)


async def test_messages_of_one_second_get_different_times(configs: ConfigFiles) -> None:
    """Each conversation has its own times."""
    names = [f"u{number}" for number in range(12)]
    documents = {
        f"p{one}SEP{other}p": [doc(f"m{number:04}", f"text {number}") for number in range(60)]
        for one in names[:6]
        for other in names[6:]
    }
    target = configs.write_ini("target")
    output = await import_go(write_go_data(configs, names, documents), target)
    assert f"messages: {36 * 60} in 36 conversations" in output
    messages = (await stored_data(target, 1000))["messages"]
    times = [record.time for records in messages.values() for record in records]
    assert len(set(times)) == 36 * 60
    assert {time // MICROSECONDS for time in times} == {T}
    for records in messages.values():
        assert [record.id for record in records] == [f"m{number:04}" for number in range(60)]


async def test_names_with_the_separator_are_resolved_or_reported(configs: ConfigFiles) -> None:
    documents = {
        "paSEPbSEPcp": [doc("m", "only a and bSEPc are users")],
        "pxSEPySEPzp": [doc("m", "x and ySEPz, or xSEPy and z")],
        "pSEPSEPSEPp": [doc("m", "of three pairs, none of users")],
        "p1SEPunknownp": [doc("m", "to unknown"), doc("n", "again")],
        "p1SEPgonep": [doc("m", "to a deleted user")],
        "p1SEP1p": [doc("m", "to himself")],
        "pbobSEPap": [doc("m", "another case than the user's")],
    }
    users = ["a", "bSEPc", "x", "ySEPz", "xSEPy", "z", "1", "Bob"]
    target = configs.write_ini("target")
    source = write_go_data(configs, users, documents, deleted=["gone"])
    output = await import_go(source, target)
    assert list((await stored_data(target))["messages"]) == [("a", "bSEPc")]
    assert "1 collections that may belong to several pairs of users: pxSEPySEPzp (1)" in output
    assert "1 collections of messages from a user to the same user: p1SEP1p (1)" in output
    assert "4 collections of names that are not registered" in output
    assert all(name in output for name in ("p1SEPunknownp (2)", "p1SEPgonep (1)", "pbobSEPap (1)", "pSEPSEPSEPp (1)"))
    await import_go(source, target, "--unregistered")
    pairs = [("1", "gone"), ("1", "unknown"), ("a", "bSEPc"), ("a", "bob")]
    assert sorted((await stored_data(target))["messages"]) == pairs


async def test_invalid_data_is_reported_and_counted(configs: ConfigFiles) -> None:
    long_id, spaced = "x" * 65, "an id, with spaces"
    documents = {
        "p1SEP2p": [
            doc(spaced, f"{spaced}\ntext one"),
            doc(long_id, "text two"),
            doc(str(FIRST), "as a text", T + 1),
            doc(FIRST, "as an ObjectId", T + 1),
            doc(7, "a number"),
            doc("no-text", 7),
            doc("no-time", "text", None),
            doc("bad-time", "text", "yesterday"),
            doc("nan", "text", float("nan")),
            doc("early", "text", 0),
            doc("late", "text", T * 10),
            doc("long", "x" * 16385),
            doc("as-long-as-may-be", "x" * 16384, T + 2),
            doc("float", "a float", T + 3.75),
        ],
        "p1SEPbob smithp": [doc("m", "to a name with a space")],
    }
    users: list[str | tuple[str, str]]
    users = ["1", "2", "bob smith", "", "System", "n" * 65, ("2", OTHER_HASH), ("plain", "secret"), "cafe\u0301"]
    target = configs.write_ini("target", "mysql mongodb redis")
    output = await import_go(write_go_data(configs, users, documents), target)
    data = await stored_data(target)
    assert [user.name for user in data["users"]] == ["1", "2", "café"]
    assert all(user.password == GO_HASH for user in data["users"])
    found = await texts(target, "1", "2")
    assert sorted(text for _, _, text, _ in found) == sorted(
        ["text one", "text two", "as a text", "as an ObjectId", "x" * 16384, "a float"]
    )
    assert len({id for _, id, _, _ in found}) == 6
    for line in (
        "skipped: 4 users with invalid names",
        "skipped: 1 users without a bcrypt password hash: plain",
        "skipped: 1 further rows of the same name; the Go server used the first one: 2",
        "changed: 1 names that are now in NFC",
        "changed: 2 invalid ids, replaced by their digests",
        "changed: 1 ids of two messages, one replaced by its digest",
        "skipped: 1 documents: its _id is a int",
        "skipped: 1 documents: its content is a int: no-text in p1SEP2p",
        "skipped: 3 documents: no time of creation",
        "skipped: 2 documents: created before 1970, or in the future",
        "skipped: 1 documents: a text longer than MaxTextBytes = 16384: long in p1SEP2p",
        "skipped: 1 collections of names that are not registered: p1SEPbob smithp (1)",
    ):
        assert line in output, output
    assert "secret" not in output.replace("plain", "")
    second = await import_go(configs.folder / "original.ini", target)
    assert "messages: 6 in 1 conversations; 0 new" in second


async def test_a_user_of_the_target_gets_no_foreign_messages(configs: ConfigFiles) -> None:
    target = configs.write_ini("target")
    async with serving(configs.folder / "target-data", users=("2", "mine")):
        pass
    source = write_go_data(configs, ["1", "2"], {"p1SEP2p": [doc("m", "for the other 2")]})
    assert "user '2' has another password in the target" in await refused_migration(
        "--from-go", source, "--config", target
    )
    assert (await stored_data(target))["messages"] == {}


async def test_an_invalid_go_source_is_one_error_line(configs: ConfigFiles) -> None:
    embedded, target = configs.write_ini("embedded"), configs.write_ini("target")
    assert "needs a section [mysql]" in await refused_migration("--from-go", embedded, "--config", target)
    empty = configs.write_ini("empty", "mysql mongodb")
    assert "has no table chat_demo_user" in await refused_migration("--from-go", empty, "--config", target)
