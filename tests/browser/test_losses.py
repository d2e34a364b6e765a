"""Nothing that was written is lost or doubled, whatever happens to the network, the server and the session."""

from pathlib import Path

import pytest
from playwright.async_api import Browser, expect

from tests.browser.door import door
from tests.browser.person import at_a_browser, person
from tests.harness import PASSWORD, Server, process
from tests.servers import free_port

pytestmark = pytest.mark.asyncio(loop_scope="session")  # as the browser


async def test_the_server_is_killed_while_messages_are_under_way(browser: Browser, tmp_path: Path) -> None:
    data, texts = tmp_path / "data", [f"message {number}" for number in range(40)]
    port = free_port()
    async with process(data, StrangerLimit=0, HttpPort=port) as first:
        await first.users("alice", "bob")
        async with person(browser, first, "alice") as alice, person(browser, first, "bob") as bob:
            await bob.opens("alice")
            await alice.page.bring_to_front()
            await alice.opens("bob")
            await alice.writes(*texts[:15])
            first.kill()
            await first.ended()
            await alice.writes(*texts[15:30])
            await expect(alice.page.get_by_text("Not connected")).to_be_visible()
            async with process(data, StrangerLimit=0, HttpPort=port):
                await alice.writes(*texts[30:])
                await expect(alice.page.get_by_role("img", name="waiting")).to_have_count(0)
                for window in (alice, bob):
                    await window.shows(texts)


async def test_what_is_done_before_the_connection_is_there_is_done_once_it_is(browser: Browser, server: Server) -> None:
    async with door(server) as (outside, opened), person(browser, outside, "alice") as alice:
        find = alice.page.get_by_role("textbox", name="Find")
        await find.fill("bob")
        await find.press("Enter")
        await expect(alice.page.get_by_role("button", name="Looking for bob")).to_be_visible()
        await expect(alice.page.get_by_text("Not connected")).to_be_visible()  # it takes long
        await expect(alice.page.get_by_text("cannot be reached")).to_have_count(0)
        await expect(find).to_have_value("bob")
        opened.set()
        await expect(alice.composer).to_be_focused()
        await alice.writes("hello")
        await alice.sees("hello", "sent")


async def test_what_was_written_without_a_network_survives_a_reload(browser: Browser, server: Server) -> None:
    async with at_a_browser(browser, server, "alice") as someone:
        alice = await someone.window()
        await alice.log_in()
        await alice.opens("bob")
        await alice.page.evaluate("navigator.serviceWorker.ready")
        await someone.context.set_offline(True)
        await alice.writes("written offline")
        await alice.composer.fill("a draft")
        await alice.sees("written offline", "waiting")
        await alice.page.reload()
        await alice.sees("written offline", "waiting")
        await expect(alice.composer).to_have_value("a draft")
        await someone.context.set_offline(False)
        await alice.sees("written offline", "sent")
        await expect(alice.composer).to_have_value("a draft")
        async with server.chat("bob", to="alice") as bob:
            [message, _] = await bob.ask(3)
            assert message["content"].endswith("\nwritten offline")


async def test_what_was_missed_is_there_without_gaps_and_what_was_deleted_is_not(
    browser: Browser, server: Server
) -> None:
    await server.friends("alice", "bob")
    async with at_a_browser(browser, server, "alice") as someone:
        alice = await someone.window()
        await alice.log_in()
        await alice.opens("bob")
        await alice.writes("stays", "goes")
        await alice.sees("goes", "sent")
        await someone.context.set_offline(True)
        async with server.chat("bob", to="alice") as bob:
            page = await bob.ask(2, "-1")
            assert (await bob.answer(5, f"<{page[0]['id']}"))["op_type"] == 40013
            await bob.answer(4, "*")
            for number in range(230):
                await bob.put(1, f"m{number}\nmissed {number}")
            await bob.ask(2, "-1")
        await someone.context.set_offline(False)
        await alice.sees("missed 229")
        await alice.misses("goes")
        seen: list[str] = []
        while "stays" not in seen:
            shown = await alice.page.locator(".row .text").all_inner_texts()
            seen = shown[: shown.index(seen[0])] + seen if seen else shown
            await alice.page.locator(".scroller").evaluate("element => element.scrollTop = 0")
        assert seen[-231:] == ["stays", *(f"missed {number}" for number in range(230))]


async def test_a_session_that_ended_elsewhere_asks_for_the_password_and_keeps_everything(
    browser: Browser, server: Server
) -> None:
    async with at_a_browser(browser, server, "alice") as someone:
        alice = await someone.window()
        await alice.log_in()
        await alice.opens("bob")
        await someone.context.set_offline(True)
        await alice.writes("not sent yet")
        await alice.composer.fill("a draft")
        new = {"user_name": "alice", "old_password": PASSWORD, "new_password": "another1"}
        token = await server.login("alice")
        changed = await server.post("/user/set_password", new, headers={"Authorization": f"Bearer {token}"})
        assert changed.status_code == 200
        await someone.context.set_offline(False)
        await expect(alice.page.get_by_text("Your session has ended")).to_be_visible()
        await expect(alice.page.get_by_label("User name")).to_have_value("alice")
        await expect(alice.page.get_by_label("Password", exact=True)).to_be_focused()
        await alice.log_in("another1")
        await alice.page.get_by_role("link", name="bob").click()
        await alice.sees("not sent yet", "sent")
        await expect(alice.composer).to_have_value("a draft")


async def test_a_socket_whose_session_ends_shows_the_login_at_once(browser: Browser, server: Server) -> None:
    async with person(browser, server, "alice") as alice:
        await alice.opens("bob")
        new = {"user_name": "alice", "old_password": PASSWORD, "new_password": "another1"}
        token = await server.login("alice")
        await server.post("/user/set_password", new, headers={"Authorization": f"Bearer {token}"})
        await expect(alice.page.get_by_text("Your session has ended")).to_be_visible()
