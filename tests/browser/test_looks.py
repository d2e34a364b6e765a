"""The look of the page in other browsers, colours, regions and time zones."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from playwright.async_api import Browser, Route, ViewportSize, expect

from tests.browser.person import Window, at_a_browser, person
from tests.browser.views import ME, OTHERS, full, talk
from tests.harness import ManualClock, ServerHandle, serving

pytestmark = pytest.mark.asyncio(loop_scope="session")  # as the browser

DAY = 86_400


async def style(window: Window, selector: str, name: str) -> str:
    """The computed style of the first matching element."""
    value: str = await window.page.locator(selector).first.evaluate(
        "(element, name) => getComputedStyle(element)[name]", name
    )
    return value


async def test_a_dialog_is_as_high_as_its_content(browser: Browser, server: ServerHandle) -> None:
    """WebKit stretches a dialog with display: grid to the height of the window."""
    async with person(browser, server, "alice") as alice:
        await alice.page.get_by_role("button", name="Settings").click()
        await expect(alice.page.get_by_role("dialog")).to_be_visible()
        assert await style(alice, "dialog", "display") == "block"


@pytest.mark.parametrize("width", [360, 1280])
async def test_the_list_scrolls_and_never_the_page(browser: Browser, tmp_path: Path, width: int) -> None:
    """Invisible texts for screen readers, too, must not extend the page below its lower edge."""
    size = ViewportSize(width=width, height=400)
    async with full(tmp_path) as server, person(browser, server, ME, viewport=size) as ada:
        await expect(ada.page.locator(".conversations li")).to_have_count(len(OTHERS) + 2)
        root = ada.page.locator("html")
        assert await root.evaluate("(root) => root.scrollHeight - root.clientHeight") == 0
        await talk(ada)
        assert await root.evaluate("(root) => root.scrollHeight - root.clientHeight") == 0


@pytest.mark.parametrize(("scheme", "ground"), [("light", "rgb(243, 242, 237)"), ("dark", "rgb(16, 19, 18)")])
async def test_there_are_colours_without_light_dark(
    browser: Browser, server: ServerHandle, scheme: str, ground: str
) -> None:
    async def old(route: Route) -> None:
        """Simulate a browser without light-dark()."""
        answer = await route.fetch()
        await route.fulfill(response=answer, body=(await answer.text()).replace("light-dark(", "unknown("))

    async with at_a_browser(browser, server, "alice", color_scheme=scheme) as someone:
        await someone.context.route("**/style.css", old)
        alice = await someone.window()
        assert await style(alice, "body", "backgroundColor") == ground
        await alice.log_in()
        await alice.page.get_by_role("button", name="Settings").click()
        await alice.page.get_by_text("Dark" if scheme == "light" else "Light").click()
        assert await style(alice, "body", "backgroundColor") != ground


async def test_forced_colours_leave_the_edges_of_bubbles(browser: Browser, server: ServerHandle) -> None:
    await server.make_contacts("alice", "bob")
    async with person(browser, server, "alice", forced_colors="active") as alice:
        await alice.opens("bob")
        await expect(alice.page.locator(".bubble")).to_have_count(2)
        for selector in (".bubble", ".send"):
            assert await style(alice, selector, "borderTopWidth") == "1px"
        assert await style(alice, "[aria-current]", "outlineStyle") == "solid"


@pytest.mark.parametrize(
    ("locale", "hour", "shown"), [("en-US", 0, "12:05 AM"), ("en-GB", 0, "00:05"), ("zh-CN", 0, "00:05")]
)
async def test_times_are_written_as_the_region_writes_them(
    browser: Browser, tmp_path: Path, locale: str, hour: int, shown: str
) -> None:
    """Older messages have a short date in the list."""
    clock = ManualClock()
    now = datetime.now(UTC)
    written = now.replace(hour=hour, minute=5, second=0) - timedelta(days=10)
    clock.shift = (written - now).total_seconds()
    async with serving(tmp_path, clock) as server:
        await server.add_users("alice", "bob")
        await server.make_contacts("alice", "bob")
        clock.shift = 0
        async with person(browser, server, "alice", locale=locale, timezone_id="UTC") as alice:
            row = alice.page.locator(".conversations a").filter(has_text="bob")
            date = {
                "en-US": f"{written:%b} {written.day}",
                "en-GB": f"{written.day} {written:%b}",
                "zh-CN": f"{written.month}月{written.day}日",
            }
            await expect(row.locator("time")).to_contain_text(date[locale])
            await row.click()
            await expect(alice.page.locator(".row time").first).to_have_text(shown)


async def test_a_device_whose_clock_is_a_day_wrong_says_today(browser: Browser, tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        await server.add_users("alice", "bob")
        await server.make_contacts("alice", "bob")
        async with at_a_browser(browser, server, "alice") as someone:
            await someone.context.clock.install(time=datetime.now(UTC).timestamp() + DAY)
            alice = await someone.window()
            await alice.log_in()
            await alice.page.get_by_role("link", name="bob").click()
            await expect(alice.page.locator(".day")).to_have_text(["Today"])
            await expect(alice.page.get_by_role("link", name="bob").locator("time")).to_contain_text(":")


async def test_a_broadcast_is_never_marked_as_read(browser: Browser, server: ServerHandle) -> None:
    """Neither on the sending device nor on the sender's other devices."""
    async with at_a_browser(browser, server, "alice") as someone:
        alice = await someone.window()
        await alice.log_in()
        other = await someone.window()
        for window in (alice, other):
            await window.page.bring_to_front()
            await window.page.get_by_role("link", name="Everyone online").click()
        await other.connects()
        await alice.page.bring_to_front()
        await alice.writes("hello, all")
        await alice.page.get_by_role("alertdialog", name="everyone").get_by_role("button", name="Send").click()
        await expect(alice.message("hello, all")).to_contain_text("Reached 0")
        await other.sees("hello, all", "Sent")
        for window in (alice, other):
            await expect(window.page.locator(".icon-read")).to_have_count(0)
