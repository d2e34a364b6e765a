"""Reading: where a conversation opens, what counts as read, the state of the connection."""

import pytest
from playwright.async_api import Browser, Locator, ViewportSize, expect

from tests.browser.person import DATE_SHOWN, Window, person
from tests.harness import ServerHandle, wait_until

pytestmark = pytest.mark.asyncio(loop_scope="session")  # as the browser


async def is_all_read(server: ServerHandle, user: str) -> bool:
    """Whether the server has no unread message in the newest conversation: the page marks them a page at a time."""
    async with server.chat(user) as chat:
        [conversation, _] = await chat.ask(7, "-1")
        return bool(conversation["unread"] == 0)


async def test_a_conversation_opens_at_the_first_unread_message(browser: Browser, server: ServerHandle) -> None:
    await server.make_contacts("alice", "bob")
    async with server.chat("bob", to="alice") as bob:
        await bob.send_all(*(f"m{number}\nmessage {number}" for number in range(300)))
    async with server.chat("alice", to="bob", sync=True) as alice:
        await alice.answer(4, "\n".join(["hello-bob-alice", *(f"m{number}" for number in range(100))]))
    async with person(browser, server, "alice") as window:
        await window.page.get_by_role("link", name="bob").click()
        await expect(window.page.get_by_role("heading", name="200 new messages")).to_be_in_viewport()
        await expect(window.message("message 100")).to_be_in_viewport()
        await expect(window.message("message 150")).not_to_be_in_viewport()
        await expect(window.page.get_by_role("button", name="new messages")).to_be_visible()
        await window.page.get_by_role("button", name="new messages").click()
        await expect(window.message("message 299")).to_be_in_viewport()
        await expect(window.page).to_have_title("Chat")
        await expect(window.page.get_by_role("link", name="bob").locator(".unread")).to_be_hidden()
        await wait_until(lambda: is_all_read(server, "alice"))


async def test_a_message_without_focus_is_not_scrolled_past(browser: Browser, server: ServerHandle) -> None:
    async with person(browser, server, "alice") as alice, server.chat("bob", to="alice") as bob:
        await bob.send("m\nseen")
        await alice.page.get_by_role("link", name="bob").click()
        await alice.sees("seen")
        await expect(alice.page).to_have_title("Chat")
        await alice.turns_away()
        for number in range(60):
            await bob.put(1, f"m{number}\nmessage {number}")
        await expect(alice.page).to_have_title("(60) Chat")
        await expect(alice.page.get_by_role("heading", name="new messages")).to_be_in_viewport()
        await expect(alice.message("message 0")).to_be_in_viewport()
        await expect(alice.message("message 59")).not_to_be_in_viewport()
        await alice.turns_back()
        await expect(alice.page).not_to_have_title("(60) Chat")
        await expect(alice.page).not_to_have_title("Chat")


async def test_a_message_taller_than_the_window_can_be_read(browser: Browser, server: ServerHandle) -> None:
    """It counts as read if it fills the window; the message below it stays unread."""
    async with person(browser, server, "alice") as alice, server.chat("bob", to="alice", sync=True) as bob:
        for id in ("m1", "m2"):
            await bob.send(f"{id}\n" + "\n".join(str(number) for number in range(300)))
        await alice.page.get_by_role("link", name="bob").click()
        await expect(alice.page.get_by_role("heading", name="2 new messages")).to_be_in_viewport()
        await alice.page.locator(".scroller").evaluate("element => element.scrollTop += 1500")
        assert (await bob.receive())["content"] == "m1"
        await bob.expect_nothing()


async def test_a_click_counts_although_its_button_changes(browser: Browser, server: ServerHandle) -> None:
    """A message arrives between the press and the release, so the button has another label."""
    async with person(browser, server, "alice") as alice, server.chat("bob", to="alice") as bob:
        await bob.send("m\nfirst")
        await alice.page.get_by_role("link", name="bob").click()
        await alice.sees("first")
        await expect(alice.page).to_have_title("Chat")
        for number in range(60):
            await bob.put(1, f"m{number}\nmessage {number}")
        await alice.sees("message 59")
        await expect(alice.page).to_have_title("Chat")
        await alice.page.locator(".scroller").evaluate("element => element.scrollTop = 0")
        await bob.send("a\nanother")
        button = alice.page.get_by_role("button", name="1 new message")
        await button.hover()
        await alice.page.mouse.down()
        await bob.send("l\nlast")
        await expect(alice.page.get_by_role("button", name="2 new messages")).to_be_visible()
        await alice.page.mouse.up()
        await expect(alice.message("last")).to_be_in_viewport()


