"""MongoDB away, frozen, killed, cut off: nothing false is acknowledged, what needs no message goes on, and it heals."""

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
    HANGS,
    HOWS,
    SOON,
    acked,
    alive,
    away,
    connections,
    fails,
    history,
    names,
    sent,
    store_away,
    wire,
)
from tests.harness import Frame, ServerHandle, SubprocessServer, run_py, subprocess_server, wait_until
from tests.servers import DatabaseServer

FRESH = "CHAT_MONGODB_MONGODBNAME"
# The pool, and the two that a driver watches a server with.
MOST_CONNECTIONS = POOL + 2

# What needs messages: op, failure, content.
REQUESTS = ((2, 40004, "-10"), (2, 40004, "0-10"), (3, 40004, ""), (4, 40006, "m1"), (5, 40012, "m1"), (7, 40022, "-9"))


async def alone(server: ServerHandle, user: str, to: str, op_type: int, status: int, content: str) -> None:
    """Ask on a socket of its own, and be told that a store is away."""
    async with server.chat(user, to) as chat:
        await store_away(chat, op_type, status, content)


@asynccontextmanager
async def serving(folder: Path, mongodb: DatabaseServer, port: int = 0) -> AsyncIterator[SubprocessServer]:
    """A server on a new database."""
    stores = servers.environ(mongodb=mongodb) | {FRESH: names(1)[0]}
    if port:
        # Otherwise the driver asks the server for its address, and goes there by itself.
        stores["CHAT_MONGODB_MONGODBADDR"] = f"mongodb://127.0.0.1:{port}/?directConnection=true"
    async with subprocess_server(folder / "data", stores=stores, **SOON) as server:
        yield server


@pytest.mark.parametrize("how", HOWS)
async def test_while_it_is_away_nothing_is_acknowledged_the_rest_goes_on_and_it_heals(
    mongodb: DatabaseServer, tmp_path: Path, how: str
) -> None:
    one, two, three = names(3)
    async with serving(tmp_path, mongodb) as server:
        await server.add_users(one, two)
        await server.make_contacts(one, two)
        async with server.chat(one, two) as first, server.chat(two, one) as second:
            async with away(mongodb, how):
                await store_away(first, 1, 40008, "m1\nhello", type=1)
                await asyncio.gather(*(alone(server, one, two, *request) for request in REQUESTS))
                assert (await second.answer(6, "to all"))["op_type"] == 40009
                assert (await first.receive())["content"] == "to all"
                assert (await try_login(server, one)).status_code == 200
                await server.add_users(three)
                async with server.chat(three, one):
                    pass
                assert (await send_request(server, "GET", "/health")).status_code == 503
                await alive(second)
            await sent(first, "m1\nhello")
            assert (await second.receive())["content"] == "m1\nhello"
            said = await history(second)
            assert said.count("m1\nhello") == 1
            assert len(said) == 3
            await wait_until(lambda: connections(server.process.pid, mongodb.port) <= MOST_CONNECTIONS)


async def test_large_texts_that_wait_for_each_other_are_refused_like_all_others(
    mongodb: DatabaseServer, tmp_path: Path
) -> None:
    one, two = names(2)
    texts = [f"m{number}\n" + "x" * 16000 for number in range(16)]
    async with serving(tmp_path, mongodb) as server, AsyncExitStack() as stack:
        await server.add_users(one, two)
        await server.make_contacts(one, two)
        chats = [await stack.enter_async_context(server.chat(one, two)) for _ in texts]
        async with away(mongodb, "frozen"):
            await asyncio.gather(
                *(store_away(chat, 1, 40008, text, type=1) for chat, text in zip(chats, texts, strict=True))
            )
        for chat, text in zip(chats, texts, strict=True):
            await sent(chat, text)
        assert (await history(chats[0]))[-len(texts) :] == texts


class Sender:
    """Sends m0, m1, ... in rounds of several; what was refused is sent again with the same id until it is taken."""

    ROUND = 8

    def __init__(self, server: ServerHandle, user: str, to: str) -> None:
        self.user = user
        self.acks: dict[str, Frame] = {}
        self.at_once: list[str] = []  # acknowledged at the first try, in the order of sending
        self.refused = 0
        self.running = True
        self._server, self._to = server, to
        self._task = asyncio.create_task(self._run())

    async def end(self) -> None:
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
                        async with asyncio.timeout(HANGS):
                            if (frame := await chat.receive())["from"] == "System":
                                answers.append(frame)
                    assert [frame["id"] for frame in answers] == left
                    taken = [frame for frame in answers if acked(frame)]
                    self.acks |= {frame["id"]: frame for frame in taken}
                    if first:
                        self.at_once += [frame["id"] for frame in taken]
                    self.refused += len(left) - len(taken)
                    left = [id for id in left if id not in self.acks]
                    first = False


