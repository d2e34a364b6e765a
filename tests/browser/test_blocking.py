"""Typing and blocking on the page."""

import pytest
from playwright.async_api import Browser, expect

from tests.browser.person import TYPING_SHOWN, person
from tests.harness import ServerHandle

pytestmark = pytest.mark.asyncio(loop_scope="session")  # as the browser


@pytest.mark.parametrize(("locale", "text"), [("en-GB", "bob is typing…"), ("zh-CN", "bob 正在输入…")])
async def test_header_and_list_show_who_is_typing(
    browser: Browser, server: ServerHandle, locale: str, text: str
) -> None:
    async with (
        person(browser, server, "alice", "/chat/test?uid=alice&to_uid=bob", locale=locale) as alice,
        server.chat("bob", to="alice", sync=True) as bob,
    ):
        await bob.send("hello")
        await alice.sees("hello")
        header, row = alice.page.locator(".presence"), alice.page.locator(".last .typing")
        await alice.hold_timers(TYPING_SHOWN)
        await bob.put(8, "1")
        await expect(header).to_have_text(plain(text))
        await expect(row).to_have_text(plain(text))
        await bob.put(8, "0")
        await expect(row).to_have_count(0)
        await expect(header).not_to_have_text(plain(text))


def plain(text: str) -> str:
    """The text as the page isolates a name in it."""
    return text.replace("bob", "\u2068bob\u2069")


async def test_typing_is_sent_and_ends_with_the_text(browser: Browser, server: ServerHandle) -> None:
    async with person(browser, server, "alice") as alice, server.chat("bob", to="alice", sync=True) as bob:
        await alice.opens("bob")
        await alice.composer.press("h")
        frame = await bob.receive()
        assert (frame["op_type"], frame["from"], frame["content"]) == (40025, "alice", "1")
        await alice.composer.fill("")
        assert (await bob.receive())["content"] == "0"
        await alice.writes("hello")
        while (received := await bob.receive())["op_type"] == 40025:  # typing
            pass
        assert received["op_type"] == 40011
        await bob.expect_nothing()


async def test_a_user_blocks_and_unblocks_by_keyboard(browser: Browser, server: ServerHandle) -> None:
    """From the menu of the conversation. The dialogs have no fault that axe finds."""
    async with person(browser, server, "alice") as alice, server.chat("bob", to="alice") as bob:
        await alice.opens("bob")
        await alice.writes("hello")
        await bob.receive()
        menu = alice.page.get_by_role("button", name="Menu")
        await menu.focus()
        await alice.page.keyboard.press("Enter")
        await expect(alice.page.get_by_role("button", name="Block")).to_be_focused()
        await alice.find_no_fault()
        await alice.page.keyboard.press("Enter")
        await expect(alice.page.get_by_role("alertdialog")).to_contain_text("cannot write to you")
        await alice.find_no_fault()
        await alice.page.get_by_role("button", name="Block", exact=True).press("Enter")
        await expect(alice.page.locator(".hint")).to_contain_text("You blocked")
        await expect(alice.composer).to_be_hidden()
        assert (await bob.send("can you hear me?"))["op_type"] == 40020
        await menu.press("Enter")
        await alice.page.get_by_role("button", name="Unblock").press("Enter")
        await expect(alice.page.locator(".hint")).to_be_empty()
        await alice.writes("hello again")
        await alice.sees("hello again", "Read")


async def test_settings_list_blocked_users(browser: Browser, server: ServerHandle) -> None:
    """Also those blocked on another device; in both languages."""
    headers = {"Authorization": f"Bearer {server.tokens['alice']}"}
    async with person(browser, server, "alice") as alice:
        await alice.page.get_by_role("button", name="Settings").click()
        section = alice.page.get_by_role("region", name="Blocked users")
        await expect(section).to_contain_text("You have blocked no one")
        await alice.page.keyboard.press("Escape")
        for name in ("bob", "小明"):
            await server.post("/user/block", {"user_name": name}, headers=headers)
        await alice.page.get_by_role("button", name="Settings").click()
        await expect(section.get_by_role("listitem")).to_have_count(2)
        await expect(section).to_contain_text("cannot write to you")
        await alice.find_no_fault()
        await section.get_by_role("button", name="bob").press("Enter")
        await expect(section.get_by_role("listitem")).to_have_count(1)
        await expect(section.get_by_role("button")).to_be_focused()
        await alice.page.get_by_text("中文").click()
        await expect(alice.page.get_by_role("region", name="屏蔽名单")).to_contain_text("小明")
