"""Rubbish after the upgrade disturbs nobody. `make fuzz` sends a million frames of it."""

from pathlib import Path

from tests import fuzz


async def test_rubbish_disturbs_nobody_and_leaves_nothing(tmp_path: Path) -> None:
    report = await fuzz.run(tmp_path / "data", 5000, seed=1)
    assert report.messages > 0
    assert report.after < report.before + fuzz.AIR
