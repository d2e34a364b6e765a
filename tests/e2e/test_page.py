"""The page and its files, as HTTP sees them."""

import re
from pathlib import Path

import pytest

from tests.e2e.answers import ask, refused, try_upgrade
from tests.harness import ServerHandle, serving

BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8", "Accept-Encoding": "gzip, br"}
LARGEST = 100_000  # bytes, of the page with all that it loads


def files_of(page: str) -> set[str]:
    """The addresses of the files that the page names."""
    return set(re.findall(r'"(/web/[^"]+)"', page))


async def test_the_root_is_the_page(server: ServerHandle) -> None:
    response = await ask(server, "GET", "/", headers=BROWSER)
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    assert response.text.startswith("<!doctype html>")
    assert "{" not in response.text


async def test_the_address_of_the_socket_is_the_page_where_a_browser_opens_it(server: ServerHandle) -> None:
    page = await ask(server, "GET", "/", headers=BROWSER)
    response = await ask(server, "GET", "/chat/test?uid=1&to_uid=2", headers=BROWSER)
    assert (response.status_code, response.content) == (200, page.content)
    assert "Accept" in response.headers["Vary"]


async def test_the_address_of_the_socket_is_the_socket_for_everybody_else(server: ServerHandle) -> None:
    refused(await ask(server, "GET", "/chat/test?uid=1&to_uid=2"), 426, 40014, "no_upgrade")
    refused(await try_upgrade(server, {"Accept": "text/html"}, uid="1"), 401, 41012, "not_logged_in")


async def test_nothing_inline_and_nothing_from_elsewhere_may_run(server: ServerHandle) -> None:
    for path in ("/", "/chat/test", "/sw.js"):
        response = await ask(server, "GET", path, headers=BROWSER)
        directives = dict(
            part.strip().partition(" ")[::2] for part in response.headers["Content-Security-Policy"].split(";")
        )
        assert directives["default-src"] == "'none'"
        assert directives["script-src"] == directives["style-src"] == directives["connect-src"] == "'self'"
        assert directives["require-trusted-types-for"] == "'script'"
        assert directives["frame-ancestors"] == directives["base-uri"] == "'none'"
        assert "unsafe" not in response.headers["Content-Security-Policy"]
        assert response.headers["X-Content-Type-Options"] == "nosniff"


async def test_the_page_is_asked_for_anew_and_its_files_are_kept(server: ServerHandle) -> None:
    page = await ask(server, "GET", "/", headers=BROWSER)
    assert page.headers["Cache-Control"] == "no-cache"
    for path in files_of(page.text):
        response = await ask(server, "GET", path, headers=BROWSER)
        assert response.status_code == 200, path
        assert "immutable" in response.headers["Cache-Control"]


@pytest.mark.parametrize("encoding", ["gzip", "identity"])
async def test_what_a_browser_has_already_is_not_sent_again(server: ServerHandle, encoding: str) -> None:
    headers = {"Accept": "text/html", "Accept-Encoding": encoding}
    first = await ask(server, "GET", "/", headers=headers)
    again = await ask(server, "GET", "/", headers=headers | {"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")
    other = {"gzip": "identity", "identity": "gzip"}[encoding]
    changed = await ask(server, "GET", "/", headers=headers | {"If-None-Match": '"other"'})
    assert (changed.status_code, changed.text) == (200, first.text)
    coded = await ask(server, "GET", "/", headers=headers | {"Accept-Encoding": other})
    assert coded.headers["ETag"] != first.headers["ETag"]


async def test_files_of_another_version_and_unknown_ones_are_404(server: ServerHandle) -> None:
    page = await ask(server, "GET", "/", headers=BROWSER)
    path = sorted(files_of(page.text))[0]
    version, name = path.split("/")[2:]
    for wrong in (
        f"/web/x/{name}",
        f"/web/{version}/x.js",
        f"/web/{version}/index.html",
        f"/web/{version}/..%2fapp.py",
    ):
        refused(await ask(server, "GET", wrong), 404, 404, "not_found")


async def test_the_manifest_names_icons_that_there_are(server: ServerHandle) -> None:
    page = await ask(server, "GET", "/", headers=BROWSER)
    [path] = [path for path in files_of(page.text) if path.endswith(".webmanifest")]
    icons = (await ask(server, "GET", path, headers=BROWSER)).json()["icons"]
    assert {"image/png", "image/svg+xml"} == {icon["type"] for icon in icons}
    for icon in icons:
        response = await ask(server, "GET", path.rpartition("/")[0] + "/" + icon["src"], headers=BROWSER)
        assert (response.status_code, response.headers["Content-Type"]) == (200, icon["type"])


async def test_the_page_with_all_it_loads_is_small(server: ServerHandle) -> None:
    sent = 0
    async with server.client(headers=BROWSER) as client:
        page = await client.get("/")
        for path in {"/", "/sw.js"} | files_of(page.text):
            response = await client.get(path)
            assert response.headers["Content-Encoding"] == "gzip"
            sent += int(response.headers["Content-Length"])
    assert sent < LARGEST


async def test_the_page_knows_the_server_s_limits(tmp_path: Path) -> None:
    async with serving(tmp_path, MaxTextBytes=100, MaxFrameBytes=1000, Registration="closed") as server:
        page = (await ask(server, "GET", "/", headers=BROWSER)).text
        assert 'data-max-text="100" data-max-frame="1000" data-min-password="6" data-registration="closed"' in page
