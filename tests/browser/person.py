"""A user at a browser: actions and expectations.

async with person(browser, server, "alice") as alice:
    await alice.opens("bob")
    await alice.writes("hello")
    await alice.sees("hello", "read")
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from axe_playwright_python.async_playwright import Axe  # type: ignore[import-untyped]
from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Locator, Page, expect

from tests.harness import PASSWORD, TIMEOUT, ServerHandle

MILLISECONDS = TIMEOUT * 1000
# Options for the browser of a phone.
TELEPHONE: dict[str, Any] = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
expect.set_options(timeout=MILLISECONDS)
# Delays of timers of the page, in milliseconds: deletions.js, notices.js, messages.js, typing.js.
UNDO = TOAST_SHOWN = 5000
DATE_SHOWN, TYPING_SHOWN = 1500, 6000
# Errors that the browser logs if the server is unreachable; the page cannot prevent or catch them.
OF_THE_NETWORK = ("net::ERR_", "WebSocket connection to", "the server responded with a status of 4")


class Window:
    """One window of a person's browser."""

    def __init__(self, page: Page, name: str) -> None:
        self.page = page
        self.name = name
        self.faults: list[str] = []
        self._connected = asyncio.Event()
        page.set_default_timeout(MILLISECONDS)
        page.on("websocket", lambda socket: socket.on("framereceived", lambda _: self._connected.set()))
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self.faults.append(str(error)))

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not any(known in message.text for known in OF_THE_NETWORK):
            self.faults.append(message.text)

    async def log_in(self, password: str = PASSWORD) -> None:
        """Fill in the form that is shown."""
        await self.page.locator("#name").fill(self.name)
        await self.page.locator("#password").fill(password)
        await self.page.locator("#password").press("Enter")
        await expect(self.page.locator(".shell")).to_be_visible()

    async def connects(self) -> None:
        """Wait until messages arrive live."""
        async with asyncio.timeout(TIMEOUT):
            await self._connected.wait()

    async def hold_timers(self, delay: int) -> None:
        """Let timers of this delay in milliseconds never end, until the page is left."""
        await self.page.evaluate(
            "held => { const later = setTimeout;"
            " globalThis.setTimeout = (act, delay, ...rest) => delay === held ? 0 : later(act, delay, ...rest) }",
            delay,
        )

    async def turns_away(self) -> None:
        """Lose the focus, which a browser without a screen always has, once messages arrive live."""
        await self.connects()
        await self.page.evaluate("document.hasFocus = () => false")

    async def turns_back(self) -> None:
        """Get the focus again."""
        await self.page.evaluate("delete document.hasFocus; dispatchEvent(new Event('focus'))")

    async def set_offline(self, offline: bool) -> None:
        """Disconnect or reconnect the network of all windows of this person."""
        await self.page.context.set_offline(offline)

    async def opens(self, peer: str) -> None:
        """Open the conversation with `peer`, or begin one."""
        find = self.page.get_by_role("textbox", name="Search")
        await find.fill(peer)
        await find.press("Enter")
        await expect(self.page.get_by_role("heading", level=2, name=peer)).to_be_visible()

    async def writes(self, *texts: str) -> None:
        """Write and send: with Enter, or with the button on touch devices."""
        touch = await self.page.evaluate("matchMedia('(hover: none)').matches")
        for text in texts:
            await self.composer.fill(text)
            await (self.page.locator(".send").tap() if touch else self.composer.press("Enter"))

    async def sees(self, text: str, state: str = "") -> None:
        """Expect the message exactly once; `state` is the state of an own message."""
        row = self.message(text)
        await expect(row).to_have_count(1)
        if state:
            await expect(row.get_by_role("img", name=state)).to_be_visible()

    async def shows(self, texts: list[str]) -> None:
        """Expect exactly these messages in the document, in this order."""
        await expect(self.page.locator(".row .text")).to_have_text(texts)

    async def misses(self, text: str) -> None:
        """Expect no such message."""
        await expect(self.message(text)).to_have_count(0)

    async def find_no_fault(self) -> None:
        """Fail on anything that axe finds. An animation that still runs would change the contrast."""
        await self.page.emulate_media(reduced_motion="reduce")
        violations = (await Axe().run(self.page, options={"resultTypes": ["violations"]})).response["violations"]
        assert not [(one["id"], [node["html"] for node in one["nodes"]]) for one in violations]

    def message(self, text: str) -> Locator:
        """The rows with exactly this text."""
        return self.page.locator(".row").filter(has=self.page.locator(".text").get_by_text(text, exact=True))

    @property
    def composer(self) -> Locator:
        return self.page.locator("textarea")


class Person:
    """A person with a separate browser profile and any number of windows."""

    def __init__(self, context: BrowserContext, server: ServerHandle, name: str) -> None:
        self.context = context
        self.server = server
        self.name = name
        self.windows: list[Window] = []

    async def window(self, path: str = "/") -> Window:
        """Open a new window."""
        window = Window(await self.context.new_page(), self.name)
        self.windows.append(window)
        await window.page.goto(self.server.url + path)
        return window


@asynccontextmanager
async def at_a_browser(browser: Browser, server: ServerHandle, name: str, **options: Any) -> AsyncIterator[Person]:
    """A person who is not logged in. Fails at the end if a window logged an error."""
    context = await browser.new_context(**{"locale": "en-GB", **options})
    try:
        person = Person(context, server, name)
        yield person
        faults = [fault for window in person.windows for fault in window.faults]
        assert not faults, faults
    finally:
        await context.close()


@asynccontextmanager
async def person(
    browser: Browser, server: ServerHandle, name: str, path: str = "/", **options: Any
) -> AsyncIterator[Window]:
    """The only window of a person who is logged in."""
    async with at_a_browser(browser, server, name, **options) as someone:
        window = await someone.window(path)
        await window.log_in()
        yield window
