"""Views: accessibility, keyboard, hostile names and texts, long conversations."""

from pathlib import Path

import httpx
import pytest
from axe_playwright_python.async_playwright import Axe  # type: ignore[import-untyped]
from playwright.async_api import Browser, ViewportSize, expect

from tests.browser.person import Window, at_a_browser, person
from tests.browser.proxy import holding_proxy
from tests.browser.views import ME, full, views
from tests.e2e.http_helpers import sql
from tests.harness import PASSWORD, ServerHandle, serving

pytestmark = pytest.mark.asyncio(loop_scope="session")  # as the browser

MOST_ROWS = 160
VIOLATIONS = {"resultTypes": ["violations"]}  # of what passes axe need not collect every node
HOSTILE = [
    "<script>hacked = 1</script>",
    "<img src=x onerror='hacked = 1'>",
    "javascript:hacked=1 data:text/html,<script>hacked=1</script>",
    "\u202eright to left\u202c and \u2066isolated",
    "Z\u0351\u036b\u0343\u036aalgo\u0301\u0300\u0302\u0303\u0304\u0305",
    "\u2028 \u2029 \ufeff \u0000 {{ x }} ${x} &lt;b&gt;",
    "https://example.org/<script>hacked=1</script>",
    "x" * 5000,
]


@pytest.mark.parametrize(("scheme", "width"), [("light", 360), ("dark", 1440)])
async def test_axe_finds_nothing_and_text_at_200_percent_fits(
    browser: Browser, tmp_path: Path, scheme: str, width: int
) -> None:
    """On a phone and on a wide screen; text at 200 % also at 768 pixels."""
    size = ViewportSize(width=width, height=800)
    looks = {"viewport": size, "color_scheme": scheme, "reduced_motion": "reduce"}
    found = []
    async with full(tmp_path) as server, at_a_browser(browser, server, ME, **looks) as someone:
        ada = await someone.window()
        async for view in views(ada, server):
            for one in (await Axe().run(ada.page, options=VIOLATIONS)).response["violations"]:
                found.append((view, one["id"], [node["html"] for node in one["nodes"]]))
            await fits_twice_as_large(ada, view, min(width, 768))
            await ada.page.set_viewport_size(size)
    assert not found


async def fits_twice_as_large(ada: Window, view: str, width: int) -> None:
    """Expect that nothing is wider than the screen with text at 200 %."""
    await ada.page.set_viewport_size(ViewportSize(width=width, height=800))
    root = "document.documentElement"
    await ada.page.evaluate(f"{root}.style.fontSize = '200%'")
    assert await ada.page.evaluate(f"{root}.scrollWidth") <= width, view
    assert not await ada.page.locator("dialog").evaluate_all(WIDER), view
    await ada.page.evaluate(f"{root}.style.fontSize = ''")


WIDER = "all => all.filter((one) => one.scrollWidth > one.clientWidth).map((one) => one.className)"


async def focused(window: Window) -> str:
    """Return the focused element; the body if the focus was lost."""
    tag: str = await window.page.evaluate("document.activeElement.tagName")
    return tag


async def test_a_whole_conversation_by_keyboard_alone(browser: Browser, server: ServerHandle) -> None:
    async with at_a_browser(browser, server, "alice") as someone, server.chat("bob", to="alice", sync=True) as bob:
        alice = await someone.window()
        keyboard = alice.page.keyboard
        await expect(alice.page.locator("#name")).to_be_focused()
        await keyboard.type("alice")
        await keyboard.press("Tab")
        await keyboard.type(PASSWORD)
        await keyboard.press("Enter")
        await expect(alice.page.get_by_role("textbox", name="Search")).to_be_focused()
        await keyboard.type("bob")
        await keyboard.press("Enter")
        await expect(alice.composer).to_be_focused()
        await keyboard.type("one")
        await keyboard.press("Shift+Enter")
        await keyboard.type("two")
        await keyboard.press("Enter")
        await alice.sees("one\ntwo", "sent")
        while (received := await bob.receive())["op_type"] == 40025:  # typing
            pass
        assert received["content"].endswith("\none\ntwo")
        await bob.send("m1\nhello")
        await alice.sees("hello")
        await expect(alice.page.locator("#announcer")).to_contain_text(": hello")
        await keyboard.press("Shift+Tab")
        await expect(alice.page.locator(".row").last).to_be_focused()
        await keyboard.press("ArrowUp")
        await keyboard.press("Enter")
        await expect(alice.page.get_by_role("dialog", name="Actions")).to_be_visible()
        await keyboard.press("Escape")
        await keyboard.press("Delete")
        await alice.misses("one\ntwo")
        assert await focused(alice) == "LI"
        await keyboard.press("Tab")
        await expect(alice.composer).to_be_focused()
        await keyboard.press("Escape")
        await expect(alice.page.get_by_role("link", name="bob")).to_be_focused()
        await keyboard.press("ArrowDown")
        await keyboard.press("Enter")
        await expect(alice.composer).to_be_focused()


