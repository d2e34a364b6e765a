"""Rules for modules that the import contracts in setup.cfg cannot express."""

import subprocess
import sys

from tests.harness import ROOT

# Needed by commands, or by one backend only.
OPTIONAL = ("chat_server.commands", "chat_server.migrate", "aiomysql", "bson", "prometheus_client", "redis", "tqdm")


def test_the_server_imports_no_command_and_no_driver() -> None:
    """Neither when `chat_server.cli` is imported, nor when it parses its arguments."""
    code = (
        "import sys\nfrom chat_server import arguments, cli\narguments.parser().parse_args(['--check'])\n"
        f"print([name for name in sys.modules if name.startswith({OPTIONAL})])"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"
