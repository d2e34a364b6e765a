"""Rules for modules that the import contracts in setup.cfg cannot express."""

import ast
import subprocess
import sys
from collections import Counter

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


def test_no_class_name_is_used_twice() -> None:
    names = Counter(
        node.name
        for path in (ROOT / "chat_server").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, count in names.items() if count > 1] == []