async def test_enter_during_composition_does_not_send(browser: Browser, server: ServerHandle) -> None:
    async with person(browser, server, "alice") as alice:
        await alice.opens("bob")
        devtools = await alice.page.context.new_cdp_session(alice.page)
        await devtools.send("Input.imeSetComposition", {"text": "nihao", "selectionStart": 5, "selectionEnd": 5})
        await alice.composer.dispatch_event("keydown", {"key": "Enter", "isComposing": True, "bubbles": True})
        await expect(alice.page.locator(".row")).to_have_count(0)
        await devtools.send("Input.insertText", {"text": "你好"})
        await alice.composer.press("Enter")
        await alice.sees("你好", "sent")


async def test_hostile_texts_are_only_text(browser: Browser, server: ServerHandle) -> None:
    async with person(browser, server, "alice") as alice, server.chat("bob", to="alice") as bob:
        await alice.opens("bob")
        for number, text in enumerate(HOSTILE):
            await bob.send(f"m{number}\n{text}")
        await expect(alice.page.locator(".row")).to_have_count(len(HOSTILE))
        shown = await alice.page.locator(".row .text").evaluate_all("all => all.map((one) => one.textContent)")
        assert shown == [text.replace("\u202e", "\ufffd") for text in HOSTILE]
        assert await alice.page.evaluate("typeof hacked") == "undefined"
        assert await alice.page.locator(".row a").evaluate_all("all => all.map((one) => one.protocol)") == ["https:"]
        assert await alice.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


async def test_hostile_names_are_only_names(browser: Browser, server: ServerHandle) -> None:
    name = "<img src=x onerror=hacked=1>\u202e"
    async with person(browser, server, "alice") as alice:
        find = alice.page.get_by_role("textbox", name="Search")
        await find.fill(name)
        await find.press("Enter")
        await expect(alice.page.get_by_text("there is no such user")).to_be_visible()
        await alice.page.goto(f"{server.url}/chat/test?uid=alice&to_uid=%3Cimg%20src=x%20onerror=hacked=1%3E")
        await expect(alice.page.get_by_text("there is no such user")).to_be_visible()
        await expect(alice.composer).to_be_hidden()
        assert await alice.page.evaluate("typeof hacked") == "undefined"


async def test_a_link_with_an_endless_name_does_no_harm(browser: Browser, server: ServerHandle) -> None:
    """The server would close the socket permanently. The service worker shows the page for any address."""
    async with person(browser, server, "alice") as alice:
        await alice.page.evaluate("navigator.serviceWorker.ready")
        await alice.page.evaluate("caches.match('/')")
        await alice.page.evaluate("history.replaceState(null, '', `/chat/test?to_uid=${'x'.repeat(100_000)}`)")
        await alice.page.reload()
        await alice.opens("bob")
        await alice.writes("hello")
        await alice.sees("hello", "Sent")


@pytest.mark.parametrize("name", ["Call 555 now", "unknown\u202e", "System"])
async def test_a_link_cannot_put_words_into_the_page(browser: Browser, server: ServerHandle, name: str) -> None:
    """The page shows a name from an address only after the server has confirmed the user."""
    async with holding_proxy(server) as (outside, opened), at_a_browser(browser, outside, "alice") as someone:
        alice = await someone.window(f"/chat/test?{httpx.QueryParams({'uid': 'alice', 'to_uid': name})}#{name}")
        await alice.log_in()
        heading = alice.page.get_by_role("heading", level=2)
        await expect(heading).to_have_text("Conversation")
        await expect(alice.composer).to_be_hidden()
        opened.set()
        await expect(alice.page.get_by_text("there is no such user")).to_be_visible()
        await expect(heading).to_have_text("Conversation")
        await expect(alice.page.get_by_text(name)).to_have_count(0)


