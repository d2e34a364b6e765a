"""Hooks for schemathesis: valid values of the formats in docs/openapi.yaml, generated with the server's own rules."""

import schemathesis
from hypothesis import strategies as st

from chat_server.service.names import is_available, is_group_name, normal
from chat_server.utils.passwords import bad_password

_chars = st.characters(categories=("L", "M", "N"), include_characters="_-.@")
_names = st.text(_chars, min_size=1, max_size=64).filter(lambda name: is_available(normal(name)))
_group_names = (
    st.text(_chars, min_size=1, max_size=63).map("#{}".format).filter(lambda name: is_group_name(normal(name)))
)
_passwords = st.text(min_size=2).filter(lambda text: not bad_password(text, 6))

schemathesis.openapi.format("user-name", _names)
schemathesis.openapi.format("group-name", _group_names)
schemathesis.openapi.format("password", _passwords)
