"""python run.py user: the users of a server, also of one that runs."""

import argparse
import asyncio
import getpass
import math
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import uvloop

from chat_server.backends import ExportableStores, open_alongside
from chat_server.commands.export import export
from chat_server.conf import Settings
from chat_server.migrate.checksum import LATEST, PAGE, stream
from chat_server.model.users import State, User
from chat_server.service.names import RULES, is_available, normal
from chat_server.utils.clock import Clock
from chat_server.utils.errors import Duplicate, StartError, StoreUnavailable
from chat_server.utils.passwords import Passwords, bad_password

# Messages that are deleted in one transaction: a running server waits for it.
BATCH = 500
# Passwords that `add --many` hashes at a time.
HASHED_TOGETHER = 64
# A line with a password, and all of what `add --many` reads, are at most so long, in bytes.
MAX_LINE, MAX_INPUT = 4096, 67_108_864

Prepared = Callable[["UserAdmin"], Awaitable[None]]


class Entry(NamedTuple):
    """A line of `add --many`: a user to be added, or what is wrong with the line."""

    line: int
    name: str = ""
    password: str = ""
    wrong: str = ""


def add_options(parser: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    """The options of `user`; `common` has those of every command."""
    actions = parser.add_subparsers(title="actions", dest="action", metavar="ACTION", required=True)

    def action(name: str, what: str) -> argparse.ArgumentParser:
        one = actions.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.", parents=[common])
        if name == "add":
            which = one.add_mutually_exclusive_group(required=True)
            which.add_argument("name", metavar="NAME", nargs="?")
            which.add_argument(
                "--many",
                action="store_true",
                help="read a user from each line of standard input: a name, a tab, a password",
            )
        elif name != "list":
            one.add_argument("name", metavar="NAME")
        return one

    action("add", "make a user, also where registration is closed; asks for the password, or reads it from a pipe")
    action("list", "a line for each user: name and state")
    action("reset-password", "give a new password, asked for as with add; all sessions end")
    action("disable", "end all sessions and let the user log in no more; messages to the user are kept")
    action("enable", "let the user log in again")
    action("export", "write all that is stored about the user, as JSON lines")
    action("remove", "remove the user; the same command goes on where it stopped").add_argument(
        "--messages",
        choices=("keep", "delete"),
        required=True,
        help="keep: the others can still read them, and nobody gets the name; "
        "delete: every conversation of the user, for both sides, and the name is free again",
    )


def run(options: argparse.Namespace, settings: Settings) -> None:
    """Do what the options say, and print what was done. Raises StartError."""
    work = _prepared(options, settings)  # whoever is asked for a password keeps no store waiting
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_with_stores(work, settings, make=options.action == "add"))


def _prepared(options: argparse.Namespace, settings: Settings) -> Prepared:
    if options.action == "list":
        return UserAdmin.list
    if options.action == "add" and options.many:
        entries = _entries(settings.accounts.min_password_length)
        return lambda people: people.add_many(entries)
    name = normal(options.name)
    match options.action:
        case "add" if not is_available(name):
            raise StartError(f"no name for a user: {RULES}")
        case "add" | "reset-password":
            password = _new_password(settings.accounts.min_password_length)
            change = UserAdmin.add if options.action == "add" else UserAdmin.reset_password
            return lambda people: change(people, name, password)
        case "remove":
            return lambda people: people.remove(name, keep=options.messages == "keep")
    action = {"disable": UserAdmin.disable, "enable": UserAdmin.enable, "export": UserAdmin.export}[options.action]
    return lambda people: action(people, name)


async def _with_stores(work: Prepared, settings: Settings, *, make: bool) -> None:
    try:
        async with open_alongside(settings, Clock(), make=make) as (stores, alone):
            await work(UserAdmin(stores, settings, alone=alone))
    except StoreUnavailable as error:
        raise StartError(f"{error}; try the same command again") from error


