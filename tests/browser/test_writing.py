"""Writing with keyboard, mouse and touch, and the display of texts."""

import pytest
from playwright.async_api import Browser, expect

from tests.browser.person import TELEPHONE, TOAST_SHOWN, Window, person
from tests.harness import ServerHandle, wait_until

pytestmark = pytest.mark.asyncio(loop_scope="session")  # as the browser


# Click the button after `history.back()`, which ends later.
OPEN_WHILE_GOING_BACK = """button => {
  const back = history.back.bind(history);
  history.back = () => {
    history.back = back;
    back();
    button.click();
    addEventListener("popstate", () => (globalThis.wentBack = true), { once: true });
  };
}"""


async def test_enter_inserts_a_line_break_on_a_phone(browser: Browser, server: ServerHandle) -> None:
    async with person(browser, server, "alice", **TELEPHONE) as alice:
        await alice.opens("bob")
        await alice.composer.fill("one")
        await alice.composer.press("Enter")
        await alice.composer.press_sequentially("two")
        await expect(alice.composer).to_have_value("one\ntwo")
        await alice.page.get_by_role("button", name="Send").tap()
        await alice.sees("one\ntwo", "Sent")


async def test_the_composer_grows_to_fit_its_text(browser: Browser, server: ServerHandle) -> None:
    """If it were only a pixel too low, it would show a scroll bar."""
    async with person(browser, server, "alice") as alice:
        await alice.opens("bob")
        await alice.composer.fill("one\ntwo\nthree")
        assert await alice.composer.evaluate("(text) => text.scrollHeight - text.clientHeight") == 0


async def test_a_long_press_opens_actions_and_a_tap_does_not(browser: Browser, server: ServerHandle) -> None:
    async with person(browser, server, "alice", **TELEPHONE) as alice:
        await alice.opens("bob")
        await alice.writes("hello")
        await alice.sees("hello", "Sent")
        bubble = alice.page.locator(".bubble")
        await bubble.tap()
        actions = alice.page.get_by_role("dialog", name="Actions")
        await expect(actions).to_have_count(0)
        await long_press(alice, ".bubble")
        await expect(actions).to_contain_text("It will disappear for")
        await expect(actions).to_contain_text("Sent")
        await actions.get_by_role("button", name="Delete").tap()
        await alice.misses("hello")


async def long_press(window: Window, selector: str) -> None:
    """Press until the dialog is open."""
    middle = (
        "one => { const { x, y, width, height } = one.getBoundingClientRect(); return [x + width / 2, y + height / 2] }"
    )
    x, y = await window.page.locator(selector).first.evaluate(middle)
    devtools = await window.page.context.new_cdp_session(window.page)
    point = {"x": x, "y": y}
    await devtools.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [point]})
    await expect(window.page.locator("dialog")).to_be_visible()
    await devtools.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    await expect(window.page.locator("dialog")).to_be_visible()


async def test_a_right_click_offers_actions_beside_the_message(browser: Browser, server: ServerHandle) -> None:
    async with person(browser, server, "alice") as alice:
        await alice.opens("bob")
        await alice.writes("hello")
        await alice.sees("hello", "Sent")
        await alice.page.locator(".bubble").click(button="right")
        actions = alice.page.get_by_role("dialog", name="Actions")
        bubble, box = await alice.page.locator(".bubble").bounding_box(), await actions.bounding_box()
        assert bubble
        assert box
        assert abs(box["x"] - bubble["x"]) < 300
        assert abs(box["y"] + box["height"] - bubble["y"]) < 300
        await actions.get_by_role("button", name="Copy").click()
        await expect(alice.page.get_by_text("Copied")).to_be_visible()


async def test_a_toast_is_visible_above_a_dialog(browser: Browser, server: ServerHandle) -> None:
    async with person(browser, server, "alice") as alice:
        await alice.page.get_by_role("button", name="Settings").click()
        await alice.page.evaluate("Notification.requestPermission = async () => 'denied'")
        await alice.hold_timers(TOAST_SHOWN)
        await alice.page.get_by_text("Notifications").click()
        toast = alice.page.locator(".toast")
        await expect(toast).to_have_text("The browser does not allow notifications")
        assert await toast.evaluate(
            "toast => { const { x, y, width, height } = toast.getBoundingClientRect();"
            " return toast.contains(document.elementFromPoint(x + width / 2, y + height / 2)) }"
        )
        await alice.page.keyboard.press("Escape")
        await expect(toast).to_be_visible()


async def test_a_dialog_opened_while_another_leaves_the_history_stays(browser: Browser, server: ServerHandle) -> None:
    async with person(browser, server, "alice") as alice:
        settings, dialog = alice.page.get_by_role("button", name="Settings"), alice.page.get_by_role("dialog")
        await settings.evaluate(OPEN_WHILE_GOING_BACK)
        await settings.click()
        await alice.page.keyboard.press("Escape")
        await wait_until(lambda: alice.page.evaluate("Boolean(globalThis.wentBack)"))
        await expect(dialog).to_be_visible()
        await alice.page.go_back()
        await expect(dialog).to_have_count(0)
        await expect(alice.page.locator(".shell")).to_be_visible()


async def test_code_links_and_emoji_are_shown_as_such(browser: Browser, server: ServerHandle) -> None:
    async with person(browser, server, "alice") as alice:
        await alice.opens("bob")
        await alice.writes(
            "see `a < b` and\n```py\nhttps://example.org\n```\nwww.example.com/x.",
            "👍🏽 👩‍👩‍👧 🇨🇳",
            "no 👍",
            "``` alone",
        )
        await expect(alice.page.locator(".row")).to_have_count(4)
        texts = alice.page.locator(".text")
        await expect(texts.nth(0).locator("code")).to_have_text(["a < b", "https://example.org"])
        await expect(texts.nth(0).locator("a")).to_have_attribute("href", "https://www.example.com/x")
        await expect(texts.nth(0).locator("a")).to_have_text("www.example.com/x")
        large = "all => all.map((one) => parseFloat(getComputedStyle(one).fontSize) > 30)"
        assert await texts.evaluate_all(large) == [False, True, False, False]
        await expect(texts.nth(3)).to_have_text("``` alone")


@pytest.mark.parametrize(
    ("text", "same_line"),
    [("short", True), ("long " * 60 + "\nend", True), ("שלום " * 60 + "\nסוף", True), ("x" * 300, False)],
)
async def test_the_time_is_in_the_last_line(browser: Browser, server: ServerHandle, text: str, same_line: bool) -> None:
    """Next to the text if there is space, never above it."""
    async with person(browser, server, "alice") as alice:
        await alice.opens("bob")
        await alice.writes(text)
        bubble = alice.page.locator(".bubble")
        await expect(bubble.locator(".icon-sent")).to_be_visible()
        [apart, below] = await bubble.evaluate(
            """bubble => {
              const range = document.createRange();
              range.selectNodeContents(bubble.querySelector(".text"));
              const meta = bubble.querySelector(".meta").getBoundingClientRect();
              const over = ({ left, right, top, bottom }) =>
                left < meta.right && meta.left < right && top + 4 < meta.bottom && meta.top < bottom - 4;
              const lines = [...range.getClientRects()];
              return [!lines.some(over), meta.bottom - lines.at(-1).bottom];
            }"""
        )
        assert apart
        assert not same_line or below < 8
