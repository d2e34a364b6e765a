"""Groups on the page."""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from playwright.async_api import Browser, Locator, expect

from tests.browser.person import TELEPHONE, Window, at_a_browser, person
from tests.e2e.group_helpers import add, create, delete, remove
from tests.harness import ServerHandle, serving, wait_until

pytestmark = pytest.mark.asyncio(loop_scope="session")  # as the browser

TEAM = "/chat/test?uid=alice&to_uid=%23team"


# As on a slow machine, timers without a delay are late, so that several are due at the same moment.
LATE_TIMERS = """() => {
    const later = setTimeout, clear = clearTimeout, due = new Map();
    const act = () => {
        const acts = [...due.values()];
        due.clear();
        for (const one of acts) one();
    };
    setTimeout = (one, delay = 0) => {
        if (delay) return later(one, delay);
        const id = later(act, 100);
        due.set(id, one);
        return id;
    };
    clearTimeout = (id) => due.delete(id) || clear(id);
}"""


@asynccontextmanager
async def alice_and_bob(browser: Browser, server: ServerHandle) -> AsyncIterator[tuple[Window, Window]]:
    """The pages of the two members of #team, which alice owns."""
    await create(server, "alice", "#team", "bob")
    async with (
        person(browser, server, "alice", TEAM) as alice,
        person(browser, server, "bob", "/chat/test?uid=bob&to_uid=%23team") as bob,
    ):
        await alice.connects()
        await bob.connects()
        yield alice, bob


async def open_members(window: Window, label: str = "Members") -> None:
    await window.page.get_by_role("button", name=label).click()
    await expect(window.page.get_by_role("dialog").get_by_role("listitem").first).to_be_visible()


async def expect_members(window: Window, names: Sequence[str]) -> None:
    await expect(window.page.locator(".members .name")).to_have_text(names)


def actions_of(window: Window, member: str) -> Locator:
    """The button next to a member."""
    return window.page.locator(".members li").filter(has_text=member).get_by_role("button")


async def test_a_group_is_created_by_keyboard_and_used(browser: Browser, server: ServerHandle) -> None:
    """One member is chosen from the conversations, another one is named."""
    await server.make_contacts("alice", "bob")
    async with person(browser, server, "alice") as alice, server.chat("bob", sync=True) as bob:
        await expect(alice.page.get_by_role("link", name="bob")).to_be_visible()
        await alice.page.get_by_role("button", name="New group").press("Enter")
        await expect(alice.page.get_by_label("Group name")).to_be_focused()
        await alice.find_no_fault()
        await alice.page.keyboard.type("team")
        await alice.page.keyboard.press("Tab")
        await alice.page.keyboard.press("Space")
        await alice.page.get_by_label("Other user names").fill("小明, bob")
        await alice.page.keyboard.press("Enter")
        await expect(alice.page.get_by_role("heading", level=2, name="#team")).to_be_visible()
        await expect(alice.page.locator(".presence")).to_have_text("3 members, 2 online")
        assert await bob.receive_change() == ("#team", ["+alice", "+bob", "+小明", "!alice"])
        await alice.writes("hello, team")
        await alice.sees("hello, team", "sent")
        frames = [await bob.receive() for _ in range(2)]
        assert [(frame["op_type"], frame["to"]) for frame in frames] == [(40025, "#team"), (40011, "#team")]
        await bob.put(8, "1", to="#team")
        await expect(alice.page.locator(".talk .presence")).to_have_text("\u2068bob\u2069 is typing…")
        await bob.send("b1\nhello, alice", to="#team")
        await alice.sees("hello, alice")
        await expect(alice.page.locator(".from")).to_have_text(["bob"])
        row = alice.page.get_by_role("link", name="#team")
        await expect(row).to_contain_text("hello, alice")
        await alice.find_no_fault()


@pytest.mark.parametrize(
    ("locale", "new", "name", "others", "sentence"),
    [
        ("en-GB", "New group", "Group name", "Other user names", "who have written to you before"),
        ("zh-CN", "新建群组", "群组名称", "其他用户名", "只能添加给你发过消息的人"),
    ],
)
async def test_a_refusal_explains_what_to_do(
    browser: Browser, tmp_path: Any, locale: str, new: str, name: str, others: str, sentence: str
) -> None:
    async with serving(tmp_path) as server:
        await server.add_users("alice", "bob")
        await create(server, "bob", "#team")
        async with person(browser, server, "alice", locale=locale) as alice:
            await alice.page.get_by_role("button", name=new).click()
            for group, user, error, text in (
                ("", "", "#group-name-error", ""),
                ("a b", "", "#group-name-error", "63"),
                ("#team", "", "#group-name-error", ""),
                ("new", "unknown", "#other-people-error", ""),
                ("new", "bob", "#other-people-error", sentence),
            ):
                await alice.page.get_by_label(name).fill(group)
                await alice.page.get_by_label(others).fill(user)
                await alice.page.get_by_label(others).press("Enter")
                await expect(alice.page.locator(error)).not_to_be_empty()
                await expect(alice.page.locator(error)).to_contain_text(text)
            await alice.find_no_fault()


