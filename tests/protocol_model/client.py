"""The client of a socket of the model: it compares the received frames with the expected ones."""

import asyncio

from tests import raw
from tests.harness import TIMEOUT, Frame, ServerHandle
from tests.protocol_model.conversations import ModelMessage
from tests.protocol_model.model import Model, ModelSocket


class Client:
    """Receives frames in order, and answers a ping only on request."""

    def __init__(self, wire: raw.RawSocket, socket: ModelSocket) -> None:
        self.wire = wire
        self.socket = socket
        self._received: list[Frame | bytes] = []  # frames, and the payloads of pings
        self._presence: list[Frame] = []  # may arrive at any time, and is checked separately
        self._unconfirmed: list[ModelMessage] = []  # received after the last ping
        self._ping: tuple[bytes, list[ModelMessage]] | None = None  # unanswered, with the messages that it confirms

    async def ask(self, *requests: bytes, unanswered: int = 0) -> None:
        """Send requests in one write, and wait until each is answered, except `unanswered` ones."""
        await self.wire.write(b"".join(requests))
        for _ in requests[unanswered:]:
            while not _is_answer(await self._read()):
                pass

    async def receive_sent(self) -> None:
        """Receive everything that the server has sent so far."""
        await self.wire.write(raw.frame(b"settle", raw.PING))
        while await self._read() != b"settle":
            pass

    async def confirm(self) -> list[ModelMessage]:
        """Answer the waiting ping, if any; return the messages that this confirms."""
        if not self._ping:
            return []
        (payload, confirmed), self._ping = self._ping, None
        await self.wire.write(raw.frame(payload, raw.PONG))
        return confirmed

    async def close(self) -> None:
        """Perform the closing handshake."""
        await self.wire.write(raw.close(1000))
        await self.wait_closed(1000)

    async def wait_closed(self, code: int) -> None:
        """Wait until the server closes the socket; fail if its code is another one."""
        assert await self.wire.wait_closed() == code
        if code != 1000:
            await self.wire.write(raw.close(code))
        self.wire.vanish()

    def compare(self, model: Model) -> None:
        """Fail unless the frames since the last call are exactly those that the model expects."""
        received, self._received = self._received, []
        expected, self.socket.expected = self.socket.expected, []
        frames = [one for one in received if isinstance(one, dict)]
        for frame, (_, acknowledged) in zip(frames, expected, strict=False):
            if acknowledged and not acknowledged.time:
                acknowledged.id, acknowledged.time = frame.get("id", ""), frame.get("time", 0)
        wanted = [one.frame() for one in expected]
        assert [_comparable(*pair) for pair in zip(frames, wanted, strict=False)] == wanted, (self.socket, frames)
        assert len(frames) == len(wanted), (self.socket, frames, wanted)
        for frame in self._presence:
            model.check_presence(self.socket, frame)
        self._presence.clear()
        for one in received:
            if isinstance(one, bytes):
                self._ping, self._unconfirmed = (one, self._unconfirmed), []
            elif one["op_type"] == 40011 and one["to"] != "ALL" and not self.socket.sync:
                peer = one["from"] if one["to"] == self.socket.user else one["to"]
                conversation = model.conversation(self.socket.user, peer)
                message = conversation and conversation.find(one["from"], one["id"])
                assert message
                self._unconfirmed.append(message)

    async def _read(self) -> Frame | bytes:
        """Return the next frame, or the payload of the next pong; keep pings."""
        while True:
            read = await self.wire.read()
            if read.opcode == raw.PONG:
                return read.payload
            assert read.opcode in (raw.TEXT, raw.PING), read
            if read.opcode == raw.TEXT and (frame := self.wire.json(read))["op_type"] == 40027:
                self._presence.append(frame)
                continue
            self._received.append(read.payload if read.opcode == raw.PING else self.wire.json(read))
            if read.opcode == raw.TEXT:
                return self._received[-1]


def _is_answer(one: Frame | bytes) -> bool:
    """Return whether this answers a request; 40021 and 42011 are events."""
    return isinstance(one, dict) and one["from"] == "System" and one["op_type"] not in (40021, 42011)


def _comparable(frame: Frame, wanted: Frame) -> Frame:
    """Return the frame without `msg`, and with `...` for each value that may be anything (`...` in `wanted`).

    If `wanted` has a set as its content, the lines may be in any order.
    """
    shown = {key: ... if wanted.get(key) is ... else value for key, value in frame.items() if key != "msg"}
    if isinstance(wanted["content"], frozenset):
        shown["content"] = frozenset(frame["content"].split("\n"))
    return shown


async def connect(server: ServerHandle, user: str, token: str, *, sync: bool) -> raw.RawSocket | int:
    """Open a socket and read its greeting; return it, or the HTTP status of the refusal."""
    wire = raw.RawSocket(await raw.connect(server), user)
    await wire.write(raw.upgrade(server, user, token=token, sync=sync))
    if (status := await wire.status()) != 101:
        wire.vanish()
        return status
    greeting = await wire.receive()
    assert greeting["op_type"] == 40003, greeting
    return wire


async def connect_when_free(server: ServerHandle, user: str, token: str, *, sync: bool) -> raw.RawSocket:
    """Open a socket as soon as sockets that have just closed no longer count under SocketsPerUser."""
    async with asyncio.timeout(TIMEOUT):
        while isinstance(wire := await connect(server, user, token, sync=sync), int):
            assert wire == 429, wire
            await asyncio.sleep(0.01)
    return wire
