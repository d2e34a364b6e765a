"""Navigation by search, address, keyboard and the browser's Back."""

from pathlib import Path

import pytest
from playwright.async_api import Browser, Route, expect

from tests.browser.person import at_a_browser, person
from tests.harness import ServerHandle, serving, wait_until

pytestmark = pytest.mark.asyncio(loop_scope="session")  # as the browser

NARROW = {"width": 360, "height": 740}


async def test_a_search_finds_conversations_far_down_the_list(browser: Browser, tmp_path: Path) -> None:
    """Independent of the case of names."""
    async with serving(tmp_path, StrangerLimit=0) as server:
        await server.add_users("alice", "BOB")
        names = [f"user{number}" for number in range(120)]
        await server.add_users(*names)
        async with server.chat("alice") as chat:
            for name in ("BOB", *names):
                await chat.answer(1, "hello", to=name)
        async with person(browser, server, "alice") as alice:
            links = alice.page.locator(".conversations a")
            await expect(links.filter(has_text="user119")).to_be_visible()
            await expect(links.filter(has_text="BOB")).to_have_count(0)
            find = alice.page.get_by_role("textbox", name="Search")
            await find.fill("bob")
            await expect(links).to_contain_text(["BOB"])
            await find.press("Enter")
            await expect(alice.page.get_by_role("heading", level=2, name="BOB")).to_be_visible()


async def test_a_new_conversation_is_in_the_list_at_once(browser: Browser, server: ServerHandle) -> None:
    async with person(browser, server, "alice") as alice:
        await alice.opens("bob")
        await expect(alice.page.get_by_role("link", name="bob")).to_have_attribute("aria-current", "page")


async def test_a_link_survives_the_login(browser: Browser, server: ServerHandle) -> None:
    async with at_a_browser(browser, server, "alice") as someone:
        alice = await someone.window("/chat/test?to_uid=bob")
        await alice.log_in()
        await expect(alice.page.get_by_role("heading", level=2, name="bob")).to_be_visible()


async def test_a_link_for_another_user_says_who_is_logged_in(browser: Browser, server: ServerHandle) -> None:
    async with at_a_browser(browser, server, "alice") as someone:
        alice = await someone.window()
        await alice.log_in()
        await alice.page.goto(f"{server.url}/chat/test?uid=bob&to_uid=小明")
        await expect(alice.page.get_by_text("You are logged in as")).to_contain_text("alice")
        await alice.page.get_by_role("button", name="Continue as").click()
        await expect(alice.page.locator(".shell")).to_be_visible()
        await expect(alice.page).to_have_url(server.url + "/")


async def test_keys_work_wherever_the_focus_is(browser: Browser, server: ServerHandle) -> None:
    await server.add_users("carol")
    for name in ("bob", "carol"):
        await server.make_contacts("alice", name)
    async with person(browser, server, "alice") as alice:
        keyboard = alice.page.keyboard
        links = alice.page.locator(".conversations a")
        await expect(links).to_have_count(3)
        await expect(alice.page.locator(".conversations a[tabindex='0']")).to_have_count(1)
        find = alice.page.get_by_role("textbox", name="Search")
        await find.press("ArrowDown")
        for key, index in (("End", 2), ("Home", 0), ("ArrowDown", 1), ("ArrowDown", 2), ("ArrowUp", 1)):
            await keyboard.press(key)
            await expect(links.nth(index)).to_be_focused()
        await keyboard.press("Enter")
        await expect(alice.composer).to_be_focused()
        await keyboard.press("Shift+Tab")
        await keyboard.type("hello")
        await expect(alice.composer).to_have_value("hello")
        await keyboard.press("Control+k")
        await expect(find).to_be_focused()
        await keyboard.press("Escape")
        await expect(links.nth(1)).to_be_focused()
        await expect(alice.composer).to_be_hidden()


async def test_back_on_the_page_equals_back_of_the_browser(browser: Browser, server: ServerHandle) -> None:
    async with at_a_browser(browser, server, "alice", viewport=NARROW) as someone:
        alice = await someone.window()
        await alice.log_in()
        length = await alice.page.evaluate("history.length")
        for _ in range(2):
            await alice.opens("bob")
            await alice.page.get_by_role("button", name="Back").click()
            await expect(alice.page.get_by_role("textbox", name="Search")).to_be_visible()
        assert await alice.page.evaluate("history.length") == length + 1
        await alice.opens("bob")
        await alice.page.go_back()
        await expect(alice.page.get_by_role("textbox", name="Search")).to_be_visible()


async def test_back_closes_a_dialog_and_nothing_else(browser: Browser, server: ServerHandle) -> None:
    async with person(browser, server, "alice") as alice:
        await alice.opens("bob")
        await alice.page.get_by_role("button", name="Settings").click()
        await expect(alice.page.get_by_role("dialog")).to_be_visible()
        await alice.page.go_back()
        await expect(alice.page.get_by_role("dialog")).to_have_count(0)
        await expect(alice.page.get_by_role("heading", level=2, name="bob")).to_be_visible()
        await alice.page.get_by_role("button", name="Settings").click()
        await alice.page.get_by_role("button", name="Close").click()
        await expect(alice.page.get_by_role("dialog")).to_have_count(0)
        await wait_until(lambda: alice.page.evaluate("!history.state.dialog"))
        await alice.page.go_back()
        await expect(alice.page.get_by_role("heading", level=2, name="bob")).to_be_hidden()
        await expect(alice.page.locator(".shell")).to_be_visible()


async def test_a_message_to_everyone_is_sent_after_a_warning(browser: Browser, server: ServerHandle) -> None:
    async with person(browser, server, "alice") as alice, server.chat("bob") as bob:
        await alice.page.get_by_role("link", name="Everyone online").click()
        await alice.writes("hello, all")
        warning = alice.page.get_by_role("alertdialog", name="everyone")
        await warning.get_by_role("button", name="Cancel").click()
        await expect(alice.composer).to_have_value("hello, all")
        await bob.expect_nothing()
        await alice.composer.press("Enter")
        await warning.get_by_role("button", name="Send").click()
        assert (await bob.receive())["content"] == "hello, all"
        await alice.writes("again")
        assert (await bob.receive())["content"] == "again"


async def test_an_open_page_offers_to_load_its_new_version(browser: Browser, server: ServerHandle) -> None:
    async with person(browser, server, "alice") as alice:
        await alice.opens("bob")

        async def renewed(route: Route) -> None:
            answer = await route.fetch()
            await route.fulfill(response=answer, body=(await answer.text()).replace("/web/", "/web/0"))

        await alice.page.route(server.url + "/", renewed)
        await alice.set_offline(True)
        await expect(alice.page.get_by_text("you are offline")).to_be_visible()
        await alice.set_offline(False)
        await expect(alice.page.get_by_text("There is a new version")).to_be_visible()
        await alice.page.unroute(server.url + "/")
        await alice.page.get_by_role("button", name="Reload").click()
        await expect(alice.page.get_by_role("heading", level=2, name="bob")).to_be_visible()
        await expect(alice.page.get_by_text("There is a new version")).to_have_count(0)
