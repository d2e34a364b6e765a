"""What is stored at the end is read back through the sockets and held against what the clients know."""

from collections import defaultdict

from tests.harness import ChatClient, Frame, ServerHandle
from tests.soak.ledger import Ledger, Said
from tests.soak.world import LIMIT, World

PAGE = 200


async def read_back(world: World) -> None:
    """Read every conversation from both sides; what is wrong goes into the ledger."""
    async with world.life() as server:
        await _read_back(world.ledger, server)


async def _read_back(ledger: Ledger, server: ServerHandle) -> None:
    talks: dict[tuple[str, str], list[Said]] = defaultdict(list)
    for one in ledger.said.values():
        talks[min(one.sender, one.receiver), max(one.sender, one.receiver)].append(one)
    for (user, peer), said in talks.items():
        async with server.chat(user, peer) as first, server.chat(peer, user) as second:
            stored = await skipped(first)
            if stored != await walked(second):
                ledger.blame(f"{user} and {peer} do not see the same")
            for frame in stored:
                ledger.stored(user, frame)
            compare(ledger, said, stored)
            await unread(ledger, first, stored)
            await unread(ledger, second, stored)
        strangers = [one for one in said if one.stranger and not one.barred and one.time]
        if len(strangers) > LIMIT:
            ledger.blame(f"{len(strangers)} messages got through to a stranger, {user} or {peer}")
    ledger.counts["conversations"] = len(talks)


async def skipped(chat: ChatClient) -> list[Frame]:
    """All messages, page by page from the first: S-N."""
    found: list[Frame] = []
    while page := (await chat.ask(2, f"{len(found)}-{PAGE}"))[:-1]:
        found += page
    return found


async def walked(chat: ChatClient) -> list[Frame]:
    """All messages, page by page from the last: -N@ID."""
    found = page = (await chat.ask(2, f"-{PAGE}"))[:-1]
    while page:
        mark = f"{'>' if page[0]['from'] == chat.user else '<'}{page[0]['id']}"
        page = (await chat.ask(2, f"-{PAGE}@{mark}"))[:-1]
        found = page + found
    return found


def compare(ledger: Ledger, said: list[Said], stored: list[Frame]) -> None:
    """Everything acknowledged is there, once, in order, as read or unread as it was left."""
    places: dict[tuple[str, str], int] = {}
    for place, frame in enumerate(stored):
        if places.setdefault((frame["from"], frame["id"]), place) != place:
            ledger.blame(f"{frame['id']} of {frame['from']} is stored twice")
    latest: dict[tuple[str, str], Said] = {}
    for one in sorted(said, key=lambda one: one.number):
        at = places.get((one.sender, one.id))
        if at is None:
            if one.time is not None and not one.may_be_gone:
                ledger.blame(f"{one} is lost")
            continue
        ledger.counts["read back"] += 1
        if one.gone:
            ledger.blame(f"{one} was deleted, and is there")
        if one.read and not stored[at]["read"]:
            ledger.blame(f"{one} was marked as read, and is unread")
        if one.tries == 1 or ledger.steady:  # a retry after a refusal comes after what was sent meanwhile
            before = latest.get((one.device, one.receiver))
            if before and places[before.sender, before.id] > at:
                ledger.blame(f"{one} stands before {before}")
            latest[one.device, one.receiver] = one


async def unread(ledger: Ledger, chat: ChatClient, stored: list[Frame]) -> None:
    """Op 3 has exactly those to me that are stored as unread; a message that a client never got is among them."""
    mine = [frame["id"] for frame in stored if frame["to"] == chat.user and not frame["read"]]
    if [frame["id"] for frame in (await chat.ask(3))[:-1]] != mine:
        ledger.blame(f"{chat.user} does not find by op 3 what he has not read from {chat.peer}")
    [*conversations, _] = await chat.ask(7, f"-{PAGE}")
    counts = {frame["from"] if frame["to"] == chat.user else frame["to"]: frame["unread"] for frame in conversations}
    if counts.get(chat.peer, 0) != min(len(mine), 1000):
        ledger.blame(f"op 7 counts {counts.get(chat.peer)} unread of {chat.peer} to {chat.user}, not {len(mine)}")
