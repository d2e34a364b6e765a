"""Extreme amounts: very long lists, texts of all sizes, too many sockets. The server gets slower or refuses."""

import asyncio
import os
from contextlib import AsyncExitStack
from pathlib import Path

import httpx

from chat_server.backends import SCHEMAS
from chat_server.model.messages import Message
from chat_server.model.sqlite import SqliteMessages
from chat_server.utils.clock import Clock, Timeline
from chat_server.utils.sqlite import Database
from tests import raw
from tests.harness import PASSWORD, Frame, serving

# The number of conversations: enough for many pages. CHAT_TEST_LISTED=100000 takes minutes.
LISTED = int(os.environ.get("CHAT_TEST_LISTED", "5000"))
MAX_TEXT_BYTES = 16384  # the default of MaxTextBytes
# Text sizes around every boundary of a frame header, a buffer, a database page and a limit.
SIZES = sorted(
    {
        *range(1, 300),
        *(2**n + d for n in range(8, 15) for d in range(-40, 3)),
        *range(4000, 4200),
        *range(1, MAX_TEXT_BYTES, 97),
    }
    & set(range(1, MAX_TEXT_BYTES + 1))
)


async def test_texts_of_all_sizes_arrive_or_are_refused(tmp_path: Path) -> None:
    """A text over MaxTextBytes is refused with a reason; a frame over MaxFrameBytes closes the socket with 1009."""
    async with serving(tmp_path, users=("a", "z"), StrangerLimit=0) as server:
        async with server.chat("a", "z") as a, server.chat("z", "a") as z:
            for start in range(0, len(SIZES), 50):
                sizes = SIZES[start : start + 50]
                for size in sizes:
                    await a.put(1, f"m{size}\n{'x' * size}")
                assert [(await a.receive())["op_type"] for _ in sizes] == [40018] * len(sizes)
                assert [len((await z.receive())["content"]) for _ in sizes] == [len(f"m{n}\n") + n for n in sizes]
            for size in (0, MAX_TEXT_BYTES + 1, MAX_TEXT_BYTES + 2, 2 * MAX_TEXT_BYTES, 65000):
                answer = await a.send(f"n{size}\n{'x' * size}")
                assert (answer["op_type"], answer["id"]) == (40008, f"n{size}")
                assert answer["reason"] == ("too_long" if size else "empty")
            stored: list[Frame] = []
            while page := (await z.ask(2, f"{len(stored)}-200"))[:-1]:
                stored += page
            assert [len(frame["content"]) for frame in stored] == [len(f"m{n}\n") + n for n in SIZES]
            await z.expect_nothing()
        async with raw.chat(server, "a", "z") as one:
            await one.put(1, "x" * 70_000)
            assert await one.wait_closed() == 1009


async def test_a_very_long_conversation_list_is_complete(tmp_path: Path) -> None:
    """Page by page, each conversation is listed exactly once, and a new message comes first."""
    others = [f"u{n}" for n in range(LISTED)]
    database = Database(tmp_path, timeout=60)
    await database.open(SCHEMAS)
    store, timeline = SqliteMessages(database), Timeline(Clock())
    for start in range(0, LISTED, 5000):
        await store.add([Message(other, "a", "m", "hello", timeline.next()) for other in others[start : start + 5000]])
    await database.close()
    async with serving(tmp_path, users=("a", "z"), StrangerLimit=0) as server, server.chat("a") as a:
        found: list[str] = []
        while page := (await a.ask(7, f"-200@{found[-1]}" if found else "-200"))[:-1]:
            found += [frame["from"] for frame in page]
        assert found == others[::-1]
        async with server.chat("z", "a") as z:
            assert (await z.send("last\nhello"))["op_type"] == 40018
            assert (await a.receive())["from"] == "z"
        [newest, answer] = await a.ask(7, "-1")
        assert (newest["from"], newest["unread"], answer["content"]) == ("z", 0, "1")


async def test_sockets_over_the_limit_of_a_user_are_refused(tmp_path: Path) -> None:
    """Each refusal is 429 with Retry-After, and the open sockets continue to chat."""
    async with (
        serving(tmp_path, users=("a", "z"), StrangerLimit=0, SocketsPerUser=16) as server,
        AsyncExitStack() as stack,
    ):
        sockets = [await stack.enter_async_context(server.chat("z", "a")) for _ in range(16)]

        async def refused() -> tuple[int, int, bool]:
            async with server.client() as client:
                upgrade = {
                    "Connection": "Upgrade",
                    "Upgrade": "websocket",
                    "Sec-WebSocket-Version": "13",
                    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
                    "Authorization": f"Bearer {server.tokens['z']}",
                }
                answer: httpx.Response = await client.get("/chat/test", params={"uid": "z"}, headers=upgrade)
            return answer.status_code, answer.json()["status"], "Retry-After" in answer.headers

        assert await asyncio.gather(*(refused() for _ in range(16))) == [(429, 40014, True)] * 16
        async with server.chat("a", "z") as a:
            assert (await a.send("m\nhello"))["op_type"] == 40018
            assert [(await one.receive())["id"] for one in sockets] == ["m"] * 16
        await sockets[0].connection.close()
        async with server.chat("z", "a", token=await server.login("z", PASSWORD)):
            pass
