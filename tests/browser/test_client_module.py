"""The client module's own logic, without a browser: node's test runner."""

import asyncio
import os
import shutil
from pathlib import Path

import pytest

TESTS = Path(__file__).with_name("chat.test.mjs")


async def test_the_client_module() -> None:
    node = shutil.which("node")
    if not node:
        if os.environ.get("CHAT_TEST_ALL"):
            raise RuntimeError("node is missing: apt-get install nodejs")
        pytest.skip("the client module's tests are left out: apt-get install nodejs")
    child = await asyncio.create_subprocess_exec(
        node, "--test", str(TESTS), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await child.communicate()
    assert child.returncode == 0, output.decode()
    assert "# pass 0" not in output.decode()
