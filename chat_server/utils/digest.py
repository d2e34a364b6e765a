"""The salted digest that replaces the text of a deleted message: a retry is recognized, the text cannot be read."""

import hashlib
import hmac
import secrets

SALT = 16  # bytes


def digest(text: str, salt: bytes | None = None) -> bytes:
    """Return the salt followed by the SHA-256 of salt and text."""
    salt = salt or secrets.token_bytes(SALT)
    return salt + hashlib.sha256(salt + text.encode()).digest()


def is_text_of(stored: str | bytes, text: str) -> bool:
    """Whether a stored text, or the digest of a deleted one, belongs to `text`."""
    if isinstance(stored, str):
        return stored == text
    return hmac.compare_digest(stored, digest(text, stored[:SALT]))
