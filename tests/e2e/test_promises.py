"""The promises of the server (protocol section 3): at least once, in order, no foreign access."""

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from chat_server.api.limits import BYTES_PER_FRAME, CLOSE_TIMEOUT
from chat_server.service.sending import Batch, Sending
from tests import raw
from tests.harness import CLUSTER, PASSWORD, ChatClient, Frame, ServerHandle, serving, wait_until


def ids(frames: Sequence[Frame]) -> list[str]:
    """Return the ids of a page without the final answer."""
    return [frame["id"] for frame in frames[:-1]]


async def next_id(two: raw.RawSocket) -> str:
    """Return the id of the next message."""
    id: str = (await two.receive())["id"]
    return id


async def ping(two: raw.RawSocket) -> bytes:
    """Return the payload of the next ping."""
    while (read := await two.read()).opcode != raw.PING:
        assert read.opcode == raw.TEXT, read
    return read.payload


@asynccontextmanager
async def three_users(folder: Path, **settings: Any) -> AsyncIterator[ServerHandle]:
    """Run a server with the users 1, 2 and 3 and without a contact limit."""
    async with serving(folder, users=("1", "2", "3"), **{"StrangerLimit": 0, **settings}) as server:
        yield server


# --- 2. at least once, unread until confirmed


@pytest.mark.parametrize("end", [raw.RawSocket.reset, raw.RawSocket.vanish, raw.RawSocket.half_close])
async def test_messages_stay_unread_without_a_pong(server: ServerHandle, end: Callable[[raw.RawSocket], None]) -> None:
    """The socket disconnects before it answers the ping."""
    async with server.chat("1", to="2") as one:
        async with raw.chat(server, "2") as two:
            assert (await one.send("m1\nhello"))["op_type"] == 40018
            assert await next_id(two) == "m1"
            await ping(two)
            end(two)
            await wait_offline(one)
        async with server.chat("2", to="1") as two_again:
            assert ids(await two_again.ask(3))[0] == "m1"


async def wait_offline(one: ChatClient) -> None:
    """Wait until the server reports user 2 as offline.

    Each attempt is a retry of the same message, because the contact limit applies.
    """

    async def offline() -> bool:
        return bool((await one.send("late\nhello"))["op_type"] == 40019)

    await wait_until(offline)


