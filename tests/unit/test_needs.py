"""A machine without the optional programs: the tests that need them are skipped and listed."""

import os
import subprocess
import sys
from pathlib import Path

from tests.harness import ROOT

ON_REDIS = ("tests/contract/test_rates.py", "-k", "redis")
MISSING = "Missing: redis-server; Debian: apt-get install redis-server."


def run(folder: Path, *arguments: str, **environ: str) -> tuple[int, str]:
    """The exit code and the output of a run of pytest, with coverage."""
    command = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--cov", "--cov-report=", *arguments)
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("CHAT_", "COV_", "COVERAGE_"))}
    environ = {**inherited, "COVERAGE_FILE": str(folder / "coverage"), **environ}
    ran = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    return ran.returncode, ran.stdout + ran.stderr


def test_missing_programs_are_listed_and_waive_the_threshold(tmp_path: Path) -> None:
    code, output = run(tmp_path, *ON_REDIS, "-n", "1", CHAT_TEST_HIDE="redis-server")
    assert code == 0, output
    assert MISSING in output
    assert "fail-under" not in output


def test_a_missing_program_fails_the_run_with_chat_test_all(tmp_path: Path) -> None:
    code, output = run(tmp_path, *ON_REDIS, "-x", CHAT_TEST_HIDE="redis-server", CHAT_TEST_ALL="1")
    assert code == 1, output
    assert "needs redis-server of the system, and CHAT_TEST_ALL allows no skipping" in output


def test_the_threshold_applies_if_nothing_is_missing(tmp_path: Path) -> None:
    code, output = run(tmp_path, "tests/unit/test_turn_queue.py")
    assert code == 1, output
    assert "is less than fail-under=95" in output
    assert "Missing" not in output


def test_an_unknown_name_cannot_be_hidden(tmp_path: Path) -> None:
    code, output = run(tmp_path, *ON_REDIS, CHAT_TEST_HIDE="redis")
    assert code != 0
    assert "CHAT_TEST_HIDE: unknown: redis; known: all bash caddy chromium" in output
