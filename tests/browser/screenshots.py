"""make screenshots: create docs/images, which the README shows.

python -m tests.browser.screenshots FOLDER WIDTH... puts them elsewhere: every view at these widths, in both
schemes and languages, to look at the design.
"""

import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from playwright.async_api import Browser, async_playwright, expect

from tests import needs
from tests.browser.person import Window, at_a_browser
from tests.browser.views import FRIEND, ME, OTHERS, full, talk, views
from tests.harness import ROOT, ServerHandle

IMAGES = ROOT / "docs" / "images"
HEIGHTS = {360: 740, 768: 900}


async def main(folder: Path, widths: Sequence[int]) -> None:
    """Take all screenshots."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as data:
        async with full(Path(data)) as server, async_playwright() as playwright:
            browser = await playwright.chromium.launch(executable_path=needs.program("chromium"), args=["--no-sandbox"])
            async with server.chat(FRIEND, to=ME, sync=True), server.chat("小明", to=ME, sync=True):
                if widths:
                    for width in widths:
                        for scheme, locale in (("light", "en-GB"), ("dark", "zh-CN")):
                            await every_view(browser, server, folder, width, scheme, locale)
                else:
                    await of_the_readme(browser, server, folder)
            await browser.close()


@asynccontextmanager
async def window(browser: Browser, server: ServerHandle, width: int, scheme: str, locale: str) -> AsyncIterator[Window]:
    """The window of ada, before the login."""
    looks = {
        "viewport": {"width": width, "height": HEIGHTS.get(width, 900)},
        "locale": locale,
        "color_scheme": scheme,
        "device_scale_factor": 2 if width < 500 else 1,
        "has_touch": width < 500,
        "is_mobile": width < 500,
    }
    async with at_a_browser(browser, server, ME, **looks) as ada:
        yield await ada.window()


async def of_the_readme(browser: Browser, server: ServerHandle, folder: Path) -> None:
    """Take the screenshots of the README."""
    for width, scheme, locale, name in (
        (1280, "light", "en-GB", "wide-light"),
        (1280, "dark", "zh-CN", "wide-dark"),
        (360, "light", "zh-CN", "narrow-light"),
        (360, "dark", "en-GB", "narrow-dark"),
    ):
        async with window(browser, server, width, scheme, locale) as ada:
            await ada.log_in()
            if width < 500 and scheme == "light":
                await expect(ada.page.locator(".conversations li")).to_have_count(len(OTHERS) + 2)
            else:
                await talk(ada)
            await ada.page.screenshot(path=folder / f"{name}.png")


async def every_view(
    browser: Browser, server: ServerHandle, folder: Path, width: int, scheme: str, locale: str
) -> None:
    """Take a screenshot of every view."""
    async with window(browser, server, width, scheme, locale) as ada:
        async for view in views(ada, server):
            await ada.page.wait_for_timeout(250)  # what moves has come to rest
            await ada.page.screenshot(path=folder / f"{width}-{scheme}-{view}.png")


if __name__ == "__main__":
    arguments = sys.argv[1:]
    asyncio.run(main(Path(arguments[0]) if arguments else IMAGES, [int(width) for width in arguments[1:]]))
