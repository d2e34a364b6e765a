"""Rules for modules that the import contracts in setup.cfg cannot express."""

import subprocess
import sys

from tests.harness import ROOT

# Needed by commands, or by one backend only.
OPTIONAL = ("chat_server.commands", "chat_server.migrate", "aiomysql", "bson", "prometheus_client", "redis", "tqdm")
SERVER = ("chat_server.api", "chat_server.app", "aiohttp")
PARSE = "import sys\nfrom chat_server import arguments, cli\narguments.parser().parse_args(['--check'])"


def imported(code: str, names: tuple[str, ...]) -> str:
    """Return what Python prints as the imported modules whose names begin with one of `names`."""
    code += f"\nprint([name for name in sys.modules if name.startswith({names})])"
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_the_server_imports_no_command_and_no_driver() -> None:
    """Neither when `chat_server.cli` is imported, nor when it parses its arguments, nor when it imports the server."""
    assert imported(f"{PARSE}\nimport chat_server.app", OPTIONAL) == "[]\n"


def test_a_command_does_not_import_the_server() -> None:
    """aiohttp takes as long to import as everything else that a command needs."""
    assert imported(f"{PARSE}\nfrom chat_server.commands import backup, user", SERVER) == "[]\n"
