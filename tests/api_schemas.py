"""Validate HTTP responses and frames against docs/openapi.yaml and docs/asyncapi.yaml.

tests/harness.py passes every response and every frame to this module, so the two documents stay correct.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import yaml
from jsonschema import Draft202012Validator

DOCS = Path(__file__).resolve().parent.parent / "docs"


@cache
def document(name: str) -> Any:
    """Return the parsed YAML document docs/`name`."""
    return yaml.safe_load((DOCS / name).read_text("utf-8"))


def check_response(response: httpx.Response) -> None:
    """Fail unless docs/openapi.yaml describes this response for its path, method and code."""
    request = response.request
    paths = document("openapi.yaml")["paths"]
    operation = paths.get(request.url.path, {}).get(request.method.lower())
    if operation is None:  # 404, 405 or the web page
        return
    code = str(response.status_code)
    assert code in operation["responses"], f"{request.method} {request.url.path} answered {code}: {response.text}"
    expected = _resolve("openapi.yaml", operation["responses"][code])
    for name, header in expected.get("headers", {}).items():
        assert name in response.headers or not _resolve("openapi.yaml", header).get("required"), name
    content = expected.get("content", {})
    kind = response.headers.get("Content-Type", "").partition(";")[0]
    assert kind in content or not response.content, kind
    if response.content and kind == "application/json":
        _validate(_response_validator(request.url.path, request.method.lower(), code, kind), response.json())


def check_frame(text: str) -> None:
    """Fail unless docs/asyncapi.yaml describes this frame from the server."""
    frame = json.loads(text)
    validators = _server_frame_validators()[frame.get("op_type")]
    assert any(validator.is_valid(frame) for validator in validators), f"not in docs/asyncapi.yaml: {text[:500]}"


def is_valid_request(text: str) -> bool:
    """Return whether docs/asyncapi.yaml describes this frame from a client. The server accepts such a frame."""
    try:
        frame = json.loads(text)
    except ValueError:
        return False
    return any(validator.is_valid(frame) for validator in _client_frame_validators())


def _resolve(name: str, node: Any) -> Any:
    """Return the node, or the node of the document `name` that its $ref points to."""
    if "$ref" in node:
        for part in ("", *node["$ref"].removeprefix("#/").split("/")):
            node = node[part] if part else document(name)
    return node


@cache
def _response_validator(path: str, method: str, code: str, kind: str) -> Draft202012Validator:
    response = _resolve("openapi.yaml", document("openapi.yaml")["paths"][path][method]["responses"][code])
    return _validator("openapi.yaml", response["content"][kind]["schema"], closed=True)


@cache
def _server_frame_validators() -> dict[Any, list[Draft202012Validator]]:
    """Map each op_type to the validators of its frames, so that not every validator has to be tried."""
    by_code: dict[Any, list[Draft202012Validator]] = defaultdict(list)
    for schema in _payloads("fromServer"):
        code = schema["properties"]["op_type"]
        for value in code["enum"] if "enum" in code else [code["const"]]:
            by_code[value].append(_validator("asyncapi.yaml", schema, closed=True))
    return by_code


@cache
def _client_frame_validators() -> list[Draft202012Validator]:
    return [_validator("asyncapi.yaml", schema, closed=False) for schema in _payloads("fromClient")]


def _payloads(operation: str) -> Iterator[Any]:
    asyncapi = document("asyncapi.yaml")
    for message in asyncapi["operations"][operation]["messages"]:
        name = message["$ref"].rpartition("/")[2]
        yield asyncapi["components"]["messages"][name]["payload"]


def _validator(name: str, schema: Any, *, closed: bool) -> Draft202012Validator:
    """`closed` rejects keys that the schema does not name."""
    flat = _flatten(name, schema, closed)
    Draft202012Validator.check_schema(flat)
    return Draft202012Validator(flat)


def _flatten(name: str, schema: Any, closed: bool) -> Any:
    """Return the schema without $ref and allOf, which validates in a fraction of the time.

    If several parts define the same key, the last part wins because it is the narrower one.
    """
    flat: dict[str, Any] = {}
    schema = _resolve(name, schema)
    for part in (*(_flatten(name, part, False) for part in schema.get("allOf", ())), schema):
        for key, value in part.items():
            if key == "properties":
                known = flat.setdefault(key, {})
                known |= {field: {"allOf": [known[field], of]} if field in known else of for field, of in value.items()}
            elif key == "required":
                flat[key] = [*flat.get(key, ()), *value]
            elif key != "allOf":
                flat[key] = value
    if "properties" in flat:
        flat["properties"] = {field: _flatten(name, of, closed) for field, of in flat["properties"].items()}
        flat |= {"additionalProperties": False} if closed else {}
    if "items" in flat:
        flat["items"] = _flatten(name, flat["items"], closed)
    return flat


def _validate(validator: Draft202012Validator, body: Any) -> None:
    errors = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(body)]
    assert not errors, errors