async def test_a_row_opens_although_its_text_changes(browser: Browser, server: ServerHandle) -> None:
    """Likewise in the list of conversations."""
    async with person(browser, server, "alice") as alice, server.chat("bob", to="alice") as bob:
        await bob.send("m\nfirst")
        text = alice.page.get_by_role("link", name="bob").locator(".last")
        await expect(text).to_have_text("first")
        box = await text.bounding_box()
        assert box
        await alice.page.mouse.move(box["x"] + 5, box["y"] + 5)
        await alice.page.mouse.down()
        await bob.send("l\nlast")
        await expect(alice.page.get_by_role("link", name="last")).to_be_visible()
        await alice.page.mouse.up()
        await expect(alice.page.get_by_role("heading", level=2, name="bob")).to_be_visible()


async def test_resizing_keeps_the_scroll_position(browser: Browser, server: ServerHandle) -> None:
    async with server.chat("bob", to="alice") as bob:
        await bob.send_all(*(f"m{number}\nmessage {number}" + " and more" * 20 for number in range(60)))
        await bob.send("last\nlast")
    async with person(browser, server, "alice") as alice:
        await alice.page.get_by_role("link", name="bob").click()
        await expect(alice.page.get_by_role("heading", name="new messages")).to_be_in_viewport()
        await alice.hold_timers(DATE_SHOWN)
        await alice.page.locator(".scroller").evaluate("element => element.scrollTop = 1200")
        await expect(alice.page.locator(".floating")).to_have_text("Today")
        await expect(alice.page.locator(".floating")).to_have_css("opacity", "1")
        seen = await first_seen(alice)
        for size in (ViewportSize(width=360, height=740), ViewportSize(width=740, height=360)):
            await alice.page.set_viewport_size(size)
            await alice.page.evaluate(DRAWN)
            assert await first_seen(alice) == seen
        await alice.page.evaluate(NARROWER_WHILE_SOMETHING_ELSE_CHANGES)
        await alice.page.evaluate(DRAWN)
        assert await first_seen(alice) == seen


NARROWER_WHILE_SOMETHING_ELSE_CHANGES = """() => {
  requestAnimationFrame(() => (document.querySelector(".shell").style.width = "320px"));
  dispatchEvent(new Event("focus"));
}"""
DRAWN = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"


async def first_seen(window: Window) -> str:
    """Return the first visible message."""
    text: str = await window.page.locator(".scroller").evaluate(
        "scroller => [...scroller.querySelectorAll('.row')].find((row) => row.querySelector('.bubble')"
        ".getBoundingClientRect().bottom > scroller.getBoundingClientRect().top).dataset.key"
    )
    return text


async def test_a_lost_network_is_shown_at_once(browser: Browser, server: ServerHandle) -> None:
    """Presence is unknown without a connection."""
    async with person(browser, server, "alice") as alice, server.chat("bob", to="alice") as bob:
        await bob.send("m1\nhello")
        await alice.page.get_by_role("link", name="bob").click()
        presence: Locator = alice.page.locator(".presence")
        await expect(presence).to_have_text("online")
        await alice.set_offline(True)
        await expect(alice.page.get_by_text("you are offline")).to_be_visible()
        await expect(presence).to_be_empty()
        await expect(alice.page.locator(".who.online")).to_have_count(0)
        await alice.set_offline(False)
        await expect(presence).to_have_text("online")


async def test_a_message_deleted_by_the_peer_leaves_a_placeholder(browser: Browser, server: ServerHandle) -> None:
    async with person(browser, server, "alice") as alice, server.chat("bob", to="alice") as bob:
        for id in ("one", "two", "three"):
            await bob.send(f"{id}\n{id}")
        await alice.page.get_by_role("link", name="bob").click()
        await alice.shows(["one", "two", "three"])
        await bob.answer(5, "two")
        await alice.shows(["one", "Message deleted", "three"])
        await bob.answer(5, "three")
        await alice.shows(["one", "Message deleted", "Message deleted"])
        await expect(alice.page.get_by_role("link", name="bob").locator(".last")).to_have_text("one")
        await alice.page.get_by_role("link", name="Everyone online").click()
        await alice.page.get_by_role("link", name="bob").click()
        await alice.shows(["one"])
