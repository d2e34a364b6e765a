"""python run.py user: manage the users of a server, even while it runs."""

import argparse
import asyncio
import getpass
import math
import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import NamedTuple

import uvloop

from chat_server.backends import AlongsideStores, open_alongside
from chat_server.commands.export import export
from chat_server.conf import Settings
from chat_server.migrate.record_pages import PAGE_SIZE, read_pages
from chat_server.model.groups import PAGE
from chat_server.model.messages import CACHED_SECONDS, Pair
from chat_server.model.users import State, User
from chat_server.service.names import RULES, is_available, normal
from chat_server.service.packets import SessionsEnded, encode
from chat_server.utils.clock import Clock
from chat_server.utils.errors import Duplicate, StartError, StoreUnavailable
from chat_server.utils.passwords import Passwords, bad_password

# Messages that are deleted in one transaction, for which a running server has to wait.
ERASE_BATCH = 500
# Passwords that `add --many` hashes at the same time.
HASH_BATCH = 64
# The longest line with a password, and the longest input of `add --many`. In bytes.
MAX_LINE, MAX_INPUT = 4096, 67_108_864

Action = Callable[["UserAdmin"], Awaitable[None]]


class Entry(NamedTuple):
    """A line of `add --many`: a user to add, or the error in the line."""

    line: int
    name: str = ""
    password: str = ""
    error: str = ""


def run(options: argparse.Namespace, settings: Settings) -> None:
    """Run the action that `options` name, and print its result. Raises StartError."""
    action = _prepare(options, settings)  # asks for the password before the stores are opened
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run_with_stores(action, settings, create=options.action == "add"))


def _prepare(options: argparse.Namespace, settings: Settings) -> Action:
    """The action that `options` name, with all its input. Raises StartError."""
    if options.action == "list":
        return UserAdmin.list
    if options.action == "add" and options.many:
        entries = _read_entries(settings.accounts.min_password_length)
        return lambda admin: admin.add_many(entries)
    name = normal(options.name)
    match options.action:
        case "add" if not is_available(name):
            raise StartError(f"this is not a valid user name; use {RULES}")
        case "add" | "reset-password":
            password = _read_password(settings.accounts.min_password_length)
            change = UserAdmin.add if options.action == "add" else UserAdmin.reset_password
            return lambda admin: change(admin, name, password)
        case "remove":
            return lambda admin: admin.remove(name, keep=options.messages == "keep")
    action = {"disable": UserAdmin.disable, "enable": UserAdmin.enable, "export": UserAdmin.export}[options.action]
    return lambda admin: action(admin, name)


async def _run_with_stores(action: Action, settings: Settings, *, create: bool) -> None:
    try:
        async with open_alongside(settings, Clock(), create=create) as opened:
            await action(UserAdmin(opened, settings))
    except StoreUnavailable as error:
        raise StartError(f"{error}; run the same command again") from error


def _read_password(min_length: int) -> str:
    """Ask for a new password twice at a terminal, else read a line of standard input. Raises StartError."""
    try:
        if sys.stdin.isatty():
            password = getpass.getpass("password: ")
            if getpass.getpass("password again: ") != password:
                raise StartError("the passwords differ; run the command again")
            why = bad_password(password, min_length)
        else:
            password = sys.stdin.buffer.readline(MAX_LINE).decode("utf-8-sig").rstrip("\r\n")
            why = _bad_piped_password(password, min_length)
    except (UnicodeError, EOFError) as error:
        why = "given" if isinstance(error, EOFError) else "UTF-8"
    if why:
        raise StartError(f"the password must be {why}")
    return password


def _bad_piped_password(password: str, min_length: int) -> str:
    """Like bad_password, and refuse spaces at both ends, which `echo "$PASSWORD "` adds by mistake."""
    spaces = "" if password == password.strip() else "without spaces at its beginning and end"
    return spaces or bad_password(password, min_length)


def _read_entries(min_length: int) -> list[Entry]:
    """Read all lines of standard input before the stores are opened. Raises StartError."""
    if sys.stdin.isatty():
        raise StartError(
            "--many reads standard input; connect it to a pipe or a file with lines of name, tab, password"
        )
    content = sys.stdin.buffer.read(MAX_INPUT + 1)
    if len(content) > MAX_INPUT:
        raise StartError(f"the input is longer than {MAX_INPUT} bytes; split it into several files")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise StartError(f"line {line}: is not UTF-8 text; no user was added; save the file as UTF-8") from None
    lines = enumerate(text.split("\n"), 1)
    return [_parse_entry(number, line.removesuffix("\r"), min_length) for number, line in lines if line.strip()]


