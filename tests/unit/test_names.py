"""User names: normalisation of hostile input, and the table of invisible characters."""

import json
import subprocess
import unicodedata
from typing import Literal

import pytest

from chat_server.service.names import MAX_INPUT, MAX_LENGTH, is_available, is_name, normal
from chat_server.utils.invisible import has_invisible
from tests.harness import NODE

Form = Literal["NFC", "NFKC"]


def test_only_short_input_is_normalised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Normalisation takes quadratic time for some input."""
    lengths = []
    normalize = unicodedata.normalize

    def counting(form: Form, text: str) -> str:
        lengths.append(len(text))
        return normalize(form, text)

    monkeypatch.setattr(unicodedata, "normalize", counting)
    for size in (1, MAX_LENGTH, MAX_INPUT, MAX_INPUT + 1, 65536):
        for part in ("a", "\u0301", "\u0315\u0300", "\u1f82", "\ufdfa", "\U0001d15f"):
            name = normal((part * size)[:size])
            assert len(name) <= 3 * MAX_INPUT + 1
            if is_name(name):
                is_available(name)
    assert max(lengths) == MAX_INPUT


def test_input_that_is_too_long_does_not_become_a_name() -> None:
    longest = "\u03b1\u0313\u0300\u0345" * MAX_LENGTH
    assert len(longest) == MAX_INPUT
    assert normal(longest) == "\u1f82" * MAX_LENGTH
    assert is_name(normal(longest))
    for more in ("a", "\u0301"):
        assert not is_name(normal(longest + more))


def test_nfc_combines_at_most_four_code_points() -> None:
    """MAX_INPUT relies on it."""
    assert max(len(unicodedata.normalize("NFD", chr(point))) for point in range(0x110000)) * MAX_LENGTH == MAX_INPUT


def test_invisible_characters_are_those_of_unicode() -> None:
    """Node has the property that Python lacks."""
    script = """const found = [];
        for (let point = 0; point < 0x110000; point++)
            if (/\\p{Default_Ignorable_Code_Point}/u.test(String.fromCodePoint(point))) found.push(point);
        console.log(JSON.stringify(found));"""
    answer = subprocess.run([NODE, "-e", script], check=True, capture_output=True).stdout
    invisible = set(json.loads(answer))
    assert all(has_invisible(chr(point)) for point in invisible)
    assert not has_invisible("".join(chr(point) for point in range(0x110000) if point not in invisible))
