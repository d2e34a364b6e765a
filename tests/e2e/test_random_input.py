"""Random input after the upgrade does not affect other users. `make fuzz` sends a million random frames."""

from pathlib import Path

from tests import fuzz
from tests.hostile import needs_cpu_time


async def test_random_input_does_not_affect_other_users(tmp_path: Path) -> None:
    report = await fuzz.run(tmp_path / "data", 5000, seed=1)
    assert report.messages > 0
    assert report.after < report.before + fuzz.MEMORY_TOLERANCE


async def test_a_short_search_finds_no_slow_input(tmp_path: Path) -> None:
    needs_cpu_time()
    frame, request = await fuzz.slowest(tmp_path / "data", 60, seed=1)
    assert frame.size
    assert request.size
