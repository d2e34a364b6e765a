"""A browser for the tests of the page, one for all of them: Debian's chromium, driven by Playwright."""

import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, async_playwright

from tests.harness import Server, serving

CHROMIUM = shutil.which("chromium")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    if not CHROMIUM:
        if os.environ.get("CHAT_TEST_ALL"):
            raise RuntimeError("the browser is missing: apt-get install chromium")
        pytest.skip("the page's tests are left out: apt-get install chromium")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="session")
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """A server with the users alice, bob and 小明, and no limit between them."""
    async with serving(tmp_path, StrangerLimit=0) as server:
        await server.users("alice", "bob", "小明")
        yield server
