"""No message is lost or duplicated if the network, the server or the session fails."""

import asyncio
import json
from pathlib import Path

import pytest
from playwright.async_api import Browser, Route, expect

from tests.browser.person import TELEPHONE, Window, at_a_browser, person
from tests.browser.proxy import bad_network, holding_proxy
from tests.harness import PASSWORD, TIMEOUT, ServerHandle, serving, subprocess_server, wait_until
from tests.servers import free_port

pytestmark = pytest.mark.asyncio(loop_scope="session")  # as the browser


async def test_no_message_is_lost_when_the_server_is_killed(browser: Browser, tmp_path: Path) -> None:
    data, texts = tmp_path / "data", [f"message {number}" for number in range(40)]
    port = free_port()
    async with subprocess_server(data, StrangerLimit=0, HttpPort=port) as first:
        await first.add_users("alice", "bob")
        async with person(browser, first, "alice") as alice, person(browser, first, "bob") as bob:
            await bob.opens("alice")
            await alice.page.bring_to_front()
            await alice.opens("bob")
            await alice.writes(*texts[:15])
            first.kill()
            await first.wait()
            await alice.writes(*texts[15:30])
            await expect(alice.page.get_by_text("Not connected")).to_be_visible()
            await alice.page.get_by_role("button", name="Retry now").click()
            async with subprocess_server(data, StrangerLimit=0, HttpPort=port):
                await alice.writes(*texts[30:])
                await expect(alice.page.get_by_role("img", name="waiting")).to_have_count(0)
                for window in (alice, bob):
                    await window.shows(texts)


async def test_actions_before_the_connection_are_done_after_it(browser: Browser, server: ServerHandle) -> None:
    async with holding_proxy(server) as (outside, opened), person(browser, outside, "alice") as alice:
        find = alice.page.get_by_role("textbox", name="Search")
        await find.fill("bob")
        await find.press("Enter")
        await expect(alice.page.get_by_role("button", name="Looking for")).to_be_visible()
        await expect(alice.page.get_by_text("Connecting…")).to_be_visible()  # it takes long
        await expect(alice.page.get_by_text("Loading…").first).to_be_visible()
        await expect(alice.page.get_by_text("Not connected")).to_have_count(0)
        await expect(alice.page.get_by_text("cannot be reached")).to_have_count(0)
        await expect(find).to_have_value("bob")
        opened.set()
        await expect(alice.composer).to_be_focused()
        await alice.writes("hello")
        await alice.sees("hello", "sent")


async def test_a_message_written_offline_survives_a_reload(browser: Browser, server: ServerHandle) -> None:
    async with person(browser, server, "alice") as alice:
        await alice.opens("bob")
        await alice.page.evaluate("navigator.serviceWorker.ready")
        await alice.set_offline(True)
        await alice.writes("written offline")
        await alice.composer.fill("a draft")
        await alice.sees("written offline", "waiting")
        await wait_until(lambda: keeps(alice, "written offline", "a draft"))
        await alice.page.reload()
        await alice.sees("written offline", "waiting")
        await expect(alice.composer).to_have_value("a draft")
        await alice.set_offline(False)
        await alice.sees("written offline", "sent")
        await expect(alice.composer).to_have_value("a draft")
        async with server.chat("bob", to="alice") as bob:
            [message, _] = await bob.ask(3)
            assert message["content"].endswith("\nwritten offline")


async def test_a_phone_on_a_lossy_network_loses_nothing(browser: Browser, server: ServerHandle) -> None:
    texts = [f"message {number}" for number in range(20)]
    async with (
        bad_network(server, 0.2, 300) as slow,
        person(browser, slow, "alice", **TELEPHONE) as alice,
        person(browser, server, "bob") as bob,
    ):
        await bob.opens("alice")
        await alice.opens("bob")
        await alice.writes(*texts)
        await bob.shows(texts)
        await bob.writes("thank you")
        await alice.shows([*texts, "thank you"])
        await expect(alice.page.get_by_role("img", name="Waiting")).to_have_count(0)


