"""The samples in docs/proxy with two processes, in the real nginx and Caddy."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests import needs
from tests.cluster.harness import Databases, ProcessGroup, cluster, within
from tests.e2e.test_metrics import scraped
from tests.e2e.test_proxies import RunningProxy, Sample, nginx, running_proxy, sample
from tests.harness import PASSWORD, ChatClient, wait_until

__all__ = ["sample"]


@asynccontextmanager
async def balanced(
    sample: Sample, databases: Databases, folder: Path
) -> AsyncIterator[tuple[RunningProxy, ProcessGroup]]:
    """Run two processes with the users 1 and 2 behind the proxy."""
    async with (
        cluster(folder, databases, 2, users=("1", "2"), TrustedProxies="127.0.0.1", MetricsPort=1) as two,
        running_proxy(sample, folder, two[0].port, two[1].port) as proxy,
    ):
        await within(5, "the proxy finds both processes", lambda: spread(proxy, two))
        yield proxy, two


async def sockets(two: ProcessGroup) -> list[float]:
    """Return the number of open sockets of each process."""
    return [(await scraped(process.metrics_port))("chat_sockets") for process in two]


async def expect_sockets(two: ProcessGroup, first: int, second: int) -> None:
    """Fail unless the processes soon have exactly these numbers of open sockets."""

    async def counted() -> bool:
        return await sockets(two) == [first, second]

    await within(1, f"{first} and {second} sockets", counted)


async def spread(proxy: RunningProxy, two: ProcessGroup) -> bool:
    """Whether four sockets open evenly."""
    async with AsyncExitStack() as stack:
        await open_sockets(stack, proxy, two, 4)
        return await sockets(two) == [2, 2]


async def open_sockets(stack: AsyncExitStack, proxy: RunningProxy, two: ProcessGroup, count: int) -> list[ChatClient]:
    """Open sockets of user 2 through the proxy."""
    return [await stack.enter_async_context(proxy.chat("2", "1", two.tokens["2"])) for _ in range(count)]


async def test_sockets_spread_over_both_processes(sample: Sample, databases: Databases, tmp_path: Path) -> None:
    async with balanced(sample, databases, tmp_path) as (proxy, two), AsyncExitStack() as stack:
        receivers = await open_sockets(stack, proxy, two, 6)
        assert min(await sockets(two)) >= 2
        async with proxy.chat("1", "2", two.tokens["1"]) as one:
            assert (await one.send("m1\nhello"))["op_type"] == 40018
        for receiver in receivers:
            assert (await receiver.receive())["id"] == "m1"


async def test_a_stopped_process_costs_no_request(sample: Sample, databases: Databases, tmp_path: Path) -> None:
    """Its sockets close with 1001, and open again at the other process. After its start it gets sockets again."""
    async with balanced(sample, databases, tmp_path) as (proxy, two), AsyncExitStack() as stack:
        clients = await open_sockets(stack, proxy, two, 4)
        stopping = asyncio.create_task(two[0].stop())
        async with proxy.client() as client:
            number = 0
            while not stopping.done():
                assert (await client.get("/ping")).status_code == 200
                user = {"user_name": f"new{number}", "password": PASSWORD}
                assert (await client.post("/user/register", json=user)).status_code == 200
                number += 1
        await stopping
        await wait_until(lambda: [chat.connection.close_code for chat in clients].count(1001) == 2, "1001 twice")
        await open_sockets(stack, proxy, two, 2)
        assert (await scraped(two[1].metrics_port))("chat_sockets") == 4
        await two[0].start()

        async def gets_sockets() -> bool:
            async with proxy.chat("1", "2", two.tokens["1"]):
                return (await sockets(two))[0] == 1

        await within(10, "the process gets sockets again", gets_sockets)


async def close_code(chat: ChatClient) -> int | None:
    """Return the code with which the socket closed; None if it is open."""
    try:
        async with asyncio.timeout(0.5):
            while True:
                await chat.receive()
    except TimeoutError:
        return None
    except ConnectionClosed as closed:
        return closed.rcvd.code if closed.rcvd else 1006


async def test_sockets_open_while_a_process_lacks_redis(sample: Sample, databases: Databases, tmp_path: Path) -> None:
    async with balanced(sample, databases, tmp_path) as (proxy, two), two[0].redis.unreachable():

        async def noticed() -> bool:
            """Whether four sockets open at the other process. Caddy asks every second, so it may not know yet."""
            with suppress(InvalidStatus):
                async with AsyncExitStack() as stack:
                    await open_sockets(stack, proxy, two, 4)
                    return await sockets(two) == [0, 4]
            return False

        await within(10, "the proxy avoids the process", noticed)
        async with AsyncExitStack() as stack:
            await open_sockets(stack, proxy, two, 6)
            await expect_sockets(two, 0, 6)


async def test_nginx_drains_a_process_without_closing_sockets(databases: Databases, tmp_path: Path) -> None:
    needs.program("nginx")
    async with balanced(nginx, databases, tmp_path) as (proxy, two), AsyncExitStack() as stack:
        old = await open_sockets(stack, proxy, two, 4)
        config, line = proxy.folder / "chat.conf", f"server 127.0.0.1:{two[0].port} fail_timeout=1s"
        config.write_text(config.read_text().replace(line, f"{line} down"))
        os.kill(int((proxy.folder / "pid").read_text()), signal.SIGHUP)  # nginx -s reload

        async def drained() -> bool:
            async with proxy.chat("1", "2", two.tokens["1"]), proxy.chat("1", "2", two.tokens["1"]):
                return await sockets(two) == [2, 4]

        await within(10, "new sockets open at the other process only", drained)
        assert [await close_code(chat) for chat in old] == [None] * 4
        await expect_sockets(two, 2, 2)