async def test_members_are_added_and_removed(browser: Browser, server: ServerHandle) -> None:
    """The conversation shows each change, on every member's page."""
    async with alice_and_bob(browser, server) as (alice, bob):
        await open_members(alice)
        await expect_members(alice, ["alice", "bob"])
        await expect(alice.page.get_by_role("listitem").filter(has_text="alice")).to_contain_text(
            "You · owner · online"
        )
        await alice.find_no_fault()
        await alice.page.get_by_text("Add members").click()
        await alice.page.get_by_label("Other user names").fill("小明")
        await alice.find_no_fault()
        await alice.page.keyboard.press("Enter")
        await expect_members(alice, ["alice", "bob", "小明"])
        await expect(bob.page.locator(".change .text")).to_have_text("Joined: \u2068小明\u2069")
        await actions_of(alice, "小明").click()
        await alice.find_no_fault()
        await alice.page.get_by_role("button", name="Remove").click()
        await alice.page.get_by_role("alertdialog").get_by_role("button", name="Remove").click()
        await expect_members(alice, ["alice", "bob"])
        await expect(bob.page.locator(".change .text")).to_have_text(
            ["Joined: \u2068小明\u2069", "Left: \u2068小明\u2069"]
        )
        await open_members(bob)
        await actions_of(bob, "alice").click()
        await expect(bob.page.get_by_role("button", name="Block")).to_be_visible()
        await expect(bob.page.get_by_role("button", name="Remove")).to_have_count(0)


async def test_a_removed_member_sees_the_group_end(browser: Browser, server: ServerHandle) -> None:
    """The composer closes with a sentence, the group leaves the list, and the draft is deleted."""
    await create(server, "bob", "#team", "alice")
    async with person(browser, server, "alice", TEAM) as alice, server.chat("bob", to="#team") as bob:
        await bob.send("b1\nhello")
        await alice.sees("hello")
        row = alice.page.get_by_role("link", name="#team")
        await expect(row).to_have_count(1)
        await alice.composer.fill("a draft")
        await open_members(alice)
        await remove(server, "bob", "#team", "alice")
        await expect(alice.page.get_by_role("dialog")).to_have_count(0)
        await expect(alice.page.locator(".hint")).to_have_text("You are no longer in this group.")
        await expect(alice.composer).to_be_hidden()
        await expect(row).to_have_count(0)
        await add(server, "bob", "#team", "alice")
        await expect(alice.composer).to_be_visible()
        await expect(row).to_have_count(1)
        await alice.misses("hello")
        await delete(server, "bob", "#team")
        await expect(alice.composer).to_be_hidden()
        await alice.page.reload()
        # The page may have been reloaded before the browser's copy of the conversation was deleted.
        hint = re.compile("You are in no group of this name|You are no longer in this group")
        await expect(alice.page.locator(".hint")).to_have_text(hint)
        await expect(alice.page.locator(".side")).not_to_contain_text("Draft")


async def test_the_owner_deletes_and_a_member_leaves(browser: Browser, server: ServerHandle) -> None:
    async with alice_and_bob(browser, server) as (alice, bob):
        await open_members(bob)
        await expect(bob.page.get_by_role("button", name="Delete group")).to_be_hidden()
        await bob.page.get_by_role("button", name="Leave group").press("Enter")
        await bob.find_no_fault()
        await bob.page.get_by_role("alertdialog").get_by_role("button", name="Leave").press("Enter")
        await expect(bob.composer).to_be_hidden()
        await expect(alice.page.locator(".change .text")).to_have_text("Left: \u2068bob\u2069")
        await open_members(alice)
        await alice.page.get_by_role("button", name="Delete group").press("Enter")
        await alice.find_no_fault()
        await alice.page.get_by_role("alertdialog").get_by_role("button", name="Delete").press("Enter")
        await expect(alice.composer).to_be_hidden()
        await expect(alice.page.locator(".conversations li")).to_have_count(1)  # everyone online


