"""Reads all stored messages back through sockets, and compares them with what the clients observed."""

from collections import defaultdict
from collections.abc import Sequence

from tests.harness import ChatClient, Frame, ServerHandle
from tests.soak.ledger import TOLERANCE, Ledger, SentMessage, SoakGroup
from tests.soak.run import STRANGER_LIMIT, SoakRun

PAGE = 200


async def read_back(run: SoakRun) -> None:
    """Read every conversation as both of its users; record faults in the ledger."""
    async with run.serving() as server:
        await _read_back(run.ledger, server)


async def _read_back(ledger: Ledger, server: ServerHandle) -> None:
    conversations: dict[tuple[str, str], list[SentMessage]] = defaultdict(list)
    in_groups: dict[str, list[SentMessage]] = defaultdict(list)
    for one in ledger.sent.values():
        if one.group:
            in_groups[one.receiver].append(one)
            continue
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
    for group in ledger.groups.values():
        await _read_back_group(ledger, server, group, in_groups[group.name])


async def _read_back_group(ledger: Ledger, server: ServerHandle, group: SoakGroup, sent: Sequence[SentMessage]) -> None:
    """Read a group as each of its members and guests."""
    whole: list[Frame] = []
    for user in group.members:
        async with server.chat(user, group.name) as chat:
            stored = await read_by_position(chat)
            for frame in stored:
                ledger.check_stored(user, frame)
            compare(ledger, sent, stored)
            if [(one["from"], one["id"]) for one in whole or stored] != [(one["from"], one["id"]) for one in stored]:
                ledger.fault(f"{user} and {group.owner} see different messages in {group.name}")
            whole = stored
            check_position(ledger, group, user, stored)
            await check_unread_in_group(ledger, chat, stored)
    for guest in group.guests:
        async with server.chat(guest) as chat:
            await _read_back_as_guest(ledger, group, chat, whole)


async def _read_back_as_guest(ledger: Ledger, group: SoakGroup, chat: ChatClient, whole: Sequence[Frame]) -> None:
    """A guest sees exactly the messages since it joined, or none if it has been removed."""
    [*page, answer] = await chat.ask(2, f"-{PAGE}", to=group.name)
    if answer.get("reason") == "no_such_group":
        if group.absent[chat.user][-1][1] != float("inf"):
            ledger.fault(f"{chat.user} is not in {group.name}, but was added")
        return
    ledger.counts["guests at the end"] += 1
    for frame in page:
        ledger.check_stored(chat.user, frame)
    if group.absent[chat.user][-1][1] == float("inf"):
        ledger.fault(f"{chat.user} is in {group.name}, but was removed")
    ids = [(one["from"], one["id"]) for one in page]
    [last] = [one for one in await ask(chat, 7, f"-{PAGE}") if one["to"] == group.name]
    if last.get("id") != (ids[-1][1] if ids else None):
        ledger.fault(f"op 7 lists another message of {group.name} for {chat.user} than op 2")
    if ids != [(one["from"], one["id"]) for one in whole][len(whole) - len(ids) :]:
        ledger.fault(f"{chat.user} and {group.owner} see different messages in {group.name}")
    added = group.added.get(chat.user, float("inf"))
    if len(ids) < len([one for one in whole if one["time"] > added + TOLERANCE][-PAGE:]):
        ledger.fault(f"{chat.user} misses messages in {group.name} since it joined")


def check_position(ledger: Ledger, group: SoakGroup, user: str, stored: Sequence[Frame]) -> None:
    """Check that a read position passed only messages that op 4 or pongs allow, and all that op 4 certainly marked."""
    others = [one for one in stored if one["from"] != user]
    messages = [ledger.sent.get((one["from"], group.name, one["id"])) for one in others]
    read = [one["read"] for one in others]
    if read != sorted(read, reverse=True):
        ledger.fault(f"{user} has read a message of {group.name}, but not one before it")
    asked = [n for n, message in enumerate(messages) if message in group.asked[user]]
    for message, is_read in list(zip(messages, read, strict=True))[asked[-1] + 1 if asked else 0 :]:
        if is_read and message not in group.confirmed[user]:
            ledger.fault(f"{message} is read by {user}, but was neither marked nor confirmed")
            break  # a position that moved too far passes many
    for message, is_read in zip(messages, read, strict=True):
        if message in group.marked[user] and not is_read:
            ledger.fault(f"{message} was marked as read by {user}, but is unread")


async def check_unread_in_group(ledger: Ledger, chat: ChatClient, stored: Sequence[Frame]) -> None:
    """Check that op 3 returns, and op 7 counts, exactly the messages after the read position."""
    unread = [frame["id"] for frame in stored if frame["from"] != chat.user and not frame["read"]]
    if [frame["id"] for frame in await ask(chat, 3)] != unread:
        ledger.fault(f"op 3 does not return the unread messages of {chat.peer} to {chat.user}")
    [listed] = [one for one in await ask(chat, 7, f"-{PAGE}") if one["to"] == chat.peer]
    if listed["unread"] > len(unread) or (len(unread) < PAGE and listed["unread"] != len(unread)):
        ledger.fault(f"op 7 counts {listed['unread']} unread in {chat.peer} for {chat.user}, not {len(unread)}")


async def ask(chat: ChatClient, op_type: int, content: str = "") -> list[Frame]:
    """Return the frames of an answer, without unread messages that several processes deliver again when they start."""
    return [frame for frame in await chat.ask(op_type, content) if frame["type"] == 2 and frame["from"] != "System"]


async def read_by_position(chat: ChatClient) -> list[Frame]:
    """Return all messages, page by page from the oldest, with S-N."""
    found: list[Frame] = []
    while page := await ask(chat, 2, f"{len(found)}-{PAGE}"):
        found += page
    return found


async def read_backwards(chat: ChatClient) -> list[Frame]:
    """Return all messages, page by page from the newest, with -N@ID."""
    found = page = await ask(chat, 2, f"-{PAGE}")
    while page:
        mark = f"{'>' if page[0]['from'] == chat.user else '<'}{page[0]['id']}"
        page = await ask(chat, 2, f"-{PAGE}@{mark}")
        found = page + found
    return found


def compare(ledger: Ledger, sent: Sequence[SentMessage], stored: Sequence[Frame]) -> None:
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
    if [frame["id"] for frame in await ask(chat, 3)] != unread:
        ledger.fault(f"op 3 does not return the unread messages from {chat.peer} to {chat.user}")
    conversations = await ask(chat, 7, f"-{PAGE}")
    counts = {frame["from"] if frame["to"] == chat.user else frame["to"]: frame["unread"] for frame in conversations}
    if counts.get(chat.peer, 0) != min(len(unread), 1000):
        ledger.fault(f"op 7 counts {counts.get(chat.peer)} unread from {chat.peer} to {chat.user}, not {len(unread)}")
