"""What the kernel tells of a connection."""

import asyncio

import uvloop

from chat_server.utils.tcp import progress


def test_a_connection_that_has_ended_meanwhile_stops_nobodys_heartbeat() -> None:
    """All connections of a slot are asked one after the other: an error at one would leave the others unasked."""

    async def ended() -> list[tuple[int, int, int]]:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
        transport, _ = await loop.create_connection(asyncio.Protocol, *server.sockets[0].getsockname())
        sock = transport.get_extra_info("socket")
        told = []
        transport.abort()
        for _ in range(3):
            told.append(progress(sock))
            await asyncio.sleep(0)
        server.close()
        await server.wait_closed()
        return told

    for factory in (uvloop.new_event_loop, asyncio.new_event_loop):
        with asyncio.Runner(loop_factory=factory) as runner:
            assert runner.run(ended())[-1] == (0, 0, 0)