async def test_what_was_acknowledged_is_there_once_and_in_order_however_often_it_was_killed(
    mongodb: DatabaseServer, tmp_path: Path
) -> None:
    one, two = names(2)
    async with serving(tmp_path, mongodb) as server:
        await server.add_users(one, two)
        await server.make_contacts(one, two)
        senders = [Sender(server, one, two), Sender(server, two, one)]

        async def go_on() -> None:
            goals = [(sender, len(sender.acks) + 50) for sender in senders]
            await wait_until(lambda: all(len(sender.acks) >= goal for sender, goal in goals))

        async def all_refused() -> None:
            before = [(sender, sender.refused) for sender in senders]
            await wait_until(lambda: all(sender.refused > refused for sender, refused in before))

        await go_on()
        for _ in range(3):
            async with away(mongodb, "killed"):
                await all_refused()
            await go_on()
        for sender in senders:
            await sender.end()
        async with server.chat(one, two) as reader:
            said = [content.partition("\n")[0] for content in (await history(reader))[2:]]
            assert len(said) == len(set(said))
            for sender in senders:
                assert set(sender.acks) == {id for id in said if id.startswith(sender.user)}
                at_once = set(sender.at_once)
                assert [id for id in said if id in at_once] == sender.at_once
                assert at_once < set(sender.acks)
        assert connections(server.process.pid, mongodb.port) <= MOST_CONNECTIONS


async def test_a_connection_cut_in_the_middle_of_a_reply_costs_and_doubles_no_message(
    mongodb: DatabaseServer, tmp_path: Path
) -> None:
    one, two = names(2)
    async with wire(mongodb) as between, serving(tmp_path, mongodb, between.port) as server:
        await server.add_users(one, two)
        await server.make_contacts(one, two)
        async with server.chat(one, two) as first, server.chat(two, one) as second:
            # A message takes three replies: is it there, the conversation, the message.
            budgets = (0, 1, 20, 100, 150, 250, 300, 350, 400, 450, 500, 600)
            for number, budget in enumerate(budgets):
                between.budget = budget
                await sent(first, f"m{number}\nhello")
            assert between.cuts > 4
            assert (await history(second))[2:] == [f"m{number}\nhello" for number in range(len(budgets))]
            assert connections(server.process.pid, between.port) <= MOST_CONNECTIONS


async def test_it_is_named_and_waited_for_and_the_wait_has_an_end(tmp_path: Path) -> None:
    stores = {"CHAT_MONGODB_MONGODB": "mongodb", "CHAT_MONGODB_MONGODBPORT": str(servers.free_port())}
    line, before = await fails(tmp_path / "data", stores, StartTimeout=4, StoreTimeout=0.5)
    assert "MongoDB at " in line
    assert "connection refused" in line
    assert "gave up after 4 s (StartTimeout)" in line
    assert len(before) == 1
    assert "store not ready" in before[0]
    assert "MongoDB" in before[0]


async def test_a_server_that_was_started_first_comes_up_with_it(mongodb: DatabaseServer, tmp_path: Path) -> None:
    mongodb.kill()
    log = tmp_path / "server.log"

    async def come() -> None:
        await wait_until(lambda: log.exists() and "store not ready" in log.read_text())
        await asyncio.to_thread(mongodb.start)

    coming = asyncio.create_task(come())
    async with serving(tmp_path, mongodb) as server:
        await coming
        one, two = names(2)
        await server.add_users(one, two)
        await server.make_contacts(one, two)


@pytest.fixture
def guarded(tmp_path: Path, mongodb: DatabaseServer) -> Iterator[DatabaseServer]:
    """A server that asks for a password: that of chat is secret."""
    folder = tmp_path / "mongodb"
    folder.mkdir()
    program = str(Path(sys.executable).with_name("secantusd-py"))
    options = ["--host", "127.0.0.1", "--storage-path", str(folder / "data")]
    asks: list[str] = []
    server = DatabaseServer("mongodb", folder, lambda one: [program, "--port", str(one.port), *options, *asks])
    server.start()
    try:
        with pymongo.MongoClient[dict[str, object]]("127.0.0.1", server.port) as client:
            roles = [{"role": "root", "db": "admin"}]
            client.admin.command("createUser", "chat", pwd="secret", roles=roles)
        server.send(signal.SIGTERM)
        assert server._process
        server._process.wait(HANGS)
        asks.append("--auth")
        server.start()
        yield server
    finally:
        server.stop()


