"""Two users, and two windows of one user."""

from pathlib import Path

import pytest
from playwright.async_api import Browser, expect

from chat_server.service.presence import GRACE_SECONDS
from tests.browser.person import UNDO, at_a_browser, person
from tests.harness import PASSWORD, Frame, ManualClock, ServerHandle, serving, wait_until

pytestmark = pytest.mark.asyncio(loop_scope="session")  # as the browser


async def test_two_people_chat(browser: Browser, server: ServerHandle) -> None:
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
        for window in (alice, bob):
            await window.shows(["hello", "two\nlines", "hi, alice"])


async def test_registration_logs_the_user_in(browser: Browser, server: ServerHandle) -> None:
    async with at_a_browser(browser, server, "carol") as carol:
        window = await carol.window()
        await window.page.get_by_role("button", name="Register").click()
        await window.page.get_by_label("User name").fill("carol")
        await window.page.get_by_label("Password", exact=True).fill("secret-3")
        await window.page.get_by_role("button", name="Register and log in").click()
        await expect(window.page.get_by_text("No conversations yet")).to_be_visible()


async def test_two_windows_of_one_person_show_the_same(browser: Browser, server: ServerHandle) -> None:
    await server.make_contacts("alice", "bob")
    async with at_a_browser(browser, server, "alice") as alice:
        one = await alice.window()
        await one.log_in()
        await one.opens("bob")
        other = await alice.window("/chat/test?uid=alice&to_uid=bob")
        await other.shows(["hello", "hello"])
        await one.page.bring_to_front()
        await one.writes("from the one")
        await other.sees("from the one", "sent")
        await other.page.bring_to_front()
        await other.writes("from the other")
        await one.sees("from the other", "sent")
        await one.message("from the one").hover()
        await one.message("from the one").get_by_role("button", name="Actions").click()
        await one.page.get_by_role("button", name="Delete").click()
        await one.misses("from the one")
        await other.misses("from the one")


async def test_a_message_is_read_if_it_is_visible_and_has_focus(browser: Browser, server: ServerHandle) -> None:
    async with at_a_browser(browser, server, "alice") as someone, server.chat("bob", to="alice", sync=True) as bob:
        alice = await someone.window()
        await alice.log_in()
        await bob.send("m1\nnot open")
        await expect(alice.page).to_have_title("(1) Chat")
        await expect(alice.page.get_by_role("link", name="bob")).to_contain_text("1")
        await bob.expect_nothing()
        await alice.opens("bob")
        await alice.sees("not open")
        assert await bob.receive() == notice_of("m1")
        await expect(alice.page).to_have_title("Chat")
        await alice.turns_away()
        await bob.send("m2\nnot looked at")
        await alice.sees("not looked at")
        await bob.expect_nothing()
        await expect(alice.page).to_have_title("(1) Chat")
        await alice.turns_back()
        assert await bob.receive() == notice_of("m2")


def notice_of(id: str) -> Frame:
    return {"from": "alice", "to": "bob", "type": 2, "op_type": 40007, "content": id, "msg": "marked as read"}


async def test_a_deletion_can_be_undone_before_it_is_sent(browser: Browser, server: ServerHandle) -> None:
    await server.make_contacts("alice", "bob")
    async with person(browser, server, "alice") as alice, server.chat("bob", to="alice", sync=True) as bob:
        await alice.opens("bob")
        row = alice.page.locator(".row").first
        await row.focus()
        await alice.hold_timers(UNDO)
        await row.press("Delete")
        await expect(alice.page.locator(".row")).to_have_count(1)
        await alice.page.get_by_role("button", name="Undo").click()
        await expect(alice.page.locator(".row")).to_have_count(2)
        assert (await bob.answer(2, "-10"))["content"] == "2"


async def test_a_late_notice_of_a_logout_ends_no_new_session(browser: Browser, server: ServerHandle) -> None:
    """Another window has logged out, and in again before this one was told of the logout."""
    async with person(browser, server, "alice") as alice:
        await alice.page.evaluate("dispatchEvent(new StorageEvent('storage', { key: 'user', newValue: '' }))")
        await alice.opens("bob")
        await alice.writes("hello")
        await alice.sees("hello", "sent")


async def test_a_broadcast_reaches_everyone_online(browser: Browser, server: ServerHandle) -> None:
    async with person(browser, server, "alice") as alice, person(browser, server, "bob") as bob:
        for window in (alice, bob):
            await window.page.bring_to_front()
            await window.page.get_by_role("link", name="Everyone online").click()
        await bob.connects()
        await alice.writes("hello, all")
        await alice.page.get_by_role("alertdialog", name="everyone").get_by_role("button", name="Send").click()
        await bob.sees("hello, all")
        await expect(bob.message("hello, all")).to_contain_text("alice")
        await expect(alice.message("hello, all")).to_contain_text("Reached 1")


