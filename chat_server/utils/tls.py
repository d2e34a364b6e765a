"""Distinguishes TLS errors that a retry cannot solve from servers that are unavailable."""

import ssl

# Errors of an interrupted handshake: the server may be starting or stopping.
_CUT_OFF = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)


class NotOfferedError(OSError):
    """The server does not support TLS, but the settings require it."""


def permanent_tls_error(error: BaseException) -> str:
    """The permanent TLS error that caused `error`; empty if the cause is another one, or a retry may succeed."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ssl.SSLCertVerificationError):
            return f"the certificate is not valid: {seen.verify_message}"
        if isinstance(seen, NotOfferedError):
            return "the server does not support it"
        if isinstance(seen, ssl.SSLError) and not isinstance(seen, _CUT_OFF):
            return seen.reason
        seen = seen.__cause__ or seen.__context__
    return ""
