"""Hooks for schemathesis: values of the formats that docs/openapi.yaml names, by the rules of the code."""

import schemathesis
from hypothesis import strategies as st

from chat_server.service.accounts import is_name, normal

_chars = st.characters(categories=("L", "M", "N"), include_characters="_-.@")
_names = st.text(_chars, min_size=1, max_size=64).filter(lambda name: is_name(normal(name)))
_passwords = st.text(min_size=2).filter(lambda text: 6 <= len(text.encode()) <= 72 and "\0" not in text)

schemathesis.openapi.format("user-name", _names)
schemathesis.openapi.format("password", _passwords)