async def test_only_the_sender_and_the_owner_can_delete(browser: Browser, server: ServerHandle) -> None:
    await create(server, "bob", "#team", "alice", "小明")
    async with person(browser, server, "alice", TEAM) as alice, server.chat("bob", to="#team") as bob:
        await bob.send("b1\nfrom bob")
        await alice.writes("from alice")
        await alice.sees("from alice", "sent")
        await alice.message("from bob").press("Enter")
        await expect(alice.page.get_by_role("button", name="Copy")).to_be_visible()
        await expect(alice.page.get_by_role("button", name="Delete")).to_have_count(0)
        await alice.page.keyboard.press("Escape")
        await wait_until(lambda: alice.page.evaluate("!history.state?.dialog"))  # the page goes a step back by itself
        await alice.message("from alice").press("Enter")
        await expect(alice.page.get_by_role("button", name="Delete")).to_contain_text("for all members")
        await alice.page.keyboard.press("Escape")
        await bob.put(5, "b1")
        await expect(alice.page.locator(".bubble.gone")).to_have_count(1)


async def test_unread_messages_follow_to_another_device(browser: Browser, server: ServerHandle) -> None:
    """The number in the list is the user's own; reading on one device clears it on the other, also after a reload."""
    await create(server, "bob", "#team", "alice", "小明")
    async with at_a_browser(browser, server, "alice") as someone, server.chat("bob", to="#team") as bob:
        alice = await someone.window()
        await alice.log_in()
        for number in range(3):
            await bob.send(f"b{number}\ntext {number}")
        row = alice.page.get_by_role("link", name="#team")
        await expect(row.locator(".unread")).to_have_text("3")
        await expect(row).to_contain_text("bob\u2069: text 2")
        other = await someone.window(TEAM)
        await other.page.bring_to_front()
        await other.shows(["text 0", "text 1", "text 2"])
        await expect(row.locator(".unread")).to_be_hidden()
        await alice.page.reload()
        await expect(row).to_be_visible()
        await expect(row.locator(".unread")).to_be_hidden()


async def test_missed_messages_of_a_group_arrive_in_order(browser: Browser, server: ServerHandle) -> None:
    """Also those with the id of another sender's message; what was written offline is sent once."""
    await create(server, "alice", "#team", "bob", "小明")
    async with (
        person(browser, server, "alice", TEAM) as alice,
        server.chat("bob", to="#team", sync=True) as bob,
        server.chat("小明", to="#team", sync=True) as ming,
    ):
        await bob.send("m1\none")
        await alice.sees("one")
        await alice.set_offline(True)
        await alice.writes("written offline")
        await ming.send("m1\ntwo")
        await bob.send("m2\nthree")
        await alice.set_offline(False)
        await alice.sees("written offline", "sent")
        await alice.shows(["one", "two", "three", "written offline"])
        await alice.page.reload()
        await alice.shows(["one", "two", "three", "written offline"])


async def test_a_member_is_blocked_from_the_list_of_members(browser: Browser, server: ServerHandle) -> None:
    await create(server, "alice", "#team", "bob")
    async with (
        person(browser, server, "alice", **TELEPHONE) as alice,
        server.chat("bob", to="#team", sync=True) as bob,
    ):
        await alice.page.get_by_role("link", name="#team").click()
        await open_members(alice)
        actions = actions_of(alice, "bob")
        await actions.press("Enter")
        await alice.page.get_by_role("button", name="Block").press("Enter")
        await alice.page.get_by_role("alertdialog").get_by_role("button", name="Block").press("Enter")
        await expect(alice.page.get_by_text("is blocked")).to_be_visible()
        assert (await bob.send("hello", to="alice"))["op_type"] == 40020
        await actions.press("Enter")
        await alice.page.get_by_role("button", name="Unblock").press("Enter")
        await expect(alice.page.get_by_text("is unblocked")).to_be_visible()
        await actions.press("Enter")
        await alice.page.get_by_role("button", name="Chat with").press("Enter")
        await expect(alice.page.get_by_role("heading", level=2, name="bob")).to_be_visible()
        await alice.page.get_by_role("button", name="Back").click()
        await expect(alice.page.get_by_role("link", name="#team")).to_be_visible()
        await bob.send("for the team")
        await expect(alice.page.get_by_role("link", name="#team").locator(".unread")).to_have_text("1")


