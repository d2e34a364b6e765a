"""Reads all stored messages back through sockets, and compares them with what the clients observed."""

from collections import defaultdict

from tests.harness import ChatClient, Frame, ServerHandle
from tests.soak.ledger import Ledger, SentMessage
from tests.soak.run import STRANGER_LIMIT, SoakRun

PAGE = 200


async def read_back(run: SoakRun) -> None:
    """Read every conversation as both of its users; record faults in the ledger."""
    async with run.serving() as server:
        await _read_back(run.ledger, server)


async def _read_back(ledger: Ledger, server: ServerHandle) -> None:
    conversations: dict[tuple[str, str], list[SentMessage]] = defaultdict(list)
    for one in ledger.sent.values():
        conversations[min(one.sender, one.receiver), max(one.sender, one.receiver)].append(one)
    for (user, peer), sent in conversations.items():
        async with server.chat(user, peer) as first, server.chat(peer, user) as second:
            stored = await read_by_position(first)
            if stored != await read_backwards(second):
                ledger.fault(f"{user} and {peer} see different conversations")
            for frame in stored:
                ledger.check_stored(user, frame)
            compare(ledger, sent, stored)
            await check_unread(ledger, first, stored)
            await check_unread(ledger, second, stored)
        limited = [one for one in sent if one.limited and not one.refused and one.time]
        if len(limited) > STRANGER_LIMIT:
            ledger.fault(f"{len(limited)} messages passed the contact limit between {user} and {peer}")
    ledger.counts["conversations"] = len(conversations)


async def read_by_position(chat: ChatClient) -> list[Frame]:
    """Return all messages, page by page from the oldest, with S-N."""
    found: list[Frame] = []
    while page := (await chat.ask(2, f"{len(found)}-{PAGE}"))[:-1]:
        found += page
    return found


async def read_backwards(chat: ChatClient) -> list[Frame]:
    """Return all messages, page by page from the newest, with -N@ID."""
    found = page = (await chat.ask(2, f"-{PAGE}"))[:-1]
    while page:
        mark = f"{'>' if page[0]['from'] == chat.user else '<'}{page[0]['id']}"
        page = (await chat.ask(2, f"-{PAGE}@{mark}"))[:-1]
        found = page + found
    return found


def compare(ledger: Ledger, sent: list[SentMessage], stored: list[Frame]) -> None:
    """Check that every acknowledged message is stored once, in order, and is read if it was marked."""
    positions: dict[tuple[str, str], int] = {}
    for position, frame in enumerate(stored):
        if positions.setdefault((frame["from"], frame["id"]), position) != position:
            ledger.fault(f"{frame['id']} of {frame['from']} is stored twice")
    latest: dict[tuple[str, str], SentMessage] = {}
    for one in sorted(sent, key=lambda one: one.number):
        index = positions.get((one.sender, one.id))
        if index is None:
            if one.time is not None and not one.may_be_deleted:
                ledger.fault(f"{one} is lost")
            continue
        ledger.counts["read back"] += 1
        if one.deleted:
            ledger.fault(f"{one} was deleted, but is stored")
        if one.read and not stored[index]["read"]:
            ledger.fault(f"{one} was marked as read, but is unread")
        # The retry of a refused message comes after messages that were sent in the meantime.
        if one.tries == 1 or ledger.steady:
            before = latest.get((one.device, one.receiver))
            if before and positions[before.sender, before.id] > index:
                ledger.fault(f"{one} is stored before {before}")
            latest[one.device, one.receiver] = one


async def check_unread(ledger: Ledger, chat: ChatClient, stored: list[Frame]) -> None:
    """Check that op 3 returns, and op 7 counts, exactly the messages to this user that are stored as unread."""
    unread = [frame["id"] for frame in stored if frame["to"] == chat.user and not frame["read"]]
    if [frame["id"] for frame in (await chat.ask(3))[:-1]] != unread:
        ledger.fault(f"op 3 does not return the unread messages from {chat.peer} to {chat.user}")
    [*conversations, _] = await chat.ask(7, f"-{PAGE}")
    counts = {frame["from"] if frame["to"] == chat.user else frame["to"]: frame["unread"] for frame in conversations}
    if counts.get(chat.peer, 0) != min(len(unread), 1000):
        ledger.fault(f"op 7 counts {counts.get(chat.peer)} unread from {chat.peer} to {chat.user}, not {len(unread)}")
