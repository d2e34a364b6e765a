"""docs/openapi.yaml and docs/asyncapi.yaml describe the server correctly.

In addition, tests/harness.py checks every response and every frame of all tests against them.
"""

import asyncio
import json
import re
import sys
from pathlib import Path

import httpx
import pytest

from tests import api_schemas
from tests.e2e.http_helpers import send_request
from tests.harness import ROOT, TIMEOUT, UNCOUNTED_ENVIRON, ServerHandle, subprocess_server

# schemathesis does not know the upgrade, without which this path always answers 426.
CONFIG = """
hooks = "tests.e2e.formats"
[warnings]
fail-on = false
[[operations]]
include-path = "/chat/test"
[operations.checks]
positive_data_acceptance.expected-statuses = [426]
negative_data_rejection.expected-statuses = [401, 426]
"""


async def test_the_served_openapi_document_is_the_one_in_docs(server: ServerHandle) -> None:
    response = await send_request(server, "GET", "/openapi.json")
    assert response.headers["Content-Type"] == "application/json"
    assert response.json() == api_schemas.document("openapi.yaml"), "make openapi"


async def test_openapi_has_the_endpoints_of_the_protocol() -> None:
    table = re.findall(r"^\| `(GET|POST) (/[^`]*)`", (ROOT / "docs/protocol.md").read_text("utf-8"), re.MULTILINE)
    paths = api_schemas.document("openapi.yaml")["paths"]
    found = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    assert found == set(table) - {("GET", path) for path in ("/", "/sw.js", "/web/{version}/{name}")}


@pytest.mark.timeout(420)
async def test_schemathesis_finds_no_error(tmp_path: Path) -> None:
    """All checks of schemathesis pass, for valid and for invalid requests."""
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG)
    async with subprocess_server(
        tmp_path / "data", LoginFailures=1_000_000, LoginFailuresPerAddress=1_000_000, GroupsPerUser=1000
    ) as server:
        await server.add_users("1")
        command = [
            *("--config-file", str(config), "run", f"{server.url}/openapi.json"),
            *("--checks", "all", "--max-examples", "15", "--generation-database", "none", "--no-color"),
            # Most generated passwords are invalid. Filtering them is slow but not an error.
            "--suppress-health-check=filter_too_much",
            *("-H", f"Authorization: Bearer {server.tokens['1']}"),
        ]
        program = str(Path(sys.executable).with_name("st"))
        environ = {**UNCOUNTED_ENVIRON, "PYTHONPATH": str(ROOT)}
        run = await asyncio.create_subprocess_exec(
            program,
            *command,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=environ,
            cwd=tmp_path,  # it writes files to the current folder
        )
        async with asyncio.timeout(6 * TIMEOUT):
            output, _ = await run.communicate()
    assert run.returncode == 0, output.decode()
    assert "16 selected / 16 total" in output.decode()


# --- the checks of the descriptions detect errors

ANSWER = {"from": "System", "to": "1", "type": 1, "op_type": 40018, "content": "", "msg": "sent", "id": "a", "time": 1}


@pytest.mark.parametrize("wrong", [{"more": 1}, {"type": 2}, {"from": "2"}, {"op_type": 40017}, {"time": "1"}])
def test_check_frame_rejects_an_undescribed_frame(wrong: dict[str, object]) -> None:
    api_schemas.check_frame(json.dumps(ANSWER))
    with pytest.raises(AssertionError):
        api_schemas.check_frame(json.dumps(ANSWER | wrong))


def test_check_frame_rejects_a_frame_with_a_missing_key() -> None:
    for key in ANSWER:
        with pytest.raises(AssertionError):
            api_schemas.check_frame(json.dumps({other: value for other, value in ANSWER.items() if other != key}))


CHANGE = {"from": "System", "to": "#team", "type": 1, "op_type": 42011, "content": "+1\n!1", "msg": "changed"}
READ = {"from": "1", "to": "#team", "type": 2, "op_type": 40007, "content": "a/2", "msg": "read"}


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        (CHANGE, {"to": "1"}),
        (CHANGE, {"from": "1"}),
        (CHANGE, {"content": "1"}),
        (CHANGE, {"content": ""}),
        (READ, {"content": "a"}),
        (READ, {"to": "2"}),
        (READ | {"op_type": 40013, "content": "a/1\na/2"}, {"content": ">a"}),
    ],
)
def test_check_frame_tells_events_of_groups_from_others(right: dict[str, object], wrong: dict[str, object]) -> None:
    api_schemas.check_frame(json.dumps(right))
    with pytest.raises(AssertionError):
        api_schemas.check_frame(json.dumps(right | wrong))


def test_is_valid_request_tells_valid_from_invalid_requests() -> None:
    for right in ('{"op_type": 1}', '{"op_type": 7, "content": "-1", "from": "", "to": "2", "type": 1, "more": 1}'):
        assert api_schemas.is_valid_request(right)
    for wrong in ("", "null", "[]", "{}", '{"op_type": 9}', '{"op_type": "1"}', '{"op_type": 1, "to": 2}'):
        assert not api_schemas.is_valid_request(wrong)


FAILURE = {"status": 41010, "data": {"reason": "wrong_password", "field": None}, "msg": "wrong", "error": "wrong"}


def test_check_response_rejects_an_undescribed_response() -> None:
    def answer(code: int, **keys: object) -> httpx.Response:
        request = httpx.Request("POST", "http://chat.example/user/login")
        return httpx.Response(code, json=FAILURE | keys, request=request)

    api_schemas.check_response(answer(401))
    for wrong in (answer(402), answer(429), answer(401, status=41012), answer(401, error=""), answer(401, more=1)):
        with pytest.raises(AssertionError):
            api_schemas.check_response(wrong)
