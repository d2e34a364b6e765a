"""The HTTP responses with the web page and its files."""

import re
from pathlib import Path

import pytest

from tests.e2e.http_helpers import check_refusal, send_request, try_upgrade
from tests.harness import ROOT, ServerHandle, serving

BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8", "Accept-Encoding": "gzip, br"}
WEB = ROOT / "chat_server" / "web"
MAX_PAGE_BYTES = 100_000  # of the page and all files that it loads


def files_of(page: str) -> set[str]:
    """Return the paths of the files that the page references."""
    return set(re.findall(r'"(/web/[^"]+)"', page))


async def test_the_root_path_serves_the_page(server: ServerHandle) -> None:
    response = await send_request(server, "GET", "/", headers=BROWSER)
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    assert response.text.startswith("<!doctype html>")
    assert "{" not in response.text


async def test_a_browser_gets_the_page_at_the_path_of_the_socket(server: ServerHandle) -> None:
    page = await send_request(server, "GET", "/", headers=BROWSER)
    response = await send_request(server, "GET", "/chat/test?uid=1&to_uid=2", headers=BROWSER)
    assert (response.status_code, response.content) == (200, page.content)
    assert "Accept" in response.headers["Vary"]


async def test_other_clients_get_no_page_at_the_path_of_the_socket(server: ServerHandle) -> None:
    check_refusal(await send_request(server, "GET", "/chat/test?uid=1&to_uid=2"), 426, 40014, "no_upgrade")
    check_refusal(await try_upgrade(server, {"Accept": "text/html"}, uid="1"), 401, 41012, "not_logged_in")


async def test_the_page_forbids_inline_and_foreign_code(server: ServerHandle) -> None:
    for path in ("/", "/chat/test", "/sw.js"):
        response = await send_request(server, "GET", path, headers=BROWSER)
        directives = dict(
            part.strip().partition(" ")[::2] for part in response.headers["Content-Security-Policy"].split(";")
        )
        assert directives["default-src"] == "'none'"
        assert directives["script-src"] == directives["style-src"] == directives["connect-src"] == "'self'"
        assert directives["require-trusted-types-for"] == "'script'"
        assert directives["frame-ancestors"] == directives["base-uri"] == "'none'"
        assert "unsafe" not in response.headers["Content-Security-Policy"]
        assert response.headers["X-Content-Type-Options"] == "nosniff"


async def test_the_page_is_revalidated_and_its_files_are_immutable(server: ServerHandle) -> None:
    page = await send_request(server, "GET", "/", headers=BROWSER)
    assert page.headers["Cache-Control"] == "no-cache"
    for path in files_of(page.text):
        response = await send_request(server, "GET", path, headers=BROWSER)
        assert response.status_code == 200, path
        assert "immutable" in response.headers["Cache-Control"]


@pytest.mark.parametrize("encoding", ["gzip", "identity"])
async def test_a_cached_page_is_not_sent_again(server: ServerHandle, encoding: str) -> None:
    headers = {"Accept": "text/html", "Accept-Encoding": encoding}
    first = await send_request(server, "GET", "/", headers=headers)
    again = await send_request(server, "GET", "/", headers=headers | {"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")
    other = {"gzip": "identity", "identity": "gzip"}[encoding]
    changed = await send_request(server, "GET", "/", headers=headers | {"If-None-Match": '"other"'})
    assert (changed.status_code, changed.text) == (200, first.text)
    coded = await send_request(server, "GET", "/", headers=headers | {"Accept-Encoding": other})
    assert coded.headers["ETag"] != first.headers["ETag"]


async def test_unknown_files_and_other_versions_are_404(server: ServerHandle) -> None:
    page = await send_request(server, "GET", "/", headers=BROWSER)
    path = sorted(files_of(page.text))[0]
    version, name = path.split("/")[2:]
    for wrong in (
        f"/web/x/{name}",
        f"/web/{version}/x.js",
        f"/web/{version}/index.html",
        f"/web/{version}/..%2fapp.py",
    ):
        check_refusal(await send_request(server, "GET", wrong), 404, 404, "not_found")


async def test_the_icons_of_the_manifest_exist(server: ServerHandle) -> None:
    page = await send_request(server, "GET", "/", headers=BROWSER)
    [path] = [path for path in files_of(page.text) if path.endswith(".webmanifest")]
    icons = (await send_request(server, "GET", path, headers=BROWSER)).json()["icons"]
    assert {"image/png", "image/svg+xml"} == {icon["type"] for icon in icons}
    for icon in icons:
        response = await send_request(server, "GET", path.rpartition("/")[0] + "/" + icon["src"], headers=BROWSER)
        assert (response.status_code, response.headers["Content-Type"]) == (200, icon["type"])


async def test_the_page_lists_every_module(server: ServerHandle) -> None:
    """The service worker stores the files that the page names, and loads no other file without a network."""
    page = await send_request(server, "GET", "/", headers=BROWSER)
    listed = {path.rpartition("/")[2] for path in files_of(page.text) if path.endswith(".js")}
    assert listed == {file.name for file in WEB.glob("*.js")} - {"sw.js"}


async def test_the_page_and_its_files_are_small(server: ServerHandle) -> None:
    sent = 0
    async with server.client(headers=BROWSER) as client:
        page = await client.get("/")
        for path in {"/", "/sw.js"} | files_of(page.text):
            response = await client.get(path)
            assert response.headers["Content-Encoding"] == "gzip"
            sent += int(response.headers["Content-Length"])
    assert sent < MAX_PAGE_BYTES


async def test_the_page_contains_the_limits_of_the_server(tmp_path: Path) -> None:
    async with serving(tmp_path, MaxTextBytes=100, MaxFrameBytes=1000, Registration="closed") as server:
        page = (await send_request(server, "GET", "/", headers=BROWSER)).text
        assert 'data-max-text="100" data-max-frame="1000" data-min-password="6" data-registration="closed"' in page
