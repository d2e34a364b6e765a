"""One browser for the tests of the page: Debian's chromium, controlled by Playwright."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio
from playwright.async_api import Browser, async_playwright

from tests import needs
from tests.harness import ServerHandle, serving


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    chromium = needs.program("chromium")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="session")
async def server(tmp_path: Path) -> AsyncIterator[ServerHandle]:
    """A server with the users alice, bob and 小明, and without a contact limit."""
    async with serving(tmp_path, StrangerLimit=0) as server:
        await server.add_users("alice", "bob", "小明")
        yield server