def _new_password(shortest: int) -> str:
    """Asked for twice at a terminal, else the first line of standard input. Raises StartError."""
    try:
        if sys.stdin.isatty():
            password = getpass.getpass("password: ")
            if getpass.getpass("the same again: ") != password:
                raise StartError("the two differ")
            why = bad_password(password, shortest)
        else:
            password = sys.stdin.buffer.readline(MAX_LINE).decode("utf-8-sig").rstrip("\r\n")
            why = _bad_piped_password(password, shortest)
    except (UnicodeError, EOFError) as error:
        why = "given" if isinstance(error, EOFError) else "UTF-8"
    if why:
        raise StartError(f"the password must be {why}")
    return password


def _bad_piped_password(password: str, shortest: int) -> str:
    """As bad_password. Spaces at the ends, which `echo "$PASSWORD "` adds unseen, are refused, not removed."""
    spaces = "" if password == password.strip() else "without spaces at its beginning and end"
    return spaces or bad_password(password, shortest)


def _entries(shortest: int) -> list[Entry]:
    """The lines of standard input, all of them, so that no store waits for a slow one. Raises StartError."""
    if sys.stdin.isatty():
        raise StartError("--many reads from a pipe or a file: each line is a name, a tab, a password")
    content = sys.stdin.buffer.read(MAX_INPUT + 1)
    if len(content) > MAX_INPUT:
        raise StartError(f"the input is longer than {MAX_INPUT} bytes; split it")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise StartError(f"line {line}: is not UTF-8 text; nothing was added") from None
    lines = enumerate(text.split("\n"), 1)
    return [_entry(number, line.removesuffix("\r"), shortest) for number, line in lines if line.strip()]


def _entry(number: int, line: str, shortest: int) -> Entry:
    name, tab, password = line.partition("\t")
    if not tab:
        return Entry(number, wrong="is not a name, a tab, a password")  # it may be a password: it is not repeated
    if len(line) > MAX_LINE or not is_available(normal(name)):
        return Entry(number, wrong=f"no name for a user: {RULES}")
    if why := _bad_piped_password(password, shortest):
        return Entry(number, wrong=f"the password of {normal(name)} must be {why}")
    return Entry(number, normal(name), password)


