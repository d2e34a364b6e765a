"""The kinds of trouble that `bench trouble` makes, in a process of its own with a low priority.

The experiment starts it; by hand it is of no use. It takes the tokens of its users on stdin, says
`ready`, begins when it reads `go`, ends by itself after --seconds and prints what it did as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from itertools import count
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import aiohttp
import msgspec
import uvloop

from bench.client import PATIENCE, BenchError, Code, Heard, Peer, Say, connect, each, log_in
from bench.rude import BINARY, CONTINUATION, Gone, RawClient, frame, request

SMALL = 4096  # bytes that the kernel holds for a reader that does not read
LONG = "x" * 16000  # nearly MaxTextBytes
BAD = [b"{", b"[]", b'{"op_type":"1"}', b'{"op_type":99,"content":""}', b'{"op_type":1,"content":7}', b"null"]
LAST_STRAWS = [frame(b"{"), frame(b"x", BINARY), frame(b"x" * 70_000), frame(b"\xff\xfe")]
STORM = tuple(f"storm{i}" for i in range(20))
GHOSTS = tuple(f"ghost{i}" for i in range(10))


class Scene:
    """Where a kind of trouble is made: the server, its users' tokens, and a count of what was done."""

    def __init__(self, url: str, tokens: dict[str, str]) -> None:
        self.url = url
        self.tokens = tokens
        self.done: Counter[str] = Counter()
        self.milliseconds: list[float] = []  # that each of several things took
        self.open: list[RawClient] = []  # sockets nobody reads; kept until the end

    async def rude(self, uid: str, *, buffer: int = 0) -> RawClient:
        """Open a socket without manners."""
        return await RawClient.open(self.url, uid, self.tokens[uid], buffer=buffer)

    async def polite(self, uid: str) -> Peer:
        """Open a socket that takes whatever comes and answers pings."""
        peer = await connect(self.url, uid, self.tokens[uid])
        peer.hear = lambda _: None
        return peer


Work = Callable[[Scene], Awaitable[None]]


class Stored(NamedTuple):
    """So many messages that are to lie stored for each of `readers` beforehand."""

    readers: tuple[str, ...]
    messages: int
    text: str = ""
    unread: bool = False


class Kind(NamedTuple):
    """A kind of trouble: who makes it, what they know and have before, and what each worker does."""

    users: tuple[str, ...]
    works: tuple[Work, ...]  # all at the same time, each until it is cancelled
    friends: tuple[tuple[str, str], ...] = ()
    stored: Stored | None = None
    prepare: Work | None = None


# --- slow-reader


def _hoarder(uid: str) -> Work:
    """Ask for all that is unread and for many pages, and read nothing of it."""

    async def work(scene: Scene) -> None:
        rude = await scene.rude(uid, buffer=SMALL)
        scene.open.append(rude)
        await rude.write(request(3, to="writer") + request(2, "-200", to="writer") * 100)
        scene.done["large answers asked for, not read"] += 101

    return work


def _deaf(uid: str) -> Work:
    """Open a socket that reads nothing, and another one every few seconds."""

    async def work(scene: Scene) -> None:
        while True:
            scene.open.append(await scene.rude(uid, buffer=SMALL))
            scene.done["sockets that read nothing"] += 1
            await asyncio.sleep(4)

    return work


def _teller(uid: str, to: str, each_seconds: float = 0.02) -> Work:
    """Send long texts to one that does not read."""

    async def work(scene: Scene) -> None:
        rude = await scene.rude(uid)
        while True:
            await rude.write(request(1, f"\n{LONG}", to))
            await rude.answer()
            scene.done["messages to those that do not read"] += 1
            await asyncio.sleep(each_seconds)

    return work


# --- flood


def _flooder(uid: str, to: str, text: str, bunch: int) -> Work:
    """Send as fast as the server reads, to one that is online."""

    async def work(scene: Scene) -> None:
        await scene.polite(to)
        rude = await scene.rude(uid)
        frames = request(1, f"\n{text}", to) * bunch

        async def answers() -> None:
            while True:
                await rude.answer()
                scene.done[f"answers to a flood of {len(text):,} bytes each"] += 1

        reading = asyncio.create_task(answers())
        try:
            while True:
                await rude.write(frames)
        finally:
            reading.cancel()

    return work


