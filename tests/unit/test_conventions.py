"""Conventions that no linter knows (CONTRIBUTING.md)."""

import ast
from collections import Counter
from collections.abc import Iterator

from tests.harness import ROOT

MAX_TEST_NAME = 60


def definitions() -> Iterator[ast.AST]:
    """Every node of every module of the repository."""
    for package in ("chat_server", "tests", "bench"):
        for path in (ROOT / package).rglob("*.py"):
            yield from ast.walk(ast.parse(path.read_text("utf-8")))


def test_test_names_are_short() -> None:
    functions = [node for node in definitions() if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    names = [function.name for function in functions if function.name.startswith("test_")]
    assert [name for name in names if len(name) > MAX_TEST_NAME] == []


def test_no_class_name_is_used_twice() -> None:
    classes = Counter(node.name for node in definitions() if isinstance(node, ast.ClassDef))
    assert [name for name, count in classes.items() if count > 1] == []
