"""What stays of a deleted text: enough to know it again, too little to read it."""

import hashlib
import hmac
import secrets

SALT = 16  # bytes


def digest(text: str, salt: bytes | None = None) -> bytes:
    """The salted digest of a text: the salt, then SHA-256."""
    salt = salt or secrets.token_bytes(SALT)
    return salt + hashlib.sha256(salt + text.encode()).digest()


def is_digest_of(stored: bytes, text: str) -> bool:
    """Whether `stored` is a digest of `text`."""
    return hmac.compare_digest(stored, digest(text, stored[:SALT]))
