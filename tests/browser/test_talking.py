"""Two people, and two windows of one."""

from playwright.async_api import Browser, expect

from tests.browser.person import at_a_browser, person
from tests.harness import Server


async def test_two_people_chat(browser: Browser, server: Server) -> None:
    async with person(browser, server, "alice") as alice, person(browser, server, "bob") as bob:
        await alice.opens("bob")
        await alice.writes("hello", "two\nlines")
        await alice.sees("hello", "sent")
        await bob.page.bring_to_front()
        await bob.page.get_by_role("link", name="alice").click()
        await bob.sees("hello")
        await bob.sees("two\nlines")
        await bob.writes("hi, alice")
        await alice.sees("hello", "read")
        await alice.sees("hi, alice")
        assert await alice.texts() == await bob.texts() == ["hello", "two\nlines", "hi, alice"]


async def test_somebody_registers_and_is_logged_in(browser: Browser, server: Server) -> None:
    async with at_a_browser(browser, server, "carol") as carol:
        window = await carol.window()
        await window.page.get_by_role("button", name="Register").click()
        await window.page.get_by_label("User name").fill("carol")
        await window.page.get_by_label("Password", exact=True).fill("secret-3")
        await window.page.get_by_role("button", name="Register and log in").click()
        await expect(window.page.get_by_text("No conversations yet")).to_be_visible()