async def test_the_contact_limit_is_shown_until_the_peer_answers(browser: Browser, tmp_path: Path) -> None:
    async with serving(tmp_path, StrangerLimit=1) as server:
        await server.add_users("alice", "bob")
        async with person(browser, server, "alice") as alice, server.chat("bob", to="alice") as bob:
            await alice.opens("bob")
            await alice.writes("first", "second")
            await alice.sees("first", "read")
            await alice.sees("second", "Waiting")
            await expect(alice.page.locator(".conversations .icon-waiting")).to_be_visible()
            await expect(alice.page.get_by_role("button", name="Try again")).to_have_count(0)
            await expect(alice.page.get_by_text("You’ve reached the limit")).to_be_visible()
            await bob.send("m1\nyes?")
            await alice.sees("second", "read")
            await expect(alice.page.get_by_text("You’ve reached the limit")).to_be_hidden()


async def test_a_new_password_works_and_a_logout_ends_all_windows(browser: Browser, server: ServerHandle) -> None:
    async with at_a_browser(browser, server, "alice") as someone:
        alice = await someone.window()
        await alice.log_in()
        other = await someone.window()
        await expect(other.page.locator(".shell")).to_be_visible()
        await alice.page.bring_to_front()
        await alice.page.get_by_role("button", name="Settings").click()
        await alice.page.get_by_text("Change password").click()
        await alice.page.get_by_label("Current password").fill("wrong-password")
        await alice.page.get_by_label("New password").fill("another1")
        await alice.page.get_by_role("button", name="Change", exact=True).click()
        await expect(alice.page.locator("#old-password-error")).to_have_text("Wrong password")
        await alice.page.get_by_label("Current password").fill(PASSWORD)
        await alice.page.get_by_role("button", name="Change", exact=True).click()
        await expect(alice.page.get_by_text("Password changed")).to_be_visible()
        await alice.page.get_by_role("button", name="Log out").click()
        for window in (alice, other):
            await expect(window.page.locator("#password")).to_be_visible()
        await alice.log_in("another1")
        # The other window follows; closed while it does so, the browser would now and then never end.
        await expect(other.page.locator(".shell")).to_be_visible()


NOTIFICATIONS = """
window.noted = [];
window.Notification = class {
  static permission = "granted";
  constructor(title, options) {
    noted.push([title, options.body, options.renotify, options.icon]);
  }
  close() {
    noted.push("closed");
  }
};
localStorage.setItem("notify", "on");
"""


async def test_a_notification_repeats_the_texts_of_earlier_ones(browser: Browser, server: ServerHandle) -> None:
    async with at_a_browser(browser, server, "alice") as someone, server.chat("bob", to="alice") as bob:
        await someone.context.add_init_script(NOTIFICATIONS)
        alice = await someone.window()
        await alice.log_in()
        await alice.turns_away()
        await bob.send("m1\none")
        await bob.send("m2\ntwo")
        await wait_until(lambda: alice.page.evaluate("noted.length === 2"))
        [first, second] = await alice.page.evaluate("noted")
        assert (first[:3], second[:3]) == (["bob", "one", True], ["bob", "one\ntwo", True])
        assert (await alice.page.request.get(second[3])).headers["content-type"] == "image/png"
        await alice.turns_back()
        await wait_until(lambda: alice.page.evaluate("noted.at(-1) === 'closed'"))


async def test_presence_of_peers_is_shown_as_it_changes(browser: Browser, tmp_path: Path) -> None:
    """In the list and in the header, pushed by the server."""
    clock = ManualClock()
    async with serving(tmp_path, clock, StrangerLimit=0) as server:
        await server.add_users("alice", "bob")
        await server.make_contacts("alice", "bob")
        clock.shift += GRACE_SECONDS
        async with person(browser, server, "alice") as alice:
            await alice.opens("bob")
            header, dots = alice.page.locator(".presence"), alice.page.locator(".who.online")
            await expect(header).to_have_text("offline")
            async with server.chat("bob"):
                await expect(header).to_have_text("online")
                await expect(dots).to_have_count(1)
                await alice.set_offline(True)
                await expect(header).to_be_empty()
                await expect(dots).to_have_count(0)
                await alice.set_offline(False)
                await expect(header).to_have_text("online")

            async def is_offline() -> bool:
                clock.shift += GRACE_SECONDS  # since the server noticed that the socket closed
                return await header.text_content() == "offline"

            await wait_until(is_offline)
            await expect(dots).to_have_count(0)
