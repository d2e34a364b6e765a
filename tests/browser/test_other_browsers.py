"""Login, list, chat and settings in Firefox and WebKitGTK."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.browser import webdriver
from tests.browser.webdriver import ENTER, ESCAPE, BrowserPage
from tests.harness import PASSWORD, ServerHandle, wait_until

pytestmark = pytest.mark.asyncio(loop_scope="session")  # as the server

# WebKit stretches a dialog with display: grid, and the rows in it, unless its height is fixed.
CONTENT_HEIGHT = """((dialog) => {
    dialog.style.height = 0;
    const height = dialog.scrollHeight;
    dialog.style.height = "";
    return height;
})(document.querySelector("dialog"))"""


@pytest_asyncio.fixture(loop_scope="session", params=[webdriver.firefox, webdriver.webkit])
async def page(request: pytest.FixtureRequest, tmp_path: Path, server: ServerHandle) -> AsyncIterator[BrowserPage]:
    """The page of alice, who is logged in. Fails at the end if the browser logged an error."""
    folder = tmp_path / "browser"
    folder.mkdir()
    async with request.param(folder) as page:
        await page.open(server.url)
        await page.click("#name")
        await page.type("alice")
        await page.click("#password")
        await page.type(PASSWORD + ENTER)
        await page.sees(".shell")
        await wait_until(lambda: page.evaluate("document.querySelector('.loading').hidden"), "the list is loaded")
        yield page  # nothing moves any more, as it would when the page shows that it connects
        assert not await page.errors()


async def test_the_list_and_a_conversation_work(page: BrowserPage, server: ServerHandle) -> None:
    async with server.chat("bob", to="alice", sync=True) as bob:
        await bob.send("m1\nAre you there?")
        await page.click(".conversations a", "Are you there?")
        await page.sees(".theirs .text", "Are you there?")
        await page.type("Yes" + ENTER)
        await page.sees(".mine .text", "Yes")
        while not (await bob.receive())["content"].endswith("\nYes"):
            pass  # the mark that alice has read m1
        await bob.send("m2\nGood")
        await page.sees(".theirs .text", "Good")
        await page.sees(".conversations a", "Good")


async def test_settings_fit_their_content_and_change_language(page: BrowserPage) -> None:
    await page.click(".side .bar .icon-button")
    await page.sees("dialog h2", "Settings")
    height = (await page.box("dialog"))["height"]
    content = await page.evaluate(CONTENT_HEIGHT)
    assert height == pytest.approx(content, abs=1)
    await page.click("dialog label", "中文")
    await page.sees("dialog h2", "设置")
    await page.type(ESCAPE)
    await page.sees(".no-peer", "选择一个会话")
