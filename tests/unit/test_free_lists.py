"""clear_free_lists releases the objects that Python keeps for reuse."""

import re
import sys

import pytest

from chat_server.utils.free_lists import clear_free_lists


def free_tuples(capfd: pytest.CaptureFixture[str]) -> int:
    """Return the number of tuples of length 5 in Python's free list."""
    capfd.readouterr()
    sys._debugmallocstats()
    found = re.search(r"(\d+) free 5-sized PyTupleObjects", capfd.readouterr().err)
    if not found:
        pytest.skip("this Python does not print its free lists")
    return int(found[1])


def test_free_lists_are_cleared(capfd: pytest.CaptureFixture[str]) -> None:
    many = [tuple(range(n, n + 5)) for n in range(5000)]
    del many
    assert free_tuples(capfd) > 1000
    clear_free_lists()
    assert free_tuples(capfd) < 100