async def test_a_conversation_opened_from_a_dialog_stays_open(browser: Browser, server: ServerHandle) -> None:
    """Two dialogs close together, on a machine so slow that timers are late: only one entry leaves the history."""
    await create(server, "alice", "#team", "bob")
    async with person(browser, server, "alice", **TELEPHONE) as alice:
        await alice.page.get_by_role("link", name="#team").click()
        await open_members(alice)
        await actions_of(alice, "bob").press("Enter")
        await alice.page.evaluate(LATE_TIMERS)
        await alice.page.get_by_role("button", name="Chat with").press("Enter")
        await expect(alice.page.get_by_role("heading", level=2, name="bob")).to_be_visible()
        await asyncio.sleep(1)
        await expect(alice.page.get_by_role("heading", level=2, name="bob")).to_be_visible()
        await alice.page.get_by_role("button", name="Back").click()
        await expect(alice.page.get_by_role("link", name="#team")).to_be_visible()


async def test_a_group_fits_on_a_telephone(browser: Browser, server: ServerHandle) -> None:
    """With long names and names that are written from right to left; in Chinese."""
    long, right = "w" * 64, "عمر"
    await server.add_users(long, right)
    group = f"#{'م' * 63}"
    await create(server, "alice", group, "bob", long, right)
    async with person(browser, server, "alice", locale="zh-CN", **TELEPHONE) as alice:
        for name in (long, right):
            async with server.chat(name, to=group) as chat:
                await chat.send(f"m1\nfrom {name}")
        await alice.page.get_by_role("link", name=group).tap()
        await alice.sees(f"from {right}")
        assert await fits(alice)
        await expect(alice.page.locator(".from bdi")).to_have_text([long, right])
        await open_members(alice, "群成员")
        await expect(alice.page.locator(".members li")).to_have_count(4)
        await alice.page.get_by_text("添加成员").tap()
        assert await fits(alice)
        await alice.find_no_fault()
        await actions_of(alice, right).tap()
        assert await fits(alice)
        await alice.find_no_fault()


NAMES = [f"user{number}" for number in range(40)]
CONTRASTS = """
() => {
  const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const luminance = (colour) => {
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
    const [red, green, blue] = [...context.getImageData(0, 0, 1, 1).data].map((value) => {
      const part = value / 255;
      return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  return [...document.querySelectorAll(".from")].map((name) => {
    const colours = [getComputedStyle(name).color, getComputedStyle(name.closest(".bubble")).backgroundColor];
    const [high, low] = colours.map(luminance).sort((one, other) => other - one);
    return [colours[0], (high + 0.05) / (low + 0.05)];
  });
}
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_names_have_distinct_colours_of_enough_contrast(
    browser: Browser, server: ServerHandle, scheme: str
) -> None:
    await server.add_users(*NAMES)
    await create(server, "alice", "#team", *NAMES)
    for name in NAMES:
        async with server.chat(name, to="#team") as chat:
            await chat.send(f"hello from {name}")
    async with person(browser, server, "alice", TEAM, color_scheme=scheme) as alice:
        await expect(alice.page.locator(".from")).to_have_count(len(NAMES))
        found = await alice.page.evaluate(CONTRASTS)
        assert len({colour for colour, _ in found}) == 12
        assert min(contrast for _, contrast in found) >= 4.5
        await alice.page.reload()
        await expect(alice.page.locator(".from")).to_have_count(len(NAMES))
        assert await alice.page.evaluate(CONTRASTS) == found


async def test_a_notification_names_the_sender_and_the_group(browser: Browser, server: ServerHandle) -> None:
    await create(server, "bob", "#team", "alice")
    async with at_a_browser(browser, server, "alice") as someone, server.chat("bob", to="#team") as bob:
        await someone.context.add_init_script(
            "window.noted = []; localStorage.setItem('notify', 'on'); window.Notification = class {"
            "static permission = 'granted'; constructor(title, { body, data }) { noted.push([title, body, data]); } }"
        )
        alice = await someone.window()
        await alice.log_in()
        await alice.turns_away()
        await bob.send("hello")
        await wait_until(lambda: alice.page.evaluate("noted.length === 1"))
        [noted] = await alice.page.evaluate("noted")
        assert noted == ["#team", "\u2068bob\u2069: hello", TEAM]


async def fits(window: Window) -> bool:
    """Whether nothing is wider than the screen or its dialog."""
    boxes = window.page.locator("html, dialog")
    return not await boxes.evaluate_all("(all) => all.filter((one) => one.scrollWidth > one.clientWidth).length")
