"""TLS that cannot be had: told from a server that is only away."""

import ssl

# What a handshake that was cut off looks like: the server may be about to start, or to end.
_CUT_OFF = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)


class NotOfferedError(OSError):
    """The server speaks no TLS, and to speak without it was not asked for."""


def trouble(error: BaseException) -> str:
    """Why there can be no TLS, if that is behind `error`; empty if it is something else, or may pass."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ssl.SSLCertVerificationError):
            return f"the certificate is not good: {seen.verify_message}"
        if isinstance(seen, NotOfferedError):
            return "the server does not offer it"
        if isinstance(seen, ssl.SSLError) and not isinstance(seen, _CUT_OFF):
            return seen.reason
        seen = seen.__cause__ or seen.__context__
    return ""
