"""Run the tests of the client module with the test runner of Node."""

import asyncio
from pathlib import Path

from tests.harness import NODE

TESTS = Path(__file__).with_name("chat.test.mjs")


async def test_the_client_module() -> None:
    child = await asyncio.create_subprocess_exec(
        NODE, "--test", str(TESTS), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await child.communicate()
    assert child.returncode == 0, output.decode()
    assert "# pass 0" not in output.decode()