async def test_a_link_names_a_user_that_exists(browser: Browser, server: ServerHandle) -> None:
    async with at_a_browser(browser, server, "alice") as someone:
        alice = await someone.window("/chat/test?uid=alice&to_uid=bob")
        await alice.log_in()
        await expect(alice.page.get_by_role("heading", level=2, name="bob")).to_be_visible()
        await expect(alice.composer).to_be_focused()


LINKS = {
    "https://example.org/a?b=%20#c": "https://example.org/a?b=%20#c",
    "https://example.org/\u804a\u5929": "https://example.org/\u804a\u5929",
    "https://example.com/\u202egpj.exe": "https://example.com/%E2%80%AEgpj.exe",
    "https://example.com/a\u200bb": "https://example.com/a%E2%80%8Bb",
    "https://\u0435xample.com/x": "https://xn--xample-2of.com/x",
    "https://example.com\\@example.org/": "https://example.com/@example.org/",
    "https://example.com\u2044x.example.org": "https://example.xn--comx-2g7a.example.org/",
    "https://bank.example@thief.example/": "",
}


async def test_links_show_where_they_lead(browser: Browser, server: ServerHandle) -> None:
    async with person(browser, server, "alice") as alice, server.chat("bob", to="alice") as bob:
        await alice.opens("bob")
        for number, (text, shown) in enumerate(LINKS.items()):
            await bob.send(f"m{number}\nsee {text}")
            row = alice.page.locator(".row").last
            await expect(row).to_contain_text("see ")
            await expect(alice.page.locator(".row")).to_have_count(number + 1)
            await expect(row.locator("a")).to_have_text([shown] if shown else [])
            for href in await row.locator("a").evaluate_all("all => all.map((one) => [one.href, one.hostname])"):
                assert href[1] in shown


async def test_stacked_accents_stay_within_their_row(browser: Browser, server: ServerHandle) -> None:
    """The pixels of the row above are the same with and without accents."""
    async with person(browser, server, "alice") as alice, server.chat("bob", to="alice") as bob:
        await alice.opens("bob")
        await bob.send("m1\nabove")
        await bob.send("m2\n" + "c" + "\u0301\u0300\u0302\u0303" * 20)
        await expect(alice.page.locator(".row")).to_have_count(2)
        above, stacked = alice.page.locator(".row").first, alice.page.locator(".text").last
        drawn = await above.screenshot()
        await stacked.evaluate("element => element.style.visibility = 'hidden'")
        assert await above.screenshot() == drawn


async def test_a_name_cannot_turn_the_words_around_it(browser: Browser, tmp_path: Path) -> None:
    """Names are isolated from the direction of other text, and invisible characters become visible."""
    async with serving(tmp_path, StrangerLimit=0) as server:
        await server.add_users("alice", "\u05d0\u05d1", "bob")
        older = "bob\u034f"  # as users of earlier versions may be called
        sql(tmp_path, "UPDATE users SET name = ? WHERE name = 'bob'", older)
        server.tokens[older] = await server.login(older)
        async with person(browser, server, "alice") as alice:
            await alice.opens("\u05d0\u05d1")
            await expect(alice.page.locator(".beginning")).to_contain_text("\u2068\u05d0\u05d1\u2069")
            async with server.chat(older, to="alice") as bob:
                await bob.send("m1\nhello")
            await expect(alice.page.get_by_role("link", name="bob\ufffd")).to_be_visible()


async def test_a_megabyte_is_refused_with_words(browser: Browser, server: ServerHandle) -> None:
    async with person(browser, server, "alice") as alice:
        await alice.opens("bob")
        await alice.composer.fill("x" * 1_000_000)
        await alice.composer.press("Enter")
        await expect(alice.page.get_by_text("Too long: 1000000 bytes")).to_be_visible()
        await expect(alice.page.locator(".row")).to_have_count(0)
        assert await alice.composer.evaluate("element => element.value.length") == 1_000_000
        await alice.writes("short")
        await alice.sees("short", "sent")


