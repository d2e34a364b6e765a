"""docs/reliability.md names only existing tests, and a test for every fault."""

import ast
import re
from functools import cache

from tests.harness import ROOT

PAGE = (ROOT / "docs" / "reliability.md").read_text("utf-8")
NAME = re.compile(r"`([a-z0-9_/]+\.py)::(test_\w+)`")


@cache
def functions(file: str) -> set[str]:
    """Return the names of the functions in a file below tests/."""
    tree = ast.parse((ROOT / "tests" / file).read_text("utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_test_named_on_the_page_exists() -> None:
    assert [f"{file}::{name}" for file, name in NAME.findall(PAGE) if name not in functions(file)] == []


def test_every_fault_names_its_test() -> None:
    head = "| fault | what happens | test |"
    tables = [part.partition("\n\n")[0].splitlines()[2:] for part in PAGE.split(head)[1:]]
    rows = [row for table in tables for row in table]
    assert len(rows) > 40
    assert [row for row in rows if not NAME.search(row.rsplit(" | ", 1)[1])] == []