async def test_a_pong_confirms_only_what_preceded_its_ping(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one:
        async with raw.chat(server, "2") as two:
            await one.send("m1\nhello")
            assert await next_id(two) == "m1"
            first = await ping(two)
            await one.send("m2\nhello")
            assert await next_id(two) == "m2"
            await two.write(raw.frame(b"", raw.PONG) + raw.frame(first[:-1] + b"\xff", raw.PONG))  # payloads of no ping
            assert (await two.ask(3, to="1"))["from"] == "System"
            await two.write(raw.frame(first, raw.PONG))
            assert await ping(two) != first
            two.reset()
        async with server.chat("2", to="1") as two_again:
            assert ids(await two_again.ask(3)) == ["m2"]


async def test_only_a_pong_marks_delivered_messages_as_read(server: ServerHandle) -> None:
    async with server.chat("1", to="2") as one, raw.chat(server, "2", to="1") as two:
        for n in range(5):
            await one.send(f"m{n}\nhello")
            assert await next_id(two) == f"m{n}"
        await two.put(3)
        assert [await next_id(two) for _ in range(5)] == [f"m{n}" for n in range(5)]
        assert (await two.answer())["content"] == "5"
    async with server.chat("2", to="1") as polite:
        assert len(await polite.ask(3)) == 6  # reading a page does not mark its messages
        assert len(await polite.ask(3)) == 6
        async with server.chat("1", to="2") as one:
            await polite.send("hello")  # now the contact limit no longer applies
            await one.send("m5\nhello")
            assert (await polite.receive())["id"] == "m5"
            await wait_until(lambda: unread(polite, 5))


async def unread(two: ChatClient, count: int) -> bool:
    """Return whether exactly `count` messages are unread."""
    return bool((await two.answer(3))["content"] == str(count))


async def test_a_confirmation_by_one_of_several_sockets_suffices(server: ServerHandle) -> None:
    async with (
        server.chat("1", to="2") as one,
        raw.chat(server, "2") as mute,
        raw.chat(server, "2") as dying,
        server.chat("2", to="1") as polite,
    ):
        await one.send("m1\nhello")
        assert [await next_id(mute), await next_id(dying), (await polite.receive())["id"]] == ["m1"] * 3
        dying.reset()
        await wait_until(lambda: unread(polite, 0))


async def test_an_offline_user_later_gets_all_messages_in_order(tmp_path: Path) -> None:
    async with three_users(tmp_path) as server:
        async with server.chat("1", to="2") as one:
            for n in range(250):
                await one.put(1, f"m{n}\nhello")
            assert [(await one.receive())["op_type"] for _ in range(250)] == [40019] * 250
        async with server.chat("2", to="1", max_queue=None) as two:
            assert ids(await two.ask(3)) == [f"m{n}" for n in range(250)]


async def test_a_user_with_only_a_closing_socket_is_offline(server: ServerHandle) -> None:
    # The server drops frames to such a socket, so the sender must not be told that the message was received.
    async with server.chat("1", to="2") as one, raw.chat(server, "2") as two:
        await two.write(raw.frame(b"", raw.BINARY))
        assert await two.wait_closed() == 1003  # the client does not answer, and the server waits for the answer
        # One of several processes may learn it a moment later, but not only when the server gives up waiting.
        deadline = time.monotonic() + (CLOSE_TIMEOUT / 2 if CLUSTER else 0)
        while (await one.answer(6, "hello"))["content"] != "0":
            assert time.monotonic() < deadline
        assert (await one.send("m1\nhello"))["op_type"] == 40019


async def test_a_retry_delivers_what_a_closing_socket_missed(server: ServerHandle) -> None:
    # "delivered again only if it is still unread and this process does not remember having put it on a socket"
    async with server.chat("1", to="2") as one, raw.chat(server, "2") as two:
        await two.write(raw.frame(b"", raw.BINARY))
        assert await two.wait_closed() == 1003
        ack = await one.send("m1\nhello")
        async with raw.chat(server, "2") as again:
            assert (await one.send("m1\nhello"))["time"] == ack["time"]
            await one.answer(6, "after it")
            assert (await again.receive()).get("id") == "m1"


# --- 3. in order


async def test_messages_to_many_receivers_keep_their_order(tmp_path: Path) -> None:
    """They are stored, listed and delivered in the order of sending."""
    receivers = [f"r{n}" for n in range(4)]
    async with serving(tmp_path, users=("1", *receivers), StrangerLimit=0) as server:
        sockets = [raw.chat(server, name, to="1") for name in receivers]
        open_ones = [await one.__aenter__() for one in sockets]
        async with raw.chat(server, "1") as one:
            order = [(f"m{n}", receivers[n * n % 4 if n % 3 else n % 4]) for n in range(400)]
            frames = b"".join(raw.request(1, f"{id}\nhello", to=to) for id, to in order)
            await one.write(frames)
            acks = [await one.answer() for _ in order]
            assert [ack["id"] for ack in acks] == [id for id, _ in order]
            times = [ack["time"] for ack in acks]
            assert times == sorted(times)
        for two in open_ones:
            mine = [id for id, to in order if to == two.user]
            assert [await next_id(two) for _ in mine] == mine
            await two.put(3)
            assert [await next_id(two) for _ in mine] == mine
            assert (await two.answer())["content"] == str(len(mine))
            await two.put(2, "-200")
            assert [await next_id(two) for _ in mine] == mine
        for two_socket in sockets:
            await two_socket.__aexit__(None, None, None)


# --- 4. harassment interception with racing sockets


async def test_parallel_sockets_do_not_exceed_the_contact_limit(server: ServerHandle) -> None:
    async def send(n: int) -> list[int]:
        async with server.chat("1", to="2") as one:
            for k in range(3):
                await one.put(1, f"m{n}-{k}\nhello")
            return [(await one.receive())["op_type"] for _ in range(3)]

    async with server.chat("2", to="1") as two:
        codes = await asyncio.gather(*map(send, range(10)))
        assert sorted(code for run in codes for code in run) == [40018] * 5 + [40020] * 25
        assert len({(await two.receive())["id"] for _ in range(5)}) == 5
        await two.expect_nothing()
        assert (await two.answer(2, "-200"))["content"] == "5"


async def test_contacts_chat_while_the_counters_are_unavailable(tmp_path: Path) -> None:
    """Messages to strangers are refused."""
    async with serving(tmp_path, users=("1", "2", "3")) as server:
        await server.make_contacts("1", "2")
        async with server.chat("1") as one:
            assert (await one.send("hello", to="2"))["op_type"] == 40019
            with closing(sqlite3.connect(tmp_path / "chat.db")) as database:
                database.execute("ALTER TABLE strangers RENAME TO away")
                assert (await one.send("m1\nhello", to="2"))["op_type"] == 40019
                answer = await one.send("m1\nhello", to="3")
                assert (answer["op_type"], answer["reason"], answer["id"]) == (40008, "store_away", "m1")
                database.execute("ALTER TABLE away RENAME TO strangers")
            assert (await one.send("m1\nhello", to="3"))["op_type"] == 40019
        async with server.chat("3", to="1") as three:
            assert ids(await three.ask(3)) == ["m1"]


# --- 5. no foreign access


async def test_a_third_user_cannot_access_a_conversation(tmp_path: Path) -> None:
    async with three_users(tmp_path) as server:
        async with server.chat("1", to="2") as one:
            for n in range(3):
                await one.send(f"m{n}\nsecret")
        async with server.chat("3", to="2") as three:
            for peer in ("1", "2"):
                assert len(await three.ask(2, "0-200", to=peer)) == 1
                assert len(await three.ask(2, "-200", to=peer)) == 1
                assert len(await three.ask(3, to=peer)) == 1
                for place in ("m1", ">m1", "<m1"):
                    for content in (f"-200@{place}", f"+200@{place}"):
                        [answer] = await three.ask(2, content, to=peer)
                        assert (answer["op_type"], answer["reason"]) == (40004, "no_such_message")
                    for op, failed in ((4, 40006), (5, 40012)):
                        [answer] = await three.ask(op, place, to=peer)
                        assert (answer["op_type"], answer["reason"]) == (failed, "no_such_message")
                [answer] = await three.ask(4, "*", to=peer)
                assert (answer["op_type"], answer["content"]) == (40007, "0")
            [answer] = await three.ask(7, "-200")
            assert (answer["op_type"], answer["content"]) == (40023, "0")
            [answer] = await three.ask(7, "-200@1")
            assert answer["op_type"] == 40022
        async with server.chat("2", to="1") as two:
            assert [frame["content"] for frame in (await two.ask(3))[:-1]] == [f"m{n}\nsecret" for n in range(3)]


async def test_users_with_similar_names_share_no_conversation(tmp_path: Path) -> None:
    """The concatenated names of the pairs look alike."""
    async with serving(tmp_path, users=("a", "b-c", "a-b", "c", "aSEPb", "A")) as server:
        async with server.chat("a", to="b-c") as one:
            await one.send("m1\nhello")
        for user, peer in (("a-b", "c"), ("c", "a-b"), ("aSEPb", "c"), ("A", "b-c"), ("b-c", "A")):
            async with server.chat(user, to=peer) as other:
                assert len(await other.ask(2, "-200")) == 1
                assert len(await other.ask(7, "-200")) == (2 if user == "b-c" else 1)


async def logout(server: ServerHandle, user: str, token: str) -> httpx.Response:
    """End the session of `token`."""
    return await server.post("/user/logout", {"user_name": user}, headers={"Authorization": f"Bearer {token}"})


async def new_password(server: ServerHandle, user: str, token: str) -> httpx.Response:
    """End all sessions of the user except the one of `token`."""
    body = {"user_name": user, "old_password": PASSWORD, "new_password": "secret2"}
    return await server.post("/user/set_password", body, headers={"Authorization": f"Bearer {token}"})


EndSession = Callable[[ServerHandle, str, str], Any]


async def session_to_end(server: ServerHandle, end: EndSession) -> tuple[str, str]:
    """Return the token of a second session of user 1, which `end` will end, and the token that `end` needs."""
    other = await server.login("1")
    return other, other if end is logout else server.tokens["1"]


@pytest.mark.parametrize("end", [logout, new_password])
async def test_no_frame_of_an_ended_session_passes_after_the_answer(tmp_path: Path, end: EndSession) -> None:
    """Many frames are in flight when the session ends."""
    async with three_users(tmp_path) as server:
        ended, asking = await session_to_end(server, end)
        async with (
            raw.chat(server, "1", to="2", token=ended) as one,
            server.chat("1", to="2", token=server.tokens["1"]) as kept,
            raw.chat(server, "2", to="1") as two,
        ):
            sending = asyncio.create_task(flood(one))
            assert await next_id(two) == "m0"
            assert (await end(server, "1", asking)).status_code == 200
            last = (await kept.ask(2, "-1"))[0]["id"]
            while await next_id(two) != last:  # messages that were delivered before the answer
                pass
            assert await one.wait_closed() == 4001
            await sending
            assert (await kept.ask(2, "-1"))[0]["id"] == last
            assert (await kept.send("hello"))["op_type"] == 40018
            assert (await two.receive())["content"].endswith("\nhello")


@pytest.mark.parametrize("end", [logout, new_password])
async def test_no_frame_of_a_lost_connection_passes_after_logout(
    tmp_path: Path, end: EndSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames that arrived before the disconnect are processed, unless the session ends first."""
    send, gate, begun = Sending.send, asyncio.Event(), []

    async def slow_send(self: Sending, batches: Sequence[Batch]) -> None:
        if batches[0].socket.user == "1":
            begun.append([request.content.partition("\n")[0] for request in batches[0].requests])
            await gate.wait()
        await send(self, batches)

    monkeypatch.setattr(Sending, "send", slow_send)
    async with three_users(tmp_path) as server:
        ended, asking = await session_to_end(server, end)
        async with server.chat("3") as three:
            async with raw.chat(server, "1", to="2", token=ended) as one:
                await one.write(b"".join(raw.request(1, f"m{n}\n{'x' * 4000}") for n in range(50)))

            async def alone() -> bool:
                return bool((await three.answer(6, "anybody?"))["content"] == "0")

            await wait_until(alone)  # the server has read all frames and the end of the connection
            ending = asyncio.create_task(end(server, "1", asking))

            async def is_ended() -> bool:  # until then the answer is 403, because the session may not log out user 2
                return bool((await logout(server, "2", ended)).status_code == 401)

            await wait_until(is_ended)
            gate.set()
            assert (await ending).status_code == 200
        async with server.chat("2", to="1") as two:
            assert (await two.send("end\nhello"))["op_type"] == 40019
            assert len(begun) == 1
            assert ids(await two.ask(2, "-200")) == [*begun[0], "end"]


async def flood(one: raw.RawSocket) -> None:
    """Send m0, m1, ... until the server ends the connection."""
    try:
        for start in range(0, 1_000_000, 50):
            await one.write(b"".join(raw.request(1, f"m{n}\nsecret") for n in range(start, start + 50)))
            await asyncio.sleep(0)
    except ConnectionError:
        pass


async def test_a_throttled_frame_of_an_ended_session_is_dropped(tmp_path: Path) -> None:
    async with (
        three_users(tmp_path, FramesPerSecond=1, FramesBurst=1) as server,
        server.chat("2", to="1") as two,
        raw.chat(server, "1", to="2") as one,
    ):
        await one.write(raw.request(1, "m1\nhello"))
        assert (await one.answer())["id"] == "m1"
        # m2 counts as two frames, so it is throttled for two seconds. The server ends the connection only a little
        # later, so m2 cannot wait for longer.
        await one.write(raw.request(1, "m2\nhello", padding="x" * BYTES_PER_FRAME))
        assert (await logout(server, "1", server.tokens["1"])).status_code == 200
        assert await one.wait_closed() == 4001
        await one.read_to_end()  # the server ends the connection after one second
        assert (await two.receive())["id"] == "m1"
        await two.expect_nothing()
        assert (await two.answer(2, "-200"))["content"] == "1"


async def test_no_frame_to_an_ended_session_passes_after_the_answer(tmp_path: Path) -> None:
    async with (
        three_users(tmp_path) as server,
        server.chat("1", to="2") as one,
        raw.chat(server, "2") as two,
        raw.chat(server, "3", to="2") as three,
    ):
        sending, reading = asyncio.create_task(flood(three)), asyncio.create_task(three.read_to_end())
        assert await next_id(two) == "m0"
        assert (await logout(server, "2", server.tokens["2"])).status_code == 200
        assert (await one.send("late\nhello"))["op_type"] == 40019
        assert "late" not in [frame.get("id") for frame in await two.read_to_end()]
        three.half_close()
        await asyncio.gather(sending, reading)


def many_users(folder: Path, count: int) -> list[str]:
    """Insert `count` users directly into the database, so that the server has not cached them."""
    names = [f"u{n}" for n in range(count)]
    with closing(sqlite3.connect(folder / "chat.db")) as database, database:
        database.executemany("INSERT INTO users (name, password) VALUES (?, '')", [(name,) for name in names])
    return names


@pytest.mark.parametrize("times", [1, 8])
async def test_logout_answers_after_the_frames_in_progress(tmp_path: Path, times: int) -> None:
    def stored() -> int:
        with closing(sqlite3.connect(tmp_path / "chat.db")) as database:
            count: int = database.execute("SELECT count(*) FROM messages").fetchone()[0]
        return count

    async with three_users(tmp_path) as server, raw.chat(server, "1") as one, AsyncExitStack() as stack:
        asking = [raw.RawSocket(await raw.connect(server), "1") for _ in range(times)]
        for ending in asking:
            stack.callback(ending.vanish)
        await one.write(b"".join(raw.request(1, "m1\nhello", to=name) for name in many_users(tmp_path, 2000)))
        await one.answer()
        for ending in asking:
            await ending.write(
                f"POST /user/logout HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {server.tokens['1']}\r\n"
                'Content-Type: application/json\r\nContent-Length: 17\r\n\r\n{"user_name":"1"}'.encode()
            )
            await asyncio.sleep(0.001)  # in parallel, at slightly different times
        for status in asyncio.as_completed([ending.status() for ending in asking]):
            if await status == 200:
                break  # the first success counts, even if it found the socket already closing
        before = stored()
        assert await one.wait_closed() == 4001
        await one.read_to_end()
        assert stored() == before < 2000


def long_history(folder: Path, count: int) -> None:
    """Insert `count` messages between 1 and 2 at once. Skipping them keeps a reader of the database busy."""
    with closing(sqlite3.connect(folder / "chat.db")) as database, database:
        database.execute("INSERT INTO conversations VALUES ('2', '1', 1, 1, 1), ('1', '2', 1, 0, 1)")
        database.executemany(
            "INSERT INTO messages (time, conv, side, id, text) VALUES (?, 1, 0, ?, '')",
            ((n, n) for n in range(1, count)),
        )


async def test_an_upgrade_during_logout_is_refused_or_closed(tmp_path: Path) -> None:
    async def outcome(one: raw.RawSocket) -> int | None:
        status = await one.status()
        return await one.wait_closed() if status == 101 else status

    async with three_users(tmp_path) as server, AsyncExitStack() as stack:
        # User lookups wait for these readers: the upgrade waits between session check and opening.
        long_history(tmp_path, 200_000)
        for user in ("1", "2") * 3:
            one = await stack.enter_async_context(raw.chat(server, user, "2" if user == "1" else "1"))
            await one.write(raw.request(2, "199999-1") * 20)
        sockets = [raw.RawSocket(await raw.connect(server), "3") for _ in range(10)]
        for one, peer in zip(sockets, many_users(tmp_path, 10), strict=True):
            stack.callback(one.vanish)
            await one.write(raw.upgrade(server, "3", peer))
        assert (await logout(server, "3", server.tokens["3"])).status_code == 200
        assert set(await asyncio.gather(*map(outcome, sockets))) <= {401, 4001}