async def test_errors_are_shown_at_their_fields(browser: Browser, server: ServerHandle) -> None:
    async with at_a_browser(browser, server, "alice") as someone:
        alice = await someone.window()
        name, password = alice.page.locator("#name"), alice.page.locator("#password")
        await name.fill("alice")
        await password.fill("wrong-password")
        await password.press("Enter")
        await expect(alice.page.locator("#password-error")).to_have_text("Wrong user name or password")
        await expect(password).to_be_focused()
        await alice.page.get_by_role("button", name="Register").click()
        await password.fill("1")
        await password.press("Enter")
        await expect(alice.page.locator("#name-error, #password-error")).to_contain_text(
            ["", "Too short: use at least 6 characters"]
        )
        await password.fill("x" * 73)
        await password.press("Enter")
        await expect(alice.page.locator("#password-error")).to_have_text("Too long: 72 bytes at most")
        await password.fill(PASSWORD)
        await name.fill("ＳＹＳＴＥＭ")
        await password.press("Enter")
        await expect(alice.page.locator("#name-error")).to_have_text("This name is reserved. Choose another one.")
        await name.fill("alice")
        await alice.page.get_by_role("button", name="中文").click()
        await password.press("Enter")
        await expect(alice.page.locator("#name-error")).to_have_text("这个名字已被使用")


async def test_the_password_stays_in_its_field_and_can_be_shown(browser: Browser, server: ServerHandle) -> None:
    async with at_a_browser(browser, server, "alice") as someone:
        alice = await someone.window()
        password = alice.page.locator("#password")
        await password.fill(PASSWORD)
        for name in ("Register", "中文", "English"):
            await alice.page.get_by_role("button", name=name).click()
            await expect(password).to_have_value(PASSWORD)
        await expect(password).to_have_attribute("type", "password")
        await alice.page.get_by_role("button", name="Show password").click()
        await expect(password).to_have_attribute("type", "text")


async def test_a_limit_says_how_long_to_wait(browser: Browser, tmp_path: Path) -> None:
    async with serving(tmp_path, LoginFailures=1, LoginWindow=4) as server:
        await server.add_users("alice")
        async with at_a_browser(browser, server, "alice") as someone:
            alice = await someone.window()
            await alice.page.locator("#name").fill("alice")
            for _ in range(2):
                await alice.page.locator("#password").fill("wrong-password")
                await alice.page.locator("#password").press("Enter")
                await expect(alice.page.locator("[aria-busy]")).to_have_count(0)
            await expect(alice.page.get_by_text("Too many attempts. Try again in 4 minutes.")).to_be_visible()


SCROLL_UP = """async () => {
  const scroller = document.querySelector(".scroller");
  const rows = () => [...scroller.querySelectorAll(".row")];
  const top = (row) => row.querySelector(".bubble").getBoundingClientRect().top;
  const frame = () => new Promise(requestAnimationFrame);
  const found = { most: 0, jump: 0, seen: new Set() };
  const note = () => {
    found.most = Math.max(found.most, rows().length);
    for (const row of rows()) found.seen.add(row.querySelector(".text").textContent);
  };
  while (!scroller.querySelector(".beginning").textContent) {
    note();
    scroller.scrollTop = 0;
    const [first] = rows();
    const place = top(first);
    while (rows()[0] === first && !scroller.querySelector(".beginning").textContent) await frame();
    if (first.isConnected) found.jump = Math.max(found.jump, Math.abs(top(first) - place));
  }
  note();
  return { ...found, seen: found.seen.size };
}"""


async def test_ten_thousand_messages_keep_the_document_small(browser: Browser, server: ServerHandle) -> None:
    async with server.chat("bob", to="alice") as bob:
        await bob.send_all(*(f"m{number}\nmessage {number}" for number in range(10_000)))
    async with person(browser, server, "alice") as alice:
        await alice.page.get_by_role("link", name="bob").click()
        await expect(alice.page.get_by_role("heading", name="999+ new messages")).to_be_in_viewport()
        await alice.page.get_by_role("button", name="new message").click()
        await alice.sees("message 9999")
        found = await alice.page.evaluate(SCROLL_UP)
        assert found["seen"] == 10_000
        assert found["most"] <= MOST_ROWS
        assert found["jump"] <= 1
        async with server.chat("bob", to="alice") as bob:
            await bob.send("last\nthe newest")
        await expect(alice.page.get_by_role("button", name="new message")).to_be_visible()
        await alice.misses("the newest")
        await alice.page.get_by_role("button", name="new message").click()
        await alice.sees("the newest")
        await expect(alice.page.get_by_role("button", name="new message")).to_be_hidden()
        assert await alice.page.locator(".row").count() <= MOST_ROWS