async def test_a_wrong_password_is_told_at_once(guarded: DatabaseServer, tmp_path: Path) -> None:
    stores = servers.environ(mongodb=guarded) | {"CHAT_MONGODB_MONGODBUSER": "chat"}
    wrong = stores | {"CHAT_MONGODB_MONGODBPWD": "hunter2"}
    line, before = await fails(tmp_path / "data", wrong, StartTimeout=600, StoreTimeout=5)
    assert "MongoDBUser or MongoDBPwd is wrong" in line
    assert "hunter2" not in line
    assert before == []
    async with subprocess_server(tmp_path / "data", stores=stores | {"CHAT_MONGODB_MONGODBPWD": "secret"}):
        pass


async def test_an_account_that_may_only_read_is_named_at_once(guarded: DatabaseServer, tmp_path: Path) -> None:
    with pymongo.MongoClient[dict[str, object]](
        "127.0.0.1", guarded.port, username="chat", password="secret"
    ) as client:
        client.admin.command("createUser", "reader", pwd="secret", roles=[{"role": "read", "db": "chat_demo"}])
    stores = servers.environ(mongodb=guarded)
    stores |= {"CHAT_MONGODB_MONGODBUSER": "reader", "CHAT_MONGODB_MONGODBPWD": "secret"}
    line, before = await fails(tmp_path / "data", stores, StartTimeout=600, StoreTimeout=5)
    says = f"MongoDB at 127.0.0.1:{guarded.port}: MongoDBUser lacks a right on MongoDBName: grant it the role readWrite"
    assert says in line
    assert before == []
    child = await run_py("--check", environ=stores | {"CHAT_SERVICE_DATADIR": str(tmp_path / "data")})
    out, err = await child.communicate()
    assert (out, err.decode()) == (b"", f"{line}\n")


async def test_a_password_in_any_script_is_accepted(guarded: DatabaseServer, tmp_path: Path) -> None:
    password = "pässwörd-пароль-密码"
    with pymongo.MongoClient[dict[str, object]](
        "127.0.0.1", guarded.port, username="chat", password="secret"
    ) as client:
        client.admin.command("createUser", "guest", pwd=password, roles=[{"role": "readWrite", "db": "chat_demo"}])
    stores = servers.environ(mongodb=guarded)
    stores |= {"CHAT_MONGODB_MONGODBUSER": "guest", "CHAT_MONGODB_MONGODBPWD": password}
    async with subprocess_server(tmp_path / "data", stores=stores) as server:
        await server.add_users(names(1)[0])
    quoted = {
        "CHAT_MONGODB_MONGODBADDR": f"mongodb://guest:{quote(password)}@127.0.0.1:{guarded.port}/?authSource=admin"
    }
    async with subprocess_server(tmp_path / "data", stores=servers.environ(mongodb=guarded) | quoted):
        pass


async def test_health_is_503_while_its_account_may_only_read(guarded: DatabaseServer, tmp_path: Path) -> None:
    def grant(role: str) -> None:
        """And start it again: the stand-in asks for rights when a connection is made."""
        roles = [{"role": role, "db": "chat_demo"}]
        with pymongo.MongoClient[dict[str, object]](
            "127.0.0.1", guarded.port, username="chat", password="secret"
        ) as client:
            known = client.admin.command("usersInfo", "clerk")["users"]
            change = {"roles": roles} if known else {"roles": roles, "pwd": "secret"}
            client.admin.command("updateUser" if known else "createUser", "clerk", **change)
        guarded.send(signal.SIGTERM)
        assert guarded._process
        guarded._process.wait(HANGS)
        guarded.start()

    grant("readWrite")
    stores = servers.environ(mongodb=guarded)
    stores |= {"CHAT_MONGODB_MONGODBUSER": "clerk", "CHAT_MONGODB_MONGODBPWD": "secret"}
    one, two = names(2)
    async with subprocess_server(tmp_path / "data", stores=stores, **SOON) as server:
        await server.add_users(one, two)

        async def messages_are(state: str) -> bool:
            return bool((await send_request(server, "GET", "/health")).json()["data"]["messages"]["state"] == state)

        assert await messages_are("up")
        await asyncio.to_thread(grant, "read")
        async with server.chat(one, two) as chat:
            assert (await chat.answer(2, "-10"))["op_type"] == 40005  # it answers
            await wait_until(lambda: messages_are("away"))
            await store_away(chat, 1, 40008, "m1\nhello", type=1)
            await asyncio.to_thread(grant, "readWrite")
            await wait_until(lambda: messages_are("up"))
            await sent(chat, "m1\nhello")
