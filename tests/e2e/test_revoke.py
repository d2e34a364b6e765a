"""No frame passes after the answer that ended its session, for many users at once. `make revoke`: 5,000 sockets."""

from pathlib import Path

from tests import revoke


async def test_no_frame_passes_after_the_answer_of_many_sessions_that_end_at_once(tmp_path: Path) -> None:
    report = await revoke.run(tmp_path / "data", users=8, sockets=12)
    assert report.sockets == 96