def _parse_entry(number: int, line: str, min_length: int) -> Entry:
    name, tab, password = line.partition("\t")
    if not tab:
        return Entry(
            number, error="must be a name, a tab and a password"
        )  # the line may be a password, so it is not shown
    if len(line) > MAX_LINE or not is_available(normal(name)):
        return Entry(number, error=f"this is not a valid user name; use {RULES}")
    if why := _bad_piped_password(password, min_length):
        return Entry(number, error=f"the password of {normal(name)} must be {why}")
    return Entry(number, normal(name), password)


class UserAdmin:
    """The actions of the command `user`. Each prints its result, and raises StartError or StoreUnavailable."""

    def __init__(self, opened: AlongsideStores, settings: Settings) -> None:
        self._stores, self._no_server, self._confirm = opened
        self._users = self._stores.users
        self._settings = settings

    async def add(self, name: str, password: str) -> None:
        """Add a user."""
        [hashed] = await self._hash(password)
        try:
            await self._users.add(User(name, hashed))
        except Duplicate:
            raise StartError(f"{name} already exists") from None
        print(f"added {name}")

    async def add_many(self, entries: Sequence[Entry]) -> None:
        """Add a user for each valid entry, in order, and print an error for each line that failed."""
        failed = 0
        for start in range(0, len(entries), HASH_BATCH):
            chunk = entries[start : start + HASH_BATCH]
            hashes = iter(await self._hash(*(entry.password for entry in chunk if not entry.error)))
            for entry in chunk:
                error = entry.error or await self._add_entry(entry, next(hashes))
                failed += bool(error)
                if error:
                    print(f"line {entry.line}: {error}", file=sys.stderr)
        if failed:
            raise StartError(f"{failed} of {len(entries)} lines failed; the users of all other lines were added")

    async def _add_entry(self, entry: Entry, hashed: str) -> str:
        """Add a user. Returns an error, or an empty string. Raises StartError if the store fails."""
        try:
            await self._users.add(User(entry.name, hashed))
        except Duplicate:
            return f"{entry.name} already exists"
        except StoreUnavailable as error:
            raise StartError(
                f"line {entry.line}: {error}; all lines before it are done, run the same command again"
            ) from error
        print(f"added {entry.name}", flush=True)
        return ""

    async def list(self) -> None:
        """Print a line for each user: name, tab, state."""
        async for page in self._users.pages(PAGE_SIZE):
            for user in page:
                print(f"{user.name}\t{user.state.name.lower()}")

    async def reset_password(self, name: str, password: str) -> None:
        """Replace the password, and end all sessions."""
        [hashed] = await self._hash(password)
        while not await self._users.set_password(name, (await self._get_existing(name)).password, hashed):
            pass  # the user has changed it in the meantime: try again
        print(f"{name} has a new password; {await self._end_sessions(name)}")

    async def disable(self, name: str) -> None:
        """Refuse logins of the user, and end all sessions. A concurrent login checks the state again at its end."""
        await self._get_existing(name)
        await self._users.set_state(name, State.DISABLED)
        print(f"disabled {name}; {await self._end_sessions(name)}")

    async def enable(self, name: str) -> None:
        """Allow logins of the user again."""
        await self._get_existing(name)
        await self._users.set_state(name, State.ENABLED)
        print(f"enabled {name}")

    async def export(self, name: str) -> None:
        """Print all stored data of the user."""
        await export(self._stores, await self._get(name), sys.stdout.buffer)

    async def remove(self, name: str, *, keep: bool) -> None:
        """Remove the user, and delete the messages unless `keep`. Can be interrupted and repeated at any point.

        The state REMOVED stops logins and reserves the name. Once running servers know it, they refuse messages to
        the name. Then the messages are deleted, and last the name, so that its next owner finds no data. Blocks by
        other users stay while the user's sockets may be open, and with `keep` as long as the name. The user leaves all
        groups: no member can add a removed user again.
        """
        user = await self._get(name)
        await self._users.set_state(name, State.REMOVED)
        while user.password and not await self._users.set_password(name, user.password, ""):
            user = await self._get(name)
        ended = await self._end_sessions(name)
        left = await self._leave_groups(name)
        await self._users.blocks.forget(name, by_others=False)
        await self._update_servers(name)
        if keep:
            print(f"removed {name}; {ended}; {left}; kept {await self._count_messages(name)}; the name stays reserved")
            return
        await self._wait_for_servers()
        deleted = await self._erase_messages(name)
        limits = await self._forget_contact_limits(name)
        await self._users.blocks.forget(name, by_others=True)
        await self._update_servers(name)
        await self._users.remove(name)
        print(f"removed {name}; {ended}; {left}; deleted {deleted} and {limits} contact limits; the name is free")

    # --- helpers

    async def _get(self, name: str) -> User:
        user = await self._users.get(name)
        if user is None:
            raise StartError(f"there is no user {name}; `user list` shows all users")
        return user

    async def _get_existing(self, name: str) -> User:
        user = await self._get(name)
        if user.state is State.REMOVED:
            raise StartError(
                f"{name} was removed and only the name is reserved; `user remove --messages delete` frees it"
            )
        return user

    async def _hash(self, *passwords: str) -> Sequence[str]:
        hashing = Passwords(self._settings.accounts.password_cost, math.inf)
        try:
            return await asyncio.gather(*map(hashing.hash, passwords))
        finally:
            hashing.close()

    async def _end_sessions(self, name: str) -> str:
        """End all sessions of the user, wait for the processes of a cluster, and return a summary."""
        count = await self._stores.sessions.end_others(name)
        await self._update_servers(name)
        if self._settings.stores.processes == "many":
            return f"{count} sessions ended"
        within = f", their sockets close within {self._settings.sockets.heartbeat_seconds:g} s"
        return f"{count} sessions ended{'' if self._no_server else within}"

    async def _update_servers(self, name: str) -> None:
        """Return when all processes of a cluster have closed the user's sockets and found what has changed."""
        await self._confirm(encode(SessionsEnded(name, None, None)))

    async def _leave_groups(self, name: str) -> str:
        """Remove the user from all groups, and return a summary. A group without other members is deleted."""
        numbers = await self._users.groups.numbers_of(name)
        for number in numbers:
            await self._users.groups.remove(number, name, name)
        return f"left {len(numbers)} groups"

    async def _wait_for_servers(self) -> None:
        """Wait until running servers have read the state of their users again, and have finished all their requests.

        Several processes must also have forgotten the user's messages: they store no message after one that is erased.
        """
        if self._no_server:
            return
        seconds = self._settings.sockets.heartbeat_seconds
        if self._settings.stores.processes == "many":  # they know already, and their clocks differ by at most 10 s
            seconds = CACHED_SECONDS + 10
        seconds += 2 * self._settings.stores.store_timeout
        print(f"waiting {seconds:g} s until a running server has closed all sockets of the user", file=sys.stderr)
        await asyncio.sleep(seconds)

    async def _count_messages(self, name: str) -> str:
        conversations = messages = 0
        async for peer in self._stores.messages.peers(name):
            count = sum([len(page) async for page in read_pages(self._stores.messages, Pair(name, peer))])
            conversations += count > 0
            messages += count
        return f"{messages} messages in {conversations} conversations"

    async def _erase_messages(self, name: str) -> str:
        """Erase the conversations with other users, and the user's own messages in groups. Returns a summary.

        All groups are searched, because the user may have left some: a search takes one look-up in an index.
        """
        messages = self._stores.messages
        counts = [await _erase_all(partial(messages.erase, Pair(name, peer))) async for peer in messages.peers(name)]
        async for page in self._users.groups.pages(PAGE):
            for group in page:
                counts.append(await _erase_all(partial(messages.erase_sent, group.number, name)))
        return f"{sum(counts)} messages in {sum(count > 0 for count in counts)} conversations"

    async def _forget_contact_limits(self, name: str) -> int:
        forgotten = set()
        async for page in self._stores.contacts.pages(PAGE_SIZE):
            for pair in {(record.one, record.other) for record in page if name in (record.one, record.other)}:
                await self._stores.contacts.forget(*pair)
                forgotten.add(pair)
        return len(forgotten)


async def _erase_all(erase: Callable[[int], Awaitable[int]]) -> int:
    """Call `erase` with the largest number of messages to erase, until fewer were left. Returns their number."""
    count = erased = await erase(ERASE_BATCH)
    while erased == ERASE_BATCH:
        erased = await erase(ERASE_BATCH)
        count += erased
    return count
