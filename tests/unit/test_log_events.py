"""docs/operations.md lists every log event of the server, once each."""

import ast
import re
from collections.abc import Iterator

from tests.harness import ROOT

PAGE = (ROOT / "docs" / "operations.md").read_text("utf-8")
LEVELS = ("debug", "info", "warning", "error", "exception", "critical")
CALLS = {"event", "logs.event", *(f"log.{level}" for level in LEVELS)}


def events() -> Iterator[str]:
    """The first argument of every `log.LEVEL(...)`, `logs.event(...)` and `event(...)` in chat_server."""
    for path in (ROOT / "chat_server").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and node.args and ast.unparse(node.func) in CALLS:
                if isinstance(node.args[0], ast.Constant):
                    yield str(node.args[0].value)
                else:  # logs.py repeats the text of an earlier record
                    assert path.name == "logs.py", ast.unparse(node)


def test_the_page_lists_every_log_event_once() -> None:
    table = PAGE.split("| event | level | meaning and keys |\n")[1].partition("\n\n")[0]
    listed = re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)
    assert sorted(listed) == sorted(set(events()))
