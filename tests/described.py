"""What docs/openapi.yaml and docs/asyncapi.yaml describe, held against what tests see on the wire.

Every answer and every frame that passes through tests/harness.py comes by here, so the descriptions stay true.
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
def description(name: str) -> Any:
    """The document `name` below docs/."""
    return yaml.safe_load((DOCS / name).read_text("utf-8"))


def answer(response: httpx.Response) -> None:
    """Fail unless this HTTP answer is one that the description has for its path, method and code."""
    request = response.request
    paths = description("openapi.yaml")["paths"]
    operation = paths.get(request.url.path, {}).get(request.method.lower())
    if operation is None:  # 404 and 405, or the web page
        return
    code = str(response.status_code)
    assert code in operation["responses"], f"{request.method} {request.url.path} answered {code}: {response.text}"
    described = _resolved("openapi.yaml", operation["responses"][code])
    for name, header in described.get("headers", {}).items():
        assert name in response.headers or not _resolved("openapi.yaml", header).get("required"), name
    content = described.get("content", {})
    kind = response.headers.get("Content-Type", "").partition(";")[0]
    assert kind in content or not response.content, kind
    if response.content and kind == "application/json":
        _hold(_of_answer(request.url.path, request.method.lower(), code, kind), response.json())


def frame(text: str) -> None:
    """Fail unless this frame of the server's is described."""
    found = json.loads(text)
    validators = _frames_from_server()[found.get("op_type")]
    assert any(validator.is_valid(found) for validator in validators), f"not in docs/asyncapi.yaml: {text[:500]}"


def request(text: str) -> bool:
    """Whether this frame of a client's is as described, so that a server understands it."""
    try:
        found = json.loads(text)
    except ValueError:
        return False
    return any(validator.is_valid(found) for validator in _frames_from_client())


def _resolved(name: str, node: Any) -> Any:
    """The node itself, or the one of the document `name` that it refers to."""
    if "$ref" in node:
        for part in ("", *node["$ref"].removeprefix("#/").split("/")):
            node = node[part] if part else description(name)
    return node


@cache
def _of_answer(path: str, method: str, code: str, kind: str) -> Draft202012Validator:
    described = _resolved("openapi.yaml", description("openapi.yaml")["paths"][path][method]["responses"][code])
    return _validator("openapi.yaml", described["content"][kind]["schema"], closed=True)


@cache
def _frames_from_server() -> dict[Any, list[Draft202012Validator]]:
    """The validators of frames by the codes that they may bear: one look-up instead of many tries."""
    by_code: dict[Any, list[Draft202012Validator]] = defaultdict(list)
    for schema in _payloads("fromServer"):
        code = schema["properties"]["op_type"]
        for value in code["enum"] if "enum" in code else [code["const"]]:
            by_code[value].append(_validator("asyncapi.yaml", schema, closed=True))
    return by_code


@cache
def _frames_from_client() -> list[Draft202012Validator]:
    return [_validator("asyncapi.yaml", schema, closed=False) for schema in _payloads("fromClient")]


def _payloads(operation: str) -> Iterator[Any]:
    document = description("asyncapi.yaml")
    for message in document["operations"][operation]["messages"]:
        name = message["$ref"].rpartition("/")[2]
        yield document["components"]["messages"][name]["payload"]


def _validator(name: str, schema: Any, *, closed: bool) -> Draft202012Validator:
    """`closed`: keys that are not described are none."""
    flat = _flat(name, schema, closed)
    Draft202012Validator.check_schema(flat)
    return Draft202012Validator(flat)


def _flat(name: str, schema: Any, closed: bool) -> Any:
    """The schema in one piece, without references and allOf: it is checked in a fraction of the time.

    Where parts say something of the same key, the last one counts: it is the narrower one.
    """
    flat: dict[str, Any] = {}
    schema = _resolved(name, schema)
    for part in (*(_flat(name, part, False) for part in schema.get("allOf", ())), schema):
        for key, value in part.items():
            if key == "properties":
                known = flat.setdefault(key, {})
                known |= {field: {"allOf": [known[field], of]} if field in known else of for field, of in value.items()}
            elif key == "required":
                flat[key] = [*flat.get(key, ()), *value]
            elif key != "allOf":
                flat[key] = value
    if "properties" in flat:
        flat["properties"] = {field: _flat(name, of, closed) for field, of in flat["properties"].items()}
        flat |= {"additionalProperties": False} if closed else {}
    return flat


def _hold(validator: Draft202012Validator, found: Any) -> None:
    errors = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(found)]
    assert not errors, errors