async def test_a_reconnection_shows_missed_and_no_deleted_messages(browser: Browser, server: ServerHandle) -> None:
    await server.make_contacts("alice", "bob")
    async with person(browser, server, "alice") as alice:
        await alice.opens("bob")
        await alice.writes("stays", "goes")
        await alice.sees("goes", "sent")
        await alice.set_offline(True)
        async with server.chat("bob", to="alice") as bob:
            page = await bob.ask(2, "-1")
            assert (await bob.answer(5, f"<{page[0]['id']}"))["op_type"] == 40013
            await bob.answer(4, "*")
            await bob.send_all(*(f"m{number}\nmissed {number}" for number in range(230)))
        await alice.set_offline(False)
        await alice.sees("missed 229")
        await alice.misses("goes")
        seen: list[str] = []
        async with asyncio.timeout(TIMEOUT):
            while "stays" not in seen:
                shown = await alice.page.locator(".row .text").all_inner_texts()
                seen = shown[: shown.index(seen[0])] + seen if seen else shown
                await alice.page.locator(".scroller").evaluate("element => element.scrollTop = 0")
        await alice.misses("goes")
        seen = [text for text in seen if text != "goes"]  # it was shown until the page was read again
        assert seen[-231:] == ["stays", *(f"missed {number}" for number in range(230))]


async def test_a_gap_is_shown_until_it_is_filled(browser: Browser, server: ServerHandle) -> None:
    await server.make_contacts("alice", "bob")
    async with person(browser, server, "alice") as alice:
        await alice.opens("bob")
        await alice.shows(["hello", "hello"])
        await alice.set_offline(True)
        async with server.chat("bob", to="alice") as bob:
            await bob.send("m1\nmissed")
            await alice.page.evaluate(HOLD_REQUESTS)
            await alice.set_offline(False)
            await expect(alice.page.get_by_role("link", name="bob").locator(".last")).to_have_text("missed")
            await bob.send("m2\nlive")
        await alice.shows(["hello", "hello", "live"])
        await expect(alice.page.locator(".row").filter(has_text="live").get_by_text("Loading…")).to_be_visible()
        await expect(alice.page.locator(".row .gap")).to_have_count(1)
        await wait_until(lambda: alice.page.evaluate("window.heldRequests() > 1"), "the read mark waits")
        await alice.page.evaluate("window.releaseRequests()")
        await alice.shows(["hello", "hello", "missed", "live"])
        await expect(alice.page.locator(".row .gap")).to_have_count(0)


# From the first request for a page on, hold back all requests, as a slow uplink does. To hold back the pages alone
# would break the order of the requests, by which the client finds the request that an answer belongs to.
HOLD_REQUESTS = """() => {
  const [send, held] = [WebSocket.prototype.send, []];
  WebSocket.prototype.send = function (text) {
    if (held.length || JSON.parse(text).op_type === 2) held.push([this, text]);
    else send.call(this, text);
  };
  window.heldRequests = () => held.length;
  window.releaseRequests = () => {
    WebSocket.prototype.send = send;
    for (const [socket, text] of held) send.call(socket, text);
  };
}"""


async def test_an_ended_session_asks_for_the_password_and_keeps_data(browser: Browser, server: ServerHandle) -> None:
    async with person(browser, server, "alice") as alice:
        await alice.opens("bob")
        await alice.set_offline(True)
        await alice.writes("not sent yet")
        await alice.composer.fill("a draft")
        new = {"user_name": "alice", "old_password": PASSWORD, "new_password": "another1"}
        token = await server.login("alice")
        changed = await server.post("/user/set_password", new, headers={"Authorization": f"Bearer {token}"})
        assert changed.status_code == 200
        await alice.set_offline(False)
        await expect(alice.page.get_by_text("You were logged out")).to_be_visible()
        await expect(alice.page.get_by_label("User name")).to_have_value("alice")
        await expect(alice.page.get_by_label("Password", exact=True)).to_be_focused()
        await alice.log_in("another1")
        await alice.page.get_by_role("link", name="bob").click()
        await alice.sees("not sent yet", "sent")
        await expect(alice.composer).to_have_value("a draft")


async def test_an_ended_session_shows_the_login_at_once(browser: Browser, server: ServerHandle) -> None:
    async with person(browser, server, "alice") as alice:
        await alice.opens("bob")
        new = {"user_name": "alice", "old_password": PASSWORD, "new_password": "another1"}
        token = await server.login("alice")
        await server.post("/user/set_password", new, headers={"Authorization": f"Bearer {token}"})
        await expect(alice.page.get_by_text("You were logged out")).to_be_visible()


