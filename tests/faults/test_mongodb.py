"""Outages of MongoDB: no lost message is acknowledged, requests without messages work, and the server recovers."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import pymongo
import pytest

from chat_server.model.mongodb import POOL
from tests import servers
from tests.e2e.http_helpers import send_request, try_login
from tests.faults.stores import (
    ANSWER_TIMEOUT,
    OUTAGE_KINDS,
    SHORT_HEARTBEAT,
    SHORT_TIMEOUTS,
    count_connections,
    expect_open,
    expect_start_timeout,
    expect_store_away,
    history,
    is_acknowledged,
    send_until_acknowledged,
    start_error,
    started_later,
    tcp_proxy,
    unavailable,
    unique_names,
)
from tests.harness import Frame, ServerHandle, SubprocessServer, run_py, subprocess_server, wait_until
from tests.servers import DatabaseServer

NAME = "CHAT_MONGODB_MONGODBNAME"
# The pool, and two connections with which the driver monitors a server.
MAX_CONNECTIONS = POOL + 2

# The requests that read or change messages: op, failure, content.
REQUESTS = ((2, 40004, "-10"), (2, 40004, "0-10"), (3, 40004, ""), (4, 40006, "m1"), (5, 40012, "m1"), (7, 40022, "-9"))


async def expect_store_away_on_new_socket(
    server: ServerHandle, user: str, to: str, op_type: int, status: int, content: str
) -> None:
    """Send a request on a new socket; fail unless the answer is `store_away`."""
    async with server.chat(user, to) as chat:
        await expect_store_away(chat, op_type, status, content)


def new_database(mongodb: DatabaseServer) -> dict[str, str]:
    """Return the environment variables that name a new database."""
    return servers.environ(mongodb=mongodb) | {NAME: unique_names(1)[0]}


@asynccontextmanager
async def serving(folder: Path, mongodb: DatabaseServer, port: int = 0) -> AsyncIterator[SubprocessServer]:
    """Run a server on a new database; with `port`, through a proxy."""
    stores = new_database(mongodb)
    if port:
        # Without directConnection, the driver asks the server for its address and connects to it directly.
        stores["CHAT_MONGODB_MONGODBADDR"] = f"mongodb://127.0.0.1:{port}/?directConnection=true"
    async with subprocess_server(folder / "data", stores=stores, **SHORT_TIMEOUTS) as server:
        yield server


@pytest.mark.parametrize("how", OUTAGE_KINDS)
async def test_only_messages_fail_while_mongodb_is_away(mongodb: DatabaseServer, tmp_path: Path, how: str) -> None:
    one, two, three = unique_names(3)
    async with serving(tmp_path, mongodb) as server:
        await server.add_users(one, two)
        await server.make_contacts(one, two)
        async with server.chat(one, two) as first, server.chat(two, one) as second:
            async with unavailable(mongodb, how):
                await asyncio.gather(
                    expect_store_away(first, 1, 40008, "m1\nhello", type=1),
                    *(expect_store_away_on_new_socket(server, one, two, *request) for request in REQUESTS),
                    expect_open(second),
                )
                assert (await second.answer(6, "to all"))["op_type"] == 40009
                assert (await first.receive())["content"] == "to all"
                assert (await try_login(server, one)).status_code == 200
                await server.add_users(three)
                async with server.chat(three, one):
                    pass
                assert (await send_request(server, "GET", "/health")).status_code == 503
            await send_until_acknowledged(first, "m1\nhello")
            assert (await second.receive())["content"] == "m1\nhello"
            contents = await history(second)
            assert contents.count("m1\nhello") == 1
            assert len(contents) == 3
            await wait_until(lambda: count_connections(server.process.pid, mongodb.port) <= MAX_CONNECTIONS)


async def test_waiting_large_texts_are_refused_during_an_outage(mongodb: DatabaseServer, tmp_path: Path) -> None:
    one, two = unique_names(2)
    texts = [f"m{number}\n" + "x" * 16000 for number in range(16)]
    async with serving(tmp_path, mongodb) as server, AsyncExitStack() as stack:
        await server.add_users(one, two)
        await server.make_contacts(one, two)
        chats = [await stack.enter_async_context(server.chat(one, two)) for _ in texts]
        async with unavailable(mongodb, "frozen"):
            await asyncio.gather(
                *(expect_store_away(chat, 1, 40008, text, type=1) for chat, text in zip(chats, texts, strict=True))
            )
        for chat, text in zip(chats, texts, strict=True):
            await send_until_acknowledged(chat, text)
        assert (await history(chats[0]))[-len(texts) :] == texts


class RetryingSender:
    """Sends messages in rounds, and each refused one again, with the same id, until it is acknowledged."""

    ROUND = 8

    def __init__(self, server: ServerHandle, user: str, to: str) -> None:
        self.user = user
        self.acks: dict[str, Frame] = {}
        self.first_try: list[str] = []  # acknowledged at the first try, in the order of sending
        self.refused = 0
        self.running = True
        self._server, self._to = server, to
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        self.running = False
        await self._task

    async def _run(self) -> None:
        start = 0
        async with self._server.chat(self.user, self._to) as chat:
            while self.running:
                left = [f"{self.user}-{n}" for n in range(start, start + self.ROUND)]
                start += self.ROUND
                first = True
                while left:
                    for id in left:
                        await chat.put(1, f"{id}\n{id}", type=1)
                    answers: list[Frame] = []
                    while len(answers) < len(left):
                        async with asyncio.timeout(ANSWER_TIMEOUT):
                            if (frame := await chat.receive())["from"] == "System":
                                answers.append(frame)
                    assert [frame["id"] for frame in answers] == left
                    acknowledged = [frame for frame in answers if is_acknowledged(frame)]
                    self.acks |= {frame["id"]: frame for frame in acknowledged}
                    if first:
                        self.first_try += [frame["id"] for frame in acknowledged]
                    self.refused += len(left) - len(acknowledged)
                    left = [id for id in left if id not in self.acks]
                    first = False


async def test_acknowledged_messages_survive_kills_of_mongodb(mongodb: DatabaseServer, tmp_path: Path) -> None:
    one, two = unique_names(2)
    async with serving(tmp_path, mongodb) as server:
        await server.add_users(one, two)
        await server.make_contacts(one, two)
        senders = [RetryingSender(server, one, two), RetryingSender(server, two, one)]

        async def wait_for_acknowledgements() -> None:
            goals = [(sender, len(sender.acks) + 50) for sender in senders]
            await wait_until(lambda: all(len(sender.acks) >= goal for sender, goal in goals))

        async def wait_for_refusals() -> None:
            before = [(sender, sender.refused) for sender in senders]
            await wait_until(lambda: all(sender.refused > refused for sender, refused in before))

        await wait_for_acknowledgements()
        for _ in range(3):
            async with unavailable(mongodb, "killed"):
                await wait_for_refusals()
            await wait_for_acknowledgements()
        for sender in senders:
            await sender.stop()
        async with server.chat(one, two) as reader:
            stored = [content.partition("\n")[0] for content in (await history(reader))[2:]]
            assert len(stored) == len(set(stored))
            for sender in senders:
                assert set(sender.acks) == {id for id in stored if id.startswith(sender.user)}
                first_try = set(sender.first_try)
                assert [id for id in stored if id in first_try] == sender.first_try
                assert first_try < set(sender.acks)
        assert count_connections(server.process.pid, mongodb.port) <= MAX_CONNECTIONS


async def test_a_reply_of_mongodb_cut_short_loses_no_message(mongodb: DatabaseServer, tmp_path: Path) -> None:
    one, two = unique_names(2)
    async with tcp_proxy(mongodb) as proxy, serving(tmp_path, mongodb, proxy.port) as server:
        await server.add_users(one, two)
        await server.make_contacts(one, two)
        async with server.chat(one, two) as first, server.chat(two, one) as second:
            # A message needs three replies: the search for its id, the conversation, the message.
            budgets = (0, 1, 20, 100, 150, 250, 300, 350, 400, 450, 500, 600)
            for number, budget in enumerate(budgets):
                proxy.budget = budget
                await send_until_acknowledged(first, f"m{number}\nhello")
            assert proxy.cuts > 4
            assert (await history(second))[2:] == [f"m{number}\nhello" for number in range(len(budgets))]
            assert count_connections(server.process.pid, proxy.port) <= MAX_CONNECTIONS


async def test_a_start_waits_for_mongodb_until_start_timeout(tmp_path: Path) -> None:
    stores = {"CHAT_MONGODB_MONGODB": "mongodb", "CHAT_MONGODB_MONGODBPORT": str(servers.free_port())}
    await expect_start_timeout(tmp_path, stores, "MongoDB")


async def test_a_server_starts_when_mongodb_becomes_available(mongodb: DatabaseServer, tmp_path: Path) -> None:
    async with started_later(mongodb, tmp_path), serving(tmp_path, mongodb) as server:
        one, two = unique_names(2)
        await server.add_users(one, two)
        await server.make_contacts(one, two)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DatabaseServer]:
    """Return a MongoDB that requires passwords; that of the user chat is `secret`. Each test uses its own database."""
    folder = tmp_path_factory.mktemp("mongodb")
    program = str(Path(sys.executable).with_name("secantusd-py"))
    options = ["--host", "127.0.0.1", "--storage-path", str(folder / "data")]
    auth: list[str] = []
    server = DatabaseServer("mongodb", folder, lambda one: [program, "--port", str(one.port), *options, *auth])
    server.start()
    try:
        with pymongo.MongoClient[dict[str, object]]("127.0.0.1", server.port) as client:
            roles = [{"role": "root", "db": "admin"}]
            client.admin.command("createUser", "chat", pwd="secret", roles=roles)
        server.send(signal.SIGTERM)
        assert server._process
        server._process.wait(ANSWER_TIMEOUT)
        auth.append("--auth")
        server.start()
        yield server
    finally:
        server.stop()


async def test_a_wrong_mongodb_password_is_reported_immediately(guarded: DatabaseServer, tmp_path: Path) -> None:
    stores = new_database(guarded) | {"CHAT_MONGODB_MONGODBUSER": "chat"}
    wrong = stores | {"CHAT_MONGODB_MONGODBPWD": "hunter2"}
    line, before = await start_error(tmp_path / "data", wrong, StartTimeout=600, StoreTimeout=5)
    assert "MongoDBUser or MongoDBPwd is wrong" in line
    assert "hunter2" not in line
    assert before == []
    async with subprocess_server(tmp_path / "data", stores=stores | {"CHAT_MONGODB_MONGODBPWD": "secret"}):
        pass


async def test_a_read_only_mongodb_account_is_reported_immediately(guarded: DatabaseServer, tmp_path: Path) -> None:
    with pymongo.MongoClient[dict[str, object]](
        "127.0.0.1", guarded.port, username="chat", password="secret"
    ) as client:
        client.admin.command("createUser", "reader", pwd="secret", roles=[{"role": "read", "db": "chat_demo"}])
    stores = servers.environ(mongodb=guarded)
    stores |= {"CHAT_MONGODB_MONGODBUSER": "reader", "CHAT_MONGODB_MONGODBPWD": "secret"}
    line, before = await start_error(tmp_path / "data", stores, StartTimeout=600, StoreTimeout=5)
    expected = (
        f"MongoDB at 127.0.0.1:{guarded.port}: MongoDBUser lacks a right on MongoDBName: grant it the role readWrite"
    )
    assert expected in line
    assert before == []
    child = await run_py("--check", environ=stores | {"CHAT_SERVICE_DATADIR": str(tmp_path / "data")})
    out, err = await child.communicate()
    assert (out, err.decode()) == (b"", f"{line}\n")


async def test_a_mongodb_password_in_any_script_is_accepted(guarded: DatabaseServer, tmp_path: Path) -> None:
    password, database = "pässwörd-пароль-密码", new_database(guarded)
    with pymongo.MongoClient[dict[str, object]](
        "127.0.0.1", guarded.port, username="chat", password="secret"
    ) as client:
        client.admin.command("createUser", "guest", pwd=password, roles=[{"role": "readWrite", "db": database[NAME]}])
    stores = database | {"CHAT_MONGODB_MONGODBUSER": "guest", "CHAT_MONGODB_MONGODBPWD": password}
    async with subprocess_server(tmp_path / "data", stores=stores) as server:
        await server.add_users(unique_names(1)[0])
    quoted = {
        "CHAT_MONGODB_MONGODBADDR": f"mongodb://guest:{quote(password)}@127.0.0.1:{guarded.port}/?authSource=admin"
    }
    async with subprocess_server(tmp_path / "data", stores=database | quoted):
        pass


async def test_health_is_503_while_the_mongodb_account_is_read_only(guarded: DatabaseServer, tmp_path: Path) -> None:
    database = new_database(guarded)

    def grant(role: str) -> None:
        """Grant the role and restart: secantusd checks rights when a connection is opened."""
        roles = [{"role": role, "db": database[NAME]}]
        with pymongo.MongoClient[dict[str, object]](
            "127.0.0.1", guarded.port, username="chat", password="secret"
        ) as client:
            known = client.admin.command("usersInfo", "clerk")["users"]
            change = {"roles": roles} if known else {"roles": roles, "pwd": "secret"}
            client.admin.command("updateUser" if known else "createUser", "clerk", **change)
        guarded.send(signal.SIGTERM)
        assert guarded._process
        guarded._process.wait(ANSWER_TIMEOUT)
        guarded.start()

    grant("readWrite")
    stores = database | {"CHAT_MONGODB_MONGODBUSER": "clerk", "CHAT_MONGODB_MONGODBPWD": "secret"}
    one, two = unique_names(2)
    async with subprocess_server(tmp_path / "data", stores=stores, **SHORT_HEARTBEAT) as server:
        await server.add_users(one, two)

        async def messages_are(state: str) -> bool:
            return bool((await send_request(server, "GET", "/health")).json()["data"]["messages"]["state"] == state)

        assert await messages_are("up")
        await asyncio.to_thread(grant, "read")
        async with server.chat(one, two) as chat:
            assert (await chat.answer(2, "-10"))["op_type"] == 40005  # reading works
            await wait_until(lambda: messages_are("away"))
            await expect_store_away(chat, 1, 40008, "m1\nhello", type=1)
            await asyncio.to_thread(grant, "readWrite")
            await wait_until(lambda: messages_are("up"))
            await send_until_acknowledged(chat, "m1\nhello")
