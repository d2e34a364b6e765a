"""The progress of a connection, as the kernel reports it."""

import asyncio

import uvloop

from chat_server.utils.tcp import progress


def test_progress_of_an_ended_connection_is_zero() -> None:
    """The heartbeat of a slot checks its connections one after another; an error would skip the remaining ones."""

    async def progress_after_abort() -> list[tuple[int, int, int]]:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
        transport, _ = await loop.create_connection(asyncio.Protocol, *server.sockets[0].getsockname())
        sock = transport.get_extra_info("socket")
        results = []
        transport.abort()
        for _ in range(3):
            results.append(progress(sock))
            await asyncio.sleep(0)
        server.close()
        await server.wait_closed()
        return results

    for factory in (uvloop.new_event_loop, asyncio.new_event_loop):
        with asyncio.Runner(loop_factory=factory) as runner:
            assert runner.run(progress_after_abort())[-1] == (0, 0, 0)