STORED = """() => new Promise((resolve) => {
  const request = indexedDB.open("chat");
  request.onsuccess = () => {
    const [database, found] = [request.result, []];
    const transaction = database.transaction([...database.objectStoreNames]);
    for (const name of database.objectStoreNames) {
      transaction.objectStore(name).getAll().onsuccess = ({ target }) => found.push(...target.result);
    }
    transaction.oncomplete = () => {
      database.close();
      resolve(found);
    };
  };
})"""


async def test_a_logout_leaves_nothing_of_the_user_on_the_device(browser: Browser, tmp_path: Path) -> None:
    """Also in another window, and although the server closes the socket with 4001 before it answers the logout."""
    async with serving(tmp_path, StrangerLimit=1) as server, at_a_browser(browser, server, "alice") as someone:
        await server.add_users("alice", "bob")
        alice = await someone.window()
        await alice.log_in()
        await alice.opens("bob")
        await alice.writes("sent", "not sent")
        await alice.sees("not sent", "Waiting")
        await alice.composer.fill("a draft")
        other = await someone.window("/chat/test?uid=alice&to_uid=bob")
        await expect(other.composer).to_have_value("a draft")
        await wait_until(lambda: keeps(alice, "not sent", "a draft", "sent"))
        answered = asyncio.Event()

        async def late(route: Route) -> None:
            answer = await route.fetch()
            await answered.wait()
            await route.fulfill(response=answer)

        await someone.context.route("**/user/logout", late)
        await alice.page.bring_to_front()
        await alice.page.get_by_role("button", name="Settings").click()
        await alice.page.get_by_role("button", name="Log out").click()
        await alice.page.get_by_role("alertdialog").get_by_role("button", name="Log out").click()
        await expect(other.page.locator("#password")).to_be_visible()  # its socket was closed
        await expect(alice.page.locator("#password")).to_have_count(0)
        answered.set()
        for window in (alice, other):
            await expect(window.page.locator("#password")).to_be_visible()
            await expect(window.page).to_have_url(server.url + "/")
            await expect(window.page.locator("#name")).to_have_value("")
            await expect(window.page.get_by_text("alice")).to_have_count(0)
            await wait_until(lambda window=window: empty(window))
            assert "alice" not in await window.page.evaluate("JSON.stringify(localStorage)")
        await alice.page.go_back()
        await expect(alice.page).to_have_url(server.url + "/")


async def keeps(window: Window, *texts: str) -> bool:
    """Return whether the browser's database contains all of these."""
    stored = json.dumps(await window.page.evaluate(STORED))
    return all(json.dumps(text) in stored for text in texts)


async def empty(window: Window) -> bool:
    """Return whether the browser's database is empty."""
    return not await window.page.evaluate(STORED)


async def test_loaded_messages_are_shown_without_a_network(browser: Browser, server: ServerHandle) -> None:
    await server.make_contacts("alice", "bob")
    async with person(browser, server, "alice") as alice:
        await alice.opens("bob")
        await alice.shows(["hello", "hello"])
        await alice.page.evaluate("navigator.serviceWorker.ready")
        await wait_until(lambda: keeps(alice, "hello-alice-bob"))  # not only the newest message, which the list has
        await alice.set_offline(True)
        await alice.page.goto(server.url)
        await alice.page.get_by_role("link", name="bob").click()
        await alice.shows(["hello", "hello"])
        await alice.writes("written offline")
        await alice.sees("written offline", "Waiting")
        async with server.chat("bob", to="alice") as bob:
            await bob.send("m1\nwhile away")
        await alice.set_offline(False)
        await alice.sees("while away")
        await alice.sees("written offline", "Sent")


async def test_the_page_works_if_the_database_never_answers(browser: Browser, server: ServerHandle) -> None:
    async with at_a_browser(browser, server, "alice") as someone:
        await someone.context.add_init_script("IDBFactory.prototype.open = () => ({})")
        alice = await someone.window()
        await alice.log_in()
        await alice.opens("bob")
        await alice.writes("hello")
        await alice.sees("hello", "sent")


async def test_the_page_works_if_the_database_stops_answering(browser: Browser, server: ServerHandle) -> None:
    async with person(browser, server, "alice") as alice:
        await alice.page.evaluate("IDBObjectStore.prototype.put = IDBObjectStore.prototype.getAll = () => ({})")
        await alice.page.evaluate(
            "IDBDatabase.prototype.transaction = () => ({ objectStore: () => IDBObjectStore.prototype })"
        )
        await alice.opens("bob")
        await alice.writes("hello")
        await alice.sees("hello", "sent")
