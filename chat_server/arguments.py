"""The arguments of the command line: every option and help text. The commands themselves are imported by cli.py."""

import argparse
from pathlib import Path

from chat_server import __version__


def parser() -> argparse.ArgumentParser:
    """The parser of the command line; `command` is None when the server itself is to run."""
    top = argparse.ArgumentParser(
        prog="chat-server",
        description="An instant-messaging server. Without a command, start the server.",
    )
    top.add_argument("--config", type=Path, metavar="FILE", help="the settings file; default: config.ini, if it exists")
    top.add_argument("--check", action="store_true", help="check the settings and the stores, change nothing, and exit")
    top.add_argument("--version", action="version", version=f"chat-server {__version__}")
    commands = top.add_subparsers(title="commands", dest="command", metavar="COMMAND")
    user = _add(commands, "user", "manage users: add, list, disable, enable, export, remove, reset a password")
    _add_user_actions(user)
    backup = _add(commands, "backup", "copy the embedded database to a new file, even while the server runs")
    verify = _add(commands, "verify", "read a backup completely, check it, and show what it contains")
    restore = _add(commands, "restore", "restore a backup into a DataDir that has no database yet")
    for command in (backup, verify, restore):
        command.add_argument("file", type=Path, metavar="FILE", help="the backup file")
        _add_config(command)
    restore.add_argument(
        "--keep-sessions", action="store_true", help="keep the sessions of the backup; default: all users log in again"
    )
    migrate = _add(
        commands, "migrate", "copy users, messages, sessions and contact limits from other stores to those of --config"
    )
    _add_migrate_options(migrate)
    return top


def _add(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, text: str
) -> argparse.ArgumentParser:
    """Add a command or an action whose help and description are `text`."""
    return commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")


def _add_config(command: argparse.ArgumentParser, text: str = "the settings file; default: config.ini") -> None:
    """Accept --config after the command, too."""
    command.add_argument("--config", type=Path, metavar="FILE", default=argparse.SUPPRESS, help=text)


def _add_user_actions(command: argparse.ArgumentParser) -> None:
    actions = command.add_subparsers(title="actions", dest="action", metavar="ACTION", required=True)
    add = _add(
        actions,
        "add",
        "add a user, even if registration is closed; the password is read from the terminal or from standard input",
    )
    name_or_many = add.add_mutually_exclusive_group(required=True)
    name_or_many.add_argument("name", metavar="NAME", nargs="?", help="the user")
    name_or_many.add_argument(
        "--many", action="store_true", help="add a user for each line of standard input: name, tab, password"
    )
    _add_config(add)
    _add_config(_add(actions, "list", "print the name and the state of each user, separated by a tab"))
    for name, text in (
        ("reset-password", "set a new password, read in the same way as by `add`, and end all sessions of the user"),
        ("disable", "end all sessions of the user and refuse logins; messages to the user are still stored"),
        ("enable", "allow logins again"),
        ("export", "print all stored data of the user as JSON lines"),
        ("remove", "remove the user; if it is interrupted, run the same command again"),
    ):
        action = _add(actions, name, text)
        action.add_argument("name", metavar="NAME", help="the user")
        _add_config(action)
        if name == "remove":
            action.add_argument(
                "--messages",
                choices=("keep", "delete"),
                required=True,
                help="keep: the peers can still read the messages, and the name stays reserved; "
                "delete: delete every conversation of the user for both sides, and free the name",
            )


def _add_migrate_options(command: argparse.ArgumentParser) -> None:
    source = command.add_mutually_exclusive_group(required=True)
    source.add_argument("--from", dest="source", type=Path, metavar="FILE", help="the settings file of the source")
    source.add_argument(
        "--from-go", type=Path, metavar="FILE", help="the settings file of the Go server; its data is only read"
    )
    command.add_argument(
        "--unregistered",
        action="store_true",
        help="with --from-go: also import messages of names that are not registered; "
        "a user who registers such a name later can read them",
    )
    _add_config(command, "the settings file of the target; default: config.ini")