class UserAdmin:
    """The users, with all that belongs to them; `alone`: it is certain that no server runs.

    Methods print what was done. They raise StartError for what cannot be, and StoreUnavailable.
    """

    def __init__(self, stores: ExportableStores, settings: Settings, *, alone: bool) -> None:
        self._users = stores.users
        self._stores = stores
        self._settings = settings
        self._alone = alone

    async def add(self, name: str, password: str) -> None:
        """Make a user."""
        [hashed] = await self._hashed(password)
        try:
            await self._users.add(User(name, hashed))
        except Duplicate:
            raise StartError(f"{name} exists already") from None
        print(f"added {name}")

    async def add_many(self, entries: Sequence[Entry]) -> None:
        """Make a user of each entry that is right and not there yet, in order; name the lines that failed."""
        failed = 0
        for start in range(0, len(entries), HASHED_TOGETHER):
            chunk = entries[start : start + HASHED_TOGETHER]
            hashes = iter(await self._hashed(*(entry.password for entry in chunk if not entry.wrong)))
            for entry in chunk:
                wrong = entry.wrong or await self._add_entry(entry, next(hashes))
                failed += bool(wrong)
                if wrong:
                    print(f"line {entry.line}: {wrong}", file=sys.stderr)
        if failed:
            raise StartError(f"{failed} of {len(entries)} lines failed; all others were added")

    async def _add_entry(self, entry: Entry, hashed: str) -> str:
        """Make a user; returns why it could not. Raises StartError."""
        try:
            await self._users.add(User(entry.name, hashed))
        except Duplicate:
            return f"{entry.name} exists already"
        except StoreUnavailable as error:
            raise StartError(f"line {entry.line}: {error}; all lines before it are done") from error
        print(f"added {entry.name}", flush=True)
        return ""

    async def list(self) -> None:
        """A line for each: name, a tab, the state."""
        async for page in self._users.pages(PAGE):
            for user in page:
                print(f"{user.name}\t{user.state.name.lower()}")

    async def reset_password(self, name: str, password: str) -> None:
        """Replace the password, and end all sessions."""
        [hashed] = await self._hashed(password)
        while not await self._users.set_password(name, (await self._present(name)).password, hashed):
            pass  # the user changed it meanwhile
        print(f"{name} has a new password; {await self._ended(name)}")

    async def disable(self, name: str) -> None:
        """Let the user log in no more, and end all sessions. A login under way looks at the state once more."""
        await self._present(name)
        await self._users.set_state(name, State.DISABLED)
        print(f"disabled {name}; {await self._ended(name)}")

    async def enable(self, name: str) -> None:
        """Let the user log in again."""
        await self._present(name)
        await self._users.set_state(name, State.ENABLED)
        print(f"enabled {name}")

    async def export(self, name: str) -> None:
        """Write all that is stored about the user to standard output."""
        await export(self._stores, await self._known(name), sys.stdout.buffer)

    async def remove(self, name: str, *, keep: bool) -> None:
        """Remove the user, in an order that leaves nothing behind whenever it is interrupted.

        As soon as the state is REMOVED nobody logs in or gets the name, and once a running server knows it nothing
        is sent to the name any more. Only then the messages go, and the name last: whoever gets it finds nothing.
        """
        user = await self._known(name)
        await self._users.set_state(name, State.REMOVED)
        while user.password and not await self._users.set_password(name, user.password, ""):
            user = await self._known(name)
        ended = await self._ended(name)
        if keep:
            print(f"removed {name}; {ended}; kept {await self._messages(name)}, and the name stays taken")
            return
        await self._let_servers_know()
        deleted = await self._erase(name)
        counters = await self._forget_counters(name)
        await self._users.remove(name)
        print(f"removed {name}; {ended}; deleted {deleted} and {counters} counters; the name is free")

    # --- what several need

    async def _known(self, name: str) -> User:
        user = await self._users.get(name)
        if user is None:
            raise StartError(f"there is no user {name}")
        return user

    async def _present(self, name: str) -> User:
        user = await self._known(name)
        if user.state is State.REMOVED:
            raise StartError(f"{name} was removed, only the name is left; `remove --messages delete` frees it")
        return user

    async def _hashed(self, *passwords: str) -> Sequence[str]:
        hashing = Passwords(self._settings.accounts.password_cost, math.inf)
        try:
            return await asyncio.gather(*map(hashing.hash, passwords))
        finally:
            hashing.close()

    async def _ended(self, name: str) -> str:
        """End all sessions; a sentence on it."""
        count = await self._stores.sessions.end_others(name)
        within = f", their sockets close within {self._settings.sockets.heartbeat_seconds:g} s"
        return f"{count} sessions ended{'' if self._alone else within}"

    async def _let_servers_know(self) -> None:
        """Until a running server has looked at its users anew, and has ended what it was doing for them."""
        if self._alone:
            return
        seconds = self._settings.sockets.heartbeat_seconds + 2 * self._settings.stores.store_timeout
        print(f"waiting {seconds:g} s, until a running server has closed all sockets", file=sys.stderr)
        await asyncio.sleep(seconds)

    async def _messages(self, name: str) -> str:
        conversations = messages = 0
        async for peer in self._stores.messages.peers(name):
            pages = stream(self._stores.messages, name, peer, (0, LATEST))
            count = sum([len(page) async for page in pages])
            conversations += count > 0
            messages += count
        return f"{messages} messages in {conversations} conversations"

    async def _erase(self, name: str) -> str:
        conversations = messages = 0
        async for peer in self._stores.messages.peers(name):
            count = gone = await self._stores.messages.erase(name, peer, BATCH)
            while gone == BATCH:
                gone = await self._stores.messages.erase(name, peer, BATCH)
                count += gone
            conversations += count > 0
            messages += count
        return f"{messages} messages in {conversations} conversations"

    async def _forget_counters(self, name: str) -> int:
        forgotten = set()
        async for page in self._stores.contacts.pages(PAGE):
            for pair in {(record.one, record.other) for record in page if name in (record.one, record.other)}:
                await self._stores.contacts.forget(*pair)
                forgotten.add(pair)
        return len(forgotten)
