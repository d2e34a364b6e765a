"""All views of the page, on a server with some days of conversations."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from playwright.async_api import expect

from tests.browser.person import UNDO, Window
from tests.harness import ManualClock, ServerHandle, serving, wait_until

DAY = 86_400
LONG = "Wolfeschlegelsteinhausenbergerdorff.Hubert.Blaine_1914"
ME, FRIEND, GROUP = "ada", "grace", "#compilers"
TALK = [
    (FRIEND, "Did you see the talk about the first compilers?"),
    (FRIEND, "The slides are at https://example.org/compilers?year=1952"),
    (ME, "Yes! I liked the part where nobody believed that it could work."),
    (FRIEND, "“Nobody believed that,” as she said. “I had a running compiler and nobody would touch it.”"),
    (ME, "明天见！午饭吃什么？ 🍜"),
    (FRIEND, "Noodles. There is a new place:\n\n1. by the river\n2. opposite the library\n3. open until nine"),
    (ME, "שלום, נתראה מחר"),
    (ME, "The one by the river then, at one."),
]
OTHERS = {
    "小明": "周末一起去爬山吗？天气预报说是晴天 ☀️",
    LONG: "My name does not fit anywhere, and this message is rather long as well, so both are cut off at the end.",
    "عمر": "مرحبا! كيف حالك اليوم؟",
    "edsger": "Simplicity is prerequisite for reliability.",
    "barbara": "See you on Monday.",
}


@asynccontextmanager
async def full(folder: Path) -> AsyncIterator[ServerHandle]:
    """A server with some days of conversations."""
    clock = ManualClock()
    clock.shift = -2 * DAY
    async with serving(folder, clock, StrangerLimit=6) as server:
        await server.add_users(ME, FRIEND, "nobody", *OTHERS)
        for number, (name, text) in enumerate(OTHERS.items()):
            clock.shift = (number - len(OTHERS)) * DAY
            async with server.chat(name, to=ME) as chat:
                await chat.send(f"m1\n{text}")
        for number, (name, text) in enumerate(TALK):
            clock.shift = -DAY + number * 300 if number < 4 else -600 + number * 60
            async with server.chat(name, to=FRIEND if name == ME else ME, sync=True) as chat:
                await chat.send(f"t{number}\n{text}")
                await chat.answer(4, "*")
        clock.shift = 0
        yield server


async def views(ada: Window, server: ServerHandle) -> AsyncIterator[str]:
    """Go through all views and yield the name of each. `ada` is not logged in at the start."""
    page = ada.page
    await page.locator("#name").press("Enter")
    yield "login"
    await ada.log_in()
    await expect(page.locator(".conversations li").nth(len(OTHERS) + 1)).to_be_visible()
    yield "list"
    await page.locator(".conversations a").filter(has_text="barbara").click()
    await ada.sees(OTHERS["barbara"])
    yield "unread"
    await page.go_back()
    await talk(ada)
    yield "talk"
    row = page.locator(".row").last
    await row.press("Enter")
    yield "actions"
    await page.keyboard.press("Escape")
    await ada.hold_timers(UNDO)
    await row.press("Delete")
    yield "deleted"
    await page.get_by_role("button").filter(has_text="Undo").or_(page.get_by_text("撤销")).click()
    await ada.writes("x" * 20_000)
    yield "error"
    await ada.composer.fill("")
    await page.goto(server.url + f"/chat/test?uid={ME}&to_uid=nobody")
    await ada.writes(*(f"{number}" for number in range(7)))
    await expect(page.locator(".hint")).not_to_be_empty()
    yield "refused"
    await page.context.set_offline(True)
    await ada.writes("offline")
    await expect(page.locator(".status")).not_to_be_empty()
    yield "offline"
    await page.goto(server.url)
    await page.locator(".side .bar .icon-button").click()
    await page.locator(".sheet .danger").click()
    yield "question"
    await page.keyboard.press("Escape")
    await wait_until(lambda: page.evaluate("!history.state?.dialog"))  # the page goes a step back by itself
    await page.context.set_offline(False)
    await page.goto(server.url)
    await page.locator(".side .bar .icon-button").click()
    await page.locator("summary").click()
    yield "settings"
    async for view in group_views(ada, server):
        yield view


async def group_views(ada: Window, server: ServerHandle) -> AsyncIterator[str]:
    """Create a group, and delete it again."""
    page = ada.page
    await page.goto(server.url)
    await page.locator(".find .icon-button").click()
    await page.locator("#group-name").fill(GROUP[1:])
    await page.locator(".people label").filter(has_text="barbara").click()
    await page.locator("#other-people").fill(f"{FRIEND} {LONG}")
    yield "new-group"
    await page.locator("#group-name").press("Enter")
    await expect(ada.composer).to_be_visible()
    for number, name in enumerate((FRIEND, LONG)):
        async with server.chat(name, to=GROUP) as chat:
            await chat.send(f"m{number}\nThank you for adding me!")
    await ada.writes("You are welcome.")
    await ada.sees("You are welcome.")
    yield "group"
    await page.locator(".talk .bar .icon-button:visible").last.click()
    await page.locator("summary").click()
    yield "members"
    await page.locator(".sheet .danger").last.click()
    await page.locator(".question .danger").click()
    await expect(ada.composer).to_be_hidden()
    yield "left"


async def talk(ada: Window) -> None:
    """Open the conversation."""
    await ada.page.locator(".conversations a").filter(has_text=FRIEND).click()
    await ada.sees(TALK[-1][1])
