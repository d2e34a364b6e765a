"""CPython's free lists (utils/free_lists.py)."""

import re
import sys

import pytest

from chat_server.utils.free_lists import clear_free_lists


def kept(capfd: pytest.CaptureFixture[str]) -> int:
    """Return how many tuples of length five CPython keeps for reuse."""
    capfd.readouterr()
    sys._debugmallocstats()
    found = re.search(r"(\d+) free 5-sized PyTupleObjects", capfd.readouterr().err)
    if not found:
        pytest.skip("this Python does not report its free lists")
    return int(found[1])


def test_free_lists_are_released(capfd: pytest.CaptureFixture[str]) -> None:
    many = [tuple(range(n, n + 5)) for n in range(5000)]
    del many
    assert kept(capfd) > 1000
    clear_free_lists()
    assert kept(capfd) < 100