def _babbler(uid: str) -> Work:
    """Send 99 bad frames and then something for which the socket is closed; come back at once."""

    async def work(scene: Scene) -> None:
        for life in count():
            rude = await scene.rude(uid)
            bad = b"".join(frame(BAD[i % len(BAD)]) for i in range(99))
            try:
                await rude.write(bad + LAST_STRAWS[life % len(LAST_STRAWS)])
                while True:
                    await rude.answer()
                    scene.done["bad frames answered"] += 1
            except Gone:
                scene.done["sockets closed for bad frames"] += 1
            finally:
                rude.reset()

    return work


def _shouter(uid: str) -> Work:
    """Write to everybody more often than it may."""

    async def work(scene: Scene) -> None:
        rude = await scene.rude(uid)
        while True:
            await rude.write(request(6, "x" * 1000))
            answer = await rude.answer()
            sent = f'"op_type":{Code.SENT_TO_ALL.value},'.encode() in answer
            scene.done["broadcasts sent" if sent else "broadcasts refused"] += 1
            await asyncio.sleep(0.1)

    return work


# --- logins


async def _register(scene: Scene) -> None:
    await log_in(scene.url, STORM, at_once=4)  # here, so that their hashes have the cost of the server that is measured


async def _storm(scene: Scene) -> None:
    """Log in again and again, 64 at a time; whoever is refused tries again after a moment."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(scene.url, connector=connector) as http, asyncio.TaskGroup() as group:

        async def worker(number: int) -> None:
            body = {"user_name": STORM[number % len(STORM)], "password": "correct horse"}
            while True:
                try:
                    async with http.post("/user/login", json=body) as response:
                        await response.read()
                    answer = str(response.status)
                except aiohttp.ClientError as error:
                    answer = type(error).__name__
                scene.done[f"logins answered {answer}"] += 1
                if answer != "200":
                    await asyncio.sleep(0.1)

        for number in range(64):
            group.create_task(worker(number))


# --- vanish


async def _vanish(scene: Scene, at_once: int = 40) -> None:
    """Every second open `at_once` sockets, and cut all of them in the middle of a frame."""
    message = request(1, f"\n{LONG}", GHOSTS[0])
    while True:
        opened = await asyncio.gather(*(scene.rude(GHOSTS[i % len(GHOSTS)]) for i in range(at_once)))
        for rude in opened:
            await rude.write(message + message[: len(message) // 2])  # a whole one, to be answered to nobody
        await asyncio.sleep(0.5)
        for rude in opened:
            rude.reset()
        scene.done["sockets cut within a frame"] += at_once
        await asyncio.sleep(0.5)


# --- herd

HERD = tuple(f"herd{i}" for i in range(400))
AT_ONCE = 10_000  # sockets; each is a file descriptor here and at the server


async def _herd(scene: Scene) -> None:
    """Open AT_ONCE sockets at once, and reset all of them together; come back at once."""

    async def come(uid: str) -> RawClient | None:
        try:
            rude = await scene.rude(uid)
        except (*Gone, OSError, BenchError, TimeoutError):
            scene.done["sockets that did not get in"] += 1
            return None
        scene.done["sockets that came at once"] += 1
        return rude

    while True:
        came = await asyncio.gather(*(come(HERD[i % len(HERD)]) for i in range(AT_ONCE)))
        scene.done["times that they came back"] += 1
        await asyncio.sleep(1)
        for rude in filter(None, came):
            rude.reset()


# --- deep-pages

DEEP = 200_000


def _digger(uid: str) -> Work:
    """Ask for the pages that cost the most, one at the far end and one beyond it."""

    async def work(scene: Scene) -> None:
        rude = await scene.rude(uid)
        while True:
            await rude.write(request(2, f"{DEEP - 10}-20", to="writer") + request(2, f"{10**15}-200", to="writer"))
            for _ in range(2):
                await rude.answer()
                scene.done["deep pages"] += 1

    return work


# --- endless, fragments, lists


def _endless(head: bytes, data: bytes) -> Work:
    """Send `data` without end on a connection without a session, and read nothing."""

    async def work(scene: Scene) -> None:
        address = urlsplit(scene.url)
        while True:
            _, writer = await asyncio.open_connection(address.hostname, address.port)
            scene.done["connections"] += 1
            try:
                writer.write(head)
                while True:
                    writer.write(data)
                    async with asyncio.timeout(1):
                        await writer.drain()
            except (ConnectionError, TimeoutError, RuntimeError):  # uvloop raises the last on a closed transport
                pass
            finally:
                writer.transport.abort()
            await asyncio.sleep(0.01)

    return work


def _fragmenter(uid: str) -> Work:
    """Send fragments of a message that does not end."""

    async def work(scene: Scene) -> None:
        while True:
            rude = await scene.rude(uid)
            scene.done["sockets"] += 1
            try:
                await rude.write(frame(b"{", fin=False))
                while True:
                    await rude.write(frame(b"", CONTINUATION, fin=False) * 10_000)
            except ConnectionError:
                rude.reset()

    return work


def _lister(uid: str) -> Work:
    """Ask for the conversations again and again."""

    async def work(scene: Scene) -> None:
        rude = await scene.rude(uid)
        while True:
            await rude.write(request(7, "-200"))
            await rude.answer()
            scene.done["lists"] += 1

    return work


# --- group

CHOIR = 5000
SPEAKERS = tuple(f"speaker{i}" for i in range(8))


async def _assemble(scene: Scene) -> None:
    """Open the sockets that are written to."""

    async def enter(uid: str) -> None:
        await scene.polite(uid)

    await each(enter, [uid for uid in scene.tokens if uid not in SPEAKERS], 32)


async def _speak(scene: Scene) -> None:
    """Write to all of them, from several users in turn, as each may only so many times a minute."""
    peers = [await connect(scene.url, uid, scene.tokens[uid]) for uid in SPEAKERS]
    answers: asyncio.Queue[Heard] = asyncio.Queue()
    for number in count():
        peer = peers[number % len(peers)]
        peer.hear = lambda heard: answers.put_nowait(heard) if heard.sender == "System" else None
        peer.say(Say("", "x" * 100, op_type=6))
        heard = await answers.get()
        reached = int(heard.content) if heard.op_type == Code.SENT_TO_ALL else 0
        scene.done["deliveries of messages to all"] += reached
        await asyncio.sleep(0.25)


# --- return

RETURNING = 1000
MISSED = 20  # messages that each has to fetch


def _return(uid: str) -> Work:
    """Connect as after a restart of the server: ask for the conversations, and for what came since."""

    async def work(scene: Scene) -> None:
        began = time.perf_counter()
        peer = await connect(scene.url, uid, scene.tokens[uid])
        peer.say(Say("", "-20", op_type=7))
        for code in (Code.CONVERSATIONS, Code.CONVERSATIONS):
            await peer.expect(code)
        peer.say(Say("writer", f"+200@<m-{MISSED - 1}", op_type=2))
        for _ in range(MISSED + 1):
            await peer.expect(Code.HISTORY)
        scene.milliseconds.append((time.perf_counter() - began) * 1000)
        scene.done["ms of the median"] = round(statistics.median(scene.milliseconds))
        scene.done["ms of the longest"] = round(max(scene.milliseconds))
        scene.done["sockets that came back"] += 1

    return work


CHUNK = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
BODY = b"POST /user/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"

_five = [str(i) for i in range(5)]
KINDS = {
    "nothing": Kind(users=(), works=()),  # how far two phases lie apart by themselves
    "slow-reader": Kind(
        users=(*(f"{name}{i}" for name in ("hoarder", "deaf", "teller") for i in _five),),
        friends=(*((f"teller{i}", f"deaf{i}") for i in _five),),
        stored=Stored(tuple(f"hoarder{i}" for i in _five), 20_000, "x" * 500, unread=True),
        works=(
            *(_hoarder(f"hoarder{i}") for i in _five),
            *(_deaf(f"deaf{i}") for i in _five),
            *(_teller(f"teller{i}", f"deaf{i}") for i in _five),
        ),
    ),
    "flood": Kind(
        users=("flood0", "flood1", "victim0", "victim1", "babbler0", "shout0", "shout1", "shout2"),
        friends=(("flood0", "victim0"), ("flood1", "victim1")),
        works=(
            _flooder("flood0", "victim0", "hello", 100),
            _flooder("flood1", "victim1", LONG, 4),
            _babbler("babbler0"),
            *(_shouter(f"shout{i}") for i in range(3)),
        ),
    ),
    "logins": Kind(users=(), prepare=_register, works=(_storm,)),
    "group": Kind(users=(*SPEAKERS, *(f"singer{i}" for i in range(CHOIR))), prepare=_assemble, works=(_speak,)),
    "return": Kind(
        users=tuple(f"back{i}" for i in range(RETURNING)),
        stored=Stored(tuple(f"back{i}" for i in range(RETURNING)), 2 * MISSED),
        works=tuple(_return(f"back{i}") for i in range(RETURNING)),
    ),
    "vanish": Kind(users=GHOSTS, friends=tuple((ghost, GHOSTS[0]) for ghost in GHOSTS[1:]), works=(_vanish,)),
    "endless": Kind(
        users=(), works=(_endless(BODY, CHUNK), _endless(b"", b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n" * 100))
    ),
    "fragments": Kind(users=("fragmenter",), works=(_fragmenter("fragmenter"),)),
    "lists": Kind(users=("lister",), stored=Stored(("lister",), 300, LONG), works=(_lister("lister"),) * 31),
    "herd": Kind(users=HERD, works=(_herd,)),
    "deep-pages": Kind(
        users=tuple(f"digger{i}" for i in range(4)),
        stored=Stored(tuple(f"digger{i}" for i in range(4)), DEEP, "x" * 20),
        works=(*(_digger(f"digger{i}") for i in range(4)),),
    ),
}


async def make(kind: Kind, url: str, seconds: float) -> None:
    """Prepare, wait for the word, and make trouble for so many seconds."""
    os.nice(10)  # trouble comes from elsewhere: it is not to take the cores from those that are measured
    scene = Scene(url, msgspec.json.decode(sys.stdin.readline(), type=dict[str, str]))
    if kind.prepare is not None:
        await kind.prepare(scene)
    print("ready", flush=True)
    if await asyncio.to_thread(sys.stdin.readline) != "go\n":
        return
    try:
        async with asyncio.timeout(seconds) as limit, asyncio.TaskGroup() as group:
            for work in kind.works:
                running: Coroutine[Any, Any, None] = _counted(work, scene)
                group.create_task(running)
            await asyncio.sleep(seconds + 1)
    except TimeoutError:
        if not limit.expired():
            raise
    for rude in scene.open:
        rude.reset()
    print(msgspec.json.encode(scene.done).decode(), flush=True)


async def _counted(work: Work, scene: Scene) -> None:
    """Work until it is cancelled; a socket that the server ended is counted, and the work begun again."""
    while True:
        try:
            await work(scene)
            return
        except (*Gone, BenchError) as error:
            scene.done[f"{type(error).__name__}, begun again"] += 1
            await asyncio.sleep(1)


def main() -> None:
    """Make one kind of trouble."""
    parser = argparse.ArgumentParser(prog="python -m bench.mischief", description=__doc__.partition("\n")[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--url", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    args = parser.parse_args()

    async def bounded() -> None:
        async with asyncio.timeout(args.seconds * 2 + 10 * PATIENCE):
            await make(KINDS[args.kind], args.url, args.seconds)

    uvloop.run(bounded())


if __name__ == "__main__":
    main()
