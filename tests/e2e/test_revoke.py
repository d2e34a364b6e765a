"""Many sessions end at once, and no frame passes after the answer. `make revoke` does this with 5,000 sockets."""

from pathlib import Path

from tests import revoke


async def test_no_frame_passes_when_many_sessions_end_at_once(tmp_path: Path) -> None:
    """No frame passes after the answer that ended its session."""
    report = await revoke.run(tmp_path / "data", users=8, sockets=12)
    assert report.sockets == 96
