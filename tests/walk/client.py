"""The connection behind a socket of the model: what comes on it must be what the model expects."""

import asyncio

from tests import raw
from tests.harness import TIMEOUT, Frame, ServerHandle
from tests.walk.model import Message, Model, Socket


class Client:
    """It takes what comes, in order, and answers a ping only when it is told to."""

    def __init__(self, wire: raw.RawSocket, socket: Socket) -> None:
        self.wire = wire
        self.socket = socket
        self._came: list[Frame | bytes] = []  # frames, and what pings carry
        self._presence: list[Frame] = []  # comes at any time
        self._unproven: list[Message] = []  # no ping has come since
        self._ping: tuple[bytes, list[Message]] | None = None  # not answered yet, and what it is about

    async def ask(self, *requests: bytes) -> None:
        """Send requests in one write, and wait until each is answered."""
        await self.wire.write(b"".join(requests))
        for _ in requests:
            while not _is_answer(await self._read()):
                pass

    async def settle(self) -> None:
        """Take all that was sent to it."""
        await self.wire.write(raw.frame(b"settle", raw.PING))
        while await self._read() != b"settle":
            pass

    async def prove(self) -> list[Message]:
        """Answer the ping that is there; what that proves."""
        if not self._ping:
            return []
        (payload, proven), self._ping = self._ping, None
        await self.wire.write(raw.frame(payload, raw.PONG))
        return proven

    async def close(self) -> None:
        """Close politely, as far as the other end lets it."""
        await self.wire.write(raw.close(1000))
        await self.closed(1000)

    async def closed(self, code: int) -> None:
        """Wait until it is closed with this code."""
        assert await self.wire.wait_closed() == code
        if code != 1000:
            await self.wire.write(raw.close(code))
        self.wire.vanish()

    def compare(self, model: Model) -> None:
        """What came since the last time is what the model expects, neither more nor less."""
        came, self._came = self._came, []
        expected, self.socket.expected = self.socket.expected, []
        frames = [one for one in came if isinstance(one, dict)]
        for frame, (_, tells) in zip(frames, expected, strict=False):
            if tells and not tells.time:
                tells.id, tells.time = frame.get("id", ""), frame.get("time", 0)
        wanted = [one.frame() for one in expected]
        assert [_without(*pair) for pair in zip(frames, wanted, strict=False)] == wanted, (self.socket, frames)
        assert len(frames) == len(wanted), (self.socket, frames, wanted)
        for frame in self._presence:
            model.check_presence(self.socket, frame)
        self._presence.clear()
        for one in came:
            if isinstance(one, bytes):
                self._ping, self._unproven = (one, self._unproven), []
            elif one["op_type"] == 40011 and one["to"] == self.socket.user and not self.socket.sync:
                message = model.talk(one["from"], one["to"]).find(one["from"], one["id"])
                assert message
                self._unproven.append(message)

    async def _read(self) -> Frame | bytes:
        """The next frame, or what the next pong carries; pings are kept."""
        while True:
            read = await self.wire.read()
            if read.opcode == raw.PONG:
                return read.payload
            assert read.opcode in (raw.TEXT, raw.PING), read
            if read.opcode == raw.TEXT and (frame := self.wire.json(read))["op_type"] == 40027:
                self._presence.append(frame)
                continue
            self._came.append(read.payload if read.opcode == raw.PING else self.wire.json(read))
            if read.opcode == raw.TEXT:
                return self._came[-1]


def _is_answer(one: Frame | bytes) -> bool:
    """Whether it is one to a request: 40021 comes by itself."""
    return isinstance(one, dict) and one["from"] == "System" and one["op_type"] != 40021


def _without(frame: Frame, wanted: Frame) -> Frame:
    """The frame without the text of its code; what may be anything (...) is there, whatever it is."""
    return {key: ... if wanted.get(key) is ... else value for key, value in frame.items() if key != "msg"}


async def connect(server: ServerHandle, user: str, token: str, *, sync: bool) -> raw.RawSocket | int:
    """The connection of a new socket that was greeted, or the HTTP status of the refusal."""
    wire = raw.RawSocket(await raw.connect(server), user)
    await wire.write(raw.upgrade(server, user, token=token, sync=sync))
    if (status := await wire.status()) != 101:
        wire.vanish()
        return status
    greeting = await wire.receive()
    assert greeting["op_type"] == 40003, greeting
    return wire


async def connect_in_time(server: ServerHandle, user: str, token: str, *, sync: bool) -> raw.RawSocket:
    """A connection, as soon as the places of sockets that have just closed are free."""
    async with asyncio.timeout(TIMEOUT):
        while isinstance(wire := await connect(server, user, token, sync=sync), int):
            assert wire == 429, wire
            await asyncio.sleep(0.01)
    return wire
