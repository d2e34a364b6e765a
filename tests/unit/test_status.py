"""docs/protocol.md and the code agree: codes, reasons, routes, ops and settings."""

import gc
import re
from itertools import dropwhile, takewhile

import msgspec
from aiohttp.web import UrlDispatcher

from chat_server.api.envelope import HTTP_CODES
from chat_server.conf.settings import SECTIONS
from chat_server.status import LANGUAGES, Reason, Status, text
from tests.e2e.http_helpers import ENDPOINTS, REASONS
from tests.harness import ROOT, ServerHandle

PROTOCOL = (ROOT / "docs" / "protocol.md").read_text("utf-8")
# Protocol section 4: each code with its meaning.
CODES = {
    200: "ok",
    400: "bad request",
    404: "not found",
    40000: "frame not understood",
    40001: "understood",
    40002: "connecting failed",
    40003: "connected",
    40004: "history failed",
    40005: "history",
    40006: "mark read failed",
    40007: "marked read",
    40008: "send failed",
    40009: "sent",
    40010: "receive failed",
    40011: "message received",
    40012: "delete failed",
    40013: "deleted",
    40014: "socket not created",
    40015: "created",
    40016: "disconnect failed",
    40017: "disconnected",
    40018: "receiver online",
    40019: "offline",
    40020: "sending refused (harassment)",
    40021: "allowed again",
    40022: "conversations failed",
    40023: "conversations",
    40024: "typing failed",
    40025: "typing",
    40027: "presence",
    44444: "unknown status",
    41000: "register failed",
    41001: "registered",
    41002: "login failed",
    41003: "logged in",
    41004: "set password failed",
    41005: "password set",
    41006: "no such user",
    41007: "user exists",
    41008: "session not stored",
    41009: "stored",
    41010: "wrong password",
    41011: "right password",
    41012: "not logged in",
    41013: "already logged in",
    41014: "logout failed",
    41015: "logged out",
    42000: "creating the group failed",
    42001: "group created",
    42002: "adding members failed",
    42003: "members added",
    42004: "removing the member failed",
    42005: "member removed",
    42006: "deleting the group failed",
    42007: "group deleted",
    42008: "group members failed",
    42009: "group members",
    42011: "group changed",
    43000: "block failed",
    43001: "blocked",
    43002: "unblock failed",
    43003: "unblocked",
    43004: "blocked users failed",
    43005: "blocked users",
}


def table(heading: str) -> list[list[str]]:
    """Return the rows of the first table below a heading of docs/protocol.md, without its header."""
    _, found, rest = PROTOCOL.partition(f"\n{heading}\n")
    assert found, heading
    lines = dropwhile(lambda line: not line.startswith("|"), rest.splitlines())
    rows = list(takewhile(lambda line: line.startswith("|"), lines))
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows[2:]]


# --- codes and their texts


def test_status_codes_are_those_of_the_contract() -> None:
    assert {status.value for status in Status} == set(CODES)


def test_every_status_has_a_text_in_every_language() -> None:
    assert LANGUAGES == ("zh", "en")
    for status in Status:
        chinese, english = (text(status, language) for language in LANGUAGES)
        assert re.search("[\u4e00-\u9fff]", chinese), status
        assert re.fullmatch("[a-z][a-z ,]+", english), status
    for language in LANGUAGES:
        assert len({text(status, language) for status in Status}) == len(Status)


def test_the_table_of_codes_equals_the_enum() -> None:
    rows = table("## 4. Status codes")
    assert [(int(code), name, english) for code, name, english in rows] == [
        (status.value, status.name, text(status, "en")) for status in Status
    ]


def test_the_page_mentions_only_known_codes() -> None:
    assert {int(code) for code in re.findall(r"\b4[01234]\d{3}\b", PROTOCOL)} == {
        status.value for status in Status if status > 999
    }


# --- reasons


def test_reasons_are_those_of_the_contract() -> None:
    assert {reason.value for reason in Reason} == REASONS


def test_the_table_of_reasons_equals_the_enum() -> None:
    assert [row[0] for row in table("### Reasons")] == [f"`{reason}`" for reason in Reason]


def test_three_reasons_are_worth_a_retry() -> None:
    retryable = {row[0].strip("`") for row in table("### Reasons") if row[2].startswith("yes")}
    assert retryable == {"store_away", "too_many", "internal"}


# --- HTTP


def test_the_table_of_http_codes_is_complete() -> None:
    listed = {int(row[0]) for row in table("### HTTP codes")}
    assert listed == {200, 400, *HTTP_CODES.values()}


async def test_the_table_of_endpoints_lists_every_route(server: ServerHandle) -> None:
    listed = {tuple(row[0].split("`")[1].split()) for row in table("### Endpoints")}
    dispatchers = [found for found in gc.get_objects() if type(found) is UrlDispatcher]
    tables = [
        {(route.method, route.resource.canonical) for route in dispatcher.routes() if route.resource}
        for dispatcher in dispatchers
    ]
    routes = {route for routes in tables if ("GET", "/ping") in routes for route in routes if route[0] != "HEAD"}
    assert listed == routes


def test_the_table_of_endpoints_lists_fields_and_failures() -> None:
    rows = {row[0].split("`")[1].split()[1]: " ".join(row[2:]) for row in table("### Endpoints")}
    for path, (fields, failed) in ENDPOINTS.items():
        assert str(failed) in rows[path]
        listed = next(row[1] for row in table("### Endpoints") if f" {path}`" in row[0])
        assert listed == ", ".join(f"`{field}`" for field in fields)


# --- ops and frames


async def test_the_table_of_ops_is_that_of_the_server(server: ServerHandle) -> None:
    listed = {int(op): int(re.findall(r"\d{5}", refused)[-1]) for op, *_, refused in table("### Ops")}
    known = {}
    async with server.chat("1", to="2") as one:
        for op in range(-1, 20):
            refusal = await one.answer(op, "" if op in (1, 6) else "?")
            if refusal["reason"] != "unknown_op":
                known[op] = refusal["op_type"]
    assert known == listed


def test_the_table_of_close_codes_is_complete() -> None:
    assert [int(row[0]) for row in table("### Close codes")] == [1001, 1002, 1003, 1007, 1008, 1009, 1011, 1013, 4001]


# --- settings


def test_defaults_on_the_page_are_those_of_the_settings() -> None:
    """The page writes a setting as `Name` (10), `Name` (64 KiB) or `Name`, 30."""
    defaults = {
        field.encode_name: field.default
        for group in SECTIONS["service"].values()
        for field in msgspec.structs.fields(group)
    }
    listed = re.findall(r"`([A-Z]\w+)`(?:,| \() ?(\d+|off)( KiB)?", PROTOCOL)
    assert len(listed) > 15
    for name, number, kilo in listed:
        if name == "ALL":
            continue  # the receiver of broadcasts
        value = 0 if number == "off" else int(number) * (1024 if kilo else 1)
        assert (name, defaults[name]) == (name, value)


def test_the_page_names_only_existing_settings() -> None:
    known = {
        field.encode_name
        for groups in SECTIONS.values()
        for group in groups.values()
        for field in msgspec.structs.fields(group)
    }
    headers = {"Content", "Authorization", "Origin", "Accept", "Upgrade"}
    for name in re.findall(r"`([A-Z][a-z]+[A-Z]\w+)`", PROTOCOL):
        assert name in known | headers


def test_every_relative_link_of_the_documents_works() -> None:
    for document in (ROOT / "docs").glob("*.md"):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text("utf-8")):
            assert (document.parent / target).exists(), (document.name, target)
