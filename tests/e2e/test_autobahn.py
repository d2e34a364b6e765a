"""The fast cases of the Autobahn test suite for RFC 6455. `make autobahn` runs all cases."""

import asyncio
import sys

import pytest

from tests.harness import CLEAN_ENVIRON, ROOT, TIMEOUT

# Frames, pings, reserved bits and opcodes, fragments, UTF-8, closing, limits, and a few compressed cases.
QUICK = ("1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "9.7.1", "9.8.1", "10.*", "12.1.1", "12.2.3", "13.3.1")


@pytest.mark.timeout(420)
async def test_the_fast_autobahn_cases_pass() -> None:
    command = (sys.executable, "-m", "tests.autobahn", *QUICK)
    run = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, cwd=ROOT, env=CLEAN_ENVIRON
    )
    async with asyncio.timeout(6 * TIMEOUT):
        output, _ = await run.communicate()
    assert output.decode().splitlines()[-1] == "all passed", output.decode()
    assert run.returncode == 0
    assert output.startswith(b"252 cases:"), output
